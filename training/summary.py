"""All numbers of a retrain's report, as one object for JSON; the page and its pictures are made of nothing else."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.stats import binomtest
from sklearn.metrics import (
    average_precision_score,
    precision_recall_curve,
    precision_recall_fscore_support,
    roc_curve,
)

from spamguard.verdict import Cutoffs, Label
from spamguard.wide import WIDE_TOKENS

from .learning_curve import Point
from .report import figures

Probabilities = npt.NDArray[np.floating]
Labels = npt.NDArray[np.int64]

FORMAT = 1
CLASSES = ("ham", "spam")
VERDICTS = tuple(label.value for label in Label)
SCORE_BINS, CALIBRATION_BINS, LENGTH_BIN = 20, 10, 64
LENGTH_PERCENTILES = (50, 75, 90, 95, 99)
CURVE_POINTS = 400
WORST, LARGEST = 10, 15  # of each class; of all


@dataclass(frozen=True, slots=True)
class Gate:
    """How the candidate did: `result` (`won`, `tied`, `lost`, `refused`), a sentence, and a table that shows why."""

    result: str
    says: str
    columns: Sequence[str] = ()
    rows: Sequence[Sequence[str | int | float]] = ()


@dataclass(frozen=True, slots=True)
class Before:
    """The head in service until now, and its probabilities (n,) of the same mail; NaN where it had learnt from it."""

    head: str
    probabilities: Probabilities
    cutoffs: Cutoffs


@dataclass(frozen=True, slots=True)
class Run:
    """What a report is made of. `table` is the training table of n messages, in the order of the arrays (n,).

    `probabilities` are those of the new head, out of fold; `lengths` are tokens of the text, as far as counted, of
    which the encoder reads `max_tokens`; `seconds` by stage. Whatever is None is left out of the report.
    """

    head: str
    table: pd.DataFrame
    probabilities: Probabilities
    cutoffs: Cutoffs
    provenance: Mapping[str, Any]
    seconds: Mapping[str, float]
    complaints: Sequence[str] = ()
    before: Before | None = None
    gate: Gate | None = None
    lengths: npt.NDArray[np.integer] | None = None
    max_tokens: int | None = None
    curve: Sequence[Point] | None = None


def summary(run: Run, *, private: bool) -> dict[str, Any]:
    """The numbers under stable keys (docs/report.md); `private` leaves out the names of files and folders.

    A message with a probability that is not a number counts nowhere but in `left_out`.
    """
    usable = np.isfinite(run.probabilities)
    table = run.table[usable].reset_index(drop=True)
    if private:
        table = table.assign(where=None)
    p, y = run.probabilities[usable].astype(np.float64), table["label"].to_numpy(dtype=np.int64)
    return {
        "format": FORMAT,
        "private": private,
        "head": run.head,
        "cutoffs": asdict(run.cutoffs),
        "gate": None if run.gate is None else asdict(run.gate),
        "left_out": int((~usable).sum()),
        "sources": _sources(table),
        "figures": asdict(figures(p, y, run.cutoffs)),
        "classes": _classes(p, y, run.cutoffs),
        "roc": _roc(p, y, run.cutoffs),
        "precision_recall": _precision_recall(p, y),
        "scores": _scores(p, y),
        "reliability": _reliability(p, y),
        "lengths": _lengths(run.lengths, run.max_tokens),
        "learning_curve": None if run.curve is None else [asdict(point) for point in run.curve],
        "mistakes": _mistakes(p, y, run.cutoffs, table),
        "changes": None if run.before is None else _changes(run.before, usable, p, y, run.cutoffs, table),
        "provenance": {
            key: value for key, value in run.provenance.items() if not (private and _names_a_path(key, value))
        },
        "seconds": {stage: round(float(seconds), 3) for stage, seconds in run.seconds.items()},
        "complaints": [] if private else list(run.complaints),
        "complaint_count": len(run.complaints),
    }


def _names_a_path(key: str, value: Any) -> bool:
    return key == "paths" or "/" in str(value)


def _sources(table: pd.DataFrame) -> list[dict[str, Any]]:
    return [
        {"source": str(name), "ham": int((rows == 0).sum()), "spam": int((rows == 1).sum())}
        for name, rows in table.groupby("source")["label"]
    ]


def _classes(p: Probabilities, y: Labels, cutoffs: Cutoffs) -> dict[str, Any]:
    """The classification report at the cut-off for spam; unsure counts as ham."""
    if not len(y):
        return {}
    said = (p >= cutoffs.spam).astype(np.int64)
    scores = precision_recall_fscore_support(y, said, labels=[0, 1], zero_division=0.0)
    return {
        name: {"precision": float(precision), "recall": float(recall), "f1": float(f1), "support": int(support)}
        for name, precision, recall, f1, support in zip(CLASSES, *scores, strict=True)
    }


def _roc(p: Probabilities, y: Labels, cutoffs: Cutoffs) -> dict[str, Any] | None:
    """Share of ham and of spam that each threshold hits, and where the two cut-offs stand on that curve."""
    if not 0 < y.sum() < len(y):
        return None
    false_positive, true_positive, _ = roc_curve(y, p)
    kept = _thinned(len(false_positive))
    at = {
        name: {"fpr": float((p[y == 0] >= cutoff).mean()), "recall": float((p[y == 1] >= cutoff).mean())}
        for name, cutoff in asdict(cutoffs).items()
    }
    return {"fpr": false_positive[kept].tolist(), "recall": true_positive[kept].tolist(), "at_cutoffs": at}


def _precision_recall(p: Probabilities, y: Labels) -> dict[str, Any] | None:
    if not 0 < y.sum() < len(y):
        return None
    precision, recall, _ = precision_recall_curve(y, p, drop_intermediate=True)
    kept = _thinned(len(precision))
    return {
        "recall": recall[kept].tolist(),
        "precision": precision[kept].tolist(),
        "average_precision": float(average_precision_score(y, p)),
    }


def _thinned(n: int) -> npt.NDArray[np.int64]:
    """Places of at most CURVE_POINTS of n points, both ends among them."""
    return np.unique(np.linspace(0, n - 1, min(n, CURVE_POINTS)).round().astype(np.int64))


def _scores(p: Probabilities, y: Labels) -> dict[str, Any]:
    edges = np.linspace(0, 1, SCORE_BINS + 1)
    counts = {name: np.histogram(p[y == label], edges)[0].tolist() for label, name in enumerate(CLASSES)}
    return {"edges": edges.round(4).tolist(), **counts}


def _reliability(p: Probabilities, y: Labels) -> list[dict[str, Any]]:
    """Of each bin that is not empty: mean probability, and the share that was spam with its exact 95 % interval."""
    bins = np.minimum((p * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1)
    found = []
    for place in np.unique(bins):
        n, spam = int((bins == place).sum()), int(y[bins == place].sum())
        interval = binomtest(spam, n).proportion_ci(0.95, method="exact")
        found.append(
            {
                "from": place / CALIBRATION_BINS,
                "to": (place + 1) / CALIBRATION_BINS,
                "n": n,
                "said": float(p[bins == place].mean()),
                "spam": spam / n,
                "low": float(interval.low),
                "high": float(interval.high),
            }
        )
    return found


def _lengths(lengths: npt.NDArray[np.integer] | None, max_tokens: int | None) -> dict[str, Any] | None:
    """Tokens of the texts, counted up to `counted`; `longer` is the share that the encoder does not read whole."""
    if lengths is None or not len(lengths):
        return None
    edges = np.arange(0, WIDE_TOKENS + LENGTH_BIN, LENGTH_BIN)
    return {
        "edges": edges.tolist(),
        "messages": np.histogram(np.minimum(lengths, WIDE_TOKENS), edges)[0].tolist(),
        "counted": WIDE_TOKENS,
        "percentiles": {
            str(q): int(v)
            for q, v in zip(LENGTH_PERCENTILES, np.percentile(lengths, LENGTH_PERCENTILES), strict=True)
        },
        "max_tokens": max_tokens,
        "longer": None if max_tokens is None else float((lengths > max_tokens).mean()),
    }


def _mistakes(p: Probabilities, y: Labels, cutoffs: Cutoffs, table: pd.DataFrame) -> list[dict[str, Any]]:
    """Ham that was not called ham and spam that was not called spam, of each the furthest off."""
    wrong = np.where(y == 0, p >= cutoffs.unsure, p < cutoffs.spam)
    order = np.argsort(-np.abs(p - y), kind="stable")
    worst = [i for label in (0, 1) for i in [i for i in order if wrong[i] and y[i] == label][:WORST]]
    return [_message(table, i) | {"said": _said(p[i], cutoffs), "probability": float(p[i])} for i in worst]


def _changes(
    before: Before, usable: npt.NDArray[np.bool_], p: Probabilities, y: Labels, cutoffs: Cutoffs, table: pd.DataFrame
) -> dict[str, Any]:
    """What the head in service said, and which verdicts the new one changes."""
    old = before.probabilities[usable].astype(np.float64)
    known = np.isfinite(old)
    old, p, y, table = old[known], p[known], y[known], table[known].reset_index(drop=True)
    said = [(_said(a, before.cutoffs), _said(b, cutoffs)) for a, b in zip(old, p, strict=True)]
    moved = Counter((a, b, int(label)) for (a, b), label in zip(said, y, strict=True) if a != b)
    changed = [i for i, (a, b) in enumerate(said) if a != b]
    largest = sorted(changed, key=lambda i: (-abs(p[i] - old[i]), i))[:LARGEST]
    return {
        "head": before.head,
        "cutoffs": asdict(before.cutoffs),
        "figures": asdict(figures(old, y, before.cutoffs)),
        "changed": len(changed),
        "moves": [
            {"from": a, "to": b, "ham": moved[a, b, 0], "spam": moved[a, b, 1]}
            for a in VERDICTS
            for b in VERDICTS
            if moved[a, b, 0] + moved[a, b, 1]
        ],
        "largest": [
            _message(table, i) | {"from": said[i][0], "to": said[i][1], "before": float(old[i]), "now": float(p[i])}
            for i in largest
        ],
    }


def _message(table: pd.DataFrame, i: int) -> dict[str, Any]:
    row = table.iloc[i]
    return {
        "content": str(row["content"]),
        "where": None if row["where"] is None else str(row["where"]),
        "label": CLASSES[int(row["label"])],
    }


def _said(probability: float, cutoffs: Cutoffs) -> str:
    return cutoffs.label(float(probability)).value
