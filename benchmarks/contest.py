"""One split, all contestants: who says what of which message, and the figures that follow."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from . import measures
from .mail import Indices, Mail
from .measures import Figure
from .peers import Judge, Learner
from .splits import LABELS, Split, draw, few_labels

Array = npt.NDArray[np.float64]
ROC_UP_TO, ROC_POINTS = 0.2, 200
Told = Callable[[str], None]

# What contestants are compared by, and whether more is better.
COMPARED = {"auc": (measures.auc, 1), "fnr at fpr 0.5%": (measures.fnr_at(0.005), -1)}


@dataclass(frozen=True)
class Said:
    """What one contestant said of n messages, and its cut-offs for each of them; all of shape (n,)."""

    scores: Array
    unsure: Array
    spam: Array
    probable: bool

    @classmethod
    def of(cls, judge: Judge, mail: Mail, probable: bool) -> Said:
        scores = judge.score(mail)
        return cls(scores, np.full(len(mail), judge.unsure), np.full(len(mail), judge.spam), probable)

    def take(self, chosen: Indices) -> Said:
        return Said(self.scores[chosen], self.unsure[chosen], self.spam[chosen], self.probable)


@dataclass(frozen=True)
class Target:
    """Mail that was judged (row numbers), what was learnt from, and what each contestant said."""

    name: str
    rows: Indices
    learnt_from: str
    said: dict[str, Said]


def hold(split: Split, mail: Mail, learners: Sequence[Learner], told: Told) -> list[Target]:
    """Each learner learns once and judges all of the split's tests."""
    train = mail.take(split.train)
    rows = np.concatenate(list(split.tests.values()))
    test = mail.take(rows)
    said = {}
    for learner in learners:
        told(f"{split.name}: {learner.name}")
        said[learner.name] = Said.of(learner.learn(train), test, learner.probable)
    targets, start = [], 0
    for name, part in split.tests.items():
        here = np.arange(start, start + len(part))
        start += len(part)
        targets.append(Target(name, part, size(train), {who: what.take(here) for who, what in said.items()}))
    return targets


def pool(name: str, targets: Sequence[Target]) -> Target:
    """Several targets as one; each message keeps the cut-offs of its own judge."""
    said = {}
    for who in targets[0].said:
        each = [target.said[who] for target in targets]
        said[who] = Said(
            np.concatenate([one.scores for one in each]),
            np.concatenate([one.unsure for one in each]),
            np.concatenate([one.spam for one in each]),
            each[0].probable,
        )
    return Target(name, np.concatenate([target.rows for target in targets]), targets[0].learnt_from, said)


def size(mail: Mail) -> str:
    ham, spam = np.bincount(mail.labels, minlength=2)
    return f"{ham} ham, {spam} spam"


def figures(target: Target, mail: Mail, ours: Sequence[str], peers: Sequence[str]) -> dict[str, Any]:
    """All figures of a target, and how far each of ours is from the best peer, as plain data."""
    labels = mail.labels[target.rows]
    counts = measures.resamples(mail.table["campaign"].to_numpy()[target.rows])
    contestants = {
        who: measures.figures(said.scores, labels, counts, unsure=said.unsure, spam=said.spam, probable=said.probable)
        for who, said in target.said.items()
    }
    ahead: dict[str, Any] = {}
    for name, (measure, sign) in COMPARED.items() if peers and 0 < labels.sum() < len(labels) else ():
        best = max(peers, key=lambda who: sign * contestants[who][name].value)
        for who in (who for who in ours if who in contestants):
            first, second = target.said[who].scores, target.said[best].scores
            gap = measures.difference(measure, first, second, labels, counts)
            ahead.setdefault(who, {})[name] = {"best peer": best, "difference": plain(gap)}
    ham, spam = np.bincount(labels, minlength=2)
    return {
        "ham": int(ham),
        "spam": int(spam),
        "campaigns": len(set(mail.table["campaign"].iloc[target.rows])),
        "learnt from": target.learnt_from,
        "contestants": {
            who: {name: plain(figure) for name, figure in found.items()} for who, found in contestants.items()
        },
        "ahead": ahead,
        "curves": {who: _curves(said, labels) for who, said in target.said.items()} if ham and spam else {},
    }


