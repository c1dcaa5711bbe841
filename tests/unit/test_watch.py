"""The watcher in the real daemon, with a fake scorer: what it judges, where it puts it, what it remembers."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from service import watch as watching
from service.sightings import Sightings
from spamguard.errors import ConfigError
from spamguard.headers import strip
from tests.conftest import Running
from tests.maildirs import Box
from tests.watching import labels, messages, seen_at, settled, until

Start = Callable[..., Running]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "_TICK_S", 0.1)


def test_spam_is_moved_to_junk_and_ham_stays_as_it_is(watch: Start, box: Box) -> None:
    running = watch()
    ham = box.deliver(b"Subject: lunch\n\nat noon?\n", mtime=1_000_000_000)
    spam = box.deliver(b"Subject: pills\n\nviagra\n", mtime=1_000_000_001)
    settled(running, 2)
    assert box.files() == {
        f"new/{ham}": b"Subject: lunch\n\nat noon?\n",
        f".Junk/new/{spam}": b"Subject: pills\n\nviagra\n",
    }
    assert (box.path / ".Junk/new" / spam).stat().st_mtime == 1_000_000_001
    assert (box.path / ".Junk/maildirfolder").exists()
    assert {line["name"]: (line["label"], line["fate"]) for line in messages(running)} == {
        ham: ("ham", "left"),
        spam: ("spam", "moved"),
    }
    assert labels(running) == {}


def test_mail_in_cur_keeps_its_flags(watch: Start, box: Box) -> None:
    running = watch()
    name = box.deliver(b"Subject: pills\n\nviagra\n", part="cur", info=":2,FS", mode=0o640)
    settled(running)
    moved = box.path / ".Junk/cur" / f"{name}:2,FS"
    assert moved.read_bytes() == b"Subject: pills\n\nviagra\n"
    assert moved.stat().st_mode & 0o777 == 0o640


def test_what_was_there_before_the_first_start_is_left_alone(watch: Start, box: Box) -> None:
    old = box.deliver(b"Subject: old\n\nviagra\n", part="cur", info=":2,S")
    unread = box.deliver(b"Subject: unread\n\nviagra\n")
    filed = box.deliver(b"Subject: filed\n\nviagra\n", folder=".Lists")
    running = watch()
    settled(running)
    late = box.deliver(b"Subject: late\n\nviagra\n", part="cur", info=":2,")
    settled(running, 2)
    seen_at(running, f".Lists/new/{filed}")
    assert set(box.files()) == {
        f"cur/{old}:2,S",
        f".Junk/new/{unread}",
        f".Lists/new/{filed}",
        f".Junk/cur/{late}:2,",
    }
    assert labels(running) == {}


def test_nothing_is_judged_twice_and_what_came_meanwhile_is_judged_after_a_restart(
    watch: Start, box: Box, loop_thread: Any
) -> None:
    first = watch()
    ham = box.deliver(b"Subject: lunch\n\nnoon\n")
    settled(first)
    loop_thread.run(first.daemon.stop())
    box.rename(f"new/{ham}", f"cur/{ham}:2,S")
    spam = box.deliver(b"Subject: pills\n\nviagra\n")
    second = watch()
    settled(second)
    seen_at(second, f"cur/{ham}")
    assert [line["name"] for line in messages(second)] == [spam]
    assert set(box.files()) == {f"cur/{ham}:2,S", f".Junk/new/{spam}"}


def test_only_the_folders_asked_for_are_judged(watch: Start, box: Box) -> None:
    box.make(".Lists")
    box.make(".Sent")
    running = watch(folders=["INBOX", ".Lists"])
    sent = box.deliver(b"Subject: sent\n\nviagra\n", folder=".Sent", part="cur", info=":2,S")
    listed = box.deliver(b"Subject: list\n\nviagra\n", folder=".Lists")
    settled(running)
    seen_at(running, f".Sent/cur/{sent}")
    assert set(box.files()) == {f".Sent/cur/{sent}:2,S", f".Junk/new/{listed}"}


def test_a_move_translates_keywords_and_drops_the_uid_of_mbsync(watch: Start, box: Box) -> None:
    box.make(".Junk")
    (box.path / "dovecot-keywords").write_text("0 $Label1\n1 $Label2\n")
    (box.path / ".Junk/dovecot-keywords").write_text("0 $Label2\n")
    running = watch()
    name = box.deliver(b"Subject: pills\n\nviagra\n", part="cur", name="9.a.host,U=7", info=":2,Sab")
    settled(running)
    assert name == "9.a.host,U=7"
    assert set(box.files()) == {".Junk/cur/9.a.host:2,Sa"}


def test_a_name_that_is_taken_in_junk_is_not_overwritten(watch: Start, box: Box) -> None:
    box.make(".Junk")
    box.deliver(b"Subject: other\n\nnoon\n", folder=".Junk", name="1.same.host")
    running = watch()
    box.deliver(b"Subject: pills\n\nviagra\n", name="1.same.host")
    settled(running)
    assert sorted(box.files().values()) == [b"Subject: other\n\nnoon\n", b"Subject: pills\n\nviagra\n"]
    assert all(name.startswith(".Junk/new/") for name in box.files())


def test_spam_is_held_in_the_quarantine_and_comes_back_to_its_place(watch: Start, box: Box) -> None:
    running = watch({"policy": {"spam": "quarantine"}})
    name = box.deliver(b"Subject: pills\n\nviagra\n", part="cur", info=":2,F", mtime=1_000_000_000)
    settled(running)
    assert box.files() == {}
    from service.quarantine import Quarantine

    quarantine = Quarantine(running.daemon.loaded.config.quarantine_path)
    (held,) = [quarantine.open(message_id) for message_id in quarantine.held()]
    assert held.content == b"Subject: pills\n\nviagra\n"
    assert held.source is not None
    assert (held.source.maildir, held.source.folder, held.source.name) == (str(box.path), "INBOX", name)
    assert (held.source.flags, held.source.mtime_ns) == ("F", 10**18)
    box.deliver(held.content, part="cur", name=name, info=":2,F")
    seen_at(running, f"cur/{name}")
    assert set(box.files()) == {f"cur/{name}:2,F"}
    assert labels(running) == {}


def test_tagged_mail_is_a_new_file_with_the_same_time_and_mode(watch: Start, box: Box) -> None:
    running = watch(tag=True)
    ham = box.deliver(b"Subject: lunch\n\nnoon\n", mtime=1_000_000_000, mode=0o640)
    spam = box.deliver(b"Subject: pills\n\nviagra\n", name="1.spam.host,S=23,W=26", mtime=1_000_000_000)
    settled(running, 2)
    seen = box.deliver(b"Subject: seen\n\nviagra\n", part="cur", info=":2,S")
    settled(running, 3)
    (tagged,) = (box.path / "new").iterdir()
    assert tagged.name != ham and tagged.name.endswith(f",S={tagged.stat().st_size}")
    assert b"X-Spamguard: ham" in tagged.read_bytes() and strip(tagged.read_bytes()) == b"Subject: lunch\n\nnoon\n"
    assert (tagged.stat().st_mtime, tagged.stat().st_mode & 0o777) == (1_000_000_000, 0o640)
    (junk,) = (box.path / ".Junk/new").iterdir()
    raw = junk.read_bytes()
    assert b"X-Spam-Flag: YES" in raw and junk.name != spam
    assert junk.name.endswith(f",S={len(raw)},W={len(raw) + raw.count(bytes([10]))}")
    assert box.files()[f".Junk/cur/{seen}:2,S"] == b"Subject: seen\n\nviagra\n"
    assert [*(box.path / "tmp").iterdir(), *(box.path / ".Junk/tmp").iterdir()] == []


def test_spam_stays_where_no_junk_folder_is_wanted(watch: Start, box: Box) -> None:
    running = watch(junk="")
    name = box.deliver(b"Subject: pills\n\nviagra\n")
    settled(running)
    assert set(box.files()) == {f"new/{name}"}
    assert messages(running)[0]["label"] == "spam"


def test_a_missing_junk_folder_is_a_clear_error_where_it_shall_not_be_made(watch: Start, box: Box) -> None:
    box.make(".Spam")
    with pytest.raises(
        ConfigError, match=r"watch\.maildirs: .*/mail: it has no folder \.Junk .*there are: INBOX, \.Spam"
    ):
        watch(create_junk=False)
    assert not (box.path / ".Junk").exists()


@pytest.mark.parametrize("make", [lambda path: None, lambda path: path.mkdir()], ids=["missing", "no Maildir"])
def test_what_is_no_maildir_is_a_clear_error(watch: Start, tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(tmp_path / "nothing")
    with pytest.raises(ConfigError, match="nothing: no such Maildir"):
        watch(maildirs=[str(tmp_path / "nothing")])


def test_a_pattern_takes_in_maildirs_that_come_later(watch: Start, tmp_path: Path) -> None:
    anna = Box(tmp_path / "users/anna/Maildir")
    running = watch(maildirs=[str(tmp_path / "users/*/Maildir")], rescan_s=0.3)
    anna.deliver(b"Subject: pills\n\nviagra\n")
    settled(running)
    berta = Box(tmp_path / "users/berta/Maildir")
    berta.deliver(b"Subject: pills\n\nviagra\n")
    settled(running, 2)
    assert [{name.split("/")[0] for name in one.files()} for one in (anna, berta)] == [{".Junk"}, {".Junk"}]


def test_a_scorer_that_fails_leaves_mail_where_it_is_and_is_asked_again(watch: Start, box: Box) -> None:
    running = watch(rescan_s=0.2)
    name = box.deliver(b"Subject: odd\nX-Fake: raise\n\nviagra\n")
    settled(running)
    assert set(box.files()) == {f"new/{name}"}
    (line,) = messages(running)
    assert (line["label"], line["fate"], line["failure"][:5]) == ("unscored", "left", "fault")
    assert sum(any(b"X-Fake" in raw for raw in batch) for batch in running.scorer.batches) >= 3


def test_polling_finds_what_no_event_tells(watch: Start, box: Box) -> None:
    running = watch(poll_s=0.2)
    assert running.daemon.watcher is not None and running.daemon.watcher._observer is None
    spam = box.deliver(b"Subject: pills\n\nviagra\n")
    settled(running)
    box.rename(f".Junk/new/{spam}", f"cur/{spam}:2,S")
    until(lambda: labels(running))
    assert list(labels(running).values()) == [("ham", "moved")]


def test_mail_that_came_by_smtp_is_not_judged_again_but_its_moves_are_labels(
    running_daemon: Start, tmp_path: Path
) -> None:
    mine = Box(tmp_path / "Maildir")
    running = running_daemon(watch={"maildirs": [str(mine.path)], "quiet_s": 0.2})
    with running.client() as client:
        assert client.deliver(b"Subject: pills\r\n\r\nviagra\r\n").startswith(b"250")
    (place,) = mine.files()
    seen_at(running, place)
    assert [line["ingress"] for line in messages(running)] == ["smtp"]
    assert place.startswith(".Junk/new/")
    mine.rename(place, "cur/" + place.rpartition("/")[2] + ":2,S")
    until(lambda: labels(running))
    assert list(labels(running).values()) == [("ham", "moved")]


def test_a_maildir_that_is_made_again_is_watched_again(watch: Start, box: Box) -> None:
    running = watch(rescan_s=0.3)
    box.deliver(b"Subject: pills\n\nviagra\n")
    settled(running)
    box.path.rename(box.path.with_name("gone"))
    until(lambda: any(line["event"] == "Maildir cannot be read" for line in running.log))
    again = Box(box.path)
    again.deliver(b"Subject: pills\n\nviagra, the second\n")
    settled(running, 2)
    box.deliver(b"Subject: pills\n\nviagra, the third\n")
    settled(running, 3)


def test_a_stopped_watcher_leaves_its_memory_whole(watch: Start, box: Box, tmp_path: Path, loop_thread: Any) -> None:
    running = watch()
    for number in range(50):
        box.deliver(b"Subject: pills\n\nviagra %d\n" % number)
    until(lambda: len(messages(running)) > 5)
    loop_thread.run(running.daemon.stop())
    with sqlite3.connect(tmp_path / "watch.sqlite3") as db:
        states = dict(db.execute("SELECT state, count(*) FROM message GROUP BY state"))
    assert set(states) == {"moved"}
    assert states["moved"] == sum(name.startswith(".Junk/") for name in box.files())
    memory = Sightings(tmp_path / "watch.sqlite3")
    assert memory.unfinished() == []
    memory.close()
