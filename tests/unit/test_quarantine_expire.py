"""What leaves the quarantine in time: age, number and size; and no clock empties it."""

from __future__ import annotations

import asyncio
import errno
import io
import json
import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from service import retention
from service.journal import Journal
from service.quarantine import Quarantine
from service.quarantine_index import Index
from service.retention import Expired, expire, expire_hourly
from spamguard.config import LogTable, QuarantineTable
from tests.held_mail import age
from tests.unit.test_quarantine_index import hold

DAY = 86_400.0
NOW = 1_800_000_000.0
RAW = b"x" * 100


@pytest.fixture
def quarantine(tmp_path: Path) -> Quarantine:
    made = Quarantine(tmp_path / "q")
    made.create()
    return made


def held_since(quarantine: Quarantine, *days: float, released: bool = False) -> list[str]:
    """Hold a message received so many days ago for each; the ids."""
    made = []
    for days_ago in days:
        message_id = f"{len(quarantine.states()):012x}"
        folder = hold(quarantine, message_id, RAW)
        age(folder, NOW - days_ago * DAY)
        if released:
            quarantine.settle(folder)
        made.append(message_id)
    return made


def left(quarantine: Quarantine) -> list[str]:
    return sorted(quarantine.states())


def table(days: float = 30, messages: int = 0, size: int = 0) -> QuarantineTable:
    return QuarantineTable(keep_days=days, keep_messages=messages, keep_bytes=size)


def test_what_is_older_goes(quarantine):
    _, young, border = held_since(quarantine, 30.1, 29.9, 30)
    held_since(quarantine, 31, released=True)
    assert expire(quarantine, table(), NOW) == Expired(held=1, released=1, size=200, left=2)
    assert left(quarantine) == sorted([young, border])
    assert expire(quarantine, table(), NOW) == Expired(left=2)
    assert list((quarantine.folder / "tmp").iterdir()) == []


def test_of_too_many_what_was_released_goes_first_then_the_oldest(quarantine):
    a, _, c = held_since(quarantine, 3, 9, 1)
    held_since(quarantine, 0.5, released=True)
    assert expire(quarantine, table(messages=2), NOW) == Expired(held=1, released=1, size=200, left=2)
    assert left(quarantine) == sorted([a, c])


def test_of_too_much_the_oldest_goes(quarantine):
    a, _, c = held_since(quarantine, 3, 9, 1)
    assert expire(quarantine, table(size=299), NOW).left == 2
    assert left(quarantine) == sorted([a, c])
    assert expire(quarantine, table(size=200), NOW).left == 2
    assert expire(quarantine, table(size=1), NOW).left == 0


def test_what_is_too_old_is_not_counted_against_what_was_released(quarantine):
    held_since(quarantine, 40)
    (released,) = held_since(quarantine, 1, released=True)
    assert expire(quarantine, table(messages=1), NOW).left == 1
    assert left(quarantine) == [released]


def test_0_is_no_limit(quarantine):
    held_since(quarantine, 1, 2, 3)
    assert expire(quarantine, table(messages=0, size=0), NOW).left == 3


def test_what_is_damaged_goes_when_it_was_touched_last(quarantine):
    (message_id,) = held_since(quarantine, 1)
    folder = quarantine.path(message_id)
    (folder / "envelope.json").write_bytes(b"")
    os.utime(folder, (NOW - 29 * DAY,) * 2)
    assert expire(quarantine, table(), NOW).left == 1
    os.utime(folder, (NOW - 31 * DAY,) * 2)
    assert expire(quarantine, table(), NOW).left == 0


def test_what_is_being_released_stays(quarantine):
    (message_id,) = held_since(quarantine, 40)
    with quarantine.locked(message_id):
        assert expire(quarantine, table(), NOW) == Expired(left=1)
    assert expire(quarantine, table(), NOW).left == 0


def test_names_that_are_no_ids_are_left_alone(quarantine):
    (quarantine.folder / "held/notes").mkdir()
    os.utime(quarantine.folder / "held/notes", (0, 0))
    assert expire(quarantine, table(), NOW) == Expired()
    assert (quarantine.folder / "held/notes").is_dir()


def test_without_a_folder_nothing_is_made(tmp_path):
    assert expire(Quarantine(tmp_path / "none"), table()) == Expired()
    assert list(tmp_path.iterdir()) == []


# --- Row 30 ---------------------------------------------------------------------------------------------------------


def test_row_30_what_is_dated_in_the_future_is_new(quarantine):
    future, _, new = held_since(quarantine, -4000, 5, 1)
    assert expire(quarantine, table(messages=2), NOW).left == 2
    assert left(quarantine) == sorted([future, new])
    assert expire(quarantine, table(days=0.5), NOW).left == 1
    assert left(quarantine) == [future]


def test_row_30_a_clock_that_jumps_ahead_does_not_empty_it(quarantine):
    held_since(quarantine, *range(29))
    assert expire(quarantine, table(), NOW).left == 29
    for hour in range(3):
        expire(quarantine, table(), NOW + 4000 * DAY + hour * 3600)
    assert len(left(quarantine)) >= 24
    before = left(quarantine)
    assert expire(quarantine, table(), NOW + 3600).left == len(before)  # The clock is right again.


