"""Judges a message of a Maildir and puts it where the policy wants it: left, moved, held, or tagged as a new file.

What is going to be done is noted before it is done, so that a process that is killed in between leaves nothing that
the next one could take for the user's doing, or would do twice.
"""

from __future__ import annotations

import asyncio
import stat
import time
from collections import Counter
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any

from spamguard import headers
from spamguard.actions import Disposition, Fate
from spamguard.config import Config
from spamguard.errors import DeliveryError, QuarantineError
from spamguard.verdict import Label

from .envelope import Envelope
from .handover import new_id
from .held import Source
from .journal import Journal
from .mailbox import Mailbox, Refused, Spot
from .moves import HAM, JUNK
from .pipeline import Pipeline
from .quarantine import Quarantine
from .sightings import Known, Sightings

# How often a name is looked up again that a client has changed meanwhile.
_TRIES = 5
# How often a message is given to a scorer that fails; the next is at the next rescan.
_ATTEMPTS = 3


@dataclass(frozen=True, slots=True)
class Arrival:
    """A message of a Maildir that was never judged: where it lies, its bytes, their hash, and its junk keyword."""

    box: Mailbox
    spot: Spot
    stamp: str
    raw: bytes
    content: str
    keyword: Label | None

    @property
    def maildir(self) -> str:
        return str(self.box.path)


