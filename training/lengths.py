"""How long mail is in tokens: the histogram that `encoder.max_tokens` is chosen by."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from spamguard.errors import CorpusError
from spamguard.wide import WIDE_TOKENS

PERCENTILE = 95.0
STEP, LEAST = 8, 8  # tokens; hardware likes multiples of eight, and the configuration allows no fewer
BARS, WIDTH = 20, 50
Lengths = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Choice:
    """`tokens` hold `percentile` % of the mail whole, or are the most allowed (`limited`); `whole`: the share."""

    tokens: int
    percentile: float
    limited: bool
    whole: float


def choose(lengths: Lengths, most: int, percentile: float = PERCENTILE) -> Choice:
    """The least multiple of eight that `percentile` % of the lengths (n,) stay within, at most `most`.

    Raises CorpusError without mail.
    """
    if not len(lengths):
        raise CorpusError("no mail to measure")
    wanted = float(np.percentile(lengths, percentile, method="inverted_cdf"))
    tokens = max(LEAST, STEP * math.ceil(wanted / STEP))
    limited = tokens > most
    tokens = min(tokens, most)
    return Choice(tokens, percentile, limited, float((lengths <= tokens).mean()))


def bins(lengths: Lengths) -> tuple[Lengths, Lengths]:
    """Upper ends of at most BARS bins of one width (eight times a power of two), and how many lengths each holds."""
    width = STEP
    while width * BARS < lengths.max():
        width *= 2
    ends = np.arange(1, math.ceil(lengths.max() / width) + 1) * width
    return ends, np.bincount((lengths - 1) // width, minlength=len(ends))


def draw(lengths: Lengths, choice: Choice) -> Iterator[str]:
    """The histogram for a terminal, with a mark at the bin in which the choice lies."""
    ends, counts = bins(lengths)
    width = int(ends[0])
    for end, count in zip(ends.tolist(), counts.tolist(), strict=True):
        mark = f"  <- max_tokens = {choice.tokens}" if end - width < choice.tokens <= end else ""
        bar = "#" * math.ceil(WIDTH * count / counts.max())
        yield f"{end - width + 1:>6}-{end:<5}{count:>8} {bar}{mark}".rstrip()


def summary(lengths: Lengths, choice: Choice) -> str:
    """The choice in words."""
    half, wanted = (float(np.percentile(lengths, p, method="inverted_cdf")) for p in (50, choice.percentile))
    longest = int(lengths.max())
    said = f"{longest}" + (" or more" if longest >= WIDE_TOKENS else "")
    why = f", the most there may be; {choice.percentile:g} % would need more" if choice.limited else ""
    return (
        f"{len(lengths)} messages; tokens: median {half:.0f}, {choice.percentile:g} % have at most {wanted:.0f}, "
        f"longest {said}. max_tokens = {choice.tokens} holds {choice.whole:.1%} whole{why}"
    )


def picture(lengths: Lengths, choice: Choice, file: Path) -> None:
    """The histogram as a picture. Raises CorpusError if it cannot be drawn or written."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise CorpusError("no picture: matplotlib is not installed") from error
    figure = Figure(figsize=(7, 3.5), layout="constrained")
    axes = figure.add_subplot()
    ends, counts = bins(lengths)
    axes.bar(ends - ends[0], counts, width=ends[0], align="edge", edgecolor="white")
    axes.axvline(choice.tokens, color="black", linestyle="--", label=f"max_tokens = {choice.tokens}")
    axes.set_xlabel("tokens")
    axes.set_ylabel("messages")
    axes.legend()
    try:
        figure.savefig(file)
    except (OSError, ValueError) as error:
        raise CorpusError(f"{file}: {error}") from error
