"""Heads: parts sum to the logit, and every share is exact."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from spamguard.head import HEADS, AdditiveHead, Features, MlpHead, probability
from spamguard.header_words import HEADER_COLUMNS
from spamguard.wide import Counts, count, weigh
from tests.random_head import random_head

DIM, VOCABULARY, STRUCTURE = 6, 50, 4
COLUMNS = VOCABULARY
NONE = np.empty(0, np.uint32)


def random_features(n: int, seed: int = 0) -> Features:
    rng = np.random.default_rng(seed)
    wide = []
    for _ in range(n):
        words = np.unique(rng.integers(0, HEADER_COLUMNS, rng.integers(0, 9)).astype(np.uint32))
        wide.append(count(rng.integers(0, VOCABULARY, rng.integers(0, 30)).astype(np.int32), words, VOCABULARY))
    return Features(
        rng.normal(size=(n, DIM)).astype(np.float32), wide, rng.normal(size=(n, STRUCTURE)).astype(np.float32)
    )


def a_head(kind: str) -> AdditiveHead | MlpHead:
    return random_head(kind, dim=DIM, columns=COLUMNS, structure=STRUCTURE)


def test_additive_logit_is_the_formula() -> None:
    head, seen = a_head("additive"), random_features(7)
    assert isinstance(head, AdditiveHead)
    for i in range(7):
        text = seen.wide[i].columns < COLUMNS
        columns, counts = seen.wide[i].columns[text], seen.wide[i].counts[text]
        dense = np.zeros(COLUMNS)
        dense[columns] = (1 + np.log(counts)) * head.wide_idf[columns]
        dense /= np.linalg.norm(dense) or 1
        headers = np.zeros(HEADER_COLUMNS)
        words = seen.wide[i].columns[~text] - COLUMNS
        headers[words] = head.header_idf[words]
        headers /= np.linalg.norm(headers) or 1
        standard = np.clip((seen.structure[i] - head.structure_center) / head.structure_scale, -4, 4)
        logit = (
            head.bias[0]
            + (seen.deep[i] - head.deep_center) @ head.deep_weight
            + dense @ head.wide_weight
            + standard @ head.structure_weight
            + headers @ head.header_weight
        )
        assert sum(part[i] for part in head.parts(seen).values()) == pytest.approx(logit, rel=1e-4, abs=1e-4)


def test_mlp_is_the_log_odds_of_the_softmax() -> None:
    import torch

    head, seen = a_head("mlp"), random_features(5)
    assert isinstance(head, MlpHead)
    hidden = torch.relu(torch.tensor(seen.deep) @ torch.tensor(head.hidden_weight) + torch.tensor(head.hidden_bias))
    said = torch.softmax(hidden @ torch.tensor(head.output_weight) + torch.tensor(head.output_bias), 1)[:, 1]
    odds = torch.logit(said.double()).numpy()
    logits = sum(head.parts(seen).values())
    np.testing.assert_allclose(logits, head.calibration[0] * odds + head.calibration[1], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("kind", HEADS)
def test_batch_equals_singles(kind: str) -> None:
    head, seen = a_head(kind), random_features(6)
    together = head.parts(seen)
    for i in range(6):
        alone = head.parts(Features(seen.deep[i : i + 1], seen.wide[i : i + 1], seen.structure[i : i + 1]))
        for name in alone:
            np.testing.assert_allclose(alone[name][0], together[name][i], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", HEADS)
def test_check_names_what_does_not_fit(kind: str) -> None:
    head = a_head(kind)
    assert head.check(DIM, COLUMNS, STRUCTURE) is None
    assert "is needed" in (head.check(DIM + 1, COLUMNS, STRUCTURE) or "")
    if isinstance(head, AdditiveHead):
        cut = replace(head, header_weight=head.header_weight[1:])
        assert "header_weight" in (cut.check(DIM, COLUMNS, STRUCTURE) or "")


def test_a_head_that_does_not_read_headers_says_the_same_whatever_stands_there() -> None:
    head = random_head("additive", dim=DIM, columns=COLUMNS, structure=STRUCTURE, headers=False)
    assert isinstance(head, AdditiveHead) and head.check(DIM, COLUMNS, STRUCTURE) is None
    seen = random_features(5)
    bare = Features(seen.deep, [row.text(COLUMNS) for row in seen.wide], seen.structure)
    assert "headers" not in head.parts(seen)
    np.testing.assert_array_equal(sum(head.parts(seen).values()), sum(head.parts(bare).values()))
    assert not head.header_shares(seen.wide[0].headers(COLUMNS)).any()


def test_probability_is_bounded_and_finite() -> None:
    out = probability(np.asarray([-1e30, 0.0, 1e30], dtype=np.float32))
    assert out[1] == 0.5 and 0 < out[0] < 1e-4 and 1 - 1e-4 < out[2] < 1


def test_count_counts_ids() -> None:
    row = count(np.asarray([7, 3, 7, 3, 9], dtype=np.int32), NONE, VOCABULARY)
    assert dict(zip(row.columns.tolist(), row.counts.tolist(), strict=True)) == {3: 2, 7: 2, 9: 1}


def test_words_of_headers_stand_behind_those_of_the_text() -> None:
    row = count(np.asarray([7, 3, 7], dtype=np.int32), np.asarray([0, 11], np.uint32), VOCABULARY)
    assert row.columns.tolist() == [3, 7, VOCABULARY, VOCABULARY + 11] and row.counts.tolist() == [1, 2, 1, 1]
    assert row.text(VOCABULARY).columns.tolist() == [3, 7] and row.text(VOCABULARY).counts.tolist() == [1, 2]
    assert row.headers(VOCABULARY).columns.tolist() == [0, 11] and row.headers(VOCABULARY).counts.tolist() == [1, 1]


def test_count_stops_at_what_its_type_holds() -> None:
    assert count(np.zeros(70_000, dtype=np.int32), NONE, VOCABULARY).counts.tolist() == [65_535]


def test_empty_text_has_no_columns_and_no_weight() -> None:
    row = count(np.asarray([], dtype=np.int32), NONE, VOCABULARY)
    assert len(row.columns) == 0 and len(weigh(row, np.ones(COLUMNS, np.float32))) == 0


def test_weigh_has_length_one() -> None:
    row = Counts(np.asarray([1, 5], np.uint32), np.asarray([3, 1], np.uint16))
    assert np.linalg.norm(weigh(row, np.linspace(1, 2, COLUMNS).astype(np.float32))) == pytest.approx(1)
