"""The whole daemon learns: labels are given by the command, it encodes, refits by itself, and serves the new head."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tiny_bert import save_tiny_bert
from tests.tiny_corpus import HAM, SPAM, write_files

pytestmark = pytest.mark.integration


@pytest.mark.timeout(300)
def test_a_daemon_refits_and_serves_what_it_learnt(tmp_path: Path, daemon_process) -> None:
    file = tmp_path / "spamguard.toml"
    file.write_text(
        f'state_dir = "state"\n[listen]\nport = 0\n[maildir]\npath = "Maildir"\n[log]\nformat = "json"\n'
        f'[learning]\nrefit = "on"\nafter = 40\n'
        f'[encoder]\nmodel = "{save_tiny_bert(tmp_path / "bert")}"\ndevice = "cpu"\nmax_tokens = 32\nthreads = 1\n'
    )
    spamguard = [sys.executable, "-P", "-m", "spamguard", "--config", str(file)]

    def run(*arguments: object) -> str:
        done = subprocess.run([*spamguard, *map(str, arguments)], capture_output=True, text=True, timeout=100)
        assert done.returncode == 0, done.stderr
        return done.stdout

    # The head that ships is for another encoder, so the first head is taught by hand: all of it wrong.
    write_files(tmp_path / "wrong" / "ham", SPAM[:10])
    write_files(tmp_path / "wrong" / "spam", HAM[:10])
    refused = subprocess.run(
        [*spamguard, "retrain", str(tmp_path / "wrong")], capture_output=True, text=True, timeout=100
    )
    assert refused.returncode == 4, refused.stderr
    run("heads", "promote", json.loads(run("heads", "list", "--json").splitlines()[0])["id"])
    process = daemon_process(file, (*spamguard, "serve"))
    first = process.wait_for("ready")["head"]
    with process.client() as client:
        assert client.deliver(SPAM[15].replace(b"\n", b"\r\n")).startswith(b"250")
    assert process.wait_for("message")["p"] < 0.5

    for label, mail in (("ham", HAM), ("spam", SPAM)):
        run("labels", "add", f"--{label}", *sorted(write_files(tmp_path / label, mail).iterdir()))
    second = process.wait_for("reloaded")["head"]
    assert second != first
    states = {json.loads(line)["waiting"] for line in run("labels", "list", "--json").splitlines()}
    assert states == {False}
    with process.client() as client:
        assert client.deliver(SPAM[15].replace(b"\n", b"\r\n")).startswith(b"250")
    line = process.wait_for("message", 2)
    assert line["head"] == second and line["p"] > 0.5
    assert process.stop() == 0
    assert not [line for line in process.log if line["level"] == "error"]
