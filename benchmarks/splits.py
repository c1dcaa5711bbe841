"""Which mail is learnt from and which is judged: splits on which near-duplicates never stand on both sides.

All splits work on the table of `mail.Mail` and give row numbers. The rule against near-duplicates is the same in all
of them: the mail that is judged stays as it is, and what is learnt from loses each message of a campaign that stands
there too.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pandas as pd

from training.ship import FITTED_ON, NOT_LICENSED

Indices = npt.NDArray[np.int64]

TRAIN_SHARE = 0.7
LABELS = (10, 20, 50, 100, 200, 500)
MODERN = ("foff_dev", "modern_dev")
# Corpora with both classes; phishing and the mailing lists of its years make one target together.
TARGETS: dict[str, tuple[str, ...]] = {
    "spamassassin": ("spamassassin",),
    "csdmc2010": ("csdmc2010",),
    "enron_dev": ("enron_dev",),
    "phishing_pot_dev + rlists_dev": ("phishing_pot_dev", "rlists_dev"),
    "foff_dev": ("foff_dev",),
    "modern_dev": ("modern_dev",),
}
# Sources left out in turn. Each fold leaves out a part of foff_dev's sender domains as well.
MODERN_FOLDS: tuple[tuple[str, ...], ...] = (
    ("lunchmoney_receipts",),
    ("mail_and_packages",),
    ("uk_receipts",),
    ("philly_bike",),
    ("html_templates_dev",),
    ("sefinek_spam", "spamscope_spam"),
)


@dataclass(frozen=True)
class Split:
    """Rows that are learnt from, and rows that are judged, under the name that stands in the table.

    `others` are rows of other corpora, never of the judged one, that a head may have been fitted on before.
    """

    name: str
    train: Indices
    tests: dict[str, Indices]
    others: Indices = field(default_factory=lambda: np.empty(0, dtype=np.int64))


def apart(table: pd.DataFrame, train: Indices, test: Indices) -> Indices:
    """Those rows of `train` of whose campaign none stands in `test`."""
    campaign = table["campaign"].to_numpy()
    return train[~np.isin(campaign[train], campaign[test])]


def fitted_on(table: pd.DataFrame, without: Sequence[str] = ()) -> Indices:
    """What the shipped head may be fitted on, less those corpora."""
    free = table["corpus"].isin(FITTED_ON) & ~table["source"].isin(NOT_LICENSED) & ~table["corpus"].isin(without)
    return np.flatnonzero(free)


def by_hash(table: pd.DataFrame) -> Split:
    """(a) SpamAssassin, the first 70 % by sha256 of the file to learn from."""
    rows = np.flatnonzero(table["corpus"] == "spamassassin")
    rows = rows[np.argsort(table["sha256"].to_numpy()[rows], kind="stable")]
    cut = int(len(rows) * TRAIN_SHARE)
    return _split(table, "by hash", rows[:cut], {"spamassassin, 30 % by hash": rows[cut:]}, ["spamassassin"])


def by_hash_plain(table: pd.DataFrame) -> Split:
    """The same with near-duplicates left in, as it is usually reported: how much they flatter is worth knowing."""
    rows = np.flatnonzero(table["corpus"] == "spamassassin")
    rows = rows[np.argsort(table["sha256"].to_numpy()[rows], kind="stable")]
    cut = int(len(rows) * TRAIN_SHARE)
    return Split("by hash", rows[:cut], {"the same, near-duplicates left in": rows[cut:]})


def early_to_late(table: pd.DataFrame) -> Split:
    """(b) SpamAssassin, easy-ham-1 and spam-1 to learn from; hard-ham, which is of no known time, apart."""
    subset = (
        table["where"]
        .str.extract(r"/(easy-ham-\d|hard-ham-\d|spam-\d)[^/]*$")[0]
        .where(table["corpus"] == "spamassassin")
    )
    early = np.flatnonzero(subset.isin(["easy-ham-1", "spam-1"]))
    late = np.flatnonzero(subset.isin(["easy-ham-2", "spam-2"]))
    hard = np.flatnonzero(subset == "hard-ham-1")
    tests = {"spamassassin, later part": late, "spamassassin, hard ham alone": hard}
    return _split(table, "early to late", early, tests, ["spamassassin"])


def leave_out(table: pd.DataFrame, target: str) -> Split:
    """(c) everything that may be fitted on but the target's corpora, to learn from; the target to judge."""
    corpora = TARGETS[target]
    test = np.flatnonzero(table["corpus"].isin(corpora))
    return _split(table, f"without {target}", fitted_on(table, corpora), {target: test}, None)


def targets(table: pd.DataFrame) -> list[str]:
    """Those targets of which all corpora have been read."""
    there = set(table["corpus"])
    return [name for name, corpora in TARGETS.items() if there.issuperset(corpora)]


