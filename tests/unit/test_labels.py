"""Labels: the last word wins, a user beats the machine; what was taken is not lost, what is forgotten is gone."""

from __future__ import annotations

import errno
import multiprocessing
import os
import random
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from multiprocessing.synchronize import Barrier
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spamguard import headers
from spamguard.featurestore import FeatureStore, content_hash, remove_everywhere
from spamguard.labels import FOLDER, SENT, USERS, Labels, LabelsError
from spamguard.verdict import Label
from tests.fakes import verdict
from tests.tiny_corpus import HAM, SPAM, ham, message
from tests.unit.test_featurestore import a_row

ROOT = Path(__file__).parents[2]


@pytest.fixture
def labels(tmp_path: Path) -> Iterator[Labels]:
    with Labels(tmp_path / "state" / "labels.sqlite3") as opened:
        yield opened


def said(labels: Labels) -> dict[str, tuple[str, str]]:
    return {row.content: (row.label.value, row.source) for row in labels.rows()}


# --- Who is believed ------------------------------------------------------------------------------------------------


def test_the_last_word_of_a_user_wins(labels: Labels) -> None:
    content = labels.add(HAM[0], Label.SPAM, "moved", "/var/mail/ann/.Junk")
    assert said(labels) == {content_hash(HAM[0]): ("spam", "moved")}
    labels.add(HAM[0], Label.HAM, "command")
    assert said(labels) == {content: ("ham", "command")}
    labels.add(HAM[0], Label.SPAM, "release")
    assert said(labels) == {content: ("spam", "release")}


@pytest.mark.parametrize("source", USERS)
def test_a_user_beats_the_folder_in_either_order(labels: Labels, source: str) -> None:
    content = labels.add(HAM[0], Label.SPAM, FOLDER)
    labels.add(HAM[0], Label.HAM, source)
    assert said(labels) == {content: ("ham", source)}
    labels.add(HAM[0], Label.SPAM, FOLDER)
    labels.replace_folder({content: (Label.SPAM, "/x")})
    assert said(labels) == {content: ("ham", source)}
    labels.replace_folder({})
    assert said(labels) == {content: ("ham", source)}


def test_only_ham_or_spam_by_somebody_known_is_a_label(labels: Labels) -> None:
    for label, source in ((Label.UNSURE, "moved"), (Label.SPAM, "verdict"), (Label.SPAM, "")):
        with pytest.raises(ValueError):
            labels.add(HAM[0], label, source)
    assert labels.rows() == [] and labels.waiting() == []


def test_the_same_message_has_one_label_however_it_is_written(labels: Labels) -> None:
    stamped = headers.stamp(HAM[0], verdict(0.99))
    ids = {labels.add(raw, Label.HAM, "moved") for raw in (HAM[0], stamped, HAM[0].replace(b"\n", b"\r\n"))}
    assert len(ids) == 1 and len(labels.rows()) == len(labels.waiting()) == 1


def test_a_retrain_replaces_what_the_last_one_found(labels: Labels) -> None:
    user = labels.add(HAM[0], Label.HAM, "moved")
    assert labels.replace_folder({"a": (Label.HAM, "/1"), "b": (Label.SPAM, "/2"), user: (Label.SPAM, "/3")}) == 2
    assert said(labels) == {user: ("ham", "moved"), "a": ("ham", FOLDER), "b": ("spam", FOLDER)}
    kept = next(row for row in labels.rows() if row.content == "b")
    assert labels.replace_folder({"b": (Label.SPAM, "/2"), "c": (Label.HAM, "/4")}) == 2
    assert said(labels) == {user: ("ham", "moved"), "b": ("spam", FOLDER), "c": ("ham", FOLDER)}
    assert kept in labels.rows()
    assert labels.replace_folder({"b": (Label.HAM, "/2"), "c": (Label.HAM, "/4")}) == 1
    assert said(labels)["b"] == ("ham", FOLDER)


def test_sent_mail_is_found_like_the_rest_and_weighs_less(labels: Labels) -> None:
    user = labels.add(HAM[0], Label.HAM, "moved")
    found = {"a": (Label.HAM, "/1"), "b": (Label.HAM, "/2"), user: (Label.HAM, "/3")}
    assert labels.replace_folder(found, sent={"b", user}) == 2
    assert said(labels) == {user: ("ham", "moved"), "a": ("ham", FOLDER), "b": ("ham", SENT)}
    assert {row.content: row.weight for row in labels.rows()} == {user: 1.0, "a": 1.0, "b": 0.3}
    assert labels.replace_folder(found, sent={"b", user}) == 0
    assert labels.replace_folder(found, sent={"a"}) == 2  # moved from one folder to the other
    assert said(labels) == {user: ("ham", "moved"), "a": ("ham", SENT), "b": ("ham", FOLDER)}
    assert labels.replace_folder({}) == 2 and said(labels) == {user: ("ham", "moved")}


