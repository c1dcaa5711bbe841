"""Batches: order, budget, deadline, overload, swap, cancelling, stopping; and whatever a scorer does (row 17)."""

from __future__ import annotations

import asyncio
import ctypes
import logging
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest

from service.batcher import Batcher
from spamguard.config import BatchTable
from spamguard.errors import ScoringError
from spamguard.verdict import Label
from tests.fakes import FakePrepared, FakeScorer, verdict


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


# --- Row 17: classifier faults --------------------------------------------------------------------------------------


@pytest.mark.parametrize("poison", ["X-Fake: raise\n", "X-Fake: nan\n", "X-Fake: unpreparable\n"])
def test_row_17_a_poisonous_message_fails_alone(poison):
    async def main() -> None:
        scorer = FakeScorer()
        async with running(scorer) as batcher:
            first = await held(batcher, scorer)
            good = await waiting(batcher, mail(1), mail(2, more="viagra\n"))
            bad = asyncio.create_task(batcher.score(mail(3, more=poison)))
            if "unpreparable" not in poison:
                await until(lambda: len(batcher._waiting) == 3)
            scorer.gate.set()
            await first
            assert [(await task).label for task in good] == [Label.HAM, Label.SPAM]
            with pytest.raises(ScoringError, match=r"^fault") as caught:
                await bad
            assert "\n" not in str(caught.value)

    asyncio.run(main())


def test_row_17_a_scorer_that_answers_too_little_is_a_fault():
    class Short(FakeScorer):
        def score(self, batch):
            return []

    async def main() -> None:
        async with running(Short()) as batcher:
            with pytest.raises(ScoringError, match="0 verdicts for 1"):
                await batcher.score(b"x")
            with pytest.raises(ScoringError, match="0 verdicts for 1"):
                await batcher.warm_up(batcher.scorer)

    asyncio.run(main())


class Evil(FakeScorer):
    """Does what it is told, once for each `X-Fake: evil`."""

    def __init__(self, where: str, act) -> None:
        super().__init__()
        self.where, self.act = where, act

    def prepare(self, raw):
        if self.where == "prepare" and b"evil" in raw:
            return self.act()
        return super().prepare(raw)

    def score(self, batch):
        if self.where == "score" and any(b"evil" in one.raw for one in batch):
            return self.act()
        return super().score(batch)


def raising(error: BaseException):
    def act():
        raise error

    return act


EVIL = [raising(e) for e in (SystemExit(1), KeyboardInterrupt(), MemoryError(), GeneratorExit(), RecursionError())]
GARBAGE = [None, [], [None], ["x"], 5, iter([verdict(0.1)]), [verdict(0.1)] * 2, [verdict(7.0)], [verdict(-0.1)]]
GARBAGE.append([SimpleNamespace(probability=0.1)])


@pytest.mark.parametrize(
    ("where", "act"),
    [
        *((where, act) for where in ("prepare", "score") for act in EVIL),
        *(("score", lambda value=value: value) for value in GARBAGE),
        *(("prepare", lambda value=value: value) for value in (None, FakePrepared(b"", "many", "head-1", 0.5))),
    ],
)
def test_row_17_whatever_a_scorer_raises_or_returns_fails_one_message(where, act):
    async def main() -> None:
        scorer = Evil(where, act)
        async with running(scorer) as batcher:
            first = await held(batcher, scorer)
            good = await waiting(batcher, mail(1), mail(2, more="viagra\n"))
            bad = asyncio.create_task(batcher.score(mail(3, more="evil\n")))
            await asyncio.sleep(0.01)
            scorer.gate.set()
            await first
            with pytest.raises(ScoringError, match=r"^fault: ") as caught:
                await bad
            assert "\n" not in str(caught.value)
            assert [(await task).label for task in good] == [Label.HAM, Label.SPAM]
            assert (await batcher.score(b"viagra")).label is Label.SPAM
            with pytest.raises(ScoringError):
                await batcher.score(b"evil")
            assert (await batcher.score(b"maybe")).label is Label.UNSURE

    asyncio.run(main())


def end_thread(ident: int) -> None:
    """Raise SystemExit in a thread, wherever it is; where it waits for a lock, when that is given to it."""
    assert ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(ident), ctypes.py_object(SystemExit)) == 1


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("name", ["score", "prepare"])
def test_row_17_a_thread_that_ends_is_replaced(name):
    async def main() -> None:
        before = set(threading.enumerate())
        async with running(FakeScorer(), deadline_s=3600) as batcher:
            ours = [t for t in threading.enumerate() if t.name == name and t not in before]
            assert len(ours) == {"score": 1, "prepare": 2}[name]
            for thread in ours:
                end_thread(thread.ident)
            failed = 0
            while any(thread.is_alive() for thread in ours):
                try:
                    await batcher.score(b"viagra")
                except ScoringError as error:
                    assert str(error).startswith("fault: ThreadEnded")
                    failed += 1
            assert 1 <= failed <= len(ours)
            await asyncio.sleep(0)
            for _ in range(3):
                assert (await batcher.score(b"viagra")).label is Label.SPAM
            now = [t for t in threading.enumerate() if t.name == name and t not in before and t.is_alive()]
            assert len(now) == len(ours) and not set(now) & set(ours)

    asyncio.run(main())


