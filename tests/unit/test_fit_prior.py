"""The fit starts from a prior: few labels move it as far as they may, many leave it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from spamguard.head import AdditiveHead, Features, logits
from spamguard.wide import Counts
from tests.fit_problem import ALL, COLUMNS, EVEN, additive, problem
from training import fit as fitting
from training.fit import LEAST_OF_A_CLASS, Penalties, balanced, fit


@pytest.fixture(scope="module")
def prior() -> AdditiveHead:
    return additive(*problem(400, seed=7), penalties=EVEN)


def flipped(n: int, seed: int) -> tuple[Features, Any]:
    """A user for whom the words mean the opposite."""
    features, labels = problem(n, seed=seed, parts=("wide",))
    return features, 1 - labels


def test_the_prior_brings_scales_and_idf(prior: AdditiveHead) -> None:
    head = additive(*problem(30, seed=8), prior=prior)
    for name in ("deep_center", "wide_idf", "structure_center", "structure_scale"):
        np.testing.assert_array_equal(getattr(head, name), getattr(prior, name))


def test_a_prior_that_is_right_already_stays(prior: AdditiveHead) -> None:
    features, labels = problem(40, seed=9)
    near = fitting.fit_additive(features, labels, balanced(labels), COLUMNS, Penalties(100, 100, 100), prior)
    for part in ALL:
        weight = getattr(prior, f"{part}_weight")
        assert np.linalg.norm(getattr(near, f"{part}_weight") - weight) < 0.1 * np.linalg.norm(weight)


def test_words_that_the_new_mail_lacks_keep_their_weight(prior: AdditiveHead) -> None:
    features, labels = problem(40, seed=9)
    absent = sorted(set(range(COLUMNS)) - {10, 11, 12} - {int(c) for row in features.wide for c in row.columns})
    rows = [Counts(row.columns[row.columns >= 5], row.counts[row.columns >= 5]) for row in features.wide]
    head = fitting.fit_additive(
        Features(features.deep, rows, features.structure), labels, balanced(labels), COLUMNS, EVEN, prior
    )
    np.testing.assert_array_equal(head.wide_weight[[*range(5), *absent]], prior.wide_weight[[*range(5), *absent]])


def test_few_labels_stay_near_the_prior_and_many_leave_it(prior: AdditiveHead) -> None:
    away = []
    for n in (10, 100, 1000):
        features, labels = flipped(n, seed=10)
        head = fitting.fit_additive(features, labels, np.ones(n), COLUMNS, EVEN, prior)
        away.append(float(np.linalg.norm(head.wide_weight - prior.wide_weight)))
    assert 0 < away[0] < away[1] < away[2]
    fresh, truth = flipped(300, seed=11)
    assert roc_auc_score(truth, logits(prior, fresh)) < 0.1
    assert roc_auc_score(truth, logits(head, fresh)) > 0.9


def test_with_few_labels_the_prior_helps() -> None:
    truth, answers = problem(400, seed=20, strength=1.0)
    prior = additive(*problem(2000, seed=21, strength=1.0), penalties=EVEN)
    few, labels = problem(2 * LEAST_OF_A_CLASS, seed=22, strength=1.0)
    alone, helped = (additive(few, labels, prior=start, penalties=EVEN) for start in (None, prior))
    assert roc_auc_score(answers, logits(helped, truth)) > roc_auc_score(answers, logits(alone, truth))


def test_few_labels_turn_a_prior_that_is_wrong_here(prior: AdditiveHead) -> None:
    features, labels = problem(40, seed=3)
    fresh, truth = problem(400, seed=4)
    stiff = Penalties(30.0, 3.0, 30.0, None)
    found = fit(features, 1 - labels, columns=COLUMNS, penalties=stiff, prior=prior)
    assert found.strength < 1 and roc_auc_score(1 - truth, logits(prior, fresh)) < 0.1
    assert roc_auc_score(1 - truth, logits(found.head, fresh)) > 0.8
    undecided = fitting.fit_additive(features, 1 - labels, balanced(labels), COLUMNS, stiff, prior)
    assert roc_auc_score(1 - truth, logits(undecided, fresh)) < 0.5


def test_mistakes_among_few_labels_do_not_ruin_a_prior(prior: AdditiveHead) -> None:
    features, labels = problem(40, seed=3)
    labels[[3, 11, 25, 30]] ^= 1
    fresh, truth = problem(400, seed=4)
    found = fit(features, labels, columns=COLUMNS, penalties=Penalties(30.0, 3.0, 30.0), prior=prior)
    assert roc_auc_score(truth, logits(found.head, fresh)) > 0.97


def test_many_labels_are_fitted_with_the_penalties_as_they_are() -> None:
    assert fit(*problem(fitting.FEW), columns=COLUMNS, penalties=EVEN).strength == 1.0


def test_few_labels_from_nothing_do_not_learn_headers_by_heart(prior: AdditiveHead) -> None:
    features, labels = problem(40)
    penalties = Penalties(1.0, 0.1, 1.0, 0.03)
    assert not additive(features, labels, penalties=penalties).reads_headers
    assert additive(features, labels, penalties=penalties, prior=prior).reads_headers
    assert additive(*problem(fitting.FEW), penalties=penalties).reads_headers
