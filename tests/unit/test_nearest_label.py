"""The nearest label: that of the likest message, from whatever source, found without leaving a trace."""

from __future__ import annotations

import random
import sqlite3
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from spamguard import bundle, explain
from spamguard.config import Config
from spamguard.explain import Nearest, nearest
from spamguard.featurestore import FeatureStore, FeatureStoreError
from spamguard.head import AdditiveHead, MlpHead
from spamguard.headers import content_hash
from spamguard.labels import FOLDER, USERS, Labels, LabelsError
from spamguard.scorer import Scorer
from spamguard.verdict import Cutoffs, Label
from spamguard.wide import weigh
from tests.tiny_corpus import HAM, SPAM, message
from tests.unit.conftest import Tiny
from tests.unit.test_explain import MIXED, judged


@pytest.fixture(scope="module")
def scorer(tiny: Tiny) -> Scorer:
    return Scorer(tiny.encoder, tiny.bundle())


@pytest.fixture
def config(tiny: Tiny, tmp_path: Path) -> Config:
    return tiny.config(tmp_path / "state")


@pytest.fixture
def label(config: Config, scorer: Scorer) -> Callable[..., str]:
    """Notes a label, and encodes the message as the daemon would; returns the content hash."""

    def note(raw: bytes, label: Label, source: str = "moved", where: str = "", waits: bool = False) -> str:
        with Labels(config.labels_file) as labels:
            content = labels.add(raw, label, source, where)
            if not waits:
                seen = judged(scorer, raw)[1].seen
                assert seen is not None
                with FeatureStore(config.features_dir, scorer.encoder_id) as store:
                    store.put([(content, seen)])
                labels.encoded([content])
        return content

    return note


def ask(config: Config, scorer: Scorer, *mail: bytes) -> list[Nearest | None]:
    return nearest(config, scorer, [content_hash(raw) for raw in mail], [judged(scorer, raw)[1] for raw in mail])


def like(scorer: Scorer, one: bytes, other: bytes) -> float:
    """By the definition, one pair at a time."""
    head = scorer.bundle.head
    assert isinstance(head, AdditiveHead)
    vectors = []
    for raw in (one, other):
        seen = judged(scorer, raw)[1].seen
        assert seen is not None
        words, text = np.zeros(len(head.wide_idf)), seen.wide.text(len(head.wide_idf))
        words[text.columns] = weigh(text, head.wide_idf)
        vectors.append((seen.deep.astype(np.float64) - head.deep_center, words))
    deep, wide = (a @ b / (np.linalg.norm(a) * np.linalg.norm(b)) for a, b in zip(*vectors, strict=True))
    return float(deep + wide) / 2


MEETING = message("the meeting", "please see the report attached tomorrow", "Bob <bob@example.net>")
PILLS = message("cheap pills", "buy free pills now for money", "Bob <bob@example.net>")


def test_it_is_the_label_of_the_likest_message(config: Config, scorer: Scorer, label: Callable[..., str]) -> None:
    contents = {label(raw, Label.HAM): raw for raw in HAM} | {label(raw, Label.SPAM): raw for raw in SPAM}
    for raw, said in ((MEETING, Label.HAM), (PILLS, Label.SPAM)):
        found = ask(config, scorer, raw)[0]
        assert found is not None and found.given.label is said and not found.same
        alike = {content: like(scorer, raw, other) for content, other in contents.items()}
        assert found.alike == pytest.approx(max(alike.values()), abs=2e-3)
        assert alike[found.given.content] == pytest.approx(max(alike.values()), abs=2e-3)


@pytest.mark.parametrize("source", [*USERS, FOLDER])
def test_labels_of_every_source_count(config: Config, scorer: Scorer, label: Callable[..., str], source: str) -> None:
    content = label(SPAM[0], Label.SPAM, source, "/home/ann/Maildir")
    found = ask(config, scorer, SPAM[1])[0]
    assert found is not None
    assert (found.given.content, found.given.source, found.given.where) == (content, source, "/home/ann/Maildir")


def test_what_was_said_of_this_very_message_comes_first(
    config: Config, scorer: Scorer, label: Callable[..., str]
) -> None:
    label(SPAM[1], Label.SPAM)
    content = label(SPAM[0], Label.HAM, "command", waits=True)
    found = ask(config, scorer, SPAM[0].replace(b"\n", b"\r\n"))[0]
    assert found is not None and found.same and found.alike == 1
    assert (found.given.content, found.given.label) == (content, Label.HAM)


