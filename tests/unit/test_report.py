"""The figures, against numbers worked by hand and against sklearn."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import (
    confusion_matrix,
    f1_score,
    precision_score,
    recall_score,
    roc_auc_score,
)

from spamguard.verdict import Cutoffs
from training.report import as_text, calibration_error, figures, fnr_at_fpr

CUTOFFS = Cutoffs(0.5, 0.9)
# ham: 0.05 0.2 0.6 0.95, spam: 0.1 0.7 0.92 0.99 1.0
PROBABILITIES = np.asarray([0.05, 0.2, 0.6, 0.95, 0.1, 0.7, 0.92, 0.99, 1.0], np.float32)
LABELS = np.asarray([0, 0, 0, 0, 1, 1, 1, 1, 1], np.int64)


def test_the_figures_by_hand() -> None:
    found = figures(PROBABILITIES, LABELS, CUTOFFS)
    assert found.n == 9
    assert found.confusion == {
        "ham": {"ham": 2, "unsure": 1, "spam": 1},
        "spam": {"ham": 1, "unsure": 1, "spam": 3},
    }
    assert found.precision == pytest.approx(3 / 4) and found.recall == pytest.approx(3 / 5)
    assert found.f1 == pytest.approx(2 / 3)
    # Of the 20 pairs of ham and spam, 0.1 beats one ham, 0.7 three, 0.92 three, 0.99 and 1.0 four each: 15.
    assert found.auc == pytest.approx(15 / 20)
    # No ham may pass: the threshold stands above 0.95, and three of five spam are below.
    assert found.fnr_at_fpr == {0.001: pytest.approx(3 / 5), 0.005: pytest.approx(3 / 5), 0.01: pytest.approx(3 / 5)}


@given(
    st.lists(st.tuples(st.integers(0, 1000), st.integers(0, 1)), min_size=2, max_size=60).filter(
        lambda rows: len({label for _, label in rows}) == 2
    )
)
def test_the_figures_are_those_of_sklearn(rows: list[tuple[int, int]]) -> None:
    probabilities = np.asarray([p / 1000 for p, _ in rows])
    labels = np.asarray([label for _, label in rows], np.int64)
    found, said = figures(probabilities, labels, CUTOFFS), probabilities >= CUTOFFS.spam
    assert found.precision == pytest.approx(precision_score(labels, said, zero_division=0.0))
    assert found.recall == pytest.approx(recall_score(labels, said))
    assert found.f1 == pytest.approx(f1_score(labels, said, zero_division=0.0))
    assert found.auc == pytest.approx(roc_auc_score(labels, probabilities))
    counted = [[found.confusion[label][said] for said in ("ham", "unsure", "spam")] for label in ("ham", "spam")]
    label_of = {"ham": 0, "unsure": 1, "spam": 2}
    verdicts = [label_of[CUTOFFS.label(p).value] for p in probabilities]
    assert counted == confusion_matrix(labels * 2, verdicts, labels=[0, 1, 2])[[0, 2]].tolist()


@given(
    st.lists(st.integers(0, 20), min_size=1, max_size=40),
    st.lists(st.integers(0, 20), min_size=1, max_size=40),
    st.sampled_from([0.0, 0.001, 0.01, 0.1, 0.5, 1.0]),
)
def test_fnr_at_fpr_is_the_best_of_all_thresholds(ham: list[int], spam: list[int], rate: float) -> None:
    scores, labels = np.asarray([*ham, *spam]) / 20, np.asarray([0] * len(ham) + [1] * len(spam), np.int64)
    thresholds = [*np.unique(scores), 2.0]
    allowed = [t for t in thresholds if np.mean(scores[labels == 0] >= t) <= rate]
    assert fnr_at_fpr(scores, labels, rate) == pytest.approx(
        min(float(np.mean(scores[labels == 1] < t)) for t in allowed)
    )


def test_one_ham_in_a_thousand_may_pass_and_two_may_not() -> None:
    labels = np.asarray([0] * 1000 + [1] * 10, np.int64)
    ham, spam = np.zeros(1000), np.full(10, 0.5)
    ham[0] = 0.9
    assert fnr_at_fpr(np.concatenate([ham, spam]), labels, 0.001) == 0.0
    ham[1] = 0.9
    assert fnr_at_fpr(np.concatenate([ham, spam]), labels, 0.001) == 1.0


def test_calibration_error_by_hand() -> None:
    # Bins of 1/15: two messages at 0.1 of which one is spam, one sure and right, one sure and wrong.
    probabilities, labels = np.asarray([0.1, 0.1, 1.0, 0.0]), np.asarray([1, 0, 1, 1], np.int64)
    assert calibration_error(probabilities, labels) == pytest.approx((abs(0.2 - 1) + 0 + 1) / 4)
    # Too high here does not make up for too low there.
    assert calibration_error(np.asarray([0.1, 0.9]), np.asarray([1, 0], np.int64)) == pytest.approx(0.9)
    assert calibration_error(np.asarray([0.0, 1.0]), np.asarray([0, 1], np.int64)) == 0.0
    assert calibration_error(np.asarray([]), np.asarray([], np.int64)) == 0.0


def test_calibration_error_of_what_is_calibrated_is_small() -> None:
    rng = np.random.default_rng(0)
    probabilities = rng.random(50_000)
    labels = (rng.random(50_000) < probabilities).astype(np.int64)
    assert calibration_error(probabilities, labels) < 0.01
    assert calibration_error(probabilities**3, labels) > 0.1


@pytest.mark.parametrize("label", [0, 1])
def test_one_class_has_no_curve(label: int) -> None:
    found = figures(PROBABILITIES, np.full(9, label, np.int64), CUTOFFS)
    assert found.auc is None and found.fnr_at_fpr is None and "AUC" not in as_text(found)
    assert found.recall == (4 / 9 if label else 0.0) and found.precision == (1.0 if label else 0.0)


def test_no_mail_has_figures_too() -> None:
    found = figures(np.empty(0, np.float32), np.empty(0, np.int64), CUTOFFS)
    assert (found.n, found.f1, found.auc, found.calibration_error) == (0, 0.0, None, 0.0)


def test_the_text_shows_every_figure() -> None:
    text = as_text(figures(PROBABILITIES, LABELS, CUTOFFS)).splitlines()
    assert [line.split() for line in text[:3]] == [
        ["ham", "unsure", "spam", "<-", "verdict"],
        ["ham", "2", "1", "1"],
        ["spam", "1", "1", "3"],
    ]
    assert text[3] == "n 9   precision 0.7500   recall 0.6000   F1 0.6667"
    assert text[4] == (
        "AUC 0.75000   spam missed at a false positive rate of   0.1%: 60.00%   0.5%: 60.00%   1.0%: 60.00%"
    )
    assert text[5].startswith("expected calibration error 0.")
