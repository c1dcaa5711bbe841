"""The scorer: what it says adds up, does not depend on company, and is never a number that is none."""

from __future__ import annotations

import pickle
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spamguard import bundle, features, headers
from spamguard.bundle import Bundle
from spamguard.config import Config, HeadTable
from spamguard.encoder import TorchEncoder
from spamguard.errors import BundleError, ScoringError
from spamguard.head import AdditiveHead, MlpHead, probability
from spamguard.scorer import REASONS, SMALLEST_REASON, Scorer, look
from spamguard.verdict import Cutoffs, Label, Verdict
from spamguard.wide import WIDE_TOKENS
from tests.tiny_corpus import GTUBE, HAM, SPAM, message
from tests.unit.conftest import Tiny

LONG = message("please see", "the report is attached money now " * 300)
REPEATED = message("Buy buy BUY", "cheap cheap Cheap, CHEAP pills! money? free free")
HTML = (
    b"From: a@example.org\nSubject: now\nContent-Type: text/html\n\n"
    b'<p>FREE money! <a href="http://192.0.2.1/">http://example.com</a>'
)
ODD = [
    b"",
    b"no headers at all",
    REPEATED,
    HTML,
    LONG,
    message("", ""),
    message("é", "ça и 中文 🙂"),
    b"\x00\xff" * 50,
]


@pytest.fixture(scope="module")
def scorer(tiny: Tiny) -> Scorer:
    return Scorer(tiny.encoder, tiny.bundle())


def judge(scorer: Scorer, raw: bytes, **options: Any) -> Verdict:
    return scorer.score([scorer.prepare(raw)], **options)[0]


def with_head(scorer: Scorer, **arrays: Any) -> Scorer:
    """The same encoder with a changed head."""
    return Scorer(scorer.encoder, replace(scorer.bundle, head=replace(scorer.bundle.head, **arrays)))


def additive(scorer: Scorer) -> AdditiveHead:
    assert isinstance(scorer.bundle.head, AdditiveHead)
    return scorer.bundle.head


# --- The verdict ----------------------------------------------------------------------------------------------------


def test_it_tells_ham_from_spam(scorer: Scorer) -> None:
    verdicts = scorer.score([scorer.prepare(raw) for raw in [*HAM, *SPAM]])
    assert [verdict.label for verdict in verdicts] == [Label.HAM] * 20 + [Label.SPAM] * 20


def test_a_verdict_says_who_judged_and_at_which_cutoffs(scorer: Scorer, tiny: Tiny) -> None:
    verdict = judge(scorer, SPAM[0])
    assert (verdict.encoder, verdict.head) == (tiny.encoder.fingerprint, tiny.bundle().id)
    assert verdict.cutoffs == tiny.bundle().cutoffs and verdict.milliseconds > 0


@pytest.mark.parametrize("raw", [*ODD, HAM[0], SPAM[0]])
def test_the_parts_sum_to_the_logit(scorer: Scorer, raw: bytes) -> None:
    verdict = judge(scorer, raw)
    assert set(verdict.parts) == {"bias", "deep", "wide", "structure"}
    total = np.asarray([sum(verdict.parts.values())], np.float32)
    assert verdict.probability == pytest.approx(float(probability(total)[0]), abs=1e-5)
    assert verdict.label is verdict.cutoffs.label(verdict.probability)


def test_batch_equals_singles(scorer: Scorer) -> None:
    mail = [*ODD, *HAM[:5], *SPAM[:5]]
    together = scorer.score([scorer.prepare(raw) for raw in mail], explain=True)
    assert len(together) == len(mail)
    for raw, verdict in zip(mail, together, strict=True):
        alone = judge(scorer, raw, explain=True)
        assert alone.probability == pytest.approx(verdict.probability, abs=1e-5) and alone.label is verdict.label
        assert alone.parts == pytest.approx(verdict.parts, abs=1e-4)
        assert {r.what: r.logit for r in alone.reasons} == pytest.approx(
            {r.what: r.logit for r in verdict.reasons}, abs=1e-4
        )


