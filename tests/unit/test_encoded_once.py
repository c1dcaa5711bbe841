"""No mail is encoded twice: not by a second retrain, not after a kill, not by two at once."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from spamguard.encoder import TorchEncoder
from spamguard.featurestore import FeatureStore
from tests.servers import until
from tests.tiny_corpus import ham, spam, write_files
from tests.unit.conftest import Tiny
from tests.unit.test_featurestore import a_row, assert_same
from training.corpus import MESSAGES_A_STEP
from training.retrain import retrain

ROOT = Path(__file__).parents[2]


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many texts each call of the encoder was given."""
    calls: list[int] = []
    encode = TorchEncoder.encode

    def counting(self: TorchEncoder, tokens: list[object]) -> object:
        calls.append(len(tokens))
        return encode(self, tokens)  # type: ignore[arg-type]

    monkeypatch.setattr(TorchEncoder, "encode", counting)
    return calls


def test_a_second_retrain_of_the_same_mail_encodes_nothing(tiny: Tiny, tmp_path: Path, encoded: list[int]) -> None:
    config = tiny.config(tmp_path / "state")
    retrain([tiny.corpus], config, tiny.encoder)
    assert sum(encoded) >= 40
    encoded.clear()
    retrain([tiny.corpus], config, tiny.encoder)
    retrain([], config, tiny.encoder)
    assert encoded == []
    more = write_files(tmp_path / "more" / "spam", [spam(i) for i in range(100, 103)])
    retrain([tiny.corpus, more], config, tiny.encoder)
    assert sum(encoded) == 3


def test_a_retrain_that_was_killed_goes_on_where_it_was(
    tiny: Tiny, tmp_path: Path, encoded: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "mail"
    n = MESSAGES_A_STEP
    write_files(root / "ham", [ham(i) for i in range(n)])
    write_files(root / "spam", [spam(i) for i in range(n)])
    config = tiny.config(tmp_path / "state")

    def killed(stage: str, done: int, total: int) -> None:
        if (stage, done) == ("reading", n):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        retrain([root], config, tiny.encoder, progress=killed)
    first = sum(encoded)
    retrain([root], config, tiny.encoder)
    with FeatureStore(config.features_dir, tiny.encoder.fingerprint) as store:
        rows = store._db.execute("SELECT count(*) FROM row").fetchone()[0]
    assert first >= n and sum(encoded) == rows


WRITER = """
import sys
from pathlib import Path
from tests.unit.test_featurestore import a_row
from spamguard.featurestore import FeatureStore
with FeatureStore(Path(sys.argv[1]), "print") as store:
    sys.stdin.readline()
    for i in range(int(sys.argv[3])):
        store.put([(f"{sys.argv[2]}-{i}", a_row(i)), (f"both-{i}", a_row(i))])
"""


@pytest.mark.parametrize("after", [1, 30, 150])
def test_of_two_writers_one_is_killed_and_the_other_notices_nothing(tmp_path: Path, after: int) -> None:
    """Both put the same rows and rows of their own; one gets SIGKILL when so many rows of its own are there."""
    counts = {"survivor": 200, "victim": 1_000_000}
    writers = {
        name: subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path), name, str(count)], cwd=ROOT, stdin=subprocess.PIPE
        )
        for name, count in counts.items()
    }
    try:
        for writer in writers.values():
            assert writer.stdin
            writer.stdin.write(b"go\n")
            writer.stdin.close()
        until(lambda: count_of(tmp_path, "victim") >= after, 60)
        os.kill(writers["victim"].pid, signal.SIGKILL)
        assert writers["victim"].wait() == -signal.SIGKILL and writers["survivor"].wait() == 0
    finally:
        for writer in writers.values():
            writer.kill()
            writer.wait()
    with FeatureStore(tmp_path, "print") as store:
        there = [row[0] for row in store._db.execute("SELECT content FROM row")]
        rows = store.get(there)
        store.put([("after", a_row(1))])
        assert store.known(["after"]) == {"after"}
        assert store._db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    for name, row in rows.items():
        assert_same(row, a_row(int(name.partition("-")[2])))
    assert {f"{who}-{i}" for who in ("survivor", "both") for i in range(200)} <= set(rows)
    victims = {int(name.partition("-")[2]) for name in rows if name.startswith("victim")}
    assert victims == set(range(len(victims)))  # each put is there whole, with what it put beside
    assert {f"both-{i}" for i in victims} <= set(rows)


def count_of(folder: Path, name: str) -> int:
    file = folder / "print.sqlite3"
    if not file.exists():
        return 0
    with closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True, timeout=60)) as database:
        try:
            query = "SELECT count(*) FROM row WHERE content LIKE ?"
            return int(database.execute(query, (f"{name}-%",)).fetchone()[0])
        except sqlite3.OperationalError:  # the table is not there yet
            return 0
