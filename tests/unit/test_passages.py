"""A second look at long ham: a spam with ham around it is not ham, and long ham stays what it is."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spamguard import bundle, features
from spamguard.bundle import Bundle
from spamguard.config import EncoderTable
from spamguard.encoder import CHARACTERS_A_TOKEN, TorchEncoder, load
from spamguard.explain import phrases
from spamguard.head import AdditiveHead
from spamguard.passages import PASSAGE, STEP, most_telling, rest_of
from spamguard.scorer import Scorer
from spamguard.verdict import Cutoffs, Label, Verdict
from spamguard.wide import WIDE_TOKENS
from tests.random_head import random_head
from tests.tiny_corpus import GTUBE, message
from tests.unit.conftest import Tiny
from tests.unit.test_shipped_head import LETTER, SCAM

SEEN = WIDE_TOKENS * CHARACTERS_A_TOKEN
NOTES = " ".join(
    f"""On {day} we went through the patches that had come to the list. The parser still reads one line too many when
a file ends without a newline; {name} has a test for it and will send it before the release. The build on the
old machine is slow again, since the disk is nearly full of logs. {name} moves them to the other host at the
weekend and then we can see whether the nightly tests finish before breakfast. Somebody asked how to configure
the editor for our indentation, and the answer is in the second chapter of the handbook, below the notes on
the compiler's warnings. The meeting of next week is on Thursday at ten, in the small room, as the large one
is being painted. Please read the draft until then."""
    for day in ("Monday", "Tuesday", "Wednesday", "Friday")
    for name in ("Anna", "Tom", "Lena", "Paul", "Ruth", "Karl")
)


@pytest.fixture(scope="module")
def scorer() -> Scorer:
    encoder = load(EncoderTable(device="cpu"))
    return Scorer(encoder, bundle.load(bundle.SHIPPED, encoder))


def judge(scorer: Scorer, raw: bytes) -> Verdict:
    return scorer.score([scorer.prepare(raw)])[0]


def body(raw: bytes) -> str:
    return raw.split(b"\n\n", 1)[1].decode()


HIDDEN = {
    "before": message("patches", f"{NOTES}\n\n{body(SCAM)}", "Barrister Paul Okoro <paul.okoro@mail.example.com>"),
    "behind": message("patches", f"{body(SCAM)}\n\n{NOTES}", "Barrister Paul Okoro <paul.okoro@mail.example.com>"),
    "around": message("patches", f"{NOTES}\n\n{body(SCAM)}\n\n{NOTES}", "Anna Berg <anna@example.org>"),
}


@pytest.mark.parametrize("where", HIDDEN)
def test_row_30_ham_around_a_spam_does_not_make_it_ham(scorer: Scorer, where: str) -> None:
    verdict = judge(scorer, HIDDEN[where])
    assert verdict.label is not Label.HAM
    if "passage" in verdict.parts:  # else the spam stood where the windows see it
        assert verdict.label is Label.UNSURE and verdict.probability == verdict.cutoffs.unsure
        logit = np.log(verdict.probability / (1 - verdict.probability))
        assert sum(verdict.parts.values()) == pytest.approx(logit, abs=1e-5)
        assert verdict.reasons[0].part == "passage"
        words = verdict.reasons[0].what.partition('"')[2].rstrip('"')
        assert words and words in " ".join(HIDDEN[where].decode().split())
        assert "account" in words or "million" in words


def test_without_the_second_look_it_would_be_ham(scorer: Scorer) -> None:
    """The attack works, so that the test above can fail."""
    verdict = judge(scorer, HIDDEN["before"])
    assert "passage" in verdict.parts
    assert sum(share for part, share in verdict.parts.items() if part != "passage") < 0


def test_long_ham_stays_ham(scorer: Scorer) -> None:
    for raw in (message("patches", NOTES, "Anna Berg <anna@example.org>"), LETTER):
        verdict = judge(scorer, raw)
        assert verdict.label is Label.HAM and "passage" not in verdict.parts


def test_company_changes_nothing(scorer: Scorer) -> None:
    mail = [*HIDDEN.values(), LETTER, SCAM]
    together = scorer.score([scorer.prepare(raw) for raw in mail])
    for raw, verdict in zip(mail, together, strict=True):
        alone = judge(scorer, raw)
        assert alone.parts == pytest.approx(verdict.parts, abs=1e-4) and alone.label is verdict.label


def test_a_phrase_of_such_a_message_is_told_by_the_whole(scorer: Scorer) -> None:
    item = scorer.prepare(HIDDEN["before"])
    verdict = scorer.score([item])[0]
    # Ham phrases at the beginning: what they held up would fall towards spam, not by the whole lift of the passage.
    assert all(abs(one.logit) < verdict.parts["passage"] for one in phrases(scorer, item, verdict))


def test_where_unsure_is_spam_nothing_is_lifted(scorer: Scorer) -> None:
    served = Scorer(scorer.encoder, scorer.bundle, Cutoffs(0.9, 0.9))
    assert "passage" not in judge(served, HIDDEN["before"]).parts


def test_a_rule_and_an_mlp_need_no_second_look(scorer: Scorer, tiny: Tiny) -> None:
    assert judge(scorer, message("t", f"{NOTES}\n{GTUBE}\n{body(SCAM)}")).parts == {"rule": 10.0}
    mlp = random_head("mlp", dim=tiny.encoder.dim, columns=tiny.encoder.vocab_size, structure=len(features.NAMES))
    served = Scorer(tiny.encoder, Bundle(mlp, Cutoffs(0.999, 0.9999), tiny.bundle().manifest))
    assert set(judge(served, message("t", "money " * 300)).parts) == {"bias", "deep"}


@given(st.integers(0, 400), st.integers(0, 2**32 - 1))
def test_the_most_telling_passage_is_the_one_with_the_heaviest_words(tokens: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    weight = rng.normal(size=50).astype(np.float32)
    head = random_head("additive", dim=6, columns=50, structure=3)
    assert isinstance(head, AdditiveHead)
    head = replace(head, wide_idf=np.ones(50, np.float32), wide_weight=weight)
    ids = rng.integers(0, 50, tokens).astype(np.int32)
    start, counts, share = most_telling(head, ids)
    assert start % STEP == 0 and counts.counts.sum() == min(PASSAGE, tokens - start)
    for other in range(0, max(1, tokens - PASSAGE + STEP), STEP):
        columns, number = np.unique(ids[other : other + PASSAGE], return_counts=True)
        values = 1 + np.log(number)
        length = np.sqrt(values @ values) or 1.0
        assert share >= weight[columns] @ values / length - 1e-4


@given(st.integers(0, 120_000))
def test_the_rest_of_a_text_holds_its_end_and_is_bounded(length: int) -> None:
    text = "".join(chr(97 + i % 26) for i in range(length))
    rest = rest_of(text)
    assert len(text[:SEEN]) + len(rest) <= 49_200
    assert text[:SEEN] + rest == text or (length > 49_000 and rest.endswith(text[-24_000:]))


def test_words_and_meaning_are_still_those_of_the_first_tokens(scorer: Scorer, encoder_of: TorchEncoder) -> None:
    item = scorer.prepare(HIDDEN["before"])
    assert len(item.token_ids) == WIDE_TOKENS and len(item.all_ids) > WIDE_TOKENS
    np.testing.assert_array_equal(item.token_ids, item.all_ids[:WIDE_TOKENS])
    np.testing.assert_array_equal(item.token_ids, encoder_of.tokenize([item.text], WIDE_TOKENS)[0])


@pytest.fixture
def encoder_of(scorer: Scorer) -> TorchEncoder:
    assert isinstance(scorer.encoder, TorchEncoder)
    return scorer.encoder
