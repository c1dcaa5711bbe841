"""How the head would do had it learnt from fewer labels: is collecting more of them worth the work?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from sklearn.metrics import f1_score
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

from spamguard.head import AdditiveHead, Features, logits

from .fit import (
    DEFAULT_PENALTIES,
    FOLDS,
    LEAST_OF_A_CLASS,
    Array,
    Labels,
    Penalties,
    balanced,
    calibrate,
    fit_additive,
    take,
)

# Small enough that three folds of all of them are fitted in some two seconds.
SIZES = (30, 100, 300, 1000)


@dataclass(frozen=True, slots=True)
class Point:
    """F1 of spam at probability 0.5, out of fold, when `messages` were learnt from: mean and range of the folds."""

    messages: int
    f1: float
    low: float
    high: float


def learning_curve(
    features: Features,
    labels: Labels,
    out_of_fold: Array,
    *,
    columns: int,
    groups: Sequence[str] | None = None,
    penalties: Penalties = DEFAULT_PENALTIES,
    prior: AdditiveHead | None = None,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> list[Point]:
    """A point for each of SIZES that is well below all there is, and one for `out_of_fold` (n,), fit()'s own.

    The other parameters as those of fit(), but `penalties` times the strength that it has chosen. Classes weigh
    alike. Raises CorpusError as fit_additive does.
    """
    few = min(int((labels == 0).sum()), int((labels == 1).sum()))
    folds = min(FOLDS, few, FOLDS if groups is None else len(set(groups)))
    if folds < 2:
        return []
    kind = StratifiedKFold if groups is None else StratifiedGroupKFold
    split = list(kind(folds, shuffle=True, random_state=seed).split(labels, labels, groups))
    rng = np.random.default_rng(seed)
    whole = round(len(labels) * (folds - 1) / folds)
    sizes = [size for size in SIZES if 1.5 * size <= whole and few * size >= 2 * LEAST_OF_A_CLASS * len(labels)]
    found: list[Point] = []
    for step, size in enumerate(sizes):
        given = np.empty(len(labels))
        for train, test in split:
            part = _part(train, labels, size / whole, rng)
            head = fit_additive(take(features, part), labels[part], balanced(labels[part]), columns, penalties, prior)
            given[test] = logits(head, take(features, test))
        slope, offset = calibrate(given, labels, balanced(labels))
        found.append(_point(size, slope * given + offset >= 0, labels, split))
        if progress:
            progress(step + 1, len(sizes))
    return [*found, _point(whole, out_of_fold >= 0.5, labels, split)]


def _part(
    train: npt.NDArray[np.int64], labels: Labels, share: float, rng: np.random.Generator
) -> npt.NDArray[np.int64]:
    """This share of each class's training messages, but not fewer than a head needs."""
    parts = []
    for label in (0, 1):
        mine = rng.permutation(train[labels[train] == label])
        parts.append(mine[: max(LEAST_OF_A_CLASS, round(len(mine) * share))])
    return np.sort(np.concatenate(parts))


def _point(
    messages: int,
    said: npt.NDArray[np.bool_],
    labels: Labels,
    split: Sequence[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]],
) -> Point:
    scores = [float(f1_score(labels[test], said[test], zero_division=0.0)) for _, test in split]
    return Point(messages, float(np.mean(scores)), min(scores), max(scores))
