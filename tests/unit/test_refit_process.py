"""The retrain that the daemon starts is a process of its own: how it runs, ends and fails, and what comes of it."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from service import refit
from spamguard import bundle
from spamguard.labels import Labels
from spamguard.scorer import Scorer
from spamguard.verdict import Label
from tests.refit_bench import Bench
from tests.tiny_corpus import SPAM, ham, spam
from tests.unit.conftest import Tiny

pytestmark = pytest.mark.usefixtures("quick_refit")


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
