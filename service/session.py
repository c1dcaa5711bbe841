"""The SMTP verbs: the envelope goes to the next hop as it came, and its replies come back as they are."""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Iterator, Mapping
from typing import TYPE_CHECKING

from spamguard.errors import DeliveryError

from . import content, envelope
from .delivery import Delivery
from .envelope import Envelope
from .handover import TOO_BIG, Handover
from .smtp import Connection

if TYPE_CHECKING:
    from .listener import Listener

_XFORWARD_BYTES = 512
_IDLE_COMMANDS = 100  # between two messages; as Postfix's smtpd_junk_command_limit
_PASSED_ON = (b"PIPELINING", b"8BITMIME", b"SMTPUTF8", b"DSN", b"ENHANCEDSTATUSCODES")
_NEXT_HOP_DOWN: Mapping[bytes, bytes] = dict.fromkeys(
    (b"SIZE", b"PIPELINING", b"8BITMIME", b"ENHANCEDSTATUSCODES"), b""
)


class Session(Connection):
    def __init__(self, listener: Listener, delivery: Delivery) -> None:
        super().__init__(listener)
        self._delivery = delivery
        self._handover = Handover("smtp", listener.pipeline, delivery, listener.journal)
        self._open = Envelope()
        self._size_limit = listener.limits.message_bytes
        self._greeted = False
        self._idle_commands = 0
        self._verbs = {
            b"EHLO": self._ehlo,
            b"HELO": self._ehlo,
            b"XFORWARD": self._xforward,
            b"MAIL": self._mail,
            b"RCPT": self._rcpt,
            b"DATA": self._data,
            b"RSET": self._rset,
            b"NOOP": self._noop,
            b"VRFY": self._vrfy,
            b"QUIT": self._quit,
            b"BDAT": self._bdat,
        }

    async def finish(self, orderly: bool) -> None:
        await (self._delivery.close() if orderly else self._delivery.abort())

    def break_off(self) -> None:
        self._handover.break_off()

    async def forget(self) -> None:
        self._start_over()
        # If the next hop is gone, it has dropped the transaction already.
        with self.untimed(), contextlib.suppress(DeliveryError):
            await self._delivery.reset()

    def _start_over(self) -> None:
        self._open = Envelope(self._open.helo, self.peer, self._open.extended)

    async def _mirror(self, step: Awaitable[bytes]) -> bytes:
        """Answer what the way out answers, or the reply that its failure owes; return it."""
        try:
            with self.untimed():
                reply = await step
        except DeliveryError as error:
            self.listener.journal.write("warning", "delivery", cause=str(error), peer=self.peer)
            reply = error.reply
        await self.say(reply)
        return reply

    async def _ehlo(self, line: bytes, argument: bytes) -> None:
        if not argument.strip():
            return await self.answer(b"501 5.5.4 A host name is missing")
        if self._greeted:
            await self.forget()
        self._greeted = True
        self._open = Envelope(argument.strip(), self.peer, line[:4].upper() == b"EHLO")
        keywords = _NEXT_HOP_DOWN
        try:
            with self.untimed():
                await self._delivery.open()
            keywords = self._delivery.keywords
        except DeliveryError as error:
            # EHLO must never fail (Postfix, SMTPD_PROXY_README); MAIL will be answered 451.
            self.listener.journal.write("warning", "delivery", cause=str(error), peer=self.peer)
        offer = list(self._offer(keywords))
        lines = [self.listener.hostname.encode(), *(offer if self._open.extended else ())]
        return await self.say(b"".join(b"250-%s\r\n" % text for text in lines[:-1]) + b"250 " + lines[-1])

    def _offer(self, keywords: Mapping[bytes, bytes]) -> Iterator[bytes]:
        """What the next hop and we can both do; mail that uses a keyword of ours alone would be refused there."""
        ours = self.listener.limits.message_bytes
        theirs = keywords.get(b"SIZE", b"")
        self._size_limit = min(ours, int(theirs)) if theirs.isdigit() and int(theirs) else ours
        if b"SIZE" in keywords:
            yield b"SIZE %d" % self._size_limit
        yield from (keyword for keyword in _PASSED_ON if keyword in keywords)
        if b"XFORWARD" in keywords:
            yield b"XFORWARD " + keywords[b"XFORWARD"]

    async def _xforward(self, line: bytes, argument: bytes) -> None:
        if b"XFORWARD" not in self._delivery.keywords:
            return await self.answer(b"502 5.5.1 XFORWARD is not offered")
        if self._open.sender is not None:
            return await self.answer(b"503 5.5.1 A transaction is open")
        if not argument.strip() or len(line) > _XFORWARD_BYTES:
            return await self.answer(b"501 5.5.4 Bad XFORWARD")
        await self._mirror(self._delivery.xforward(line))
        return None

    async def _mail(self, line: bytes, argument: bytes) -> None:
        if not self._greeted:
            return await self.answer(b"503 5.5.1 Send EHLO first")
        if self._open.sender is not None:
            return await self.answer(b"503 5.5.1 A transaction is open")
        path = envelope.parse(b"FROM:", argument)
        if path is None:
            return await self.answer(b"501 5.5.4 Syntax: MAIL FROM:<address>")
        if path.size > self._size_limit:
            return await self.answer(TOO_BIG)
        if (await self._mirror(self._delivery.mail(line))).startswith(b"2"):
            self._open.sender = path
        return None

    async def _rcpt(self, line: bytes, argument: bytes) -> None:
        if self._open.sender is None:
            return await self.answer(b"503 5.5.1 Send MAIL first")
        path = envelope.parse(b"TO:", argument)
        if path is None or not path.address:
            return await self.answer(b"501 5.5.4 Syntax: RCPT TO:<address>")
        if len(self._open.recipients) >= self.listener.limits.recipients:
            return await self.answer(b"452 4.5.3 Too many recipients")
        if (await self._mirror(self._delivery.rcpt(line))).startswith(b"2"):
            self._open.recipients.append(path)
        return None

    async def _data(self, line: bytes, argument: bytes) -> None:
        if argument.strip():
            return await self.answer(b"501 5.5.4 Syntax: DATA")
        if self._open.sender is None:
            return await self.answer(b"503 5.5.1 Send MAIL first")
        if not self._open.recipients:
            return await self.answer(b"554 5.5.1 No valid recipients")
        self.past_data = self.receiving = True
        try:
            await self.say(b"354 End data with <CR><LF>.<CR><LF>")
            raw = await content.read(self._reader, self._size_limit)
            self.receiving = False
            with self.untimed():
                reply = await self._handover.message(self._open, raw)
            if reply.startswith(b"2"):
                self._start_over()
            else:
                await self.forget()
            self._idle_commands = 0
            await self.say(reply)
        finally:
            self.past_data = self.receiving = False
        return None

    async def _rset(self, line: bytes, argument: bytes) -> None:
        await self.forget()
        await self._idle(b"250 2.0.0 Ok")

    async def _noop(self, line: bytes, argument: bytes) -> None:
        await self._idle(b"250 2.0.0 Ok")

    async def _vrfy(self, line: bytes, argument: bytes) -> None:
        await self._idle(b"252 2.0.0 Cannot verify, but will take the message")

    async def _quit(self, line: bytes, argument: bytes) -> None:
        self.leaving = True
        await self.say(b"221 2.0.0 Bye")

    async def _bdat(self, line: bytes, argument: bytes) -> None:
        # A refused chunk is sent all the same; nobody may have its bytes read as commands.
        self.leaving = True
        await self.answer(b"502 5.5.1 BDAT is not offered")

    async def _idle(self, reply: bytes) -> None:
        self._idle_commands += 1
        await self.answer(b"421 4.7.0 Too many commands" if self._idle_commands > _IDLE_COMMANDS else reply)
