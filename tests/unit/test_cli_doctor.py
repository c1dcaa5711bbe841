"""`spamguard doctor`: a line for each thing that is wrong, exit codes that a monitor understands, and no trace."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from collections import namedtuple
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from spamguard import bundle, cli_doctor
from spamguard.cli import main
from spamguard.cli_doctor import Check, in_words, retrain_due
from spamguard.config_file import load
from spamguard.encoder import TorchEncoder
from spamguard.featurestore import FeatureStore
from spamguard.labels import Labels
from spamguard.verdict import Label
from tests.conftest import LoopThread
from tests.fakes import GREETING, HANG, FakeNextHop
from tests.maildirs import Box
from tests.servers import ROOT, free_ports, private_folder
from tests.tiny_corpus import HAM, SPAM
from tests.unit.conftest import Tiny, snapshot
from training import drift as drifting
from training.drift import Finding

Doctor = Callable[..., Result]


@pytest.fixture
def state(tmp_path: Path, tiny: Tiny) -> Path:
    served = tiny.bundle()
    bundle.put_in_service(bundle.save(served, tmp_path / "state" / "heads" / served.id))
    return tmp_path / "state"


@pytest.fixture
def doctor(tmp_path: Path, tiny: Tiny, state: Path) -> Doctor:
    """`doctor("[watch]...", "--json")`: tables to add to the configuration, and arguments."""

    def call(tables: str = "", *arguments: str, model: object = tiny.bert) -> Result:
        encoder = f'[encoder]\nmodel = "{model}"\ndevice = "cpu"\nmax_tokens = 32\nthreads = 1\n'
        file = tmp_path / "spamguard.toml"
        file.write_text(f'state_dir = "{state}"\n{encoder}{tables}')
        return CliRunner().invoke(main, ["--config", str(file), "doctor", *arguments])

    return call


def line(result: Result, name: str) -> str:
    """The one line about something."""
    (found,) = [row for row in result.stdout.splitlines() if row[6:].startswith(f"{name} ")]
    return found


def assert_says(result: Result, state: str, name: str, *words: str) -> None:
    found = line(result, name)
    assert found.startswith(f"{state:4}  {name} ") and all(word in found for word in words), result.output
    assert result.exit_code == {"ok": 0, "warn": 1, "fail": 2}[state], result.output


def test_all_is_well(doctor: Doctor, state: Path, tiny: Tiny) -> None:
    before = snapshot(state)
    result = doctor()
    assert result.exit_code == 0, result.output
    assert {row[:4].strip() for row in result.stdout.splitlines()[:-1]} == {"ok"}
    assert tiny.encoder.fingerprint in line(result, "encoder") and tiny.bundle().id in line(result, "head")
    for name in ("unsure mail", "overruled", "kind of mail"):
        assert "too little mail to tell (n = 0)" in line(result, name)
    assert result.stdout.endswith("There is too little mail to tell whether a retrain is due.\n")
    assert snapshot(state) == before and [file.name for file in state.iterdir()] == ["heads"]


def test_an_existing_installation_is_not_touched(doctor: Doctor, state: Path, tiny: Tiny) -> None:
    with Labels(state / "labels.sqlite3") as labels, FeatureStore(state / "features", tiny.encoder.fingerprint):
        labels.add(HAM[0], Label.HAM, "moved")
    before = snapshot(state)
    assert doctor().exit_code == 0
    assert snapshot(state) == before


def test_without_a_file(doctor: Doctor, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("SPAMGUARD_CONFIG", raising=False)
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    scene = cli_doctor.Scene(load())
    assert [(one.state, one.says) for one in cli_doctor.config_file(scene)] == [("ok", "no file, built-in defaults")]


# What is imported is there before the change of the user, who need not be able to read this Python.
AS_ANOTHER = """
import sys, tempfile, pathlib
from spamguard import cli_base, cli_doctor, config_file
loaded = config_file.load(pathlib.Path(sys.argv[1]))
cli_base.as_owner(loaded.config)
scene = cli_doctor.Scene(loaded)
for check in (*cli_doctor.config_file(scene), *cli_doctor.state_folder(scene)):
    print(check.state, check.says)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="root alone can become another user")
def test_root_looks_as_the_daemon_does() -> None:
    with private_folder("doctor") as folder:
        file, state = folder / "spamguard.toml", folder / "state"
        file.write_text('state_dir = "state"\n')
        state.mkdir()
        os.chown(state, 65_534, 65_534)
        command, answers = [sys.executable, "-c", AS_ANOTHER, str(file)], []
        for file_mode, state_mode in ((0o644, 0o700), (0o600, 0o500)):
            file.chmod(file_mode)
            state.chmod(state_mode)
            done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
            answers.append(done.stdout.splitlines())
    assert answers[0] == [f"ok {file}", f"ok {state} can be written"]
    assert answers[1][0] == f"fail {file} cannot be read by user id 65534, which owns {state}"
    assert answers[1][1].startswith(f"fail {state} cannot be written by user id 65534: Permission denied")


