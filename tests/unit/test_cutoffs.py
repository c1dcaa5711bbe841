"""Cut-offs follow the ham that may be hit, within bounds, and say how well they are known."""

from __future__ import annotations

import numpy as np
import pytest

from spamguard.verdict import Cutoffs
from training.cutoffs import SPAM_BOUNDS, UNSURE_BOUNDS, Rates, choose_cutoffs, hits


def even(n: int) -> np.ndarray:
    return np.ones(n)


def test_they_follow_the_ham() -> None:
    clean = choose_cutoffs(np.linspace(0, 0.3, 10_000), even(10_000))
    assert (clean.unsure, clean.spam) == (pytest.approx(0.294, abs=1e-3), SPAM_BOUNDS[0])
    worse = choose_cutoffs(np.concatenate([np.full(9_980, 0.05), np.full(20, 0.97)]), even(10_000))
    assert (worse.unsure, worse.spam) == (UNSURE_BOUNDS[0], 0.9701)
    hopeless = choose_cutoffs(np.full(10_000, 0.9999), even(10_000))
    assert (hopeless.unsure, hopeless.spam) == (UNSURE_BOUNDS[1], SPAM_BOUNDS[1])


def test_they_follow_the_rates() -> None:
    ham = np.linspace(0, 1, 10_001)
    found = choose_cutoffs(ham, even(10_001), Rates(spam=0.05, unsure=0.7))
    assert (found.spam, found.unsure) == (pytest.approx(0.95, abs=1e-3), pytest.approx(0.3, abs=1e-3))


def test_they_count_weights() -> None:
    ham = np.concatenate([np.full(999, 0.1), [0.95]])
    assert choose_cutoffs(ham, np.where(ham > 0.5, 0.01, 1.0)).spam == 0.9
    assert choose_cutoffs(ham, np.where(ham > 0.5, 100.0, 1.0)).spam == 0.9501


@pytest.mark.parametrize("n", [50, 100, 999, 1000, 2000])
def test_they_never_hit_more_than_they_may(n: int) -> None:
    ham = np.random.default_rng(n).uniform(0.3, 0.5, n)
    unsure = choose_cutoffs(ham, even(n), Rates(unsure=0.02)).unsure
    assert (ham >= unsure).sum() <= n * 0.02 < (ham >= unsure - 0.01).sum()
    proud = np.random.default_rng(n).uniform(0.9, 0.99, n)
    spam = choose_cutoffs(proud, even(n), Rates(spam=0.02)).spam
    assert (proud >= spam).sum() <= n * 0.02 < (proud >= spam - 0.005).sum()


def test_little_ham_keeps_them_careful() -> None:
    assert choose_cutoffs(np.full(20, 0.01), even(20), careful=0.97) == Cutoffs(UNSURE_BOUNDS[1], 0.97)
    assert choose_cutoffs(np.full(1000, 0.01), even(1000), careful=0.97) == Cutoffs(UNSURE_BOUNDS[0], SPAM_BOUNDS[0])


def test_hits_are_counted_with_their_exact_interval() -> None:
    found = hits(np.asarray([0.1] * 95 + [0.6] * 4 + [0.95]), Cutoffs(0.5, 0.9), Rates())
    assert (found["unsure"].hit, found["spam"].hit, found["spam"].ham) == (5, 1, 100)
    # Clopper and Pearson for 5 and 1 of 100: textbook values.
    assert [found["unsure"].low, found["unsure"].high] == pytest.approx([0.0164, 0.1128], abs=1e-4)
    assert [found["spam"].low, found["spam"].high] == pytest.approx([0.0003, 0.0545], abs=1e-4)
    assert (found["spam"].target, found["unsure"].target) == (0.001, 0.02)
