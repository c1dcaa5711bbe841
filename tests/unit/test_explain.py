"""Phrases: the share of one is what the score falls by without it, whatever the text."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spamguard import bundle, explain
from spamguard.config import EncoderTable
from spamguard.encoder import load
from spamguard.explain import LONGEST, PHRASES, Phrase, phrases
from spamguard.head import MlpHead
from spamguard.scorer import SMALLEST_REASON, Prepared, Scorer
from spamguard.verdict import Cutoffs, Verdict
from spamguard.wide import WIDE_TOKENS
from tests.tiny_corpus import GTUBE, SPAM, message
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


def judged(scorer: Scorer, raw: bytes) -> tuple[Prepared, Verdict]:
    item = scorer.prepare(raw)
    return item, scorer.score([item])[0]


def explained(scorer: Scorer, raw: bytes) -> list[Phrase]:
    return phrases(scorer, *judged(scorer, raw))


def of_text(verdict: Verdict) -> float:
    return verdict.parts["deep"] + verdict.parts["wide"]


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
