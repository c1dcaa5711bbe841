"""Reasons: a phrase's share is what the score falls by without it, the nearest label that of the likest message."""

from __future__ import annotations

import random
import re
import sqlite3
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spamguard import bundle, explain
from spamguard.config import Config, EncoderTable
from spamguard.encoder import TorchEncoder, load
from spamguard.explain import LONGEST, PHRASES, Nearest, Phrase, nearest, phrases
from spamguard.featurestore import FeatureStore, FeatureStoreError
from spamguard.head import AdditiveHead, MlpHead
from spamguard.headers import content_hash
from spamguard.labels import FOLDER, USERS, Labels, LabelsError
from spamguard.scorer import SMALLEST_REASON, Prepared, Scorer
from spamguard.verdict import Cutoffs, Label, Verdict
from spamguard.wide import WIDE_TOKENS, weigh
from tests.tiny_corpus import GTUBE, HAM, SPAM, message
from tests.unit.conftest import Tiny
from tests.unit.test_shipped_head import LETTER, SCAM

# Something of both classes, so that the probability is not at its end and can move.
BETWEEN = message(
    "Thursday",
    """Hi Tom, Thursday works for me, but could we make it half past ten? I looked at the patch you sent: the loop in
parse_header still reads one line too many when the file ends without a newline. I've attached a test that shows it.
By the way, look at what I got today. You will receive 40% of the total sum of US$18,500,000 for your assistance.
Kindly send me your full name, telephone number and bank account details as soon as possible. Do you want me to bring
the old laptop along?""",
    "Anna Berg <anna@example.org>",
)
MIXED = message(
    "see you tomorrow",
    "The meeting is at noon. Buy cheap pills now. Please see the report attached. Free money now!",
)


@pytest.fixture(scope="module")
def scorer(tiny: Tiny) -> Scorer:
    return Scorer(tiny.encoder, tiny.bundle())


