"""Figures of scores against labels, each with a 95 % interval from 1,000 bootstrap resamples of campaigns.

A score is a log-odds or anything else that grows with the likelihood of spam. All measures take `counts` (r, n): how
often each message stands in each of r resamples; the first row is the mail as it is. So every measure is computed
over all resamples at once, and two contestants are compared on the same ones.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Labels = npt.NDArray[np.int64]

RESAMPLES = 1000
RATES = (0.001, 0.005, 0.01)
BINS = 15


@dataclass(frozen=True)
class Figure:
    """A measured value and its 95 % interval; `low` and `high` are nan where there is nothing to resample."""

    value: float
    low: float
    high: float


def resamples(groups: Sequence[object], draws: int = RESAMPLES, seed: int = 0) -> Array:
    """(1 + draws, n): the mail as it is, then as many messages' groups as there are, drawn with replacement."""
    _, which = np.unique(np.asarray(groups), return_inverse=True)
    n = int(which.max()) + 1
    rng = np.random.default_rng(seed)
    drawn = np.stack([np.bincount(rng.integers(0, n, n), minlength=n) for _ in range(draws)]) if draws else []
    return np.vstack([np.ones((1, len(which))), *([drawn[:, which]] if draws else [])])


def auc(scores: Array, labels: Labels, counts: Array) -> Array:
    """Area under the ROC curve, ties counting half; nan where a class is missing."""
    ham, spam = _steps(scores, labels, counts)
    above = np.cumsum(spam, axis=1) - spam / 2  # spam scored higher than each step's ham
    with np.errstate(invalid="ignore", divide="ignore"):
        return (ham * above).sum(1) / (ham.sum(1) * spam.sum(1))


def one_minus_roca(scores: Array, labels: Labels, counts: Array) -> Array:
    """Area above the ROC curve in per cent, as in the TREC spam track (Cormack and Lynam 2005)."""
    return 100 * (1 - auc(scores, labels, counts))


def fnr_at(rate: float) -> Callable[[Array, Labels, Array], Array]:
    """Least share of spam missed by any cut-off at which at most `rate` of the ham is called spam."""

    def measure(scores: Array, labels: Labels, counts: Array) -> Array:
        ham, spam = _steps(scores, labels, counts)
        with np.errstate(invalid="ignore", divide="ignore"):
            wrong = np.cumsum(ham, axis=1) / ham.sum(1, keepdims=True)
            caught = np.cumsum(spam, axis=1) / spam.sum(1, keepdims=True)
        return 1 - np.where(wrong <= rate + 1e-12, caught, 0.0).max(1)

    return measure


def f1_from(cutoff: float | Array) -> Callable[[Array, Labels, Array], Array]:
    """F1 of spam, called so from the cut-off on; 0 where no spam is caught."""

    def measure(scores: Array, labels: Labels, counts: Array) -> Array:
        said = scores >= cutoff
        caught = counts @ (said & (labels == 1))
        wrong, spam = counts @ (said & (labels == 0)), counts @ (labels == 1)
        return 2 * caught / np.maximum(2 * caught + wrong + (spam - caught), 1e-12)

    return measure


def share_from(cutoff: float | Array, label: int) -> Callable[[Array, Labels, Array], Array]:
    """Share of the messages with the label whose score reaches the cut-off; nan if there are none."""

    def measure(scores: Array, labels: Labels, counts: Array) -> Array:
        of = labels == label
        with np.errstate(invalid="ignore", divide="ignore"):
            return (counts @ (of & (scores >= cutoff))) / (counts @ of)

    return measure


def calibration_error(logits: Array, labels: Labels, counts: Array) -> Array:
    """Expected calibration error of log-odds over bins of equal width (Guo et al. 2017)."""
    said = probability(logits)
    bins = np.minimum((said * BINS).astype(int), BINS - 1)
    gaps = np.stack([counts @ np.where(bins == b, said - labels, 0.0) for b in range(BINS)])
    return np.abs(gaps).sum(0) / counts.sum(1)


