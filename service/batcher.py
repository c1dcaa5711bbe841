"""Groups messages into batches for the encoder: bounded queue, token budget, one scoring thread, a deadline each."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from spamguard.config import BatchTable
from spamguard.errors import ScoringError
from spamguard.headers import printable
from spamguard.verdict import Verdict

from .worker import Workers

WARM_UP = b"From: warm-up@localhost\r\nSubject: warm-up\r\n\r\nOne message, so that the first one is quick.\r\n"

_log = logging.getLogger(__name__)


class Prepared(Protocol):
    """What becomes of a message for the encoder. It must not keep the message: as many as `batch.queue` may wait."""

    @property
    def tokens(self) -> int: ...


P = TypeVar("P", bound=Prepared)


class Scorer(Protocol[P]):
    """What the batcher needs of a scorer. `score` is called from one thread only, `prepare` from several."""

    def prepare(self, raw: bytes) -> P: ...

    def score(self, batch: Sequence[P]) -> list[Verdict]: ...


@dataclass(slots=True, eq=False)
class _Item:
    """A message that waits. It keeps the scorer that prepares it: another encoder's or head's input differs."""

    scorer: Scorer[Any]
    raw: bytes
    rest: Callable[[], bytes] | None
    answer: asyncio.Future[Verdict]
    prepared: Any = None
    tokens: int = 0
    ready: float = 0.0


@dataclass(slots=True, eq=False)
class _Batch:
    items: list[_Item]
    answers: list[Verdict | ScoringError] = field(default_factory=list)


class Batcher:
    """`scorer` may be replaced at any time; what comes from then on is judged by the new one."""

    def __init__(self, scorer: Scorer[Any], table: BatchTable) -> None:
        self.scorer = scorer
        self.table = table
        self.open = 0
        self._longest = 0
        self._waiting: dict[_Item, None] = {}
        self._patience: asyncio.TimerHandle | None = None
        self._scoring = False
        self._hanging = False
        self._stopped = False
        self._idle = asyncio.Event()
        self._idle.set()
        self._preparers: Workers[_Item] = Workers("prepare", 2, _prepare, self._prepared)
        self._worker: Workers[_Batch] = Workers("score", 1, _judge, self._judged)
        self._loop: asyncio.AbstractEventLoop

    async def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._preparers.start()
        self._worker.start()

    async def warm_up(self, scorer: Scorer[Any]) -> None:
        """Score one message by this scorer. Raises ScoringError if it does not work."""
        item = _Item(scorer, WARM_UP, None, self._loop.create_future())
        self._preparers.put(item)
        try:
            async with asyncio.timeout(self.table.hang_s):
                await item.answer
        except TimeoutError as error:
            raise ScoringError("fault: the scorer hangs") from error
        finally:
            self._forget(item)

    async def score(self, raw: bytes, rest: Callable[[], bytes] | None = None) -> Verdict:
        """Judge `raw` and what `rest` reads to follow it, in a preparing thread.

        Raises ScoringError, whose text begins with `overload`, `deadline`, `stopping` or `fault`.
        """
        if self._stopped:
            raise ScoringError("stopping")
        if self.open >= self.table.queue:
            raise ScoringError(f"overload: {self.open} messages are waiting")
        if self._hangs():
            raise ScoringError("fault: the scorer hangs")
        item = _Item(self.scorer, raw, rest, self._loop.create_future())
        why = f"deadline: no verdict within {self.table.deadline_s:g} s"
        late = self._loop.call_later(self.table.deadline_s, _fail, item, why)
        self.open += 1
        self._idle.clear()
        self._preparers.put(item)
        try:
            return await item.answer
        finally:
            late.cancel()
            self._forget(item)
            self.open -= 1
            if not self.open:
                self._idle.set()

    async def stop(self) -> None:
        """Answer what is waiting, by a deadline at the latest, then end the threads."""
        self._stopped = True
        await self._idle.wait()
        if self._patience is not None:
            self._patience.cancel()
        self._preparers.stop()
        self._worker.stop()

    def _forget(self, item: _Item) -> None:
        """While a thread hangs, what is over must not pile up in the queues."""
        self._waiting.pop(item, None)
        item.raw, item.rest, item.prepared = b"", None, None

    def _hangs(self) -> bool:
        seconds = max(self._preparers.hung_for(), self._worker.hung_for())
        hangs = seconds > self.table.hang_s
        if hangs is not self._hanging:
            self._hanging = hangs
            if hangs:
                _log.error("the scorer hangs: a call has not returned for %.0f s; nothing is scored", seconds)
            else:
                _log.warning("the scorer answers again")
        return hangs

    def _prepared(self, finished: list[tuple[_Item, BaseException | None]]) -> None:
        now = self._loop.time()
        for item, error in finished:
            if error is not None:
                _fail(item, str(_as_scoring_error(error)))
            elif not item.answer.done():
                item.ready = now
                self._waiting[item] = None
                self._longest = max(self._longest, item.tokens)
        self._consider()

    def _consider(self) -> None:
        """Give the worker a batch, if it is free, and the batch is full or has waited long enough for company.

        What came while the worker was busy has waited already.
        """
        if self._scoring or not self._waiting:
            return
        left = next(iter(self._waiting)).ready + self.table.patience_ms / 1000 - self._loop.time()
        if left > 0 and self._longest * len(self._waiting) < self.table.max_tokens:
            if self._patience is None:
                self._patience = self._loop.call_later(left, self._out_of_patience)
            return
        if batch := self._take():
            self._scoring = True
            self._worker.put(_Batch(batch))

    def _out_of_patience(self) -> None:
        self._patience = None
        self._consider()

    def _take(self) -> list[_Item]:
        """The longest row of waiting items that fits the budget, in order of arrival, all of one scorer."""
        batch: list[_Item] = []
        longest = 0
        for item in self._waiting:
            if item.answer.done():
                continue
            longest = max(longest, item.tokens)
            if batch and (item.scorer is not batch[0].scorer or longest * (len(batch) + 1) > self.table.max_tokens):
                break
            batch.append(item)
        for item in batch:
            del self._waiting[item]
        if not self._waiting:
            self._longest = 0
        return batch

    def _judged(self, finished: list[tuple[_Batch, BaseException | None]]) -> None:
        for batch, error in finished:
            self._scoring = False
            answers = batch.answers if error is None else [_as_scoring_error(error)] * len(batch.items)
            for item, answer in zip(batch.items, answers, strict=True):
                if isinstance(answer, ScoringError):
                    _fail(item, str(answer))
                elif not item.answer.done():
                    item.answer.set_result(answer)
        self._consider()


def _fail(item: _Item, why: str) -> None:
    if not item.answer.done():
        item.answer.set_exception(ScoringError(why))


def _prepare(item: _Item) -> None:
    """In a preparing thread, one message after the other: so many large ones are in memory as there are threads."""
    raw, rest = item.raw, item.rest
    if item.answer.done():
        return
    prepared = item.scorer.prepare(raw if rest is None else raw + rest())
    item.tokens = int(prepared.tokens)
    item.prepared = prepared
    item.raw, item.rest = b"", None


def _judge(batch: _Batch) -> None:
    batch.answers = _answers(batch.items[0].scorer, batch.items)


def _answers(scorer: Scorer[Any], items: list[_Item]) -> list[Verdict | ScoringError]:
    """Score a batch; if that fails, each message alone, so that a poisonous one does not fail its company."""
    try:
        verdicts = scorer.score([item.prepared for item in items])
        if len(verdicts) != len(items):
            raise ScoringError(f"{len(verdicts)} verdicts for {len(items)} messages")
        return [_checked(verdict) for verdict in verdicts]
    except BaseException as error:
        if len(items) == 1:
            return [_as_scoring_error(error)]
        return [answer for item in items for answer in _answers(scorer, [item])]


def _checked(verdict: Verdict) -> Verdict | ScoringError:
    if not isinstance(verdict, Verdict):
        return ScoringError(f"fault: a {type(verdict).__name__} in place of a verdict")
    p = verdict.probability
    return verdict if math.isfinite(p) and 0 <= p <= 1 else ScoringError(f"fault: the probability is {p}")


def _as_scoring_error(error: BaseException) -> ScoringError:
    name = "" if isinstance(error, ScoringError) else f"{type(error).__name__}: "
    return ScoringError(f"fault: {name}{printable(str(error), 300)}")
