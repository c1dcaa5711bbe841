"""The feature store: rows come back, versions are told apart, and neither company nor SIGKILL does harm."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spamguard import features, headers, message, wide
from spamguard.featurestore import KEYS_A_QUERY, FeatureStore, FeatureStoreError, content_hash, remove_everywhere
from spamguard.head import Row, stack
from spamguard.verdict import Cutoffs, Label, Verdict
from spamguard.wide import Counts

ROOT = Path(__file__).parents[2]
DIM, STRUCTURE = 48, 7


def a_row(seed: int = 0, dim: int = DIM) -> Row:
    rng = np.random.default_rng(seed)
    columns = np.unique(rng.integers(0, 90_000, rng.integers(0, 40))).astype(np.uint32)
    return Row(
        rng.normal(size=dim).astype(np.float32),
        Counts(columns, rng.integers(1, 60_000, len(columns)).astype(np.uint16)),
        rng.random(STRUCTURE).astype(np.float32),
    )


def assert_same(back: Row, row: Row) -> None:
    """Words and structure bit for bit, the encoder's output to half precision."""
    np.testing.assert_allclose(back.deep, row.deep, rtol=2**-11, atol=2**-24)
    np.testing.assert_array_equal(back.wide.columns, row.wide.columns)
    np.testing.assert_array_equal(back.wide.counts, row.wide.counts)
    np.testing.assert_array_equal(back.structure, row.structure)
    assert (back.deep.dtype, back.wide.columns.dtype, back.wide.counts.dtype) == (np.float32, np.uint32, np.uint16)


def test_rows_come_back(tmp_path: Path) -> None:
    rows = {f"content-{i}": a_row(i) for i in range(20)}
    with FeatureStore(tmp_path / "new" / "folder", "print") as store:
        store.put(rows.items())
    with FeatureStore(tmp_path / "new" / "folder", "print") as store:
        back = store.get([*rows, "unknown"])
        assert store.known([*rows, "unknown"]) == set(rows) == set(back)
    for content, row in rows.items():
        assert_same(back[content], row)


@given(
    deep=st.lists(st.floats(-1000, 1000, width=32), min_size=1, max_size=5),
    counts=st.dictionaries(st.integers(0, 2**32 - 1), st.integers(1, 2**16 - 1), max_size=5),
    structure=st.lists(st.floats(0, 10, width=32), max_size=5),
)
def test_any_row_comes_back(
    tmp_path_factory: pytest.TempPathFactory, deep: list[float], counts: dict[int, int], structure: list[float]
) -> None:
    columns = sorted(counts)
    row = Row(
        np.asarray(deep, np.float32),
        Counts(np.asarray(columns, np.uint32), np.asarray([counts[c] for c in columns], np.uint16)),
        np.asarray(structure, np.float32),
    )
    with FeatureStore(tmp_path_factory.getbasetemp() / "any", "print") as store:
        store.put([("content", row)])
        assert_same(store.get(["content"])["content"], row)


def test_more_keys_than_one_query_takes(tmp_path: Path) -> None:
    row = a_row()
    names = [str(i) for i in range(2 * KEYS_A_QUERY + 3)]
    with FeatureStore(tmp_path, "print") as store:
        store.put((name, row) for name in names)
        assert len(store.get(names)) == len(store.known(names)) == len(names)
        assert store.get([]) == {} and store.known([]) == set()


def test_the_last_put_wins(tmp_path: Path) -> None:
    with FeatureStore(tmp_path, "print") as store:
        store.put([("a", a_row(1))])
        store.put([("a", a_row(2))])
        assert_same(store.get(["a"])["a"], a_row(2))


def test_encoders_do_not_share_rows(tmp_path: Path) -> None:
    with FeatureStore(tmp_path, "one") as one, FeatureStore(tmp_path, "two") as two:
        one.put([("a", a_row())])
        assert two.known(["a"]) == set()


@pytest.mark.parametrize(
    ("module", "name", "value"),
    [
        (message, "TEXT_VERSION", "next"),
        (wide, "WIDE_VERSION", 99),
        (wide, "WIDE_TOKENS", 7),
        (features, "FEATURES_VERSION", "next"),
    ],
)
def test_a_row_of_another_version_is_not_found_and_not_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: object, name: str, value: object
) -> None:
    with FeatureStore(tmp_path, "print") as store:
        store.put([("a", a_row(1))])
    with monkeypatch.context() as patch:
        patch.setattr(module, name, value)
        with FeatureStore(tmp_path, "print") as store:
            assert store.known(["a"]) == set() and store.get(["a"]) == {}
            store.put([("a", a_row(2))])
    with FeatureStore(tmp_path, "print") as store:
        assert_same(store.get(["a"])["a"], a_row(1))


def test_what_is_removed_is_gone_from_all_encoders_and_versions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with FeatureStore(tmp_path, "one") as one, FeatureStore(tmp_path, "two") as two:
        for store in (one, two):
            store.put([("a", a_row(1)), ("b", a_row(2))])
        with monkeypatch.context() as patch:
            patch.setattr(wide, "WIDE_VERSION", 99)
            with FeatureStore(tmp_path, "one") as other:
                other.put([("a", a_row(3))])
        remove_everywhere(tmp_path, ["a", "unknown"])
        assert one.known(["a", "b"]) == two.known(["a", "b"]) == {"b"}
        with monkeypatch.context() as patch:
            patch.setattr(wide, "WIDE_VERSION", 99)
            with FeatureStore(tmp_path, "one") as other:
                assert other.known(["a"]) == set()
        assert_same(one.get(["b"])["b"], a_row(2))
    remove_everywhere(tmp_path / "nowhere", ["a"])


