"""SpamAssassin and rspamd as contestants of the benchmarks, where they are installed."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from benchmarks import rspamd
from benchmarks.mail import Mail
from benchmarks.spamassassin import Bayes, Rules, SpamAssassin
from spamguard.head import Features

pytestmark = pytest.mark.integration

WORDS = {
    0: "meeting report minutes harvest station library garden bicycle lesson concert recipe window".split(),
    1: "pills casino lottery winner replica refinance enlarge credit offer bargain jackpot discount".split(),
}
GTUBE = "XJS*C4JDBQADN1.NSBN3*2IDNEN*GTUBE-STANDARD-ANTI-UBE-TEST-EMAIL*C.34X"


def letter(label: int, number: int) -> bytes:
    rng = random.Random(number * 2 + label)
    said = " ".join(rng.choice(WORDS[label]) + rng.choice(["", "s", "ing"]) for _ in range(40))
    return (
        f"From: Ann <ann{number}@example.org>\nTo: bob@example.net\nMessage-ID: <{number}.{label}@example.org>\n"
        f"Date: Mon, 06 May 2024 08:45:57 +0000\nSubject: {said[:30]}\n\n{said}\n"
    ).encode()


def mail_of(labels: list[int], first: int = 0) -> Mail:
    raw = [letter(label, first + number) for number, label in enumerate(labels)]
    names = [f"{label}-{first + number:05}" for number, label in enumerate(labels)]
    table = pd.DataFrame({"content": names, "label": labels, "sha256": names})
    nothing = Features(np.zeros((len(raw), 1), np.float32), [], np.zeros((len(raw), 1), np.float32))
    return Mail(table, raw, [], sparse.csr_array((len(raw), 1)), nothing, nothing)


def part(mail: Mail, chosen: np.ndarray) -> Mail:
    table = mail.table.iloc[chosen].reset_index(drop=True)
    raw = [mail.raw[i] for i in chosen]
    return Mail(table, raw, [], mail.words[chosen], mail.features, mail.short)


TRAIN = mail_of([0, 1] * 260)  # SpamAssassin and rspamd say nothing before they have learnt 200 of each
TEST = mail_of([0, 1] * 5, first=1000)


@pytest.mark.skipif(not shutil.which("spamassassin"), reason="SpamAssassin is not installed")
def test_spamassassin_learns_and_what_it_mends_is_as_if_learnt_anew(tmp_path: Path) -> None:
    bayes = Bayes()
    learner = SpamAssassin(bayes, None)
    everything = learner.learn(TRAIN).score(TEST)
    assert everything[TEST.labels == 1].min() > everything[TEST.labels == 0].max()
    most = part(TRAIN, np.arange(60, 520))
    mended = learner.learn(most).score(TEST)  # 60 messages are forgotten
    assert mended == pytest.approx(SpamAssassin(Bayes(), None).learn(most).score(TEST))
    assert mended != pytest.approx(everything)

    rules = Rules(tmp_path)
    calm = letter(0, 1)
    told = part(TEST, np.arange(2))
    marked = Mail(told.table, [calm, calm + GTUBE.encode()], [], told.words, told.features, told.short)
    points = rules.of(marked)
    assert points[1] > points[0] + 500
    assert (Rules(tmp_path)._points == rules._points) and len(rules._points) == 2  # kept for the next run
    whole = SpamAssassin(bayes, Rules(tmp_path)).learn(most)
    assert whole.spam == 5.0
    both = whole.score(TEST)
    assert both[TEST.labels == 1].min() > both[TEST.labels == 0].max()


def test_rspamd_learns_and_forgets() -> None:
    try:
        with rspamd.running() as server:
            scores = rspamd.Rspamd(server, rules=False).learn(TRAIN).score(TEST)
            assert scores[TEST.labels == 1].min() > 0 > scores[TEST.labels == 0].max()
            all_of_it = rspamd.Rspamd(server, rules=True).learn(TRAIN).score(TEST)
            assert all_of_it[TEST.labels == 1].min() > all_of_it[TEST.labels == 0].max()
            turned = part(TRAIN, np.arange(len(TRAIN)))
            turned.table["label"] = 1 - turned.table["label"]
            scores = rspamd.Rspamd(server, rules=False).learn(turned).score(TEST)
            assert scores[TEST.labels == 0].min() > 0 > scores[TEST.labels == 1].max()
    except rspamd.Unavailable as error:
        pytest.skip(str(error))
