"""What the user said becomes a head: mail that waits is encoded, and a retrain runs when it is time, not before."""

from __future__ import annotations

import asyncio
import io
import json
import os
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from service import refit
from service.batcher import Batcher
from service.journal import Journal
from service.refit import Refit
from spamguard import bundle, headers
from spamguard.config import BatchTable, Config, LogTable
from spamguard.config_file import Loaded
from spamguard.featurestore import FeatureStore
from spamguard.labels import Labels
from spamguard.scorer import Scorer, look, prepare
from spamguard.verdict import Label
from tests.fakes import FakeScorer, verdict
from tests.tiny_corpus import HAM, SPAM, ham, spam
from tests.unit.conftest import Tiny

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


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refit, "EVERY_S", 0.02)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path, Config(state_dir=tmp_path / "state"))


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


# --- The process ----------------------------------------------------------------------------------------------------


def use_program(monkeypatch: pytest.MonkeyPatch, file: Path, script: str) -> None:
    """This shell script in the place of Python: whatever it is called with."""
    file.write_text("#!/bin/sh\n" + script)
    file.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(file))


def call(bench: Bench) -> tuple[int, list[str]]:
    return asyncio.run(bench.refit._call_retrain())


def test_it_runs_this_program_niced_and_without_the_ways_to_systemd(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", "/run/systemd/notify")
    bench.loaded = replace(bench.loaded, file=tmp_path / "a file.toml")
    use_program(monkeypatch, tmp_path / "python", 'sleep 0.3; echo "$# $5"; echo $NOTIFY_SOCKET; nice; cat; exit 7\n')
    code, lines = call(bench)
    assert code == 7 and lines == [f"6 {tmp_path / 'a file.toml'}", str(min(19, os.nice(0) + 10))]


def test_of_much_output_the_end_is_kept(bench: Bench, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    use_program(monkeypatch, tmp_path / "python", "yes out | head -200000; yes err | head -100000 >&2; echo last\n")
    code, lines = call(bench)
    assert code == 0 and lines[-1] == "last" and sum(map(len, lines)) <= refit._OUTPUT


def test_the_process_ends_with_the_daemon(bench: Bench, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    use_program(monkeypatch, tmp_path / "python", f"echo $$ > {tmp_path / 'pid'}; exec sleep 1000\n")
    bench.learning(refit="on", after=1)
    bench.add(Label.SPAM, SPAM[0])

    async def main() -> int:
        async with bench.running():
            await bench.until(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text().endswith("\n"))
            pid = int((tmp_path / "pid").read_text())
            os.kill(pid, 0)
        return pid

    pid = asyncio.run(main())
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_one_that_takes_too_long_is_ended(bench: Bench, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(refit, "_LONGEST_S", 0.2)
    use_program(monkeypatch, tmp_path / "python", "exec sleep 1000\n")
    code, lines = call(bench)
    assert code != 0 and "was ended" in lines[-1]


def test_a_program_that_is_gone_is_said_and_ends_nothing(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "gone"))
    bench.learning(refit="on", after=1)
    bench.add(Label.SPAM, SPAM[0])

    async def main() -> None:
        async with bench.running():
            await bench.until(lambda: bench.events("labels wait"))

    asyncio.run(main())
    assert "No such file" in bench.events("labels wait")[0]["cause"]


def test_a_real_retrain_puts_a_head_in_service_or_says_why_not(
    tiny: Tiny, tmp_path: Path, write_config: Callable[..., Path]
) -> None:
    """Twice: with ham alone there is no head, with spam there is."""
    config = tiny.config(tmp_path / "state")
    bench = Bench(tmp_path, config, write_config(), Scorer(tiny.encoder, tiny.bundle()))
    bench.learning(refit="on", after=6)
    bench.add(Label.HAM, *(ham(i) for i in range(6)))
    bench.turn()
    assert bench.reloads == 0 and not config.heads_dir.exists()
    (line,) = bench.events("no refit")
    assert line["cause"] == "spamguard: 6 ham and 0 spam: a head needs at least 5 of each"

    bench.add(Label.SPAM, *(spam(i) for i in range(6)))
    bench.turn()
    assert bench.reloads == 1, bench.log
    served = bundle.load(bundle.in_service(config.heads_dir), tiny.encoder)
    assert served.manifest.provenance["sources"] == {"moved": {"ham": 6, "spam": 6}}
    assert any(f"head {served.id} in service" in line.get("text", "") for line in bench.events("refit"))
    with Labels(bench.labels_file) as labels:
        assert labels.changes() == (12, 0)
    bench.turn()
    assert bench.reloads == 1
