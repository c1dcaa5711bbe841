"""What leaves the quarantine in time: by age, by number and by size, the oldest first."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from spamguard.config import QuarantineTable
from spamguard.errors import QuarantineError

from .journal import Journal
from .quarantine import HELD, Quarantine, replace_file
from .quarantine_index import Index, Item

_DAY_S = 86_400
_MOST_PASSED_S = 2 * _DAY_S
_FIRST_S, _EVERY_S = 60, 3600
_SET_S = 1_750_000_000  # A clock that says less (June 2025) has not been set yet.


@dataclass(slots=True)
class Expired:
    """What a run has deleted, and how many messages it leaves; `failed`: they could not be deleted."""

    held: int = 0
    released: int = 0
    size: int = 0
    left: int = 0
    failed: int = 0


def expire(quarantine: Quarantine, table: QuarantineTable, now: float | None = None) -> Expired:
    """Delete what is older than `keep_days`; then, while there is more than may be kept, first what was released,
    then what is oldest. What is dated in the future is new. Raises OSError if the folders cannot be read.
    """
    if not quarantine.folder.is_dir():
        return Expired()
    quarantine.create()
    with Index(quarantine) as index:
        # Of what was released somebody has the mail already.
        items = sorted(index.items(released=True), key=lambda item: item.state == HELD)
    before = _clock(quarantine.folder / "clock", time.time() if now is None else now) - table.keep_days * _DAY_S
    done = Expired()
    kept = [item for item in items if item.received >= before or not _delete(quarantine, item, done)]
    count, size = len(kept), sum(item.size for item in kept)
    for item in kept:
        if not (0 < table.keep_messages < count or 0 < table.keep_bytes < size):
            break
        if _delete(quarantine, item, done):
            count, size = count - 1, size - item.size
    done.left = count
    return done


def _delete(quarantine: Quarantine, item: Item, done: Expired) -> bool:
    try:
        quarantine.delete(item.id, wait=False)
    except BlockingIOError:
        return False  # It is being released.
    except QuarantineError:
        pass  # Somebody else has deleted it.
    except OSError:
        done.failed += 1
        return False
    done.size += item.size
    if item.state == HELD:
        done.held += 1
    else:
        done.released += 1
    return True


def _clock(file: Path, now: float) -> float:
    """The time to count ages from. A run sees two days pass at most since the run before, whatever the clock says:
    one that is years ahead would empty the quarantine at once. So runs should be daily at least.
    """
    if now < _SET_S:
        return now
    with suppress(OSError, ValueError):
        before = float(file.read_text())
        if now < before:  # Put back, or not set yet: what is noted must not go back with it for long.
            return now
        now = min(now, before + _MOST_PASSED_S)
    with suppress(OSError):  # The disk may be full, and then there is all the more to delete.
        replace_file(file, repr(now).encode())
    return now


async def expire_hourly(quarantine: Quarantine, table: QuarantineTable, journal: Journal) -> None:
    """Forever, in a thread; what goes wrong is logged, and tried again an hour later."""
    await asyncio.sleep(_FIRST_S)  # Mail that waited for our start comes first.
    while True:
        try:
            done = await asyncio.to_thread(expire, quarantine, table)
            if done.held or done.released or done.failed:
                journal.write(
                    "warning" if done.failed else "info",
                    "quarantine expired",
                    held=done.held,
                    released=done.released,
                    size=done.size,
                    left=done.left,
                    failed=done.failed,
                )
        except Exception as error:
            journal.write("error", "quarantine cannot be expired", cause=str(error) or repr(error))
        await asyncio.sleep(_EVERY_S)