def test_a_put_that_fails_keeps_none_of_its_rows(tmp_path: Path) -> None:
    broken = Row(a_row().deep, a_row().wide, a_row().structure)
    with FeatureStore(tmp_path, "print") as store:
        with pytest.raises(FeatureStoreError):
            store.put([("a", a_row()), (object(), broken)])  # type: ignore[list-item]
        assert store.known(["a"]) == set()
        store.put([("a", a_row())])
        assert store.known(["a"]) == {"a"}


WRITER = """
import sys
from pathlib import Path
from tests.unit.test_featurestore import a_row
from spamguard.featurestore import FeatureStore
with FeatureStore(Path(sys.argv[1]), "print") as store:
    sys.stdin.readline()
    for i in range(60):
        store.put([(f"{sys.argv[2]}-{i}", a_row(i)), (f"both-{i}", a_row(i))])
"""


def test_two_processes_write_at_once(tmp_path: Path) -> None:
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path), name], cwd=ROOT, stdin=subprocess.PIPE)
        for name in ("one", "two")
    ]
    for writer in writers:
        assert writer.stdin
        writer.stdin.write(b"go\n")
        writer.stdin.close()
    assert [writer.wait() for writer in writers] == [0, 0]
    with FeatureStore(tmp_path, "print") as store:
        rows = store.get([f"{name}-{i}" for name in ("one", "two", "both") for i in range(60)])
    assert len(rows) == 180
    for name, row in rows.items():
        assert_same(row, a_row(int(name.partition("-")[2])))


KILLED = """
import os, signal, sys
from pathlib import Path
from tests.unit.test_featurestore import a_row
from spamguard.featurestore import FeatureStore
with FeatureStore(Path(sys.argv[1]), "print") as store:
    store.put([("before", a_row(1))])
    # Far more than SQLite's page cache holds, so that half of the transaction is in the journal when we die.
    def steps(done=[0]):
        done[0] += 1
        if done[0] == 40:
            os.kill(os.getpid(), signal.SIGKILL)
        return 0
    store._db.execute("PRAGMA cache_size = 10")
    store._db.set_progress_handler(steps, 1000)
    store.put((f"during-{i}", a_row(i)) for i in range(20000))
    sys.exit("survived")
"""


def test_sigkill_in_the_middle_of_a_put_leaves_a_sound_store(tmp_path: Path) -> None:
    assert subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], cwd=ROOT).returncode == -9
    with FeatureStore(tmp_path, "print") as store:
        assert store.known(["before", *(f"during-{i}" for i in range(20000))]) == {"before"}
        assert_same(store.get(["before"])["before"], a_row(1))
        store.put([("after", a_row(2))])
    check = sqlite3.connect(tmp_path / "print.sqlite3")
    assert check.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    check.close()


@pytest.mark.parametrize("damage", ["overwritten", "no database", "no table", "other table"])
def test_a_damaged_file_is_one_line(tmp_path: Path, damage: str) -> None:
    with FeatureStore(tmp_path, "print") as store:
        store.put((str(i), a_row(i)) for i in range(200))
    file = tmp_path / "print.sqlite3"
    if damage == "overwritten":
        file.write_bytes(file.read_bytes()[:4096] + b"\xff" * (file.stat().st_size - 4096))
    elif damage == "no database":
        file.write_bytes(b"this is a letter, not a database" * 100)
    else:
        change = sqlite3.connect(file)
        change.execute("DROP TABLE row")
        change.execute("CREATE TABLE other (x)" if damage == "no table" else "CREATE TABLE row (content, other)")
        change.close()
    if damage == "no table":  # it is made anew
        with FeatureStore(tmp_path, "print") as store:
            assert store.known(["1"]) == set()
        return
    with pytest.raises(FeatureStoreError) as caught, FeatureStore(tmp_path, "print") as store:
        store.get([str(i) for i in range(200)])
    assert str(caught.value).startswith(str(file)) and "\n" not in str(caught.value)


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(FeatureStoreError, match="file"):
        FeatureStore(tmp_path / "file" / "folder", "print")


def test_only_the_owner_may_look(tmp_path: Path) -> None:
    with FeatureStore(tmp_path / "features", "print"):
        assert (tmp_path / "features").stat().st_mode & 0o777 == 0o700


RAW = b"From: a@example.org\r\nSubject: hello\r\n\r\nbody\r\n"


def test_the_hash_is_that_of_the_message_as_it_came() -> None:
    verdict = Verdict(0.99, Label.SPAM, Cutoffs(0.5, 0.9), {"deep": 1.0}, (), "encoder", "head")
    unix = RAW.replace(b"\r\n", b"\n")
    stamped = headers.stamp(RAW, verdict)
    assert stamped != RAW
    assert len({content_hash(raw) for raw in (RAW, unix, stamped, headers.stamp(unix, verdict))}) == 1
    assert content_hash(RAW) != content_hash(RAW.replace(b"body", b"Body"))


def test_stack_keeps_order_and_shapes() -> None:
    rows = [a_row(i) for i in range(3)]
    stacked = stack(rows)
    assert len(stacked) == 3 and stacked.deep.shape == (3, DIM) and stacked.structure.shape == (3, STRUCTURE)
    for i, row in enumerate(rows):
        np.testing.assert_array_equal(stacked.deep[i], row.deep)
        assert stacked.wide[i] is row.wide
