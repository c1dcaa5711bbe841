"""A refit that the gate refuses: said once with its reason, and not tried again until there are new labels."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from spamguard.config import Config
from spamguard.errors import REFUSED
from spamguard.verdict import Label
from tests.refit_bench import Bench
from tests.tiny_corpus import SPAM


def test_a_refusal_is_said_with_its_reason_and_not_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "python"
    program.write_text(
        f"#!/bin/sh\necho run >> {tmp_path}/runs\necho gate: lost\n"
        f"echo 'spamguard: not put in service: it catches less of your spam' >&2\nexit {REFUSED}\n"
    )
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    bench = Bench(tmp_path, Config(state_dir=tmp_path / "state"))
    bench.learning(refit="on", after=3)
    bench.add(Label.SPAM, *SPAM[:3])
    for _ in range(3):
        bench.turn()
    (line,) = bench.events("refit refused")
    assert line["cause"] == "spamguard: not put in service: it catches less of your spam"
    assert bench.reloads == 0 and not bench.events("no refit")
    assert (tmp_path / "runs").read_text() == "run\n"
    bench.add(Label.SPAM, SPAM[3])
    bench.turn()
    assert len(bench.events("refit refused")) == 2 and (tmp_path / "runs").read_text() == "run\nrun\n"
