"""A connection on aiosmtpd's protocol class, with a command loop of our own on bytes, which rewrites nothing.

From aiosmtpd come the connection, its reader and writer, the task of each session and the PROXY protocol. Its verbs
are not used: they rewrite paths, upper-case parameters, refuse those unknown to them, and bounce long lines for good.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine, Iterator
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import TYPE_CHECKING, Any, cast

from aiosmtpd.proxy_protocol import get_proxy
from aiosmtpd.smtp import SMTP

from . import envelope
from .deadline import Deadline
from .delivery import OUR_FAULT
from .hop import read_less

if TYPE_CHECKING:
    from .listener import Listener

TIMED_OUT = b"421 4.4.2 Timeout, closing connection"
STOPPING = b"421 4.3.2 Shutting down, try again later"
REFUSED = b"550 5.7.1 Not from here"

_COMMAND_BYTES = 4096  # SMTPUTF8 paths and ORCPT need more than the 512 of RFC 5321.
_HANDSHAKE_S = 10.0  # for a PROXY header or TLS

Verb = Callable[[bytes, bytes], Coroutine[Any, Any, None]]


@lru_cache(1024)
def plain(peer: str) -> str:
    """An address without its zone, and IPv4 as IPv4. Raises ValueError."""
    address = ip_address(peer.partition("%")[0])
    if isinstance(address, IPv6Address) and address.ipv4_mapped:
        address = address.ipv4_mapped
    return str(address)


class Untimed:
    """While it is entered, no deadline of the connection passes."""

    __slots__ = ("_connection",)

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def __enter__(self) -> None:
        self._connection.stop_clock()

    def __exit__(self, *_: object) -> None:
        self._connection.touch()


class Connection(SMTP, ABC):
    """One client, up to the command line; what the verbs do is the session's."""

    line_length_limit = 131_072  # The reader's limit: what is read at once, no longer what a line may have.

    def __init__(self, listener: Listener) -> None:
        loop = asyncio.get_running_loop()
        super().__init__(self, hostname=listener.hostname, loop=loop)
        self.listener = listener
        self.peer = ""
        self.past_data = False  # From 354 on, the message is finished even when we are stopping.
        self.leaving = False
        self.encrypted = False
        self._may_rename = False
        self._dismissed = False
        self._errors = 0
        self._verbs: dict[bytes, Verb] = {}
        self._loop_time = loop.time
        self._session_due = loop.time() + listener.limits.session_s
        self._data_due: float | None = None
        self._deadline = Deadline(loop, self._timed_out)
        self._timeout_handle = self._deadline  # type: ignore[assignment]  # cancelled when the connection is lost

    def __dir__(self) -> list[str]:
        """aiosmtpd looks here for its own verbs and hooks, for each connection anew; there are none to be found."""
        return []

    @abstractmethod
    async def finish(self, orderly: bool) -> None:
        """Called once, when the client has gone."""

    @abstractmethod
    async def forget(self) -> None:
        """Drop the open transaction, here and at the next hop."""

    @abstractmethod
    def greet_anew(self) -> None:
        """Forget all that the client has said so far (RFC 3207, 4.2; XCLIENT_README)."""

    def break_off(self) -> None:
        """Called when the time of a shutdown is up."""

    def task(self) -> asyncio.Task[None]:
        assert self._handler_coroutine is not None
        return self._handler_coroutine

    # What asyncio calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        read_less(transport)
        self.listener.connections.add(self)
        self.task().add_done_callback(self._gone)

    def connection_lost(self, error: Exception | None) -> None:
        if error is not None and not isinstance(error, ConnectionError):
            error = ConnectionResetError(str(error))  # no route, timed out: the client has gone, whatever the cause
        super().connection_lost(error)
        self._vacate()

    def _gone(self, _task: asyncio.Task[None]) -> None:
        self._hang_up()
        self._vacate()

    def _hang_up(self) -> None:
        """Close once all is sent; but whoever does not read it may not keep a socket for ever with that."""
        self._writer.close()
        if self.transport is not None:
            self._deadline.set(self._loop_time() + self.listener.limits.idle_s)

    def _vacate(self) -> None:
        """The place is free when the socket is closed and the task has ended, whichever comes last."""
        if self.transport is None and self.task().done():
            self._deadline.cancel()
            self.listener.left(self)

    def data_received(self, data: bytes) -> None:
        if self._data_due is not None:
            self.touch()
        super().data_received(data)

    def eof_received(self) -> bool | None:
        """A client that has said all, QUIT included, may close its side and wait for our replies, as Exim does."""
        if self._reader._buffer[-6:].upper() == b"QUIT\r\n" and not self.encrypted:  # type: ignore[attr-defined]
            self._reader.feed_eof()
            return True
        return super().eof_received()

    # Time

    def _reset_timeout(self, duration: float | None = None) -> None:
        """aiosmtpd's timer is not used."""

    def touch(self) -> None:
        """The client has done something, or may do something now."""
        due = self._loop_time() + self.listener.limits.idle_s
        if self._data_due is not None:
            due = min(due, self._data_due)
        elif self._session_due < due:
            due = self._session_due
        self._deadline.set(due)

    def stop_clock(self) -> None:
        self._deadline.clear()

    def _timed_out(self) -> None:
        transport = self._writer.transport
        if transport.is_closing() or transport.get_write_buffer_size():
            transport.abort()  # A client that never reads would keep a polite close waiting for ever.
        else:
            self._writer.write(TIMED_OUT + b"\r\n")
            self._hang_up()

    def untimed(self) -> Untimed:
        """The client is not to blame for the time that we take; each of our steps has its own limit."""
        return Untimed(self)

    @contextlib.contextmanager
    def receiving(self) -> Iterator[None]:
        """While content comes in, each byte counts as a sign of life, but all of it has to come in time."""
        self._data_due = self._loop_time() + self.listener.limits.data_s
        self.touch()
        try:
            yield
        finally:
            self._data_due = None

    # The end

    def dismiss(self) -> None:
        """Shutdown: say goodbye, at once or after the message that is under way."""
        self.leaving = self._dismissed = True
        if not self.past_data:
            self._writer.write(STOPPING + b"\r\n")
            self._hang_up()

    def force(self) -> None:
        """Shutdown: the time is up. The client has no 250, so it keeps its mail."""
        self.break_off()
        self._writer.write(STOPPING + b"\r\n")
        self.task().cancel()

    # The session

    async def _handle_client(self) -> None:
        orderly = False
        try:
            self.touch()
            address = self._writer.get_extra_info("peername")
            self.peer = plain(address[0]) if isinstance(address, tuple) else ""
            if self.listener.is_balancer(self.peer):
                refusal = self.listener.full() or await self._behind_balancer()
            else:
                refusal = self.listener.full() or self.listener.refusal(self)
            self._may_rename = self.listener.may_rename(self.peer)
            await self.say(refusal or self.greeting())
            while not (refusal or self.leaving):
                await self._obey(await self._command())
            if self._dismissed:
                await self.say(STOPPING)
            orderly = True
        except (ConnectionError, EOFError, ssl.SSLError):
            pass
        finally:
            await self.finish(orderly)

    def greeting(self) -> bytes:
        protocol = b"LMTP" if self.listener.lmtp else b"ESMTP"
        return b"220 %s %s spamguard" % (self.listener.hostname.encode(), protocol)

    async def _behind_balancer(self) -> bytes | None:
        """Read the PROXY protocol header (v1 or v2) that says who the client is."""
        self._deadline.set(self._loop_time() + min(_HANDSHAKE_S, self.listener.limits.idle_s))
        header = await get_proxy(self._reader)  # Every fault of the header is in `valid`.
        self.touch()
        if not header.valid:
            self.listener.journal.write("warning", "refused", peer=self.peer, cause="no valid PROXY header")
            return REFUSED
        # LOCAL is the balancer itself, to see if we live. UNKNOWN, UNSPEC and Unix sockets name nobody.
        if isinstance(header.src_addr, IPv4Address | IPv6Address) and header.command != 0:
            return self.renamed(str(header.src_addr))
        return self.listener.refusal(self)

    def renamed(self, peer: str) -> bytes | None:
        """The client is another than the one that connected. Return the refusal, if this one may not come in."""
        self.peer = plain(peer)
        return self.listener.refusal(self)

    async def encrypt(self, context: ssl.SSLContext) -> None:
        """Start TLS. What came behind the command in plain is dropped: anyone may have put it there (RFC 3207, 5)."""
        transport = cast(asyncio.Transport, self._writer.transport)
        transport.pause_reading()
        self._reader._buffer.clear()  # type: ignore[attr-defined]
        self._reader._paused = False  # type: ignore[attr-defined]
        await self.say(b"220 2.0.0 Ready to start TLS")
        self._deadline.clear()
        self.transport = None  # While hands are shaken, asyncio tells nobody of a connection lost.
        secured = await self.loop.start_tls(
            transport, self, context, server_side=True, ssl_handshake_timeout=_HANDSHAKE_S
        )
        if secured is None:
            raise ConnectionResetError
        self._original_transport = transport
        self._reader._transport = secured  # type: ignore[attr-defined]
        self._writer._transport = secured  # type: ignore[attr-defined]
        self.transport = secured
        assert self.session is not None
        self.session.ssl = secured.get_extra_info("ssl_object")
        self.encrypted = True
        self.greet_anew()
        self.touch()

    async def _command(self) -> bytes | None:
        """The next line without its end; None if it was overlong. Such a line is drained, whatever its length."""
        overlong = False
        while True:
            try:
                line: bytes = await self._reader.readuntil(b"\n")
            except asyncio.LimitOverrunError as error:
                await self._reader.readexactly(error.consumed)
                overlong = True
            else:
                self.touch()
                if not line.endswith(b"\r\n") and self.listener.reject_stray:
                    return b"\n"  # a control byte, so it is refused
                line = line[:-2] if line.endswith(b"\r\n") else line[:-1]
                return None if overlong or len(line) > _COMMAND_BYTES else line

    async def _obey(self, line: bytes | None) -> None:
        if line is None:
            return await self.answer(b"500 5.5.2 Line too long")
        if envelope.has_controls(line):
            return await self.answer(b"501 5.5.2 Control characters in command")
        name, _, argument = line.partition(b" ")
        verb = self._verbs.get(name.upper())
        if verb is None:
            return await self.answer(b"500 5.5.2 Command not recognized")
        try:
            return await verb(line, argument)
        except (ConnectionError, EOFError, ssl.SSLError):
            raise
        except Exception as error:
            # The text of an unforeseen error is for the log only; it may name files and addresses.
            self.listener.journal.write("error", "fault", verb=name, error=repr(error), peer=self.peer)
            await self.forget()
            return await self.answer(OUR_FAULT)

    async def answer(self, reply: bytes) -> None:
        """Reply to a command; a client that earns too many errors is shown the door."""
        if reply.startswith(b"5"):
            self._errors += 1
            if self._errors > self.listener.limits.errors:
                reply = b"421 4.7.0 Too many errors"
        await self.say(reply)

    async def say(self, reply: bytes) -> None:
        self.leaving |= reply.startswith(b"421")
        self._writer.write(reply + b"\r\n")
        await self._writer.drain()
