"""From the last byte of a message to its reply: judge, hand over, note; the same for each SMTP-like ingress."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any

from spamguard import headers
from spamguard.actions import Disposition, Fate
from spamguard.errors import DeliveryError

from . import content
from .delivery import Delivery
from .envelope import Envelope
from .journal import Journal
from .pipeline import Pipeline

TOO_BIG = b"552 5.3.4 Message is too big"
OUR_FAULT = b"451 4.3.0 Internal error, try again later"
LOOP = b"554 5.4.6 Too many hops, this looks like a loop"

_HOPS = 50


@dataclass(slots=True)
class _Record:
    """What is known of a message when its line is written."""

    envelope: Envelope
    size: int
    id: str = field(default_factory=lambda: secrets.token_hex(6))
    began: float = field(default_factory=time.monotonic)
    disposition: Disposition | None = None
    more: dict[str, Any] = field(default_factory=dict)


class Handover:
    """`break_off` is for the end of a shutdown alone: until then, a hand-over that has begun is finished."""

    def __init__(self, ingress: str, pipeline: Pipeline, delivery: Delivery, journal: Journal) -> None:
        self._ingress = ingress
        self._pipeline = pipeline
        self._delivery = delivery
        self._journal = journal
        self._broken_off = False

    def break_off(self) -> None:
        self._broken_off = True

    async def message(self, envelope: Envelope, raw: bytes | None) -> bytes:
        """Return the reply to the final dot; only what is safe elsewhere is answered 2xx. None: it was too big.

        Never raises but for CancelledError, when the client left before anything had been handed over.
        """
        record = _Record(envelope, -1 if raw is None else len(raw))
        try:
            reply = TOO_BIG if raw is None else await self._decide(raw, record)
        except DeliveryError as error:
            reply, record.more["cause"] = error.reply, str(error)
        except asyncio.CancelledError:
            self._note(record, OUR_FAULT, client="left")
            raise
        except Exception as error:
            # The text of an unforeseen error is for the log only; it may name files and addresses.
            reply, record.more["cause"] = OUR_FAULT, repr(error)
        self._note(record, reply)
        return reply

    async def _decide(self, raw: bytes, record: _Record) -> bytes:
        raw, mended = content.normalised(raw)
        if mended:
            record.more["stray_line_ends"] = True
        if headers.hops(raw) > _HOPS:
            return LOOP
        began = time.monotonic()
        (disposition,) = await self._pipeline.handle(raw)
        record.disposition = disposition
        record.more["score_ms"] = _ms(began)
        if disposition.fate is Fate.REJECT:
            await self._delivery.abort()
            return disposition.reply or b"550 5.7.1 Message refused"
        began = time.monotonic()
        reply = await self._shielded(self._delivery.deliver(record.id, record.envelope, disposition), record)
        record.more["deliver_ms"] = _ms(began)
        return reply

    async def _shielded(self, step: Coroutine[Any, Any, bytes], record: _Record) -> bytes:
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

    def _note(self, record: _Record, reply: bytes, **more: Any) -> None:
        self._journal.message(
            record.id,
            self._ingress,
            record.envelope,
            record.size,
            record.disposition,
            reply,
            **record.more | more,
            total_ms=_ms(record.began),
        )


def _ms(since: float) -> float:
    return round((time.monotonic() - since) * 1000, 1)
