"""Batches: order, budget, deadline, overload, swap, cancelling, stopping."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from service.batcher import Batcher
from spamguard.config import BatchTable
from spamguard.errors import ScoringError
from spamguard.verdict import Label
from tests.fakes import FakePrepared, FakeScorer


@asynccontextmanager
async def running(scorer: FakeScorer, **keys: float) -> AsyncIterator[Batcher]:
    batcher = Batcher(scorer, BatchTable(**{"patience_ms": 0, **keys}))
    await batcher.start()
    try:
        yield batcher
    finally:
        scorer.gate.set()
        await batcher.stop()


def mail(number: int, tokens: int = 10, more: str = "") -> bytes:
    return f"X-Number: {number}\nX-Tokens: {tokens}\n{more}\n".encode()


async def until(condition) -> None:
    """Give the loop turns until something holds; the test's own time limit is the limit."""
    while not condition():
        await asyncio.sleep(0.001)


async def held(batcher: Batcher, scorer: FakeScorer) -> asyncio.Task:
    """Occupy the worker with one message, so that what comes next has to wait."""
    scorer.gate.clear()
    scorer.entered.clear()
    first = asyncio.create_task(batcher.score(mail(0)))
    await asyncio.to_thread(scorer.entered.wait)
    return first


async def waiting(batcher: Batcher, *raws: bytes) -> list[asyncio.Task]:
    tasks = []
    for raw in raws:
        tasks.append(asyncio.create_task(batcher.score(raw)))
        before = len(batcher._waiting)
        await until(lambda before=before: len(batcher._waiting) > before)
    return tasks


def test_each_message_gets_its_own_verdict():
    async def main() -> None:
        scorer = FakeScorer()
        async with running(scorer) as batcher:
            verdicts = await asyncio.gather(
                *(batcher.score(text) for text in (b"viagra", b"hi", b"maybe", b"viagra"))
            )
            assert [one.label for one in verdicts] == [Label.SPAM, Label.HAM, Label.UNSURE, Label.SPAM]

    asyncio.run(main())


def test_what_waits_is_batched_in_order_within_the_padded_budget_in_one_thread():
    async def main() -> None:
        scorer = FakeScorer()
        async with running(scorer, max_tokens=300) as batcher:
            first = await held(batcher, scorer)
            sizes = [100, 100, 100, 90, 200, 10, 400, 10]
            mails = [mail(number, tokens) for number, tokens in enumerate(sizes, 1)]
            tasks = await waiting(batcher, *mails)
            scorer.gate.set()
            await asyncio.gather(first, *tasks)
        rows = [[mails.index(raw) + 1 for raw in batch] for batch in scorer.batches[1:]]
        # 3 x 100; then 90 with 200 would be 2 x 200; 400 is over the budget but goes alone.
        assert rows == [[1, 2, 3], [4], [5], [6], [7], [8]]
        assert len(scorer.threads) == 1
        assert threading.get_ident() not in scorer.threads

    asyncio.run(main())


def test_patience_waits_for_company_but_not_when_the_batch_is_full():
    async def main() -> None:
        scorer = FakeScorer()
        async with running(scorer, patience_ms=3_600_000, max_tokens=256, deadline_s=3600) as batcher:
            await asyncio.gather(*(batcher.score(mail(n, 64)) for n in range(4)))
            assert [len(batch) for batch in scorer.batches] == [4]

    asyncio.run(main())


def test_overload_fails_at_once():
    async def main() -> None:
        scorer = FakeScorer()
        async with running(scorer, queue=2) as batcher:
            first = await held(batcher, scorer)
            tasks = await waiting(batcher, mail(1))
            with pytest.raises(ScoringError, match=r"^overload"):
                await batcher.score(mail(2))
            scorer.gate.set()
            await asyncio.gather(first, *tasks)
            assert (await batcher.score(b"viagra")).label is Label.SPAM

    asyncio.run(main())


def test_deadline_counts_from_arrival_and_frees_the_place():
    async def main() -> None:
        scorer = FakeScorer()
        async with running(scorer, deadline_s=0.05, queue=2) as batcher:
            first = await held(batcher, scorer)
            with pytest.raises(ScoringError, match=r"^deadline"):
                await batcher.score(mail(1))
            with pytest.raises(ScoringError, match=r"^deadline"):
                await first
            assert batcher.open == 0
            scorer.gate.set()
            assert (await batcher.score(b"viagra")).label is Label.SPAM
        assert [mail(1)] not in scorer.batches, "what is late is not scored any more"

    asyncio.run(main())


def test_after_a_swap_each_message_is_judged_by_the_scorer_that_prepared_it():
    async def main() -> None:
        old, new = FakeScorer("old"), FakeScorer("new")
        async with running(old) as batcher:
            first = await held(batcher, old)
            before = await waiting(batcher, mail(1))
            batcher.scorer = new
            after = await waiting(batcher, mail(2), mail(3))
            old.gate.set()
            assert [(await task).head for task in (first, *before, *after)] == ["old", "old", "new", "new"]
        assert len(new.batches) == 1

    asyncio.run(main())


def test_a_caller_that_left_is_not_scored():
    async def main() -> None:
        scorer = FakeScorer()
        async with running(scorer) as batcher:
            first = await held(batcher, scorer)
            gone, stays = await waiting(batcher, mail(1), mail(2))
            gone.cancel()
            await asyncio.wait([gone])
            scorer.gate.set()
            await asyncio.gather(first, stays)
        assert scorer.batches == [[mail(0)], [mail(2)]]

    asyncio.run(main())


def test_stopping_answers_what_waits_and_refuses_what_comes():
    async def main() -> None:
        scorer = FakeScorer()
        batcher = Batcher(scorer, BatchTable(patience_ms=0))
        await batcher.start()
        first = await held(batcher, scorer)
        tasks = await waiting(batcher, b"viagra")
        stopping = asyncio.create_task(batcher.stop())
        await asyncio.sleep(0)
        with pytest.raises(ScoringError, match=r"^stopping"):
            await batcher.score(b"late")
        scorer.gate.set()
        await stopping
        assert (await tasks[0]).label is Label.SPAM
        await first

    asyncio.run(main())


def test_many_at_once_are_each_answered_once():
    async def main() -> None:
        scorer = FakeScorer()
        async with running(scorer, patience_ms=1, max_tokens=300) as batcher:
            texts = [(b"viagra", Label.SPAM), (b"hi", Label.HAM), (b"maybe", Label.UNSURE)] * 300
            verdicts = await asyncio.gather(*(batcher.score(text) for text, _ in texts))
            assert [one.label for one in verdicts] == [label for _, label in texts]
            assert batcher.open == 0 and not batcher._waiting
        assert sum(map(len, scorer.batches)) == 900
        assert len(scorer.batches) < 200, "they go in company"

    asyncio.run(main())


def test_no_more_large_messages_are_in_memory_than_there_are_preparing_threads():
    live, most, lock = 0, 0, threading.Lock()

    def rest() -> bytes:
        nonlocal live, most
        with lock:
            live += 1
            most = max(most, live)
        return b"large"

    class Slow(FakeScorer):
        def prepare(self, raw: bytes) -> FakePrepared:
            nonlocal live
            assert raw == b"beginning, large"
            time.sleep(0.003)
            with lock:
                live -= 1
            return super().prepare(raw)

    async def main() -> None:
        async with running(Slow()) as batcher:
            await asyncio.gather(*(batcher.score(b"beginning, ", rest) for _ in range(20)))

    asyncio.run(main())
    assert (live, most) == (0, 2)
