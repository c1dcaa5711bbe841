"""Delivery into a local Maildir: tmp, fsync, rename, fsync of the folder; only then a message is answered 250."""

from __future__ import annotations

import asyncio
import itertools
import os
import socket
import time
from collections.abc import Iterable, Mapping
from email.utils import formatdate
from pathlib import Path

from spamguard import headers
from spamguard.errors import DeliveryError

from .content import Content
from .delivery import storage_fault
from .envelope import Envelope

_counter = itertools.count()


class Maildir:
    """A Maildir++ on disk, created when missing. Synchronous."""

    def __init__(self, path: Path, junk: str) -> None:
        self.path = path
        self.junk = path / junk if junk else path

    def deliver(self, pieces: Iterable[bytes], junk: bool) -> Path:
        """Write a message into new/ and return its path, when a crash can no longer lose it. Raises OSError."""
        folder = self.junk if junk else self.path
        self._create(folder)
        name = unique_name()
        temporary = folder / "tmp" / name
        try:
            final = folder / "new" / f"{name},S={_write(temporary, pieces)}"
            temporary.rename(final)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        sync_folder(final.parent)
        return final

    def create(self) -> None:
        """Create what is missing. Raises OSError."""
        for folder in {self.path, self.junk}:
            self._create(folder)

    def _create(self, folder: Path) -> None:
        for missing in (self.path, folder, *(folder / part for part in ("tmp", "new", "cur"))):
            if not missing.is_dir():
                missing.mkdir(mode=0o700, parents=True, exist_ok=True)
                sync_folder(missing.parent)
        if folder != self.path and not (folder / "maildirfolder").exists():
            (folder / "maildirfolder").touch(0o600)


class MaildirDelivery:
    """The way out when there is no next hop: one copy of each message, for all of its recipients together."""

    keywords: Mapping[bytes, bytes] = dict.fromkeys(
        (b"SIZE", b"PIPELINING", b"8BITMIME", b"SMTPUTF8", b"ENHANCEDSTATUSCODES"), b""
    )

    per_recipient = False

    def __init__(self, maildir: Maildir, hostname: str) -> None:
        self._maildir = maildir
        self._hostname = hostname

    async def open(self) -> None:
        pass

    async def xforward(self, line: bytes) -> bytes:
        return b"502 5.5.1 XFORWARD is not offered"

    async def mail(self, line: bytes) -> bytes:
        return b"250 2.1.0 Ok"

    async def rcpt(self, line: bytes) -> bytes:
        return b"250 2.1.5 Ok"

    async def reset(self) -> None:
        pass

    async def deliver(self, message_id: str, envelope: Envelope, message: Content, junk: bool) -> list[bytes]:
        beginning = headers.prepend(message.beginning, trace(message_id, envelope, self._hostname))
        # Maildirs of this system hold local line ends.
        pieces = (piece.replace(b"\r\n", b"\n") for piece in message.with_beginning(beginning).pieces())
        try:
            await asyncio.to_thread(self._maildir.deliver, pieces, junk)
        except OSError as error:
            raise DeliveryError(f"Maildir: {error}", storage_fault(error)) from error
        return [b"250 2.0.0 Ok: delivered as " + message_id.encode()] * len(envelope.recipients)

    async def abort(self) -> None:
        pass

    async def close(self) -> None:
        pass


def trace(message_id: str, envelope: Envelope, hostname: str) -> bytes:
    """What the last server adds (RFC 5321, 4.4): Return-Path, Delivered-To, Received."""
    sender = envelope.sender.address if envelope.sender else b""
    lines = [b"Return-Path: <" + sender + b">"]
    lines += [b"Delivered-To: " + recipient.address for recipient in envelope.recipients]
    helo = headers.printable(envelope.helo.decode("ascii", "replace"), 255).encode("ascii", "replace")
    lines += [
        b"Received: from " + helo + b" ([" + envelope.peer.encode() + b"])",
        b"\tby %s (spamguard) with %s id %s;" % (hostname.encode(), envelope.protocol, message_id.encode()),
        b"\t" + formatdate(localtime=True).encode(),
    ]
    return b"".join(line + b"\r\n" for line in lines)


def unique_name() -> str:
    """A base name that no other message has, on this machine or another."""
    seconds, nanoseconds = divmod(time.time_ns(), 10**9)
    host = socket.gethostname().replace("/", r"\057").replace(":", r"\072").replace(",", r"\054")
    return f"{seconds}.M{nanoseconds // 1000}P{os.getpid()}Q{next(_counter)}.{host}"


def _write(path: Path, pieces: Iterable[bytes]) -> int:
    """Return the size."""
    size = 0
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        for piece in pieces:
            size += len(piece)
            rest = memoryview(piece)
            while rest:
                rest = rest[os.write(descriptor, rest) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    return size


def sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
