"""A problem for the fit: features and labels of which is known what tells them apart."""

from __future__ import annotations

from typing import Any

import numpy as np

from spamguard.head import AdditiveHead, Features
from spamguard.wide import Counts
from training.fit import Penalties, fit

DIM, COLUMNS, STRUCTURE = 8, 60, 5
ALL = ("deep", "wide", "structure")
EVEN = Penalties(1.0, 0.1, 1.0, None)  # the tests do not depend on what the benchmarks chose as default


def problem(n: int = 200, *, seed: int = 0, strength: float = 4.0, parts: tuple[str, ...] = ALL) -> tuple[Any, Any]:
    """Features and labels; in each of `parts` the first columns tell spam, the other columns are noise."""
    rng = np.random.default_rng(seed)
    labels = (np.arange(n) % 2).astype(np.int64)
    rng.shuffle(labels)
    deep = rng.normal(size=(n, DIM)).astype(np.float32)
    structure = rng.random((n, STRUCTURE)).astype(np.float32)
    if "deep" in parts:
        deep[:, 0] += strength * labels
    if "structure" in parts:
        structure[:, 0] += strength * labels
    rows = []
    for label in labels:
        columns = set(rng.choice(np.arange(10, COLUMNS), 5, replace=False).tolist())
        if "wide" in parts:
            columns |= set(rng.choice(np.arange(5 * label, 5 * label + 5), 2, replace=False).tolist())
        chosen = np.asarray(sorted(columns), np.uint32)
        rows.append(Counts(chosen, rng.integers(1, 4, len(chosen)).astype(np.uint16)))
    return Features(deep, rows, structure), labels


def additive(features: Features, labels: Any, **options: Any) -> AdditiveHead:
    head = fit(features, labels, columns=COLUMNS, **options).head
    assert isinstance(head, AdditiveHead)
    return head
