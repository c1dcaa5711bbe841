"""What was sent, what was answered and what arrived: whether they agree, and why a message is there twice."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field


@dataclass(slots=True)
class Attempt:
    """One time that the content of a mail was sent, from its first byte to the reply or the end of the connection."""

    began: float
    ended: float = math.inf
    reply: bytes = b""


@dataclass(slots=True)
class Mail:
    number: int
    size: int
    spam: bool
    attempts: list[Attempt] = field(default_factory=list)
    refused: bytes = b""

    @property
    def accepted(self) -> bool:
        return bool(self.attempts) and self.attempts[-1].reply.startswith(b"250")

    @property
    def settled(self) -> bool:
        return self.accepted or bool(self.refused)


@dataclass(frozen=True, slots=True)
class Fault:
    """Something that we did to the daemon or to its next hop, and how long it lasted."""

    kind: str
    began: float
    ended: float

    def meets(self, attempt: Attempt) -> bool:
        return attempt.began <= self.ended and self.began <= attempt.ended


@dataclass(frozen=True, slots=True)
class Copy:
    """One message at the next hop or in the quarantine."""

    number: int
    attempt: int
    whole: bool
    where: str


HOP_PATIENCE_S = 2.0  # what the daemon has for a reply of the next hop
DAEMON_KILLED, HOP_KILLED, HOP_HUNG = "daemon killed", "next hop killed", "next hop hung"
_REASONS = {
    DAEMON_KILLED: "the daemon was killed before it could pass on the 250",
    HOP_KILLED: "the next hop was killed between its disk and its 250",
    HOP_HUNG: "the next hop hung longer than the time-out, and had it all the same",
}
SLOW = "the next hop was slower than the time-out, and had it all the same"
UNEXPLAINED = "unexplained"


@dataclass
class Judgement:
    lost: list[int] = field(default_factory=list)
    torn: list[Copy] = field(default_factory=list)
    refused: list[bytes] = field(default_factory=list)
    unsettled: int = 0
    found: Counter[str] = field(default_factory=Counter)
    duplicates: Counter[str] = field(default_factory=Counter)

    @property
    def complaints(self) -> list[str]:
        named = {
            "lost": self.lost[:10],
            "torn": self.torn[:10],
            "refused for good": self.refused[:10],
            "never answered": self.unsettled,
            "duplicates without a reason": self.duplicates[UNEXPLAINED],
        }
        return [f"{name}: {what}" for name, what in named.items() if what]


def judge(mails: Sequence[Mail], copies: Iterable[Copy], faults: Sequence[Fault]) -> Judgement:
    """A mail answered 250 must be there from that very attempt; a copy from another one is a duplicate."""
    judgement = Judgement()
    by_number: defaultdict[int, list[Copy]] = defaultdict(list)
    for copy in copies:
        judgement.found[copy.where] += 1
        if not copy.whole or copy.number >= len(mails) or copy.attempt >= len(mails[copy.number].attempts):
            judgement.torn.append(copy)
        else:
            by_number[copy.number].append(copy)
    for mail in mails:
        there = [copy.attempt for copy in by_number[mail.number]]
        if mail.refused:
            judgement.refused.append(mail.refused)
        elif not mail.accepted:
            judgement.unsettled += 1
        elif len(mail.attempts) - 1 in there:
            there.remove(len(mail.attempts) - 1)
        else:
            judgement.lost.append(mail.number)
        seen: set[int] = set()
        for attempt in there:
            judgement.duplicates[_reason(mail, attempt, attempt in seen, faults)] += 1
            seen.add(attempt)
    return judgement


def _reason(mail: Mail, number: int, again: bool, faults: Sequence[Fault]) -> str:
    attempt = mail.attempts[number]
    if again or attempt.reply.startswith(b"250"):
        return UNEXPLAINED  # sent once and there twice
    # Without a reply the daemon has died; with one, it has lost the next hop.
    kinds = (HOP_KILLED, HOP_HUNG) if attempt.reply else (DAEMON_KILLED,)
    there = {fault.kind for fault in faults if fault.meets(attempt)}
    timed_out = bool(attempt.reply) and attempt.ended - attempt.began >= HOP_PATIENCE_S
    return next((_REASONS[kind] for kind in kinds if kind in there), SLOW if timed_out else UNEXPLAINED)
