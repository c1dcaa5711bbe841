"""The figures of a head on labelled mail."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from sklearn.metrics import roc_auc_score, roc_curve

from spamguard.verdict import Cutoffs

FALSE_POSITIVE_RATES = (0.001, 0.005, 0.01)
CALIBRATION_BINS = 15


@dataclass(frozen=True, slots=True)
class Figures:
    """`confusion[label][verdict]` counts messages; precision, recall and F1 are of spam, `unsure` counting as ham.

    `auc` and `fnr_at_fpr` (false negative rate at each false positive rate) are None when a class is missing.
    `calibration_error` is the expected calibration error over equal-width bins (Guo et al. 2017).
    """

    n: int
    confusion: dict[str, dict[str, int]]
    precision: float
    recall: float
    f1: float
    auc: float | None
    fnr_at_fpr: dict[float, float] | None
    calibration_error: float


def figures(probabilities: npt.NDArray[np.floating], labels: npt.NDArray[np.int64], cutoffs: Cutoffs) -> Figures:
    """Figures of probabilities (n,) against labels (n,), 1 being spam."""
    said = np.asarray([cutoffs.label(float(p)).value for p in probabilities])
    confusion = {
        name: {verdict: int(((labels == value) & (said == verdict)).sum()) for verdict in ("ham", "unsure", "spam")}
        for value, name in enumerate(("ham", "spam"))
    }
    caught, wrong, spam = confusion["spam"]["spam"], confusion["ham"]["spam"], int((labels == 1).sum())
    precision = caught / (caught + wrong) if caught + wrong else 0.0
    recall = caught / spam if spam else 0.0
    both = 0 < spam < len(labels)
    return Figures(
        n=len(labels),
        confusion=confusion,
        precision=precision,
        recall=recall,
        f1=2 * precision * recall / (precision + recall) if caught else 0.0,
        auc=float(roc_auc_score(labels, probabilities)) if both else None,
        fnr_at_fpr={rate: fnr_at_fpr(probabilities, labels, rate) for rate in FALSE_POSITIVE_RATES} if both else None,
        calibration_error=calibration_error(probabilities, labels),
    )


def fnr_at_fpr(scores: npt.NDArray[np.floating], labels: npt.NDArray[np.int64], rate: float) -> float:
    """Least share of spam missed by any threshold at which at most `rate` of the ham is called spam."""
    false_positive, true_positive, _ = roc_curve(labels, scores, drop_intermediate=False)
    return float(1 - true_positive[false_positive <= rate].max())


def calibration_error(probabilities: npt.NDArray[np.floating], labels: npt.NDArray[np.int64]) -> float:
    """Mean distance of confidence and frequency over the bins, weighted by the messages in each."""
    if not len(labels):
        return 0.0
    bins = np.minimum((probabilities * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1)
    n = np.bincount(bins, minlength=CALIBRATION_BINS)
    gap = np.bincount(bins, probabilities - labels, minlength=CALIBRATION_BINS)
    return float(np.abs(gap).sum() / n.sum())


def as_text(found: Figures) -> str:
    """The figures as a short table for a terminal."""
    lines = [f"{'':10}{'ham':>8}{'unsure':>8}{'spam':>8}   <- verdict"]
    for label, row in found.confusion.items():
        lines.append(f"{label:10}" + "".join(f"{count:>8}" for count in row.values()))
    lines.append(f"n {found.n}   precision {found.precision:.4f}   recall {found.recall:.4f}   F1 {found.f1:.4f}")
    if found.auc is not None and found.fnr_at_fpr is not None:
        missed = "   ".join(f"{rate:.1%}: {fnr:.2%}" for rate, fnr in found.fnr_at_fpr.items())
        lines.append(f"AUC {found.auc:.5f}   spam missed at a false positive rate of   {missed}")
    lines.append(f"expected calibration error {found.calibration_error:.4f}")
    return "\n".join(lines)