def test_row_17_a_thread_told_to_end_within_a_call_goes_on():
    async def main() -> None:
        scorer = FakeScorer()
        async with running(scorer, deadline_s=3600) as batcher:
            first = await held(batcher, scorer)
            others = await waiting(batcher, mail(1), mail(2))
            (ident,) = scorer.threads
            end_thread(ident)
            scorer.gate.set()
            with pytest.raises(ScoringError, match=r"^fault: SystemExit"):
                await first
            for task in others:
                assert (await task).label is Label.HAM
        assert len(scorer.threads) == 1

    asyncio.run(main())


def test_row_17_a_scorer_that_hangs(caplog):
    async def main() -> None:
        scorer = FakeScorer()
        async with running(scorer, deadline_s=0.05, hang_s=0.2, queue=3) as batcher:
            began = time.monotonic()
            first = await held(batcher, scorer)
            overload = False
            late = [first]
            while time.monotonic() < began + 0.15:
                late.append(asyncio.create_task(batcher.score(mail(len(late)))))
                await asyncio.sleep(0.002)
                assert batcher.open <= 3 and len(batcher._waiting) <= 3
            for task in late:
                with pytest.raises(ScoringError) as caught:
                    await task
                overload |= str(caught.value).startswith("overload")
                assert str(caught.value).startswith(("deadline", "overload"))
            assert overload and not caplog.records
            await asyncio.sleep(max(0, began + 0.25 - time.monotonic()))
            batcher.table = batcher.table.model_copy(update={"deadline_s": 3600})
            for _ in range(3):
                with pytest.raises(ScoringError, match=r"^fault: the scorer hangs$"):
                    await batcher.score(b"viagra")
            with pytest.raises(ScoringError, match=r"^fault: the scorer hangs$"):
                await batcher.warm_up(scorer)
            assert [record.levelno for record in caplog.records] == [logging.ERROR]
            scorer.gate.set()
            await until(lambda: batcher._worker.hung_for() == 0)
            assert (await batcher.score(b"viagra")).label is Label.SPAM
            assert [record.levelno for record in caplog.records] == [logging.ERROR, logging.WARNING]
        assert len(scorer.batches) == 2, "what was late is not scored any more"

    asyncio.run(main())


def test_row_17_preparing_that_hangs():
    async def main() -> None:
        gate = threading.Event()
        scorer = Evil("prepare", lambda: gate.wait(60))
        async with running(scorer, deadline_s=0.1, hang_s=0.1) as batcher:
            one = asyncio.create_task(batcher.score(b"evil"))
            await asyncio.sleep(0.01)
            assert (await batcher.score(b"viagra")).label is Label.SPAM, "the other thread goes on"
            with pytest.raises(ScoringError, match=r"^deadline"):
                await batcher.score(b"evil")
            with pytest.raises(ScoringError, match=r"^deadline"):
                await one
            await until(lambda: batcher._preparers.hung_for() > 0.1)
            with pytest.raises(ScoringError, match=r"^fault: the scorer hangs$"):
                await batcher.score(b"viagra")
            gate.set()
            await until(lambda: batcher._preparers.hung_for() == 0)
            assert (await batcher.score(b"viagra")).label is Label.SPAM

    asyncio.run(main())


def test_row_17_what_is_late_is_let_go_while_the_scorer_hangs():
    class Traced(FakePrepared):
        pass

    seen: list[weakref.ref[FakePrepared]] = []

    class Tracing(FakeScorer):
        def prepare(self, raw: bytes) -> FakePrepared:
            made = Traced(raw, 10, self.head_id, 0.0)
            seen.append(weakref.ref(made))
            return made

    async def main() -> None:
        scorer = Tracing()
        async with running(scorer, deadline_s=0.05) as batcher:
            tasks = [await held(batcher, scorer)]
            tasks += [asyncio.create_task(batcher.score(mail(n))) for n in range(30)]
            await asyncio.wait(tasks)
            assert len(seen) == 31
            # The thread still has the one it hangs in; the last one may be in its hands as well.
            assert sum(1 for one in seen[1:] if one() is not None) <= 2

    asyncio.run(main())


HANGING = """
import asyncio
from service.batcher import Batcher
from spamguard.config import BatchTable
from spamguard.errors import ScoringError
from tests.fakes import FakeScorer

class Hanging(FakeScorer):
    def {where}(self, given):
        import time
        time.sleep(600)

async def main():
    batcher = Batcher(Hanging(), BatchTable(deadline_s=0.2))
    await batcher.start()
    try:
        await batcher.score(b"x")
    except ScoringError as error:
        print(error, flush=True)
    await batcher.stop()

asyncio.run(main())
"""


@pytest.mark.parametrize("where", ["score", "prepare"])
def test_row_17_a_scorer_that_hangs_does_not_hold_up_the_exit(where):
    done = subprocess.run(
        [sys.executable, "-c", HANGING.format(where=where)],
        cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, "deadline: no verdict within 0.2 s\n", "")
