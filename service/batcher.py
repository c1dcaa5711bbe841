"""Groups messages into batches for the encoder: bounded queue, token budget, one worker thread, a deadline each."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from spamguard.config import BatchTable
from spamguard.errors import ScoringError
from spamguard.headers import printable
from spamguard.verdict import Verdict

WARM_UP = b"From: warm-up@localhost\r\nSubject: warm-up\r\n\r\nOne message, so that the first one is quick.\r\n"


class Prepared(Protocol):
    @property
    def tokens(self) -> int: ...


P = TypeVar("P", bound=Prepared)


class Scorer(Protocol[P]):
    """What the batcher needs of a scorer. `score` is called from one thread only, `prepare` from several."""

    def prepare(self, raw: bytes) -> P: ...

    def score(self, batch: Sequence[P]) -> list[Verdict]: ...


@dataclass(slots=True)
class _Item:
    """A message that waits. It keeps the scorer that prepared it: another encoder's or head's input differs."""

    scorer: Scorer[Any]
    prepared: Any
    arrived: float
    answer: asyncio.Future[Verdict]


class Batcher:
    """`scorer` may be replaced at any time; what is prepared from then on is judged by the new one."""

    def __init__(self, scorer: Scorer[Any], table: BatchTable) -> None:
        self.scorer = scorer
        self.table = table
        self.open = 0
        self._longest = 0
        self._waiting: deque[_Item] = deque()
        self._arrived = asyncio.Event()
        self._full = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._preparers = ThreadPoolExecutor(2, "prepare")
        self._worker = ThreadPoolExecutor(1, "score")
        self._collector: asyncio.Task[None] | None = None
        self._stopped = False

    async def start(self) -> None:
        self._collector = asyncio.create_task(self._collect(), name="batcher")

    async def warm_up(self, scorer: Scorer[Any]) -> None:
        """Score one message in the worker thread. Raises ScoringError if the scorer does not work."""
        loop = asyncio.get_running_loop()
        prepared = await loop.run_in_executor(self._preparers, scorer.prepare, WARM_UP)
        answer = (await loop.run_in_executor(self._worker, _judge, scorer, [prepared]))[0]
        if isinstance(answer, ScoringError):
            raise answer

    async def score(self, raw: bytes, rest: Callable[[], bytes] | None = None) -> Verdict:
        """Judge `raw` and what `rest` reads to follow it, in a preparing thread.

        Raises ScoringError, whose text begins with `overload`, `deadline`, `stopping` or `fault`.
        """
        if self._stopped:
            raise ScoringError("stopping")
        if self.open >= self.table.queue:
            raise ScoringError(f"overload: {self.open} messages are waiting")
        self.open += 1
        self._idle.clear()
        try:
            async with asyncio.timeout(self.table.deadline_s):
                return await self._score(raw, rest)
        except TimeoutError as error:
            raise ScoringError(f"deadline: no verdict within {self.table.deadline_s:g} s") from error
        finally:
            self.open -= 1
            if not self.open:
                self._idle.set()

    async def _score(self, raw: bytes, rest: Callable[[], bytes] | None) -> Verdict:
        loop = asyncio.get_running_loop()
        scorer = self.scorer
        try:
            prepared = await loop.run_in_executor(self._preparers, _prepare, scorer, raw, rest)
        except Exception as error:
            raise _as_scoring_error(error) from error
        item = _Item(scorer, prepared, loop.time(), loop.create_future())
        self._waiting.append(item)
        self._arrived.set()
        self._longest = max(self._longest, prepared.tokens)
        if self._longest * len(self._waiting) >= self.table.max_tokens:
            self._full.set()
        return await item.answer

    async def stop(self) -> None:
        """Answer what is waiting, then end the threads."""
        self._stopped = True
        await self._idle.wait()
        if self._collector is not None:
            self._collector.cancel()
            await asyncio.wait([self._collector])
        self._preparers.shutdown(wait=False)
        self._worker.shutdown(wait=False)

    async def _collect(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._arrived.wait()
            await self._patience(loop)
            batch = self._take()
            if not self._waiting:
                self._longest = 0
                self._arrived.clear()
            self._full.clear()
            if not batch:
                continue
            answers = await loop.run_in_executor(
                self._worker, _judge, batch[0].scorer, [item.prepared for item in batch]
            )
            for item, answer in zip(batch, answers, strict=True):
                if item.answer.done():
                    continue
                if isinstance(answer, ScoringError):
                    item.answer.set_exception(answer)
                else:
                    item.answer.set_result(answer)

    async def _patience(self, loop: asyncio.AbstractEventLoop) -> None:
        """Wait for company. What arrived while the worker was busy has waited already."""
        left = self._waiting[0].arrived + self.table.patience_ms / 1000 - loop.time()
        if left > 0:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(left):
                    await self._full.wait()

    def _take(self) -> list[_Item]:
        """The longest row of waiting items that fits the budget, in order of arrival, all of one scorer."""
        batch: list[_Item] = []
        longest = 0
        while self._waiting:
            item = self._waiting[0]
            if item.answer.done():
                self._waiting.popleft()
                continue
            longest = max(longest, item.prepared.tokens)
            if batch and (item.scorer is not batch[0].scorer or longest * (len(batch) + 1) > self.table.max_tokens):
                break
            batch.append(self._waiting.popleft())
        return batch


def _prepare(scorer: Scorer[Any], raw: bytes, rest: Callable[[], bytes] | None) -> Any:
    return scorer.prepare(raw if rest is None else raw + rest())


def _judge(scorer: Scorer[Any], batch: list[Any]) -> list[Verdict | ScoringError]:
    """Score a batch; if that fails, each message alone, so that a poisonous one does not fail its company."""
    try:
        verdicts = scorer.score(batch)
        if len(verdicts) != len(batch):
            raise ScoringError(f"{len(verdicts)} verdicts for {len(batch)} messages")
        return [_checked(verdict) for verdict in verdicts]
    except Exception as error:
        if len(batch) == 1:
            return [_as_scoring_error(error)]
        return [answer for one in batch for answer in _judge(scorer, [one])]


def _checked(verdict: Verdict) -> Verdict | ScoringError:
    p = verdict.probability
    return verdict if math.isfinite(p) and 0 <= p <= 1 else ScoringError(f"fault: the probability is {p}")


def _as_scoring_error(error: Exception) -> ScoringError:
    name = "" if isinstance(error, ScoringError) else f"{type(error).__name__}: "
    return ScoringError(f"fault: {name}{printable(str(error), 300)}")
