"""Does `spamguard doctor` see that mail has changed, and only then? `python -m benchmarks.drift CORPORA FEATURES`.

FEATURES holds encoder output of these corpora (`make bench-accuracy` leaves it); mail without is left out. Writes a
table of shifts, with what they cost a head that was fitted before them, and how often halves of the same mail alarm.
"""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from spamguard import bundle
from spamguard.config import EncoderTable
from spamguard.encoder import load as load_encoder
from spamguard.featurestore import FeatureStore, content_hash
from spamguard.head import logits, probability, stack
from training.corpus import find
from training.drift import Finding, unlike, unsure
from training.fit import fit
from training.report import figures

Indices = npt.NDArray[np.int64]

CORPORA = ("spamassassin", "modern_dev", "csdmc2010", "enron_dev", "foff_dev")
FITTED, SEEN, DRAWS, FITS = 2000, 500, 100, 20
SIZES = (120, 250, 1000)


class Mail:
    """Rows, labels (1 is spam) and places of the mail that has been encoded."""

    def __init__(self, corpora: Path, store: Path) -> None:
        self.encoder = load_encoder(EncoderTable())
        found = [
            (content_hash(item.read()), item.label, name, item.where)
            for name in CORPORA
            for item in find([corpora / name])
        ]
        table = pd.DataFrame(found, columns=["content", "label", "corpus", "where"]).drop_duplicates("content")
        with FeatureStore(store, self.encoder.fingerprint, read_only=True) as kept:
            rows = kept.get(table["content"].tolist())
        table = table[table["content"].isin(rows.keys())].reset_index(drop=True)
        self.rows = [rows[content] for content in table["content"]]
        self.labels = table["label"].to_numpy(dtype=np.int64)
        part = table["where"].str.extract(r"/(easy-ham-\d|spam-\d)[^/]*$")[0]
        self.sets = {name: np.flatnonzero(table["corpus"] == name) for name in CORPORA} | {
            "spamassassin, early": np.flatnonzero(part.isin(["easy-ham-1", "spam-1"])),
            "spamassassin, late": np.flatnonzero(part.isin(["easy-ham-2", "spam-2"])),
        }

    def shift(self, fitted: Indices, recent: Indices, rng: np.random.Generator) -> tuple[Finding, Finding, str]:
        """What the doctor says of a head fitted on the one and mail like the other, and what that costs it."""
        fitted, recent = rng.permutation(fitted)[:FITTED], rng.permutation(recent)[:SEEN]
        labels = self.labels[fitted]
        made = fit(stack([self.rows[i] for i in fitted]), labels, columns=self.encoder.vocab_size)
        p = probability(logits(made.head, stack([self.rows[i] for i in recent])))
        out = made.out_of_fold
        held_out = {"figures": asdict(figures(out, labels, made.cutoffs))}
        doubt = unsure(p, bundle.make(made.head, made.cutoffs, self.encoder, held_out))
        before, now = np.mean((out >= 0.5) != (labels == 1)), np.mean((p >= 0.5) != (self.labels[recent] == 1))
        return self.told(fitted, recent, p), doubt, f"{before:.1%} | {now:.1%}"

    def told(self, fitted: Indices, recent: Indices, p: npt.NDArray[np.floating], seed: int = 0) -> Finding:
        rows, spam = self.rows, self.labels[fitted] == 1
        return unlike([rows[i] for i in fitted], spam, [rows[i] for i in recent], p, self.encoder.vocab_size, seed)

    def halves(self, name: str, size: int, rng: np.random.Generator) -> str:
        """How often one half of a set is another kind of mail than the other, and what the draws find."""
        found = []
        for seed in range(DRAWS):
            drawn = rng.permutation(self.sets[name])[: 2 * size]
            recent, fitted = drawn[:size], drawn[size:]
            found.append(self.told(fitted, recent, self.labels[recent].astype(float), seed))
        told = [one.figures for one in found if one.due is not None]
        alarms = sum(bool(one.due) for one in found)
        shares, lows = [one["share"] for one in told], [one["low"] for one in told]
        return f"{size} | {alarms} of {len(told)} | {np.mean(shares):.1%} | {max(shares):.1%} | {max(lows):.1%}"


def _alarm(said: Finding) -> str:
    return "yes" if said.due else "no"


def main(corpora: Path, store: Path) -> None:
    mail, rng = Mail(corpora, store), np.random.default_rng(0)
    early, late, sa = (mail.sets[name] for name in ("spamassassin, early", "spamassassin, late", "spamassassin"))
    modern = mail.sets["modern_dev"]
    half = rng.permutation(sa)
    shifts = {
        "half of spamassassin → the other half": (half[: len(half) // 2], half[len(half) // 2 :]),
        "spamassassin, early → late": (early, late),
        **{f"spamassassin → {name}": (sa, mail.sets[name]) for name in CORPORA[1:]},
        "enron_dev → spamassassin": (mail.sets["enron_dev"], sa),
    }
    for share in (0.1, 0.2, 0.3, 0.5):
        n = round(SEEN * share)
        mixed = np.concatenate([rng.permutation(modern)[:n], rng.permutation(half[len(half) // 2 :])[: SEEN - n]])
        shifts[f"half of spamassassin → the other, {share:.0%} modern_dev among it"] = half[: len(half) // 2], mixed
    print("| fitted on → recent | new mail | alarm | unsure | alarm | wrong before | wrong on recent |")
    print("|---|---|---|---|---|---|---|")
    for name, (fitted, recent) in shifts.items():
        kind, doubt, cost = mail.shift(fitted, recent, rng)
        share = "{share:.0%} ({low:.0%} to {high:.0%})".format(**kind.figures)
        found = doubt.figures
        seen = f"{found['unsure'] / found['n']:.1%}, usual {found['expected_at_most']:.1%}"
        print(f"| {name} | {share} | {_alarm(kind)} | {seen} | {_alarm(doubt)} | {cost} |", flush=True)
    for name in ("spamassassin", "csdmc2010"):
        alarms = 0
        for _ in range(FITS):
            drawn = rng.permutation(mail.sets[name])
            alarms += bool(mail.shift(drawn[: len(drawn) // 2], drawn[len(drawn) // 2 :], rng)[1].due)
        print(f"\nunsure, halves of {name}: {alarms} alarms in {FITS} draws", flush=True)
    print(
        "\n| halves of | of each | alarms | mean share | greatest | greatest lower end |\n|---|---|---|---|---|---|"
    )
    for name in ("spamassassin", "modern_dev", "csdmc2010", "enron_dev"):
        for size in SIZES:
            if len(mail.sets[name]) >= 2 * size:
                print(f"| {name} | {mail.halves(name, size, rng)} |", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
