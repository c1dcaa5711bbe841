"""spamguard as a contestant. All that the benchmarks know of our heads stands here.

`General` is fitted as the head that ships is (`training/ship.py`), `Personal` as `spamguard retrain` does, from
nothing or from a general head.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from spamguard.head import AdditiveHead, Head, logits
from spamguard.verdict import Cutoffs
from training.cutoffs import SPAM_BOUNDS, choose_cutoffs
from training.fit import DEFAULT_PENALTIES, Fitted, Penalties, fit
from training.ship import MODERN, PENALTIES, RATES, weights

from .mail import Mail
from .measures import log_odds

Array = npt.NDArray[np.float64]


class OurJudge:
    """A fitted head and its cut-offs, as log-odds."""

    def __init__(self, head: Head, cutoffs: Cutoffs) -> None:
        self.head, self.cutoffs = head, cutoffs
        self.unsure, self.spam = float(log_odds(cutoffs.unsure)), float(log_odds(cutoffs.spam))

    def score(self, mail: Mail) -> Array:
        return logits(self.head, mail.features).astype(np.float64)


class General:
    """Each collection weighs by the root of its size; modern ham, where there is some, sets the cut-off for spam."""

    name, probable = "spamguard, as the head that ships", True

    def __init__(self, columns: int) -> None:
        self._columns = columns

    def after(self, others: Mail) -> Personal:
        return Personal(self._columns).after(others)

    def learn(self, own: Mail) -> OurJudge:
        table = own.table
        fitted = fit(
            own.features,
            own.labels,
            columns=self._columns,
            penalties=PENALTIES,
            weights=weights(table),
            groups=table["group"].tolist(),
        )
        modern = (table["corpus"].isin(MODERN) & (table["label"] == 0)).to_numpy()
        cutoffs = fitted.cutoffs
        if modern.any():
            cutoffs = choose_cutoffs(fitted.out_of_fold[modern], np.ones(int(modern.sum())), RATES)
        return OurJudge(fitted.head, cutoffs)


class Personal:
    """The user's own labels, all alike; `start` is the general head that it begins from."""

    probable = True

    def __init__(
        self, columns: int, start: OurJudge | None = None, penalties: Penalties = DEFAULT_PENALTIES, part: str = ""
    ) -> None:
        self._columns, self._start, self._penalties = columns, start, penalties
        begins = "from nothing" if start is None else "from a head of other corpora"
        self.name = f"spamguard, {part} alone" if part else f"spamguard (reads headers), {begins}"

    def after(self, others: Mail) -> Personal:
        return Personal(self._columns, General(self._columns).learn(others))

    @property
    def start(self) -> OurJudge | None:
        """What judges before there is a label."""
        return self._start

    def learn(self, own: Mail) -> OurJudge:
        prior, careful = None, SPAM_BOUNDS[0]
        if self._start is not None and isinstance(self._start.head, AdditiveHead):
            prior, careful = self._start.head, self._start.cutoffs.spam
        fitted: Fitted = fit(
            own.features,
            own.labels,
            columns=self._columns,
            prior=prior,
            careful=careful,
            penalties=self._penalties,
        )
        return OurJudge(fitted.head, fitted.cutoffs)


def parts(columns: int) -> list[Personal]:
    """Each part of the head alone."""
    words = {"deep": "meaning (layers 0, 3, 6)", "wide": "words", "structure": "structure", "headers": "headers"}
    nothing = Penalties(None, None, None, None)
    return [
        Personal(columns, penalties=replace(nothing, **{part: getattr(DEFAULT_PENALTIES, part)}), part=name)
        for part, name in words.items()
    ]