@pytest.fixture(scope="module")
def shipped() -> Scorer:
    encoder = load(EncoderTable(device="cpu"))
    return Scorer(encoder, bundle.load(bundle.SHIPPED, encoder))


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many texts the encoder was given, each time."""
    sizes: list[int] = []
    encode = TorchEncoder.encode

    def counting(self: TorchEncoder, tokens: Any) -> Any:
        sizes.append(len(tokens))
        return encode(self, tokens)

    monkeypatch.setattr(TorchEncoder, "encode", counting)
    return sizes


def judged(scorer: Scorer, raw: bytes) -> tuple[Prepared, Verdict]:
    item = scorer.prepare(raw)
    return item, scorer.score([item])[0]


def explained(scorer: Scorer, raw: bytes) -> list[Phrase]:
    return phrases(scorer, *judged(scorer, raw))


def of_text(verdict: Verdict) -> float:
    return verdict.parts["deep"] + verdict.parts["wide"]


# --- Phrases --------------------------------------------------------------------------------------------------------


def test_a_share_is_what_the_text_s_part_of_the_logit_falls_by(scorer: Scorer) -> None:
    """Written again without the sentence, and judged as any mail."""
    found = {one.text: one.logit for one in explained(scorer, MIXED)}
    sentences = ["The meeting is at noon.", "Buy cheap pills now.", "Please see the report attached."]
    whole = of_text(judged(scorer, MIXED)[1])
    for sentence in sentences:
        left = judged(scorer, MIXED.replace(f"{sentence} ".encode(), b""))[1]
        assert found.get(sentence, 0.0) == pytest.approx(whole - of_text(left), abs=SMALLEST_REASON / 10)
    assert len(found.keys() & set(sentences)) >= 2


def test_subject_and_sender_s_name_are_phrases_of_their_own(scorer: Scorer) -> None:
    spans = explain._groups(scorer, judged(scorer, MIXED)[0].text)
    text = judged(scorer, MIXED)[0].text
    assert [text[start:end].strip() for ((start, end),) in spans] == [
        "see you tomorrow",
        "Ann",
        "The meeting is at noon.",
        "Buy cheap pills now.",
        "Please see the report attached.",
        "Free money now!",
    ]


def without(raw: bytes, phrase: Phrase) -> bytes:
    """The mail without the phrase, wherever its lines break."""
    wanted = rb"\s+".join(re.escape(word.encode()) for word in phrase.text.split())
    left, times = re.subn(wanted + rb"\s?", b"", raw)
    assert times == phrase.times
    return left


@pytest.mark.parametrize("which", ["tiny", "shipped"])
def test_removing_the_top_phrase_lowers_the_score(scorer: Scorer, shipped: Scorer, which: str) -> None:
    judge, raw = (scorer, MIXED) if which == "tiny" else (shipped, BETWEEN)
    found = sorted(explained(judge, raw), key=lambda one: one.logit)
    before = judged(judge, raw)[1].probability
    assert found[-1].logit > 0.2 and found[0].logit < -0.2
    assert judged(judge, without(raw, found[-1]))[1].probability < before - 0.001
    assert judged(judge, without(raw, found[0]))[1].probability > before + 0.001


def test_strongest_first_and_each_worth_a_line(shipped: Scorer) -> None:
    for raw in (SCAM, LETTER):
        found = explained(shipped, raw)
        strengths = [abs(one.logit) for one in found]
        assert len(found) > 3 and strengths == sorted(strengths, reverse=True)
        assert strengths[-1] >= SMALLEST_REASON
        assert found == explained(shipped, raw)


@pytest.mark.parametrize("other", ["buy cheap pills now.", "BUY  CHEAP\nPILLS NOW."])
def test_equal_phrases_are_one_and_go_together(scorer: Scorer, other: str) -> None:
    raw = message("hello", f"Buy cheap pills now. The meeting is at noon. {other} See you tomorrow.")
    found = {one.text: one for one in explained(scorer, raw)}
    assert found["Buy cheap pills now."].times == 2 and other not in found
    both = raw.replace(b"Buy cheap pills now. ", b"").replace(other.encode(), b"")
    fall = of_text(judged(scorer, raw)[1]) - of_text(judged(scorer, both)[1])
    assert found["Buy cheap pills now."].logit == pytest.approx(fall, abs=1e-3)


def test_a_phrase_again_behind_the_window_goes_as_well(scorer: Scorer) -> None:
    long = "Please see the report attached tomorrow at noon. " * 200
    raw = message("hello", f"Buy cheap pills now. {long[: 150 * 49]} Buy cheap pills now.")
    item, verdict = judged(scorer, raw)
    assert len(item.token_ids) == WIDE_TOKENS
    found = {one.text: one.times for one in phrases(scorer, item, verdict)}
    assert found["Buy cheap pills now."] == 2


def test_behind_the_encoder_s_window_words_count_and_nothing_is_encoded(scorer: Scorer, encoded: list[int]) -> None:
    front = " ".join(["the report is at noon please see you tomorrow"] * 8)
    raw = message("hello", f"{front}. Free money money, buy cheap pills.")
    item, verdict = judged(scorer, raw)
    assert len(scorer.encoder.tokenize([front], 1000)[0]) > scorer.encoder.max_tokens
    encoded.clear()
    found = {one.text: one.logit for one in phrases(scorer, item, verdict)}
    share = found["Free money money, buy cheap pills."]
    assert len(encoded) == 1 and encoded[0] < len(explain._groups(scorer, item.text))
    left = judged(scorer, raw.replace(b" Free money money, buy cheap pills.", b""))[1]
    assert share == pytest.approx(verdict.parts["wide"] - left.parts["wide"], abs=1e-3) and share > 0


def test_the_mail_path_encodes_no_more_than_before(scorer: Scorer, encoded: list[int]) -> None:
    scorer.score([scorer.prepare(raw) for raw in (MIXED, *SPAM)], explain=True)
    assert encoded == [21]


@pytest.mark.parametrize("raw", [b"", message("", ""), message("", "\u200b\u200d" * 5000, ""), message("x", GTUBE)])
def test_no_text_or_a_rule_gives_no_phrases(scorer: Scorer, raw: bytes) -> None:
    item, verdict = judged(scorer, raw)
    if "rule" in verdict.parts or not len(item.token_ids):
        assert phrases(scorer, item, verdict) == []
    assert all(np.isfinite(one.logit) for one in phrases(scorer, item, verdict))


def test_an_mlp_head_has_phrases_too(tiny: Tiny) -> None:
    rng = np.random.default_rng(0)
    shapes = ((tiny.encoder.dim, 4), (4,), (4, 2), (2,), (2,))
    head = MlpHead(*(rng.normal(size=shape).astype(np.float32) for shape in shapes))
    scorer = Scorer(tiny.encoder, bundle.make(head, Cutoffs(0.5, 0.9), tiny.encoder, {}))
    found = explained(scorer, MIXED)
    assert found
    left = judged(scorer, MIXED.replace(f"{found[0].text} ".encode(), b""))[1]
    if found[0].text.encode() + b" " in MIXED:
        fall = judged(scorer, MIXED)[1].parts["deep"] - left.parts["deep"]
        assert found[0].logit == pytest.approx(fall, abs=1e-3)


HOSTILE = {
    "one line without an end": "cheap pills now " * 100_000,
    "no blanks": "x" * 100_000,
    "nothing but ends": ".!? " * 30_000,
    "one word a sentence": "buy. " * 30_000,
    "other words": " ".join(str(n) for n in range(100_000)),
    "no blanks, many tokens": "?!" * 50_000,
    "Chinese": "\u4f60\u597d\u3002" * 30_000,
    "Chinese without an end": "\u4f60" * 100_000,
    "marks": "a" + "\u0301" * 100_000,
    "invisible": "\u200b" * 100_000,
    "line separators": "buy now\u2028" * 20_000,
}


@pytest.mark.parametrize("body", HOSTILE.values(), ids=list(HOSTILE))
def test_work_is_bounded_whatever_comes(scorer: Scorer, encoded: list[int], body: str) -> None:
    item, verdict = judged(scorer, message("buy now", body))
    encoded.clear()
    for one in phrases(scorer, item, verdict):
        assert np.isfinite(one.logit) and one.times >= 1 and one.text.isprintable()
    assert sum(encoded) <= PHRASES + 3  # subject, name, and one across the window's end
    assert len(explain._groups(scorer, item.text)) <= WIDE_TOKENS // explain.SHORTEST + 3


def test_many_short_sentences_are_joined_so_that_few_are_encoded(shipped: Scorer, encoded: list[int]) -> None:
    item, verdict = judged(shipped, message("numbers", " ".join(f"Number {n}." for n in range(1000, 1400))))
    encoded.clear()
    assert phrases(shipped, item, verdict)
    assert PHRASES / 2 <= sum(encoded) <= PHRASES + 3


@settings(deadline=None)
@given(st.text(max_size=400) | st.text("aZ9 .!?,\n\u4f60\u3002\u00e9\u0301", max_size=400))
def test_phrases_cover_the_tokens_of_any_text_once_and_in_order(tiny: Tiny, text: str) -> None:
    _, spans = tiny.encoder.pieces(text, max(len(text), 1))
    starts = np.asarray([start for start, _ in spans], np.int64)
    end = covered = 0
    for start, stop in explain._split(text, starts, explain.SHORTEST):
        assert end <= start < stop <= len(text)
        inside = int(((starts >= start) & (starts < stop)).sum())
        longest = max((int((starts == at).sum()) for at in set(starts.tolist())), default=0)
        assert 0 < inside <= LONGEST + explain.SHORTEST + longest
        end, covered = stop, covered + inside
    assert covered == len(starts)


@settings(deadline=None, max_examples=30)
@given(st.binary(max_size=300) | st.text(max_size=300).map(lambda text: message(text, text)))
def test_any_bytes_are_explained(tiny: Tiny, raw: bytes) -> None:
    for one in explained(Scorer(tiny.encoder, tiny.bundle()), raw):
        assert np.isfinite(one.logit) and one.text


def test_a_long_sentence_is_cut_behind_a_comma(scorer: Scorer) -> None:
    words = "please see the report attached " * 5
    text = f"{words}tomorrow, {words}at noon {words}now"
    cut = [text[start:end] for ((start, end),) in explain._groups(scorer, text)]
    assert cut[0] == f"{words}tomorrow, " and "".join(cut) == text


# --- The nearest label ----------------------------------------------------------------------------------------------


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
        words = np.zeros(len(head.wide_idf))
        words[seen.wide.columns] = weigh(seen.wide, head.wide_idf)
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
