"""The pictures of a retrain's report, as SVG to stand in its page, whose style sheet colours them: light and dark.

Drawn from the numbers of summary() alone, so that no text of a mail or name of a file is ever in one.
"""

from __future__ import annotations

import io
import logging
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from .summary import CLASSES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Numbers = dict[str, Any]

WIDTH, HEIGHT = 4.5, 3.1  # inches of 72 units; a phone shows them at about that size
# matplotlib wants colours: each of these stands for a variable of the style sheet, which takes its place.
INK, SOFT, GRID, HAM, SPAM, PAPER = "#010101", "#020202", "#030303", "#040404", "#050505", "#060606"
VARIABLES = {INK: "ink", SOFT: "soft", GRID: "grid", HAM: "ham", SPAM: "spam", PAPER: "paper"}
STYLE = {
    "svg.fonttype": "none",  # the reader's own font
    "font.size": 9.5,
    "axes.labelsize": 9.5,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": SOFT,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "lines.linewidth": 1.8,
}


def draw(found: Numbers) -> tuple[dict[str, str], list[str]]:
    """The pictures that can be drawn of these numbers, by name, and what went wrong with others, a line each."""
    # It tells at length where it keeps its list of fonts when there is no home folder.
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except Exception as error:  # whatever a broken installation throws: numbers without pictures are a report too
        return {}, [" ".join(f"no pictures: {error}".split())]
    pictures, faults = {}, list[str]()
    for name, picture in PICTURES.items():
        if not found[name]:
            continue
        try:
            # The salt makes the ids of one picture differ from those of the next.
            with matplotlib.rc_context({**matplotlib.rcParamsDefault, **STYLE, "svg.hashsalt": name}):
                figure = Figure(figsize=(WIDTH, HEIGHT), layout="constrained")
                picture(figure, found)
                pictures[name] = _for_a_page(figure)
        except Exception as error:
            faults.append(" ".join(f"picture {name} not drawn: {type(error).__name__}: {error}".split()))
    return pictures, faults


def _for_a_page(figure: Figure) -> str:
    """The SVG without what an HTML page has no use for: prologue, ids of groups, fonts and a size of its own."""
    stream = io.StringIO()
    figure.savefig(
        stream, format="svg", transparent=True, metadata=dict.fromkeys(("Creator", "Date", "Format", "Type"))
    )
    _, _, inside = stream.getvalue().partition("<svg")
    inside = inside.partition(">")[2]
    inside = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>|<!--.*?-->", "", inside, flags=re.DOTALL)
    inside = re.sub(r'<g id="[^"]*"', "<g", inside)
    inside = re.sub(r"; font-family: [^;\"]*", "", inside).replace("xlink:href", "href")
    for colour, variable in VARIABLES.items():
        inside = inside.replace(colour, f"var(--{variable})")
    return f'<svg viewBox="0 0 {WIDTH * 72:g} {HEIGHT * 72:g}" aria-hidden="true">{inside}'


def _roc(figure: Figure, found: Numbers) -> None:
    curve, confusion = found["roc"], found["figures"]["confusion"]
    # No ham at all has no place on a logarithmic axis: it stands at its left end.
    floor = min(0.001, 0.5 / max(sum(confusion["ham"].values()), 1))
    axes = figure.subplots()
    axes.step([max(x, floor) for x in curve["fpr"]], curve["recall"], where="post", color=SPAM)
    axes.set(
        xscale="log", xlim=(floor, 1), xlabel="ham called spam (false positive rate)", ylabel="spam found (recall)"
    )
    axes.xaxis.set_major_formatter(_percent)
    axes.minorticks_off()
    for marker, (name, at) in zip("os", curve["at_cutoffs"].items(), strict=True):
        axes.plot(
            [max(at["fpr"], floor)],
            [at["recall"]],
            marker,
            color=INK,
            markersize=6,
            label=f"cut-off {name}",
            clip_on=False,
        )
    _from_the_corner(axes, min(at["recall"] for at in curve["at_cutoffs"].values()))
    _legend(axes, "lower right")


def _precision_recall(figure: Figure, found: Numbers) -> None:
    curve = found["precision_recall"]
    axes = figure.subplots()
    axes.step(curve["recall"], curve["precision"], where="pre", color=SPAM)
    spam = found["classes"]["spam"]
    if spam["recall"] > 0:
        axes.plot([spam["recall"]], [spam["precision"]], "s", color=INK, markersize=6, label="cut-off spam")
        _legend(axes, "lower left")
    low = _least(min(spam["recall"], spam["precision"]))
    axes.set(xlim=(low, 1 + (1 - low) * 0.02), xlabel="spam found (recall)", ylabel="truly spam (precision)")
    axes.xaxis.set_major_formatter(_percent)
    _from_the_corner(axes, min(spam["recall"], spam["precision"]))


def _least(value: float) -> float:
    """Where an axis of shares begins, so that this value and the corner at 1 are well seen."""
    return next((low for low in (0.9, 0.8, 0.5) if value > low + (1 - low) / 5), 0.0)


