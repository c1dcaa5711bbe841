"""Keeps what the head saw of judged mail (spamguard/recent.py), beside the mail: it delays none, and fails none."""

from __future__ import annotations

import asyncio
import math
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from spamguard.config import Config
from spamguard.verdict import Verdict

from .journal import Journal

if TYPE_CHECKING:
    from spamguard.recent import Judged

EVERY_S, AT_ONCE = 2.0, 64  # it is written after so long, or when there are so many
MOST = 1024  # messages that wait, some 5 kB each; of more the newest are not kept
_PRUNE_S = 600.0


class Remember:
    """A task of the daemon. What cannot be written is let go, with one line in the log until it can be again."""

    def __init__(self, config: Callable[[], Config], journal: Journal) -> None:
        """`config` gives the configuration of the moment."""
        self._config = config
        self._journal = journal
        self._waiting: list[tuple[str, Judged]] = []  # with the encoder's fingerprint
        self._full = asyncio.Event()
        self._stopping = False
        self._task: asyncio.Task[None] | None = None
        self._prune_at = -math.inf
        self._complaints: dict[str, str] = {}

    def start(self) -> None:
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """Write what waits, and end the task."""
        self._stopping = True
        self._full.set()
        if self._task is not None:
            await asyncio.wait([self._task])

    def note(self, verdict: Verdict, about: str) -> None:
        """Have a verdict kept. Never raises, and takes some microseconds."""
        if verdict.seen is None or not verdict.content or not self._config().learning.keep_days:
            return
        if len(self._waiting) >= MOST:
            self._journal.count("remember.dropped")
            return
        from spamguard.recent import Judged  # numpy; not before the port is ours

        # Its arrays are views of those of the whole batch, which would stay with it.
        row = replace(verdict.seen, deep=verdict.seen.deep.copy(), structure=verdict.seen.structure.copy())
        judged = Judged(verdict.content, time.time(), verdict.probability, verdict.label, verdict.head, about, row)
        self._waiting.append((verdict.encoder, judged))
        if len(self._waiting) >= AT_ONCE:
            self._full.set()

    async def _run(self) -> None:
        while not self._stopping:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._full.wait(), EVERY_S)
            self._full.clear()
            await self._turn()
        await self._turn()

    async def _turn(self) -> None:
        """Write what waits, and let go now and again what is too old."""
        waiting, self._waiting = self._waiting, []
        if waiting and not await self._in_thread(partial(self._write, waiting), "judged mail is not remembered"):
            self._journal.counters["remember.failed"] += len(waiting)
        if time.monotonic() > self._prune_at:
            self._prune_at = time.monotonic() + _PRUNE_S
            await self._in_thread(self._prune, "judged mail is remembered for too long")

    async def _in_thread(self, step: Callable[[], None], event: str) -> bool:
        """Whether the step succeeded. The log hears of a failure once, not every two seconds."""
        try:
            await asyncio.to_thread(step)
        except Exception as error:  # whatever it is, it must not end the task
            cause = str(error) or repr(error)
            if self._complaints.get(event) != cause:
                self._complaints[event] = cause
                self._journal.write("warning", event, cause=cause)
            return False
        self._complaints.pop(event, None)
        return True

    def _write(self, waiting: Sequence[tuple[str, Judged]]) -> None:
        from spamguard.recent import Recent

        by_encoder: defaultdict[str, list[Judged]] = defaultdict(list)
        for encoder, judged in waiting:
            by_encoder[encoder].append(judged)
        for encoder, rows in by_encoder.items():
            with Recent(self._config().features_dir, encoder) as recent:
                recent.add(rows)

    def _prune(self) -> None:
        from spamguard.recent import prune_everywhere

        config = self._config()
        prune_everywhere(config.features_dir, config.learning.keep_days, config.learning.keep_messages)
