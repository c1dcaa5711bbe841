"""What the user said becomes a head: encodes the mail that waits for it, and starts a retrain when it is time."""

from __future__ import annotations

import asyncio
import os
import sys
from asyncio.subprocess import DEVNULL, PIPE, STDOUT, Process
from collections.abc import Callable
from contextlib import suppress
from datetime import date, datetime
from typing import TYPE_CHECKING

from spamguard.config_file import Loaded
from spamguard.errors import REFUSED, ScoringError
from spamguard.labels import Labels

from .batcher import Batcher
from .journal import Journal

if TYPE_CHECKING:
    from spamguard.head import Row

EVERY_S = 5.0
_LONGEST_S = 3600.0
_NICE = 10
# Of what a retrain writes; the figures and the reason of a failure stand at its end.
_OUTPUT = 8192
_LINES = 20
# systemd takes what comes over these for the daemon's own word.
_NOT_INHERITED = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")


class Refit:
    """A task of the daemon. The fit is a process of its own, so that it shares neither memory nor time with mail."""

    def __init__(
        self,
        loaded: Callable[[], Loaded],
        batcher: Batcher,
        journal: Journal,
        reload: Callable[[], object],
        clock: Callable[[], datetime] = datetime.now,
    ) -> None:
        """`loaded` gives the configuration of the moment; `reload` is called when a new head lies ready."""
        config = loaded().config
        self._labels_file, self._features_dir = config.labels_file, config.features_dir
        self._loaded = loaded
        self._batcher = batcher
        self._journal = journal
        self._reload = reload
        self._clock = clock
        self._task: asyncio.Task[None] | None = None
        self._complaint = ""
        self._unscorable: set[str] = set()
        self._suggested_after = -1  # changes that had been learnt when it was said that it is time
        self._tried_at = -1  # changes in all when a retrain was started last
        self._day: date | None = None  # when it was time because of the hour

    def start(self) -> None:
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """End the task, and with it the retrain that it may have started."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(EVERY_S)
            try:
                await self._turn()
                self._complaint = ""
            except Exception as error:  # whatever it is, it must not end the task, nor be said every few seconds
                if str(error) != self._complaint:
                    self._complaint = str(error)
                    self._journal.write("error", "labels wait", cause=self._complaint)

    async def _turn(self) -> None:
        """One look at the labels."""
        if await asyncio.to_thread(self._labels_file.exists):
            await self._encode_waiting()
            await self._refit_if_due()

    async def _encode_waiting(self) -> None:
        """One after the other, among the mail that comes in. Raises ScoringError, LabelsError, FeatureStoreError."""
        for content in await asyncio.to_thread(self._waiting):
            raw = None if content in self._unscorable else await asyncio.to_thread(self._raw, content)
            if raw is None:
                continue
            try:
                verdict = await self._batcher.score(raw)
            except ScoringError as error:
                if str(error).startswith("fault"):
                    self._unscorable.add(content)  # the others first, as it may be due to this message
                raise
            if verdict.seen is None:
                self._unscorable.add(content)  # by a scorer that does not tell; a retrain asks its own
                continue
            self._unscorable.clear()
            await asyncio.to_thread(self._keep, content, verdict.encoder, verdict.seen)

    async def _refit_if_due(self) -> None:
        changes, news = await asyncio.to_thread(self._changes)
        table, now = self._loaded().config.learning, self._clock()
        its_hour = now.hour == table.hour and now.date() != self._day
        if table.refit == "off" or not (news >= table.after or (news and its_hour)):
            return
        if table.refit == "suggest":
            if self._suggested_after != changes - news:
                self._suggested_after = changes - news
                self._journal.write("info", "time to retrain", new_labels=news, command="spamguard retrain")
        elif self._tried_at != changes:  # what failed fails again until there are more labels
            self._tried_at = changes
            if its_hour:
                self._day = now.date()
            await self._retrain(news)

    async def _retrain(self, news: int) -> None:
        self._journal.write("info", "refit", new_labels=news)
        code, lines = await self._call_retrain()
        if code == REFUSED:
            self._journal.write("warning", "refit refused", cause=lines[-1] if lines else "by the gate")
            return
        if code != 0:
            self._journal.write("warning", "no refit", cause=lines[-1] if lines else f"exit status {code}")
            return
        for line in lines[-_LINES:]:
            self._journal.write("info", "refit", text=line)
        self._reload()

    async def _call_retrain(self) -> tuple[int, list[str]]:
        """Exit status, and the last lines that were written. Raises OSError if it cannot be started."""
        file = self._loaded().file
        # -P: what lies in the current folder is not to be run.
        command = [sys.executable, "-P", "-m", "spamguard", *(["--config", str(file)] if file else []), "retrain"]
        environment = {name: value for name, value in os.environ.items() if name not in _NOT_INHERITED}
        process = await asyncio.create_subprocess_exec(
            *command, stdin=DEVNULL, stdout=PIPE, stderr=STDOUT, env=environment, start_new_session=True
        )
        try:
            with suppress(OSError):  # a sandbox may forbid it, or the process may be over
                os.setpriority(os.PRIO_PROCESS, process.pid, min(19, os.nice(0) + _NICE))
            async with asyncio.timeout(_LONGEST_S):
                written = await _last_bytes(process)
                code = await process.wait()
        except TimeoutError:
            return -1, [f"a retrain took more than {_LONGEST_S:.0f} s and was ended"]
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        return code, [line for line in written.decode(errors="backslashreplace").splitlines() if line.strip()]

    def _waiting(self) -> list[str]:
        with Labels(self._labels_file) as labels:
            return labels.waiting()

    def _raw(self, content: str) -> bytes | None:
        with Labels(self._labels_file) as labels:
            return labels.raw(content)

    def _changes(self) -> tuple[int, int]:
        with Labels(self._labels_file) as labels:
            return labels.changes()

    def _keep(self, content: str, encoder: str, row: Row) -> None:
        """Keep what the head saw in place of the message."""
        from spamguard.featurestore import FeatureStore  # numpy; not before the port is ours

        with FeatureStore(self._features_dir, encoder) as store, Labels(self._labels_file) as labels:
            store.put([(content, row)])
            if forgotten := labels.encoded([content]):
                store.remove(forgotten)


async def _last_bytes(process: Process) -> bytes:
    assert process.stdout is not None
    written = b""
    while chunk := await process.stdout.read(_OUTPUT):
        written = (written + chunk)[-_OUTPUT:]
    return written