def test_row_30_a_clock_that_jumps_back_deletes_nothing_and_is_not_noted(quarantine):
    held_since(quarantine, 29)
    expire(quarantine, table(), NOW)
    assert expire(quarantine, table(), NOW - 4000 * DAY).left == 1
    assert float((quarantine.folder / "clock").read_text()) == NOW


def test_row_30_a_clock_that_is_not_set_yet_is_not_noted(quarantine):
    held_since(quarantine, 29, 31)
    assert expire(quarantine, table(), 3600.0).left == 2
    assert expire(quarantine, table(), NOW).left == 1


def test_row_30_daily_runs_count_all_time_that_passes(quarantine):
    held_since(quarantine, 0)
    runs = [expire(quarantine, table(), NOW + day * DAY).left for day in range(33)]
    assert runs == [1] * 31 + [0, 0]


@pytest.mark.parametrize("said", [b"", b"nan", b"inf", b"soon", b"\xff", b"1e400"])
def test_row_30_a_damaged_note_of_the_last_run_is_none(quarantine, said):
    held_since(quarantine, 29, 31)
    (quarantine.folder / "clock").write_bytes(said)
    assert expire(quarantine, table(), NOW).left == 1


# --- Row 31 ---------------------------------------------------------------------------------------------------------


def test_row_31_on_a_full_disk_it_makes_room(tmp_path):
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "none", folder], capture_output=True).returncode:
        pytest.skip("may not mount")
    try:
        quarantine = Quarantine(folder / "q")
        quarantine.create()
        for days in (40, 1):
            held_since(quarantine, days)
        with pytest.raises(OSError) as caught, (folder / "full").open("wb") as file:
            while file.write(b"x" * 4096):
                file.flush()
        assert caught.value.errno == errno.ENOSPC
        assert expire(quarantine, table(), NOW) == Expired(held=1, size=100, left=1)
        with Index(quarantine) as index:
            assert [item.id for item in index.items()] == left(quarantine)
    finally:
        subprocess.run(["umount", folder], check=True)


def test_row_31_what_cannot_be_deleted_is_counted_and_stays(quarantine, monkeypatch):
    held_since(quarantine, 40, 1)
    rename = Path.rename

    def failing(self: Path, target: Path) -> Path:
        if self.parent.name == "held":
            raise OSError(errno.EROFS, "Read-only file system")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", failing)
    assert expire(quarantine, table(), NOW) == Expired(failed=1, left=2)
    assert len(left(quarantine)) == 2


# --- In the daemon --------------------------------------------------------------------------------------------------


def test_the_daemon_expires_again_and_again_and_a_fault_is_a_line(quarantine, monkeypatch):
    held_since(quarantine, 0)
    age(quarantine.path("000000000000"), time.time() - 40 * DAY)
    log = io.StringIO()
    outcomes = iter([PermissionError(errno.EACCES, "Permission denied"), None, None])
    real = retention.expire

    def sometimes(*arguments: object) -> Expired:
        if (error := next(outcomes, None)) is not None:
            raise error
        return real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(retention, "expire", sometimes)
    monkeypatch.setattr(retention, "_FIRST_S", 0)
    monkeypatch.setattr(retention, "_EVERY_S", 0.01)

    async def main() -> None:
        running = asyncio.create_task(expire_hourly(quarantine, table(), Journal(LogTable(format="json"), log)))
        while len(log.getvalue().splitlines()) < 2:
            await asyncio.sleep(0.01)
        running.cancel()
        await asyncio.wait([running])

    asyncio.run(main())
    fault, done = (json.loads(line) for line in log.getvalue().splitlines()[:2])
    assert (fault["level"], fault["event"]) == ("error", "quarantine cannot be expired")
    assert "Permission denied" in fault["cause"]
    assert (done["event"], done["held"], done["left"]) == ("quarantine expired", 1, 0)


def test_a_running_daemon_expires(running_daemon, tmp_path, monkeypatch):
    monkeypatch.setattr(retention, "_FIRST_S", 0.05)
    quarantine = Quarantine(tmp_path / "quarantine")
    quarantine.create()
    age(hold(quarantine), time.time() - 40 * DAY)
    running_daemon(quarantine={"keep_days": 30})
    while quarantine.states():
        time.sleep(0.01)


def test_leftovers_of_deletions_are_removed_later(quarantine, monkeypatch):
    held_since(quarantine, 40)
    monkeypatch.setattr(shutil, "rmtree", lambda *_, **__: None)  # Killed in between.
    assert expire(quarantine, table(), NOW).held == 1
    monkeypatch.undo()
    (leftover,) = (quarantine.folder / "tmp").iterdir()
    assert quarantine.states() == {}
    os.utime(leftover, (0, 0))
    expire(quarantine, table(), NOW)
    assert not leftover.exists()
