"""Drift: an alarm where mail or what users say has changed, none where it has not, and no word on little mail."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from spamguard import features
from spamguard.bundle import Bundle
from spamguard.config import Config
from spamguard.featurestore import FeatureStore
from spamguard.head import Row
from spamguard.labels import FOLDER, Given, Labels
from spamguard.recent import Judged, Recent
from spamguard.verdict import Cutoffs, Label
from spamguard.wide import Counts
from tests.unit.conftest import Tiny
from training.drift import LEAST, RARE, Finding, drift, overruled, unlike, unsure

VOCABULARY, DIM = 1000, 20
NOW = time.time()


def rows(n: int, seed: int = 0, shift: float = 0.0) -> list[Row]:
    """Messages of some kind; `shift` is how far their kind lies from that of the others, in standard deviations."""
    rng = np.random.default_rng(seed)
    return [
        Row(
            (rng.normal(size=DIM) + shift).astype(np.float32),
            Counts(np.sort(rng.choice(VOCABULARY, 10, replace=False)).astype(np.uint32), np.ones(10, np.uint16)),
            rng.random(5).astype(np.float32),
        )
        for _ in range(n)
    ]


def half_spam(n: int) -> npt.NDArray[np.bool_]:
    return np.arange(n) % 2 == 0


# --- Another kind of mail -------------------------------------------------------------------------------------------


def ask(fitted: Sequence[Row], recent: Sequence[Row], spam: Any = None, p: Any = None) -> Finding:
    spam = half_spam(len(fitted)) if spam is None else spam
    return unlike(fitted, spam, recent, np.full(len(recent), 0.5) if p is None else p, VOCABULARY)


@pytest.mark.parametrize("seed", range(5))
def test_the_same_kind_of_mail_is_no_reason(seed: int) -> None:
    found = ask(rows(400, 2 * seed), rows(300, 2 * seed + 1))
    assert found.due is False and found.figures["low"] < 0.05


def test_another_kind_of_mail_is_a_reason() -> None:
    found = ask(rows(400), rows(300, 1, shift=2))
    assert found.due is True and found.figures["low"] > 0.8
    assert "of a kind that was not among the mail of the fit" in found.says


def test_the_share_of_new_mail_is_found() -> None:
    found = ask(rows(1000), rows(700, 1) + rows(300, 2, shift=2))
    assert found.due is True
    assert found.figures["low"] <= 0.3 <= found.figures["high"] + 0.05


def test_more_spam_than_before_is_another_matter() -> None:
    """Spam and ham are two kinds here; the fit had a fifth of spam, of late it is half."""
    fitted = rows(800) + rows(200, 1, shift=2)
    recent = rows(150, 2) + rows(150, 3, shift=2)
    spam, p = np.repeat([False, True], [800, 200]), np.repeat([0.0, 1.0], [150, 150])
    found = ask(fitted, recent, spam, p)
    assert found.due is False and found.figures["low"] < 0.1
    assert ask(fitted, recent, ~spam, 1 - p).due is False
    assert ask(fitted, recent, spam, np.full(300, 0.01)).due is True  # spam taken for ham


def test_a_message_sent_a_hundred_times_is_one() -> None:
    (newsletter,) = rows(1, 7, shift=5)
    found = ask(rows(400), rows(150, 1) + [newsletter] * 150)
    assert found.due is False and found.figures["n"] == 151


@pytest.mark.parametrize(("fitted", "recent", "says"), [(400, 12, "n = 12"), (12, 400, "12 messages of the fit")])
def test_little_mail_says_nothing_of_its_kind(fitted: int, recent: int, says: str) -> None:
    found = ask(rows(fitted), rows(recent, 1, shift=5))
    assert found.due is None and "too little mail to tell" in found.says and says in found.says


def test_a_fit_without_such_spam_says_nothing() -> None:
    found = ask(rows(400), rows(300, 1, shift=5), spam=np.arange(400) < 20, p=np.ones(300))
    assert found.due is None and "too little mail to tell (20 messages" in found.says


# --- Unsure mail ----------------------------------------------------------------------------------------------------


def a_bundle(tiny: Tiny, **provenance: object) -> Bundle:
    made = tiny.bundle()
    figures = {
        "confusion": {"ham": {"ham": 970, "unsure": 20, "spam": 10}, "spam": {"ham": 2, "unsure": 8, "spam": 90}}
    }
    manifest = made.manifest.model_copy(update={"provenance": {"figures": figures} | provenance})
    return replace(made, manifest=manifest, cutoffs=Cutoffs(0.4, 0.9))


def shares(n: int, unsure: int, spam: int = 0) -> npt.NDArray[np.float64]:
    return np.repeat([0.6, 0.99, 0.01], [unsure, spam, n - unsure - spam])


@pytest.mark.parametrize(
    ("between", "spam", "due"), [(20, 0, False), (35, 0, False), (80, 0, True), (80, 800, False)]
)
def test_more_unsure_mail_than_at_the_fit(tiny: Tiny, between: int, spam: int, due: bool) -> None:
    """2 % of ham and 8 % of spam were unsure; the same count may be much among ham and little among spam."""
    found = unsure(shares(1000, between, spam), a_bundle(tiny))
    assert found.due is due and f"{between} of 1000 messages" in found.says


def test_hardly_more_is_no_reason_however_much_mail_shows_it(tiny: Tiny) -> None:
    found = unsure(shares(20_000, 800), a_bundle(tiny))
    assert found.figures["p_value"] < RARE and found.due is False


def test_the_borders_are_those_of_the_cutoffs(tiny: Tiny) -> None:
    p = np.repeat([0.39, 0.4, 0.89, 0.9], 50)
    assert unsure(p, a_bundle(tiny)).figures["unsure"] == 100


def test_little_mail_says_nothing_of_unsure(tiny: Tiny) -> None:
    found = unsure(shares(LEAST - 1, 50), a_bundle(tiny))
    assert (found.due, found.says) == (None, f"too little mail to tell (n = {LEAST - 1})")
    assert unsure(shares(LEAST, 50), a_bundle(tiny)).due is True


def test_a_head_without_figures_is_not_compared(tiny: Tiny) -> None:
    found = unsure(shares(1000, 500), tiny.bundle())
    assert found.due is None and "what is usual this head does not say" in found.says


# --- Overruled ------------------------------------------------------------------------------------------------------


def judged(n: int, p: float = 0.01, label: Label = Label.HAM, seed: int = 0) -> list[Judged]:
    return [
        Judged(f"{label}-{seed}-{i}", NOW - 1000, p, label, "head", f"smtp/{i}", row)
        for i, row in enumerate(rows(n, seed))
    ]


def said(mail: Sequence[Judged], label: Label, later: float = 100, source: str = "moved") -> list[Given]:
    return [Given(one.content, label, source, "", one.at + later, i) for i, one in enumerate(mail)]


def test_users_who_overrule_more_than_the_head_expects() -> None:
    mail = judged(240)
    found = overruled(mail, said(mail[:12], Label.SPAM), {}, VOCABULARY)
    assert found.due is True
    assert found.says.startswith("12 of 240 messages were overruled (2.6% to 8.6%), the head itself expects 2.4")


def test_as_many_as_expected_are_no_reason() -> None:
    mail = judged(1000)
    assert overruled(mail, said(mail[:12], Label.SPAM), {}, VOCABULARY).due is False


def test_a_few_are_no_reason_however_sure_the_head_was() -> None:
    mail = judged(200, p=0.0001)
    assert overruled(mail, said(mail[:4], Label.SPAM), {}, VOCABULARY).due is False
    assert overruled(mail, said(mail[:5], Label.SPAM), {}, VOCABULARY).due is True


def test_ham_in_the_junk_counts_and_what_was_unsure_or_right_does_not() -> None:
    spam, doubt = judged(150, 0.99, Label.SPAM), judged(150, 0.5, Label.UNSURE, seed=1)
    given = said(spam[:10], Label.HAM) + said(spam[10:50], Label.SPAM) + said(doubt, Label.SPAM)
    found = overruled(spam + doubt, given, {}, VOCABULARY)
    assert found.figures["overruled"] == 10 and found.figures["labelled"] == 200
    assert found.figures["expected"] == pytest.approx(1.5)


def test_only_a_users_word_that_came_after_the_verdict_overrules() -> None:
    mail = judged(200)
    given = said(mail[:20], Label.SPAM, later=-100) + said(mail[20:40], Label.SPAM, source=FOLDER)
    assert overruled(mail, given, {}, VOCABULARY).figures["overruled"] == 0


def test_mail_that_got_headers_after_us_is_known_by_its_words() -> None:
    mail = judged(200)
    kept = {f"later-{i}": one.row for i, one in enumerate(mail[:20])}
    given = [Given(content, Label.SPAM, "moved", "", NOW, 0) for content in kept]
    assert overruled(mail, given, kept, VOCABULARY).figures["overruled"] == 20
    # But a message without words is like all the others without.
    empty = Row(mail[0].row.deep, Counts(np.empty(0, np.uint32), np.empty(0, np.uint16)), mail[0].row.structure)
    mail = [replace(one, row=empty) for one in mail]
    assert overruled(mail, given, dict.fromkeys(kept, empty), VOCABULARY).figures["overruled"] == 0


def test_a_message_that_is_labelled_twice_counts_once() -> None:
    mail = judged(200)
    kept = {"later": mail[0].row}
    given = [*said(mail[:1], Label.SPAM), Given("later", Label.SPAM, "moved", "", NOW, 0)]
    assert overruled(mail, given, kept, VOCABULARY).figures["overruled"] == 1


def test_little_mail_says_nothing_of_users() -> None:
    mail = judged(12)
    found = overruled(mail, said(mail, Label.SPAM), {}, VOCABULARY)
    assert (found.due, found.says) == (None, "too little mail to tell (n = 12)")


# --- All of it, from the files --------------------------------------------------------------------------------------


class Store:
    """A state folder with a head that says it was fitted on labelled mail of some kind."""

    def __init__(self, tiny: Tiny, state: Path) -> None:
        self.tiny = tiny
        self.config: Config = tiny.config(state)
        self.fingerprint = tiny.encoder.fingerprint
        self.served = tiny.bundle()

    def row(self, i: int, shift: float) -> Row:
        rng, encoder = np.random.default_rng(i), self.tiny.encoder
        columns = np.sort(rng.choice(encoder.vocab_size, 5, replace=False)).astype(np.uint32)
        deep = (rng.normal(size=encoder.dim) + shift).astype(np.float32)
        return Row(deep, Counts(columns, np.ones(5, np.uint16)), rng.random(len(features.NAMES)).astype(np.float32))

    def learnt(self, n: int) -> None:
        with Labels(self.config.labels_file) as labels:
            labels.replace_folder({f"{i:064x}": (Label.SPAM if i % 2 else Label.HAM, "") for i in range(n)})
        with FeatureStore(self.config.features_dir, self.fingerprint) as store:
            store.put((f"{i:064x}", self.row(i, 0)) for i in range(n))
        made = {"created": datetime.now(UTC).isoformat(timespec="seconds"), "ham": n // 2, "spam": n - n // 2}
        manifest = self.served.manifest.model_copy(update={"provenance": made})
        self.served = replace(self.served, manifest=manifest)

    def came(self, n: int, shift: float, first: int = 100_000, **other: object) -> None:
        usual = {"at": NOW - 60, "p": 0.01, "label": Label.HAM, "head": self.served.id, "about": "smtp/1"} | other
        with Recent(self.config.features_dir, self.fingerprint) as recent:
            recent.add(
                Judged(content=f"{i:064x}", row=self.row(i, shift), **usual)  # type: ignore[arg-type]
                for i in range(first, first + n)
            )

    def look(self, days: float = 1) -> dict[str, Finding]:
        with Labels(self.config.labels_file) as labels:
            given = labels.rows()
        return {one.name: one for one in drift(self.config, self.tiny.encoder, self.served, given, days)}


@pytest.fixture
def kept(tiny: Tiny, tmp_path: Path) -> Store:
    return Store(tiny, tmp_path / "state")


def test_nothing_kept_is_too_little(kept: Store) -> None:
    assert [one.due for one in drift(kept.config, kept.tiny.encoder, kept.served, [], 14)] == [None] * 3
    assert not kept.config.features_dir.exists()


@pytest.mark.parametrize(("shift", "due"), [(0.0, False), (2.0, True)])
def test_recent_mail_is_compared_with_that_of_the_fit(kept: Store, shift: float, due: bool) -> None:
    kept.learnt(400)
    kept.came(300, shift)
    found = kept.look()
    assert found["unlike"].due is due
    assert found["overruled"].figures["n"] == 300


def test_mail_of_the_fit_is_not_recent_mail(kept: Store) -> None:
    kept.learnt(400)
    kept.came(300, 0, first=0)
    assert kept.look()["unlike"].figures["n"] == 0


def test_what_is_older_than_asked_for_is_left_out(kept: Store) -> None:
    kept.learnt(400)
    kept.came(300, 2, at=NOW - 3 * 86_400)
    assert kept.look(days=2)["unlike"].due is None
    assert kept.look(days=4)["unlike"].due is True


def test_of_another_heads_verdicts_nobody_is_asked(kept: Store) -> None:
    kept.learnt(400)
    kept.came(300, 0, head="another")
    found = kept.look()
    assert found["overruled"].figures["n"] == 0 and found["unlike"].due is False


@pytest.mark.parametrize("provenance", [{}, {"created": "yesterday"}, {"ham": 5000}])
def test_a_head_of_other_mail_is_not_compared(kept: Store, provenance: dict[str, object]) -> None:
    """The shipped one is such: what lies here as labels is not what it was fitted on."""
    kept.learnt(400)
    kept.came(300, 2)
    old = kept.served.manifest.provenance if provenance else {}
    manifest = kept.served.manifest.model_copy(update={"provenance": old | provenance})
    kept.served = replace(kept.served, manifest=manifest)
    assert kept.look()["unlike"].due is None


def test_labels_given_after_the_fit_are_none_of_it(kept: Store) -> None:
    kept.learnt(400)
    kept.came(300, 0)
    with Labels(kept.config.labels_file) as labels, Recent(kept.config.features_dir, kept.fingerprint) as recent:
        (one, *_) = recent.since(1)
        later = time.time() + 3600
        labels._db.execute("INSERT INTO label VALUES (?, 'spam', 'moved', '', ?, 9999)", (one.content, later))
    with FeatureStore(kept.config.features_dir, kept.fingerprint) as store:
        store.put([(one.content, one.row)])
    found = kept.look()
    assert found["unlike"].figures["n"] == 300
    assert found["overruled"].figures["overruled"] == 1
