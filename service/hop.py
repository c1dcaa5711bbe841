"""One connection to the next hop: commands out, replies in, each with a limit in time; nothing is rewritten."""

from __future__ import annotations

import asyncio
import re
import ssl
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import cast

from spamguard.config import NextHopTable
from spamguard.errors import ConfigError, DeliveryError

from .deadline import Deadline

NOT_REACHED = b"451 4.4.1 Next server cannot be reached, try again later"
LOST = b"451 4.4.2 Connection to next server lost, try again later"
UNEXPECTED = b"451 4.3.0 Next server gave an unexpected reply, try again later"
NO_TLS = b"451 4.7.5 Next server does not offer the encryption demanded, try again later"

_REPLY_LINE = re.compile(rb"[2-5][0-9][0-9](?:[ -].*)?")
_CONTROLS = re.compile(rb"[\x00-\x1f\x7f]")
_LINE_BYTES = 2000  # Postfix cuts replies at 2048.
_LINES = 500
_BUFFER = 65_536


def read_less(transport: asyncio.BaseTransport) -> None:
    """Read 64 KiB at a time. asyncio asks for 256, which malloc gets from the kernel and gives back at each read."""
    if hasattr(transport, "max_size"):
        transport.max_size = _BUFFER


@dataclass(frozen=True, slots=True)
class Reply:
    code: int
    raw: bytes
    """All lines, without the last line end."""

    @property
    def positive(self) -> bool:
        return 200 <= self.code < 300


class Gone(DeliveryError):
    """The connection ended; another one may do better."""


