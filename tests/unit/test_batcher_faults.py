"""Row 17: whatever a scorer does, one message fails alone, and the others have their verdicts."""

from __future__ import annotations

import asyncio
import ctypes
import logging
import subprocess
import sys
import threading
import time
import weakref
from pathlib import Path
from types import SimpleNamespace

import pytest

from spamguard.errors import ScoringError
from spamguard.verdict import Label
from tests.fakes import FakePrepared, FakeScorer, verdict
from tests.unit.test_batcher import held, mail, running, until, waiting


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
