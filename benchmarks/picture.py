"""Bars of ratios as an SVG picture: a group of bars for each name, a line at 1."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape

_LEFT, _WIDTH, _BAR, _GAP = 300, 560, 16, 16
_STYLE = """
    svg { --paper: #fcfcfa; --ink: #1f2933; --soft: #55636f; --first: #1c6ea4; --second: #9cc4de; --rest: #7b8794;
          --rest-second: #c3cbd3; }
    @media (prefers-color-scheme: dark) {
      svg { --paper: #14191f; --ink: #e8edf2; --soft: #aeb9c4; --first: #6db7ea; --second: #2b5a7c; --rest: #7b8794;
            --rest-second: #454f59; }
    }
    text { font: 13px system-ui, "Segoe UI", "DejaVu Sans", Arial, sans-serif; fill: var(--ink); }
    .title { font-weight: 600; } .name { text-anchor: end; } .soft { fill: var(--soft); }
    .paper { fill: var(--paper); } .one { stroke: var(--soft); stroke-dasharray: 4 4; }
    .ours0 { fill: var(--first); } .ours1 { fill: var(--second); }
    .bar0 { fill: var(--rest); } .bar1 { fill: var(--rest-second); }
"""


def bars(title: str, ratios: Mapping[str, Mapping[str, float]], ours: str) -> str:
    """The name `ours` is drawn in colour. All groups have the same keys, in the same order."""
    keys = list(next(iter(ratios.values())))
    scale = _WIDTH / max(value for group in ratios.values() for value in group.values())
    group_height = len(keys) * _BAR + _GAP
    height = 70 + len(ratios) * group_height
    marks = []
    for row, (name, group) in enumerate(ratios.items()):
        top = 64 + row * group_height
        kind = "ours" if name == ours else "bar"
        marks.append(
            f'<text class="name" x="{_LEFT - 12}" y="{top + len(keys) * _BAR / 2 + 4:g}">{escape(name)}</text>'
        )
        for place, value in enumerate(group.values()):
            y, width = top + place * _BAR, max(value * scale, 1)
            marks.append(f'<rect class="{kind}{place}" x="{_LEFT}" y="{y}" width="{width:.1f}" height="{_BAR - 2}"/>')
            marks.append(f'<text class="soft" x="{_LEFT + width + 6:.1f}" y="{y + 12}">{value:.2f}</text>')
    one = _LEFT + scale
    marks.append(f'<path class="one" d="M{one:.1f} 56V{height - 8}"/>')
    legend = "; ".join(f"{place} bar: {key}" for place, key in zip(("upper", "lower"), keys, strict=True))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_LEFT + _WIDTH + 80} {height}" role="img" '
        f'aria-labelledby="title">\n  <title id="title">{escape(title)}</title>\n  <style>{_STYLE}  </style>\n'
        '  <rect class="paper" width="100%" height="100%"/>\n'
        f'  <text class="title" x="12" y="24">{escape(title)}</text>\n'
        f'  <text class="soft" x="12" y="44">{escape(legend)}</text>\n  ' + "\n  ".join(marks) + "\n</svg>\n"
    )