def test_a_verdict_carries_what_the_head_saw(scorer: Scorer) -> None:
    mail = [*ODD, *HAM[:5], *SPAM[:5], message("gtube", GTUBE)]
    batch = [scorer.prepare(raw) for raw in mail]
    seen = look(scorer.encoder, batch)
    for i, verdict in enumerate(scorer.score(batch)):
        assert verdict.seen is not None
        np.testing.assert_array_equal(verdict.seen.deep, seen.deep[i])
        np.testing.assert_array_equal(verdict.seen.wide.columns, seen.wide[i].columns)
        np.testing.assert_array_equal(verdict.seen.wide.counts, seen.wide[i].counts)
        np.testing.assert_array_equal(verdict.seen.structure, seen.structure[i])
        assert verdict == replace(verdict, seen=None) and "seen" not in repr(verdict)


@pytest.mark.parametrize("raw", [HAM[0], SPAM[0], HTML])
def test_our_own_marks_are_not_looked_at(scorer: Scorer, raw: bytes) -> None:
    plain = scorer.prepare(raw)
    stamped = scorer.prepare(headers.stamp(raw, judge(scorer, SPAM[0]), "[SPAM] "))
    assert stamped.text == plain.text
    np.testing.assert_array_equal(stamped.token_ids, plain.token_ids)
    np.testing.assert_array_equal(stamped.structure, plain.structure)


def test_an_empty_batch_is_nothing(scorer: Scorer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TorchEncoder, "encode", None)
    assert scorer.score([]) == []


@settings(deadline=None)
@given(st.binary(max_size=300) | st.text(max_size=300).map(lambda text: message(text, text)))
def test_any_bytes_are_judged(tiny: Tiny, raw: bytes) -> None:
    verdict = judge(Scorer(tiny.encoder, tiny.bundle()), raw, explain=True)
    assert 0 < verdict.probability < 1 and all(np.isfinite(reason.logit) for reason in verdict.reasons)


def test_what_is_encoded_is_bounded(scorer: Scorer) -> None:
    item = scorer.prepare(LONG)
    assert len(item.token_ids) == WIDE_TOKENS and item.tokens == scorer.encoder.max_tokens
    assert scorer.prepare(message("", "see you")).tokens < 32


def test_what_waits_for_the_encoder_is_small(scorer: Scorer) -> None:
    item = scorer.prepare(message("", "see you at noon, my dear " * 100_000))
    assert len(pickle.dumps(item)) < 200_000, "it keeps the message"


# --- Reasons --------------------------------------------------------------------------------------------------------


def test_reasons_are_given_unless_it_is_ham_or_on_request(scorer: Scorer) -> None:
    assert judge(scorer, HAM[0]).reasons == ()
    assert judge(scorer, HAM[0], explain=True).reasons
    assert judge(scorer, SPAM[0]).reasons == judge(scorer, SPAM[0], explain=True).reasons != ()


@pytest.mark.parametrize("raw", [*ODD, HAM[3], SPAM[3]])
def test_the_shares_of_the_words_sum_to_the_wide_part(scorer: Scorer, raw: bytes) -> None:
    item = scorer.prepare(raw)
    words = scorer._words(item, look(scorer.encoder, [item]), 0, additive(scorer))
    assert sum(words.values()) == pytest.approx(judge(scorer, raw).parts["wide"], abs=1e-4)


def test_a_word_is_charged_with_all_its_occurrences(scorer: Scorer) -> None:
    """By hand: weights 1 for free, 10 for money, and an unknown word in pieces `x`, `##y`, 2 and 3."""
    head = additive(scorer)
    item = scorer.prepare(b"From: a@example.org\n\nfree money xy free\n")
    free, money, x, y, last = item.token_ids.tolist()
    assert free == last
    idf, weight = np.zeros_like(head.wide_idf), np.zeros_like(head.wide_weight)
    idf[[free, money, x, y]], weight[[free, money, x, y]] = 1.0, (1.0, 10.0, 2.0, 3.0)
    changed = with_head(scorer, wide_idf=idf, wide_weight=weight)
    twice = 1 + np.log(2)
    length = np.sqrt(twice**2 + 3)
    assert changed._words(item, look(scorer.encoder, [item]), 0, additive(changed)) == pytest.approx(
        {"free": twice / length, "money": 10 / length, "xy": 5 / length}
    )