def few_labels(table: pd.DataFrame, target: str) -> Split:
    """(d) the pool that labels are drawn from, and the mail that is judged.

    `spamassassin` is split as in (a); the two modern corpora, together, by the hash of the file as well.
    """
    if target == "spamassassin":
        whole = by_hash(table)
        return Split("few labels", whole.train, {"spamassassin": next(iter(whole.tests.values()))}, whole.others)
    rows = np.flatnonzero(table["corpus"].isin(MODERN))
    rows = rows[np.argsort(table["sha256"].to_numpy()[rows], kind="stable")]
    cut = int(len(rows) * TRAIN_SHARE)
    return _split(table, "few labels", rows[:cut], {" + ".join(MODERN): rows[cut:]}, MODERN)


def draw(labels: npt.NDArray[np.int64], pool: Indices, n: int, seed: int) -> Indices:
    """n rows of the pool, half of them spam as long as there is spam; smaller draws of a seed lie within greater."""
    order = np.random.default_rng(seed).permutation(pool)
    spam, ham = order[labels[order] == 1], order[labels[order] == 0]
    half = min(n // 2, len(spam))
    return np.concatenate([spam[:half], ham[: n - half]])


def modern_folds(table: pd.DataFrame) -> list[Split]:
    """(e) modern mail, no source of which (foff_dev: no sender's domain) stands in what is learnt from."""
    within = table["source"].where(table["corpus"] == "modern_dev", table["corpus"])
    domain = table["domain"].where(table["domain"] != "", table["content"])
    part = domain.map(lambda name: zlib.crc32(name.encode()) % len(MODERN_FOLDS))
    folds = []
    for number, sources in enumerate(MODERN_FOLDS):
        out = within.isin(sources)
        foff = (table["corpus"] == "foff_dev") & (part == number)
        test = np.flatnonzero(out | foff)
        tests = {name: np.flatnonzero(within == name) for name in sources if (within == name).any()}
        tests["foff_dev"] = np.flatnonzero(foff)
        train = fitted_on(table)
        folds.append(Split("modern ham", apart(table, np.setdiff1d(train, test), test), tests))
    return folds


def _split(
    table: pd.DataFrame, name: str, train: Indices, tests: dict[str, Indices], own: Sequence[str] | None
) -> Split:
    """The split without near-duplicates; `own` are the corpora that `others` must not hold (None: no others)."""
    test = np.concatenate(list(tests.values()))
    others = np.empty(0, dtype=np.int64) if own is None else apart(table, fitted_on(table, own), test)
    return Split(name, apart(table, train, test), tests, others)


# Near-duplicates: MinHash (Broder 1997) of word 3-shingles, found by bands of equal values.
_WORD = re.compile(r"[^\W\d_]+|\d")
_MOST_WORDS = 3000
_BANDS, _ROWS = 24, 4
# Share of equal MinHash values, which estimates the share of common shingles (Jaccard).
_ALIKE = 0.5


def campaigns(texts: Sequence[str]) -> list[int]:
    """A number for each text; texts of which half of the word 3-shingles are common carry the same, and so do chains.

    Numbers and letters' case are not looked at, since campaigns vary them. Time is linear in the texts' length: a
    text is compared with the first one of each band it falls in, not with all. A text without words is alone.
    """
    signatures = [_signature(text) for text in texts]
    parent = list(range(len(texts)))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    first: dict[tuple[int, bytes], int] = {}
    for i, signature in enumerate(signatures):
        if signature is None:
            continue
        for band in range(_BANDS):
            key = (band, signature[band * _ROWS : (band + 1) * _ROWS].tobytes())
            other = first.setdefault(key, i)
            known = signatures[other]
            if other != i and known is not None and (signature == known).mean() >= _ALIKE:
                a, b = sorted((root(other), root(i)))
                parent[b] = a
    return [root(i) for i in range(len(texts))]


def _signature(text: str) -> npt.NDArray[np.uint64] | None:
    """The least value of each of the hash functions over the text's shingles; None without words."""
    words = _WORD.findall(text.lower(), 0, _MOST_WORDS * 12)[:_MOST_WORDS]
    if not words:
        return None
    ids = np.asarray([zlib.crc32(b"0" if word.isdigit() else word.encode("utf-8", "replace")) for word in words])
    ids = ids.astype(np.uint64)
    ids = np.concatenate([ids, np.zeros(max(0, 3 - len(ids)), np.uint64)])
    with np.errstate(over="ignore"):
        shingles = np.unique(ids[:-2] * np.uint64(0x9E3779B97F4A7C15) + ids[1:-1] * _SECOND + ids[2:])
        values = shingles[:, None] * _FACTORS + _OFFSETS
        return (values ^ (values >> np.uint64(29))).min(0)


_SECOND = np.uint64(0xC2B2AE3D27D4EB4F)
_FACTORS = np.random.default_rng(1).integers(1, 1 << 63, _BANDS * _ROWS, dtype=np.uint64) | np.uint64(1)
_OFFSETS = np.random.default_rng(2).integers(1, 1 << 63, _BANDS * _ROWS, dtype=np.uint64)
