"""What must not become a label, a second copy or a second move when something goes wrong at the wrong moment."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from service import watch as watching
from service.mailbox import Mailbox
from service.moves import Moves
from service.quarantine import Quarantine
from service.sightings import Belief, Sightings, SightingsError
from spamguard.headers import content_hash
from spamguard.labels import Labels
from tests.conftest import Running
from tests.maildirs import Box
from tests.watching import label, row, scored, soon, spam

Start = Callable[..., Running]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "_TICK_S", 0.05)


def test_a_look_into_junk_while_we_move_makes_no_label(
    watch: Start, box: Box, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder is listed between our note and our rename, and the event is there before we have noted the end."""
    move, finished = Mailbox.move, Sightings.finished

    def listed_before(self: Mailbox, *spots: Any) -> None:
        running.daemon.watcher._unknown(self)
        move(self, *spots)

    def late(self: Sightings, *arguments: Any, **more: Any) -> None:
        time.sleep(0.3)
        finished(self, *arguments, **more)

    monkeypatch.setattr(Mailbox, "move", listed_before)
    monkeypatch.setattr(Sightings, "finished", late)
    running, raw = watch(quiet_s=0), spam()
    box.deliver(raw)
    soon(lambda: row(tmp_path, raw) == ("moved", "spam"))
    time.sleep(0.5)
    assert label(tmp_path, raw) is None


def test_what_is_put_into_a_folder_while_it_is_listed_is_not_forgotten(tmp_path: Path, box: Box) -> None:
    sightings, raw = Sightings(tmp_path / "watch.sqlite3"), spam()
    mailbox, name = Mailbox(box.path), box.deliver(raw, folder=".Junk")
    spot = mailbox.spots(".Junk")[0]

    def look() -> list[Any]:
        sightings.judged("m", content_hash(raw), spot, state="left", side="junk", stamp="1")
        return []

    assert sightings.reconcile("m", ".Junk", look) == []
    assert sightings.place("m", spot) is not None and spot.name == name
    sightings.reconcile("m", ".Junk", list)
    assert sightings.place("m", spot) is None
    sightings.close()


def test_a_junk_folder_that_is_renamed_makes_no_ham(watch: Start, box: Box, tmp_path: Path) -> None:
    running, mails = watch(rescan_s=0.2, quiet_s=0.5), [spam() for _ in range(5)]
    for raw in mails:
        box.deliver(raw)
    soon(lambda: sum(path.startswith(".Junk/") for path in box.files()) == 5)
    (box.path / ".Junk").rename(box.path / ".Old Junk")
    time.sleep(0.2)
    late = box.deliver(spam())  # Junk is made again within the quiet time
    soon(lambda: f".Junk/new/{late}" in box.files())
    time.sleep(1.5)
    assert [label(tmp_path, raw) for raw in mails] == [None] * 5
    assert len([line for line in running.log if line["event"] == "message"]) == 6


def test_held_mail_that_cannot_be_removed_is_held_once_and_removed_when_it_can(
    watch: Start, box: Box, monkeypatch: pytest.MonkeyPatch
) -> None:
    remove = Mailbox.remove

    def fails(*_: Any) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(Mailbox, "remove", fails)
    running = watch({"policy": {"spam": "quarantine"}}, rescan_s=0.2)
    store, raw = Quarantine(running.daemon.loaded.config.quarantine_path), spam()
    box.deliver(raw)
    soon(lambda: [line for line in running.log if line["event"] == "held, and not removed yet"])
    time.sleep(1)
    assert len(store.states()) == 1 and list(box.files().values()) == [raw]
    monkeypatch.setattr(Mailbox, "remove", remove)
    soon(lambda: not box.files())
    assert len(store.states()) == 1 and scored(running, raw) == 1


