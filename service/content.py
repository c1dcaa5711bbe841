"""The content of DATA on the wire: where it ends, its dots, and its line ends (RFC 5321, 2.3.8 and 4.5.2).

A message is held in memory up to a bound; what follows waits in a file that has no name, so that nothing of it can
be left behind, whatever becomes of the process.
"""

from __future__ import annotations

import asyncio
import os
import re
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from threading import Lock

END = b"\r\n.\r\n"
_STRAY_CR = re.compile(rb"\r(?!\n)")
_BARE_LF = re.compile(rb"(?<!\r)\n")
_CHUNK = 262_144


class TooBig(Exception):
    """The message is larger than the limit; it has been read to its end."""


class Spool:
    """A file without a name, read by position. Several threads may use it: one may come late and find it closed.

    It is closed with its last user at the latest.
    """

    _descriptor: int | None = None

    def __init__(self, folder: Path) -> None:
        """Raises OSError."""
        with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
            self._lock = Lock()
            self._descriptor = os.dup(file.fileno())
        self.size = 0

    def write(self, data: bytes) -> None:
        """Raises OSError."""
        rest = memoryview(data)
        while rest:
            with self._lock:
                written = os.write(self._open(), rest)
            self.size += written
            rest = rest[written:]

    def read(self, start: int, size: int) -> bytes:
        """Raises OSError."""
        with self._lock:
            return os.pread(self._open(), size, start)

    def _open(self) -> int:
        if self._descriptor is None:
            raise OSError("the spool is closed")
        return self._descriptor

    def close(self) -> None:
        """At once, or if a thread is busy with it when that lets go: nobody waits for a slow disk here."""
        if self._lock.acquire(blocking=False):
            try:
                self.__del__()
            finally:
                self._lock.release()

    def __del__(self) -> None:
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)


class Content:
    """A message: its `beginning` in memory, the rest of it, if any, in a spool. Line ends are CRLF throughout.

    `mended` says that it came with others.
    """

    __slots__ = ("_spool", "beginning", "mended")

    def __init__(self, beginning: bytes, spool: Spool | None = None, mended: bool = False) -> None:
        self.beginning = beginning
        self.mended = mended
        self._spool = spool

    @property
    def whole(self) -> bool:
        """Whether all of it is in memory."""
        return self._spool is None

    @property
    def size(self) -> int:
        return len(self.beginning) + (self._spool.size if self._spool else 0)

    def rest(self) -> bytes:
        """What follows the beginning. Reads a file: for a thread."""
        return b"".join(self._chunks())

    def close(self) -> None:
        """Give the rest back to the disk."""
        if self._spool is not None:
            self._spool.close()

    def with_beginning(self, beginning: bytes) -> Content:
        return Content(beginning, self._spool, self.mended)

    def pieces(self) -> Iterator[bytes]:
        """All of it, in pieces that never end between CR and LF."""
        held = self.beginning
        for chunk in self._chunks():
            if held.endswith(b"\r"):
                held, chunk = held[:-1], b"\r" + chunk
            yield held
            held = chunk
        yield held

    def _chunks(self) -> Iterator[bytes]:
        position = 0
        while self._spool is not None and position < self._spool.size:
            chunk = self._spool.read(position, _CHUNK)
            if not chunk:
                raise OSError(f"the spool ends at {position} of {self._spool.size} bytes")
            yield chunk
            position += len(chunk)