class Hop(asyncio.Protocol):
    """Made by `connect`. Once anything has gone wrong it is `dead` for good, and each call raises DeliveryError."""

    def __init__(self, table: NextHopTable, ends: set[object]) -> None:
        self.keywords: Mapping[bytes, bytes] = {}
        self.dead: DeliveryError | None = None
        self.strain = 0
        """Refusals and RSETs since it took a message; servers hang up on those who bring nothing else."""
        self._open_ends = ends
        self._ends: object = None
        self._loop = asyncio.get_running_loop()
        self._table = table
        self._transport: asyncio.Transport | None = None
        self._deadline = Deadline(self._loop, self._timed_out)
        self._buffer = bytearray()
        self._lines: list[bytes] = []
        self._owed = 1  # Replies still to come to what has been sent; the greeting comes unasked.
        self._replies: deque[Reply] = deque()
        self._last_words: Reply | None = None
        self._waiting: asyncio.Future[None] | None = None
        self._full = False

    # What asyncio calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        read_less(transport)
        self._ends = (transport.get_extra_info("sockname"), transport.get_extra_info("peername"))
        if self._ends[0]:  # a Unix socket has none
            self._open_ends.add(self._ends)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        try:
            while (end := self._buffer.find(b"\n")) >= 0:
                line = bytes(self._buffer[: end + 1]).rstrip(b"\r\n")
                del self._buffer[: end + 1]
                self._line(line)
            if len(self._buffer) > _BUFFER:
                raise ValueError("a line without end")
        except ValueError as error:
            return self._end(DeliveryError(f"reply: {error}", UNEXPECTED))
        if self._replies:
            self._wake()
        return None

    def _line(self, line: bytes) -> None:
        lines = self._lines
        if not _REPLY_LINE.fullmatch(line) or (lines and line[:3] != lines[0][:3]):
            raise ValueError(f"not a reply: {line[:80]!r}")
        lines.append(_CONTROLS.sub(b" ", line[:_LINE_BYTES]))
        if line[3:4] == b"-":
            if len(lines) >= _LINES:
                raise ValueError(f"more than {_LINES} lines")
            return
        self._lines = []
        reply = Reply(int(line[:3]), b"\r\n".join(lines))
        self.strain += reply.code >= 400
        if self._owed:
            self._owed -= 1
            self._replies.append(reply)
        else:
            # Nobody asked: a goodbye, an early refusal of what is being sent, or worse. It answers no command.
            self._last_words = reply
            self._end(Gone(f"unasked: {reply.raw[:200]!r}", LOST))

    def connection_lost(self, error: Exception | None) -> None:
        self._open_ends.discard(self._ends)
        self._end(Gone(f"connection lost: {error or 'closed by the next hop'}", LOST))

    def pause_writing(self) -> None:
        self._full = True

    def resume_writing(self) -> None:
        self._full = False
        self._wake()

    def _timed_out(self) -> None:
        if self._waiting is not None:
            self._end(DeliveryError("timeout", LOST))

    def _end(self, why: DeliveryError) -> None:
        if self.dead is None:
            self.dead = why
            self._deadline.cancel()
            if self._transport is not None:
                self._transport.abort()
        self._wake()

    def _wake(self) -> None:
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)

    async def _wait(self, seconds: float) -> None:
        self._waiting = self._loop.create_future()
        self._deadline.set(self._loop.time() + seconds)
        try:
            await self._waiting
        finally:
            self._waiting = None
            self._deadline.clear()

    # What the relay calls

    async def ask(self, line: bytes) -> Reply:
        """Send a command and return its reply."""
        self.send(line)
        return await self.reply(line.split(b" ", 1)[0].decode("ascii", "replace"), self._table.reply_timeout_s)

    def send(self, line: bytes) -> None:
        if self.dead is None and self._transport is not None:
            self._owed += 1
            self._transport.write(line + b"\r\n")

    async def send_content(self, wire: Iterable[bytes], replies: int) -> None:
        """Send what follows 354, as fast as it is taken. `replies` are owed once the final dot is on its way."""
        held: bytes | None = None
        for piece in wire:
            if held is not None:
                await self._write(held)
            held = piece
        self._owed += replies
        await self._write(held or b"")

    async def _write(self, data: bytes) -> None:
        if self.dead is None and self._transport is not None:
            self._transport.write(data)
        while self._full and self.dead is None:
            await self._wait(self._table.data_timeout_s)
        if self.dead is not None and not self._replies:
            raise self._lost("sending")

    async def reply(self, to: str, seconds: float) -> Reply:
        """The next reply. Raises DeliveryError."""
        while not self._replies:
            if self.dead is not None:
                raise self._lost(to)
            await self._wait(seconds)
        return self._replies.popleft()

    async def end_of_data(self) -> Reply:
        """The reply to the final dot. If it does not come, nobody can know whether the message was taken."""
        return await self.reply("no reply to the final dot, it may come twice", self._table.data_timeout_s)

    def _lost(self, to: str) -> DeliveryError:
        assert self.dead is not None
        owed = self.dead.reply
        if to == "sending" and self._last_words is not None and self._last_words.code >= 400:
            owed = self._last_words.raw  # it refused the content before it had seen all
        return type(self.dead)(f"{to}: {self.dead}", owed)

    @property
    def idle(self) -> bool:
        """Alive, and nothing is owed: fit for another transaction."""
        return self.dead is None and not self._owed and not self._replies and not self._buffer and not self._lines

    def abort(self) -> None:
        self._end(Gone("broken off", LOST))

    def quit(self) -> None:
        """Say goodbye without waiting for the answer."""
        if self.dead is None and self._transport is not None:
            self.dead = Gone("quit", LOST)
            self._deadline.cancel()
            self._transport.write(b"QUIT\r\n")
            self._transport.close()

    async def encrypt(self, context: ssl.SSLContext, name: str) -> None:
        """STARTTLS (RFC 3207). What came behind the 220 was not protected, so nothing of it may be believed."""
        reply = await self.ask(b"STARTTLS")
        if reply.code != 220:
            if self._table.tls == "may":
                return
            raise DeliveryError(f"STARTTLS: {reply.raw!r}", NO_TLS)
        if not self.idle or self._transport is None:
            raise DeliveryError("plaintext behind the reply to STARTTLS", NO_TLS)
        try:
            transport = await self._loop.start_tls(
                self._transport,
                self,
                context,
                server_hostname=name or None,
                ssl_handshake_timeout=self._table.connect_timeout_s,
            )
        except (OSError, ssl.SSLError, TimeoutError) as error:
            raise DeliveryError(f"TLS: {error}", NO_TLS) from error
        if transport is None:
            raise DeliveryError("TLS: the connection was closed", NO_TLS)
        self._transport = transport


