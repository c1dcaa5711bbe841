"""`spamguard retrain`: labelled mail -> features (cached) -> a fitted head -> in service."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd

from spamguard import __version__, bundle
from spamguard.config import Config
from spamguard.encoder import Encoder
from spamguard.errors import BundleError, CorpusError
from spamguard.featurestore import FeatureStore, stack
from spamguard.head import AdditiveHead, Features

from .corpus import tabulate
from .fit import SPAM_BOUNDS, fit
from .report import Figures, figures

Progress = Callable[[str, int, int], None]  # stage, done, in all


@dataclass(frozen=True, slots=True)
class Retrained:
    """A new head, where it lies, and its figures on mail held out in turn (out of fold)."""

    bundle: bundle.Bundle
    folder: Path
    figures: Figures
    ham: int
    spam: int
    complaints: tuple[str, ...]
    seconds: dict[str, float]


def gather(
    paths: Sequence[Path], config: Config, encoder: Encoder, progress: Progress | None = None
) -> tuple[pd.DataFrame, Features, list[str]]:
    """The table of labelled mail and its features, row by row. Raises CorpusError or FeatureStoreError."""
    with FeatureStore(config.features_dir, encoder.fingerprint) as store:
        told = None if progress is None else lambda done, total: progress("reading", done, total)
        table, complaints = tabulate(paths, encoder, store, told)
        if table.empty:
            raise CorpusError(f"no labelled message is left: {complaints[0]} (and {len(complaints) - 1} more)")
        rows = store.get(table["content"].tolist())
    return table, stack([rows[content] for content in table["content"]]), complaints


def retrain(
    paths: Sequence[Path],
    config: Config,
    encoder: Encoder,
    *,
    kind: Literal["additive", "mlp"] = "additive",
    fresh: bool = False,
    seed: int = 0,
    progress: Progress | None = None,
) -> Retrained:
    """Fit a head on the labelled mail and put it in service; the shipped head is its starting point unless `fresh`.

    Raises CorpusError (nothing to learn from), BundleError (cannot be written), ScoringError.
    """
    started = time.perf_counter()
    table, features, complaints = gather(paths, config, encoder, progress)
    gathered = time.perf_counter()
    labels = labels_of(table)
    shipped = None if fresh or kind == "mlp" else shipped_bundle(encoder)
    prior = shipped.head if shipped is not None and isinstance(shipped.head, AdditiveHead) else None
    told = None if progress is None else lambda done, total: progress("fitting", done, total)
    fitted = fit(
        features,
        labels,
        columns=encoder.vocab_size,
        kind=kind,
        prior=prior,
        careful=shipped.cutoffs.spam if shipped is not None else SPAM_BOUNDS[0],
        seed=seed,
        progress=told,
    )
    new = bundle.make(fitted.head, fitted.cutoffs, encoder, provenance(table, prior, paths))
    folder = bundle.save(new, config.heads_dir / new.id)
    bundle.put_in_service(folder)
    return Retrained(
        bundle=new,
        folder=folder,
        figures=figures(fitted.out_of_fold, labels, fitted.cutoffs),
        ham=int((labels == 0).sum()),
        spam=int((labels == 1).sum()),
        complaints=tuple(complaints),
        seconds={"reading": gathered - started, "fitting": time.perf_counter() - gathered},
    )


def labels_of(table: pd.DataFrame) -> npt.NDArray[np.int64]:
    return table["label"].to_numpy(dtype=np.int64)


def shipped_bundle(encoder: Encoder) -> bundle.Bundle | None:
    """The shipped head, if it was fitted for this encoder."""
    try:
        return bundle.load(bundle.SHIPPED, encoder)
    except BundleError:
        return None


def provenance(table: pd.DataFrame, prior: AdditiveHead | None, paths: Sequence[Path]) -> dict[str, Any]:
    """What a head was made of: counts, a hash over the labelled contents, and the code's version."""
    pairs = sorted(zip(table["content"], table["label"], strict=True))
    return {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "spamguard": __version__,
        "paths": [str(path) for path in paths],
        "ham": int((table["label"] == 0).sum()),
        "spam": int((table["label"] == 1).sum()),
        "data_sha256": hashlib.sha256(repr(pairs).encode()).hexdigest(),
        "starts_from_shipped_head": prior is not None,
    }
