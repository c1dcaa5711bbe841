"""The learning curve: sizes, folds and its last point, and that more labels do help where they should."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import f1_score
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

from spamguard.head import Features, Row, stack
from spamguard.wide import Counts
from training import learning_curve as module
from training.fit import FOLDS, Penalties, fit
from training.learning_curve import SIZES, learning_curve

COLUMNS = 400
PENALTIES = Penalties(deep=None, wide=0.03, structure=None, headers=None)


def problem(n: int, seed: int = 0) -> tuple[Features, np.ndarray[tuple[int], np.dtype[np.int64]]]:
    """Texts of five words of which each class has 200 of its own, and one word of the other class."""
    rng = np.random.default_rng(seed)
    labels = (np.arange(n) % 3 == 0).astype(np.int64)
    rows = []
    for label in labels:
        columns = np.unique(
            np.append(rng.integers(0, 200, 4) + 200 * label, rng.integers(0, 200) + 200 * (1 - label))
        )
        counts = Counts(columns.astype(np.uint32), np.ones(len(columns), np.uint16))
        rows.append(Row(rng.normal(size=2).astype(np.float32), counts, np.zeros(1, np.float32)))
    return stack(rows), labels


def test_more_labels_help_and_the_last_point_is_the_heads_own() -> None:
    features, labels = problem(900)
    fitted = fit(features, labels, columns=COLUMNS, penalties=PENALTIES)
    told: list[tuple[int, int]] = []
    found = learning_curve(
        features, labels, fitted.out_of_fold, columns=COLUMNS, penalties=PENALTIES, progress=lambda *d: told.append(d)
    )
    assert [point.messages for point in found] == [30, 100, 300, 600] and told == [(1, 3), (2, 3), (3, 3)]
    assert found[0].f1 < found[2].f1 - 0.1 and found[1].f1 < found[3].f1
    assert all(point.low <= point.f1 <= point.high for point in found)
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=0).split(labels, labels)
    scores = [f1_score(labels[test], fitted.out_of_fold[test] >= 0.5) for _, test in folds]
    assert (found[-1].f1, found[-1].low) == pytest.approx((np.mean(scores), min(scores)))


def test_the_same_seed_gives_the_same_curve() -> None:
    features, labels = problem(120)
    known = np.where(labels, 0.9, 0.1)
    one, same, other = (
        learning_curve(features, labels, known, columns=COLUMNS, penalties=PENALTIES, seed=seed) for seed in (1, 1, 2)
    )
    assert one == same != other


def test_each_part_has_its_size_and_both_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    features, labels = problem(3000)
    seen: list[tuple[int, int]] = []

    def noted(part: Features, given: np.ndarray[tuple[int], np.dtype[np.int64]], *_: object) -> object:
        seen.append((len(given), int(given.sum())))
        assert len(part) == len(given)
        return object()

    monkeypatch.setattr(module, "fit_additive", noted)
    monkeypatch.setattr(module, "logits", lambda _, part: np.zeros(len(part)))
    learning_curve(features, labels, np.zeros(3000), columns=COLUMNS)
    assert [size for size, _ in seen] == pytest.approx([size for size in SIZES for _ in range(3)], abs=1)
    assert all(abs(spam - size / 3) <= 1 for size, spam in seen)


def test_groups_stay_on_one_side(monkeypatch: pytest.MonkeyPatch) -> None:
    features, labels = problem(300)
    groups = [str(i // 6) for i in range(300)]
    splits: list[list[int]] = []

    def noted(self: StratifiedGroupKFold, *arguments: object) -> object:
        for train, test in kept(self, *arguments):
            splits.append([len({groups[i] for i in train} & {groups[i] for i in test})])
            yield train, test

    kept = StratifiedGroupKFold.split
    monkeypatch.setattr(StratifiedGroupKFold, "split", noted)
    known = np.where(labels, 0.9, 0.1)
    found = learning_curve(features, labels, known, columns=COLUMNS, penalties=PENALTIES, groups=groups)
    assert splits == [[0]] * 3 and [point.messages for point in found] == [30, 100, 200]


@pytest.mark.parametrize("n", [3, 9, 20])
def test_few_labels_have_the_last_point_alone(n: int) -> None:
    features, labels = problem(n)
    found = learning_curve(features, labels, np.where(labels, 0.9, 0.1), columns=COLUMNS, penalties=PENALTIES)
    assert [point.f1 for point in found] == ([1.0] if n > 3 else [])


def test_one_class_or_one_group_has_no_curve() -> None:
    features, labels = problem(60)
    known = np.zeros(60)
    assert learning_curve(features, np.zeros_like(labels), known, columns=COLUMNS) == []
    assert learning_curve(features, labels, known, columns=COLUMNS, groups=["one"] * 60) == []


def test_a_rare_class_needs_a_larger_part() -> None:
    features, _ = problem(600)
    labels = (np.arange(600) < 24).astype(np.int64)
    found = learning_curve(features, labels, np.zeros(600), columns=COLUMNS, penalties=PENALTIES)
    assert [point.messages for point in found] == [400]
