"""`spamguard retrain`: labels and labelled mail -> features (cached) -> a fitted head -> in service."""

from __future__ import annotations

import fcntl
import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd

from spamguard import __version__, bundle
from spamguard.config import Config
from spamguard.encoder import Encoder
from spamguard.errors import BundleError, BusyError, CorpusError
from spamguard.featurestore import FeatureStore
from spamguard.head import AdditiveHead, Features
from spamguard.labels import FOUND, SENT, USERS, Labels
from spamguard.verdict import Label

from .corpus import Reading, tabulate
from .cutoffs import SPAM_BOUNDS, Rates, hits
from .fit import DEFAULT_PENALTIES, fit
from .labelled import encode_waiting, merge, with_features
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
    paths: Sequence[Path],
    config: Config,
    encoder: Encoder,
    progress: Progress | None = None,
    reading: Reading | None = None,
) -> tuple[pd.DataFrame, Features, list[str]]:
    """The table of labelled mail below the paths, of nothing else, and its features, row by row.

    `reading` defaults to what the configuration says. Raises CorpusError, OwnMovesError or FeatureStoreError.
    """
    reading = reading or Reading.configured(config)
    with FeatureStore(config.features_dir, encoder.fingerprint) as store:
        table, complaints = tabulate(paths, encoder, store, _told(progress), reading=reading)
        return with_features(table, store, complaints)


def retrain(
    paths: Sequence[Path],
    config: Config,
    encoder: Encoder,
    *,
    kind: Literal["additive", "mlp"] = "additive",
    fresh: bool = False,
    seed: int = 0,
    progress: Progress | None = None,
    reading: Reading | None = None,
) -> Retrained:
    """Fit a head on all labels and put it in service; the shipped head is its starting point unless `fresh`.

    With paths, what is found there takes the place of what the last retrain with paths found; a user's word stays,
    and beats the folder's. Raises CorpusError (nothing to learn from), BusyError (another retrain runs), BundleError
    (cannot be written), LabelsError, FeatureStoreError, ScoringError; then labels and head in service are as before.
    """
    started = time.perf_counter()
    with _alone(config.state_dir), Labels(config.labels_file) as labels:
        with FeatureStore(config.features_dir, encoder.fingerprint) as store:
            encode_waiting(labels, encoder, store)
            found, complaints = None, list[str]()
            if paths:
                settled = {row.content for row in labels.rows() if row.source in USERS}
                reading = reading or Reading.configured(config)
                found, complaints = tabulate(paths, encoder, store, _told(progress), settled, reading)
            given, changes = labels.snapshot()
            table, features, complaints = with_features(merge(given, found), store, complaints)
        gathered = time.perf_counter()
        y = labels_of(table)
        shipped = None if fresh or kind == "mlp" else shipped_bundle(encoder)
        prior = shipped.head if shipped is not None and isinstance(shipped.head, AdditiveHead) else None
        penalties = DEFAULT_PENALTIES if config.learning.headers else replace(DEFAULT_PENALTIES, headers=None)
        rates = Rates(config.learning.spam_rate, config.learning.unsure_rate)
        told = None if progress is None else lambda done, total: progress("fitting", done, total)
        fitted = fit(
            features,
            y,
            columns=encoder.vocab_size,
            kind=kind,
            penalties=penalties,
            prior=prior,
            rates=rates,
            careful=shipped.cutoffs.spam if shipped is not None else SPAM_BOUNDS[0],
            seed=seed,
            progress=told,
        )
        hit = hits(fitted.out_of_fold[y == 0], fitted.cutoffs, rates)
        new = bundle.make(fitted.head, fitted.cutoffs, encoder, provenance(table, prior, paths), hit)
        folder = bundle.save(new, config.heads_dir / new.id)
        # The labels first, and that they have been learnt last: who is killed between is only fitted once more.
        if found is not None:
            changes += labels.replace_folder(_found_labels(found), _sent(found))
        bundle.put_in_service(folder)
        labels.fitted(changes)
    return Retrained(
        bundle=new,
        folder=folder,
        figures=figures(fitted.out_of_fold, y, fitted.cutoffs),
        ham=int((y == 0).sum()),
        spam=int((y == 1).sum()),
        complaints=tuple(complaints),
        seconds={"reading": gathered - started, "fitting": time.perf_counter() - gathered},
    )


@contextmanager
def _alone(state_dir: Path) -> Iterator[None]:
    """One retrain at a time, a person's or the daemon's; the lock goes with the process. Raises BusyError."""
    file = state_dir / "retrain.lock"
    with ExitStack() as held:
        try:
            state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
            lock = held.enter_context(file.open("ab"))
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise BusyError(f"{file}: another retrain is running") from error
        except OSError as error:
            raise CorpusError(f"{error.filename or file}: {error.strerror}") from error
        yield


def _told(progress: Progress | None) -> Callable[[int, int], None] | None:
    return None if progress is None else lambda done, total: progress("reading", done, total)


def _found_labels(found: pd.DataFrame) -> dict[str, tuple[Label, str]]:
    rows = zip(found["content"], found["label"], found["where"], strict=True)
    return {content: (Label.SPAM if label else Label.HAM, where) for content, label, where in rows}


def _sent(found: pd.DataFrame) -> set[str]:
    return set(found["content"][found["weight"] == FOUND[SENT]])


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
        "sources": {
            source: {"ham": int((rows == 0).sum()), "spam": int((rows == 1).sum())}
            for source, rows in table.groupby("source")["label"]
        },
        "data_sha256": hashlib.sha256(repr(pairs).encode()).hexdigest(),
        "starts_from_shipped_head": prior is not None,
    }
