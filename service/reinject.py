"""A message of ours on its way to the next hop, past the filter: one transaction, one reply for each recipient."""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress

from spamguard.errors import DeliveryError

from .content import Content, normalised
from .envelope import Envelope, Path, has_controls, parse
from .relay import NextHop, Relay

# What a next hop must offer to be told a parameter. SIZE= is another now, and others ask for what is over.
_NEEDS = {
    b"BODY": b"8BITMIME",
    b"SMTPUTF8": b"SMTPUTF8",
    b"RET": b"DSN",
    b"ENVID": b"DSN",
    b"NOTIFY": b"DSN",
    b"ORCPT": b"DSN",
}

# Blanks stand in quotes only, so that no parameter can be smuggled in.
_ADDRESS = re.compile(r'(?:"(?:[^"\\]|\\.)*+"|[^\s"<>]++)++')


def path_of(address: str, *parameters: bytes) -> Path | None:
    """The path of an address that came in no envelope; None if it could not stand in one."""
    written = b"<" + address.encode("utf-8", "surrogateescape") + b">"
    path = None if has_controls(written) else parse(b"TO:", b"RCPT TO:" + written)
    if path is None or path.raw != written or path.parameters or not _ADDRESS.fullmatch(address):
        return None
    return Path(written, parameters)


async def send(next_hop: NextHop, message_id: str, envelope: Envelope, raw: bytes) -> list[bytes]:
    """The reply of each recipient; no connection stays open.

    Raises DeliveryError if nobody has taken it, as far as can be known.
    """
    message, _ = normalised(raw)
    sender = envelope.sender or Path(b"<>")
    relay = Relay(next_hop)
    try:
        await relay.open()
        size = [b"SIZE=%d" % len(message)] if b"SIZE" in relay.keywords else []
        reply = await relay.mail(_line(b"MAIL FROM:", sender, relay.keywords, *size))
        if not reply.startswith(b"2"):
            return [reply] * len(envelope.recipients)
        replies, taken = [], []
        for recipient in envelope.recipients:
            line = _line(b"RCPT TO:", recipient, relay.keywords)
            replies.append(await relay.rcpt(line))
            if replies[-1].startswith(b"2"):
                taken.append(Path(recipient.raw, recipient.parameters, line))
        if taken:
            last = iter(await relay.deliver(message_id, Envelope(recipients=taken), Content(message), junk=False))
            replies = [next(last) if reply.startswith(b"2") else reply for reply in replies]
        else:
            with suppress(DeliveryError):
                await relay.reset()
        return replies
    except BaseException:
        await relay.abort()
        raise
    finally:
        await relay.close()
        next_hop.close()


def _line(command: bytes, path: Path, offered: Mapping[bytes, bytes], *more: bytes) -> bytes:
    given = [one for one in path.parameters if _NEEDS.get(one.partition(b"=")[0].upper()) in offered]
    line = b" ".join([command + path.raw, *given, *more])
    if has_controls(line):
        raise DeliveryError(f"not sent: {line[:80]!r} could be read as two commands")
    return line
