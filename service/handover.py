"""From the last byte of a message to its replies: judge, hand over, note; the same for each SMTP-like ingress."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any

from spamguard import headers
from spamguard.actions import Disposition, Fate
from spamguard.errors import DeliveryError

from .content import Content
from .delivery import OUR_FAULT, Delivery, storage_fault
from .envelope import Envelope
from .journal import Journal
from .pipeline import Pipeline
from .quarantine import Quarantine, Staged

TOO_BIG = b"552 5.3.4 Message is too big"
HEADER_TOO_BIG = b"552 5.3.4 Message header is too big"
STRAY_LINE_ENDS = b"550 5.6.0 Message holds CR or LF outside CRLF"
LOOP = b"554 5.4.6 Too many hops, this looks like a loop"

_HOPS = 50
_counter = itertools.count()

Replies = list[bytes]


def new_id() -> str:
    """Of hexadecimal digits, in the order of time; unique on this machine."""
    return f"{time.time_ns():016x}{next(_counter) & 0xFFFF:04x}"


@dataclass(slots=True)
class _Share:
    """The recipients, by their place in the envelope, for whom the same is done; and the reply of each."""

    places: list[int]
    disposition: Disposition | None = None
    replies: Replies = field(default_factory=list)

    def answer(self, reply: bytes) -> None:
        self.replies = [reply] * len(self.places)

    @property
    def held(self) -> bool:
        return self.disposition is not None and self.disposition.fate is Fate.QUARANTINE

    @property
    def taken(self) -> bool:
        return any(reply[:1] == b"2" for reply in self.replies)


@dataclass(slots=True)
class _Record:
    """What is known of a message when its lines are written."""

    envelope: Envelope
    size: int
    shares: list[_Share]
    id: str = field(default_factory=new_id)
    began: float = field(default_factory=time.monotonic)
    more: dict[str, Any] = field(default_factory=dict)

    def answer(self, reply: bytes) -> None:
        for share in self.shares:
            share.answer(reply)

    def envelope_of(self, share: _Share) -> Envelope:
        return self.envelope if len(self.shares) == 1 else self.envelope.only(share.places)


class Handover:
    """`break_off` is for the end of a shutdown alone: until then, a hand-over that has begun is finished.

    With `one_reply` the protocol has one reply for all recipients, as SMTP has.
    """

    def __init__(
        self,
        ingress: str,
        pipeline: Pipeline,
        delivery: Delivery,
        quarantine: Quarantine,
        journal: Journal,
        one_reply: bool,
        reject_stray: bool,
    ) -> None:
        self._ingress = ingress
        self._pipeline = pipeline
        self._delivery = delivery
        self._quarantine = quarantine
        self._journal = journal
        self._one_reply = one_reply
        self._reject_stray = reject_stray
        self._broken_off = False

    def break_off(self) -> None:
        self._broken_off = True

    def refuse(self, envelope: Envelope, reply: bytes, cause: str) -> Replies:
        """A message that could not be taken in."""
        record = _Record(envelope, -1, [_Share(list(range(len(envelope.recipients))))], more={"cause": cause})
        record.answer(reply)
        return self._noted(record)

    async def message(self, envelope: Envelope, content: Content) -> Replies:
        """Return the reply of each recipient; only what is safe elsewhere is answered 2xx.

        With `one_reply` they are all the same. Never raises but for CancelledError, when the client left before
        anything had been handed over.
        """
        record = _Record(envelope, content.size, [_Share(list(range(len(envelope.recipients))))])
        try:
            await self._decide(content, record)
        except asyncio.CancelledError:
            record.answer(OUR_FAULT)
            self._noted(record, client="left")
            raise
        except Exception as error:
            record.answer(_owed(error, record))
        return self._noted(record)

    async def _decide(self, content: Content, record: _Record) -> None:
        if content.mended:
            record.more["stray_line_ends"] = True
            if self._reject_stray:
                return record.answer(STRAY_LINE_ENDS)
        if not content.whole and headers.end(content.beginning) == len(content.beginning):
            return record.answer(HEADER_TOO_BIG)  # A verdict forged further down could not be taken off.
        if headers.hops(content.beginning) > _HOPS:
            return record.answer(LOOP)
        began = time.monotonic()
        dispositions = await self._pipeline.handle(
            content.beginning,
            [path.address for path in record.envelope.recipients],
            self._one_reply,
            None if content.whole else content.rest,
        )
        record.shares = _shares(dispositions)
        record.more["score_ms"] = _ms(began)
        began = time.monotonic()
        await self._shielded(self._carry_out(content, record), record)
        record.more["deliver_ms"] = _ms(began)
        return None

    async def _carry_out(self, content: Content, record: _Record) -> None:
        """What is held back is written first and put in its place last, so that a failure between leaves no trace."""
        staged: list[tuple[_Share, Staged]] = []
        try:
            for share in sorted(record.shares, key=lambda share: not share.held):
                await self._try(share, record, self._one(share, content, record, staged))
                if self._one_reply and not share.taken:
                    break  # All will hear the same, and come again.
            gone = any(share.taken for share in record.shares if not share.held)
            if self._one_reply:
                record.answer(_worst([reply for share in record.shares for reply in share.replies]))
            for share, one in staged:
                if share.taken:
                    await self._try(share, record, asyncio.to_thread(one.commit))
            if self._one_reply:
                worst = _worst([reply for share in record.shares for reply in share.replies])
                record.answer(worst)
                if gone and worst[:1] != b"2":
                    record.more["partly_delivered"] = True  # The sender's next attempt will double it for some.
        finally:
            for _, one in staged:
                await asyncio.to_thread(one.discard)

    async def _try(self, share: _Share, record: _Record, step: Coroutine[Any, Any, None]) -> None:
        """The failure of one share is the answer to its recipients, and to no others."""
        try:
            await step
        except Exception as error:
            share.answer(_owed(error, record))

    async def _one(
        self,
        share: _Share,
        content: Content,
        record: _Record,
        staged: list[tuple[_Share, Staged]],
    ) -> None:
        disposition = share.disposition
        assert disposition is not None
        message = content.with_beginning(disposition.data)
        envelope = record.envelope_of(share)
        if disposition.fate is Fate.REJECT:
            share.answer(disposition.reply or b"550 5.7.1 Message refused")
        elif disposition.fate is Fate.QUARANTINE:
            stage = self._quarantine.stage
            one = await asyncio.to_thread(stage, record.id, envelope, message.pieces(), disposition.verdict)
            staged.append((share, one))
            share.answer(b"250 2.0.0 Ok: held as " + record.id.encode())
        else:
            share.replies = await self._delivery.deliver(record.id, envelope, message, disposition.junk)

    async def _shielded(self, step: Coroutine[Any, Any, None], record: _Record) -> None:
        """Finish the step even if the client leaves, which cancels us, so that no half message goes on."""
        task = asyncio.create_task(step)
        while True:
            try:
                return await asyncio.shield(task)
            except asyncio.CancelledError:
                if self._broken_off or task.cancelled():
                    task.cancel()
                    await asyncio.wait([task])
                    raise
                record.more["client"] = "left before our reply"

    def _noted(self, record: _Record, **more: Any) -> Replies:
        """Write the line of each share; return all replies in the order of the envelope."""
        replies: dict[int, bytes] = {}
        for share in record.shares:
            replies |= zip(share.places, share.replies, strict=True)
            worst = _worst(share.replies)
            refused = sum(reply[:1] != b"2" for reply in share.replies)
            mixed = {"refused_count": refused} if 0 < refused < len(share.replies) else {}
            self._journal.message(
                record.id,
                self._ingress,
                record.envelope_of(share),
                record.size,
                share.disposition,
                worst,
                **mixed,
                **record.more | more,
                total_ms=_ms(record.began),
            )
        if verdict := next((s.disposition.verdict for s in record.shares if s.disposition), None):
            self._pipeline.remember(verdict, f"{self._ingress}/{record.id}")
        return [replies[place] for place in sorted(replies)]


def _shares(dispositions: Sequence[Disposition]) -> list[_Share]:
    shares: dict[int, _Share] = {}
    for place, disposition in enumerate(dispositions):
        shares.setdefault(id(disposition), _Share([], disposition)).places.append(place)
    return list(shares.values())


def _owed(error: Exception, record: _Record) -> bytes:
    """The reply that a failure owes. The text of an unforeseen one is for the log only: it may name files."""
    record.more["cause"] = str(error) if isinstance(error, DeliveryError | OSError) else repr(error)
    if isinstance(error, DeliveryError):
        return error.reply
    return storage_fault(error) if isinstance(error, OSError) else OUR_FAULT


def _worst(replies: Replies) -> bytes:
    """What a sender hears who hears one reply only: a failure that may pass before one that stays, then success."""
    for first in (b"4", b"5", b"2"):
        for reply in replies:
            if reply[:1] == first:
                return reply
    return OUR_FAULT


def _ms(since: float) -> float:
    return round((time.monotonic() - since) * 1000, 1)
