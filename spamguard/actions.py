"""What can be done with a judged message: each action turns bytes and verdict into a disposition."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from . import headers
from .config import PolicyTable
from .verdict import Label, Verdict


class Fate(StrEnum):
    """What an ingress must be able to do with a message."""

    DELIVER = "deliver"
    QUARANTINE = "quarantine"
    REJECT = "reject"


@dataclass(frozen=True, slots=True)
class Disposition:
    """What shall become of a message, in words that every ingress understands.

    `data` is what goes on or is held, `junk` asks for the junk folder where there are folders, `reply` is the
    refusal owed to an SMTP client. Without a verdict the message was not scored, and `failure` says why, or it was
    released from the quarantine, and `released` is its id there.
    """

    fate: Fate
    data: bytes
    junk: bool = False
    reply: bytes | None = None
    verdict: Verdict | None = None
    failure: str | None = None
    released: str | None = None

    @property
    def label(self) -> str:
        """The verdict in a word, or why there is none, for logs and counters."""
        if self.verdict is not None:
            return self.verdict.label.value
        return "released" if self.released else "unscored"


# What it gets is the message as it came, forged marks included.
Action = Callable[[bytes, Verdict, PolicyTable], Disposition]


def tag(raw: bytes, verdict: Verdict, table: PolicyTable) -> Disposition:
    """Deliver with our headers on top."""
    spam = verdict.label is Label.SPAM
    stamped = headers.stamp(raw, verdict, table.subject_tag if spam else "")
    return Disposition(Fate.DELIVER, stamped, spam, verdict=verdict)


def pass_on(raw: bytes, verdict: Verdict, table: PolicyTable) -> Disposition:
    """Deliver without a mark of anybody's."""
    return Disposition(Fate.DELIVER, headers.strip(raw), verdict.label is Label.SPAM, verdict=verdict)


def quarantine(raw: bytes, verdict: Verdict, table: PolicyTable) -> Disposition:
    """Take the message and hold it exactly as it came; nobody is told, and nothing is lost."""
    return Disposition(Fate.QUARANTINE, raw, True, verdict=verdict)


def reject(raw: bytes, verdict: Verdict, table: PolicyTable) -> Disposition:
    """Refuse while the sending server still has the mail; after the queue this would bounce to forged senders."""
    return Disposition(Fate.REJECT, raw, True, b"550 5.7.1 Message refused: it looks like spam", verdict)


ACTIONS: dict[str, Action] = {"tag": tag, "pass": pass_on, "quarantine": quarantine, "reject": reject}