@pytest.mark.parametrize("policy", ["quarantine", "tag"])
def test_row_31_on_a_full_disk_the_mail_stays_where_it_is(
    watch: Start, box: Box, monkeypatch: pytest.MonkeyPatch, policy: str
) -> None:
    """Whether it shall be held, or replaced by a tagged copy; and it goes when there is room again."""
    writes = (Quarantine, "stage") if policy == "quarantine" else (Mailbox, "write")
    original = getattr(*writes)

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(*writes, full)
    running, raw = watch({"policy": {"spam": policy}}, tag=True, rescan_s=0.2), spam()
    name = box.deliver(raw)
    soon(lambda: [line for line in running.log if line["event"] == "mail stays where it is"])
    assert box.files() == {f"new/{name}": raw}
    monkeypatch.setattr(*writes, original)
    soon(lambda: f"new/{name}" not in box.files())
    assert len(box.files()) == (policy == "tag")


def test_an_end_that_could_not_be_noted_is_noted_later(
    watch: Start, box: Box, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finished = Sightings.finished

    def full(*_: Any, **__: Any) -> None:
        raise SightingsError("database or disk is full")

    monkeypatch.setattr(Sightings, "finished", full)
    running, raw = watch(rescan_s=0.2), spam()
    name = box.deliver(raw)
    soon(lambda: f".Junk/new/{name}" in box.files())
    assert row(tmp_path, raw) == ("moving", "spam")
    monkeypatch.setattr(Sightings, "finished", finished)
    soon(lambda: row(tmp_path, raw) == ("moved", "spam"))
    box.rename(f".Junk/new/{name}", f"cur/{name}:2,S")
    soon(lambda: label(tmp_path, raw) == "ham")
    assert scored(running, raw) == 1


def test_one_unreadable_message_holds_up_no_other_label(
    watch: Start, box: Box, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    running, mails = watch(quiet_s=0.5), [b"Subject: unreadable\n\nviagra\n", *(spam() for _ in range(3))]
    names = [box.deliver(raw) for raw in mails]
    soon(lambda: sum(path.startswith(".Junk/") for path in box.files()) == 4)
    believe = Moves._believe

    # Unreadable for the label alone, and from the start: where a message lies may be looked at again at any time.
    def some(self: Moves, belief: Belief, *rest: Any) -> bool:
        if belief.content == content_hash(mails[0]):
            raise PermissionError(errno.EACCES, "Permission denied")
        return believe(self, belief, *rest)

    monkeypatch.setattr(Moves, "_believe", some)
    for name in names:
        box.rename(f".Junk/new/{name}", f"cur/{name}:2,S")
    soon(lambda: [label(tmp_path, raw) for raw in mails] == [None, "ham", "ham", "ham"])
    soon(lambda: len([line for line in running.log if line["event"] == "label waits"]) == 1)
    monkeypatch.setattr(Moves, "_believe", believe)
    soon(lambda: label(tmp_path, mails[0]) == "ham")


def remembered(state: Path, query: str) -> list[Any]:
    import sqlite3
    from contextlib import closing

    with closing(sqlite3.connect(state / "watch.sqlite3", timeout=60)) as db:
        return db.execute(query).fetchall()


def test_a_keyword_is_no_end_of_a_move(watch: Start, box: Box, tmp_path: Path) -> None:
    """The normal order of Dovecot: the letter comes with the move; then out of Junk again is ham."""
    watch()
    raw = b"Subject: lunch\n\nnoon\n"
    name = box.deliver(raw)
    soon(lambda: row(tmp_path, raw) == ("left", "ham"))
    box.make(".Junk")
    box.rename(f"new/{name}", f".Junk/cur/{name}:2,Sa")
    (box.path / ".Junk/dovecot-keywords").write_text("0 $Junk\n")
    soon(lambda: label(tmp_path, raw) == "spam")
    box.rename(f".Junk/cur/{name}:2,Sa", f"cur/{name}:2,S")
    soon(lambda: label(tmp_path, raw) == "ham")


@pytest.mark.parametrize("step", ["filed elsewhere", "other keyword gone"])
def test_a_move_and_a_keyword_take_back_only_their_own(watch: Start, box: Box, tmp_path: Path, step: str) -> None:
    watch(quiet_s=1)
    box.make(".Junk")
    box.make(".Archive")
    for folder in ("", ".Junk", ".Archive"):
        (box.path / folder / "dovecot-keywords").write_text("0 $Junk\n1 $NonJunk\n")
    raw = b"Subject: lunch\n\nnoon\n"
    name = box.deliver(raw, part="cur", info=":2,S")
    soon(lambda: row(tmp_path, raw) == ("left", "ham"))
    if step == "filed elsewhere":
        box.rename(f"cur/{name}:2,S", f"cur/{name}:2,Sa")
        soon(lambda: remembered(tmp_path, "SELECT 1 FROM belief"))
        box.rename(f"cur/{name}:2,Sa", f".Archive/cur/{name}:2,Sa")
    else:
        box.rename(f"cur/{name}:2,S", f".Junk/cur/{name}:2,Sb")
        soon(lambda: remembered(tmp_path, "SELECT 1 FROM belief"))
        box.rename(f".Junk/cur/{name}:2,Sb", f".Junk/cur/{name}:2,S")
    soon(lambda: label(tmp_path, raw) == "spam")


def test_a_rescue_of_what_was_seen_a_moment_ago_is_a_rescue(watch: Start, box: Box, tmp_path: Path) -> None:
    running, raw = watch(), spam()
    box.make(".Junk")
    name = box.deliver(raw, folder=".Junk")  # by a Sieve rule
    soon(lambda: row(tmp_path, raw) is not None)
    box.rename(f".Junk/new/{name}", f"new/{name}")
    soon(lambda: label(tmp_path, raw) == "ham")
    assert box.files() == {f"new/{name}": raw} and scored(running, raw) == 0


def test_what_is_pruned_was_away_for_long_not_judged_long_ago(tmp_path: Path, box: Box) -> None:
    sightings, raw = Sightings(tmp_path / "watch.sqlite3"), spam()
    box.deliver(raw)
    spot = Mailbox(box.path).spots("INBOX")[0]
    sightings.judged("m", content_hash(raw), spot, state="left", side="ham", stamp="1", at=1.0)
    sightings.reconcile("m", "INBOX", list)
    sightings.prune()
    sightings.prune()
    assert sightings.message("m", content_hash(raw)) is not None
    sightings._db.execute("UPDATE message SET gone_at = 2")
    sightings.prune()
    assert sightings.message("m", content_hash(raw)) is None
    sightings.close()


def test_one_state_folder_has_one_watcher(watch: Start, box: Box) -> None:
    watch()
    with pytest.raises(SightingsError, match="another daemon of this state folder is watching already"):
        watch()


def test_a_header_block_without_end_is_not_judged(watch: Start, box: Box, tmp_path: Path) -> None:
    running = watch({"limits": {"memory_bytes": 65_536}})
    raw = b"".join(b"X-%d: %s\n" % (n, b"x" * 900) for n in range(200)) + b"\nviagra\n"
    name = box.deliver(raw)
    soon(lambda: [line for line in running.log if line["event"] == "not judged"])
    large = b"Subject: pills\n\n" + b"viagra\n" * 20_000
    moved = box.deliver(large)
    soon(lambda: box.files() == {f"new/{name}": raw, f".Junk/new/{moved}": large})


def test_large_tagged_mail_is_whole(watch: Start, box: Box, tmp_path: Path) -> None:
    watch({"limits": {"memory_bytes": 65_536}}, tag=True)
    large = b"Subject: pills\n\n" + b"viagra\n" * 20_000
    box.deliver(large)
    soon(lambda: row(tmp_path, large) == ("tagged", "spam"))
    (found,) = box.files().values()
    assert found.endswith(large.partition(b"\n")[2]) and b"X-Spam-Flag: YES" in found
    with Labels(tmp_path / "labels.sqlite3") as labels:
        assert labels.rows() == []