def test_in_company_and_in_parts_the_answers_are_the_same(
    config: Config, scorer: Scorer, label: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for i, raw in enumerate([*HAM[:9], *SPAM[:9]]):
        label(raw, Label.HAM if i < 9 else Label.SPAM)
    mail = [MEETING, PILLS, MIXED, *HAM[9:12], *SPAM[9:12], message("", "")]
    together = ask(config, scorer, *mail)
    monkeypatch.setattr(explain, "LABELS_AT_ONCE", 4)
    apart = [ask(config, scorer, raw)[0] for raw in mail]
    assert [one and one.alike for one in apart] == pytest.approx([one and one.alike for one in together], abs=1e-4)
    assert len([one for one in together if one]) >= 8


def test_what_is_not_alike_is_not_near(config: Config, scorer: Scorer, label: Callable[..., str]) -> None:
    label(SPAM[0], Label.SPAM)
    far = message("thirty-two", "xylophone zebra quartz", "Q <q@example.org>")
    assert like(scorer, far, SPAM[0]) < explain.LEAST_ALIKE and ask(config, scorer, far) == [None]


def test_a_message_that_has_not_been_encoded_is_not_found(
    config: Config, scorer: Scorer, label: Callable[..., str]
) -> None:
    label(SPAM[0], Label.SPAM, waits=True)
    assert ask(config, scorer, SPAM[1]) == [None]
    label(HAM[0], Label.HAM)
    found = ask(config, scorer, HAM[1])[0]
    assert found is not None and found.given.label is Label.HAM


def test_another_encoder_s_rows_are_not_used(
    config: Config, scorer: Scorer, label: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    label(SPAM[0], Label.SPAM)
    assert ask(config, scorer, SPAM[1]) != [None]
    monkeypatch.setattr(scorer, "encoder_id", "another")
    assert ask(config, scorer, SPAM[1]) == [None]
    assert [file.name for file in config.features_dir.iterdir()] == [f"{scorer.encoder.fingerprint}.sqlite3"]


def test_an_mlp_head_knows_only_the_very_message(
    config: Config, scorer: Scorer, label: Callable[..., str], tiny: Tiny
) -> None:
    label(SPAM[0], Label.SPAM)
    shapes = ((tiny.encoder.dim, 4), (4,), (4, 2), (2,), (2,))
    head = MlpHead(*(np.ones(shape, np.float32) for shape in shapes))
    other = Scorer(tiny.encoder, bundle.make(head, Cutoffs(0.5, 0.9), tiny.encoder, {}))
    same, like_it = ask(config, other, SPAM[0], SPAM[1])
    assert same is not None and same.same and like_it is None


def files(folder: Path) -> dict[str, bytes]:
    return {str(file): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_nothing_is_made_or_changed(config: Config, scorer: Scorer, label: Callable[..., str]) -> None:
    assert ask(config, scorer, SPAM[0]) == [None] and not config.state_dir.exists()
    label(SPAM[0], Label.SPAM)
    label(HAM[0], Label.HAM, waits=True)
    before = files(config.state_dir)
    assert len(before) == 2
    ask(config, scorer, SPAM[1], HAM[0])
    assert files(config.state_dir) == before


def test_it_reads_while_others_write(config: Config, scorer: Scorer, label: Callable[..., str]) -> None:
    label(SPAM[0], Label.SPAM)
    writer = sqlite3.connect(config.labels_file, isolation_level=None)
    writer.execute("BEGIN IMMEDIATE")
    assert ask(config, scorer, SPAM[1]) != [None]
    writer.execute("ROLLBACK")
    writer.close()


def test_a_reader_makes_and_writes_nothing(config: Config, scorer: Scorer, label: Callable[..., str]) -> None:
    for open_it in (
        lambda: Labels(config.labels_file, read_only=True),
        lambda: FeatureStore(config.features_dir, "none", read_only=True),
    ):
        with pytest.raises((LabelsError, FeatureStoreError), match="unable to open"):
            open_it()
    assert not config.state_dir.exists()
    content = label(SPAM[0], Label.SPAM)
    with Labels(config.labels_file, read_only=True) as labels, pytest.raises(LabelsError, match="readonly"):
        labels.add(SPAM[1], Label.SPAM, "moved")
    with (
        FeatureStore(config.features_dir, scorer.encoder_id, read_only=True) as store,
        pytest.raises(FeatureStoreError, match="readonly"),
    ):
        store.remove([content])


@pytest.mark.parametrize("name", ["labels.sqlite3", "features"])
def test_a_damaged_file_is_an_error_of_ours(
    config: Config, scorer: Scorer, label: Callable[..., str], name: str
) -> None:
    label(SPAM[0], Label.SPAM)
    path = config.state_dir / name
    file = path if path.is_file() else next(path.iterdir())
    file.write_bytes(random.Random(0).randbytes(20_000))
    with pytest.raises((LabelsError, FeatureStoreError), match=str(file)):
        ask(config, scorer, SPAM[1])


def test_ten_thousand_labels_are_looked_through(config: Config, scorer: Scorer, label: Callable[..., str]) -> None:
    seen = judged(scorer, SPAM[0])[1].seen
    assert seen is not None
    rng = np.random.default_rng(0)
    contents = [f"{i:064x}" for i in range(10_000)]
    with FeatureStore(config.features_dir, scorer.encoder_id) as store:
        noise = rng.normal(size=(len(contents), len(seen.deep))).astype(np.float32)
        store.put((content, replace(seen, deep=deep)) for content, deep in zip(contents, noise, strict=True))
    with Labels(config.labels_file) as labels:
        labels.replace_folder(dict.fromkeys(contents, (Label.HAM, "")))
    wanted = label(SPAM[0], Label.SPAM)
    found = ask(config, scorer, SPAM[0] + b"\n")[0]
    assert found is not None and found.given.content == wanted and found.alike > 0.999
