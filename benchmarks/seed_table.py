"""The table of the tutorial that the project began with: `python -m benchmarks.seed_table spamdata_v2.csv`.

A CSV of label,text is split 70/15/15, stratified, as the tutorial splits it, with its seed and others; and again
without the texts that stand there twice, since those are on both sides of a random split. What each says is spam from
probability 0.5 on, as in the tutorial. The results are written after each contestant, to be read while it runs.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from sklearn.metrics import accuracy_score, precision_recall_fscore_support
from sklearn.model_selection import train_test_split

from spamguard.config import EncoderTable
from spamguard.encoder import load as load_encoder
from spamguard.errors import SpamguardError
from spamguard.head import logits
from spamguard.wide import WIDE_TOKENS
from training.corpus import find
from training.finetune import Examples, Settings, finetune, strategy
from training.fit import balanced, fit

from .judgement import RESULTS
from .mail import Indices, Mail, Reader
from .ours import Personal
from .peers import SeedRecipe
from .tables import table

SEED, SEEDS = 2018, 5  # the tutorial's, and how many from there on
TUNED = ("last-2", "all")
TOKENS = 64  # what fine-tuning reads of a message; 95 % of the tutorial's have at most 56
FIGURES = ("precision", "recall", "f1", "accuracy")
Array = npt.NDArray[np.float64]
Judged = Callable[[Mail, Mail, Mail, int], tuple[Array, float]]  # train, validation, test, seed -> scores, cut-off


def parts(labels: npt.NDArray[np.int64], seed: int) -> tuple[Indices, Indices, Indices]:
    """70/15/15 in the tutorial's two steps."""
    train, rest = train_test_split(np.arange(len(labels)), random_state=seed, test_size=0.3, stratify=labels)
    validation, test = train_test_split(rest, random_state=seed, test_size=0.5, stratify=labels[rest])
    return train, validation, test


def contestants(reader: Reader) -> dict[str, Judged]:
    """Those that need no long training, by name."""
    columns = reader.encoder.vocab_size

    def recipe(train: Mail, _: Mail, test: Mail, seed: int) -> tuple[Array, float]:
        return SeedRecipe(weigh=True, seed=seed).learn(train).score(test), 0.0

    def mlp(train: Mail, _: Mail, test: Mail, seed: int) -> tuple[Array, float]:
        fitted = fit(train.features, train.labels, columns=columns, kind="mlp", seed=seed)
        return logits(fitted.head, test.features).astype(np.float64), 0.0

    def ours(train: Mail, _: Mail, test: Mail, seed: int) -> tuple[Array, float]:
        return Personal(columns).learn(train).score(test), 0.0

    def careful(train: Mail, _: Mail, test: Mail, seed: int) -> tuple[Array, float]:
        judge = Personal(columns).learn(train)
        return judge.score(test), judge.spam

    return {
        "the tutorial's recipe": recipe,
        "frozen, our default head": ours,
        "the same at its own cut-off for spam": careful,
        "frozen, mlp on our pooled layers": mlp,
    }


def tuned(tune: str, model: str, epochs: int) -> Judged:
    """The encoder trained too, by `training/finetune.py`; what its own network says."""
    encoder = load_encoder(EncoderTable(model=model, max_tokens=TOKENS))

    def judged(train: Mail, validation: Mail, test: Mail, seed: int) -> tuple[Array, float]:
        def seen(mail: Mail) -> Examples:
            rows = encoder.rows(encoder.tokenize(mail.texts, WIDE_TOKENS))
            return Examples(rows, mail.labels, balanced(mail.labels))

        settings = Settings(strategy(tune), epochs=epochs, seed=seed)
        done = finetune(encoder, seen(train), seen(validation), settings, told=_told)
        return done.network.judge(seen(test).rows, settings.tokens_a_pass), 0.0

    return judged


def _told(done: int, steps: int) -> None:
    if done % 20 == 0:
        print(f"    step {done} of at most {steps}", file=sys.stderr, flush=True)


def measured(scores: Array, labels: npt.NDArray[np.int64], cutoff: float) -> dict[str, float]:
    """Precision, recall and F1 of spam, and accuracy, of those from the cut-off on."""
    said = (scores >= cutoff).astype(np.int64)
    precision, recall, f1, _ = precision_recall_fscore_support(labels, said, average="binary", zero_division=0)
    values = (precision, recall, f1, accuracy_score(labels, said))
    return dict(zip(FIGURES, map(float, values), strict=True))


