"""The training set: every label, a user's before the folder's, with the features of its message."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import pandas as pd

from spamguard.encoder import Encoder
from spamguard.errors import CorpusError
from spamguard.featurestore import FeatureStore
from spamguard.head import Features, stack
from spamguard.labels import FOLDER, FOUND, SENT, USERS, Given, Labels
from spamguard.verdict import Label

from .corpus import MESSAGES_A_STEP, encode


def encode_waiting(labels: Labels, encoder: Encoder, store: FeatureStore) -> None:
    """Encode the mail that waits for it, and keep it no longer. Raises ScoringError."""
    waiting = labels.waiting()
    for start in range(0, len(waiting), MESSAGES_A_STEP):
        step = waiting[start : start + MESSAGES_A_STEP]
        encode(step, labels.raw, encoder, store)
        if forgotten := labels.encoded(step):
            store.remove(forgotten)


def merge(given: Iterable[Given], found: pd.DataFrame | None) -> pd.DataFrame:
    """The training table: one row a label, in the order of content, as the set of labels alone counts.

    Columns: content, label (1 is spam), source (who said so), where, weight, and time (of arrival, seconds since
    1970; NaN where the mail has not just been read). `found` is what a retrain found in folders, and takes the place
    of what an earlier one did; None leaves that.
    """
    rows = {
        row.content: (int(row.label is Label.SPAM), row.source, row.where, row.weight, math.nan)
        for row in given
        if found is None or row.source in USERS
    }
    if found is not None:
        columns = (found[name] for name in ("content", "label", "where", "weight", "time"))
        for content, label, where, weight, time in zip(*columns, strict=True):
            source = FOLDER if weight == FOUND[FOLDER] else SENT
            rows.setdefault(content, (int(label), source, where, weight, time))
    names = ["content", "label", "source", "where", "weight", "time"]
    return pd.DataFrame([(content, *rows[content]) for content in sorted(rows)], columns=names)


def with_features(
    table: pd.DataFrame, store: FeatureStore, complaints: Sequence[str]
) -> tuple[pd.DataFrame, Features, list[str]]:
    """The rows that have features, these features, and the complaints with one about the others.

    Raises CorpusError if nothing is left.
    """
    rows = store.get(table["content"].tolist())
    known = table["content"].isin(rows.keys())
    complaints = list(complaints)
    if lacking := int((~known).sum()):
        complaints.append(
            f"{lacking} labels name mail that is gone and that this encoder, in this version, never read: left out"
        )
    table = table[known].reset_index(drop=True)
    if table.empty:
        more = f" (and {len(complaints) - 1} more)" if len(complaints) > 1 else ""
        why = f"no labelled message is left: {complaints[0]}{more}" if complaints else "there are no labels yet"
        raise CorpusError(why)
    return table, stack([rows[content] for content in table["content"]]), complaints
