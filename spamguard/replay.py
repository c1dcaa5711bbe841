"""What two heads say of the same mail: the stored features of recent and labelled mail, judged once more by each."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from . import bundle
from .config import Config
from .encoder import Encoder, FloatArray
from .featurestore import FeatureStore
from .head import Row, logits, probability, stack
from .labels import Labels
from .recent import Recent
from .scorer import effective
from .verdict import Cutoffs, Label

_AT_ONCE = 1024


@dataclass(frozen=True, slots=True)
class Change:
    """A message that is called otherwise: by the one head and the other, label and probability; where it lay.

    `given` is its label, "" if it has none.
    """

    content: str
    about: str
    given: str
    before: tuple[Label, float]
    after: tuple[Label, float]


def replay(config: Config, encoder: Encoder, one: Path, other: Path, days: float) -> tuple[list[Change], int]:
    """The messages that the two heads call otherwise, the greatest change first, and how many were looked at.

    These are the mail of the last days and all labelled mail, each message once. Raises BundleError,
    FeatureStoreError or LabelsError.
    """
    heads = [bundle.load(folder, encoder) for folder in (one, other)]
    cutoffs = [effective(config.head, head.cutoffs) for head in heads]
    rows, about, given = _stored(config, encoder.fingerprint, days)
    contents, found = list(rows), []
    for start in range(0, len(contents), _AT_ONCE):
        part = contents[start : start + _AT_ONCE]
        features = stack([rows[content] for content in part])
        before, after = (
            _said(probability(logits(head.head, features)), own) for head, own in zip(heads, cutoffs, strict=True)
        )
        for content, was, now in zip(part, before, after, strict=True):
            if was[0] is not now[0]:
                found.append(Change(content, about.get(content, ""), given.get(content, ""), was, now))
    found.sort(key=lambda change: -abs(change.after[1] - change.before[1]))
    return found, len(contents)


def _said(probabilities: FloatArray, cutoffs: Cutoffs) -> Sequence[tuple[Label, float]]:
    return [(cutoffs.label(float(p)), float(p)) for p in probabilities]


def _stored(config: Config, fingerprint: str, days: float) -> tuple[dict[str, Row], dict[str, str], dict[str, str]]:
    """What the encoder made of each message, where it lay, and its label if it has one; by content hash."""
    rows: dict[str, Row] = {}
    about: dict[str, str] = {}
    given: dict[str, str] = {}
    if os.access(config.labels_file, os.F_OK):
        with Labels(config.labels_file, read_only=True) as labels:
            for label in labels.rows():
                given[label.content], about[label.content] = label.label.value, label.where
    if os.access(config.features_dir / f"{fingerprint}.sqlite3", os.F_OK):
        with FeatureStore(config.features_dir, fingerprint, read_only=True) as store:
            rows |= store.get(list(given))
        with Recent(config.features_dir, fingerprint, read_only=True) as recent:
            for judged in recent.since(days):
                rows[judged.content] = judged.row
                about[judged.content] = about.get(judged.content) or judged.about
    return rows, about, given
