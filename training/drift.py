"""Whether the mail that comes in is still the mail that the head was fitted on, and whether a retrain is due.

Three questions, each with an answer in words: is more mail unsure than was to be expected, do users overrule the head
more often than its own probabilities allow, and is recent mail unlike that of the fit? With little mail: no answer.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy.stats import binomtest, poisson
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold
from sklearn.preprocessing import StandardScaler

from spamguard.bundle import Bundle
from spamguard.config import Config
from spamguard.encoder import Encoder
from spamguard.featurestore import FeatureStore, file_of
from spamguard.head import STRUCTURE_LIMIT, Row, logits, probability, stack
from spamguard.labels import FOUND, Given
from spamguard.recent import Judged, Recent
from spamguard.verdict import Label

Array = npt.NDArray[np.floating]

# Fewer messages say nothing; of more a sample says it as well.
LEAST, MOST = 100, 1000
# What chance alone would do less often than this is not chance; and what is hardly more than expected is no reason.
RARE, MUCH = 0.001, 1.5
LEAST_OVERRULED = 5
# So much new mail, at the lower end of its interval, is a reason (docs/lab-notes.md).
NEW = 0.1
_FOLDS, _PENALTY, _BY_CHANCE = 5, 1000.0, 0.05
_NO_WORDS = b"/"


@dataclass(frozen=True, slots=True)
class Finding:
    """The answer to one question: whether it is a reason to retrain (None: cannot be told), in words and figures."""

    name: Literal["unsure", "overruled", "unlike"]
    due: bool | None
    says: str
    figures: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Unlike:
    """Which share of recent mail is unlike that of the fit, with its 95 % interval (0: none can be told from it)."""

    share: float
    low: float
    high: float


def drift(config: Config, encoder: Encoder, served: Bundle, given: Sequence[Given], days: float) -> list[Finding]:
    """What mail of the last days and the labels `given` say of the head in service. Raises FeatureStoreError."""
    with Recent(config.features_dir, encoder.fingerprint, read_only=True) as recent:
        judged = recent.since(days)
    rows: dict[str, Row] = {}
    if given and file_of(config.features_dir, encoder.fingerprint).exists():
        with FeatureStore(config.features_dir, encoder.fingerprint, read_only=True) as store:
            rows = store.get([one.content for one in given])
    fitted = [one for one in _fitted_on(served, given) if one.content in rows]
    known = {one.content for one in fitted}
    fresh = [one for one in judged if one.content not in known]
    p = probability(logits(served.head, stack([one.row for one in fresh]))) if fresh else np.empty(0)
    return [
        unsure(p, served),
        overruled([one for one in judged if one.head == served.id], given, rows, encoder.vocab_size),
        unlike(
            [rows[one.content] for one in fitted],
            np.asarray([one.label is Label.SPAM for one in fitted], dtype=bool),
            [one.row for one in fresh],
            p,
            encoder.vocab_size,
        ),
    ]


def unsure(p: Array, served: Bundle) -> Finding:
    """Whether more of the mail, probabilities (n,), falls between the cut-offs than of the mail held out at the fit.

    As much spam is assumed to be among it as the head finds; the shares of the fit are taken at the upper end of
    their exact 95 % intervals (Clopper and Pearson 1934), and the binomial test is exact.
    """
    n = len(p)
    if n < LEAST:
        return _too_little("unsure", n)
    between = int(((p >= served.cutoffs.unsure) & (p < served.cutoffs.spam)).sum())
    figures: dict[str, float] = {"n": n, "unsure": between}
    share = f"{between} of {n} messages of late are unsure ({between / n:.1%})"
    confusion = served.manifest.provenance.get("figures", {}).get("confusion")
    if not confusion:
        return Finding("unsure", None, f"{share}; what is usual this head does not say", figures)
    spam = float(np.mean(p))
    usual = (1 - spam) * _upper(confusion["ham"]) + spam * _upper(confusion["spam"])
    rare = binomtest(between, n, usual, alternative="greater").pvalue
    due = bool(rare < RARE and between / n > MUCH * usual)
    figures |= {"expected_at_most": usual, "p_value": float(rare)}
    return Finding("unsure", due, f"{share}, of mail held out at the fit it was {usual:.1%} at most", figures)


def overruled(judged: Sequence[Judged], given: Iterable[Given], rows: Mapping[str, Row], vocabulary: int) -> Finding:
    """Whether users called more of this mail wrongly judged than its probabilities let expect.

    Who labels mostly labels mistakes, so that by labelled mail alone no head would seem calibrated. But of all that
    was judged, those reported cannot be more than all mistakes, and of these a calibrated head expects the sum of p
    of what it let pass, and of 1 - p of what it called spam (Poisson, as single ones are rare).
    """
    n = len(judged)
    if n < LEAST:
        return _too_little("overruled", n)
    by_content = {one.content: one for one in judged}
    by_words = {_words(one.row, vocabulary): one for one in judged}
    by_words.pop(_NO_WORDS, None)
    wrong = 0
    seen = set()
    for word in given:
        # A server that had the mail after us has added headers: then it has another hash, but the same words.
        row = rows.get(word.content)
        before = by_content.get(word.content) or (by_words.get(_words(row, vocabulary)) if row else None)
        if before is None or before.at > word.at or word.source in FOUND or before.content in seen:
            continue
        seen.add(before.content)
        wrong += before.label is not Label.UNSURE and before.label is not word.label
    expected = sum(_chance_of_error(one) for one in judged)
    rare = float(poisson.sf(wrong - 1, expected))
    due = wrong >= LEAST_OVERRULED and rare < RARE and wrong > MUCH * expected
    interval = binomtest(wrong, n).proportion_ci(0.95, method="exact")
    return Finding(
        "overruled",
        due,
        f"{wrong} of {n} messages were overruled ({interval.low:.1%} to {interval.high:.1%}), "
        f"the head itself expects {expected:.1f} mistakes",
        {"n": n, "overruled": wrong, "expected": expected, "labelled": len(seen), "p_value": rare},
    )


def unlike(
    fitted: Sequence[Row],
    spam: npt.NDArray[np.bool_],
    recent: Sequence[Row],
    p: Array,
    vocabulary: int,
    seed: int = 0,
) -> Finding:
    """Whether recent mail, with probabilities (n,), is another kind of mail than that of the fit, labels `spam` (m,).

    Of the fit so much spam is taken as the head finds in recent mail: more or less spam is no reason to retrain. Of
    messages with the same words one is taken.
    """
    rng = np.random.default_rng(seed)
    ours = _distinct(recent, vocabulary)
    theirs = _distinct(fitted, vocabulary)
    if min(len(ours), len(theirs)) < LEAST:
        about = f"n = {len(ours)}" if len(ours) < LEAST else f"{len(theirs)} messages of the fit are known"
        return Finding("unlike", None, f"too little mail to tell ({about})", {"n": len(ours), "fitted": len(theirs)})
    chosen = rng.permutation(ours)[:MOST]
    share = float(np.mean(p[chosen]))
    matched = _with_share(rng.permutation(theirs), spam, share)
    if len(matched) < LEAST:
        says = f"too little mail to tell ({len(matched)} messages of the fit with as much spam among them)"
        return Finding("unlike", None, says, {"n": len(chosen), "fitted": len(matched)})
    found = told_apart([fitted[i] for i in matched], [recent[i] for i in chosen], seed)
    due = found.low > NEW
    return Finding(
        "unlike",
        due,
        f"{found.share:.0%} of {len(chosen)} messages of late ({found.low:.0%} to {found.high:.0%}) are of a kind "
        "that was not among the mail of the fit",
        {"n": len(chosen), "fitted": len(matched), "share": found.share, "low": found.low, "high": found.high},
    )


def told_apart(fitted: Sequence[Row], recent: Sequence[Row], seed: int = 0) -> Unlike:
    """The classifier two-sample test (Lopez-Paz and Oquab 2017), with the share of new mail in place of an accuracy.

    A logistic regression on the encoder's output and the structure features learns to tell the two apart, and judges
    folds held out. What it finds more recent than all but one in twenty of the fit is new, but for as many as one in
    twenty (a bound on the share of a component in a mixture: Blanchard, Lee and Scott 2010). The interval is the
    exact one of the count.
    """
    rows = [*fitted, *recent]
    x = np.hstack([np.stack([row.deep for row in rows]), np.stack([row.structure for row in rows])])
    y = np.repeat([0, 1], [len(fitted), len(recent)])
    scores = np.empty(len(y))
    for train, test in StratifiedKFold(_FOLDS, shuffle=True, random_state=seed).split(x, y):
        scale = StandardScaler().fit(x[train])
        ours, theirs = (
            np.clip(scale.transform(x[part]), -STRUCTURE_LIMIT, STRUCTURE_LIMIT) for part in (train, test)
        )
        model = LogisticRegression(C=1 / _PENALTY, class_weight="balanced", max_iter=200, tol=1e-3)
        scores[test] = model.fit(ours, y[train]).decision_function(theirs)
    beyond = int((scores[y == 1] > np.quantile(scores[y == 0], 1 - _BY_CHANCE)).sum())
    interval = binomtest(beyond, len(recent)).proportion_ci(0.95, method="exact")
    share, low, high = (
        max(0.0, (part - _BY_CHANCE) / (1 - _BY_CHANCE))
        for part in (beyond / len(recent), float(interval.low), float(interval.high))
    )
    return Unlike(share, low, high)


def _too_little(name: Literal["unsure", "overruled", "unlike"], n: int) -> Finding:
    return Finding(name, None, f"too little mail to tell (n = {n})", {"n": n})


def _fitted_on(served: Bundle, given: Sequence[Given]) -> list[Given]:
    """The labels that the head was fitted on; none if it does not say, or if they are mostly others than these."""
    try:
        origin = served.manifest.provenance
        at, count = datetime.fromisoformat(origin["created"]).timestamp(), int(origin["ham"]) + int(origin["spam"])
    except (KeyError, TypeError, ValueError):
        return []
    # What a retrain finds in folders it notes when the head is made.
    before = [one for one in given if one.source in FOUND or one.at <= at]
    return before if len(before) >= count / 2 else []


def _upper(verdicts: Mapping[str, int]) -> float:
    """Upper end of the interval of the share that is unsure."""
    n = sum(verdicts.values())
    return float(binomtest(verdicts["unsure"], n).proportion_ci(0.95, method="exact").high) if n else 1.0


def _chance_of_error(one: Judged) -> float:
    return {Label.HAM: one.p, Label.SPAM: 1 - one.p, Label.UNSURE: 0.0}[one.label]


def _words(row: Row, vocabulary: int) -> bytes:
    text = row.wide.text(vocabulary)
    return text.columns.tobytes() + _NO_WORDS + text.counts.tobytes()


def _distinct(rows: Sequence[Row], vocabulary: int) -> npt.NDArray[np.int64]:
    """The places of those rows whose words no row before has."""
    first = {_words(row, vocabulary): i for i, row in reversed(list(enumerate(rows)))}
    return np.asarray(sorted(first.values()), dtype=np.int64)


def _with_share(places: npt.NDArray[np.int64], spam: npt.NDArray[np.bool_], share: float) -> npt.NDArray[np.int64]:
    """As many of the places as can be, MOST at most, of which that share is spam."""
    junk, ham = places[spam[places]], places[~spam[places]]
    most = min(MOST, len(junk) / share if share > 0 else MOST, len(ham) / (1 - share) if share < 1 else MOST)
    return np.concatenate([junk[: round(most * share)], ham[: round(most * (1 - share))]])
