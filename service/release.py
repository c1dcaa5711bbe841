"""Release: a held message goes on, past the filter and marked; what has been done already is not done twice.

Beside the message `release.json` notes what a second attempt must know: in which place of which Maildir it is going
to lie, or which recipients have it. Killed between the next hop's 250 and that note, it goes to them again.
"""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from spamguard import headers, released
from spamguard.config import INBOX, Config
from spamguard.errors import DeliveryError, QuarantineError

from .content import normalised
from .envelope import Envelope
from .envelope import Path as Mailbox
from .held import Held, Source
from .hop import tls_context
from .maildir import Maildir, trace, unique_name
from .put_back import free_place, put_back
from .quarantine import RELEASED, Quarantine, read, replace_file
from .quarantine_index import noted_addresses
from .reinject import path_of, send
from .relay import NextHop

_PROGRESS = "release.json"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a release: `released` now, released `already`, or still `held`, as some have refused it.

    `taken` are those who have it, or the folder where it lies; `refused` are recipients with the reply of each.
    """

    id: str
    state: str
    content: bytes = field(repr=False)
    taken: tuple[str, ...] = ()
    refused: tuple[tuple[str, bytes], ...] = ()


class WayOut:
    """Where released mail and digests go: to the next hop, or without one into the inbox of `maildir.path`.

    Raises ConfigError.
    """

    def __init__(self, config: Config) -> None:
        self.hostname = config.listen.hostname or socket.gethostname()
        self.key_file = config.release_key
        self.next_hop: NextHop | None = None
        self.receives = config.listen.protocol != "off"
        """Whether somebody reads that Maildir."""
        self._maildir = Maildir(config.maildir_path, "")
        if config.next_hop.exists:
            self.next_hop = NextHop(config.next_hop, self.hostname, tls_context(config.next_hop))

    def inbox(self) -> Source:
        """A place in it, for a new message. Raises OSError."""
        self._maildir.create()
        return Source(str(self._maildir.path), INBOX, unique_name(), "", time.time_ns(), 0o600)

    def signed(self, raw: bytes, message_id: str) -> bytes:
        """Raises KeyFileError."""
        return released.sign(raw, message_id, released.make_key(self.key_file))


async def release(quarantine: Quarantine, message_id: str, way_out: WayOut, to: Sequence[str] = ()) -> Outcome:
    """Release a message to the recipients it came for, or to these instead; or into the Maildir it was taken from.

    Waits while somebody else releases it. Raises QuarantineError, DeliveryError, KeyFileError and OSError: it is
    still held then, and another attempt goes on with what is missing.
    """
    with quarantine.locked(message_id) as folder:
        held = read(folder)
        if folder.parent.name == RELEASED:
            if to:
                raise QuarantineError(f"{message_id}: was released already; `show --raw` gives the message")
            return Outcome(message_id, "already", held.content)
        progress = _Progress(folder / _PROGRESS)
        if held.source and not to:
            taken = [_put_back(held, held.source, progress, way_out)]
        elif way_out.next_hop is None:
            if to:
                raise QuarantineError(f"{message_id}: without next_hop there is no way to {to[0]}")
            taken = [_put_back(held, None, progress, way_out)]
        else:
            envelope = _envelope_to(held, to) if to else held.envelope
            refused = await _send(held, envelope, progress, way_out)
            taken = [_text(one) for one in envelope.recipients if _text(one) in progress.taken]
            if refused:
                return Outcome(message_id, "held", held.content, tuple(taken), tuple(refused))
        quarantine.settle(folder)
        return Outcome(message_id, "released", held.content, tuple(taken))


async def _send(held: Held, envelope: Envelope, progress: _Progress, way_out: WayOut) -> list[tuple[str, bytes]]:
    """Send it to those who have not got it; return those who still have not."""
    assert way_out.next_hop is not None
    places = [place for place, one in enumerate(envelope.recipients) if _text(one) not in progress.taken]
    missing = envelope.only(places)
    if not envelope.recipients:
        raise QuarantineError(f"{held.id}: its envelope names no recipient; say one with --to")
    if not places:
        return []
    progress.write()  # Where nothing can be noted, as the disk is full, nothing is sent either.
    content, _ = normalised(held.content)
    replies = await send(way_out.next_hop, held.id, missing, way_out.signed(content, held.id))
    answered = list(zip(map(_text, missing.recipients), replies, strict=True))
    if taken := [one for one, reply in answered if reply.startswith(b"2")]:
        progress.taken += taken
        try:
            progress.write()
        except OSError:
            if len(taken) < len(answered):
                raise
            # All have it: settle() says so, without a new file.
    return [(one, reply) for one, reply in answered if not reply.startswith(b"2")]


def _put_back(held: Held, wanted: Source | None, progress: _Progress, way_out: WayOut) -> str:
    """Put it where it came from, or into the inbox; return that folder."""
    content = held.content
    if wanted is None:
        content = headers.prepend(headers.strip(content), trace(held.id, held.envelope, way_out.hostname))
    content = way_out.signed(content, held.id)
    if wanted is None:
        content = content.replace(b"\r\n", b"\n")  # as in all Maildirs of this system
    if progress.place is None:
        progress.place = free_place(wanted or way_out.inbox(), len(content))
        progress.write()
    put_back(progress.place, content)
    place = progress.place
    return place.maildir if place.folder == INBOX else str(Path(place.maildir) / place.folder)


def _envelope_to(held: Held, to: Sequence[str]) -> Envelope:
    """The envelope with other recipients. A message from a Maildir is sent by whom its last server has noted."""
    recipients = []
    for address in to:
        if (path := path_of(address)) is None:
            raise QuarantineError(f"--to {headers.printable(address, 100)}: is no address")
        recipients.append(path)
    sender = held.envelope.sender
    if held.source:
        parameters = [] if held.content.isascii() else [b"BODY=8BITMIME"]
        sender = path_of(noted_addresses(held.content)[0], *parameters) or Mailbox(b"<>", tuple(parameters))
    if sender and not all(path.raw.isascii() for path in [*recipients, sender]):
        sender = Mailbox(sender.raw, tuple(dict.fromkeys([*sender.parameters, b"SMTPUTF8"])))
    return Envelope(sender=sender, recipients=recipients)


def _text(recipient: Mailbox) -> str:
    return recipient.address.decode("utf-8", "surrogateescape")


class _Progress:
    """What an earlier attempt has done: `taken` are the recipients who have it, `place` is where it goes or is."""

    def __init__(self, file: Path) -> None:
        """Raises QuarantineError if it is damaged: then nobody knows, and a person must look."""
        self._file = file
        self.taken: list[str] = []
        self.place: Source | None = None
        try:
            said: dict[str, Any] = json.loads(file.read_bytes())
            self.taken = [str(one) for one in said["taken"]]
            self.place = Source(**said["place"]) if said["place"] else None
        except FileNotFoundError:
            pass
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise QuarantineError(f"{file}: damaged: {error!r}; remove it to release the message to all") from error

    def write(self) -> None:
        """Raises OSError."""
        place = asdict(self.place) if self.place else None
        replace_file(self._file, json.dumps({"taken": self.taken, "place": place}).encode())


async def deliver(way_out: WayOut, message_id: str, recipient: str, raw: bytes) -> None:
    """A mail of our own, such as a digest, from nobody so that nothing comes back. Raises DeliveryError, OSError."""
    signed = way_out.signed(raw, message_id)
    if way_out.next_hop is None:
        if not way_out.receives:
            raise QuarantineError("there is no way to send a digest without next_hop; --print writes it")
        content = signed.replace(b"\r\n", b"\n")
        return put_back(free_place(way_out.inbox(), len(content)), content)
    path = path_of(recipient)
    if path is None:
        raise QuarantineError(f"{headers.printable(recipient, 100)}: is no address")
    envelope = Envelope(sender=Mailbox(b"<>", () if recipient.isascii() else (b"SMTPUTF8",)), recipients=[path])
    (reply,) = await send(way_out.next_hop, message_id, envelope, signed)
    if not reply.startswith(b"2"):
        raise DeliveryError(f"refused: {reply.decode('ascii', 'replace')}", reply)
    return None