class Filing:
    def __init__(
        self,
        config: Config,
        pipeline: Pipeline,
        quarantine: Quarantine,
        sightings: Sightings,
        journal: Journal,
        threads: Executor,
    ) -> None:
        self._table = config.watch
        self._memory = config.limits.memory_bytes
        self._pipeline = pipeline
        self._quarantine = quarantine
        self._sightings = sightings
        self._journal = journal
        self._threads = threads
        self._failed: Counter[tuple[str, str]] = Counter()
        self._under_way: set[tuple[str, str]] = set()

    async def judge(self, arrival: Arrival) -> None:
        """Judge a message and file it. What fails leaves it where it is, for the next rescan."""
        began = time.monotonic()
        disposition = await self._disposition(arrival)
        if disposition is None:
            return
        key = (arrival.maildir, arrival.content)
        self._under_way.add(key)
        try:
            take = asyncio.get_running_loop().run_in_executor(self._threads, self._take, arrival, disposition)
            fate = await asyncio.shield(take)
        except (OSError, Refused) as error:
            self._journal.count("watch.failed")
            self._note("error", "mail stays where it is", arrival, disposition, cause=str(error))
            return
        finally:
            self._under_way.discard(key)
        if fate is None:
            return
        self._journal.count(f"{fate}.{disposition.label}")
        spent = round((time.monotonic() - began) * 1000, 1)
        self._note("info", "message", arrival, disposition, fate=fate, total_ms=spent)
        if disposition.verdict is not None:
            self._pipeline.remember(disposition.verdict, f"{arrival.spot.folder}/{arrival.spot.unique}")

    async def _disposition(self, arrival: Arrival) -> Disposition | None:
        """What is to be done; None if there is no verdict yet."""
        beginning, rest = arrival.raw[: self._memory], arrival.raw[self._memory :]
        try:
            (disposition,) = await self._pipeline.handle(beginning, rest=(lambda: rest) if rest else None)
        except DeliveryError as error:  # on_failure = "tempfail": in a Maildir it is we who keep the mail
            disposition = Disposition(Fate.DELIVER, arrival.raw, failure=str(error))
        key = (arrival.maildir, arrival.content)
        if disposition.failure is None:
            self._failed.pop(key, None)
            return disposition
        self._failed[key] += 1
        if self._failed[key] < _ATTEMPTS:
            return None
        del self._failed[key]
        return disposition

    def _note(self, level: str, event: str, arrival: Arrival, disposition: Disposition, **more: Any) -> None:
        verdict = disposition.verdict
        said: dict[str, Any] = {"size": len(arrival.raw), "label": disposition.label}
        if verdict:
            said |= {"p": round(verdict.probability, 4), "head": verdict.head}
        if disposition.failure:
            said["failure"] = disposition.failure
        if disposition.released:
            said["released"] = disposition.released
        where = {"maildir": arrival.maildir, "folder": arrival.spot.folder, "name": arrival.spot.unique}
        self._journal.write(level, event, ingress="maildir", **where, content=arrival.content, **said, **more)

    # What follows is synchronous, and may raise OSError.

    def _take(self, arrival: Arrival, disposition: Disposition) -> str | None:
        """What has been done, in a word; None if there is nothing to do any more. On an error nothing is noted."""
        table = self._table
        try:
            if disposition.fate is Fate.QUARANTINE:
                return self._hold(arrival, disposition)
            to_junk = (disposition.junk or disposition.fate is Fate.REJECT) and bool(table.junk)
            folder = table.junk if to_junk else arrival.spot.folder
            if to_junk and not arrival.box.has(folder):
                if not table.create_junk:
                    raise NotADirectoryError(f"there is no folder {folder} in {arrival.maildir}")
                # It was taken away with all its mail: nobody has said that this is ham.
                self._sightings.dismiss_moves(arrival.maildir)
                arrival.box.create(folder)
            stamped = disposition.verdict is not None and disposition.data != headers.strip(
                arrival.raw[: self._memory]
            )
            if table.tag and arrival.spot.part == "new" and disposition.fate is Fate.DELIVER and stamped:
                return self._tag(arrival, disposition, folder)
            return self._move(arrival, disposition, folder) if to_junk else self._leave(arrival, disposition)
        except FileNotFoundError:
            # It has another name by now, or is gone; of what it has become there will be news.
            self._sightings.forget(arrival.maildir, arrival.content)
            return None
        except (OSError, Refused):
            self._sightings.forget(arrival.maildir, arrival.content)
            raise

    def _judged(self, arrival: Arrival, disposition: Disposition, state: str, target: str = "", **more: Any) -> bool:
        return self._sightings.judged(
            arrival.maildir,
            arrival.content,
            arrival.spot,
            state=state,
            side=HAM,
            stamp=arrival.stamp,
            keyword=arrival.keyword,
            verdict=disposition.verdict,
            target=target or None,
            **more,
        )

    def _leave(self, arrival: Arrival, disposition: Disposition) -> str | None:
        return "left" if self._judged(arrival, disposition, "left") else None

    def _move(self, arrival: Arrival, disposition: Disposition, folder: str) -> str | None:
        to = arrival.box.destination(arrival.spot, folder)
        if not self._judged(arrival, disposition, "moving", f"{folder}/{to.unique}", place=(to, arrival.stamp)):
            return None
        return "moved" if self._moved(arrival.box, arrival.content, arrival.spot, to) else "left"

    def _moved(self, box: Mailbox, content: str, spot: Spot, to: Spot) -> bool:
        """Carry out a move that has been noted; False if the user was quicker."""
        maildir = str(box.path)
        for _ in range(_TRIES):
            try:
                stamp = box.stamp(spot)
                box.move(spot, to)
            except FileNotFoundError:
                now = box.find(spot.folder, spot.unique)
                if now is None:
                    break
                spot, before = now, to
                to = box.destination(spot, to.folder)
                if to.unique != before.unique:
                    self._sightings.arrived(maildir, content, to, "", None)
            else:
                self._sightings.finished(maildir, content, "moved", JUNK, gone=spot, lies=(to, stamp))
                return True
        self._sightings.finished(maildir, content, "left", HAM, gone=to)
        return False

    def _tag(self, arrival: Arrival, disposition: Disposition, folder: str) -> str | None:
        box, side = arrival.box, JUNK if folder == self._table.junk else HAM
        new, stamp = box.write(disposition.data + arrival.raw[self._memory :], arrival.spot, folder)
        try:
            if not self._judged(arrival, disposition, "tagging", f"{folder}/{new.unique}", place=(new, stamp)):
                return None
            box.publish(new)
            return "tagged" if self._replaced(box, arrival.content, arrival.spot, new, stamp, side) else "left"
        finally:
            box.withdraw(new)

    def _replaced(self, box: Mailbox, content: str, old: Spot | None, new: Spot, stamp: str, side: str) -> bool:
        """Let the tagged copy stand for the message, unless somebody has seen that meanwhile."""
        maildir = str(box.path)
        if old is not None and old.part == "new":
            try:
                box.remove(old)
            except FileNotFoundError:
                old = box.find(old.folder, old.unique)
        if old is not None and old.part == "cur":
            self._removed(box, new)
            self._sightings.finished(maildir, content, "left", HAM, gone=new)
            return False
        self._sightings.finished(maildir, content, "tagged", side, gone=old, lies=(new, stamp))
        return True

    def _hold(self, arrival: Arrival, disposition: Disposition) -> str | None:
        about = arrival.box.about(arrival.spot)
        flags = arrival.spot.flags.partition(",")[0]
        source = Source(
            maildir=arrival.maildir,
            folder=arrival.spot.folder,
            name=arrival.spot.name.partition(":")[0],
            flags="".join(letter for letter in flags if letter.isascii() and letter.isalpha()),
            mtime_ns=about.st_mtime_ns,
            mode=stat.S_IMODE(about.st_mode) & 0o777,
        )
        message_id = new_id()
        staged = self._quarantine.stage(message_id, Envelope(), [arrival.raw], disposition.verdict, source)
        try:
            if not self._judged(arrival, disposition, "holding", message_id):
                return None
            staged.commit()
        finally:
            staged.discard()
        try:
            self._removed(arrival.box, arrival.spot)
            self._sightings.finished(arrival.maildir, arrival.content, "held", HAM, gone=arrival.spot)
        except OSError as error:  # It is held, and once only: finish() tries again.
            self._note("warning", "held, and not removed yet", arrival, disposition, cause=str(error))
        return "held"

    def _removed(self, box: Mailbox, spot: Spot | None) -> None:
        """Remove the file, whatever it is called by now, if it is still in its folder."""
        for _ in range(_TRIES):
            if spot is not None:
                try:
                    box.remove(spot)
                except FileNotFoundError:
                    spot = box.find(spot.folder, spot.unique)
                else:
                    return

    def _is_held(self, message_id: str) -> bool:
        try:
            self._quarantine.path(message_id)
        except QuarantineError:
            return False
        return True

    def finish(self, box: Mailbox, known: Known) -> None:
        """End what a process was at when it was killed, or what failed half way."""
        maildir, content, target = str(box.path), known.content, known.target or ""
        if (maildir, content) in self._under_way:
            return
        source = box.find(known.folder, known.base)
        if known.state == "holding":
            if self._is_held(target):
                self._removed(box, source)
                self._sightings.finished(maildir, content, "held", HAM, gone=source)
            elif source is not None:
                self._sightings.forget(maildir, content)  # It is judged once more.
            else:
                self._sightings.finished(maildir, content, "left", HAM)
            return
        folder, _, unique = target.partition("/")
        side = JUNK if folder == self._table.junk else HAM
        there = box.find(folder, unique) if box.has(folder) else None
        if there is not None and known.state == "moving":
            self._sightings.finished(maildir, content, "moved", side, gone=source, lies=(there, box.stamp(there)))
        elif there is not None:
            self._replaced(box, content, source, there, box.stamp(there), side)
        elif source is None:
            # It was moved or deleted by the user, before us or after: either way it is his.
            self._sightings.finished(maildir, content, "left", HAM)
        else:
            self._sightings.forget(maildir, content)
