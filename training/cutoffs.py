"""Cut-offs from the share of ham that may be hit, and how well the ham at hand shows that share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy.stats import binomtest

from spamguard.bundle import CutoffRate
from spamguard.verdict import Cutoffs

Array = npt.NDArray[np.float64]

# Few ham cannot show a rare mistake, so the cut-off for spam stays within bounds. From 0.5 on a calibrated head finds
# spam the likelier: that is never called ham. And what is most likely ham is not unsure, however clean the ham.
SPAM_BOUNDS, UNSURE_BOUNDS = (0.9, 0.999), (0.1, 0.5)


@dataclass(frozen=True, slots=True)
class Rates:
    """Shares of ham, not fitted on, that may be called spam, and unsure or spam."""

    spam: float = 1 / 1000
    unsure: float = 1 / 50


def choose_cutoffs(
    ham: Array,
    weights: Array,
    rates: Rates = Rates(),
    careful: float = SPAM_BOUNDS[0],
) -> Cutoffs:
    """Cut-offs from the out-of-fold probabilities of ham (n,) and what each counts.

    `careful` is the least cut-off for spam as long as there is too little ham to show how much a lower one would hit.
    """
    shown = len(ham) * rates.spam >= 1
    spam = float(np.clip(_above(ham, weights, rates.spam), SPAM_BOUNDS[0] if shown else careful, SPAM_BOUNDS[1]))
    unsure = UNSURE_BOUNDS[1]
    if len(ham) * rates.unsure >= 1:
        unsure = float(np.clip(_above(ham, weights, rates.unsure), *UNSURE_BOUNDS))
    return Cutoffs(unsure, spam)


def hits(ham: Array, cutoffs: Cutoffs, rates: Rates) -> dict[Literal["unsure", "spam"], CutoffRate]:
    """How much of this ham, probabilities (n,), each cut-off hits; if it was chosen on it, that flatters a little."""
    return {
        "unsure": _rate(ham, cutoffs.unsure, rates.unsure),
        "spam": _rate(ham, cutoffs.spam, rates.spam),
    }


def _rate(ham: Array, cutoff: float, target: float) -> CutoffRate:
    """With the exact interval of Clopper and Pearson (1934)."""
    above = int((ham >= cutoff).sum())
    interval = binomtest(above, len(ham)).proportion_ci(0.95, method="exact")
    return CutoffRate(target=target, ham=len(ham), hit=above, low=float(interval.low), high=float(interval.high))


def _above(values: Array, weights: Array, share: float) -> float:
    """The least number of four digits that at most `share` of the weight reaches."""
    order = np.argsort(values)[::-1]
    reached = np.cumsum(weights[order]) / weights.sum()
    # So many of the greatest may be hit; the next one must stay below.
    hit = int(np.searchsorted(reached, share * (1 + 1e-9), side="right"))
    return 0.0 if hit == len(values) else round((np.floor(values[order][hit] * 1e4) + 1) / 1e4, 4)
