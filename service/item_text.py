"""A message of the quarantine as text for a person: a line of the list, or a page; nothing foreign is obeyed."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import Any

from spamguard.headers import printable
from spamguard.message import parse

from .envelope import Path
from .held import Held
from .quarantine_index import Item

_FIELDS, _FIELD, _TEXT = 200, 1000, 20_000  # how much of a header block, of a field, and of a text is shown


def line_of(item: Item, with_state: bool) -> str:
    """Id, time, state if wanted, score, from, to, subject."""
    words = [item.id, when(item.received)]
    if with_state:
        words.append(f"{item.state:8}")
    if item.damaged:
        return "  ".join([*words, printable(item.damaged.partition(": ")[2], 200)])
    to = item.recipients[0] if item.recipients else "-"
    more = f" +{len(item.recipients) - 1}" if len(item.recipients) > 1 else ""
    words += [
        "------" if item.score is None else f"{item.score:.4f}",
        f"{printable(item.header_from or item.sender or '-', 40):40}",
        f"{printable(to, 30) + more:30}",
        printable(item.subject, 80),
    ]
    return "  ".join(words).rstrip()


def page_of(held: Held, state: str) -> Iterator[str]:
    """Envelope, verdict with its reasons, header block, visible text; each line printable."""
    yield f"{held.id}: {state}, received {when(held.received)}, {len(held.content)} bytes"
    yield from _envelope(held)
    yield from _verdict(held.verdict)
    message = parse(held.content)
    yield ""
    for name, value in message.headers[:_FIELDS]:
        yield printable(f"{name}: {value}", _FIELD)
    if len(message.headers) > _FIELDS:
        yield f"({len(message.headers) - _FIELDS} more fields)"
    yield ""
    yield printable(f"From: {message.sender_name} <{message.sender_address}>", _FIELD)
    yield printable(f"Subject: {message.subject}", _FIELD)
    yield ""
    for line in message.body[:_TEXT].splitlines():
        yield printable(line, len(line))
    if len(message.body) > _TEXT:
        yield f"({len(message.body) - _TEXT} more characters)"
    for one in message.attachments:
        yield printable(f"attached: {one.kind}, {one.size} bytes, {one.filename or 'without a name'}", _FIELD)


def _envelope(held: Held) -> Iterator[str]:
    envelope, source = held.envelope, held.source
    if source is not None:
        yield printable(
            f"taken from {source.maildir}, folder {source.folder}, {source.name}:2,{source.flags}", _FIELD
        )
        return
    peer = f"{envelope.helo.decode('ascii', 'replace')} [{envelope.peer}]"
    yield printable(f"came by {envelope.protocol.decode()} from {peer}", _FIELD)
    yield f"MAIL FROM:{_path(envelope.sender)}" if envelope.sender else "MAIL FROM:<>"
    for recipient in envelope.recipients[:_FIELDS]:
        yield f"RCPT TO:{_path(recipient)}"
    if len(envelope.recipients) > _FIELDS:
        yield f"({len(envelope.recipients) - _FIELDS} more recipients)"


def _verdict(verdict: dict[str, Any] | None) -> Iterator[str]:
    if verdict is None:
        yield "not scored"
        return
    shown = (f"{key} {verdict.get(key)}" for key in ("label", "probability", "head", "encoder"))
    yield printable(", ".join(shown), _FIELD)
    for reason in verdict.get("reasons", []):
        yield printable(f"  {reason.get('logit', 0.0):+6.2f}  {reason.get('what')}", _FIELD)


def _path(path: Path) -> str:
    return printable(b" ".join([path.raw, *path.parameters]).decode("utf-8", "replace"), _FIELD)


def when(seconds: float) -> str:
    """Local time, to the minute; a time that no calendar knows as a number."""
    try:
        return datetime.fromtimestamp(seconds).astimezone().strftime("%Y-%m-%d %H:%M")
    except (ValueError, OverflowError, OSError):
        return f"{seconds:.0f}"
