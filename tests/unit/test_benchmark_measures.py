"""The figures of the benchmarks against values worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks import measures

# Highest first: spam 5, ham 4, spam 3, spam 3, ham 3, ham 1.
SCORES = np.asarray([5.0, 4.0, 3.0, 3.0, 3.0, 1.0])
LABELS = np.asarray([1, 0, 1, 1, 0, 0])
ONCE = np.ones((1, 6))


def test_auc_counts_pairs_and_half_of_the_ties() -> None:
    # 9 pairs: spam 5 beats 3 ham; each spam 3 beats one, ties with one, loses to one: 3 + 1.5 + 1.5.
    assert measures.auc(SCORES, LABELS, ONCE)[0] == pytest.approx(6 / 9)
    assert measures.one_minus_roca(SCORES, LABELS, ONCE)[0] == pytest.approx(100 / 3)


def test_auc_of_a_resample_counts_each_message_as_often_as_it_was_drawn() -> None:
    counts = np.asarray([[2.0, 0.0, 1.0, 0.0, 0.0, 3.0]])  # spam 5, 5, 3 and ham 1, 1, 1
    assert measures.auc(SCORES, LABELS, counts)[0] == 1.0
    counts = np.asarray([[0.0, 1.0, 1.0, 1.0, 1.0, 0.0]])  # ham 4, 3 and spam 3, 3: two ties of four pairs
    assert measures.auc(SCORES, LABELS, counts)[0] == pytest.approx(0.25)


def test_auc_without_a_class_is_nan() -> None:
    assert np.isnan(measures.auc(SCORES, np.ones(6, dtype=int), ONCE)[0])


@pytest.mark.parametrize(("rate", "missed"), [(0.0, 2 / 3), (0.3, 2 / 3), (1 / 3, 2 / 3), (0.7, 0.0), (1.0, 0.0)])
def test_fnr_is_the_least_that_the_rate_allows(rate: float, missed: float) -> None:
    assert measures.fnr_at(rate)(SCORES, LABELS, ONCE)[0] == pytest.approx(missed)


def test_fnr_is_everything_when_the_highest_score_is_shared_with_ham() -> None:
    scores = np.asarray([1.0, 1.0, 1.0, 0.0])
    assert measures.fnr_at(0.001)(scores, np.asarray([1, 1, 0, 0]), np.ones((1, 4)))[0] == 1.0


def test_f1_and_shares_at_a_cutoff() -> None:
    # From 3 on: 3 spam caught, 2 ham called spam.
    assert measures.f1_from(3.0)(SCORES, LABELS, ONCE)[0] == pytest.approx(2 * 3 / (2 * 3 + 2))
    assert measures.share_from(4.0, 0)(SCORES, LABELS, ONCE)[0] == pytest.approx(1 / 3)
    assert measures.share_from(4.0, 1)(SCORES, LABELS, ONCE)[0] == pytest.approx(1 / 3)
    assert measures.f1_from(9.0)(SCORES, LABELS, ONCE)[0] == 0.0


def test_a_cutoff_may_be_another_for_each_message() -> None:
    cutoffs = np.asarray([6.0, 3.0, 3.0, 3.0, 4.0, 0.0])
    assert measures.share_from(cutoffs, 1)(SCORES, LABELS, ONCE)[0] == pytest.approx(2 / 3)
    assert measures.share_from(cutoffs, 0)(SCORES, LABELS, ONCE)[0] == pytest.approx(2 / 3)


def test_calibration_error() -> None:
    said = np.asarray([0.9, 0.9, 0.9, 0.9, 0.1, 0.1])
    labels = np.asarray([1, 1, 1, 0, 0, 0])
    # .9 was so in three of four: .15 off for four messages; .1 never: .1 off for two.
    expected = (4 * 0.15 + 2 * 0.1) / 6
    found = measures.calibration_error(measures.log_odds(said), labels, np.ones((1, 6)))[0]
    assert found == pytest.approx(expected)
    assert measures.reliability(measures.log_odds(said), labels) == [[0.1, 0.0, 2], [0.9, 0.75, 4]]


def test_log_odds_and_probability_are_each_others_inverse() -> None:
    p = np.asarray([1e-9, 0.3, 0.5, 0.999])
    assert measures.probability(measures.log_odds(p)) == pytest.approx(p)
    assert np.isfinite(measures.log_odds([0.0, 1.0])).all()


def test_resamples_draw_whole_groups() -> None:
    counts = measures.resamples(["a", "a", "b", "c", "c", "c"], draws=200)
    assert (counts[0] == 1).all()
    assert (counts[:, 0] == counts[:, 1]).all()
    assert (counts[:, 3] == counts[:, 5]).all()
    assert (counts[1:, [0, 2, 3]].sum(1) == 3).all()  # three groups, three draws
    assert (counts == measures.resamples(["a", "a", "b", "c", "c", "c"], draws=200)).all()


def test_an_interval_holds_the_middle_of_the_resamples() -> None:
    figure = measures.figure(np.asarray([5.0, *range(1001)], dtype=float))
    assert (figure.value, figure.low, figure.high) == (5.0, 25.0, 975.0)
    assert np.isnan(measures.figure(np.asarray([1.0])).low)


def test_the_interval_of_auc_holds_the_truth_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(5)
    held = 0
    for _ in range(100):  # spam N(1, 1), ham N(0, 1): AUC is Phi(1 / sqrt 2) = .7602
        labels = np.repeat([0, 1], 60)
        scores = rng.normal(labels, 1.0)
        figure = measures.measured(measures.auc, scores, labels, measures.resamples(range(120), draws=200))
        held += figure.low <= 0.7602 <= figure.high
    assert 88 <= held <= 99


def test_a_difference_is_measured_on_the_same_resamples() -> None:
    labels = np.repeat([0, 1], 50)
    scores = np.random.default_rng(3).normal(labels, 1.0)
    counts = measures.resamples(range(100), draws=100)
    same = measures.difference(measures.auc, scores, 2 * scores, labels, counts)
    assert (same.value, same.low, same.high) == (0.0, 0.0, 0.0)
    worse = measures.difference(measures.auc, scores, -scores, labels, counts)
    assert worse.low > 0


def test_figures_of_ham_alone_are_only_those_that_need_no_spam() -> None:
    labels = np.zeros(3, dtype=int)
    found = measures.figures(
        np.asarray([0.0, 1.0, 2.0]), labels, np.ones((1, 3)), unsure=1.0, spam=2.0, probable=True
    )
    assert set(found) == {"ham called spam", "ham called spam or unsure"}
    assert found["ham called spam"].value == pytest.approx(1 / 3)
    assert found["ham called spam or unsure"].value == pytest.approx(2 / 3)


def test_the_roc_curve_starts_where_nothing_is_called_spam() -> None:
    wrong, missed = measures.roc(SCORES, LABELS)
    assert wrong.tolist() == pytest.approx([0, 0, 1 / 3, 2 / 3, 1])
    assert missed.tolist() == pytest.approx([1, 2 / 3, 2 / 3, 0, 0])
