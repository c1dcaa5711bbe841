"""A retrain before its gate: what is refused, with which reason, and that a refusal changes nothing."""

from __future__ import annotations

import shutil
from collections.abc import Collection
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest

from spamguard import bundle, features, heads_dir
from spamguard.config import Config, EncoderTable
from spamguard.encoder import TorchEncoder, load
from spamguard.errors import CorpusError
from spamguard.featurestore import FeatureStore
from spamguard.head import Row
from spamguard.headers import content_hash
from spamguard.labels import Labels
from spamguard.verdict import Label
from spamguard.wide import Counts
from tests.tiny_corpus import HAM, SPAM, mbox, message, write_files
from tests.unit.conftest import Tiny
from training import gate
from training.corpus import find
from training.retrain import Retrained, retrain
from training.trial import REFERENCE


@pytest.fixture(scope="module")
def encoder() -> TorchEncoder:
    """The embedded one, for which the shipped head is."""
    return load(EncoderTable(device="cpu", threads=1))


@pytest.fixture(scope="module")
def read(tmp_path_factory: pytest.TempPathFactory, encoder: TorchEncoder) -> Path:
    """A features folder in which the reference set is encoded already."""
    config = Config(state_dir=tmp_path_factory.mktemp("read"))
    retrain([REFERENCE], config, encoder)
    return config.features_dir


@pytest.fixture
def config(tmp_path: Path, read: Path) -> Config:
    shutil.copytree(read, tmp_path / "state" / "features")
    return Config(state_dir=tmp_path / "state")


def reference(ham: int = 100, spam: int = 100) -> tuple[list[bytes], list[bytes]]:
    """So many letters of the reference set, and so many of its spams."""
    mail = [(item.label, item.read()) for item in find([REFERENCE])]
    return [raw for label, raw in mail if label == 0][:ham], [raw for label, raw in mail if label == 1][:spam]


def lay(root: Path, ham: list[bytes], spam: list[bytes]) -> Path:
    root.mkdir(exist_ok=True)
    (root / "ham.mbox").write_bytes(mbox(ham))
    (root / "spam.mbox").write_bytes(mbox(spam))
    return root


def labelled(config: Config) -> int:
    with Labels(config.labels_file) as labels:
        return len(labels.rows())


def serving(config: Config) -> str:
    return heads_dir.serving(config.heads_dir)


def rows(done: Retrained) -> dict[str, gate.Row]:
    return {row.what: row for row in done.word.rows}


# --- With the head that ships ---------------------------------------------------------------------------------------


def test_what_does_no_harm_goes_live(config: Config, encoder: TorchEncoder, tmp_path: Path) -> None:
    done = retrain([lay(tmp_path / "mail", *reference())], config, encoder)
    assert done.word.outcome == "won" and done.before == "shipped" and serving(config) == done.bundle.id
    assert labelled(config) == 80 and rows(done)["your spam called spam"].n == 36
    (event,) = heads_dir.history(config.heads_dir)
    assert (event.id, event.why, event.gate) == (done.bundle.id, "retrain", done.word.sentence)
    assert done.bundle.manifest.provenance["gate"] == done.word.sentence


def test_swapped_folders_are_refused_and_change_nothing(
    config: Config, encoder: TorchEncoder, tmp_path: Path
) -> None:
    """All labels agree with each other, and the candidate does well on them."""
    ham, spam = reference()
    path = lay(tmp_path / "mail", spam, ham)
    done = retrain([path], config, encoder)
    assert done.word.outcome == "lost" and "are ham and spam swapped?" in done.word.sentence
    assert serving(config) == "shipped" and labelled(config) == 0
    (event,) = heads_dir.history(config.heads_dir)
    assert (event.id, event.why) == (done.bundle.id, "refused") and event.gate == done.word.sentence
    assert heads_dir.find(config.heads_dir, done.bundle.id).state == "candidate"
    with pytest.raises(bundle.BundleError, match="nothing is known"):
        heads_dir.before(config.heads_dir)

    heads_dir.promote(config.heads_dir, done.bundle.id)  # his word counts
    again = retrain([path], config, encoder)
    assert again.bundle.id == done.bundle.id == serving(config) == again.before
    assert again.word.outcome == "tied" and labelled(config) == 80