# --- What changed since the last fit --------------------------------------------------------------------------------


def test_what_is_no_news_is_not_counted(labels: Labels) -> None:
    assert labels.changes() == (0, 0)
    content = labels.add(HAM[0], Label.HAM, "moved")
    assert labels.changes() == (1, 1)
    for source in ("moved", "command", FOLDER):
        labels.add(HAM[0], Label.HAM, source)
    labels.add(HAM[0], Label.SPAM, FOLDER)
    assert labels.changes() == (1, 1)
    labels.fitted(1)
    assert labels.changes() == (1, 0)
    labels.add(HAM[0], Label.SPAM, "command")
    labels.forget([content])
    labels.forget([content])
    assert labels.changes() == (3, 2)
    labels.replace_folder({"a": (Label.HAM, "")})
    labels.replace_folder({"a": (Label.HAM, "")})
    assert labels.changes() == (4, 3)


def test_a_fit_stands_for_the_labels_that_it_saw(labels: Labels) -> None:
    labels.add(HAM[1], Label.HAM, "moved")
    labels.add(HAM[0], Label.HAM, "moved")
    rows, changes = labels.snapshot()
    assert [row.content for row in rows] == sorted(map(content_hash, HAM[:2])) and changes == 2
    labels.add(SPAM[0], Label.SPAM, "moved")  # while the fit runs
    labels.fitted(changes)
    assert labels.changes() == (3, 1)


# --- The mail itself ------------------------------------------------------------------------------------------------


def test_mail_is_kept_until_it_is_encoded_and_then_no_more(labels: Labels) -> None:
    stamped = headers.stamp(HAM[0], verdict(0.99))
    first, second = labels.add(stamped, Label.HAM, "moved"), labels.add(SPAM[0], Label.SPAM, "moved")
    assert labels.waiting() == [first, second] and [row.waits for row in labels.rows()] == [True, True]
    assert labels.raw(first) == HAM[0] and labels.raw(second) == SPAM[0]
    assert labels.encoded([first]) == set()
    assert labels.waiting() == [second] and labels.raw(first) is None
    assert [row.waits for row in labels.rows()] == [False, True]


def test_what_was_forgotten_while_it_was_encoded_is_told(labels: Labels) -> None:
    first, second = labels.add(HAM[0], Label.HAM, "moved"), labels.add(SPAM[0], Label.SPAM, "moved")
    labels.forget([first])
    assert labels.waiting() == [second] and labels.raw(first) is None
    assert labels.encoded([first, second]) == {first}


@pytest.mark.parametrize("damage", [b"", b"\x00\xff" * 50, b"Subject: \xff\n\n"])
def test_any_bytes_have_a_label(labels: Labels, damage: bytes) -> None:
    assert labels.raw(labels.add(damage, Label.SPAM, "command", "caf\udce9/\x1b[31m")) == damage
    assert labels.rows()[0].where == "caf\\udce9/\x1b[31m"


# --- IDs ------------------------------------------------------------------------------------------------------------


def test_a_beginning_of_eight_digits_is_enough_of_an_id(labels: Labels) -> None:
    content = labels.add(HAM[0], Label.HAM, "moved")
    for length in (8, 12, 64):
        assert labels.find(content[:length]) == content


@pytest.mark.parametrize(
    "wrong", ["", "abc", "1234567", "G" * 8, "A" * 8, "../labels", "%", "a" * 65, "0\x1b[31m" * 3]
)
def test_what_is_no_id_is_one_line(labels: Labels, wrong: str) -> None:
    with pytest.raises(LabelsError, match="an ID is 8 to 64 of 0-9a-f") as caught:
        labels.find(wrong)
    assert str(caught.value).isprintable()


def test_ids_that_are_unknown_or_not_unique_are_named(labels: Labels) -> None:
    labels.replace_folder({f"{'ab' * 4}{i}": (Label.HAM, "") for i in range(2)} | {"f" * 64: (Label.HAM, "")})
    with pytest.raises(LabelsError, match="abababab: more than one"):
        labels.find("ab" * 4)
    with pytest.raises(LabelsError, match="no such label"):
        labels.find("ab" * 5)
    assert labels.find("ab" * 4 + "1") == "ab" * 4 + "1" and labels.find("f" * 8) == "f" * 64


