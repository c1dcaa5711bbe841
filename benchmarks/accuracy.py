"""The accuracy table: the whole head, each of its parts alone, the tutorial's recipe and peers, on one split.

    python benchmarks/accuracy.py CORPORA/spamassassin [--state DIR]

The folder holds `ham` and `spam`. The first 70 % of the files in sha256 order train, the rest test; every contestant
is fitted on the same training files and reports once on the test files. F1 is at probability 0.5. Intervals are 95 %
percentile intervals of 1,000 bootstrap resamples of the test messages. No penalty is chosen on the test part: the
penalties are the defaults, which were chosen by cross-validation on the training part (docs/lab-notes.md).
"""

from __future__ import annotations

import argparse
import hashlib
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score, roc_auc_score
from sklearn.model_selection import GridSearchCV

from spamguard.config import EncoderTable
from spamguard.encoder import TorchEncoder
from spamguard.encoder import load as load_encoder
from spamguard.featurestore import FeatureStore
from spamguard.head import Features, logits, probability, stack
from spamguard.message import parse
from training.corpus import tabulate
from training.fit import DEFAULT_PENALTIES, Penalties, fit
from training.report import fnr_at_fpr

TRAIN_SHARE = 0.7
RESAMPLES = 1000
SEED_RECIPE = EncoderTable(layers=(6,), pooling="cls", max_tokens=25)


def split(folder: Path) -> tuple[list[tuple[Path, int]], list[tuple[Path, int]]]:
    """(file, label) of the training part and of the test part, in sha256 order."""
    files = [(f, label) for label, name in enumerate(("ham", "spam")) for f in (folder / name).iterdir()]
    files.sort(key=lambda item: hashlib.sha256(item[0].read_bytes()).hexdigest())
    cut = int(len(files) * TRAIN_SHARE)
    return files[:cut], files[cut:]


class Part:
    """One side of the split, with its features under any encoder."""

    def __init__(self, files: list[tuple[Path, int]], state: Path) -> None:
        self.files, self.state = files, state
        self.labels = np.asarray([label for _, label in files])

    def raw(self) -> Iterator[bytes]:
        return (file.read_bytes() for file, _ in self.files)

    def features(self, encoder: TorchEncoder) -> Features:
        with FeatureStore(self.state, encoder.fingerprint) as store:
            table, _ = tabulate(sorted({file.parent for file, _ in self.files}), encoder, store)
            where = dict(zip(table["where"], table["content"], strict=True))
            rows = store.get(list(where.values()))
        return stack([rows[where[str(file)]] for file, _ in self.files])


def ours(train: Features, test: Features, labels: np.ndarray, columns: int, **options: Any) -> np.ndarray:
    head = fit(train, labels, columns=columns, **options).head
    return probability(logits(head, test))


def last_layer(features: Features, dim: int) -> Features:
    return Features(features.deep[:, -dim:], features.wide, features.structure)


def tfidf_words(train: Part, test: Part) -> np.ndarray:
    vectorizer = TfidfVectorizer(sublinear_tf=True, min_df=2)
    seen = vectorizer.fit_transform(parse(raw).text for raw in train.raw())
    # Its strength, too, is chosen by cross-validation on the training part.
    search = GridSearchCV(LogisticRegression(max_iter=1000), {"C": [1, 3, 10, 30, 100]}, scoring="roc_auc", cv=3)
    model = search.fit(seen, train.labels)
    return model.predict_proba(vectorizer.transform(parse(raw).text for raw in test.raw()))[:, 1]


def bogofilter(train: Part, test: Part) -> np.ndarray:
    """bogofilter from Debian, its own word lists; it reads the headers too."""
    with tempfile.TemporaryDirectory() as home:
        command = ["bogofilter", "-d", home]
        for option, label in (("-n", 0), ("-s", 1)):
            names = "\n".join(str(file) for file, given in train.files if given == label)
            subprocess.run([*command, option, "-b"], input=names.encode(), check=True)
        names = "\n".join(str(file) for file, _ in test.files)
        said = subprocess.run([*command, "-T", "-b"], input=names.encode(), capture_output=True).stdout.decode()
    return np.asarray([float(line.rsplit(maxsplit=1)[1]) for line in said.splitlines()])


def interval(measure: Callable[[np.ndarray, np.ndarray], float], p: np.ndarray, labels: np.ndarray) -> str:
    rng = np.random.default_rng(0)
    draws = [rng.integers(0, len(labels), len(labels)) for _ in range(RESAMPLES)]
    low, high = np.percentile([measure(p[chosen], labels[chosen]) for chosen in draws], [2.5, 97.5])
    return f"{measure(p, labels):.2f} [{low:.2f}, {high:.2f}]"


MEASURES: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "F1 %": lambda p, labels: 100 * f1_score(labels, p >= 0.5),
    "AUC %": lambda p, labels: 100 * roc_auc_score(labels, p),
    "FNR at FPR 0.5 %": lambda p, labels: 100 * fnr_at_fpr(p, labels, 0.005),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--state", type=Path, default=Path("benchmarks/cache"), help="where encoder output is kept")
    options = parser.parse_args()
    train, test = (Part(files, options.state) for files in split(options.folder))
    encoder = load_encoder(EncoderTable())
    columns = encoder.vocab_size
    a, b, y = train.features(encoder), test.features(encoder), train.labels
    seed = load_encoder(SEED_RECIPE)
    dim = seed.dim
    deep, wide, structure = DEFAULT_PENALTIES.deep, DEFAULT_PENALTIES.wide, DEFAULT_PENALTIES.structure
    contestants: dict[str, Callable[[], np.ndarray]] = {
        "tutorial's recipe: [CLS], 25 tokens, mlp": lambda: ours(
            train.features(seed), test.features(seed), y, columns, kind="mlp"
        ),
        "last-layer mean + linear": lambda: ours(
            last_layer(a, dim), last_layer(b, dim), y, columns, penalties=Penalties(deep, None, None)
        ),
        "deep only (layers 0, 3, 6)": lambda: ours(a, b, y, columns, penalties=Penalties(deep, None, None)),
        "deep, mlp": lambda: ours(a, b, y, columns, kind="mlp"),
        "wide only": lambda: ours(a, b, y, columns, penalties=Penalties(None, wide, None)),
        "structure only": lambda: ours(a, b, y, columns, penalties=Penalties(None, None, structure)),
        "the whole head": lambda: ours(a, b, y, columns),
        "peer: tf-idf words + logistic regression": lambda: tfidf_words(train, test),
    }
    if shutil.which("bogofilter"):
        contestants["peer: bogofilter (reads headers)"] = lambda: bogofilter(train, test)
    ham, spam = int((test.labels == 0).sum()), int((test.labels == 1).sum())
    title = f"{options.folder.name}: {len(train.labels)} train, {len(test.labels)} test ({ham} ham, {spam} spam)"
    table = Table("contestant", *MEASURES, title=title)
    for name, run in contestants.items():
        with Console(stderr=True).status(name):
            p = run()
        table.add_row(name, *(interval(measure, p, test.labels) for measure in MEASURES.values()))
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
