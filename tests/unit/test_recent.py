"""What was judged of late: it comes back in order, goes by its age and number, and takes no label's row with it."""

from __future__ import annotations

import sqlite3
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spamguard import wide
from spamguard.featurestore import FeatureStore, FeatureStoreError, remove_everywhere
from spamguard.recent import Judged, Recent, prune_everywhere
from spamguard.verdict import Label
from tests.unit.test_featurestore import a_row, assert_same

DAY = 86_400.0


def a_judged(number: int = 0, days_ago: float = 1.0, **other: object) -> Judged:
    at = time.time() - days_ago * DAY
    made = Judged(f"content-{number}", at, 0.25, Label.UNSURE, "head-1", f"smtp/id-{number:03}", a_row(number))
    return replace(made, **other)


def contents(recent: Recent, days: float = 1000) -> list[str]:
    return [one.content for one in recent.since(days)]


def test_what_was_judged_comes_back(tmp_path: Path) -> None:
    one = a_judged(1)
    with Recent(tmp_path / "new", "print") as recent:
        recent.add([one])
    with Recent(tmp_path / "new", "print", read_only=True) as recent:
        (back,) = recent.since(2)
        assert recent.since(0.5) == []
    assert replace(back, row=one.row) == one
    assert_same(back.row, one.row)


def test_the_last_verdict_on_a_message_counts(tmp_path: Path) -> None:
    with Recent(tmp_path, "print") as recent:
        recent.add([a_judged(1, 3), a_judged(2, 2), a_judged(1, 1, p=0.75, head="head-2", label=Label.SPAM)])
        assert contents(recent) == ["content-2", "content-1"]
        last = recent.since(10)[-1]
    assert (last.p, last.head, last.label) == (0.75, "head-2", Label.SPAM)


def test_about_is_one_short_line(tmp_path: Path) -> None:
    with Recent(tmp_path, "print") as recent:
        recent.add([a_judged(1, about="INBOX/\x1b[31m\r\n" + "x" * 500)])
        (back,) = recent.since(10)
    assert back.about.isprintable() and len(back.about) == 200


@given(
    ages=st.lists(st.floats(0.01, 50), max_size=30),
    days=st.floats(0, 60),
    most=st.integers(0, 35),
    labelled=st.sets(st.integers(0, 29)),
)
def test_pruning_leaves_the_youngest_and_every_row_of_a_label(
    tmp_path_factory: pytest.TempPathFactory, ages: list[float], days: float, most: int, labelled: set[int]
) -> None:
    folder = tmp_path_factory.mktemp("recent")
    with FeatureStore(folder, "print") as store, Recent(folder, "print") as recent:
        store.put((f"content-{i}", a_row(i)) for i in labelled)
        recent.add(a_judged(i, age) for i, age in enumerate(ages))
        by_age = sorted(range(len(ages)), key=lambda i: (-ages[i], i))  # oldest first
        assert contents(recent) == [f"content-{i}" for i in by_age]
        young = [i for i in by_age if ages[i] < days]
        left = young[max(0, len(young) - most) :]
        assert recent.prune(days, most) == len(ages) - len(left)
        assert contents(recent) == [f"content-{i}" for i in left]
        assert store.known([f"content-{i}" for i in range(30)]) == {f"content-{i}" for i in labelled}


def test_all_encoders_are_pruned_and_what_comes_from_tomorrow(tmp_path: Path) -> None:
    with Recent(tmp_path, "one") as one, Recent(tmp_path, "two") as two:
        one.add([a_judged(1, 3), a_judged(2, 1), a_judged(3, -2)])
        two.add([a_judged(1, 3)])
        assert prune_everywhere(tmp_path, 2, 10) == 3
        assert (contents(one), contents(two)) == (["content-2"], [])


@pytest.mark.parametrize("way", ["pruned", "forgotten"])
def test_what_is_pruned_or_forgotten_leaves_no_trace(tmp_path: Path, way: str) -> None:
    rows = [a_judged(i, 5 if i < 20 else 1, row=a_row(i, dim=1000)) for i in range(40)]
    with Recent(tmp_path, "print") as recent:
        recent.add(rows)
    if way == "pruned":
        with Recent(tmp_path, "print") as recent:
            assert recent.prune(3, 100) == 20
    else:
        remove_everywhere(tmp_path, [one.content for one in rows[:20]])
    with Recent(tmp_path, "print", read_only=True) as recent:
        assert contents(recent) == [one.content for one in rows[20:]]
    found = b"".join(file.read_bytes() for file in tmp_path.iterdir())
    assert rows[30].about.encode() in found
    for one in rows[:20]:
        # Its first bytes, as SQLite may have divided the rest among pages.
        for trace in (one.about.encode(), one.row.deep.astype(np.float16).tobytes()[:16]):
            assert trace not in found


def test_a_row_that_was_read_otherwise_is_not_shown_but_pruned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Recent(tmp_path, "print") as recent:
        recent.add([a_judged(1)])
        with monkeypatch.context() as patch:
            patch.setattr(wide, "WIDE_VERSION", 99)
            with Recent(tmp_path, "print") as other:
                assert other.since(10) == []
                assert other.prune(0.5, 10) == 1
        assert recent.since(10) == []


def test_reading_creates_nothing(tmp_path: Path) -> None:
    with Recent(tmp_path / "none", "print", read_only=True) as recent:
        assert recent.since(10) == []
    assert not (tmp_path / "none").exists()


def test_a_store_of_before_is_read_as_empty_and_written_to(tmp_path: Path) -> None:
    with FeatureStore(tmp_path, "print") as store:
        store.put([("a", a_row())])
    with sqlite3.connect(tmp_path / "print.sqlite3") as database:
        database.execute("DROP TABLE judged")
    database.close()
    with Recent(tmp_path, "print", read_only=True) as recent:
        assert recent.since(10) == []
    with Recent(tmp_path, "print") as recent:
        recent.add([a_judged(1)])
        assert contents(recent) == ["content-1"]
    with FeatureStore(tmp_path, "print") as store:
        assert store.known(["a"]) == {"a"}


def test_a_damaged_file_is_one_error(tmp_path: Path) -> None:
    (tmp_path / "print.sqlite3").write_bytes(b"no database" * 1000)
    for read_only in (False, True):
        with pytest.raises(FeatureStoreError, match=r"print\.sqlite3: file is not a database"):
            Recent(tmp_path, "print", read_only)


def test_all_of_a_batch_or_nothing(tmp_path: Path) -> None:
    with Recent(tmp_path, "print") as recent:
        with pytest.raises(FeatureStoreError, match="NOT NULL"):
            recent.add([a_judged(1), a_judged(2, head=None)])
        assert recent.since(10) == []
        recent.add([a_judged(3)])
        assert contents(recent) == ["content-3"]