def test_a_state_folder_that_is_not_there_or_no_folder(doctor: Doctor, state: Path, tiny: Tiny) -> None:
    shutil.rmtree(state)
    there = f'[head]\npath = "{tiny.head}"\n'
    assert_says(doctor(there), "warn", "state folder", "does not exist yet")
    assert not state.exists()
    state.write_text("in the way")
    assert_says(doctor(there), "fail", "state folder", "cannot be written by user id")


@pytest.mark.parametrize(("free", "how"), [(10 << 20, "fail"), (500 << 20, "warn"), (50 << 30, "ok")])
def test_room_on_the_disk(doctor: Doctor, monkeypatch: pytest.MonkeyPatch, free: int, how: str) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(1 << 40, 0, free))
    assert_says(doctor(), how, "disk", "free at")


def test_an_encoder_that_is_not_there_is_said_once(doctor: Doctor, tmp_path: Path) -> None:
    result = doctor(model=tmp_path / "none")
    assert_says(result, "fail", "encoder", "is no folder")
    assert result.stdout.count("is no folder") == 1


def test_an_encoder_of_the_hub_is_not_fetched(doctor: Doctor) -> None:
    result = doctor("allow_download = true\n", model="nobody/no-such-model")
    assert_says(result, "fail", "encoder", "neither a folder nor in the local cache")


def test_an_encoder_that_gives_no_numbers(doctor: Doctor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TorchEncoder, "encode", lambda self, ids: np.full((1, self.dim), np.nan))
    assert_says(doctor(), "fail", "encoder", "gives no numbers")


def test_a_damaged_head(doctor: Doctor, state: Path) -> None:
    (weights,) = state.glob("heads/????????????/weights.safetensors")
    weights.write_bytes(weights.read_bytes()[:-1])
    result = doctor()
    assert_says(result, "fail", "head", "damaged")
    assert result.stdout.count("sha256 differs") == 1


def test_a_head_for_another_encoder(doctor: Doctor) -> None:
    assert_says(doctor(f'[head]\npath = "{bundle.SHIPPED}"\n'), "fail", "head", "fitted for another encoder")


def test_labels_that_are_new_make_a_retrain_due(doctor: Doctor, state: Path) -> None:
    with Labels(state / "labels.sqlite3") as labels:
        for raw in (*HAM[:2], *SPAM[:1]):
            labels.add(raw, Label.SPAM if raw in SPAM else Label.HAM, "moved")
    result = doctor("[learning]\nafter = 3\n")
    assert_says(result, "warn", "labels", "3, of which 3 new", "3 not encoded yet", "spamguard retrain")
    assert "A retrain is due (labels: 3, of which 3 new since the last retrain" in result.stdout
    assert_says(doctor("[learning]\nafter = 4\n"), "ok", "labels")
    assert_says(doctor('[learning]\nafter = 3\nrefit = "on"\n'), "ok", "labels")


def test_a_damaged_file_of_features(doctor: Doctor, state: Path) -> None:
    (state / "features").mkdir()
    (state / "features" / "0123456789abcdef.sqlite3").write_bytes(b"no database" * 1000)
    assert_says(doctor(), "fail", "kept features", "0123456789abcdef.sqlite3", "not a database", "move")


# --- The next hop ---------------------------------------------------------------------------------------------------


@contextmanager
def next_hop(loop: LoopThread, **script: Any) -> Iterator[str]:
    hop = FakeNextHop(**script)
    port = loop.run(hop.start())
    try:
        where = f'socket = "{hop.unix}"' if hop.unix else f'host = "127.0.0.1"\nport = {port}'
        yield f'[listen]\nport = 0\n[next_hop]\nprotocol = "{"lmtp" if hop.lmtp else "smtp"}"\n{where}\n'
    finally:
        loop.loop.call_soon_threadsafe(hop.release.set)
        loop.run(hop.stop())


@pytest.mark.parametrize("lmtp", [False, True])
def test_a_next_hop_that_greets(doctor: Doctor, loop_thread: LoopThread, tmp_path: Path, lmtp: bool) -> None:
    with next_hop(loop_thread, lmtp=lmtp, unix=tmp_path / "hop" if lmtp else None) as tables:
        assert_says(doctor(tables), "ok", "next hop", "220 next.example")


@pytest.mark.parametrize(
    ("greeting", "says"), [(b"554 5.3.2 \x1b[31mno service", "554 5.3.2  [31mno service"), (HANG, "timed out")]
)
def test_a_next_hop_that_does_not(
    doctor: Doctor, loop_thread: LoopThread, monkeypatch: pytest.MonkeyPatch, greeting: object, says: str
) -> None:
    monkeypatch.setattr(cli_doctor, "_PATIENCE_S", 0.3)
    with next_hop(loop_thread, **{GREETING: greeting}) as tables:
        assert_says(doctor(tables), "fail", "next hop", says, "start it, or correct [next_hop]")


