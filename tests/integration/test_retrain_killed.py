"""SIGKILL at random moments of a retrain: the head in service is whole, the cache is sound, the next run goes on."""

from __future__ import annotations

import json
import random
import shutil
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from spamguard import bundle, heads_dir
from spamguard.config import Config, EncoderTable
from spamguard.encoder import load
from spamguard.featurestore import FeatureStore
from spamguard.headers import content_hash
from spamguard.labels import Labels
from tests.tiny_bert import save_tiny_bert
from tests.tiny_corpus import HAM, SPAM, message, write_files
from training.retrain import retrain

pytestmark = pytest.mark.integration

KILLS = 8
ROOT = Path(__file__).parents[2]
# Words of the tiny encoder, so that a retrain encodes in several steps and has something to learn.
MORE_HAM = [message(f"meeting {i}", f"please see the report attached {i * 7919 % 997}") for i in range(150)]
MORE_SPAM = [message(f"pills {i}", f"buy cheap free money now {i * 7919 % 997}") for i in range(150)]


def start(file: Path, corpus: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.retrain_process", str(file), str(corpus)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    return process


def finish(process: subprocess.Popen[str]) -> dict[str, Any]:
    written, _ = process.communicate(timeout=200)
    assert process.returncode == 0
    return json.loads(written)


@pytest.mark.timeout(600)
def test_a_killed_retrain_changes_nothing_and_the_next_one_goes_on(tmp_path: Path) -> None:
    bert = save_tiny_bert(tmp_path / "bert")
    table = EncoderTable(model=str(bert), device="cpu", max_tokens=32, threads=1)
    config, encoder = Config(state_dir=tmp_path / "state", encoder=table), load(table)
    file = tmp_path / "spamguard.toml"
    file.write_text(
        f'state_dir = "state"\n[encoder]\nmodel = "{bert}"\ndevice = "cpu"\nmax_tokens = 32\nthreads = 1\n'
    )
    write_files(tmp_path / "first" / "ham", HAM)
    write_files(tmp_path / "first" / "spam", SPAM)
    write_files(tmp_path / "all" / "ham", [*HAM, *MORE_HAM])
    write_files(tmp_path / "all" / "spam", [*SPAM, *MORE_SPAM])
    contents = [content_hash(raw) for raw in (*HAM, *SPAM, *MORE_HAM, *MORE_SPAM)]
    heads, features = config.heads_dir, config.features_dir
    first = retrain([tmp_path / "first"], config, encoder).bundle.id
    kept = shutil.copytree(features, tmp_path / "features of the first")
    process = start(file, tmp_path / "all")
    began = time.monotonic()
    whole = finish(process)
    takes = time.monotonic() - began
    assert whole["passed"] and whole["encoded"] == 300 and whole["head"] != first

    rng, killed = random.Random(7), 0
    for turn in range(KILLS):
        heads_dir.promote(heads, first)
        shutil.rmtree(heads / whole["head"], ignore_errors=True)
        if turn % 2 == 0:  # so that encoding is killed as well, not only what comes after it
            shutil.rmtree(features)
            shutil.copytree(kept, features)
        process = start(file, tmp_path / "all")
        time.sleep(rng.uniform(0, takes))
        killed += process.poll() is None
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()

        serving = heads_dir.serving(heads)
        assert serving in (first, whole["head"]), turn
        for folder in (f for f in heads.iterdir() if f.is_dir() and not f.name.startswith(".")):
            assert folder.is_symlink() or bundle.load(folder, encoder).id == folder.name
        for one in (features / f"{encoder.fingerprint}.sqlite3", config.labels_file):
            with closing(sqlite3.connect(one)) as database:
                assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        with Labels(config.labels_file) as labels:
            assert len(labels.rows()) in (40, 340)
    assert killed > KILLS / 2

    heads_dir.promote(heads, first)
    with FeatureStore(features, encoder.fingerprint) as store:
        known = store.known(contents)
    last = finish(start(file, tmp_path / "all"))
    assert last["head"] == heads_dir.serving(heads) and last["encoded"] == len(contents) - len(known)
    assert heads_dir.before(heads) == first
    assert not [f for f in heads.iterdir() if f.name.startswith((".draft", ".current"))]
    print(f"{killed} of {KILLS} killed within {takes:.1f} s; {len(known)} of {len(contents)} known after the last")