def _curves(said: Said, labels: npt.NDArray[np.int64]) -> dict[str, Any]:
    """What pictures are drawn of: the ROC curve where it matters, and how often what was said was so."""
    wrong, missed = measures.roc(said.scores, labels)
    seen = np.flatnonzero(wrong <= ROC_UP_TO)
    seen = seen[np.unique(np.linspace(0, len(seen) - 1, ROC_POINTS).astype(int))]
    curves: dict[str, Any] = {
        "roc": [[round(float(x), 5), round(float(y), 5)] for x, y in zip(wrong[seen], missed[seen], strict=True)]
    }
    if said.probable:
        curves["reliability"] = measures.reliability(said.scores, labels)
    return curves


def plain(figure: Figure) -> list[float | None]:
    """Value and interval for a JSON file, which knows no nan."""
    return [None if np.isnan(x) else round(x, 6) for x in (figure.value, figure.low, figure.high)]


def learning_curves(
    mail: Mail, target: str, learners: Sequence[Learner], from_nothing_only: Sequence[str], seeds: int, told: Told
) -> dict[str, Any]:
    """AUC by number of labels, from nothing and from the other corpora: the mean over the seeds, with its interval.

    Who is named in `from_nothing_only` does not start from the others. With no labels a contestant judges by the
    other corpora alone.
    """
    split = few_labels(mail.table, target)
    test = mail.take(next(iter(split.tests.values())))
    counts = measures.resamples(test.table["campaign"].to_numpy())
    others = mail.take(split.others)
    draws = {n: [draw(mail.labels, split.train, n, seed) for seed in range(seeds)] for n in LABELS}
    curves: dict[str, dict[int, Array]] = {}

    def mean(judges: Iterable[Judge]) -> Array:
        return np.mean([measures.auc(judge.score(test), test.labels, counts) for judge in judges], axis=0)

    def drawn(learner: Learner) -> dict[int, Array]:
        return {n: mean(learner.learn(mail.take(rows)) for rows in draws[n]) for n in LABELS}

    for learner in learners:
        told(f"few labels, {target}: {learner.name}")
        who = learner.name.removesuffix(", from nothing")
        curves[f"{who}, from nothing"] = drawn(learner)
        if learner.name not in from_nothing_only:
            told(f"few labels, {target}: {learner.name}, after the other corpora")
            after = learner.after(others)
            start = getattr(after, "start", None) or learner.learn(others)
            curves[f"{who}, after the other corpora"] = {0: mean([start]), **drawn(after)}
    ham, spam = np.bincount(test.labels, minlength=2)
    return {
        "ham": int(ham),
        "spam": int(spam),
        "others": size(others),
        "seeds": seeds,
        "curves": {
            who: {str(n): plain(measures.figure(values)) for n, values in curve.items()}
            for who, curve in curves.items()
        },
        "ahead": {
            str(n): _ahead({who: curve[n] for who, curve in curves.items() if n in curve}) for n in (0, *LABELS)
        },
    }


def _ahead(values: Mapping[str, Array]) -> dict[str, Any]:
    """The best of ours and the best of the peers, and how far they are apart."""
    ours = max((who for who in values if is_ours(who)), key=lambda who: values[who][0], default=None)
    peer = max((who for who in values if not is_ours(who)), key=lambda who: values[who][0], default=None)
    if ours is None or peer is None:
        return {}
    return {"ours": ours, "best peer": peer, "difference": plain(measures.figure(values[ours] - values[peer]))}


def is_ours(who: str) -> bool:
    return who.startswith("spamguard")