@pytest.mark.parametrize("raw", [*ODD, SPAM[5]])
def test_the_reasons_of_the_structure_are_its_shares(scorer: Scorer, raw: bytes) -> None:
    """Every feature above its usual value that matters is among the reasons with its exact share; none else is."""
    head, item = additive(scorer), scorer.prepare(raw)
    shares = head.structure_shares(item.structure[None])[0]
    assert shares.sum() == pytest.approx(judge(scorer, raw).parts["structure"], abs=1e-4)
    expected = {
        feature.words: float(share)
        for feature, share, value, usual in zip(
            features.FEATURES, shares, item.structure, head.structure_center, strict=True
        )
        if value > max(usual, 0) and abs(share) >= SMALLEST_REASON
    }
    verdict = judge(scorer, raw, explain=True)
    given = {reason.what: reason.logit for reason in verdict.reasons if reason.part == "structure"}
    assert given == pytest.approx({what: expected[what] for what in given})
    if len(verdict.reasons) < REASONS:
        assert set(given) == set(expected)


def test_reasons_are_the_strongest_and_in_order(scorer: Scorer) -> None:
    verdict = judge(scorer, LONG, explain=True)
    strengths = [abs(reason.logit) for reason in verdict.reasons]
    assert len(strengths) <= REASONS and strengths == sorted(strengths, reverse=True)
    assert min(strengths) >= SMALLEST_REASON
    loud = with_head(scorer, wide_weight=additive(scorer).wide_weight * 100)
    many = message("cheap pills", "buy free money now report attached please see you tomorrow the meeting is at noon")
    reasons = judge(loud, many, explain=True).reasons
    assert len(reasons) == REASONS and reasons[0].part == "wide"


def test_the_deep_part_is_one_reason(scorer: Scorer) -> None:
    verdict = judge(scorer, SPAM[0])
    assert [r.logit for r in verdict.reasons if r.part == "deep"] == [verdict.parts["deep"]]


def test_words_are_whole_and_as_the_reader_sees_them(scorer: Scorer) -> None:
    reasons = defaultdict(float, {r.what: r.logit for r in judge(scorer, REPEATED, explain=True).reasons})
    assert reasons['"cheap"'] > 0 and '"Cheap,"' not in reasons and not any("##" in what for what in reasons)


def test_an_mlp_head_gives_the_meaning_as_its_reason(tiny: Tiny) -> None:
    rng = np.random.default_rng(0)
    dim = tiny.encoder.dim
    head = MlpHead(*(rng.normal(size=s).astype(np.float32) for s in ((dim, 4), (4,), (4, 2), (2,), (2,))))
    scorer = Scorer(tiny.encoder, bundle.make(head, Cutoffs(0.5, 0.9), tiny.encoder, {}))
    verdict = judge(scorer, SPAM[0], explain=True)
    assert set(verdict.parts) == {"bias", "deep"} and [r.part for r in verdict.reasons] == ["deep"]


# --- GTUBE ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "raw",
    [
        message("test", GTUBE),
        message("test", f"see you tomorrow\n\n{GTUBE}\n\nat noon"),
        message("test", GTUBE).replace(b"\n", b"\r\n"),
    ],
)
def test_gtube_is_spam_whatever_the_head_says(scorer: Scorer, raw: bytes) -> None:
    mild = with_head(scorer, bias=np.asarray([-100.0], np.float32))
    for one in (scorer, mild, Scorer(scorer.encoder, scorer.bundle, Cutoffs(1.0, 1.0))):
        verdict = judge(one, raw)
        assert (verdict.probability, verdict.label) == (1.0, Label.SPAM)
        assert [(r.part, r.logit) for r in verdict.reasons] == [("rule", 10.0)] and verdict.parts == {"rule": 10.0}


def test_all_but_gtube_is_none(scorer: Scorer) -> None:
    assert judge(scorer, message("test", GTUBE[:-1])).parts.keys() == {"bias", "deep", "wide", "structure"}
    assert judge(scorer, message("test", GTUBE.lower())).probability < 1


