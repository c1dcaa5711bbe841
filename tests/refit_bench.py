"""A Refit on its own: with a batcher, labels and a log, and no daemon around it."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

from service.batcher import Batcher
from service.journal import Journal
from service.refit import Refit
from spamguard.config import BatchTable, Config, LogTable
from spamguard.config_file import Loaded
from spamguard.labels import Labels
from spamguard.verdict import Label
from tests.fakes import FakeScorer

NOON = datetime(2026, 3, 1, 12, 30)


class Bench:
    """A Refit with what it needs; the configuration can be changed while it runs."""

    def __init__(self, root: Path, config: Config, file: Path | None = None, scorer: Any = None) -> None:
        self.labels_file = config.labels_file
        self.loaded = Loaded(config, file, frozenset())
        self.batcher = Batcher(scorer or FakeScorer(), BatchTable(patience_ms=0))
        self.reloads = 0
        self.now = NOON
        self._log = io.StringIO()
        journal = Journal(LogTable(format="json"), self._log)
        self.refit = Refit(lambda: self.loaded, self.batcher, journal, self._reload, lambda: self.now)

    def _reload(self) -> None:
        self.reloads += 1

    def learning(self, **keys: object) -> None:
        config = self.loaded.config
        table = config.learning.model_copy(update=keys)
        self.loaded = replace(self.loaded, config=config.model_copy(update={"learning": table}))

    def add(self, label: Label, *mail: bytes) -> None:
        with Labels(self.labels_file) as labels:
            for raw in mail:
                labels.add(raw, label, "moved")

    def waiting(self) -> list[str]:
        with Labels(self.labels_file) as labels:
            return labels.waiting()

    def learnt(self) -> None:
        with Labels(self.labels_file) as labels:
            labels.fitted(labels.changes()[0])

    @property
    def log(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self._log.getvalue().splitlines()]

    def events(self, name: str) -> list[dict[str, Any]]:
        return [line for line in self.log if line["event"] == name]

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        await self.batcher.start()
        self.refit.start()
        try:
            yield
        finally:
            await self.refit.stop()
            await self.batcher.stop()

    async def until(self, true: Callable[[], object]) -> None:
        """The test's own time limit is the limit."""
        while not true():
            await asyncio.sleep(0.01)

    def turn(self) -> None:
        """One look at whether it is time."""
        asyncio.run(self.refit._refit_if_due())