# --- Forgetting -----------------------------------------------------------------------------------------------------


def bytes_of(folder: Path) -> bytes:
    return b"".join(file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file())


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**32), count=st.integers(2, 60), size=st.sampled_from([10, 1000, 20_000]))
def test_nothing_of_what_is_forgotten_is_left_in_any_file(
    tmp_path_factory: pytest.TempPathFactory, seed: int, count: int, size: int
) -> None:
    """Also while others have the files open, and after labels, rows and mail were replaced and rebalanced."""
    rng, root = random.Random(seed), tmp_path_factory.mktemp("state")
    mail = [message(f"marker-{i:04}-of-the-subject", f"{i:04}-body " * (size // 10)) for i in range(count)]
    with Labels(root / "labels.sqlite3") as labels, FeatureStore(root / "features", "one") as store:
        for raw in mail:
            content = labels.add(raw, rng.choice([Label.HAM, Label.SPAM]), rng.choice(USERS))
            if rng.random() < 0.5:
                store.put([(content, a_row(rng.randrange(99)))])
            if rng.random() < 0.5:
                labels.encoded([content])
            labels.add(rng.choice(mail), Label.SPAM, "moved")
        gone = rng.sample(mail, count // 2)
        contents = [content_hash(raw) for raw in gone]
        labels.forget(contents)
        remove_everywhere(root / "features", contents)
        left = bytes_of(root)
    for data in (left, bytes_of(root)):
        for raw, content in zip(gone, contents, strict=True):
            assert content.encode() not in data and raw.splitlines()[2] not in data
            assert raw.splitlines()[-1][:9] not in data
    kept = {content_hash(raw) for raw in mail} - set(contents)
    with Labels(root / "labels.sqlite3") as labels, FeatureStore(root / "features", "one") as store:
        assert {row.content for row in labels.rows()} == kept and store.known(contents) == set()


@pytest.mark.parametrize("seed", [5, 7, 10, 33])
def test_pages_that_were_divided_and_joined_keep_no_copies(tmp_path: Path, seed: int) -> None:
    """With these seeds SQLite leaves some, for all its secure_delete."""
    rng = random.Random(seed)
    mail = [f"Subject: marker-{i:04}-x\n\n{'y' * rng.randrange(300)}".encode() for i in range(600)]
    rng.shuffle(mail)
    with Labels(tmp_path / "labels.sqlite3") as labels:
        labels._db.execute("PRAGMA synchronous = OFF")
        for raw in mail:
            content = labels.add(raw, Label.SPAM, "moved", "w" * rng.randrange(300))
            if rng.random() < 0.4:
                labels.encoded([content])
        gone = rng.sample(mail, 300)
        for start in range(0, 300, 30):
            labels.forget([content_hash(raw) for raw in gone[start : start + 30]])
        data = bytes_of(tmp_path)
    assert not [raw for raw in gone if content_hash(raw).encode() in data or raw[9:20] in data]


# --- Several processes, SIGKILL, faults -----------------------------------------------------------------------------

ADDING = """
import sys
from pathlib import Path
from spamguard.labels import Labels
from spamguard.verdict import Label
from tests.fakes import verdict
from tests.tiny_corpus import message
for i in range(int(sys.argv[3]), 10**6):
    with Labels(Path(sys.argv[1])) as labels:
        print(labels.add(message(sys.argv[2], f"{i} " * 5000), Label.SPAM, "command"), flush=True)
"""


def check_sound(file: Path) -> None:
    check = sqlite3.connect(file)
    assert check.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    check.close()


def test_what_was_acknowledged_survives_sigkill(tmp_path: Path) -> None:
    file, acknowledged, rng = tmp_path / "labels.sqlite3", set[str](), random.Random(4)
    for kill in range(12):
        command = [sys.executable, "-c", ADDING, str(file), "kill", str(1000 * kill)]
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as adder:
            assert adder.stdout
            for _ in range(rng.randrange(1, 20)):
                acknowledged.add(adder.stdout.readline().strip())
            adder.send_signal(signal.SIGKILL)
            acknowledged |= {line.strip() for line in adder.stdout if line.endswith("\n")}
    check_sound(file)
    with Labels(file) as labels:
        rows = {row.content: row.waits for row in labels.rows()}
        assert acknowledged <= rows.keys() and all(rows.values())
        assert set(labels.waiting()) == rows.keys()
        assert all(content_hash(labels.raw(content) or b"") == content for content in rows)
        assert labels.changes()[0] == len(rows) <= len(acknowledged) + 12


def test_processes_add_at_once(tmp_path: Path) -> None:
    """Six; each opens the file anew for each label."""
    file = tmp_path / "labels.sqlite3"
    program = ADDING.replace("10**6", "int(sys.argv[3]) + 15")
    adders = [
        subprocess.Popen(
            [sys.executable, "-c", program, str(file), f"adder {n}", "0"], cwd=ROOT, stdout=subprocess.PIPE, text=True
        )
        for n in range(6)
    ]
    told = [adder.communicate()[0].split() for adder in adders]
    assert [adder.returncode for adder in adders] == [0] * 6
    check_sound(file)
    with Labels(file) as labels:
        rows = labels.rows()
    assert sorted(row.content for row in rows) == sorted(content for some in told for content in some)
    assert [row.seq for row in rows] == list(range(1, 91))


def make_at_once(together: Barrier, folder: Path, number: int) -> None:
    for i in range(80):
        together.wait(60)
        with Labels(folder / f"{i}.sqlite3") as labels:
            labels.add(b"%d" % number, Label.SPAM, "moved")


def test_processes_make_the_file_at_once(tmp_path: Path) -> None:
    """SQLite says "database is locked" at once when two turn the journal of a new file to WAL."""
    spawn = multiprocessing.get_context("spawn")
    together = spawn.Barrier(4)
    makers = [spawn.Process(target=make_at_once, args=(together, tmp_path, n)) for n in range(4)]
    for maker in makers:
        maker.start()
    for maker in makers:
        maker.join()
    assert [maker.exitcode for maker in makers] == [0] * 4
    for i in range(80):
        with Labels(tmp_path / f"{i}.sqlite3") as labels:
            assert len(labels.rows()) == 4


def test_only_the_owner_may_look(tmp_path: Path) -> None:
    with Labels(tmp_path / "state" / "labels.sqlite3") as labels:
        labels.add(HAM[0], Label.HAM, "moved")
        assert (tmp_path / "state").stat().st_mode & 0o777 == 0o700
        files = sorted((tmp_path / "state").iterdir())
        assert [file.stat().st_mode & 0o777 for file in files] == [0o600] * 3, files


@pytest.mark.parametrize("damage", ["no database", "other table", "folder", "in a file"])
def test_a_file_that_cannot_be_used_is_one_line(tmp_path: Path, damage: str) -> None:
    file = tmp_path / "labels.sqlite3"
    if damage == "no database":
        file.write_bytes(b"this is a letter, not a database" * 100)
    elif damage == "other table":
        change = sqlite3.connect(file)
        change.execute("CREATE TABLE label (x)")
        change.close()
    elif damage == "folder":
        file.mkdir()
    else:
        (tmp_path / "file").write_text("")
        file = tmp_path / "file" / "labels.sqlite3"
    with pytest.raises(LabelsError) as caught, Labels(file) as labels:
        labels.add(HAM[0], Label.HAM, "moved")
    assert str(caught.value).startswith(f"{tmp_path}/") and "\n" not in str(caught.value)


def test_a_full_disk_takes_no_half_label(tmp_path: Path) -> None:
    with Labels(tmp_path / "labels.sqlite3") as labels:
        labels.add(HAM[0], Label.HAM, "moved")
        pages = labels._db.execute("PRAGMA page_count").fetchone()[0]
        labels._db.execute(f"PRAGMA max_page_count = {pages + 2}")  # SQLite's own way to say SQLITE_FULL
        with pytest.raises(LabelsError, match=r"labels\.sqlite3: database or disk is full"):
            labels.add(message("large", "x" * 100_000), Label.SPAM, "moved")
        assert len(labels.rows()) == len(labels.waiting()) == 1 and labels.changes() == (1, 1)
        labels._db.execute("PRAGMA max_page_count = 1000000")
        labels.add(ham(77), Label.SPAM, "moved")
        assert len(labels.rows()) == 2


def test_a_disk_that_may_only_be_read_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(file: Path, *_: object) -> int:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(file))

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(LabelsError, match=r"/labels\.sqlite3: Read-only file system"):
        Labels(tmp_path / "labels.sqlite3")