def test_a_second_head_is_compared_on_what_the_first_does_not_know(
    config: Config, encoder: TorchEncoder, tmp_path: Path
) -> None:
    first = retrain([lay(tmp_path / "one", *reference(10, 10))], config, encoder)
    assert first.word.passed and rows(first)["your ham called spam"].n == 10
    second = retrain([lay(tmp_path / "two", *reference(25, 22))], config, encoder)
    assert (rows(second)["your ham called spam"].n, rows(second)["your spam called spam"].n) == (15, 12)
    assert second.word.passed and second.before == first.bundle.id
    third = retrain([tmp_path / "two"], config, encoder)
    assert third.word == gate.SAME
    assert (
        third.bundle.id == second.bundle.id == serving(config)
        and heads_dir.before(config.heads_dir) == first.bundle.id
    )


def test_a_campaign_that_is_most_of_the_spam_is_heard_once_and_said(
    config: Config, encoder: TorchEncoder, tmp_path: Path
) -> None:
    ham, spam = reference(30, 6)
    copies = [
        message("Cheap watches", f"Buy a cheap watch today and save, order {i}. Click here!") for i in range(54)
    ]
    done = retrain([lay(tmp_path / "mail", ham, spam + copies)], config, encoder)
    assert done.alike == ("54 of 60 spam are nearly the same message: together they weigh as much as 7 others",)
    assert rows(done)["your spam called spam"].n == 7 and done.word.passed


# --- With a tiny encoder --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ham", "spam", "words"),
    [
        (20, 0, "20 ham and 0 spam: a head needs at least 5 of each"),
        (0, 20, "0 ham and 20 spam: a head needs at least 5 of each"),
        (3, 2, "3 ham and 2 spam: a head needs at least 5 of each"),
    ],
)
def test_one_class_or_five_messages_teach_nothing(
    tiny: Tiny, tmp_path: Path, ham: int, spam: int, words: str
) -> None:
    write_files(tmp_path / "mail" / "ham", HAM[:ham])
    write_files(tmp_path / "mail" / "spam", SPAM[:spam])
    config = tiny.config(tmp_path / "state")
    with pytest.raises(CorpusError, match=words):
        retrain([tmp_path / "mail"], config, tiny.encoder)
    assert not config.heads_dir.exists() and labelled(config) == 0


def teach(config: Config, tiny: Tiny, swapped: Collection[str] = ()) -> None:
    """240 labelled messages that no other resembles, spam apart from ham by what the encoder made of them."""
    rng = np.random.default_rng(0)
    with Labels(config.labels_file) as labels, FeatureStore(config.features_dir, tiny.encoder.fingerprint) as store:
        for i in range(240):
            columns = np.sort(rng.choice(tiny.encoder.vocab_size, 12, replace=False)).astype(np.uint32)
            deep = (rng.normal(size=tiny.encoder.dim) + (i % 2)).astype(np.float32)
            row = Row(
                deep, Counts(columns, np.ones(12, np.uint16)), rng.random(len(features.NAMES)).astype(np.float32)
            )
            raw = message(f"subject {i}", "x")
            label = Label.SPAM if (i % 2) != (content_hash(raw) in swapped) else Label.HAM
            content = labels.add(raw, label, "moved")
            store.put([(content, row)])
            labels.encoded([content])


def test_what_is_locked_away_is_never_learnt_from(tiny: Tiny, tmp_path: Path) -> None:
    """Nor do cut-offs or strength depend on it: with its labels swapped it is the same head."""
    one, other = tiny.config(tmp_path / "one"), tiny.config(tmp_path / "other")
    teach(one, tiny)
    done = retrain([], one, tiny.encoder)
    mail = done.trial.mail
    locked = {content for content, is_locked in zip(mail.contents, mail.locked, strict=True) if is_locked}
    assert 15 < len(locked) == done.locked < 60 and done.ham + done.spam + done.locked == 240
    assert done.bundle.manifest.provenance["locked"] == len(locked)
    assert bundle.fitted_on(done.folder, mail.contents) == set(mail.contents) - locked
    assert rows(done)["your ham called spam"].n + rows(done)["your spam called spam"].n == len(locked)
    teach(other, tiny, swapped=locked)
    same = retrain([], other, tiny.encoder)
    assert same.bundle.id == done.bundle.id
    for field in fields(done.bundle.head):
        assert getattr(same.bundle.head, field.name).tobytes() == getattr(done.bundle.head, field.name).tobytes()


def test_a_head_from_before_there_was_a_gate_may_know_all(tiny: Tiny, tmp_path: Path) -> None:
    """It does not say what it was fitted on, so nothing is compared that it might know."""
    config = tiny.config(tmp_path / "state")
    done = retrain([tiny.corpus], config, tiny.encoder)
    (done.folder / bundle.FITTED_ON).unlink()
    again = retrain([tiny.corpus], config, tiny.encoder, kind="mlp")
    assert again.before == done.bundle.id
    assert rows(again)["your ham called spam"].n == rows(again)["your spam called spam"].n == 0
