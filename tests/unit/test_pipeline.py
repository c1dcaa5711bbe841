"""The road of a message without any protocol: strip, score, decide; reload swaps what decides."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import threading
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from service.daemon import Daemon
from service.journal import Journal
from service.pipeline import Pipeline
from spamguard.actions import Disposition, Fate
from spamguard.config import Config, LogTable, PolicyTable
from spamguard.config_file import load
from spamguard.errors import ConfigError, DeliveryError, ScoringError
from spamguard.policy import Policy
from tests.fakes import FakeScorer, load_fake_scorer
from tests.unit.test_batcher import running


def through(raw: bytes, table: PolicyTable | None = None, scorer: FakeScorer | None = None) -> Disposition:
    async def main() -> Disposition:
        async with running(scorer or FakeScorer()) as batcher:
            (disposition,) = await Pipeline(batcher, Policy(table or PolicyTable())).handle(raw)
            return disposition

    return asyncio.run(main())


def test_marks_are_stripped_before_scoring_and_before_stamping():
    scorer = FakeScorer()
    disposition = through(b"X-Spam-Flag: NO\nSubject: x\n\nviagra\n", scorer=scorer)
    assert scorer.batches == [[b"Subject: x\n\nviagra\n"]]
    assert disposition.data.startswith(b"X-Spam-Flag: YES\nX-Spam-Status: Yes")
    assert disposition.data.count(b"X-Spam-Flag") == 1
    assert disposition.junk


def test_what_is_passed_carries_no_forged_verdict_either():
    assert through(b"X-Spam-Flag: NO\nSubject: x\n\nhi\n", PolicyTable(ham="pass")).data == b"Subject: x\n\nhi\n"


def test_each_recipient_has_his_disposition_and_quarantine_holds_what_came():
    raw = b"X-Spam-Flag: NO\nSubject: x\n\nviagra\n"
    table = PolicyTable.model_validate({"spam": "reject", "recipients": {"bob@x": {"spam": "tag"}}})

    async def main(one_reply: bool) -> list[Disposition]:
        async with running(FakeScorer()) as batcher:
            return await Pipeline(batcher, Policy(table)).handle(raw, [b"bob@x", b"eve@x"], one_reply)

    bob, eve = asyncio.run(main(True))
    assert bob.data.startswith(b"X-Spam-Flag: YES\n") and bob.data.endswith(b"\nSubject: x\n\nviagra\n")
    assert (eve.fate, eve.data) == (Fate.QUARANTINE, raw)
    assert [one.fate for one in asyncio.run(main(False))] == [Fate.DELIVER, Fate.REJECT]


def test_the_rest_of_a_large_message_is_judged_but_not_in_the_disposition():
    scorer = FakeScorer()
    read_in = []

    def rest() -> bytes:
        read_in.append(threading.current_thread())
        return b"viagra\n"

    def broken() -> bytes:
        raise OSError(5, "Input/output error")

    async def main() -> None:
        async with running(scorer) as batcher:
            pipeline = Pipeline(batcher, Policy(PolicyTable(spam="quarantine")))
            (held,) = await pipeline.handle(b"X-Spam: no\nSubject: x\n\nbeginning\n", rest=rest)
            assert (held.fate, held.data) == (Fate.QUARANTINE, b"X-Spam: no\nSubject: x\n\nbeginning\n")
            (failed,) = await pipeline.handle(b"Subject: x\n\n", rest=broken)
            assert failed.data == b"X-Spamguard: unscored; reason=fault\nSubject: x\n\n"

    asyncio.run(main())
    assert scorer.batches == [[b"Subject: x\n\nbeginning\nviagra\n"]]
    assert len(read_in) == 1 and read_in[0] is not threading.main_thread()


def test_failures_follow_the_policy():
    raw = b"X-Fake: raise\n\nhi\n"
    assert through(raw).data == b"X-Spamguard: unscored; reason=fault\n" + raw
    with pytest.raises(DeliveryError):
        through(raw, PolicyTable(on_failure="tempfail"))
    assert through(b"viagra", PolicyTable(spam="reject")).fate is Fate.REJECT


def test_row_17_what_is_not_scored_is_counted_by_its_reason():
    counters: Counter[str] = Counter()

    def count(name: str) -> None:
        counters[name] += 1

    async def main() -> None:
        scorer = FakeScorer()
        async with running(scorer, queue=1, deadline_s=0.05) as batcher:
            pipeline = Pipeline(batcher, Policy(PolicyTable()), count)
            assert (await pipeline.handle(b"hi"))[0].failure is None
            await pipeline.handle(b"X-Fake: raise\n\n", [b"a", b"b"])
            scorer.gate.clear()
            late = asyncio.create_task(pipeline.handle(b"hi"))
            await asyncio.sleep(0)
            (refused,) = await pipeline.handle(b"hi")
            assert b"reason=overload" in refused.data
            (failed,) = await late
            assert b"reason=deadline" in failed.data
            scorer.gate.set()
        assert b"reason=stopping" in (await pipeline.handle(b"hi"))[0].data

    asyncio.run(main())
    assert counters == {"unscored.fault": 1, "unscored.overload": 1, "unscored.deadline": 1, "unscored.stopping": 1}


def with_daemon(file: Path, use: Callable[[Daemon], Awaitable[None]], load_scorer=load_fake_scorer) -> list[dict]:
    """Run a daemon from a file; return its log."""
    log = io.StringIO()

    async def main() -> None:
        loaded = load(file)
        daemon = Daemon(loaded, load_scorer, Journal(loaded.config.log, log))
        await daemon.start()
        try:
            await use(daemon)
        finally:
            await daemon.stop()

    asyncio.run(main())
    return [json.loads(line) for line in log.getvalue().splitlines()]


BASE = 'state_dir = "."\n[listen]\nport = 0\n'


def test_reload_swaps_head_and_policy_and_keeps_the_encoder(tmp_path):
    file, head = tmp_path / "spamguard.toml", tmp_path / "head"
    head.write_text("head-1")
    file.write_text(BASE + '[head]\npath = "head"\n')

    async def use(daemon: Daemon) -> None:
        encoder = daemon.scorer.encoder
        assert (await daemon.pipeline.handle(b"viagra"))[0].fate is Fate.DELIVER
        head.write_text("head-2")
        file.write_text(file.read_text() + '[policy]\nspam = "reject"\n')
        assert await daemon.reload()
        (disposition,) = await daemon.pipeline.handle(b"viagra")
        assert disposition.fate is Fate.REJECT
        assert disposition.verdict is not None and disposition.verdict.head == "head-2"
        assert daemon.scorer.encoder is encoder
        file.write_text(file.read_text() + "[encoder]\nmax_tokens = 99\n[limits]\nrecipients = 5\n")
        assert await daemon.reload()
        assert daemon.scorer.encoder is not encoder

    log = with_daemon(file, use)
    assert [line["event"] for line in log] == [
        "ready", "reloaded", "these tables need a restart", "reloaded", "stopped",
    ]  # fmt: skip
    assert log[2]["tables"] == ["limits"]


@pytest.mark.parametrize("broken", ["file", "head", "scorer"])
def test_a_bad_reload_changes_nothing(tmp_path, broken):
    file, head = tmp_path / "spamguard.toml", tmp_path / "head"
    head.write_text("head-1")
    file.write_text(BASE + '[head]\npath = "head"\n')

    class Mute(FakeScorer):
        def score(self, batch):
            raise RuntimeError("does not work")

    def load_scorer(config: Config, encoder: object) -> FakeScorer:
        name = load_fake_scorer(config, encoder).head_id
        return Mute() if name == "mute" else FakeScorer(name)

    async def use(daemon: Daemon) -> None:
        if broken == "file":
            file.write_text(BASE + "[policy]\nspam = 'destroy'\n")
        else:
            head.write_text("broken" if broken == "head" else "mute")
        assert not await daemon.reload()
        (disposition,) = await daemon.pipeline.handle(b"viagra")
        assert disposition.verdict is not None and disposition.verdict.head == "head-1"

    log = with_daemon(file, use, load_scorer)
    assert [(line["level"], line["event"]) for line in log] == [
        ("info", "ready"), ("error", "reload failed, nothing has changed"), ("info", "stopped"),
    ]  # fmt: skip


def test_a_start_that_fails_says_why_and_leaves_nothing_open(tmp_path):
    file = tmp_path / "spamguard.toml"
    file.write_text(BASE)

    async def use(daemon: Daemon) -> None:
        host, port = daemon.address
        file.write_text(f'state_dir = "."\n[listen]\nport = {port}\n')
        with pytest.raises(ConfigError, match=f"cannot bind {host}:{port}: Address already in use"):
            await Daemon(load(file), load_fake_scorer).start()

        def no_scorer(config: Config, encoder: object) -> FakeScorer:
            raise ScoringError("fault: no model")

        file.write_text(BASE)
        with pytest.raises(ScoringError, match="no model"):
            await Daemon(load(file), no_scorer).start()
        file.write_text(BASE + '[maildir]\npath = "spamguard.toml/box"\n')
        with pytest.raises(ConfigError, match=r"^maildir.path: "):
            await Daemon(load(file), load_fake_scorer).start()

    with_daemon(file, use)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_the_journal_on_a_terminal_is_one_readable_line():
    stream = Terminal()
    journal = Journal(LogTable(), stream)
    journal.write("info", "message", sender=b"a\nb\x1b[2J", p=0.5)
    (line,) = stream.getvalue().splitlines()
    assert "\x1b[2J" not in line and "a b" in line and "0.5" in line


def test_the_journal_never_raises():
    stream = io.StringIO()
    journal = Journal(LogTable(), stream)
    stream.close()
    journal.write("info", "message")
    assert journal.counters == {"journal.ValueError": 1}


def test_warnings_of_libraries_take_the_same_road():
    stream = io.StringIO()
    handler = Journal(LogTable(), stream).adopt_logging()
    try:
        try:
            raise ValueError("bad\nline")
        except ValueError:
            logging.getLogger("some.package").exception("it %s", "failed")
        logging.getLogger("some.package").info("not of interest")
    finally:
        logging.getLogger().removeHandler(handler)
    (line,) = map(json.loads, stream.getvalue().splitlines())
    assert (line["level"], line["logger"]) == ("error", "some.package")
    assert line["text"] == "it failed: ValueError('bad\\nline')"
