"""The next hop: a small SMTP client on raw bytes, which mirrors what the next hop answers."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from dataclasses import dataclass

from spamguard.actions import Disposition
from spamguard.config import NextHopTable
from spamguard.errors import DeliveryError

from . import content
from .envelope import Envelope

NOT_REACHED = b"451 4.4.1 Next server cannot be reached, try again later"
LOST = b"451 4.4.2 Connection to next server lost, try again later"
UNEXPECTED = b"451 4.3.0 Next server gave an unexpected reply, try again later"

_REPLY_LINE = re.compile(rb"[2-5][0-9][0-9](?:[ -].*)?")
_CONTROLS = re.compile(rb"[\x00-\x1f\x7f]")
_LINE_BYTES = 2000  # Postfix cuts replies at 2048.
_LINES = 500
_BUFFER = 65_536


@dataclass(frozen=True, slots=True)
class Reply:
    code: int
    lines: tuple[bytes, ...]

    @property
    def raw(self) -> bytes:
        return b"\r\n".join(self.lines)

    @property
    def positive(self) -> bool:
        return 200 <= self.code < 300


class Relay:
    """One session with the next hop, opened for one session of a client."""

    def __init__(self, table: NextHopTable, hostname: str) -> None:
        self.keywords: Mapping[bytes, bytes] = {}
        self._table = table
        self._hostname = hostname.encode("ascii", "replace")
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        self._forwarded = False

    async def open(self) -> None:
        if self._streams is not None and not self._streams[1].is_closing():
            return
        await self._disconnect()
        self._forwarded = False
        try:
            async with asyncio.timeout(self._table.connect_timeout_s):
                # asyncio sets TCP_NODELAY, without which a small last packet waits 40 ms for an acknowledgement.
                self._streams = await asyncio.open_connection(self._table.host, self._table.port, limit=_BUFFER)
        except (OSError, TimeoutError) as error:
            raise DeliveryError(f"connect: {str(error) or 'timeout'}", NOT_REACHED) from error
        try:
            greeting = await self._reply("greeting", self._table.reply_timeout_s)
            if greeting.code != 220:
                raise DeliveryError(f"greeting: {greeting.raw!r}", NOT_REACHED)
            self.keywords = await self._hello()
        except DeliveryError as error:
            await self._disconnect()
            raise DeliveryError(str(error), NOT_REACHED) from error

    async def _hello(self) -> Mapping[bytes, bytes]:
        reply = await self._ask(b"EHLO " + self._hostname)
        if reply.code != 250:
            reply = await self._ask(b"HELO " + self._hostname)
            if reply.code != 250:
                raise DeliveryError(f"HELO: {reply.raw!r}", NOT_REACHED)
            return {}
        words = (line[4:].strip().partition(b" ") for line in reply.lines[1:])
        return {keyword.upper(): parameters for keyword, _, parameters in words}

    async def xforward(self, line: bytes) -> bytes:
        reply = await self._mirrored(await self._first(line))
        self._forwarded = True
        return reply

    async def mail(self, line: bytes) -> bytes:
        return await self._mirrored(await self._first(line))

    async def rcpt(self, line: bytes) -> bytes:
        return await self._mirrored(await self._ask(line))

    async def _first(self, line: bytes) -> Reply:
        """A command that opens a transaction. The next hop may have closed an idle connection: then once again."""
        fresh = self._streams is None
        await self.open()
        try:
            reply = await self._ask(line)
        except DeliveryError as error:
            # XFORWARD names the client of this transaction; on a new connection that would be lost.
            if fresh or self._forwarded or isinstance(error.__cause__, TimeoutError):
                raise
        else:
            if reply.code != 421 or fresh or self._forwarded:
                return reply
        await self.abort()
        await self.open()
        return await self._ask(line)

    async def reset(self) -> None:
        self._forwarded = False
        if self._streams is not None:
            reply = await self._ask(b"RSET")
            if not reply.positive:
                await self.abort()

    async def deliver(self, message_id: str, envelope: Envelope, disposition: Disposition) -> bytes:
        reply = await self._ask(b"DATA")
        if reply.code != 354:
            return await self._mirrored(reply, refusal=True)
        # Body and dot in one write: apart, the dot would wait for the acknowledgement of the body.
        await self._send(content.wire(disposition.data), self._table.data_timeout_s)
        reply = await self._reply("end of data", self._table.data_timeout_s)
        self._forwarded = False
        return await self._mirrored(reply)

    async def _mirrored(self, reply: Reply, refusal: bool = False) -> bytes:
        """The reply as it came, unless it makes no sense here: then it must not become a promise of ours."""
        if 300 <= reply.code < 400 or (refusal and reply.positive):
            await self.abort()
            raise DeliveryError(f"unexpected reply: {reply.raw[:200]!r}", UNEXPECTED)
        return reply.raw

    async def abort(self) -> None:
        if self._streams is not None:
            self._streams[1].transport.abort()
        await self._disconnect()

    async def close(self) -> None:
        if self._streams is not None and not self._streams[1].is_closing():
            self._streams[1].write(b"QUIT\r\n")
        await self._disconnect()

    async def _disconnect(self) -> None:
        if self._streams is not None:
            self._streams[1].close()
        self._streams = None

    async def _ask(self, line: bytes) -> Reply:
        verb = line.split(b" ", 1)[0].decode("ascii", "replace").upper()
        await self._send(line + b"\r\n", self._table.reply_timeout_s)
        return await self._reply(verb, self._table.reply_timeout_s)

    async def _send(self, data: bytes, seconds: float) -> None:
        if self._streams is None:
            raise DeliveryError("the connection is closed", LOST)
        try:
            self._streams[1].write(data)
            async with asyncio.timeout(seconds):
                await self._streams[1].drain()
        except (OSError, TimeoutError) as error:
            await self.abort()
            raise DeliveryError(f"sending: {str(error) or 'timeout'}", LOST) from error

    async def _reply(self, after: str, seconds: float) -> Reply:
        if self._streams is None:
            raise DeliveryError("the connection is closed", LOST)
        try:
            async with asyncio.timeout(seconds):
                return await _read_reply(self._streams[0])
        except (OSError, TimeoutError, EOFError) as error:
            await self.abort()
            raise DeliveryError(f"no reply to {after}: {str(error) or 'timeout'}", LOST) from error
        except (ValueError, asyncio.LimitOverrunError) as error:
            await self.abort()
            raise DeliveryError(f"reply to {after}: {error}", UNEXPECTED) from error


async def _read_reply(reader: asyncio.StreamReader) -> Reply:
    lines: list[bytes] = []
    while len(lines) < _LINES:
        line = (await reader.readuntil(b"\n")).rstrip(b"\r\n")
        if not _REPLY_LINE.fullmatch(line) or (lines and line[:3] != lines[0][:3]):
            raise ValueError(f"not a reply: {line[:80]!r}")
        lines.append(_CONTROLS.sub(b" ", line[:_LINE_BYTES]))
        if line[3:4] != b"-":
            return Reply(int(line[:3]), tuple(lines))
    raise ValueError(f"more than {_LINES} lines")
