"""What the head saw of judged mail is kept beside the mail path, which it never delays and never fails."""

from __future__ import annotations

import asyncio
import io
import json
import sqlite3
import subprocess
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from service import remember
from service.journal import Journal
from service.remember import Remember
from spamguard import headers, recent
from spamguard.config import Config, LogTable
from spamguard.recent import Judged, Recent
from spamguard.scorer import Scorer
from spamguard.verdict import Label, Verdict
from tests.conftest import Running, Start
from tests.fakes import FakeNextHop, FakePrepared, FakeScorer
from tests.maildirs import Box
from tests.tiny_corpus import HAM
from tests.unit.conftest import Tiny
from tests.unit.test_recent import a_judged
from tests.watching import ham, soon, spam

FINGERPRINT = "fake-encoder"


def seeing(config: Config, encoder: object) -> FakeScorer:
    return FakeScorer(sees=50, encoder=encoder or object())


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remember, "EVERY_S", 0.05)
    monkeypatch.setattr(recent, "_BUSY_S", 0.05)


def kept(state: Path) -> list[Judged]:
    with Recent(state / "features", FINGERPRINT, read_only=True) as store:
        return store.since(1)


def events(running: Running, name: str) -> list[dict[str, Any]]:
    return [line for line in running.log if line["event"] == name]


def send(running: Running, mail: bytes) -> bytes:
    with running.client() as client:
        return client.deliver(mail.replace(b"\n", b"\r\n"))


# --- In the daemon --------------------------------------------------------------------------------------------------


def test_mail_by_smtp_is_kept_with_its_id_and_nothing_of_its_text(running_daemon: Start, tmp_path: Path) -> None:
    running = running_daemon(FakeNextHop(), seeing)
    one = spam()
    assert send(running, one).startswith(b"250")
    soon(lambda: kept(tmp_path))
    (judged,) = kept(tmp_path)
    (line,) = events(running, "message")
    assert judged.content == headers.content_hash(one)
    assert (judged.p, judged.label, judged.head) == (0.99, Label.SPAM, "head-1")
    assert judged.about == f"smtp/{line['id']}"
    assert abs(judged.at - time.time()) < 60
    assert judged.row.deep.shape == (50,)
    written = b"".join(file.read_bytes() for file in (tmp_path / "features").iterdir())
    assert b"viagra" not in written and b"pills" not in written and b"example" not in written


def test_mail_of_a_watched_maildir_is_kept_with_its_name(
    watch: Callable[..., Running], box: Box, tmp_path: Path
) -> None:
    watch(load_scorer=seeing)
    mail = [ham(), spam()]
    names = [box.deliver(raw) for raw in mail]
    soon(lambda: len(kept(tmp_path)) == 2)
    found = {one.content: one for one in kept(tmp_path)}
    for raw, name, label in zip(mail, names, (Label.HAM, Label.SPAM), strict=True):
        one = found[headers.content_hash(raw)]
        assert (one.about, one.label) == (f"INBOX/{name}", label)


def test_a_message_that_waits_on_disk_is_known_by_all_of_it(running_daemon: Start, tmp_path: Path) -> None:
    running = running_daemon(FakeNextHop(), seeing, limits={"memory_bytes": 65_536})
    large = b"Subject: large\n\n" + b"meeting\n" * 20_000
    assert send(running, large).startswith(b"250")
    soon(lambda: kept(tmp_path))
    assert [one.content for one in kept(tmp_path)] == [headers.content_hash(large)]


def test_what_waits_is_written_when_the_daemon_stops(
    running_daemon: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remember, "EVERY_S", 3600)
    running = running_daemon(FakeNextHop(), seeing)
    send(running, ham())
    assert kept(tmp_path) == []
    running.loop.run(running.daemon.stop())
    assert len(kept(tmp_path)) == 1


def test_so_many_are_written_at_once(running_daemon: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remember, "EVERY_S", 3600)
    monkeypatch.setattr(remember, "AT_ONCE", 3)
    running = running_daemon(FakeNextHop(), seeing)
    for _ in range(3):
        send(running, ham())
    soon(lambda: len(kept(tmp_path)) == 3)


def test_with_keep_days_0_nothing_is_kept_nor_stays(running_daemon: Start, tmp_path: Path) -> None:
    with Recent(tmp_path / "features", FINGERPRINT) as store:
        store.add([a_judged(1, 0.5)])
    running = running_daemon(FakeNextHop(), seeing, learning={"keep_days": 0})
    send(running, ham())
    running.loop.run(running.daemon.stop())
    assert kept(tmp_path) == []


def test_what_is_too_old_or_too_much_goes(running_daemon: Start, tmp_path: Path) -> None:
    with Recent(tmp_path / "features", FINGERPRINT) as store:
        store.add(a_judged(i, 0.9 if i < 5 else 0.1) for i in range(10))
    running_daemon(FakeNextHop(), seeing, learning={"keep_days": 0.5, "keep_messages": 3})
    soon(lambda: [one.content for one in kept(tmp_path)] == ["content-7", "content-8", "content-9"])


