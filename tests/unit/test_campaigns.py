"""Near-duplicates are found in any order, strangers are not joined, and no campaign outweighs the rest."""

from __future__ import annotations

import random

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spamguard.wide import Counts
from training.campaigns import ALIKE, bounded, campaigns, training_weights

VOCABULARY = 5000


def counts(columns: set[int], times: int = 1) -> Counts:
    ordered = np.asarray(sorted(columns), np.uint32)
    return Counts(ordered, np.full(len(ordered), times, np.uint16))


def letter(rng: random.Random, tokens: int = 120) -> set[int]:
    return set(rng.sample(range(VOCABULARY), tokens))


def varied(rng: random.Random, original: set[int], changed: int) -> set[int]:
    """As many tokens exchanged for others."""
    kept = set(sorted(original)[changed:])
    return kept | set(rng.sample(sorted(set(range(VOCABULARY)) - original), changed))


def groups_of(numbers: list[int]) -> set[frozenset[int]]:
    return {frozenset(np.flatnonzero(np.asarray(numbers) == number).tolist()) for number in set(numbers)}


def test_each_campaign_is_a_group_and_every_other_message_alone() -> None:
    rng = random.Random(1)
    originals = [letter(rng) for _ in range(3)]
    sets = [varied(rng, originals[i % 3], 8) for i in range(30)] + [letter(rng) for _ in range(200)]
    order = rng.sample(range(len(sets)), len(sets))
    numbers = campaigns([counts(sets[i]) for i in order], VOCABULARY)
    found = {frozenset(order[i] for i in group) for group in groups_of(numbers)}
    assert {frozenset(range(k, 30, 3)) for k in range(3)} | {frozenset([i]) for i in range(30, 230)} == found
    assert all(numbers[number] == number for number in set(numbers))  # each is named after its first


@pytest.mark.parametrize(("common", "same"), [(0.75, True), (0.68, True), (0.52, False), (0.3, False)])
def test_the_share_of_common_tokens_decides(common: float, same: bool) -> None:
    found = 0
    for seed in range(40):
        rng = random.Random(seed)
        original = letter(rng, 200)
        changed = round(200 * (1 - common) / (1 + common))  # Jaccard: (200 - c) / (200 + c)
        pair = [counts(original), counts(varied(rng, original, changed))]
        found += len(set(campaigns(pair, VOCABULARY))) == 1
    assert found >= 38 if same else found == 0
    assert 0.52 < ALIKE < 0.68


def test_neither_repetition_nor_headers_nor_emptiness_makes_a_campaign() -> None:
    rng = random.Random(2)
    one, two = letter(rng), letter(rng)
    heads = {VOCABULARY + i for i in range(500)}
    rows = [counts(one), counts(one, 9), counts(one | heads), counts(two | heads), counts(heads), counts(set())]
    assert groups_of(campaigns(rows, VOCABULARY)) == {
        frozenset({0, 1, 2}),
        frozenset({3}),
        frozenset({4}),
        frozenset({5}),
    }
    assert campaigns([counts(set()), counts(heads)], VOCABULARY) == [0, 1]
    assert campaigns([], VOCABULARY) == []


def test_chains_are_one_campaign() -> None:
    rng = random.Random(3)
    chain = [letter(rng)]
    for _ in range(12):
        chain.append(varied(rng, chain[-1], 12))
    assert len(set(campaigns([counts(one) for one in chain], VOCABULARY))) == 1
    assert len(chain[0] & chain[-1]) < 60


def test_the_same_mail_gives_the_same_groups() -> None:
    rng = random.Random(4)
    rows = [counts(letter(rng, rng.randrange(1, 60))) for _ in range(100)]
    assert campaigns(rows, VOCABULARY) == campaigns(rows, VOCABULARY)


# --- Weights --------------------------------------------------------------------------------------------------------


def test_a_campaign_weighs_the_root_of_its_mail() -> None:
    weights = bounded(np.asarray([1.0] * 100 + [1.0, 0.3, 0.3, 0.3]), [7] * 100 + [1, 2, 3, 3])
    assert weights[:100].sum() == pytest.approx(10) and weights[:100].std() == pytest.approx(0)
    assert weights[100:].tolist() == pytest.approx([1.0, 0.3, 0.3, 0.3])  # what weighs less than one message stays


@given(
    rows=st.lists(
        st.tuples(st.integers(0, 1), st.floats(0.01, 1), st.integers(0, 5)), min_size=1, max_size=60
    ).filter(lambda rows: len({row[0] for row in rows}) == 2)
)
def test_both_classes_weigh_the_same_and_all_of_it_is_n(rows: list[tuple[int, float, int]]) -> None:
    table = pd.DataFrame({"label": [row[0] for row in rows], "weight": [row[1] for row in rows]})
    weights = training_weights(table, [row[2] for row in rows])
    assert (weights > 0).all() and weights.shape == (len(rows),)
    for label in (0, 1):
        assert weights[table["label"] == label].sum() == pytest.approx(len(rows) / 2)


def test_one_campaign_of_nine_tenths_of_the_spam_is_heard_with_the_others() -> None:
    table = pd.DataFrame({"label": [0] * 50 + [1] * 100, "weight": 1.0})
    weights = training_weights(table, [*range(50), *[50] * 90, *range(140, 150)])
    assert weights[50:140].sum() < weights[140:].sum()


def test_one_class_alone_has_weights_too() -> None:
    assert training_weights(pd.DataFrame({"label": [1, 1], "weight": 1.0}), [0, 1]).tolist() == [1, 1]
