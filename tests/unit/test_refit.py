"""What the user said becomes a head: mail that waits is encoded, and a retrain runs when it is time, not before."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from service.refit import Refit
from spamguard import headers
from spamguard.config import Config
from spamguard.featurestore import FeatureStore
from spamguard.labels import Labels
from spamguard.scorer import Scorer, look, prepare
from spamguard.verdict import Label
from tests.fakes import FakeScorer, verdict
from tests.refit_bench import NOON, Bench
from tests.tiny_corpus import HAM, SPAM, spam
from tests.unit.conftest import Tiny

pytestmark = pytest.mark.usefixtures("quick_refit")


# --- Encoding what waits --------------------------------------------------------------------------------------------


def test_what_waits_is_encoded_as_a_retrain_would_and_kept_no_longer(tiny: Tiny, tmp_path: Path) -> None:
    config = tiny.config(tmp_path / "state")
    bench = Bench(tmp_path, config, scorer=Scorer(tiny.encoder, tiny.bundle()))
    stamped = headers.stamp(SPAM[0], verdict(0.99), "[SPAM] ")
    bench.add(Label.SPAM, stamped, SPAM[1])
    bench.add(Label.HAM, HAM[0])

    async def main() -> None:
        async with bench.running():
            await bench.until(lambda: not bench.waiting())

    asyncio.run(main())
    mail = [SPAM[0], SPAM[1], HAM[0]]
    expected = look(tiny.encoder, [prepare(tiny.encoder, raw) for raw in mail])
    with FeatureStore(config.features_dir, tiny.encoder.fingerprint) as store:
        rows = store.get([headers.content_hash(raw) for raw in mail])
    for i, raw in enumerate(mail):
        row = rows[headers.content_hash(raw)]
        np.testing.assert_allclose(row.deep, expected.deep[i], rtol=1e-3, atol=1e-4)
        np.testing.assert_array_equal(row.wide.columns, expected.wide[i].columns)
        np.testing.assert_array_equal(row.structure, expected.structure[i])
    assert b"buy cheap pills" not in b"".join(f.read_bytes() for f in (tmp_path / "state").glob("labels*"))


def test_without_labels_no_file_is_made(bench: Bench) -> None:
    asyncio.run(bench.refit._turn())
    assert not bench.labels_file.parent.exists() and bench.log == []


def test_a_scorer_that_does_not_tell_what_it_saw_is_asked_once(tmp_path: Path) -> None:
    scorer = FakeScorer()
    bench = Bench(tmp_path, Config(state_dir=tmp_path / "state"), scorer=scorer)
    bench.add(Label.SPAM, SPAM[0], SPAM[1])

    async def main() -> None:
        async with bench.running():
            await bench.until(lambda: len(scorer.batches) == 2)
            await asyncio.sleep(0.2)

    asyncio.run(main())
    assert scorer.batches == [[SPAM[0]], [SPAM[1]]] and len(bench.waiting()) == 2


def test_a_fault_keeps_the_mail_and_is_said_once(bench: Bench) -> None:
    bench.add(Label.SPAM, b"X-Fake: raise\n\nx\n")

    async def main() -> None:
        async with bench.running():
            await bench.until(lambda: bench.log)
            await asyncio.sleep(0.2)

    asyncio.run(main())
    assert len(bench.waiting()) == 1
    (line,) = bench.log
    assert line["event"] == "labels wait" and line["cause"].startswith("fault: RuntimeError")


def test_a_message_that_cannot_be_scored_holds_up_no_other(tiny: Tiny, tmp_path: Path) -> None:
    class Poisoned(Scorer):
        def prepare(self, raw: bytes) -> Any:
            if b"poison" in raw:
                raise ValueError("poison")
            return super().prepare(raw)

    bench = Bench(tmp_path, tiny.config(tmp_path / "state"), scorer=Poisoned(tiny.encoder, tiny.bundle()))
    poison = b"Subject: poison\n\n"
    bench.add(Label.SPAM, poison, SPAM[1], SPAM[2])

    async def main() -> None:
        async with bench.running():
            await bench.until(lambda: len(bench.waiting()) == 1)

    asyncio.run(main())
    assert bench.waiting() == [headers.content_hash(poison)]


def test_what_is_forgotten_while_it_is_encoded_stays_forgotten(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny.config(tmp_path / "state")
    bench = Bench(tmp_path, config, scorer=Scorer(tiny.encoder, tiny.bundle()))
    bench.add(Label.SPAM, SPAM[0], SPAM[1])
    score = bench.batcher.score
    gone = headers.content_hash(SPAM[0])

    async def meanwhile(raw: bytes) -> Any:
        found = await score(raw)
        with Labels(bench.labels_file) as labels:
            labels.forget([gone])
        return found

    monkeypatch.setattr(bench.batcher, "score", meanwhile)

    async def main() -> None:
        async with bench.running():
            await bench.until(lambda: not bench.waiting())

    asyncio.run(main())
    assert bench.waiting() == []
    with FeatureStore(config.features_dir, tiny.encoder.fingerprint) as store:
        assert store.known([gone, headers.content_hash(SPAM[1])]) == {headers.content_hash(SPAM[1])}


def test_a_damaged_file_is_said_once_and_ends_nothing(bench: Bench) -> None:
    bench.labels_file.parent.mkdir()
    bench.labels_file.write_bytes(b"no database" * 100)

    async def main() -> None:
        async with bench.running():
            await bench.until(lambda: bench.log)
            await asyncio.sleep(0.1)
            bench.labels_file.unlink()
            bench.add(Label.SPAM, *(spam(i) for i in range(20)))
            await bench.until(lambda: bench.events("time to retrain"))

    asyncio.run(main())
    (line,) = bench.events("labels wait")
    assert "labels.sqlite3" in line["cause"]


# --- When it is time ------------------------------------------------------------------------------------------------


class Retrains:
    """In the place of the process: how many were started, and the exit status of those to come."""

    def __init__(self) -> None:
        self.started = 0
        self.code = 0

    async def call(self, _: Refit) -> tuple[int, list[str]]:
        self.started += 1
        return self.code, ["complaint", "spamguard: 20 ham and 0 spam: a head needs 5" if self.code else "fitted"]


@pytest.fixture
def retrains(monkeypatch: pytest.MonkeyPatch) -> Retrains:
    fake = Retrains()

    async def call(self: Refit) -> tuple[int, list[str]]:
        return await fake.call(self)

    monkeypatch.setattr(Refit, "_call_retrain", call)
    return fake


def test_off_is_off(bench: Bench, retrains: Retrains) -> None:
    bench.learning(refit="off", after=1, hour=12)
    bench.add(Label.SPAM, *SPAM)
    bench.turn()
    assert retrains.started == 0 and bench.log == []


def test_it_is_suggested_once_for_each_head(bench: Bench, retrains: Retrains) -> None:
    bench.learning(after=3)
    for i in range(6):
        bench.add(Label.SPAM, SPAM[i])
        bench.turn()
        assert len(bench.log) == (i >= 2)
    (line,) = bench.log
    assert (line["event"], line["new_labels"], line["level"]) == ("time to retrain", 3, "info")
    bench.learnt()
    bench.add(Label.SPAM, *SPAM[6:8])
    bench.turn()
    assert len(bench.log) == 1
    bench.add(Label.SPAM, SPAM[8])
    bench.turn()
    assert len(bench.log) == 2 and retrains.started == bench.reloads == 0


def test_a_retrain_is_started_when_there_are_labels_enough(bench: Bench, retrains: Retrains) -> None:
    bench.learning(refit="on", after=3)
    bench.add(Label.SPAM, *SPAM[:2])
    bench.turn()
    assert retrains.started == 0
    bench.add(Label.SPAM, SPAM[0])  # no news
    bench.turn()
    assert retrains.started == 0
    bench.add(Label.HAM, SPAM[0])  # but this is
    bench.turn()
    assert retrains.started == bench.reloads == 1
    bench.learnt()
    bench.turn()
    assert retrains.started == 1
    assert [line.get("text") for line in bench.events("refit")] == [None, "complaint", "fitted"]


def test_what_failed_is_tried_again_when_there_are_more_labels(bench: Bench, retrains: Retrains) -> None:
    bench.learning(refit="on", after=3)
    retrains.code = 2
    bench.add(Label.HAM, *HAM[:3])
    for _ in range(3):
        bench.turn()
    assert retrains.started == 1 and bench.reloads == 0
    (line,) = bench.events("no refit")
    assert line["cause"] == "spamguard: 20 ham and 0 spam: a head needs 5" and line["level"] == "warning"
    retrains.code = 0
    bench.add(Label.SPAM, SPAM[0])
    bench.turn()
    assert retrains.started == 2 and bench.reloads == 1


def test_at_its_hour_one_label_is_enough_once_a_day(bench: Bench, retrains: Retrains) -> None:
    bench.learning(refit="on", after=100, hour=3)
    bench.add(Label.SPAM, SPAM[0])
    for hour, started in ((2, 0), (3, 1), (4, 1)):
        bench.now = NOON.replace(hour=hour)
        bench.turn()
        assert retrains.started == started
    bench.learnt()
    bench.add(Label.SPAM, SPAM[1])
    bench.now = NOON.replace(hour=3, minute=59)
    bench.turn()
    assert retrains.started == 1  # it is the same day's hour still
    bench.now = NOON.replace(day=2, hour=3)
    bench.turn()
    assert retrains.started == 2
    bench.learnt()
    bench.now = NOON.replace(day=3, hour=3)
    bench.turn()
    assert retrains.started == 2  # nothing new to learn


def test_what_is_configured_anew_counts_from_then_on(bench: Bench, retrains: Retrains) -> None:
    bench.add(Label.SPAM, *SPAM[:5])
    bench.turn()
    assert bench.log == []
    bench.learning(refit="on", after=5)
    bench.turn()
    assert retrains.started == 1
