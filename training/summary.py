"""All numbers of a retrain's report, as one object for JSON; the page and its pictures are made of nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from spamguard.verdict import Cutoffs

from .report import figures

FORMAT = 1


@dataclass(frozen=True, slots=True)
class Gate:
    """How the candidate did: `result` (`won`, `tied`, `lost`, `refused`), a sentence, and a table that shows why."""

    result: str
    says: str
    columns: Sequence[str] = ()
    rows: Sequence[Sequence[str | int | float]] = ()


@dataclass(frozen=True, slots=True)
class Before:
    """The head that was in service, and its probabilities (n,) of the same messages."""

    head: str
    probabilities: npt.NDArray[np.floating]
    cutoffs: Cutoffs


@dataclass(frozen=True, slots=True)
class CurvePoint:
    """F1 of spam, out of fold, when so many messages were learnt from: mean, least and greatest over the folds."""

    messages: int
    f1: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Run:
    """What a report is made of. `table` is the training table of n messages, in the order of the arrays (n,).

    `probabilities` are those of the new head, out of fold; `lengths` are tokens of the text, as far as counted, of
    which the encoder reads `max_tokens`; `seconds` by stage. Whatever is None is left out of the report.
    """

    head: str
    table: pd.DataFrame
    probabilities: npt.NDArray[np.floating]
    cutoffs: Cutoffs
    provenance: Mapping[str, Any]
    seconds: Mapping[str, float]
    complaints: Sequence[str] = ()
    before: Before | None = None
    gate: Gate | None = None
    lengths: npt.NDArray[np.integer] | None = None
    max_tokens: int | None = None
    curve: Sequence[CurvePoint] | None = None


def summary(run: Run, *, private: bool) -> dict[str, Any]:
    """The numbers under stable keys (docs/report.md); `private` leaves out the names of files and folders."""
    labels = run.table["label"].to_numpy(dtype=np.int64)
    return {
        "format": FORMAT,
        "private": private,
        "head": run.head,
        "cutoffs": asdict(run.cutoffs),
        "gate": None if run.gate is None else asdict(run.gate),
        "figures": asdict(figures(run.probabilities, labels, run.cutoffs)),
        "seconds": dict(run.seconds),
        "complaints": len(run.complaints) if private else list(run.complaints),
    }