def test_a_next_hop_that_is_not_there(doctor: Doctor, tmp_path: Path) -> None:
    (port,) = free_ports(1)
    assert_says(doctor(f'[next_hop]\nhost = "127.0.0.1"\nport = {port}\n'), "fail", "next hop", "refused")
    where = f'[next_hop]\nsocket = "{tmp_path}/none"\n'
    assert_says(doctor(where), "fail", "next hop", "none is not reached", "No such file")


def test_without_a_next_hop_nothing_is_connected(doctor: Doctor, monkeypatch: pytest.MonkeyPatch) -> None:
    def connect(*_: object, **__: object) -> None:
        raise AssertionError("connected")

    monkeypatch.setattr(socket, "create_connection", connect)
    assert "next hop" not in doctor().stdout


# --- Maildirs and quarantine ----------------------------------------------------------------------------------------


def test_maildirs(doctor: Doctor, tmp_path: Path) -> None:
    box = Box(tmp_path / "mail")
    before = sorted(box.path.rglob("*"))
    assert_says(doctor(f'[watch]\nmaildirs = ["{box.path}"]\n'), "ok", "Maildirs", "1 watched")
    assert sorted(box.path.rglob("*")) == before  # not even the junk folder was made
    absent = f'[watch]\nmaildirs = ["{box.path}"]\ncreate_junk = false\n'
    result = doctor(absent)
    assert result.exit_code == 2 and "it has no folder .Junk" in result.stdout
    result = doctor(f'[watch]\nmaildirs = ["{tmp_path}/none", "{box.path}"]\n')
    assert result.exit_code == 2 and "none: no such Maildir" in result.stdout
    assert_says(doctor(f'[watch]\nmaildirs = ["{tmp_path}/*/Maildir"]\n'), "warn", "Maildirs", "none matches")


def test_the_quarantine(doctor: Doctor, state: Path) -> None:
    for number in range(3):
        (state / "quarantine" / "held" / f"{number:020x}").mkdir(parents=True)
    assert_says(doctor(), "ok", "quarantine", "3 messages are held", "30 days", "spamguard quarantine list")
    shutil.rmtree(state / "quarantine")
    (state / "quarantine").write_text("in the way")
    assert_says(doctor(), "fail", "quarantine", "is no folder")


# --- Drift ----------------------------------------------------------------------------------------------------------

ALARM = Finding("overruled", True, "12 of 240 messages were overruled", {"n": 240, "overruled": 12})
CALM = Finding("unlike", False, "2% of it is new", {"n": 300})


def test_drift_is_a_reason_in_words_and_as_json(doctor: Doctor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drifting, "drift", lambda *_: [ALARM, CALM])
    result = doctor()
    assert_says(result, "warn", "overruled", "12 of 240 messages were overruled → spamguard retrain")
    assert "A retrain is due (overruled: 12 of 240 messages were overruled): spamguard retrain" in result.stdout
    result = doctor("", "--json")
    said = json.loads(result.stdout)
    assert result.exit_code == 1 and said["retrain_due"] is True
    assert said["reasons"] == ["overruled: 12 of 240 messages were overruled"]
    (check,) = [one for one in said["checks"] if one["name"] == "overruled"]
    assert check["figures"] == {"n": 240, "overruled": 12} and check["due"] is True


def test_the_days_are_those_asked_for_else_all_that_is_kept(doctor: Doctor, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[float] = []
    monkeypatch.setattr(drifting, "drift", lambda *rest: asked.append(rest[-1]) or [CALM])
    assert doctor("", "--days", "2.5").exit_code == 0
    assert "No retrain is due." in doctor("[learning]\nkeep_days = 7\n").stdout
    assert asked == [2.5, 7]
    assert doctor("", "--days", "0").exit_code == 2


def test_with_keep_days_0_drift_is_not_known(doctor: Doctor) -> None:
    result = doctor("[learning]\nkeep_days = 0\n")
    assert_says(result, "ok", "drift", "nothing is kept of judged mail")
    assert "too little mail to tell whether" in result.stdout


@pytest.mark.parametrize(
    ("dues", "due", "words"),
    [
        ((None, None), None, "There is too little mail to tell whether a retrain is due."),
        ((None, False), False, "No retrain is due."),
        ((True, None), True, "A retrain is due (unsure mail: why): spamguard retrain"),
    ],
)
def test_the_last_word(dues: tuple[bool | None, bool | None], due: bool | None, words: str) -> None:
    names = ("unsure mail", "overruled")
    checks = [Check("disk", "ok", "room")] + [Check(n, "ok", "why", due=d) for n, d in zip(names, dues, strict=True)]
    found = retrain_due(checks)
    assert found[0] is due and in_words(*found) == words
