"""`spamguard retrain --tune` with a tiny BERT, from labelled mail to an encoder that serves."""

from __future__ import annotations

import csv
import json
import random
import tomllib
from pathlib import Path

import numpy as np
import pytest

from spamguard.bundle import CURRENT
from spamguard.cli import main
from spamguard.config import Config
from spamguard.encoder import TorchEncoder, load
from spamguard.errors import CorpusError
from spamguard.labels import Labels
from spamguard.scorer import Scorer
from spamguard.verdict import Label
from tests.tiny_bert import save_tiny_bert
from training import tune_command
from training.tune_command import Retuned, tune

HAM, SPAM = "the meeting report attached noon".split(), "buy cheap pills free money".split()


def text(i: int, spam: bool) -> str:
    """Some words of the class, and others that no campaign has in common."""
    rng = random.Random(2 * i + spam)
    strange = ["".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=5)) for _ in range(4)]
    return " ".join([*rng.sample(SPAM if spam else HAM, 3), *strange])


def write(file: Path, ham: int = 60, spam: int = 60) -> Path:
    with file.open("w", newline="", encoding="utf-8") as stream:
        rows = csv.writer(stream)
        rows.writerow(["label", "text"])
        rows.writerows(["ham", text(i, False)] for i in range(ham))
        rows.writerows(["spam", text(i, True)] for i in range(spam))
    return file


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_bert(tmp_path_factory.mktemp("bert") / "tiny")


def configuration(bert: Path, state: Path, **tables: object) -> Config:
    encoder = {"model": str(bert), "device": "cpu", "max_tokens": 32}
    return Config.model_validate({"state_dir": str(state), "encoder": encoder} | tables)


def run(bert: Path, state: Path, file: Path) -> Retuned:
    config = configuration(bert, state)
    return tune([file], config, load(config.encoder), "last-2")


@pytest.fixture(scope="module")
def done(bert: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Retuned, Path]:
    state = tmp_path_factory.mktemp("state")
    return run(bert, state, write(state / "mail.csv")), state


def test_what_it_says_to_configure_serves(done: tuple[Retuned, Path], bert: Path) -> None:
    retuned, state = done
    config = Config.model_validate({"state_dir": str(state)} | tomllib.loads(retuned.configuration))
    scorer = Scorer.from_config(config)
    assert scorer.encoder_id == retuned.fingerprint != TorchEncoder(bert, device="cpu", max_tokens=32).fingerprint
    ham, spam = scorer.score([scorer.prepare(f"\n{text(999, spam)}".encode()) for spam in (False, True)])
    assert ham.probability < 0.5 < spam.probability


def test_nothing_is_put_in_service(done: tuple[Retuned, Path]) -> None:
    retuned, state = done
    assert retuned.head_folder.is_dir() and not (state / "heads" / CURRENT).exists()
    assert list((state / "tuning").glob("*.safetensors")) == []  # a finished run leaves no checkpoint


def test_the_parts_have_no_message_in_common_and_both_classes(done: tuple[Retuned, Path]) -> None:
    retuned, _ = done
    assert np.sum(retuned.sizes) == 120
    assert all(abs(n - share) <= 2 for sizes, share in zip(retuned.sizes, (42, 9, 9), strict=True) for n in sizes)
    assert retuned.network.n == retuned.head.n == retuned.frozen.n == sum(retuned.sizes[2])


def test_the_folder_says_what_it_was_made_of(done: tuple[Retuned, Path]) -> None:
    retuned, _ = done
    about = json.loads((retuned.folder / "tuning.json").read_text(encoding="utf-8"))
    assert about["how"] == "last-2" and about["settings"]["layers"] == 2
    assert about["learnt"]["ham"] + about["learnt"]["spam"] == sum(retuned.sizes[0])
    assert len(about["settings"]["validation_loss"]) == len(retuned.tuned.progress.validation)


def test_the_command_says_what_to_configure(
    bert: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tune_command, "Settings", lambda layers, seed: SETTINGS(layers, epochs=1, seed=seed))
    (tmp_path / "spamguard.toml").write_text(
        f'state_dir = "{tmp_path}/state"\n[encoder]\nmodel = "{bert}"\ndevice = "cpu"\nmax_tokens = 32\n'
    )
    mail = write(tmp_path / "mail.csv")
    command = ["--config", str(tmp_path / "spamguard.toml"), "retrain", "--tune", "all", str(mail)]
    with pytest.raises(SystemExit) as left:
        main(command)
    out = capsys.readouterr()
    assert left.value.code == 0 and "neither is in service" in out.out and "[encoder]\nmodel = " in out.out
    assert "the tuned network alone" in out.out and "max_tokens = 32" in out.out


SETTINGS = tune_command.Settings


@pytest.mark.parametrize(
    ("ham", "spam", "how", "said"),
    [
        (60, 0, "all", "60 ham and 0 spam: training an encoder needs at least 40 of each"),
        (60, 12, "last-1", "60 ham and 12 spam: training an encoder needs at least 40 of each"),
        (60, 60, "last-5", "last-5: {bert} has 4 layers only"),
        (60, 60, "first-1", "'first-1' is none of head, last-N (N from 1) and all"),
    ],
)
def test_what_cannot_be_is_one_line(
    bert: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], ham: int, spam: int, how: str, said: str
) -> None:
    (tmp_path / "spamguard.toml").write_text(
        f'state_dir = "{tmp_path}/state"\n[encoder]\nmodel = "{bert}"\ndevice = "cpu"\nmax_tokens = 32\n'
    )
    mail = write(tmp_path / "mail.csv", ham, spam)
    with pytest.raises(SystemExit) as left:
        main(["--config", str(tmp_path / "spamguard.toml"), "retrain", "--tune", how, str(mail)])
    assert (left.value.code, capsys.readouterr().err) == (2, f"spamguard: {said.format(bert=bert)}\n")
    assert not (tmp_path / "state" / "encoders").exists()


def test_it_needs_a_path(bert: Path, tmp_path: Path) -> None:
    config = configuration(bert, tmp_path)
    with pytest.raises(CorpusError, match="needs a PATH"):
        tune([], config, load(config.encoder), "all")


def test_one_campaign_is_too_little(bert: Path, tmp_path: Path) -> None:
    file = tmp_path / "mail.csv"
    rows = [f"ham,{text(i, False)}" for i in range(60)] + [f"spam,buy cheap pills now {i}" for i in range(60)]
    file.write_text("label,text\n" + "\n".join(rows) + "\n")
    config = configuration(bert, tmp_path)
    with pytest.raises(CorpusError, match="too much of this mail is alike"):
        tune([file], config, load(config.encoder), "all")


def test_a_users_word_beats_the_folders(bert: Path, tmp_path: Path) -> None:
    config = configuration(bert, tmp_path)
    file = write(tmp_path / "mail.csv", 45, 45)
    reading = tune_command.Reading.configured(config)
    before = tune_command._read([file], reading, config, load(config.encoder), None)
    one = before.table["content"][before.table["label"] == 1].iloc[0]
    with Labels(config.labels_file) as labels:
        labels.add(before.read(one), Label.HAM, "command")
    after = tune_command._read([file], reading, config, load(config.encoder), None)
    changed = after.table["label"] != before.table["label"]
    assert after.table["content"][changed].tolist() == [one]
