"""Train, validation and test: every message in one of them, no campaign in two, shares and order as promised."""

from __future__ import annotations

import math
import random
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.split import split

ROWS = st.lists(
    st.tuples(st.integers(0, 1), st.integers(0, 12), st.one_of(st.just(math.nan), st.integers(0, 2_000_000_000))),
    max_size=80,
)
PARTS = st.sampled_from([(0.7, 0.15, 0.15), (0.5, 0.5, 0.0), (1.0, 0.0, 0.0), (0.0, 0.2, 0.8), (0.34, 0.33, 0.33)])


def table_of(labels: list[int], times: list[float]) -> pd.DataFrame:
    return pd.DataFrame({"label": np.asarray(labels, np.int64), "time": np.asarray(times, np.float64)})


@given(rows=ROWS, parts=PARTS, by=st.sampled_from(["stratified", "time"]), seed=st.integers(0, 5))
def test_each_message_stands_in_one_part_and_each_campaign_too(
    rows: list[tuple[int, int, float]], parts: tuple[float, float, float], by: Any, seed: int
) -> None:
    labels, groups, times = ([row[i] for row in rows] for i in range(3))
    table = table_of(labels, times)
    found = split(table, groups, seed, by, parts)
    assert sorted(np.concatenate(found).tolist()) == list(range(len(rows)))
    assert all((np.diff(part) > 0).all() for part in found)
    sides = [{groups[i] for i in part} for part in found]
    assert not sides[0] & sides[1] and not sides[0] & sides[2] and not sides[1] & sides[2]
    assert all(not len(part) for part, share in zip(found, parts, strict=True) if share == 0)
    again = split(table, groups, seed, by, parts)
    assert all((one == other).all() for one, other in zip(found, again, strict=True))


@given(rows=ROWS, parts=PARTS)
def test_no_campaign_is_judged_on_that_began_before_one_that_was_learnt(
    rows: list[tuple[int, int, float]], parts: tuple[float, float, float]
) -> None:
    labels, groups, times = ([row[i] for row in rows] for i in range(3))
    first = {g: min(-1.0 if math.isnan(t) else t for _, h, t in rows if h == g) for g in groups}
    found = split(table_of(labels, times), groups, by="time", parts=parts)
    began = [[first[groups[i]] for i in part] for part in found]
    for earlier, later in ((0, 1), (1, 2), (0, 2)):
        if began[earlier] and began[later]:
            assert max(began[earlier]) <= min(began[later])


@given(spam=st.integers(20, 200), ham=st.integers(20, 200), seed=st.integers(0, 9))
def test_both_labels_have_the_same_shares(spam: int, ham: int, seed: int) -> None:
    labels = [0] * ham + [1] * spam
    random.Random(seed).shuffle(labels)
    found = split(table_of(labels, [math.nan] * len(labels)), range(len(labels)), seed)
    for label, total in ((0, ham), (1, spam)):
        counts = [sum(labels[i] == label for i in part) for part in found]
        assert all(abs(n - share * total) <= 1 for n, share in zip(counts, (0.7, 0.15, 0.15), strict=True))


@pytest.mark.parametrize("seed", range(5))
def test_campaigns_hardly_change_the_shares(seed: int) -> None:
    rng = random.Random(seed)
    rows = [
        (label, group) for group in range(200) for label in [int(rng.random() < 0.3)] * rng.choice([1, 1, 1, 2, 9])
    ]
    labels, groups = [row[0] for row in rows], [row[1] for row in rows]
    found = split(table_of(labels, [0.0] * len(rows)), groups, seed)
    for part, share in zip(found, (0.7, 0.15, 0.15), strict=True):
        assert len(part) / len(rows) == pytest.approx(share, abs=0.02)
        assert np.mean([labels[i] for i in part]) == pytest.approx(np.mean(labels), abs=0.05)


def test_the_seed_decides_and_the_order_of_time_knows_none() -> None:
    table = table_of([0, 1] * 50, list(range(100)))
    drawn = {tuple(split(table, range(100), seed)[2]) for seed in range(5)}
    assert len(drawn) == 5
    ordered = [split(table, range(100), seed, "time") for seed in range(2)]
    assert [part.tolist() for part in ordered[0]] == [part.tolist() for part in ordered[1]]
    assert [part.tolist() for part in ordered[0]] == [list(range(70)), list(range(70, 85)), list(range(85, 100))]


def test_mail_of_unknown_time_is_learnt_from() -> None:
    table = table_of([0, 1] * 10, [math.nan if i % 2 else 1000.0 + i for i in range(20)])
    train, _, test = split(table, range(20), by="time")
    assert set(range(1, 20, 2)) <= set(train.tolist()) and test.tolist() == [14, 16, 18]


@pytest.mark.parametrize("parts", [(0.7, 0.2, 0.2), (1.2, -0.1, -0.1), (math.nan, 0.5, 0.5)])
def test_parts_are_shares(parts: tuple[float, float, float]) -> None:
    with pytest.raises(ValueError, match="parts"):
        split(table_of([0], [0.0]), [0], parts=parts)