async def connect(table: NextHopTable, hostname: bytes, tls: ssl.SSLContext | None, ends: set[object]) -> Hop:
    """Connect, greet, and encrypt if asked to; while open, its near and far end are in `ends`.

    Raises DeliveryError, whose reply is 4xx.
    """
    hop: Hop | None = None
    try:
        async with asyncio.timeout(table.connect_timeout_s + table.reply_timeout_s):
            hop = await _opened(table, ends)
            await _greet(hop, table, hostname, tls)
    except BaseException as error:
        if hop is not None:
            hop.abort()
        if isinstance(error, TimeoutError):
            raise DeliveryError("greeting: timeout", NOT_REACHED) from error
        if isinstance(error, DeliveryError):
            raise DeliveryError(str(error), NO_TLS if error.reply == NO_TLS else NOT_REACHED) from error
        raise
    return hop


async def _greet(hop: Hop, table: NextHopTable, hostname: bytes, tls: ssl.SSLContext | None) -> None:
    greeting = await hop.reply("greeting", table.reply_timeout_s)
    if greeting.code != 220:
        raise DeliveryError(f"greeting: {greeting.raw!r}", NOT_REACHED)
    hop.keywords = await _hello(hop, table, hostname)
    if tls is not None and (b"STARTTLS" in hop.keywords or table.tls != "may"):
        if b"STARTTLS" not in hop.keywords:
            raise DeliveryError("STARTTLS is not offered", NO_TLS)
        await hop.encrypt(tls, table.tls_name or table.host)
        hop.keywords = await _hello(hop, table, hostname)


async def _opened(table: NextHopTable, ends: set[object]) -> Hop:
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(table.connect_timeout_s):
            if table.socket is not None:
                _, hop = await loop.create_unix_connection(lambda: Hop(table, ends), str(table.socket))
            else:
                # asyncio sets TCP_NODELAY, without which a small last packet waits 40 ms for an acknowledgement.
                _, hop = await loop.create_connection(lambda: Hop(table, ends), table.host, table.port)
    except (OSError, TimeoutError) as error:
        raise DeliveryError(f"connect: {str(error) or 'timeout'}", NOT_REACHED) from error
    return hop


async def _hello(hop: Hop, table: NextHopTable, hostname: bytes) -> Mapping[bytes, bytes]:
    greetings = (b"LHLO ",) if table.protocol == "lmtp" else (b"EHLO ", b"HELO ")
    for greeting in greetings:
        reply = await hop.ask(greeting + hostname)
        if reply.code == 250:
            break
        if reply.code < 500:  # It may do later what it cannot now; what it can do is not to be guessed from HELO.
            raise DeliveryError(f"{greeting.decode()}: {reply.raw!r}", NOT_REACHED)
    else:
        raise DeliveryError(f"{greeting.decode()}: {reply.raw!r}", NOT_REACHED)
    if greeting == b"HELO ":
        return {}
    words = (line[4:].strip().partition(b" ") for line in reply.raw.split(b"\r\n")[1:])
    return {keyword.upper(): parameters for keyword, _, parameters in words}


def tls_context(table: NextHopTable) -> ssl.SSLContext | None:
    """The client side of STARTTLS as configured; None: plain. Raises ConfigError."""
    if table.tls == "off":
        return None
    try:
        context = ssl.create_default_context(cafile=str(table.tls_ca) if table.tls_ca else None)
    except OSError as error:
        raise ConfigError(f"next_hop.tls_ca: {table.tls_ca}: {error.strerror or error}") from error
    if table.tls != "verify":
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context
