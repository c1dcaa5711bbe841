"""The gate: a candidate takes the place of the head in service only where it does no harm.

**Which mail.** Both heads judge the same messages, and neither may have been fitted on them; else the one that was
would win.

- With LOCK_FROM campaigns of each class, SHARE of them are locked away (`locked`): no head is fitted on them, and
  they choose no cut-off and no strength. Which ones, the content hash of a campaign's first member says, so the same
  ones each time. (A campaign whose first member changes may change sides: what the head in service was fitted on is
  left out of the comparison all the same.)
- With less, locking mail away would waste what a few corrections teach. There the candidate is represented by what
  its folds said of messages that they were not fitted on, on which its two numbers of calibration and its cut-offs
  were chosen: that flatters it a little. Left out is what the head in service was fitted on; the shipped head knows
  none of it. So somebody's first 20 corrections are all compared. Who only corrects mistakes shows mostly mail that
  the head in service gets wrong, which flatters the candidate too, and what of it was learnt already is not compared
  at all. Such labels can show that a candidate errs, not that all other mail is safe: that is what the reference set
  is for.

Of each campaign one message counts, as near-duplicates are right or wrong together, and an exact test counts what is
independent.

**The reference set** (training/reference/, of our own writing) is small, the same for everybody, and not the user's.
It cannot show a small gain or loss; it shows a head that has learnt nonsense, such as one of folders whose names were
swapped, which the user's own labels cannot show, as they agree with themselves.

**The word** is `lost` if one of these holds, else `won` if fewer ham are called spam or more spam is caught, beyond
noise, else `tied`. Noise is the exact one-sided test of McNemar (1947) on the messages that only one of the two calls
spam, at LEVEL.

1. More ham is called spam, beyond noise and beyond the share that the user allows (`learning.spam_rate`: the exact
   lower bound of Clopper and Pearson (1934) lies above it).
2. Less spam is caught, beyond noise and by more than RECALL_MARGIN of it; by more than RECALL_PRICE where fewer ham
   are called spam, beyond noise. A lost letter costs more than a read advertisement.
3. Of the reference's ham more than REFERENCE_HAM more is called spam.
4. Of the reference's spam less than REFERENCE_SPAM of what was noticed (unsure or spam) is noticed still.
5. The reference's ham ranks above its spam, beyond noise (Mann and Whitney 1947).

3 and 4 are asked only if the head in service itself ranks the reference's spam above its ham: of mail in a language
that its encoder does not know, the reference says nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy.stats import binomtest, mannwhitneyu

from spamguard.verdict import Cutoffs

Array = npt.NDArray[np.floating]
Labels = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

LOCK_FROM, SHARE = 100, 0.15
LEVEL = 0.05
RECALL_MARGIN, RECALL_PRICE = 0.05, 0.25
REFERENCE_HAM, REFERENCE_SPAM = 0.15, 0.75
_INVERTED = 0.01

Outcome = Literal["won", "tied", "lost"]


@dataclass(frozen=True, slots=True)
class Said:
    """Probabilities (n,) of one head, and its cut-offs."""

    probabilities: Array
    cutoffs: Cutoffs

    @property
    def spam(self) -> Mask:
        return np.asarray(self.probabilities >= self.cutoffs.spam)

    @property
    def noticed(self) -> Mask:
        return np.asarray(self.probabilities >= self.cutoffs.unsure)


@dataclass(frozen=True, slots=True)
class Sample:
    """What both heads said of the same n messages; labels (n,), 1 is spam. `before` is None where no head judged."""

    labels: Labels
    after: Said
    before: Said | None


@dataclass(frozen=True, slots=True)
class Row:
    """How many of `n` messages of one kind each head hit; `gained` and `lost` were hit by one of the two alone."""

    what: str
    n: int
    before: int | None
    after: int
    gained: int = 0
    lost: int = 0

    @property
    def rise(self) -> float:
        """Of the share that is hit."""
        return (self.gained - self.lost) / self.n if self.n else 0.0

    @property
    def p_more(self) -> float:
        return _sign_test(self.gained, self.lost)

    @property
    def p_fewer(self) -> float:
        return _sign_test(self.lost, self.gained)

    @property
    def in_words(self) -> str:
        was = "" if self.before is None else f", before {_share(self.before, self.n)}"
        return f"{self.what}: {_share(self.after, self.n)}{was}"


@dataclass(frozen=True, slots=True)
class Word:
    """What the gate says: the outcome, the reasons, and the rows that they were read from.

    `mail` says what the user's mail was: "locked" away from every fit, or "out of fold".
    """

    outcome: Outcome
    reasons: tuple[str, ...]
    rows: tuple[Row, ...]
    mail: str

    @property
    def passed(self) -> bool:
        return self.outcome != "lost"

    @property
    def sentence(self) -> str:
        return f"{self.outcome}: {'; '.join(self.reasons)}"


SAME = Word("tied", ("it is the head in service already",), (), "out of fold")


def locked(contents: Sequence[str], groups: Sequence[int], labels: Labels) -> Mask:
    """Which messages are locked away, (n,): SHARE of the campaigns, or none if a class has fewer than LOCK_FROM."""
    first = _first(contents, groups)
    few = min(len({group for group, label in zip(groups, labels, strict=True) if label == c}) for c in (0, 1))
    if few < LOCK_FROM:
        return np.zeros(len(contents), dtype=np.bool_)
    # By the end of the hash: "first" means the least by its beginning, so that is small where a campaign is large.
    return np.asarray([int(first[group][-8:], 16) < SHARE * 2**32 for group in groups])


def comparable(contents: Sequence[str], groups: Sequence[int], labels: Labels, fitted_on: set[str]) -> Mask:
    """One message of each campaign and class, (n,), and none of a campaign of which the head in service knows any."""
    known = {group for content, group in zip(contents, groups, strict=True) if content in fitted_on}
    chosen = np.zeros(len(contents), dtype=np.bool_)
    taken: set[tuple[int, int]] = set()
    for i, key in enumerate(zip(groups, labels.tolist(), strict=True)):
        chosen[i] = key not in taken and key[0] not in known
        taken.add(key)
    return chosen


def judge(mail: Sample, reference: Sample, spam_rate: float, kind: str) -> Word:
    """Candidate against the head in service; `kind` says what the mail is (Word.mail)."""
    rows = ham, spam, other_ham, other_spam = (
        _row("your ham called spam", mail, 0, "spam"),
        _row("your spam called spam", mail, 1, "spam"),
        _row("reference ham called spam", reference, 0, "spam"),
        _row("reference spam noticed", reference, 1, "noticed"),
    )
    fewer_ham = ham.before is not None and ham.p_fewer < LEVEL
    lost = []
    if ham.before is not None and ham.p_more < LEVEL and _interval(ham.after, ham.n)[0] > spam_rate:
        lost.append(f"it calls more of your ham spam ({_change(ham)})")
    margin = RECALL_PRICE if fewer_ham else RECALL_MARGIN
    if spam.before is not None and spam.p_fewer < LEVEL and -spam.rise > margin:
        lost.append(f"it catches less of your spam ({_change(spam)})")
    if _ranks(reference, reference.before):
        if other_ham.rise > REFERENCE_HAM:
            lost.append(f"it calls ordinary mail of the reference set spam ({_change(other_ham)})")
        if other_spam.after < REFERENCE_SPAM * (other_spam.before or 0):
            lost.append(f"it no longer notices the spam of the reference set ({_change(other_spam)})")
    if _inverted(reference):
        lost.append("it takes ordinary mail for spam and spam for ordinary mail: are ham and spam swapped?")
    if lost:
        return Word("lost", tuple(lost), rows, kind)
    won = []
    if fewer_ham:
        won.append(f"it calls less of your ham spam ({_change(ham)})")
    if spam.before is not None and spam.p_more < LEVEL:
        won.append(f"it catches more of your spam ({_change(spam)})")
    if won:
        return Word("won", tuple(won), rows, kind)
    if mail.before is None:
        return Word("won", ("no head was in service that could judge",), rows, kind)
    if not len(mail.labels):
        return Word(
            "tied", ("the head in service knows all your labels already; nothing speaks against it",), rows, kind
        )
    return Word("tied", (f"no difference beyond noise on {len(mail.labels)} messages of yours",), rows, kind)


def _row(what: str, sample: Sample, label: int, hit: Literal["spam", "noticed"]) -> Row:
    chosen = sample.labels == label
    after = getattr(sample.after, hit)[chosen]
    if sample.before is None:
        return Row(what, len(after), None, int(after.sum()))
    before = getattr(sample.before, hit)[chosen]
    gained, lost = int((after & ~before).sum()), int((before & ~after).sum())
    return Row(what, len(after), int(before.sum()), int(after.sum()), gained, lost)


def _ranks(sample: Sample, said: Said | None) -> bool:
    return said is not None and _above(said.probabilities, sample.labels, 1) < _INVERTED


def _inverted(sample: Sample) -> bool:
    return _above(sample.after.probabilities, sample.labels, 0) < _INVERTED


def _above(probabilities: Array, labels: Labels, upper: int) -> float:
    """How likely chance ranks this class so far above the other one."""
    high, low = probabilities[labels == upper], probabilities[labels != upper]
    return float(mannwhitneyu(high, low, alternative="greater").pvalue) if len(high) and len(low) else 1.0


def _sign_test(more: int, fewer: int) -> float:
    """How likely chance makes the greater of two counts of discordant messages so great."""
    return float(binomtest(more, more + fewer, 0.5, alternative="greater").pvalue) if more + fewer else 1.0


def _interval(hit: int, n: int) -> tuple[float, float]:
    if not n:
        return 0.0, 1.0
    found = binomtest(hit, n).proportion_ci(0.95, method="exact")
    return float(found.low), float(found.high)


def _share(hit: int, n: int) -> str:
    low, high = _interval(hit, n)
    return f"{hit} of {n} ({low:.1%} to {high:.1%})" if n else "none to compare"


def _change(row: Row) -> str:
    return f"{row.after} of {row.n}, the head in service {row.before}"


def _first(contents: Sequence[str], groups: Sequence[int]) -> dict[int, str]:
    """The least content of each group."""
    first: dict[int, str] = {}
    for content, group in zip(contents, groups, strict=True):
        first[group] = min(content, first.get(group, content))
    return first
