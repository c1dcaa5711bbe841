"""Fitting: it finds what is there, leaves out what it is told to, starts from the prior, and cheats on no fold."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from spamguard.errors import CorpusError
from spamguard.head import AdditiveHead, Features, MlpHead, logits, probability
from spamguard.wide import Counts
from tests.fit_problem import ALL, COLUMNS, DIM, EVEN, additive, problem
from training import fit as fitting
from training.fit import LEAST_OF_A_CLASS, Penalties, balanced, calibrate, fit, take, tfidf


def arrays(head: AdditiveHead | MlpHead) -> dict[str, Any]:
    return {f.name: getattr(head, f.name) for f in fields(head)}


# --- The additive head ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("part", ALL)
def test_each_part_alone_finds_what_it_holds(part: str) -> None:
    features, labels = problem(parts=(part,))
    penalties = Penalties(**{name: (1.0 if name == part else None) for name in ALL}, headers=None)
    found = fit(features, labels, columns=COLUMNS, penalties=penalties)
    assert roc_auc_score(labels, found.out_of_fold) > 0.97
    fresh, truth = problem(seed=1, parts=(part,))
    assert roc_auc_score(truth, logits(found.head, fresh)) > 0.97


@pytest.mark.parametrize("part", ALL)
def test_a_part_without_penalty_is_left_out(part: str) -> None:
    features, labels = problem()
    head = additive(features, labels, penalties=Penalties(**{**dict.fromkeys(ALL, 1.0), part: None}, headers=None))
    assert not getattr(head, f"{part}_weight").any()
    assert not head.parts(features)[part].any()
    assert all(getattr(head, f"{other}_weight").any() for other in ALL if other != part)


def test_weights_point_the_right_way() -> None:
    head = additive(*problem(), penalties=EVEN)
    assert head.deep_weight[0] > 3 * np.abs(head.deep_weight[1:]).max() > 0
    assert head.structure_weight[0] > 0
    assert (head.wide_weight[:5] < 0).all() and (head.wide_weight[5:10] > 0).all()


def test_parts_sum_to_the_logit_and_the_logit_is_calibrated() -> None:
    features, labels = problem(strength=1.0)
    found = fit(features, labels, columns=COLUMNS)
    total = sum(found.head.parts(features).values())
    np.testing.assert_allclose(total, logits(found.head, features), rtol=1e-6)
    said = probability(logits(found.head, features))
    assert ((said > 0.5) == labels.astype(bool)).mean() > 0.9


def test_the_deep_part_is_the_logistic_regression_of_sklearn() -> None:
    """Not calibrated: the minimum itself, against another implementation."""
    features, labels = problem(strength=1.0)
    weights = balanced(labels) * np.where(np.arange(len(labels)) < 50, 3.0, 1.0)
    head = fitting.fit_additive(features, labels, weights, COLUMNS, Penalties(0.7, None, None), None)
    spread = np.sqrt(np.average((features.deep - head.deep_center) ** 2, axis=0, weights=weights))
    theirs = LogisticRegression(C=1 / 0.7, tol=1e-8, max_iter=1000)
    theirs.fit((features.deep - head.deep_center) / spread, labels, sample_weight=weights)
    np.testing.assert_allclose(head.deep_weight * spread, theirs.coef_[0], rtol=2e-2, atol=2e-3)
    assert head.bias[0] == pytest.approx(theirs.intercept_[0], abs=5e-3)


def test_the_wide_part_is_the_logistic_regression_of_sklearn() -> None:
    features, labels = problem(strength=1.0)
    head = fitting.fit_additive(features, labels, balanced(labels), COLUMNS, Penalties(None, 0.3, None), None)
    theirs = LogisticRegression(C=1 / 0.3, tol=1e-8, max_iter=1000)
    theirs.fit(tfidf(features.wide, head.wide_idf), labels, sample_weight=balanced(labels))
    np.testing.assert_allclose(head.wide_weight, theirs.coef_[0], rtol=2e-2, atol=1e-2)


def test_a_heavier_penalty_gives_smaller_weights() -> None:
    features, labels = problem(strength=1.0)
    sizes = []
    for penalty in (0.1, 1.0, 10.0, 1000.0):
        penalties = Penalties(penalty, penalty, penalty)
        head = fitting.fit_additive(features, labels, balanced(labels), COLUMNS, penalties, None)
        sizes.append([np.linalg.norm(getattr(head, f"{part}_weight")) for part in ALL])
    assert (np.diff(np.asarray(sizes), axis=0) < 0).all()


def test_a_word_seen_once_gets_no_weight() -> None:
    features, labels = problem()
    rows = list(features.wide)
    rows[0] = Counts(np.append(rows[0].columns, np.uint32(COLUMNS)), np.append(rows[0].counts, np.uint16(9)))
    found = fit(Features(features.deep, rows, features.structure), labels, columns=COLUMNS + 1).head
    assert isinstance(found, AdditiveHead)
    assert found.wide_idf[COLUMNS] == found.wide_weight[COLUMNS] == 0


def test_mail_without_any_text_can_be_learnt_from() -> None:
    features, labels = problem(parts=("structure",))
    none = Counts(np.empty(0, np.uint32), np.empty(0, np.uint16))
    blank = Features(features.deep, [none] * len(labels), features.structure)
    found = fit(blank, labels, columns=COLUMNS, penalties=EVEN)
    assert roc_auc_score(labels, found.out_of_fold) > 0.97


def test_a_feature_that_never_varies_does_no_harm() -> None:
    features, labels = problem(parts=("structure",))
    features.structure[:, 2] = 3.0
    features.deep[:, 1] = -2.0
    head = additive(features, labels, penalties=EVEN)
    assert all(np.isfinite(array).all() for array in arrays(head).values())
    assert abs(head.deep_weight[1]) < 1e-3 and abs(head.structure_weight[2]) < 1e-3


# --- Weights, groups, seeds -----------------------------------------------------------------------------------------


def test_both_classes_weigh_the_same_unless_told_otherwise() -> None:
    labels = np.asarray([0] * 9 + [1], np.int64)
    weights = balanced(labels)
    assert weights.sum() == pytest.approx(10) and weights[labels == 0].sum() == pytest.approx(weights[9])


def test_a_message_of_weight_two_is_two_messages() -> None:
    features, labels = problem(60, strength=1.0)
    twice = np.concatenate([np.arange(60), np.arange(20)])
    weights = np.where(np.arange(60) < 20, 2.0, 1.0)
    # A word's document frequency is not weighted, so the words are left out of the comparison.
    penalties = Penalties(1.0, None, 1.0)
    one = fitting.fit_additive(features, labels, weights, COLUMNS, penalties, None)
    two = fitting.fit_additive(take(features, twice), labels[twice], np.ones(80), COLUMNS, penalties, None)
    for name in ("deep_center", "deep_weight", "structure_weight", "bias"):
        np.testing.assert_allclose(getattr(one, name), getattr(two, name), rtol=2e-2, atol=3e-3)


def test_only_the_ratio_of_weights_counts() -> None:
    features, labels = problem(strength=1.0)
    weights = np.random.default_rng(0).random(len(labels)) + 0.5
    one, two = (additive(features, labels, weights=weights * scale) for scale in (1.0, 100.0))
    for name, array in arrays(one).items():
        np.testing.assert_allclose(array, getattr(two, name), rtol=1e-3, atol=1e-4)


def test_messages_without_weight_are_not_learnt_from() -> None:
    features, labels = problem(200)
    weights = np.where(np.arange(200) < 100, 1.0, 0.0)
    lies = np.where(np.arange(200) < 100, labels, 1 - labels)
    head = additive(features, lies, weights=weights, penalties=EVEN)
    assert roc_auc_score(labels, logits(head, features)) > 0.97
    mlp = fitting.fit_mlp(features, lies, weights)
    assert roc_auc_score(labels, logits(mlp, features)) > 0.97


def test_groups_are_never_split(monkeypatch: pytest.MonkeyPatch) -> None:
    features, labels = problem(120)
    features = Features(np.arange(120, dtype=np.float32)[:, None] + np.zeros((1, DIM), np.float32), *(
        (features.wide, features.structure)
    ))  # fmt: skip
    groups = [f"campaign {i % 17}" for i in range(120)]
    trained: list[set[int]] = []
    real = fitting.fit_additive

    def spying(part: Features, *rest: Any) -> AdditiveHead:
        trained.append({int(number) for number in part.deep[:, 0]})
        return real(part, *rest)

    monkeypatch.setattr(fitting, "fit_additive", spying)
    fit(features, labels, columns=COLUMNS, groups=groups)
    *folds, everything = trained
    assert len(folds) == fitting.FOLDS * len(fitting.STRENGTHS) and everything == set(range(120))
    for fold in folds:
        inside = {groups[i] for i in fold}
        assert not inside & {groups[i] for i in everything - fold}
    assert set.union(*(everything - fold for fold in folds)) == everything


def test_out_of_fold_means_out_of_fold() -> None:
    """With labels that nothing tells, a head that had seen the answers would do better than chance."""
    features, labels = problem(300, parts=())
    penalties = Penalties(1e-3, 1e-3, 1e-3)
    found = fit(features, labels, columns=COLUMNS, penalties=penalties)
    assert roc_auc_score(labels, logits(found.head, features)) > 0.7
    assert 0.35 < roc_auc_score(labels, found.out_of_fold) < 0.65


@pytest.mark.parametrize("kind", ["additive", "mlp"])
def test_the_same_seed_gives_the_same_head(kind: Any) -> None:
    features, labels = problem(40, strength=1.0)
    one, two, other = (fit(features, labels, columns=COLUMNS, kind=kind, seed=seed) for seed in (3, 3, 4))
    for name, array in arrays(one.head).items():
        np.testing.assert_array_equal(array, getattr(two.head, name))
    np.testing.assert_array_equal(one.out_of_fold, two.out_of_fold)
    assert one.cutoffs == two.cutoffs and (one.out_of_fold != other.out_of_fold).any()


@pytest.mark.parametrize(("ham", "spam"), [(0, 9), (9, 0), (0, 0), (LEAST_OF_A_CLASS - 1, 50), (50, 1)])
def test_too_few_of_a_class_is_an_error_that_counts_them(ham: int, spam: int) -> None:
    features, _ = problem(100)
    labels = np.asarray([0] * ham + [1] * spam, np.int64)
    with pytest.raises(CorpusError, match=f"{ham} ham and {spam} spam: a head needs at least 5 of each"):
        fit(take(features, np.arange(len(labels))), labels, columns=COLUMNS)


def test_the_least_of_a_class_is_enough() -> None:
    features, labels = problem(2 * LEAST_OF_A_CLASS)
    assert np.isfinite(fit(features, labels, columns=COLUMNS).out_of_fold).all()


def test_progress_reaches_the_end() -> None:
    told: list[tuple[int, int]] = []
    fit(*problem(40), columns=COLUMNS, progress=lambda done, total: told.append((done, total)))
    steps = len(fitting.STRENGTHS) * fitting.FOLDS + 1
    assert told == [(i, steps) for i in range(1, steps + 1)]


# --- Calibration and cut-offs ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("slope", "offset"), [(1.0, 0.0), (0.4, 1.0), (2.5, -0.5)])
def test_calibration_finds_slope_and_offset(slope: float, offset: float) -> None:
    rng = np.random.default_rng(0)
    given = rng.normal(scale=2.0, size=20_000)
    labels = (rng.random(20_000) < 1 / (1 + np.exp(-(slope * given + offset)))).astype(np.int64)
    assert calibrate(given, labels, np.ones(20_000)) == pytest.approx((slope, offset), abs=0.1)


def test_calibration_of_few_messages_stays_sober() -> None:
    labels = np.asarray([0, 0, 1, 1], np.int64)
    slope, offset = calibrate(np.asarray([-1.0, -0.8, 0.8, 1.0]), labels, np.ones(4))
    assert 0.5 < slope < 2.5 and abs(offset) < 0.5  # without a pull to (1, 0) it would run to the bound
    slope, _ = calibrate(np.asarray([9.0, 8.0, -8.0, -9.0]), labels, np.ones(4))
    assert slope >= 0.05  # never turned upside down


@pytest.mark.parametrize("kind", ["additive", "mlp"])
def test_the_head_is_calibrated(monkeypatch: pytest.MonkeyPatch, kind: Any) -> None:
    features, labels = problem(40, strength=1.0)
    found = []
    monkeypatch.setattr(fitting, "STRENGTHS", (1.0,))
    for slope, offset in ((1.0, 0.0), (0.5, -3.0)):
        monkeypatch.setattr(fitting, "calibrate", lambda *_, answer=(slope, offset): answer)
        found.append(fit(features, labels, columns=COLUMNS, kind=kind, penalties=EVEN))
    plain, scaled = (logits(one.head, features) for one in found)
    np.testing.assert_allclose(scaled, 0.5 * plain - 3.0, rtol=1e-4, atol=1e-4)
    assert (found[1].out_of_fold < found[0].out_of_fold).all()


def test_probabilities_are_calibrated_out_of_fold() -> None:
    features, labels = problem(2000, strength=1.5, parts=("deep",))
    found = fit(features, labels, columns=COLUMNS, penalties=EVEN)
    for low in (0.0, 0.25, 0.5, 0.75):
        chosen = (found.out_of_fold >= low) & (found.out_of_fold < low + 0.25)
        assert labels[chosen].mean() == pytest.approx(found.out_of_fold[chosen].mean(), abs=0.08)


# --- The mlp --------------------------------------------------------------------------------------------------------


def test_the_mlp_learns_what_no_sum_can() -> None:
    rng = np.random.default_rng(0)
    deep = rng.choice([-1.0, 1.0], size=(400, 2)).astype(np.float32) + rng.normal(0, 0.2, (400, 2)).astype(np.float32)
    labels = ((deep[:, 0] > 0) ^ (deep[:, 1] > 0)).astype(np.int64)
    none = Counts(np.empty(0, np.uint32), np.empty(0, np.uint16))
    features = Features(deep, [none] * 400, np.zeros((400, 1), np.float32))
    found = fit(features, labels, columns=COLUMNS, kind="mlp")
    assert isinstance(found.head, MlpHead)
    assert roc_auc_score(labels, found.out_of_fold) > 0.99
    linear = fit(features, labels, columns=COLUMNS, penalties=Penalties(1.0, None, None, None))
    assert roc_auc_score(labels, linear.out_of_fold) < 0.7


def test_the_mlp_reads_the_deep_part_alone() -> None:
    features, labels = problem(60)
    blind = replace(features, structure=np.zeros_like(features.structure))
    one, two = (fitting.fit_mlp(seen, labels, np.ones(60)) for seen in (features, blind))
    for name, array in arrays(one).items():
        np.testing.assert_array_equal(array, getattr(two, name))


def test_tfidf_is_weigh_row_by_row() -> None:
    features, _ = problem(10)
    idf = np.linspace(0, 2, COLUMNS).astype(np.float32)
    dense = tfidf(features.wide, idf).toarray()
    for i, row in enumerate(features.wide):
        expected = np.zeros(COLUMNS)
        expected[row.columns] = (1 + np.log(row.counts)) * idf[row.columns]
        np.testing.assert_allclose(dense[i], expected / np.linalg.norm(expected), rtol=1e-5)
    assert tfidf([], idf).shape == (0, COLUMNS)


def test_fewer_groups_than_folds_is_no_error() -> None:
    features, labels = problem(40, strength=6.0)
    found = fit(features, labels, columns=COLUMNS, groups=["a", "b"] * 20)
    assert np.isfinite(found.out_of_fold).all()
