"""Made-up retrains for the tests of their report."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from spamguard.verdict import Cutoffs
from training.page import Before, Gate, Point, Run

CUTOFFS = Cutoffs(0.4, 0.9)
HOSTILE = "/mail/<script>alert(1)</script>&\"'\x1b[31m\n\udcff.eml"


def labels_of(n: int, spam: float = 0.4) -> np.ndarray[Any, np.dtype[np.int64]]:
    return (np.arange(n) < round(n * spam)).astype(np.int64)


def made(n: int = 400, *, spam: float = 0.4, where: str = "/mail/{}.eml", seed: int = 0, **changed: Any) -> Run:
    """A run of n messages on which the head does well, but not too well; `changed` replaces its fields."""
    rng = np.random.default_rng(seed)
    labels = labels_of(n, spam)
    rng.shuffle(labels)
    probabilities = 1 / (1 + np.exp(-rng.normal(6 * labels - 3, 2.2)))
    table = pd.DataFrame(
        {
            "content": [f"{i:064x}" for i in range(n)],
            "label": labels,
            "source": np.where(np.arange(n) % 3 == 0, "moved", "folder"),
            # Names of files need not be UTF-8, and pandas's own kind of text must be.
            "where": pd.Series([where.format(i) for i in range(n)], dtype=object),
        }
    )
    fields: dict[str, Any] = {
        "head": "0123456789ab",
        "table": table,
        "probabilities": probabilities,
        "cutoffs": CUTOFFS,
        "provenance": {"created": "2026-11-23T05:12:09+00:00", "spamguard": "0.1.0", "paths": ["/mail"]},
        "seconds": {"reading": 1.5, "fitting": 0.25},
        "complaints": ["/mail/both.eml: labelled both ham and spam, left out"],
        "before": Before("fedcba987654", rng.permutation(probabilities), Cutoffs(0.5, 0.95)),
        "gate": Gate("won", "It finds more spam.", ("set", "before", "now"), [("yours", 3, "2 of 9")]),
        "lengths": rng.integers(0, 1025, n),
        "max_tokens": 256,
        "curve": [Point(30, 0.8, 0.7, 0.9), Point(100, 0.9, 0.85, 0.95)],
    }
    return Run(**(fields | changed))