def measured(
    measure: Callable[[Array, Labels, Array], Array], scores: Array, labels: Labels, counts: Array
) -> Figure:
    return figure(measure(scores, labels, counts))


def difference(
    measure: Callable[[Array, Labels, Array], Array], first: Array, second: Array, labels: Labels, counts: Array
) -> Figure:
    """Of the first contestant's measure and the second's, on the same resamples."""
    return figure(measure(first, labels, counts) - measure(second, labels, counts))


def figures(
    scores: Array, labels: Labels, counts: Array, *, unsure: float | Array, spam: float | Array, probable: bool
) -> dict[str, Figure]:
    """All figures that mail with these labels allows; `unsure` and `spam` are the contestant's own cut-offs.

    Where parts of the mail were judged by several, the cut-offs are those of each message's judge, shape (n,).
    """
    both = 0 < labels.sum() < len(labels)
    wanted: dict[str, Callable[[Array, Labels, Array], Array]] = {}
    if both:
        wanted["auc"] = auc
        wanted |= {f"fnr at fpr {rate:.1%}": fnr_at(rate) for rate in RATES}
        wanted |= {"f1": f1_from(spam), "f1, unsure is spam": f1_from(unsure)}
    for label, name in enumerate(("ham", "spam")):
        if (labels == label).any():
            wanted |= {f"{name} called spam": share_from(spam, label)}
            wanted |= {f"{name} called spam or unsure": share_from(unsure, label)}
    if both and probable:
        wanted["calibration error"] = calibration_error
    return {name: measured(measure, scores, labels, counts) for name, measure in wanted.items()}


def probability(logits: Array) -> Array:
    return 1 / (1 + np.exp(-np.clip(logits, -40, 40)))


def log_odds(probabilities: npt.ArrayLike) -> Array:
    """Of probabilities; 0 and 1, which have none, are taken for the nearest that can be told from them."""
    p = np.clip(np.asarray(probabilities, dtype=np.float64), 1e-300, 1 - 1e-16)
    return np.log(p) - np.log1p(-p)


def roc(scores: Array, labels: Labels) -> tuple[Array, Array]:
    """(false positive rate, share of spam missed) at every cut-off, from the strictest on."""
    ham, spam = _steps(scores, labels, np.ones((1, len(labels))))
    wrong = np.concatenate([[0.0], np.cumsum(ham[0]) / ham.sum()])
    missed = np.concatenate([[1.0], 1 - np.cumsum(spam[0]) / spam.sum()])
    return wrong, missed


def reliability(logits: Array, labels: Labels, bins: int = 10) -> list[list[float]]:
    """Mean probability that was said, share that was spam, and messages, of each bin of equal width that has some."""
    said = probability(logits)
    where = np.minimum((said * bins).astype(int), bins - 1)
    chosen = [where == b for b in range(bins) if (where == b).any()]
    return [[round(float(said[c].mean()), 4), round(float(labels[c].mean()), 4), int(c.sum())] for c in chosen]


def _steps(scores: Array, labels: Labels, counts: Array) -> tuple[Array, Array]:
    """(r, steps) counts of ham and of spam at each value of the score, highest first."""
    order = np.argsort(-scores, kind="stable")
    ordered = scores[order]
    starts = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]]))
    ham = np.add.reduceat(counts[:, order] * (labels[order] == 0), starts, axis=1)
    spam = np.add.reduceat(counts[:, order] * (labels[order] == 1), starts, axis=1)
    return ham, spam


def figure(values: Array) -> Figure:
    """The first value, and the interval that the others span."""
    drawn = values[1:][~np.isnan(values[1:])]
    low, high = np.percentile(drawn, [2.5, 97.5]) if len(drawn) else (np.nan, np.nan)
    return Figure(float(values[0]), float(low), float(high))
