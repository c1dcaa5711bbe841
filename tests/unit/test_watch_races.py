"""Row 32: what a user, a server, a second delivery or SIGKILL can do to a message while the watcher is at it."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from service.mailbox import Spot
from service.sightings import Belief, Sightings
from service.watch import Watcher
from spamguard.headers import content_hash
from spamguard.labels import Labels
from spamguard.verdict import Label
from tests.conftest import Running
from tests.maildirs import Box
from tests.watching import check_alive, ham, label, quiet, remembered, row, scored, soon, spam

Start = Callable[..., Running]
ROOT = Path(__file__).parents[2]


def noted(running: Running, table: str, raw: bytes) -> list[object]:
    return remembered(running, f"SELECT 1 FROM {table} WHERE content = ?", content_hash(raw))


@contextmanager
def held(running: Running) -> Iterator[None]:
    """The scorer keeps what comes next to itself until the end."""
    running.scorer.entered.clear()
    running.scorer.gate.clear()
    try:
        yield
    finally:
        running.scorer.gate.set()


# While it is judged.


def test_row_32_a_flag_set_while_it_is_judged_goes_along(watch: Start, box: Box, tmp_path: Path) -> None:
    running, raw = watch(), spam()
    with held(running):
        name = box.deliver(raw)
        assert running.scorer.entered.wait(10)
        box.rename(f"new/{name}", f"cur/{name}:2,S")
    soon(lambda: box.files() == {f".Junk/cur/{name}:2,S": raw})
    quiet()
    assert scored(running, raw) == 1 and row(tmp_path, raw) == ("moved", "spam") and label(tmp_path, raw) is None


def test_row_32_what_is_deleted_while_it_is_judged_is_gone(watch: Start, box: Box, tmp_path: Path) -> None:
    running, raw = watch(), spam()
    with held(running):
        name = box.deliver(raw)
        assert running.scorer.entered.wait(10)
        box.rename(f"new/{name}", "")
    check_alive(box)
    assert raw not in box.files().values() and label(tmp_path, raw) is None
    assert list((box.path / ".Junk/tmp").iterdir()) == list((box.path / "tmp").iterdir()) == []


@pytest.mark.parametrize("there", [".Archive/cur/{}:2,S", ".Archive/new/{}", ".Trash/cur/{}:2,", ".Junk/cur/{}:2,S"])
def test_row_32_what_the_user_moves_while_it_is_judged_stays_there(watch: Start, box: Box, there: str) -> None:
    running, raw = watch(rescan_s=0.3), spam()
    with held(running):
        name = box.deliver(raw)
        assert running.scorer.entered.wait(10)
        box.rename(f"new/{name}", there.format(name))
    check_alive(box)
    quiet()
    assert [path for path, data in box.files().items() if data == raw] == [there.format(name)]


def test_row_32_junk_deleted_while_spam_is_judged_is_made_again(watch: Start, box: Box) -> None:
    running, raw = watch(), spam()
    with held(running):
        name = box.deliver(raw)
        assert running.scorer.entered.wait(10)
        shutil.rmtree(box.path / ".Junk")
    soon(lambda: box.files() == {f".Junk/new/{name}": raw})
    assert (box.path / ".Junk/maildirfolder").exists()


# Moved more than once.


def test_row_32_each_move_has_its_label_without_a_look_at_everything(watch: Start, box: Box, tmp_path: Path) -> None:
    running, raw = watch(), ham()
    name = box.deliver(raw)
    soon(lambda: row(tmp_path, raw) == ("left", "ham"))
    here = f"new/{name}"
    for there, said in ((".Junk/cur", "spam"), ("cur", "ham"), (".Junk/cur", "spam"), (".Archive/cur", "ham")):
        box.rename(here, f"{there}/{name}:2,S")
        here = f"{there}/{name}:2,S"
        soon(lambda said=said: label(tmp_path, raw) == said)
    assert box.files() == {here: raw} and scored(running, raw) == 1


def test_row_32_what_was_rescued_stays_rescued_however_often_we_look(watch: Start, box: Box, tmp_path: Path) -> None:
    running, raw = watch(rescan_s=0.2), spam()
    name = box.deliver(raw)
    soon(lambda: box.files() == {f".Junk/new/{name}": raw})
    box.rename(f".Junk/new/{name}", f"cur/{name}:2,S")
    soon(lambda: label(tmp_path, raw) == "ham")
    box.rename(f"cur/{name}:2,S", f"cur/{name}:2,RS")
    quiet()
    assert box.files() == {f"cur/{name}:2,RS": raw} and scored(running, raw) == 1


def test_row_32_what_is_moved_back_while_its_label_is_written_has_the_last_word(
    watch: Start, box: Box, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    running, raw = watch(), spam()
    name = box.deliver(raw)
    soon(lambda: box.files() == {f".Junk/new/{name}": raw})
    add = Labels.add

    def slow_add(labels: Labels, mail: bytes, said: Label, *where: str) -> str:
        monkeypatch.setattr(Labels, "add", add)
        box.rename(f"cur/{name}:2,S", f".Junk/cur/{name}:2,S")
        soon(lambda: not noted(running, "belief", raw))
        return add(labels, mail, said, *where)

    monkeypatch.setattr(Labels, "add", slow_add)
    box.rename(f".Junk/new/{name}", f"cur/{name}:2,S")
    soon(lambda: label(tmp_path, raw) == "ham")
    soon(lambda: label(tmp_path, raw) == "spam")
    assert running.scorer.batches and box.files() == {f".Junk/cur/{name}:2,S": raw}


def test_row_32_there_and_back_and_there_again_within_a_moment_is_a_word(
    watch: Start, box: Box, tmp_path: Path
) -> None:
    running = watch(quiet_s=2)
    for _ in range(2):  # wherever this falls between two looks at what has left a folder
        raw = ham()
        name = box.deliver(raw)
        soon(lambda raw=raw: row(tmp_path, raw) == ("left", "ham"))
        box.rename(f"new/{name}", f".Junk/cur/{name}:2,S")
        soon(lambda raw=raw: noted(running, "belief", raw))
        soon(lambda raw=raw: len(noted(running, "place", raw)) == 1)
        box.rename(f".Junk/cur/{name}:2,S", f"cur/{name}:2,S")
        soon(lambda raw=raw: not noted(running, "belief", raw))
        box.rename(f"cur/{name}:2,S", f".Junk/cur/{name}:2,S")
        soon(lambda raw=raw: label(tmp_path, raw) == "spam")


def test_row_32_what_is_said_anew_is_not_dropped_with_what_was_said_before(tmp_path: Path) -> None:
    sightings, here = Sightings(tmp_path / "watch.sqlite3"), Spot("", "cur", "1.a")
    early, late = (Belief("/m", "c", Label.HAM, "moved", due) for due in (1.0, 2.0))
    for belief in (early, late):
        sightings.arrived("/m", "c", here, "stamp", None, expect=belief)
    sightings.dismiss(early)
    assert sightings.due(3, 0, 10) == [late]
    assert sightings.settle(late, None) and sightings.due(3, 0, 10) == []
    assert sightings.places("/m", "c")
    assert not sightings.settle(late, None) and not sightings.places("/m", "c")
    sightings.close()


# Copies and deliveries of the same.


def test_row_32_the_same_message_delivered_again_is_no_word_of_the_user(
    watch: Start, box: Box, tmp_path: Path
) -> None:
    """Nor is it touched: it could as well be a client that copies before it deletes."""
    watch(rescan_s=0.5)
    raw = spam()
    first = box.deliver(raw)
    soon(lambda: f".Junk/new/{first}" in box.files())
    again = box.deliver(raw)  # an MTA that has not heard our LDA's answer
    check_alive(box)
    quiet()
    assert label(tmp_path, raw) is None
    assert set(box.files()) > {f".Junk/new/{first}", f"new/{again}"}


def test_row_32_the_same_message_delivered_twice_at_once_is_no_word_of_the_user(
    watch: Start, box: Box, tmp_path: Path
) -> None:
    running, raw = watch(rescan_s=0.5), spam()
    with held(running):
        names = [box.deliver(raw), box.deliver(raw)]
        assert running.scorer.entered.wait(10)
    check_alive(box)
    quiet()
    assert label(tmp_path, raw) is None
    there = [path.partition("/")[0] for path in box.files() if path.rpartition("/")[2] in names]
    assert sorted(there) == [".Junk", "new"]


def test_row_32_a_copy_that_sieve_files_first_does_not_hide_a_message(watch: Start, box: Box, tmp_path: Path) -> None:
    running, raw = watch(), spam()
    box.make(".Archive")
    copy = box.deliver(raw, folder=".Archive")  # fileinto :copy ".Archive"; keep;
    soon(lambda: row(tmp_path, raw) is not None)
    name = box.deliver(raw)
    soon(lambda: f".Junk/new/{name}" in box.files())
    quiet()
    assert set(box.files()) == {f".Archive/new/{copy}", f".Junk/new/{name}"}
    assert scored(running, raw) == 1 and label(tmp_path, raw) is None


def test_row_32_a_name_that_is_used_again_does_not_hide_the_message(watch: Start, box: Box) -> None:
    watch(rescan_s=0.3)
    raw = spam()
    box.deliver(ham(), name="1")
    check_alive(box)
    box.rename("new/1", "")
    box.deliver(raw, name="1")
    soon(lambda: box.files().get(".Junk/new/1") == raw)


def test_row_32_a_maildir_named_twice_is_watched_once(watch: Start, box: Box, tmp_path: Path) -> None:
    (tmp_path / "alias").symlink_to(box.path)
    running, raw = watch(maildirs=[str(tmp_path / "alias"), str(box.path)]), spam()
    name = box.deliver(raw)
    soon(lambda: box.files() == {f".Junk/new/{name}": raw})
    quiet()
    assert scored(running, raw) == 1 and label(tmp_path, raw) is None


# Folders that go and come.


@pytest.mark.parametrize("folder", ["", ".Lists"])
def test_row_32_a_folder_deleted_and_made_again_is_watched(watch: Start, box: Box, folder: str) -> None:
    box.make(".Lists")
    watch(folders=["INBOX", ".Lists"])
    box.deliver(ham(), folder=folder)
    check_alive(box)
    shutil.rmtree(box.path / folder / "new")
    if folder:
        shutil.rmtree(box.path / folder)
    raw = spam()
    name = box.deliver(raw, folder=folder)
    soon(lambda: box.files().get(f".Junk/new/{name}") == raw)
    check_alive(box)


def test_row_32_junk_deleted_is_made_again(watch: Start, box: Box) -> None:
    watch()
    check_alive(box)
    shutil.rmtree(box.path / ".Junk")
    check_alive(box)
    assert (box.path / ".Junk/maildirfolder").exists()


def test_row_32_a_maildir_deleted_while_it_is_judged_harms_no_other(watch: Start, box: Box, tmp_path: Path) -> None:
    other = Box(tmp_path / "other")
    running = watch(maildirs=[str(box.path), str(other.path)], rescan_s=0.3)
    with held(running):
        other.deliver(spam())
        assert running.scorer.entered.wait(10)
        shutil.rmtree(other.path)
    check_alive(box)
    Box(other.path)
    quiet()
    check_alive(other)


# Events that do not come.


def test_row_32_what_no_event_told_is_found(
    watch: Start, box: Box, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Watcher, "_told", lambda *_: None)
    running, raw, rescued = watch(rescan_s=0.3), ham(), spam()
    name, other = box.deliver(raw), box.deliver(rescued)
    soon(lambda: row(tmp_path, raw) == ("left", "ham") and f".Junk/new/{other}" in box.files())
    box.rename(f"new/{name}", f".Junk/cur/{name}:2,S")
    box.rename(f".Junk/new/{other}", f"cur/{other}:2,S")
    soon(lambda: (label(tmp_path, raw), label(tmp_path, rescued)) == ("spam", "ham"))
    assert scored(running, raw) == scored(running, rescued) == 1


def test_row_32_dropped_events_are_made_up_for_though_mail_keeps_coming(
    watch: Start, box: Box, monkeypatch: pytest.MonkeyPatch
) -> None:
    tell = Watcher._told
    monkeypatch.setattr("service.watch._queued_events", lambda: 10)
    monkeypatch.setattr(Watcher, "_told", lambda self, of, event: "lost" in event.dest_path or tell(self, of, event))
    watch(rescan_s=300)
    check_alive(box)
    box.deliver(spam(), name="lost")
    for _ in range(20):
        box.deliver(ham())

    def found() -> bool:
        box.deliver(ham())
        time.sleep(0.3)
        return ".Junk/new/lost" in box.files()

    soon(found)
