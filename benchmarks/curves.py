"""The results of a run as pictures (SVG, by matplotlib), drawn of the plain data that the tables are made of."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

# Okabe and Ito's colours, which the colour-blind can tell apart; ours are drawn thick.
OURS = ("#0072b2", "#56b4e9", "#003a5c", "#8cc7e8")
PEERS = ("#d55e00", "#e69f00", "#009e73", "#cc79a7", "#6b6b6b", "#a07800", "#7a4fa3")
# One picture for light pages and dark ones: a paper of its own.
PAPER, INK, SOFT = "#fcfcfa", "#1f2933", "#c9d0d6"


def draw(results: Mapping[str, Any], folder: Path) -> list[Path]:
    """Write the pictures that these results allow. Raises ImportError without matplotlib."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams.update(
        {
            "figure.facecolor": PAPER,
            "savefig.facecolor": PAPER,
            "axes.facecolor": PAPER,
            "axes.edgecolor": SOFT,
            "axes.grid": True,
            "grid.color": SOFT,
            "grid.linewidth": 0.4,
            "text.color": INK,
            "axes.labelcolor": INK,
            "xtick.color": INK,
            "ytick.color": INK,
            "font.size": 9,
            "axes.titlesize": 10,
            "axes.titlelocation": "left",
            "svg.fonttype": "none",
            "svg.hashsalt": "spamguard",  # the same results give the same file
        }
    )
    targets = {
        f"({letter}) {name}": target
        for letter, found in results.items()
        for name, target in found.get("targets", {}).items()
        if target.get("curves")
    }
    drawn = []
    if targets:
        drawn.append(_roc(targets, folder / "judgement-roc.svg"))
        drawn.append(_reliability(targets, folder / "judgement-reliability.svg"))
    if "d" in results:
        drawn.append(_learning(results["d"], folder / "judgement-few-labels.svg"))
    if "f" in results:
        drawn.append(_online(results["f"], folder / "judgement-online.svg"))
    return drawn


def _roc(targets: Mapping[str, Any], file: Path) -> Path:
    from matplotlib.ticker import NullFormatter

    figure, panels = _panels(targets, 4.2, 3.4)
    for axes, (name, target) in zip(panels, targets.items(), strict=False):
        for who, curves in target["curves"].items():
            # A target of n ham cannot show a rate below 1/n; what lies there is drawn at the edge.
            least = 0.5 / max(target["ham"], 1)
            x = [max(100 * wrong, 100 * least) for wrong, _ in curves["roc"]]
            axes.step(
                x, [max(100 * missed, 0.05) for _, missed in curves["roc"]], where="post", **_style(who, targets)
            )
        axes.set(xscale="log", yscale="log", title=name, xlim=(50 / max(target["ham"], 1), 20), ylim=(0.05, 100))
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter("{x:g}")
            axis.set_minor_formatter(NullFormatter())
    _finish(figure, panels, "ham called spam, %", "spam missed, %")
    return _save(figure, file)


def _reliability(targets: Mapping[str, Any], file: Path) -> Path:
    figure, panels = _panels(targets, 3.4, 3.4)
    for axes, (name, target) in zip(panels, targets.items(), strict=False):
        axes.plot([0, 100], [0, 100], color=SOFT, linestyle="--", linewidth=1)
        for who, curves in target["curves"].items():
            points = curves.get("reliability", [])
            marks = {"marker": "o", "markersize": 3}
            axes.plot(
                [100 * p for p, _, _ in points], [100 * s for _, s, _ in points], **_style(who, targets), **marks
            )
        axes.set(title=name, xlim=(0, 100), ylim=(0, 100))
    _finish(figure, panels, "said to be spam, %", "was spam, %")
    return _save(figure, file)


def _learning(found: Mapping[str, Any], file: Path) -> Path:
    curves = {name: each for name, each in found.items() if name != "seconds"}
    figure, panels = _panels(curves, 5.4, 4.2)
    for axes, (name, each) in zip(panels, curves.items(), strict=False):
        for who, points in each["curves"].items():
            base, _, start = who.rpartition(", ")
            x = sorted(int(n) for n, value in points.items() if value[0] is not None)
            style = _style(base, {"": {"curves": [w.rpartition(", ")[0] for w in each["curves"]]}}) | {"label": who}
            dashes = {"linestyle": "-" if start.startswith("after") else ":"}
            axes.plot([max(n, 5) for n in x], [100 * points[str(n)][0] for n in x], **style | dashes, marker=".")
        axes.set(xscale="log", title=f"(d) {name}", xticks=[5, 10, 20, 50, 100, 200, 500])
        axes.set_xticklabels(["0", "10", "20", "50", "100", "200", "500"])
        axes.minorticks_off()
        best = [100 * value[0] for points in each["curves"].values() for value in points.values() if value[0]]
        axes.set_ylim(max(50, min(best) - 1), 100.2)
    _finish(figure, panels, "labels", "AUC, %")
    return _save(figure, file)


def _online(found: Mapping[str, Any], file: Path) -> Path:
    figure, panels = _panels(found["feedback"], 5.4, 4.0)
    for axes, (feedback, rows) in zip(panels, found["feedback"].items(), strict=False):
        for who, row in rows.items():
            points = [(n, value) for n, value in row["curve"] if value]
            axes.plot([n for n, _ in points], [v for _, v in points], **_style(who, {"": {"curves": rows}}))
        axes.set(yscale="log", title=f"(f) labels {feedback}")
    _finish(figure, panels, "messages", "1-ROCA so far, %")
    return _save(figure, file)


def _panels(things: Mapping[str, Any], width: float, height: float) -> tuple[Any, Sequence[Any]]:
    from matplotlib.figure import Figure

    across = min(len(things), 3)
    down = math.ceil(len(things) / across)
    figure = Figure(figsize=(width * across, height * down + 1.2), layout="constrained")
    panels = figure.subplots(down, across, squeeze=False).ravel()
    for spare in panels[len(things) :]:
        spare.set_axis_off()
    return figure, panels


def _style(who: str, targets: Mapping[str, Any]) -> dict[str, Any]:
    """The same contestant looks the same in each panel."""
    names = list(dict.fromkeys(name for target in targets.values() for name in target["curves"]))
    ours = [name for name in names if name.startswith("spamguard")]
    if who in ours:
        return {"label": who, "color": OURS[ours.index(who) % len(OURS)], "linewidth": 2.2, "zorder": 3}
    peers = [name for name in names if name not in ours]
    return {"label": who, "color": PEERS[peers.index(who) % len(PEERS)], "linewidth": 1.1}


def _finish(figure: Any, panels: Sequence[Any], x: str, y: str) -> None:
    shown: dict[str, Any] = {}
    for axes in panels:
        for line, name in zip(*axes.get_legend_handles_labels(), strict=True):
            shown.setdefault(name, line)
        axes.set(xlabel=x, ylabel=y)
    columns = max(1, int(figure.get_figwidth() * 15 / (8 + max(map(len, shown), default=0))))  # 15 characters an inch
    figure.legend(list(shown.values()), list(shown), loc="outside lower center", ncols=columns, frameon=False)


def _save(figure: Any, file: Path) -> Path:
    figure.savefig(file, metadata={"Date": None})
    return file
