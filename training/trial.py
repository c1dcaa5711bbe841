"""What the gate is shown: the candidate and the head in service on the same mail, and on the reference set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from spamguard import bundle, heads_dir
from spamguard.bundle import Bundle
from spamguard.config import Config
from spamguard.encoder import Encoder
from spamguard.errors import BundleError
from spamguard.featurestore import FeatureStore
from spamguard.head import AdditiveHead, Features, MlpHead, logits, probability
from spamguard.scorer import effective
from spamguard.verdict import Cutoffs

from . import gate
from .corpus import tabulate
from .fit import FOLDS, Fitted, take
from .gate import Said
from .labelled import with_features

# Mail of our own writing, ham.mbox and spam.mbox: read as any folder of labelled mail is.
REFERENCE = Path(__file__).parent / "reference"

Indices = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Incumbent:
    """The head in service, under the name by which history knows it."""

    name: str
    folder: Path
    bundle: Bundle


@dataclass(frozen=True, slots=True)
class Mail:
    """The training table, the features of its n messages, their campaigns, and which of them are locked away,
    (n,)."""

    table: pd.DataFrame
    features: Features
    campaigns: Sequence[int]
    locked: npt.NDArray[np.bool_]

    @property
    def labels(self) -> npt.NDArray[np.int64]:
        return self.table["label"].to_numpy(dtype=np.int64)

    @property
    def contents(self) -> list[str]:
        return list(self.table["content"])

    @property
    def fitted(self) -> Indices:
        """Which messages are fitted on."""
        return np.flatnonzero(~self.locked)

    @property
    def groups(self) -> list[str] | None:
        """The campaigns of the messages fitted on, none of which a fold may part.

        None where a class has fewer of them than there are folds: one would have to do without that class.
        """
        groups, labels = [self.campaigns[i] for i in self.fitted], self.labels[self.fitted]
        few = min(len({g for g, label in zip(groups, labels, strict=True) if label == c}) for c in (0, 1))
        return [str(group) for group in groups] if few >= FOLDS else None


def incumbent(config: Config, encoder: Encoder) -> Incumbent | None:
    """The head that judges mail; where it does not fit, the shipped one, and None if that does not fit either."""
    own = config.head.path.name if config.head.path else heads_dir.serving(config.heads_dir)
    served = bundle.in_service(config.heads_dir, config.head.path)
    for name, folder in ((own, served), (heads_dir.SHIPPED_NAME, bundle.SHIPPED)):
        try:
            return Incumbent(name, folder, bundle.load(folder, encoder))
        except BundleError:
            continue
    return None


def reference(encoder: Encoder, store: FeatureStore) -> tuple[Features, npt.NDArray[np.int64]]:
    """The reference set as this encoder reads it, and its labels (n,). Raises ScoringError, FeatureStoreError."""
    table, complaints = tabulate([REFERENCE], encoder, store)
    table, features, _ = with_features(table, store, complaints)
    return features, table["label"].to_numpy(dtype=np.int64)


@dataclass(frozen=True, slots=True)
class Trial:
    """A candidate before the gate: the mail, what was fitted on its unlocked part, and the head in service.

    `known` is the reference set. `fitted.out_of_fold` is in the order of `mail.fitted`.
    """

    mail: Mail
    fitted: Fitted
    old: Incumbent | None
    known: tuple[Features, npt.NDArray[np.int64]]
    config: Config

    def word(self) -> gate.Word:
        mail = self.mail
        chosen = gate.comparable(mail.contents, mail.campaigns, mail.labels, _fitted_on(self.old, mail.contents))
        locked = bool(mail.locked.any())
        if locked:
            chosen &= mail.locked
        features = take(mail.features, np.flatnonzero(chosen))
        after = self._after(features) if locked else self._out_of_fold(chosen[mail.fitted])
        known, answers = self.known
        return gate.judge(
            gate.Sample(mail.labels[chosen], after, self._before(features)),
            gate.Sample(answers, self._after(known), self._before(known)),
            self.config.learning.spam_rate,
            "locked" if locked else "out of fold",
        )

    def said_before(self, features: Features, contents: Sequence[str]) -> Said | None:
        """What the head in service says; of what it was fitted on, no number. None if no head is."""
        said = self._before(features)
        if said is None:
            return None
        seen = _fitted_on(self.old, contents)
        unseen = np.asarray([content not in seen for content in contents], dtype=np.bool_)
        return Said(np.where(unseen, said.probabilities, np.nan), said.cutoffs)

    def _after(self, features: Features) -> Said:
        return self._said(self.fitted.head, self.fitted.cutoffs, features)

    def _before(self, features: Features) -> Said | None:
        return None if self.old is None else self._said(self.old.bundle.head, self.old.bundle.cutoffs, features)

    def _out_of_fold(self, chosen: npt.NDArray[np.bool_]) -> Said:
        return Said(self.fitted.out_of_fold[chosen], effective(self.config.head, self.fitted.cutoffs))

    def _said(self, head: AdditiveHead | MlpHead, cutoffs: Cutoffs, features: Features) -> Said:
        return Said(probability(logits(head, features)), effective(self.config.head, cutoffs))


def _fitted_on(old: Incumbent | None, contents: Sequence[str]) -> set[str]:
    """What the head in service was fitted on. One that does not say may know all; the shipped one knows none."""
    if old is None:
        return set()
    try:
        return bundle.fitted_on(old.folder, contents)
    except BundleError:
        return set() if old.name == heads_dir.SHIPPED_NAME else set(contents)