def _from_the_corner(axes: Axes, value: float) -> None:
    low = _least(value)
    axes.set_ylim(low, 1 + (1 - low) * 0.02)
    axes.yaxis.set_major_formatter(_percent)


def _scores(figure: Figure, found: Numbers) -> None:
    scores, cutoffs = found["scores"], found["cutoffs"]
    edges = scores["edges"]
    width = edges[1] - edges[0]
    rows = figure.subplots(2, 1, sharex=True, sharey=True)
    most = max(1, *scores["ham"], *scores["spam"])
    for axes, name, colour in zip(rows, CLASSES, (HAM, SPAM), strict=True):
        axes.bar(edges[:-1], scores[name], width=width * 0.9, align="edge", color=colour)
        axes.set(yscale="symlog", ylim=(0, most * 2), xlim=(0, 1), ylabel=name)
        axes.set_yticks([0, *(10**n for n in range(7) if 10**n <= most)])
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        axes.minorticks_off()
        axes.grid(visible=False, axis="x")
        for cutoff in cutoffs.values():
            axes.axvline(cutoff, color=INK, linewidth=1, linestyle=(0, (4, 3)))
    for (name, cutoff), side in zip(cutoffs.items(), ("center", "right"), strict=True):
        rows[0].annotate(name, (cutoff, 1.03), xycoords=("data", "axes fraction"), ha=side, va="bottom", color=INK)
    rows[1].set_xlabel("probability of spam")


def _reliability(figure: Figure, found: Numbers) -> None:
    bins = found["reliability"]
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color=SOFT, linewidth=1, linestyle=(0, (4, 3)))
    said, spam = [one["said"] for one in bins], [one["spam"] for one in bins]
    reach = [
        [max(one["spam"] - one["low"], 0) for one in bins],
        [max(one["high"] - one["spam"], 0) for one in bins],
    ]
    axes.errorbar(said, spam, yerr=reach, fmt="o", color=SPAM, ecolor=SPAM, elinewidth=1.2, capsize=2, markersize=5)
    for one in bins:
        right = one["said"] < 0.5
        axes.annotate(
            f"{one['n']:,}", (one["said"], one["spam"]), xytext=(5 if right else -5, -9 if not right else 5),
            textcoords="offset points", ha="left" if right else "right", color=SOFT, fontsize=8,
        )  # fmt: skip
    axes.set(xlim=(-0.03, 1.03), ylim=(-0.05, 1.05), xlabel="probability said", ylabel="share that was spam")
    axes.xaxis.set_major_formatter(_percent)
    axes.yaxis.set_major_formatter(_percent)


def _lengths(figure: Figure, found: Numbers) -> None:
    lengths = found["lengths"]
    edges, limit = lengths["edges"], lengths["max_tokens"]
    width = edges[1] - edges[0]
    axes = figure.subplots()
    axes.bar(edges[:-1], lengths["messages"], width=width * 0.9, align="edge", color=HAM)
    axes.set(xlim=(0, edges[-1]), xlabel="tokens of the text", ylabel="messages")
    axes.set_xticks(range(0, edges[-1] + 1, 256), [*(str(n) for n in range(0, edges[-1], 256)), f"{edges[-1]:,}+"])
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.grid(visible=False, axis="x")
    if limit is not None and limit <= edges[-1]:
        axes.axvline(limit, color=INK, linewidth=1, linestyle=(0, (4, 3)))
        axes.annotate(
            f"max_tokens = {limit}", (limit, 1), xytext=(4, 0), xycoords=("data", "axes fraction"),
            textcoords="offset points", va="top", color=INK,
        )  # fmt: skip


def _learning_curve(figure: Figure, found: Numbers) -> None:
    points = found["learning_curve"]
    sizes = [point["messages"] for point in points]
    axes = figure.subplots()
    axes.fill_between(
        sizes, [point["low"] for point in points], [point["high"] for point in points],
        color=SPAM, alpha=0.2, linewidth=0,
    )  # fmt: skip
    axes.plot(sizes, [point["f1"] for point in points], "o-", color=SPAM, markersize=5)
    axes.set(xscale="log", xlabel="messages learnt from", ylabel="F1 of spam")
    axes.minorticks_off()
    axes.set_xticks(sizes, [f"{size:,}" for size in sizes])
    axes.set_ylim(_least(min(point["low"] for point in points)), 1.005)
    axes.yaxis.set_major_formatter(_percent)
    axes.margins(x=0.08)


def _percent(share: float, _: object = None) -> str:
    """0.975 -> 97.5 %, 1 -> 100 %."""
    return f"{share * 100:.4g}\N{NO-BREAK SPACE}%"


def _legend(axes: Axes, place: str) -> None:
    axes.legend(loc=place, frameon=False, numpoints=1, handletextpad=0.3)


PICTURES: dict[str, Callable[[Figure, Numbers], None]] = {
    "roc": _roc,
    "precision_recall": _precision_recall,
    "scores": _scores,
    "reliability": _reliability,
    "lengths": _lengths,
    "learning_curve": _learning_curve,
}
