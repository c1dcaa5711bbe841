"""(g) How far caught spam falls under each attack, for every contestant."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from . import splits
from .attacks import ATTACKS, MANY
from .contest import Told, size
from .mail import Indices, Mail, Reader
from .peers import Learner

SAMPLE = 100


def attacked(mail: Mail, reader: Reader, ours: Learner, peers: Sequence[Learner], told: Told) -> dict[str, Any]:
    """All contestants learn what the shipped head may be fitted on but the test part of (a), and are attacked there
    and on phishing of which nothing was learnt.

    Attacked are the first hundred, by hash, that ours calls spam; of these, for each contestant, those that it calls
    spam itself. The ham that some attacks add was learnt as ham: the worst case.
    """
    test = next(iter(splits.by_hash(mail.table).tests.values()))
    phishing = np.flatnonzero(mail.table["corpus"] == "phishing_pot_dev")
    judged = np.concatenate([test, phishing])
    rows = splits.apart(mail.table, np.setdiff1d(splits.fitted_on(mail.table), judged), judged)
    train = mail.take(rows)
    judges = []
    for learner in (ours, *peers):
        told(f"attacks: {learner.name} learns")
        judges.append((learner.name, learner.learn(train)))
    ham = _ham(train)
    found: dict[str, Any] = {"learnt from": size(train), "targets": {}}
    for name, part in {"spamassassin, test part of (a)": test, "phishing_pot_dev": phishing}.items():
        sample = _caught(mail, part[mail.labels[part] == 1], judges[0][1])
        if not len(sample):
            continue
        before = mail.take(sample)
        calm = {who: judge.score(before) for who, judge in judges}
        rows_of: dict[str, dict[str, Any]] = {}
        for attack, change in ATTACKS.items():
            told(f"attacks: {attack}")
            raw = [change(each, ham[int(content[:8], 16) % len(ham)]) for each, content in _with_hash(before)]
            after = reader.see(before.table, raw)
            rows_of[attack] = {}
            for who, judge in judges:
                caught = calm[who] >= judge.spam
                scores = judge.score(after)[caught]
                fallen = calm[who][caught] - scores
                rows_of[attack][who] = {
                    "caught": int(caught.sum()),
                    "ham": int((scores < judge.unsure).sum()),
                    "unsure": int(((scores >= judge.unsure) & (scores < judge.spam)).sum()),
                    "median fall": round(float(np.median(fallen)), 2) if len(fallen) else None,
                }
        found["targets"][name] = {"attacked": len(sample), "attacks": rows_of}
    return found


def _caught(mail: Mail, spam: Indices, judge: Any) -> Indices:
    """The first that the judge calls spam, in the order of their hash."""
    order = spam[np.argsort(mail.table["sha256"].to_numpy()[spam], kind="stable")]
    return order[judge.score(mail.take(order)) >= judge.spam][:SAMPLE]


def _with_hash(mail: Mail) -> zip[tuple[bytes, str]]:
    return zip(mail.raw, mail.table["content"], strict=True)


def _ham(train: Mail, pieces: int = 20) -> list[str]:
    """Texts of learnt ham, long enough for the longest attack; every message in one of them at most."""
    texts = [text for text, label in zip(train.texts, train.labels, strict=True) if label == 0]
    order = np.random.default_rng(0).permutation(len(texts))
    found, words = [], list[str]()
    for i in order:
        words += texts[i].split()
        if len(words) >= MANY:
            found.append(" ".join(words))
            words = []
        if len(found) == pieces:
            break
    return found or [" ".join(words)]
