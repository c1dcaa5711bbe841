"""spamguard as a contestant. All that the benchmarks know of our heads stands here.

`General` is fitted as the head that ships is (`training/ship.py`), `Personal` as `spamguard retrain` does, from
nothing or from a general head.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from spamguard.encoder import Encoder, FloatArray, TokenIds
from spamguard.head import AdditiveHead, Head, logits
from spamguard.scorer import Prepared, look_again, prepare
from spamguard.verdict import Cutoffs
from training.cutoffs import SPAM_BOUNDS, choose_cutoffs
from training.fit import DEFAULT_PENALTIES, Fitted, Penalties, fit, take
from training.ship import MODERN, PENALTIES, RATES, weights

from .mail import Mail
from .measures import log_odds

Array = npt.NDArray[np.float64]


class Passages:
    """What the second look at long ham needs, each made once: many judges look at the same mail."""

    def __init__(self, encoder: Encoder) -> None:
        self.encoder, self.max_tokens = encoder, encoder.max_tokens
        self._prepared: dict[str, Prepared] = {}
        self._states: dict[bytes, FloatArray] = {}

    def prepared(self, content: str, raw: bytes) -> Prepared:
        if content not in self._prepared:
            self._prepared[content] = replace(prepare(self.encoder, raw), text="", rest="")
        return self._prepared[content]

    def encode(self, tokens: Sequence[TokenIds]) -> FloatArray:
        missing = {key: ids for ids in tokens if (key := ids.tobytes()) not in self._states}
        if missing:
            self._states.update(zip(missing, self.encoder.encode(list(missing.values())), strict=True))
        return np.stack([self._states[ids.tobytes()] for ids in tokens])


class OurJudge:
    """A fitted head and its cut-offs, as log-odds."""

    def __init__(self, head: Head, cutoffs: Cutoffs, passages: Passages) -> None:
        self.head, self.cutoffs, self._passages = head, cutoffs, passages
        self.unsure, self.spam = float(log_odds(cutoffs.unsure)), float(log_odds(cutoffs.spam))

    def score(self, mail: Mail) -> Array:
        """As the daemon judges: what holds a passage that alone is most likely spam is unsure."""
        said = logits(self.head, mail.features)
        vocabulary, window = self._passages.encoder.vocab_size, self._passages.max_tokens
        lengths = np.asarray([row.text(vocabulary).counts.sum() for row in mail.features.wide])
        rows = np.flatnonzero((said < self.unsure) & (lengths + 2 > window))
        contents = mail.table["content"].iloc[rows]
        batch = [self._passages.prepared(content, mail.raw[i]) for content, i in zip(contents, rows, strict=True)]
        hidden = look_again(self._passages, self.head, self.cutoffs, batch, take(mail.features, rows), said[rows])
        result = said.astype(np.float64)
        result[rows[list(hidden)]] = self.unsure
        return result


class General:
    """Each collection weighs by the root of its size; modern ham, where there is some, sets the cut-off for spam."""

    name, probable = "spamguard, as the head that ships", True

    def __init__(self, passages: Passages) -> None:
        self._passages = passages

    def after(self, others: Mail) -> Personal:
        return Personal(self._passages).after(others)

    def learn(self, own: Mail) -> OurJudge:
        table = own.table
        fitted = fit(
            own.features,
            own.labels,
            columns=self._passages.encoder.vocab_size,
            penalties=PENALTIES,
            weights=weights(table),
            groups=table["group"].tolist(),
        )
        modern = (table["corpus"].isin(MODERN) & (table["label"] == 0)).to_numpy()
        cutoffs = fitted.cutoffs
        if modern.any():
            cutoffs = choose_cutoffs(fitted.out_of_fold[modern], np.ones(int(modern.sum())), RATES)
        return OurJudge(fitted.head, cutoffs, self._passages)


class Personal:
    """The user's own labels, all alike; `start` is the general head that it begins from."""

    probable = True

    def __init__(
        self,
        passages: Passages,
        start: OurJudge | None = None,
        penalties: Penalties = DEFAULT_PENALTIES,
        part: str = "",
    ) -> None:
        self._passages, self._start, self._penalties = passages, start, penalties
        begins = "from nothing" if start is None else "from a head of other corpora"
        self.name = f"spamguard, {part} alone" if part else f"spamguard (reads headers), {begins}"

    def after(self, others: Mail) -> Personal:
        return Personal(self._passages, General(self._passages).learn(others))

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
            columns=self._passages.encoder.vocab_size,
            prior=prior,
            careful=careful,
            penalties=self._penalties,
        )
        return OurJudge(fitted.head, fitted.cutoffs, self._passages)


def parts(passages: Passages) -> list[Personal]:
    """Each part of the head alone."""
    words = {"deep": "meaning (layers 0, 3, 6)", "wide": "words", "structure": "structure", "headers": "headers"}
    nothing = Penalties(None, None, None, None)
    return [
        Personal(passages, penalties=replace(nothing, **{part: getattr(DEFAULT_PENALTIES, part)}), part=name)
        for part, name in words.items()
    ]
