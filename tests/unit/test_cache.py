"""`spamguard cache`: sizes by encoder and version, and never a row removed that a label needs."""

from __future__ import annotations

import fcntl
import json
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from hypothesis import given, settings
from hypothesis import strategies as st

from spamguard import wide
from spamguard.cache import DAY_S, held, on_disk, prune
from spamguard.cli import main
from spamguard.featurestore import FeatureStore, FeatureStoreError, inputs_version
from spamguard.labels import Labels
from spamguard.verdict import Label
from tests.tiny_corpus import HAM
from tests.unit.test_featurestore import a_row, assert_same


def put(folder: Path, encoder: str, contents: list[str], version: int = wide.WIDE_VERSION, days: float = 0) -> None:
    """Rows of an earlier version of the reader, made so many days ago."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(wide, "WIDE_VERSION", version)
        if days:
            then = time.time() - days * DAY_S
            patch.setattr(time, "time", lambda: then)
        with FeatureStore(folder, encoder) as store:
            store.put((content, a_row(1)) for content in contents)


def rows(folder: Path, encoder: str) -> set[tuple[str, bool]]:
    """Content, and whether it is of the present version."""
    with closing(sqlite3.connect(folder / f"{encoder}.sqlite3")) as database:
        return {(c, v == inputs_version()) for c, v in database.execute("SELECT content, version FROM row")}


def test_what_is_held(tmp_path: Path) -> None:
    assert held(tmp_path, {"a"}) == [] and on_disk(tmp_path) == {}
    put(tmp_path, "one", ["a", "b"])
    put(tmp_path, "one", ["a"], version=1)
    put(tmp_path, "two", ["b"], version=1)
    found = held(tmp_path, {"a"})
    assert [(h.encoder, h.stale, h.rows, h.labelled) for h in found] == [
        ("one", False, 2, 1),
        ("one", True, 1, 1),
        ("two", True, 1, 0),
    ]
    row = a_row(1)
    values = row.deep.nbytes / 2 + row.wide.columns.nbytes + row.wide.counts.nbytes + row.structure.nbytes
    assert found[2].size == values + len("b") + len(found[2].version)
    assert set(on_disk(tmp_path)) == {"one", "two"} and min(on_disk(tmp_path).values()) >= 4096


def test_stale_rows_go_but_the_last_of_a_labelled_message(tmp_path: Path) -> None:
    put(tmp_path, "one", ["both", "none"])
    put(tmp_path, "one", ["both", "left", "none", "other"], version=1)
    assert prune(tmp_path, lambda: {"both", "left"}, stale=True) == {"one": 3}
    assert rows(tmp_path, "one") == {("both", True), ("none", True), ("left", False)}
    assert prune(tmp_path, lambda: {"both", "left"}, stale=True) == {"one": 0}


def test_old_rows_go_but_those_of_labels(tmp_path: Path) -> None:
    put(tmp_path, "one", ["labelled", "old", "again"], days=40)
    put(tmp_path, "one", ["young", "again"])
    put(tmp_path, "two", ["old"], days=20)
    assert prune(tmp_path, lambda: {"labelled"}, older_than=30) == {"one": 1, "two": 0}
    assert {content for content, _ in rows(tmp_path, "one")} == {"labelled", "young", "again"}
    with FeatureStore(tmp_path, "one") as store:
        assert_same(store.get(["labelled"])["labelled"], a_row(1))


@settings(max_examples=40, deadline=None)
@given(
    made=st.lists(st.tuples(st.sampled_from("abcdef"), st.integers(1, 3), st.sampled_from([0, 10, 50])), max_size=20),
    labelled=st.sets(st.sampled_from("abcdef")),
    stale=st.booleans(),
    older_than=st.sampled_from([None, 0.5, 20, 100]),
)
def test_whatever_goes_a_label_keeps_what_it_had(
    tmp_path_factory: pytest.TempPathFactory,
    made: list[tuple[str, int, int]],
    labelled: set[str],
    stale: bool,
    older_than: float | None,
) -> None:
    folder = tmp_path_factory.mktemp("features")
    for content, version, days in made:
        put(folder, "one", [content], wide.WIDE_VERSION if version == 3 else -version, days)
    before = rows(folder, "one") if made else set()
    prune(folder, lambda: labelled, stale=stale, older_than=older_than)
    after = rows(folder, "one") if made else set()
    assert after <= before
    for content in labelled:
        present = {row for row in before if row == (content, True)}
        assert present <= after
        assert (content in {c for c, _ in before}) == (content in {c for c, _ in after})
    if stale:
        assert {c for c, now in after if not now} <= labelled
    if not stale and older_than is None:
        assert after == before


def test_a_store_of_before_ages_were_kept_is_old(tmp_path: Path) -> None:
    put(tmp_path, "one", ["labelled", "other"])
    with closing(sqlite3.connect(tmp_path / "one.sqlite3")) as database:
        database.execute("DROP TABLE encoded")
    assert held(tmp_path, set())[0].rows == 2
    assert prune(tmp_path, lambda: {"labelled"}, older_than=1000) == {"one": 1}
    put(tmp_path, "one", ["new"])
    assert prune(tmp_path, lambda: {"labelled"}, older_than=1000) == {"one": 0}


def test_what_is_pruned_makes_the_file_smaller(tmp_path: Path) -> None:
    put(tmp_path, "one", [f"{i:064}" for i in range(3000)])
    before = on_disk(tmp_path)["one"]
    assert prune(tmp_path, lambda: {f"{0:064}"}, older_than=0) == {"one": 2999}
    assert on_disk(tmp_path)["one"] < before / 5


def test_a_damaged_store_is_one_line_and_nothing_goes(tmp_path: Path) -> None:
    put(tmp_path, "b", ["x"], days=10)
    (tmp_path / "a.sqlite3").write_bytes(b"no database" * 1000)
    for call in (lambda: held(tmp_path, set()), lambda: prune(tmp_path, set, older_than=0)):
        with pytest.raises(FeatureStoreError, match=r"a\.sqlite3: ") as caught:
            call()
        assert "\n" not in str(caught.value)
    assert rows(tmp_path, "b") == {("x", True)}


def test_who_labels_while_the_rows_are_chosen_is_heard(tmp_path: Path) -> None:
    """The labels are read when the store is locked already: a row put after that is not looked at."""
    put(tmp_path, "one", ["a"], days=10)

    def labelled() -> set[str]:
        other = sqlite3.connect(tmp_path / "one.sqlite3", timeout=0)
        with closing(other), pytest.raises(sqlite3.OperationalError, match="locked"):
            other.execute("BEGIN IMMEDIATE")
        return {"a"}

    assert prune(tmp_path, labelled, older_than=1) == {"one": 0}


# --- The command ----------------------------------------------------------------------------------------------------


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., Result]:
    file = tmp_path / "spamguard.toml"
    file.write_text('state_dir = "state"\n')
    return lambda *arguments: CliRunner().invoke(main, ["--config", str(file), "cache", *arguments])


def test_the_command_shows_and_prunes(tmp_path: Path, run: Callable[..., Result]) -> None:
    state = tmp_path / "state"
    assert run().output == f"nothing is kept yet in {state / 'features'}\n" and not state.exists()
    with Labels(state / "labels.sqlite3") as labels:
        content = labels.add(HAM[0], Label.HAM, "command")
    put(state / "features", "cafe", [content, "old"], days=9)
    put(state / "features", "cafe", ["stale"], version=1)
    lines = run().output.splitlines()
    assert lines[0].startswith("encoder cafe: 0.") and lines[0].endswith(" MB on disk")
    assert lines[1] == f"  version {inputs_version()}, in use: 2 messages, 1 of them labelled, 0.0 MB"
    assert "stale: 1 messages, 0 of them labelled" in lines[2]
    said = json.loads(run("--json").output)
    assert said["cafe"]["bytes"] > 4096 and [one["rows"] for one in said["cafe"]["held"]] == [2, 1]
    done = run("prune", "--stale", "--older-than", "7")
    assert done.exit_code == 0 and done.output.startswith("encoder cafe: 2 rows removed, 0.")
    assert rows(state / "features", "cafe") == {(content, True)}


@pytest.mark.parametrize(("arguments", "words"), [([], "say what is to go"), (["--older-than", "-1"], "x>=0")])
def test_what_is_to_go_must_be_said(run: Callable[..., Result], arguments: list[str], words: str) -> None:
    done = run("prune", *arguments)
    assert done.exit_code == 2 and words in done.output and done.output.count("\n") == 1


def test_not_during_a_retrain_nor_with_labels_that_cannot_be_read(tmp_path: Path, run: Callable[..., Result]) -> None:
    state = tmp_path / "state"
    put(state / "features", "cafe", ["old"], days=9)
    with (state / "retrain.lock").open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = run("prune", "--older-than", "0")
    assert done.exit_code == 2 and "another retrain is running" in done.output
    (state / "labels.sqlite3").write_bytes(b"no database" * 1000)
    done = run("prune", "--older-than", "0")
    assert done.exit_code == 2 and "labels.sqlite3: " in done.output and done.output.count("\n") == 1
    assert rows(state / "features", "cafe") == {("old", True)}