def test_a_locked_store_costs_rows_and_one_line_but_no_mail(running_daemon: Start, tmp_path: Path) -> None:
    running = running_daemon(FakeNextHop(), seeing)
    send(running, ham())
    soon(lambda: kept(tmp_path))
    with closing(sqlite3.connect(tmp_path / "features" / f"{FINGERPRINT}.sqlite3", isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        for count in (1, 2, 3):
            assert send(running, ham()).startswith(b"250")
            soon(lambda count=count: running.daemon.journal.counters["remember.failed"] >= count)  # type: ignore[misc]
        other.execute("ROLLBACK")
    (line,) = events(running, "judged mail is not remembered")
    assert "database is locked" in line["cause"] and line["level"] == "warning"
    send(running, ham())
    soon(lambda: len(kept(tmp_path)) == 2)
    running.check_alive()


def test_a_full_disk_costs_rows_but_no_mail(running_daemon: Start, tmp_path: Path) -> None:
    folder = tmp_path / "features"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=512k", "none", folder], capture_output=True).returncode:
        pytest.skip("may not mount")
    try:
        running = running_daemon(FakeNextHop(), seeing)
        (folder / "full").write_bytes(b"x" * 4096)
        with (folder / "full").open("ab", buffering=0) as file, pytest.raises(OSError, match="No space"):
            while True:
                file.write(b"x" * 1024)
        for _ in range(3):
            assert send(running, ham()).startswith(b"250")
        soon(lambda: events(running, "judged mail is not remembered"))
        (folder / "full").unlink()
        running.check_alive()
        soon(lambda: kept(tmp_path))
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)  # as the daemon may be at it


def test_a_folder_that_cannot_be_made_costs_rows_but_no_mail(running_daemon: Start, tmp_path: Path) -> None:
    (tmp_path / "features").write_text("in the way")
    running = running_daemon(FakeNextHop(), seeing)
    for _ in range(3):
        assert send(running, ham()).startswith(b"250")
    soon(lambda: events(running, "judged mail is not remembered"))
    running.check_alive()
    assert len(events(running, "judged mail is not remembered")) == 1


# --- Alone ----------------------------------------------------------------------------------------------------------


def a_verdict(number: int = 0, sees: int = 50) -> Verdict:
    (made,) = FakeScorer(sees=sees).score([FakePrepared(b"", 10, "head-1", 0.5, f"content-{number}")])
    return made


class Alone:
    def __init__(self, state: Path) -> None:
        self.config = Config(state_dir=state)
        self.log = io.StringIO()
        self.journal = Journal(LogTable(format="json"), self.log)
        self.remember = Remember(lambda: self.config, self.journal)


def test_the_queue_is_bounded_and_holds_no_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remember, "MOST", 10)

    async def main() -> Alone:
        alone = Alone(tmp_path)
        for number in range(15):
            alone.remember.note(a_verdict(number), f"smtp/{number}")
        waiting = [one.row for _, one in alone.remember._waiting]
        assert all(row.deep.base is None and row.structure.base is None for row in waiting)
        alone.remember.start()
        await alone.remember.stop()
        return alone

    alone = asyncio.run(main())
    assert alone.journal.counters["remember.dropped"] == 5
    assert [one.about for one in kept(tmp_path)] == [f"smtp/{number}" for number in range(10)]


def test_a_verdict_that_does_not_tell_what_was_seen_is_passed_over(tmp_path: Path) -> None:
    async def main() -> None:
        alone = Alone(tmp_path)
        alone.remember.note(a_verdict(sees=0), "smtp/1")
        alone.remember.start()
        await alone.remember.stop()

    asyncio.run(main())
    assert not (tmp_path / "features").exists()


def test_an_error_is_said_again_when_it_is_another_one(tmp_path: Path) -> None:
    async def main() -> Alone:
        alone = Alone(tmp_path)
        (tmp_path / "features").write_text("in the way")
        for number in range(2):
            alone.remember.note(a_verdict(number), "smtp/1")
            await alone.remember._turn()
        (tmp_path / "features").unlink()
        (tmp_path / "features").mkdir()
        (tmp_path / "features" / f"{FINGERPRINT}.sqlite3").mkdir()
        for number in range(2):
            alone.remember.note(a_verdict(number), "smtp/1")
            await alone.remember._turn()
        return alone

    lines = [json.loads(line) for line in asyncio.run(main()).log.getvalue().splitlines()]
    causes = [line["cause"] for line in lines if line["event"] == "judged mail is not remembered"]
    assert len(causes) == 2 and "File exists" in causes[0] and "unable to open" in causes[1]


def test_the_real_scorer_names_the_content_and_shows_what_it_saw(tiny: Tiny) -> None:
    scorer = Scorer(tiny.encoder, tiny.bundle())
    stamped = headers.stamp(HAM[0], a_verdict(), "")
    for raw in (HAM[0], stamped):
        (made,) = scorer.score([scorer.prepare(raw)])
        assert made.content == headers.content_hash(HAM[0])
        assert made.seen is not None and np.isfinite(made.seen.deep).all()
