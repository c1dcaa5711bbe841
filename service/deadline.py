"""One timer for a deadline that moves all the time: moving it costs an assignment, not a new timer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class Deadline:
    """Calls `passed` once the time that was set last has come. Times are those of the loop's clock, in seconds."""

    def __init__(self, loop: asyncio.AbstractEventLoop, passed: Callable[[], None]) -> None:
        self._loop = loop
        self._passed = passed
        self._due: float | None = None
        self._timer: asyncio.TimerHandle | None = None

    def set(self, due: float) -> None:
        self._due = due
        if self._timer is not None:
            if self._timer.when() <= due:
                return
            self._timer.cancel()
        self._timer = self._loop.call_at(due, self._look)

    def clear(self) -> None:
        """No deadline for now. The timer may still wake up once, and find nothing to do."""
        self._due = None

    def cancel(self) -> None:
        """No deadline ever again."""
        self._due = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        self._timer = None
        if self._due is None:
            return
        if self._loop.time() >= self._due:
            self._due = None
            self._passed()
        else:
            self._timer = self._loop.call_at(self._due, self._look)