class _Incoming:
    """Makes content of what is on the wire, chunk by chunk."""

    def __init__(self, limit: int, memory: int, folder: Path) -> None:
        self._limit = limit
        self._memory = memory
        self._folder = folder
        self._before = b""  # The last two bytes that came, in which a dot line may have begun.
        self._carry = b""  # A CR whose LF may be the next byte.
        self._size = -2  # The CRLF put before the first line is none of the message.
        self._mended = False
        self._held: list[bytes] = []
        self._held_bytes = 0
        self._spool: Spool | None = None
        self._fault: Exception | None = None

    async def add(self, chunk: bytes, last: bool) -> None:
        if self._fault is not None:
            return
        plain = (self._before + chunk).replace(b"\r\n.", b"\r\n")[len(self._before) :]
        self._before = (self._before + chunk)[-2:]
        if self._size < 0:
            plain = plain[2:]  # read() hands the first bytes over whole
            self._size = 0
        if last:
            plain = plain[:-2]  # the end of the line of the final dot
        self._size += len(plain)
        plain = self._carry + plain
        self._carry = b""
        if not last and plain.endswith(b"\r"):
            plain, self._carry = plain[:-1], b"\r"
        plain, mended = normalised(plain)
        self._mended |= mended
        try:
            if self._size > self._limit:
                raise TooBig
            await self._keep(plain)
        except Exception as fault:
            # The rest is read and dropped: so the client hears why, and none of it is ever read as a command.
            self._fault = fault
            self._held.clear()
            self.close()

    async def _keep(self, plain: bytes) -> None:
        if self._spool is None:
            self._held.append(plain)
            self._held_bytes += len(plain)
            if self._held_bytes <= self._memory:
                return
            held = b"".join(self._held)
            self._held = [held[: self._memory]]
            plain = held[self._memory :]
            self._spool = await asyncio.to_thread(Spool, self._folder)
        await asyncio.to_thread(self._spool.write, plain)

    def close(self) -> None:
        if self._spool is not None:
            self._spool.close()
            self._spool = None

    def content(self) -> Content:
        if self._fault is not None:
            raise self._fault
        return Content(b"".join(self._held), self._spool, self._mended)


async def read(reader: asyncio.StreamReader, limit: int, memory: int, folder: Path) -> Content:
    """Read up to and including the final dot; at most `memory` bytes stay in memory, the rest goes to `folder`.

    Only CRLF.CRLF ends a message. Every other spelling (LF.LF, CR.CR, CRLF.LF, ...) is content, so that nobody
    can hide a second message in the first (CVE-2023-51764 and its kin). Lines may be of any length.

    Raises TooBig if it is over `limit` bytes (dots not counted: RFC 1870, 5), OSError if it cannot be spooled, both
    only after all of it has been drained.
    """
    # The CRLF before a dot that comes first of all is the one of the DATA command, and has been read.
    reader._buffer[:0] = b"\r\n"  # type: ignore[attr-defined]
    incoming = _Incoming(limit, memory, folder)
    try:
        while True:
            try:
                await incoming.add(await reader.readuntil(END), last=True)
                return incoming.content()
            except asyncio.LimitOverrunError as error:
                chunk = await reader.readexactly(error.consumed)
            await incoming.add(chunk, last=False)
    except BaseException:
        incoming.close()
        raise


def normalised(data: bytes) -> tuple[bytes, bool]:
    """Every line end as CRLF, and whether anything had to be mended: a bare LF becomes CRLF, a stray CR a space.

    This is what Postfix 3.9 does (smtpd_forbid_bare_newline, cleanup_replace_stray_cr_lf). What goes to the next
    server can then be read in one way only.
    """
    pairs = data.count(b"\r\n")
    if data.count(b"\r") == pairs and data.count(b"\n") == pairs:
        return data, False
    return _BARE_LF.sub(b"\r\n", _STRAY_CR.sub(b" ", data)), True


def wire(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """The pieces of a Content as DATA wants them: dots stuffed, the final dot at the end and nowhere else.

    Their line ends are CRLF throughout, and none of them ends between CR and LF: read() has seen to that. The final
    dot comes with the last piece.
    """
    at_line_start, held = True, b""
    for piece in pieces:
        if not piece:
            continue
        if held:
            yield held
        held = piece.replace(b"\r\n.", b"\r\n..")
        if at_line_start and piece.startswith(b"."):
            held = b"." + held
        at_line_start = piece.endswith(b"\r\n")
    yield held + (END[2:] if at_line_start else END)
