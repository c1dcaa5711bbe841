"""Contestants of the benchmarks on mail of our own: what they learn, in which order, and what is made of it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import sparse
from sklearn.feature_extraction.text import CountVectorizer

from benchmarks import contest, curves, measures, ours, peers, splits, stream, tables, under_attack
from benchmarks.mail import Mail, join
from benchmarks.spamassassin import Bayes, SpamAssassin
from spamguard.head import Features
from spamguard.message import parse
from spamguard.wide import Counts
from tests.paper_bundle import PaperEncoder
from tests.tiny_corpus import HAM, SPAM, message

COLUMNS = 64
# Nothing here is longer than its window, so that it is never asked.
PASSAGES = ours.Passages(PaperEncoder(vocab_size=COLUMNS, max_tokens=10_000))


def mail_of(raw: Sequence[bytes], labels: Sequence[int], vectorizer: CountVectorizer, corpus: str = "own") -> Mail:
    """Mail as the reader makes it, but with words in the place of an encoder."""
    texts = [parse(each).text for each in raw]
    words = sparse.csr_array(vectorizer.transform(texts))
    rng = np.random.default_rng(0)
    deep = (words @ rng.normal(size=(words.shape[1], 12))).astype(np.float32)
    wide = []
    for row in range(len(raw)):
        columns, counts = np.unique(words[[row]].indices % COLUMNS, return_counts=True)
        wide.append(Counts(columns.astype(np.uint32), counts.astype(np.uint16)))
    features = Features(deep, wide, rng.normal(size=(len(raw), 3)).astype(np.float32))
    table = pd.DataFrame(
        {
            "content": [f"{i:08x}{corpus}" for i in range(len(raw))],
            "label": list(labels),
            "corpus": corpus,
            "source": corpus,
            "where": [f"/mail/spamassassin/easy-ham-1_{i:05}.eml" for i in range(len(raw))],
            "sha256": [f"{(i * 7919) % 997:04}" for i in range(len(raw))],
            "domain": "example.org",
            "group": [f"{corpus}{i % 8}" for i in range(len(raw))],
            "campaign": list(range(len(raw))),
        }
    )
    return Mail(table, list(raw), texts, words, features, Features(deep[:, :4], wide, features.structure))


VECTORIZER = CountVectorizer().fit([parse(raw).text for raw in HAM + SPAM])
ALL = mail_of([*HAM, *SPAM], [0] * 20 + [1] * 20, VECTORIZER)
MIXED = np.random.default_rng(1).permutation(40)
TRAIN, TEST = ALL.take(MIXED[:28]), ALL.take(MIXED[28:])

LEARNERS: dict[str, Callable[[], peers.Learner]] = {
    **peers.FAST,
    "general": lambda: ours.General(PASSAGES),
    "personal": lambda: ours.Personal(PASSAGES),
}


@pytest.mark.parametrize("name", LEARNERS)
def test_every_contestant_learns_what_is_plain_to_see(name: str) -> None:
    if name == "bogofilter" and not shutil.which("bogofilter"):
        pytest.skip("bogofilter is not installed")
    learner = LEARNERS[name]()
    judge = learner.learn(TRAIN)
    scores = judge.score(TEST)
    assert scores.shape == (len(TEST),) and np.isfinite(scores).all()
    assert scores[TEST.labels == 1].min() > scores[TEST.labels == 0].max()
    assert judge.unsure <= judge.spam
    # What was learnt before from others counts too: they say the opposite, and are many.
    turned = ALL.take(np.arange(40))
    turned.table["label"] = 1 - turned.labels
    others = join([turned, turned, turned, turned])
    confused = learner.after(others).learn(
        TRAIN.take(np.concatenate([np.flatnonzero(TRAIN.labels == y)[:5] for y in (0, 1)]))
    )
    assert confused.score(TEST)[TEST.labels == 1].mean() < scores[TEST.labels == 1].mean()


def test_naive_bayes_by_hand() -> None:
    vectorizer = CountVectorizer().fit(["cheap pills noon meeting other"])
    mail = mail_of(
        [message("cheap", "pills pills"), message("noon", "meeting")],
        [1, 0],
        CountVectorizer(vocabulary=vectorizer.vocabulary_),
    )
    judge = peers.NaiveBayes().learn(mail)
    asked = mail_of([message("", "pills other")], [1], vectorizer)
    # Known words: cheap, pills, noon, meeting. Spam has cheap 1 and pills 2, ham noon and meeting.
    expected = np.log((2 + 1) / (3 + 4)) - np.log((0 + 1) / (2 + 4))
    assert judge.score(asked)[0] == pytest.approx(expected)


def test_naive_bayes_message_by_message_is_naive_bayes_of_all() -> None:
    judge = peers.NaiveBayes().learn(TRAIN.take(np.arange(10)))
    for i in range(10, len(TRAIN)):
        judge.more(TRAIN.take(np.asarray([i])))
    assert judge.score(TEST) == pytest.approx(peers.NaiveBayes().learn(TRAIN).score(TEST))


@pytest.mark.skipif(not shutil.which("bogofilter"), reason="bogofilter is not installed")
def test_bogofilter_message_by_message_is_bogofilter_of_all() -> None:
    learner = peers.Bogofilter()
    judge = learner.learn(TRAIN.take(np.arange(10)))
    for i in range(10, len(TRAIN)):
        judge.more(TRAIN.take(np.asarray([i])))
    one_by_one = np.concatenate([judge.score(TEST.take(np.asarray([i]))) for i in range(len(TEST))])
    assert one_by_one == pytest.approx(learner.learn(TRAIN).score(TEST))
    after = learner.after(TRAIN)
    assert after.start is not None
    assert after.start.score(TEST) == pytest.approx(one_by_one)


def test_a_word_of_one_message_is_no_word_for_tfidf() -> None:
    counts = sparse.csr_array(np.asarray([[1, 2, 0], [1, 0, 3], [0, 0, 1]]))
    assert peers.Frequent().fit(counts).transform(counts).shape == (3, 2)


def test_a_peer_that_is_missing_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(peers.Unavailable, match="bogofilter is not installed"):
        peers.Bogofilter()
    with pytest.raises(peers.Unavailable, match="SpamAssassin is not installed"):
        SpamAssassin(Bayes(), None)


class Clerk:
    """Notes what it is given; knows nothing but how many labels it has."""

    name, probable = "clerk", True

    def __init__(self) -> None:
        self.learnt: list[int] = []

    def after(self, others: Mail) -> Clerk:
        return self

    def learn(self, own: Mail) -> peers.Judge:
        self.learnt.append(len(own))
        known = len(own)
        return peers.Scores(lambda mail: np.full(len(mail), float(known)))


class Steady(Clerk):
    """The same, message by message."""

    steady = True

    def learn(self, own: Mail) -> peers.Judge:
        judge = super().learn(own)
        known = [len(own)]
        judge.score = lambda mail: np.full(len(mail), float(known[0]))  # type: ignore[method-assign]
        judge.more = lambda mail: known.append(known.pop() + len(mail))  # type: ignore[attr-defined]
        return judge


LONG = ALL.take(np.resize(MIXED, 300))


@pytest.mark.parametrize("delay", [0, 100])
def test_online_nobody_knows_a_label_before_it_comes(delay: int) -> None:
    said = stream.online(LONG, Clerk(), delay)
    known = np.maximum(0, np.arange(300) - delay)
    assert (said.scores <= known).all()
    assert said.scores[-1] >= known[-1] / stream.GROWTH - stream.LEAST
    silent = said.scores == 0
    assert silent[: delay + stream.LEAST].all() and not silent[delay + stream.LEAST + 20 :].any()
    assert np.isinf(said.spam[silent]).all()  # nothing is called spam before there is a label


@pytest.mark.parametrize("delay", [0, 100])
def test_online_who_learns_each_message_knows_all_that_came(delay: int) -> None:
    said = stream.online(LONG, Steady(), delay)
    assert said.scores.tolist() == np.maximum(0, np.arange(300) - delay).tolist()


def test_the_time_of_arrival() -> None:
    when = datetime(2002, 8, 22, 12, 36, 23, tzinfo=UTC).timestamp()
    received = b"Received: from a by b\n with SMTP; Thu, 22 Aug 2002 13:36:23 +0100 (IST)\n"
    older = b"Received: from c by a; Wed, 21 Aug 2002 01:00:00 +0000\n"
    date = b"Date: Fri, 23 Aug 2002 00:00:00 +0000\n"
    assert stream.arrival(received + older + date + b"\nbody\n") == when
    assert (
        stream.arrival(b"Received: nonsense\n" + date + b"\nbody\n") == datetime(2002, 8, 23, tzinfo=UTC).timestamp()
    )
    assert stream.arrival(b"Date: Fri, 23 Aug 2030 00:00:00 +0000\n\nbody\n") is None
    assert stream.arrival(b"no header\n") is None


def test_who_has_no_time_follows_the_number_before() -> None:
    dated = [
        message("a", "b").replace(b"To:", f"Date: {day} Sep 2002 10:00:00 +0000\nTo:".encode()) for day in (5, 3)
    ]
    mail = mail_of([dated[0], message("undated", "b"), dated[1]], [0, 0, 1], VECTORIZER, "spamassassin")
    order, without = stream.in_time(mail)
    assert order.tolist()[0] == 2 and set(order[1:]) == {0, 1} and without == 1


class Words:
    """Calls spam what says `free`, is unsure of `now`."""

    name, probable = "words", True
    unsure, spam = 1.0, 2.0

    def after(self, others: Mail) -> Words:
        return self

    def learn(self, own: Mail) -> Words:
        return self

    def score(self, mail: Mail) -> np.ndarray:
        return np.asarray([2.0 if "free" in t.lower() else 1.0 if "now" in t.lower() else 0.0 for t in mail.texts])


def test_under_attack_counts_what_becomes_ham_and_unsure(monkeypatch: pytest.MonkeyPatch) -> None:
    def misspell(raw: bytes, ham: str) -> bytes:
        return raw.replace(b"free", b"fr*e").replace(b"Free", b"fr*e")

    class Reader:
        def see(self, table: pd.DataFrame, raw: Sequence[bytes]) -> Mail:
            return mail_of(raw, table["label"].tolist(), VECTORIZER)

    monkeypatch.setattr(under_attack, "ATTACKS", {"misspelt": misspell, "nothing": lambda raw, ham: raw})
    mail = mail_of([*HAM, *SPAM], [0] * 20 + [1] * 20, VECTORIZER, "spamassassin")
    caught = [raw for raw in SPAM if b"free" in raw.lower()]
    judged = mail.take(np.concatenate([np.arange(20), np.arange(20, 40)]))
    judged.table["corpus"] = ["spamassassin"] * 20 + ["phishing_pot_dev"] * 20
    found = under_attack.attacked(judged, Reader(), Words(), [], lambda what: None)  # type: ignore[arg-type]
    rows = found["targets"]["phishing_pot_dev"]["attacks"]
    assert found["targets"]["phishing_pot_dev"]["attacked"] == len(caught)
    still_now = sum(b"now" in raw.lower() for raw in caught)
    assert rows["misspelt"]["words"]["caught"] == len(caught)
    assert rows["misspelt"]["words"]["unsure"] == still_now
    assert rows["misspelt"]["words"]["ham"] == len(caught) - still_now
    assert rows["nothing"]["words"] == {"caught": len(caught), "ham": 0, "unsure": 0, "median fall": 0.0}


def results() -> dict[str, object]:
    said = {}
    for name in ("spamguard, from nothing", "naive Bayes, multinomial"):
        learner = ours.Personal(PASSAGES) if name.startswith("spamguard") else peers.NaiveBayes()
        said[name] = contest.Said.of(learner.learn(TRAIN), ALL, True)
    target = contest.Target("all of it", np.arange(40), "28 messages", said)
    found = contest.figures(target, ALL, ["spamguard, from nothing"], ["naive Bayes, multinomial"])
    ham = contest.Target(
        "ham alone", np.arange(20), "28 messages", {who: one.take(np.arange(20)) for who, one in said.items()}
    )
    alone = contest.figures(ham, ALL, ["spamguard, from nothing"], ["naive Bayes, multinomial"])
    curve = {str(n): [0.9 + n / 10000, 0.8, 1.0] for n in (10, 20, 50)}
    row = {"1-ROCA %": [0.1, 0.05, 0.2], "ham called spam": [0.0, 0.0, 0.0], "spam called spam": [1.0, 1.0, 1.0]}
    row = {**row, "spam called spam or unsure": [1.0, 1.0, 1.0], "curve": [[200, 2.0], [300, None], [400, 1.0]]}
    fall = {"caught": 4, "ham": 1, "unsure": 2, "median fall": 3.5}
    return {
        "a": {"targets": {"all of it": found, "ham alone": alone}, "seconds": 1},
        "d": {
            "spamassassin": {
                "ham": 1,
                "spam": 1,
                "others": "x",
                "seeds": 2,
                "curves": {"naive Bayes, from nothing": curve},
                "ahead": {"0": {}, "10": {"ours": "spamguard", "best peer": "x", "difference": [0.1, -0.1, 0.2]}},
            },
            "seconds": 1,
        },
        "f": {
            "messages": 9,
            "without a time": 1,
            "delay": 100,
            "feedback": {"at once": {"spamguard": row}},
            "ahead": {"at once": {"ours": "spamguard", "best peer": "x", "difference": [-0.1, -0.2, -0.05]}},
            "seconds": 1,
        },
        "g": {
            "learnt from": "x",
            "targets": {"own": {"attacked": 4, "attacks": {"bidi": {"words": fall}}}},
            "seconds": 1,
        },
    }


def test_tables_and_pictures_of_what_was_found(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    found = json.loads(json.dumps(results()))  # as it comes back from the file
    drawn = curves.draw(found, tmp_path)
    assert {file.name for file in drawn} == {
        "judgement-roc.svg",
        "judgement-reliability.svg",
        "judgement-few-labels.svg",
        "judgement-online.svg",
    }
    assert all(b"spamguard" in file.read_bytes() or "few" in file.name for file in drawn)
    again = [file.read_bytes() for file in drawn]
    assert [file.read_bytes() for file in curves.draw(found, tmp_path)] == again
    about = {"made": "today", "encoder": "e", "mail": {"own": [20, 20]}, "campaigns": 40, "notes": ["a note"]}
    text = tables.markdown(about, found, [file.name for file in drawn])
    assert "- a note" in text and "![judgement-roc.svg](judgement-roc.svg)" in text
    assert "| bidi | 25 / 50, 3.5 |" in text
    perfect = next(line for line in text.splitlines() if line.startswith("| spamguard, from nothing | 100.00"))
    assert perfect.count("|") == 9
    assert "| d | spamassassin, 10 labels | spamguard | x | 10.00 [-10.00, 20.00] ahead, not beyond doubt | |" in text
    assert "| f | labels at once | spamguard | x | 1-ROCA: -0.10 [-0.20, -0.05] ahead | |" in text
    assert "| a | all of it | spamguard, from nothing | naive Bayes, multinomial | " in text


def test_figures_say_who_is_ahead_and_whether_it_is_beyond_doubt() -> None:
    labels = ALL.labels.astype(float)
    noise = np.random.default_rng(0).normal(size=40)
    said = {
        who: contest.Said(scores, np.zeros(40), np.zeros(40), True)
        for who, scores in {"ours": labels, "weak": noise, "strong": labels * 2}.items()
    }
    target = contest.Target("own", np.arange(40), "", said)
    against = contest.figures(target, ALL, ["ours"], ["weak"])["ahead"]["ours"]["auc"]
    assert against["best peer"] == "weak" and against["difference"][1] > 0
    level = contest.figures(target, ALL, ["ours"], ["weak", "strong"])["ahead"]["ours"]["auc"]
    assert level == {"best peer": "strong", "difference": [0.0, 0.0, 0.0]}


def test_pooled_messages_keep_the_cutoffs_of_their_own_judge() -> None:
    one = contest.Said(np.asarray([1.0]), np.asarray([0.0]), np.asarray([2.0]), True)
    other = contest.Said(np.asarray([1.0]), np.asarray([0.0]), np.asarray([0.5]), True)
    pooled = contest.pool(
        "both",
        [
            contest.Target("a", np.asarray([3]), "", {"w": one}),
            contest.Target("b", np.asarray([5]), "", {"w": other}),
        ],
    )
    said = pooled.said["w"]
    assert pooled.rows.tolist() == [3, 5]
    share = measures.share_from(said.spam, 1)(said.scores, np.asarray([1, 1]), np.ones((1, 2)))
    assert share[0] == 0.5


def test_learning_curves_start_from_nothing_and_from_others(monkeypatch: pytest.MonkeyPatch) -> None:
    mail = mail_of([*HAM, *SPAM] * 3, ([0] * 20 + [1] * 20) * 3, VECTORIZER)
    rows = np.random.default_rng(2).permutation(120)
    split = splits.Split("few labels", rows[:60], {"own": rows[60:90]}, rows[90:])
    monkeypatch.setattr(contest, "few_labels", lambda table, target: split)
    monkeypatch.setattr(contest, "LABELS", (10, 20))
    learners = [ours.Personal(PASSAGES), peers.NaiveBayes(), peers.tfidf()]
    found = contest.learning_curves(mail, "own", learners, (peers.tfidf().name,), 2, lambda what: None)
    assert {who: sorted(curve) for who, curve in found["curves"].items()} == {
        "spamguard (reads headers), from nothing": ["10", "20"],
        "spamguard (reads headers), after the other corpora": ["0", "10", "20"],
        "naive Bayes, multinomial, from nothing": ["10", "20"],
        "naive Bayes, multinomial, after the other corpora": ["0", "10", "20"],
        "tf-idf + logistic regression, from nothing": ["10", "20"],
    }
    assert all(value[0] > 0.9 for curve in found["curves"].values() for value in curve.values())
    none = found["ahead"]["0"]
    assert none["ours"] == "spamguard (reads headers), after the other corpora"
    assert none["best peer"].startswith("naive Bayes")
    ours_then, theirs = (found["curves"][none[who]]["0"][0] for who in ("ours", "best peer"))
    assert none["difference"][0] == pytest.approx(ours_then - theirs, abs=2e-6)
    assert found["others"] == contest.size(mail.take(split.others))


def test_the_stream_is_judged_with_labels_at_once_and_late(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "in_time", lambda mail: (np.arange(len(mail)), 3))
    learners = [("spamguard", ours.Personal(PASSAGES)), ("naive Bayes", peers.NaiveBayes())]
    found = stream.held(LONG, learners, lambda what: None)
    assert found["messages"] == 300 and found["without a time"] == 3
    assert list(found["feedback"]) == ["at once", "100 messages later"]
    for rows in found["feedback"].values():
        assert set(rows) == {"spamguard", "naive Bayes"}
        assert rows["spamguard"]["curve"][-1] == (300, pytest.approx(rows["spamguard"]["1-ROCA %"][0], abs=1e-4))
    # Who waits for labels says nothing for longer.
    first, late = (found["feedback"][feedback]["naive Bayes"]["1-ROCA %"][0] for feedback in found["feedback"])
    assert first < late
    assert found["ahead"]["at once"]["best peer"] == "naive Bayes"


def test_without_a_label_who_has_a_start_judges_by_it(monkeypatch: pytest.MonkeyPatch) -> None:
    class Starting(Words):
        start = peers.Scores(lambda mail: np.zeros(len(mail)))

    split = splits.Split("few labels", np.arange(20), {"own": np.arange(40)}, np.arange(20, 40))
    monkeypatch.setattr(contest, "few_labels", lambda table, target: split)
    monkeypatch.setattr(contest, "LABELS", (10,))
    found = contest.learning_curves(ALL, "own", [Starting()], (), 1, lambda what: None)
    assert found["curves"]["words, after the other corpora"]["0"][0] == 0.5  # it says the same of all
    assert found["curves"]["words, after the other corpora"]["10"][0] > 0.5