# --- Cut-offs -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        ({}, (0.5, 0.9)),
        ({"spam": 0.99}, (0.5, 0.99)),
        ({"unsure": 0.7}, (0.7, 0.9)),
        ({"spam": 0.8, "unsure": 0.6}, (0.6, 0.8)),
        ({"spam": 0.3}, (0.3, 0.3)),
        ({"spam": 1.0}, (0.5, 1.0)),
    ],
)
def test_the_configuration_overrides_the_cutoffs(
    tiny: Tiny, tmp_path: Path, table: dict[str, float], expected: tuple[float, float]
) -> None:
    assert tiny.bundle().cutoffs == Cutoffs(0.5, 0.9)
    config = tiny.config(tmp_path).model_copy(update={"head": HeadTable(path=tiny.head, **table)})
    scorer = Scorer.from_config(config, tiny.encoder)
    assert scorer.cutoffs == Cutoffs(*expected)
    assert judge(scorer, SPAM[0]).cutoffs == Cutoffs(*expected)


@pytest.mark.parametrize(
    ("cutoffs", "label"),
    [(Cutoffs(0.5, 0.9), Label.SPAM), (Cutoffs(0.5, 0.99999), Label.UNSURE), (Cutoffs(0.99999, 0.99999), Label.HAM)],
)
def test_the_label_follows_the_cutoffs_and_the_score_does_not(scorer: Scorer, cutoffs: Cutoffs, label: Label) -> None:
    verdict = judge(Scorer(scorer.encoder, scorer.bundle, cutoffs), SPAM[0])
    assert verdict.label is label and verdict.probability == judge(scorer, SPAM[0]).probability


def test_the_cutoff_itself_is_reached() -> None:
    cutoffs = Cutoffs(0.5, 0.9)
    assert [cutoffs.label(p) for p in (0.0, 0.4999, 0.5, 0.8999, 0.9, 1.0)] == [
        Label.HAM, Label.HAM, Label.UNSURE, Label.UNSURE, Label.SPAM, Label.SPAM
    ]  # fmt: skip
    for unsure, spam in ((0.9, 0.5), (0.0, 0.5), (0.5, 1.1), (float("nan"), 0.5), (0.5, float("nan"))):
        with pytest.raises(ValueError, match="cut-offs"):
            Cutoffs(unsure, spam)


# --- Loading and faults ---------------------------------------------------------------------------------------------


def test_it_serves_the_head_in_service(tiny: Tiny, tmp_path: Path) -> None:
    config = tiny.config(tmp_path)
    bundle.put_in_service(bundle.save(tiny.bundle(), config.heads_dir / "mine"))
    scorer = Scorer.from_config(config)
    assert scorer.head_id == tiny.bundle().id and judge(scorer, SPAM[0]).label is Label.SPAM


def test_a_head_of_another_encoder_is_refused(tiny: Tiny, tmp_path: Path) -> None:
    table = tiny.table().model_copy(update={"pooling": "cls"})
    config = Config(state_dir=tmp_path, encoder=table, head=HeadTable(path=tiny.head))
    with pytest.raises(BundleError, match="pooling was mean"):
        Scorer.from_config(config)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_head_that_gives_no_number_is_a_scoring_error(scorer: Scorer, value: float) -> None:
    broken = with_head(scorer, bias=np.asarray([value], np.float32))
    with pytest.raises(ScoringError, match=f"head {scorer.head_id} gave a number that is not finite"):
        judge(broken, HAM[0])


def test_one_message_that_overflows_is_a_scoring_error(scorer: Scorer) -> None:
    head = additive(scorer)
    weight = np.full_like(head.wide_weight, np.float32(3e38))
    with pytest.raises(ScoringError), np.errstate(over="ignore"):
        judge(with_head(scorer, wide_weight=weight), LONG)


def test_a_fault_of_the_encoder_is_passed_on(scorer: Scorer, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ScoringError("the encoder failed: out of order")

    monkeypatch.setattr(TorchEncoder, "encode", broken)
    with pytest.raises(ScoringError, match="out of order"):
        judge(scorer, HAM[0])


def test_a_bundle_is_left_as_it_was(tiny: Tiny) -> None:
    served: Bundle = tiny.bundle()
    before = {name: getattr(served.head, name).copy() for name in ("wide_weight", "structure_weight", "bias")}
    judge(Scorer(tiny.encoder, served), SPAM[0], explain=True)
    for name, array in before.items():
        np.testing.assert_array_equal(getattr(served.head, name), array)