def read(reader: Reader, file: Path) -> dict[str, Mail]:
    """The file as it is, and without the texts that were there before."""
    items = list(find([file]))
    found = pd.DataFrame([(item.label, item.where) for item in items], columns=["label", "where"])
    mail = reader.see(found, [item.read() for item in items], fit=True)
    first = np.flatnonzero(~mail.table["content"].duplicated())
    return {f"{file.name} as it is": mail, f"{file.name} without repeated texts": mail.take(first)}


def run(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The results so far, after each contestant."""
    reader = Reader(options.state, lambda what, done, n: None, options.encoder)
    files = read(reader, options.csv)
    results: dict[str, Any] = {
        "about": {
            "made": datetime.now(UTC).isoformat(timespec="seconds"),
            "command": " ".join(sys.argv[1:]),
            "encoder": reader.encoder.fingerprint,
            "epochs": options.epochs,
        },
        "files": {name: {"mail": np.bincount(mail.labels).tolist(), "rows": {}} for name, mail in files.items()},
    }
    quick = [(name, judged, options.seeds) for name, judged in contestants(reader).items()]
    slow = [
        (f"{tune} layers trained" if tune == "all" else f"{tune} layers trained too", tune) for tune in options.tuned
    ]
    for name, mail in files.items():
        for who, judged, seeds in quick:
            _hold(results["files"][name], mail, who, judged, seeds)
            yield results
    for name, mail in files.items():
        for who, tune in slow:
            judged = tuned(tune, options.encoder, options.epochs)
            _hold(results["files"][name], mail, who, judged, options.tuned_seeds)
            yield results


def _hold(found: dict[str, Any], mail: Mail, who: str, judged: Judged, seeds: int) -> None:
    for seed in range(SEED, SEED + seeds):
        train, validation, test = (mail.take(part) for part in parts(mail.labels, seed))
        started = time.monotonic()
        scores, cutoff = judged(train, validation, test, seed)
        figures = {"seed": seed, **measured(scores, test.labels, cutoff), "seconds": time.monotonic() - started}
        print(f"  {who}, seed {seed}: F1 {figures['f1']:.4f}", file=sys.stderr, flush=True)
        found["rows"].setdefault(who, []).append(figures)


def markdown(results: dict[str, Any]) -> str:
    """The table of each file: means over the seeds, and the F1 of each seed."""
    about = results["about"]
    lines = ["# The tutorial's table", "", f"{about['made']}, `{about['command']}`, encoder {about['encoder']}.", ""]
    for name, found in results["files"].items():
        ham, spam = found["mail"]
        lines += [f"**{name}**: {ham} ham, {spam} spam. Of spam, in %, mean over n seeds.", ""]
        rows = {}
        for who, each in found["rows"].items():
            means = [f"{100 * float(np.mean([one[key] for one in each])):.2f}" for key in FIGURES]
            singly = " ".join(f"{100 * one['f1']:.2f}" for one in each)
            seconds = f"{float(np.mean([one['seconds'] for one in each])):.0f}"
            rows[who] = [str(len(each)), *means, singly, seconds]
        headings = ["", "n", "precision", "recall", "F1", "accuracy", f"F1 of each, from seed {SEED} on", "s"]
        lines += [*table(headings, rows), ""]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("csv", type=Path, help="file of label,text")
    parser.add_argument("--encoder", default="embedded", help="any folder of a BERT-family checkpoint")
    parser.add_argument("--seeds", type=int, default=SEEDS, help="seeds of what learns quickly")
    parser.add_argument("--tuned", nargs="*", default=TUNED, help="what is fine-tuned: last-N, all, or nothing")
    parser.add_argument("--tuned-seeds", type=int, default=1, help="seeds of these")
    parser.add_argument("--epochs", type=int, default=2, help="epochs of these at most")
    parser.add_argument("--state", type=Path, default=Path("benchmarks/cache"), help="where encoder output is kept")
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    options.results.mkdir(parents=True, exist_ok=True)
    text = ""
    try:
        for results in run(options):
            text = markdown(results)
            (options.results / "seed_table.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
            (options.results / "seed_table.md").write_text(text, encoding="utf-8")
    except SpamguardError as error:
        sys.exit(f"seed_table: {error}")
    print(text)


if __name__ == "__main__":
    main()
