"""`spamguard retrain`: labels and labelled mail -> features (cached) -> a fitted head -> the gate -> in service."""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd

from spamguard import __version__, bundle, heads_dir
from spamguard.alone import alone
from spamguard.config import Config
from spamguard.encoder import Encoder
from spamguard.errors import BundleError
from spamguard.featurestore import FeatureStore
from spamguard.head import AdditiveHead, Features
from spamguard.labels import FOUND, SENT, USERS, Labels
from spamguard.verdict import Label

from . import gate
from .campaigns import campaigns, training_weights
from .corpus import Reading, tabulate, text
from .cutoffs import SPAM_BOUNDS, Rates, hits
from .fit import DEFAULT_PENALTIES, Fitted, Penalties, fit, take
from .labelled import encode_waiting, merge, with_features
from .report import Figures, figures
from .trial import Mail, Trial, incumbent, reference

Progress = Callable[[str, int, int], None]  # stage, done, in all
Kind = Literal["additive", "mlp"]

# One campaign that makes up more of a class is worth a word.
_MUCH = 0.5


@dataclass(frozen=True, slots=True)
class Retrained:
    """A new head, where it lies, what the gate said of it, and its figures on mail held out in turn (out of fold).

    `ham` and `spam` messages were fitted on, `locked` ones kept for the gate; `alike` says which of them are of one
    campaign. `before` names the head in service
    until then; unless `word.passed` it still is.
    """

    bundle: bundle.Bundle
    folder: Path
    before: str
    trial: Trial
    word: gate.Word
    figures: Figures
    ham: int
    spam: int
    locked: int
    alike: tuple[str, ...]
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
    kind: Kind = "additive",
    fresh: bool = False,
    seed: int = 0,
    progress: Progress | None = None,
    reading: Reading | None = None,
) -> Retrained:
    """Fit a head on all labels, and put it in service if the gate lets it; the shipped head is its starting point
    unless `fresh`.

    With paths, what is found there takes the place of what the last retrain with paths found; a user's word stays,
    and beats the folder's. If the gate refuses, the new head is kept as a candidate, and labels and head in service
    are as before. So they are if this raises CorpusError (nothing to learn from), BusyError (another retrain runs),
    BundleError (cannot be written), LabelsError, FeatureStoreError or ScoringError.
    """
    started = time.perf_counter()
    with alone(config.state_dir), Labels(config.labels_file) as labels:
        heads_dir.sweep(config.heads_dir)
        with FeatureStore(config.features_dir, encoder.fingerprint) as store:
            encode_waiting(labels, encoder, store)
            found, complaints = None, list[str]()
            if paths:
                settled = {row.content for row in labels.rows() if row.source in USERS}
                reading = reading or Reading.configured(config)
                found, complaints = tabulate(paths, encoder, store, _told(progress), settled, reading)
            given, changes = labels.snapshot()
            table, features, complaints = with_features(merge(given, found), store, complaints)
            known = reference(encoder, store)
        gathered = time.perf_counter()
        groups = campaigns(features.wide, encoder.vocab_size)
        mail = Mail(table, features, groups, gate.locked(list(table["content"]), groups, labels_of(table)))
        fitted, prior = _fit(mail, config, encoder, kind, fresh, seed, progress)
        old = incumbent(config, encoder)
        trial = Trial(mail, fitted, old, known, config)
        same = old is not None and bundle.make(fitted.head, fitted.cutoffs, encoder, {}).id == old.bundle.id
        word = gate.SAME if same else trial.word()
        learnt, y = mail.fitted, mail.labels[mail.fitted]
        found_figures = figures(fitted.out_of_fold, y, fitted.cutoffs)
        hit = hits(fitted.out_of_fold[y == 0], fitted.cutoffs, _rates(config))
        about = provenance(table.iloc[learnt], prior, paths) | {
            "locked": len(table) - len(learnt),
            "gate": word.sentence,
            "figures": asdict(found_figures),
        }
        new = bundle.make(fitted.head, fitted.cutoffs, encoder, about, hit)
        folder = bundle.save(new, config.heads_dir / new.id, fitted_on=table["content"].iloc[learnt])
        if word.passed:
            # The labels first, and that they have been learnt last: who is killed between is only fitted once more.
            if found is not None:
                changes += labels.replace_folder(_found_labels(found), _sent(found))
            heads_dir.promote(config.heads_dir, new.id, "retrain", word.sentence)
            labels.fitted(changes)
        else:
            heads_dir.refuse(config.heads_dir, new.id, word.sentence)
    return Retrained(
        bundle=new,
        folder=folder,
        before=old.name if old else "",
        trial=trial,
        word=word,
        figures=found_figures,
        ham=int((y == 0).sum()),
        spam=int((y == 1).sum()),
        locked=len(table) - len(learnt),
        alike=tuple(_much_alike(mail)),
        complaints=tuple(complaints),
        seconds={"reading": gathered - started, "fitting": time.perf_counter() - gathered},
    )


def _fit(
    mail: Mail, config: Config, encoder: Encoder, kind: Kind, fresh: bool, seed: int, progress: Progress | None
) -> tuple[Fitted, AdditiveHead | None]:
    """A head of all mail that is not locked away, and the head that it started from."""
    shipped = None if fresh or kind == "mlp" else shipped_bundle(encoder)
    prior = shipped.head if shipped is not None and isinstance(shipped.head, AdditiveHead) else None
    learnt = mail.fitted
    fitted = fit(
        take(mail.features, learnt),
        mail.labels[learnt],
        columns=encoder.vocab_size,
        kind=kind,
        weights=training_weights(mail.table.iloc[learnt], [mail.campaigns[i] for i in learnt]),
        groups=mail.groups,
        penalties=penalties(config),
        prior=prior,
        rates=_rates(config),
        careful=shipped.cutoffs.spam if shipped is not None else SPAM_BOUNDS[0],
        seed=seed,
        progress=None if progress is None else lambda done, total: progress("fitting", done, total),
    )
    return fitted, prior


def _much_alike(mail: Mail) -> list[str]:
    """Of which class one campaign makes up most: it is fitted with the weight of a few messages."""
    found = []
    for label, name in enumerate(("ham", "spam")):
        groups = Counter(np.asarray(mail.campaigns)[mail.labels == label].tolist())
        count = max(groups.values(), default=0)
        if len(groups) > 1 and count > max(1, _MUCH * groups.total()):
            found.append(
                f"{count} of {groups.total()} {name} are nearly the same message: together they weigh as much as "
                f"{np.sqrt(count):.0f} others"
            )
    return found


def _told(progress: Progress | None) -> Callable[[int, int], None] | None:
    return None if progress is None else lambda done, total: progress("reading", done, total)


def penalties(config: Config) -> Penalties:
    """Of a head fitted on a user's own mail."""
    return DEFAULT_PENALTIES if config.learning.headers else replace(DEFAULT_PENALTIES, headers=None)


def _rates(config: Config) -> Rates:
    return Rates(config.learning.spam_rate, config.learning.unsure_rate)


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
        "paths": [text(str(path)) for path in paths],
        "ham": int((table["label"] == 0).sum()),
        "spam": int((table["label"] == 1).sum()),
        "sources": {
            source: {"ham": int((rows == 0).sum()), "spam": int((rows == 1).sum())}
            for source, rows in table.groupby("source")["label"]
        },
        "data_sha256": hashlib.sha256(repr(pairs).encode()).hexdigest(),
        "starts_from_shipped_head": prior is not None,
    }
