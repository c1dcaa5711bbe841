"""What the filter says of a message: a calibrated probability, one of three labels, and the reasons."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .head import Row


class Label(StrEnum):
    HAM = "ham"
    UNSURE = "unsure"
    SPAM = "spam"


@dataclass(frozen=True, slots=True)
class Cutoffs:
    """Probabilities from which a message is `unsure`, and from which it is `spam`."""

    unsure: float
    spam: float

    def __post_init__(self) -> None:
        if not 0.0 < self.unsure <= self.spam <= 1.0:
            raise ValueError(f"cut-offs must satisfy 0 < unsure <= spam <= 1, not {self.unsure} and {self.spam}")

    def label(self, probability: float) -> Label:
        if probability >= self.spam:
            return Label.SPAM
        return Label.UNSURE if probability >= self.unsure else Label.HAM


@dataclass(frozen=True, slots=True)
class Reason:
    """One thing that pushed the score.

    `part` is the part of the head it belongs to (`deep`, `wide`, `structure`, `headers`), or `passage` or `rule`;
    `what` says it in words, `logit` is its exact share of the logit: above zero towards spam, below zero towards ham.
    """

    part: str
    what: str
    logit: float


@dataclass(frozen=True, slots=True)
class Verdict:
    """The judgement of one message.

    `probability` is the calibrated probability of spam. `parts` holds each part's share of the logit (their sum
    is the logit), `reasons` the strongest single shares, strongest first. `encoder` and `head` are the
    fingerprints of what judged, `content` is the message's content hash, and `seen` is what the head saw of it, from
    which it can be taught.
    """

    probability: float
    label: Label
    cutoffs: Cutoffs
    parts: dict[str, float]
    reasons: tuple[Reason, ...]
    encoder: str
    head: str
    milliseconds: float = 0.0
    content: str = field(default="", compare=False, repr=False)
    seen: Row | None = field(default=None, compare=False, repr=False)
