"""A connection on aiosmtpd's protocol class, with a command loop of our own on bytes, which rewrites nothing.

From aiosmtpd come the connection, its reader and writer, its timer and the task of each session. Its verbs are not
used: they rewrite paths, upper-case parameters, refuse those they do not know, and bounce long lines for good.
"""

from __future__ import annotations

import asyncio
import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine, Iterator
from typing import TYPE_CHECKING, Any

from aiosmtpd.smtp import SMTP

from . import envelope
from .handover import OUR_FAULT

if TYPE_CHECKING:
    from .listener import Listener

TIMED_OUT = b"421 4.4.2 Timeout, closing connection"
STOPPING = b"421 4.3.2 Shutting down, try again later"

_COMMAND_BYTES = 4096  # SMTPUTF8 paths and ORCPT need more than the 512 of RFC 5321.
_ERRORS = 20

Verb = Callable[[bytes, bytes], Coroutine[Any, Any, None]]


class Connection(SMTP, ABC):
    """One client, up to the command line; what the verbs do is the session's."""

    line_length_limit = 131_072  # The reader's limit: what is read at once, no longer what a line may have.

    def __init__(self, listener: Listener) -> None:
        loop = asyncio.get_running_loop()
        super().__init__(None, hostname=listener.hostname, timeout=listener.limits.idle_s, loop=loop)
        self.listener = listener
        self.peer = ""
        self.past_data = False  # From 354 on, the message is finished even when we are stopping.
        self.receiving = False
        self.leaving = False
        self._dismissed = False
        self._errors = 0
        self._verbs: dict[bytes, Verb] = {}

    @abstractmethod
    async def finish(self, orderly: bool) -> None:
        """Called once, when the client has gone."""

    @abstractmethod
    async def forget(self) -> None:
        """Drop the open transaction, here and at the next hop."""

    def break_off(self) -> None:
        """Called when the time of a shutdown is up."""

    def task(self) -> asyncio.Task[None]:
        # No property: aiosmtpd's constructor looks at all of them, before there is a task.
        assert self._handler_coroutine is not None
        return self._handler_coroutine

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.listener.connections.add(self)
        self.task().add_done_callback(self._gone)

    def _gone(self, _task: asyncio.Task[None]) -> None:
        self.listener.connections.discard(self)
        self._writer.close()

    def data_received(self, data: bytes) -> None:
        if self.receiving:
            self._reset_timeout()
        super().data_received(data)

    def dismiss(self) -> None:
        """Shutdown: say goodbye, at once or after the message that is under way."""
        self.leaving = self._dismissed = True
        if not self.past_data:
            self._writer.write(STOPPING + b"\r\n")
            self._writer.close()

    def force(self) -> None:
        """Shutdown: the time is up. The client has no 250, so it keeps its mail."""
        self.break_off()
        self._writer.write(STOPPING + b"\r\n")
        self.task().cancel()

    def _reset_timeout(self, duration: float | None = None) -> None:
        if not self._connection_lost:  # type: ignore[attr-defined]
            super()._reset_timeout(duration)

    def _timeout_cb(self) -> None:
        transport = self._writer.transport
        if transport.get_write_buffer_size():
            transport.abort()  # A client that never reads would keep a polite close waiting for ever.
        else:
            self._writer.write(TIMED_OUT + b"\r\n")
            transport.close()

    @contextlib.contextmanager
    def untimed(self) -> Iterator[None]:
        """The client is not to blame for the time that we take; each of our steps has its own limit."""
        if self._timeout_handle is not None:
            self._timeout_handle.cancel()
        try:
            yield
        finally:
            self._reset_timeout()

    async def _handle_client(self) -> None:
        orderly = False
        try:
            self.peer = str((self._writer.get_extra_info("peername") or ("",))[0])
            refusal = self.listener.refusal(self)
            await self.say(refusal or b"220 %s ESMTP spamguard" % self.listener.hostname.encode())
            while not (refusal or self.leaving):
                await self._obey(await self._command())
            if self._dismissed:
                await self.say(STOPPING)
            orderly = True
        except (ConnectionError, EOFError):
            pass
        finally:
            await self.finish(orderly)

    async def _command(self) -> bytes | None:
        """The next line without its end; None if it was overlong. Such a line is drained, whatever its length."""
        self._reset_timeout()
        overlong = False
        while True:
            try:
                line: bytes = await self._reader.readuntil(b"\n")
            except asyncio.LimitOverrunError as error:
                await self._reader.readexactly(error.consumed)
                overlong = True
            else:
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
        except (ConnectionError, EOFError):
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
            if self._errors > _ERRORS:
                reply = b"421 4.7.0 Too many errors"
        await self.say(reply)

    async def say(self, reply: bytes) -> None:
        self.leaving |= reply.startswith(b"421")
        self._reset_timeout()
        await self.push(reply)
