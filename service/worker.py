"""Daemon threads that work through a queue for the loop: they survive whatever they call, and hold up no exit."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Generic, TypeVar

T = TypeVar("T")

# What is done is told to the loop together, as waking it costs more than most of the work; but nothing waits
# longer for that than this.
_TOGETHER = 16
_GATHER_S = 0.002


class ThreadEnded(Exception):
    """The thread has gone with what it was to do."""


@dataclass(slots=True)
class _Slot:
    """When the call began in which a thread is."""

    since: float | None = None


class Workers(Generic[T]):
    """`work` is called in one of the threads for each item, and `done` in the loop, with what `work` raised.

    The threads take items one by one, each when it is free, in order of arrival. Each item that was put comes to
    `done` once, even if its thread dies; a dead thread is replaced.
    """

    def __init__(
        self,
        name: str,
        threads: int,
        work: Callable[[T], None],
        done: Callable[[list[tuple[T, BaseException | None]]], None],
    ) -> None:
        self._name = name
        self._work = work
        self._done = done
        self._queue: SimpleQueue[T | None] = SimpleQueue()
        self._pending: dict[T, None] = {}
        self._slots = [_Slot() for _ in range(threads)]
        self._stopped = False
        self._loop: asyncio.AbstractEventLoop

    def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        for slot in self._slots:
            self._start_thread(slot)

    def put(self, item: T) -> None:
        self._pending[item] = None
        self._queue.put(item)

    def hung_for(self) -> float:
        """How long all threads have been in one call each, in seconds; 0 while one is free."""
        now = time.monotonic()
        return min(0.0 if (since := slot.since) is None else now - since for slot in self._slots)

    def stop(self) -> None:
        """End the threads when they return; one that hangs is left to the end of the process."""
        self._stopped = True
        for _ in self._slots:
            self._queue.put(None)

    def _start_thread(self, slot: _Slot) -> None:
        threading.Thread(target=self._run, args=(slot,), name=self._name, daemon=True).start()

    def _run(self, slot: _Slot) -> None:
        try:
            while (item := self._queue.get()) is not None:
                self._tell(self._finished, self._gather(item, slot))
                del item  # it may be the last for hours
        finally:
            self._tell(self._ended, slot)

    def _gather(self, first: T, slot: _Slot) -> list[tuple[T, BaseException | None]]:
        finished: list[tuple[T, BaseException | None]] = []
        began = now = time.monotonic()
        item: T | None = first
        while item is not None:
            slot.since = now
            finished.append((item, self._try(item)))
            now = time.monotonic()
            item = self._another() if len(finished) < _TOGETHER and now < began + _GATHER_S else None
        slot.since = None
        return finished

    def _try(self, item: T) -> BaseException | None:
        try:
            self._work(item)
        except BaseException as error:
            return error
        return None

    def _another(self) -> T | None:
        """What waits already."""
        try:
            item = self._queue.get_nowait()
        except Empty:
            return None
        if item is None:
            self._queue.put(None)
        return item

    def _tell(self, callback: Callable[..., None], argument: object) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed, nobody listens
            self._loop.call_soon_threadsafe(callback, argument)

    def _finished(self, finished: list[tuple[T, BaseException | None]]) -> None:
        ours = [(item, error) for item, error in finished if item in self._pending]
        for item, _ in ours:
            del self._pending[item]
        self._done(ours)

    def _ended(self, slot: _Slot) -> None:
        if self._stopped:
            return
        # What it held cannot be told from what waits; to fail a few too many is better than to let one wait for ever.
        lost, self._pending = list(self._pending), {}
        slot.since = None
        self._done([(item, ThreadEnded(f"a thread of {self._name} has ended")) for item in lost])
        self._start_thread(slot)
