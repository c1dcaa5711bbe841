"""Heads are put in service and taken back while mail passes: none is lost, each verdict is that of one whole head."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from spamguard import bundle, heads_dir
from spamguard.config import Config, EncoderTable
from spamguard.encoder import TorchEncoder, load
from spamguard.scorer import Scorer
from spamguard.verdict import Cutoffs
from tests.conftest import Client
from tests.random_head import random_head
from tests.tiny_bert import save_tiny_bert
from tests.tiny_corpus import HAM, SPAM

pytestmark = pytest.mark.integration

CHANGES = 10
CLIENTS, PAUSE_S = 4, 0.24  # about 1,000 messages a minute
# p of the header has so many digits; a score next to a border of the last one may fall on either side.
DIGITS, CLEAR = 4, 1e-6
_HEAD = re.compile(rb"X-Spamguard: \w+; p=([0-9.]+);.*?head=([0-9a-f]{12})", re.DOTALL)


def put_heads(config: Config, encoder: TorchEncoder) -> list[bundle.Bundle]:
    """Two heads that have nothing in common."""
    made = []
    for seed in (1, 2):
        head = random_head("mlp", seed, dim=encoder.dim, columns=0, structure=0)
        made.append(bundle.make(head, Cutoffs(0.5, 0.9), encoder, {}))
        bundle.save(made[-1], config.heads_dir / made[-1].id)
    return made


def expected(encoder: TorchEncoder, heads: list[bundle.Bundle]) -> dict[bytes, dict[str, str]]:
    """Mail on which the two differ, and what the header says of it by each."""
    mail = [raw.replace(b"\n", b"\r\n") for raw in (*HAM, *SPAM)]
    scorers = [Scorer(encoder, head) for head in heads]
    said = [[s.score([s.prepare(raw)])[0].probability for raw in mail] for s in scorers]
    clear = np.asarray([[abs(p * 10**DIGITS % 1 - 0.5) > CLEAR * 10**DIGITS for p in row] for row in said]).all(0)
    shown = [[f"{p:.{DIGITS}f}" for p in row] for row in said]
    return {
        raw: {heads[0].id: a, heads[1].id: b}
        for raw, a, b, usable in zip(mail, *shown, clear, strict=True)
        if usable and a != b
    }


def source(address: tuple[str, int], mail: list[bytes], stop: threading.Event, taken: Counter[bytes]) -> None:
    """One client: message after message over one connection, and a note of each that was taken."""
    with Client(address) as client:
        client.greet()
        while not stop.is_set():
            for raw in mail:
                for line in (b"MAIL FROM:<a@example.org>", b"RCPT TO:<b@example.net>", b"DATA"):
                    assert client.ask(line)[:1] in b"23"
                assert client.ask(raw + b".").startswith(b"250")
                taken[raw] += 1
                time.sleep(PAUSE_S)


@pytest.mark.timeout(300)
def test_nothing_is_lost_and_no_head_is_half(tmp_path: Path, daemon_process) -> None:
    bert = save_tiny_bert(tmp_path / "bert")
    file = tmp_path / "spamguard.toml"
    file.write_text(
        f'state_dir = "state"\n[listen]\nport = 0\n[maildir]\npath = "Maildir"\n[log]\nformat = "json"\n'
        f'[encoder]\nmodel = "{bert}"\ndevice = "cpu"\nmax_tokens = 32\nthreads = 1\n'
    )
    table = EncoderTable(model=str(bert), device="cpu", max_tokens=32, threads=1)
    config, encoder = Config(state_dir=tmp_path / "state", encoder=table), load(table)
    heads = put_heads(config, encoder)
    said = expected(encoder, heads)
    assert len(said) >= 10
    spamguard = [sys.executable, "-P", "-m", "spamguard", "--config", str(file)]
    heads_dir.promote(config.heads_dir, heads[0].id)
    process = daemon_process(file, (*spamguard, "serve"))
    assert process.wait_for("ready")["head"] == heads[0].id

    stop, counts = threading.Event(), [Counter[bytes]() for _ in range(CLIENTS)]
    mail = [list(said)[i::CLIENTS] for i in range(CLIENTS)]
    sources = [
        threading.Thread(target=source, args=(process.address, part, stop, taken))
        for part, taken in zip(mail, counts, strict=True)
    ]
    for one in sources:
        one.start()
    for change in range(1, CHANGES + 1):
        before = sum(taken.total() for taken in counts)
        if change <= 2:  # the commands themselves take seconds, most of it to load the encoder
            command = ["promote", heads[1].id[:6]] if change == 1 else ["rollback"]
            done = subprocess.run([*spamguard, "heads", *command], capture_output=True, text=True, timeout=100)
            assert done.returncode == 0, done.stderr
        else:
            heads_dir.promote(config.heads_dir, heads[change % 2].id)
        assert process.wait_for("reloaded", change)["head"] == heads[change % 2].id
        while sum(taken.total() for taken in counts) < before + 3 * CLIENTS:
            assert all(one.is_alive() for one in sources)
            time.sleep(0.01)
    stop.set()
    for one in sources:
        one.join()
    assert process.stop() == 0

    sent = Counter[bytes]()
    for taken in counts:
        sent += taken
    lying = [f.read_bytes() for f in (tmp_path / "Maildir").rglob("*") if f.is_file() and f.parent.name == "new"]
    by_head = Counter[str]()
    arrived = Counter[bytes]()
    for data in lying:
        raw = next(raw for raw in said if data.endswith(raw.replace(b"\r\n", b"\n")))
        found = _HEAD.search(data)
        assert found is not None, data
        p, head = found[1].decode(), found[2].decode()
        assert p == said[raw][head]
        arrived[raw] += 1
        by_head[head] += 1
    assert arrived == sent and set(by_head) == {head.id for head in heads}
    assert sum(line["event"] == "reloaded" for line in process.log) == CHANGES
    assert not [line for line in process.log if line["level"] in ("error", "warning")]
    print(f"{sent.total()} messages, {dict(by_head)}")
