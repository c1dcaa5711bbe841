"""The verbs of SMTP and LMTP: the envelope goes to the next hop as it came, and its replies come back as they are."""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Iterator, Mapping
from typing import TYPE_CHECKING

from spamguard.errors import DeliveryError

from . import content, envelope
from .delivery import OUR_FAULT, Delivery, storage_fault
from .envelope import Envelope
from .handover import TOO_BIG, Handover
from .smtp import REFUSED, Connection, Verb

if TYPE_CHECKING:
    from .listener import Listener

_XFORWARD_BYTES = 512
_XCLIENT = frozenset((b"NAME", b"ADDR", b"PORT", b"PROTO", b"HELO", b"LOGIN", b"DESTADDR", b"DESTPORT"))
_IDLE_COMMANDS = 100  # between two messages; as Postfix's smtpd_junk_command_limit
_EXCESS_RECIPIENTS = 1000  # of one transaction; as Postfix's smtpd_recipient_overshoot_limit
_PASSED_ON = (b"PIPELINING", b"8BITMIME", b"SMTPUTF8", b"DSN", b"ENHANCEDSTATUSCODES")
_NEXT_HOP_DOWN: Mapping[bytes, bytes] = dict.fromkeys((b"SIZE", *_PASSED_ON), b"")


class Session(Connection):
    def __init__(self, listener: Listener, delivery: Delivery) -> None:
        super().__init__(listener)
        self._delivery = delivery
        self._handover = Handover(
            "lmtp" if listener.lmtp else "smtp",
            listener.pipeline,
            delivery,
            listener.quarantine,
            listener.journal,
            one_reply=not listener.lmtp,
            reject_stray=listener.reject_stray,
        )
        self._open = Envelope()
        self._size_limit = listener.limits.message_bytes
        self._greeted = False
        self._idle_commands = 0
        self._excess = 0
        verbs: dict[bytes, Verb] = {
            b"XFORWARD": self._xforward,
            b"XCLIENT": self._xclient,
            b"PROXY": self._proxy,
            b"STARTTLS": self._starttls,
            b"MAIL": self._mail,
            b"RCPT": self._rcpt,
            b"DATA": self._data,
            b"RSET": self._rset,
            b"NOOP": self._noop,
            b"VRFY": self._vrfy,
            b"QUIT": self._quit,
            b"BDAT": self._bdat,
        }
        self._verbs = verbs | dict.fromkeys((b"LHLO",) if listener.lmtp else (b"EHLO", b"HELO"), self._ehlo)

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
        self._excess = 0
        self._open = Envelope(self._open.helo, self.peer, self._open.extended, lmtp=self.listener.lmtp)

    def greet_anew(self) -> None:
        self._greeted = False
        self._open = Envelope()

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
        if self.listener.is_own(*(self._writer.get_extra_info(name) for name in ("peername", "sockname"))):
            self.listener.journal.write("error", "loop", cause="the next hop is ourselves", peer=self.peer)
            self.leaving = True
            return await self.answer(b"554 5.4.6 This is a loop: your next server is yourself")
        if self._greeted:
            await self.forget()
        self._greeted = True
        self._open = Envelope(argument.strip(), self.peer, line[:4].upper() != b"HELO", lmtp=self.listener.lmtp)
        try:
            with self.untimed():
                await self._delivery.open()
            keywords = self._delivery.keywords
        except DeliveryError as error:
            # EHLO must never fail (Postfix, SMTPD_PROXY_README); MAIL will be answered 451. Who misses SMTPUTF8 here
            # would bounce the mail that needs it, in place of waiting.
            keywords = self._delivery.keywords or _NEXT_HOP_DOWN
            self.listener.journal.write("warning", "delivery", cause=str(error), peer=self.peer)
        offer = list(self._offer(keywords))
        lines = [self.listener.hostname.encode(), *(offer if self._open.extended else ())]
        return await self._idle(b"".join(b"250-%s\r\n" % text for text in lines[:-1]) + b"250 " + lines[-1])

    def _offer(self, keywords: Mapping[bytes, bytes]) -> Iterator[bytes]:
        """What the next hop and we can both do; mail that uses a keyword of ours alone would be refused there."""
        ours = self.listener.limits.message_bytes
        theirs = keywords.get(b"SIZE", b"")
        self._size_limit = min(ours, int(theirs)) if theirs.isdigit() and int(theirs) else ours
        if b"SIZE" in keywords:
            yield b"SIZE %d" % self._size_limit
        # LMTP must have these two (RFC 2033, 5), and our part in both does not need the next hop's.
        always = (b"PIPELINING", b"ENHANCEDSTATUSCODES") if self.listener.lmtp else ()
        yield from (keyword for keyword in _PASSED_ON if keyword in keywords or keyword in always)
        if b"XFORWARD" in keywords and self.listener.may_forward(self.peer):
            yield b"XFORWARD " + keywords[b"XFORWARD"]
        if self._may_rename:
            yield b"XCLIENT " + b" ".join(sorted(_XCLIENT))
        if self.listener.tls is not None and not self.encrypted:
            yield b"STARTTLS"

    async def _xforward(self, line: bytes, argument: bytes) -> None:
        if b"XFORWARD" not in self._delivery.keywords:
            return await self.answer(b"502 5.5.1 XFORWARD is not offered")
        if not self.listener.may_forward(self.peer):
            return await self.answer(b"550 5.7.0 Not authorized")
        if self._open.sender is not None:
            return await self.answer(b"503 5.5.1 A transaction is open")
        if not argument.strip() or len(line) > _XFORWARD_BYTES:
            return await self.answer(b"501 5.5.4 Bad XFORWARD")
        await self._mirror(self._delivery.xforward(line))
        return None

    async def _xclient(self, line: bytes, argument: bytes) -> None:
        """Another client is named; the session begins again (XCLIENT_README). We use its address alone."""
        if not self._may_rename:
            return await self.answer(b"550 5.7.0 Not authorized")
        if self._open.sender is not None:
            return await self.answer(b"503 5.5.1 A transaction is open")
        pairs = [pair.partition(b"=") for pair in argument.split()]
        if not pairs or not all(name.upper() in _XCLIENT and value for name, _, value in pairs):
            return await self.answer(b"501 5.5.4 Bad XCLIENT")
        addresses = [envelope.address_of(value) for name, _, value in pairs if name.upper() == b"ADDR"]
        if None in addresses or len(addresses) > 1:
            return await self.answer(b"501 5.5.4 Bad XCLIENT address")
        await self.forget()
        self.greet_anew()
        refusal = self.renamed(addresses[0]) if addresses and addresses[0] else None
        self.leaving |= refusal is not None
        return await self.say(refusal or self.greeting())

    async def _proxy(self, line: bytes, argument: bytes) -> None:
        self.leaving = True
        await self.answer(REFUSED)

    async def _starttls(self, line: bytes, argument: bytes) -> None:
        if self.listener.tls is None:
            return await self.answer(b"500 5.5.2 Command not recognized")
        if self.encrypted:
            return await self.answer(b"503 5.5.1 TLS is active already")
        if argument.strip():
            return await self.answer(b"501 5.5.4 Syntax: STARTTLS")
        await self.forget()
        await self.encrypt(self.listener.tls)
        return None

    async def _mail(self, line: bytes, argument: bytes) -> None:
        if self.listener.tls_required and not self.encrypted:
            return await self.answer(b"530 5.7.0 Must issue a STARTTLS command first")
        if not self._greeted:
            return await self.answer(b"503 5.5.1 Send %s first" % (b"LHLO" if self.listener.lmtp else b"EHLO"))
        if self._open.sender is not None:
            return await self.answer(b"503 5.5.1 A transaction is open")
        path = envelope.parse(b"FROM:", line)
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
        path = envelope.parse(b"TO:", line)
        if path is None or not path.address:
            return await self.answer(b"501 5.5.4 Syntax: RCPT TO:<address>")
        # Behind us recipients may fare differently after DATA, and SMTP has one reply for all: one at a time, then.
        only_one = self._delivery.per_recipient and not self.listener.lmtp
        if len(self._open.recipients) >= (1 if only_one else self.listener.limits.recipients):
            self._excess += 1
            code = b"452" if self._excess <= _EXCESS_RECIPIENTS else b"421"
            return await self.answer(code + b" 4.5.3 Too many recipients")
        if (await self._mirror(self._delivery.rcpt(line))).startswith(b"2"):
            self._open.recipients.append(path)
        return None

    async def _data(self, line: bytes, argument: bytes) -> None:
        if argument.strip():
            return await self.answer(b"501 5.5.4 Syntax: DATA")
        if self._open.sender is None:
            return await self.answer(b"503 5.5.1 Send MAIL first")
        if not self._open.recipients:
            return await self.answer(b"%s 5.5.1 No valid recipients" % (b"503" if self.listener.lmtp else b"554"))
        self.past_data = True
        try:
            await self.say(b"354 End data with <CR><LF>.<CR><LF>")
            replies = await self._message()
            await self.say(b"\r\n".join(replies) if self.listener.lmtp else replies[0])
            await self.forget()
            self._idle_commands = 0
        except Exception:
            self.leaving = True  # What of the message has not been read must not be read as commands.
            raise
        finally:
            self.past_data = False
        return None

    async def _message(self) -> list[bytes]:
        limits = self.listener.limits
        try:
            with self.receiving():
                message = await content.read(self._reader, self._size_limit, limits.memory_bytes, self.listener.spool)
        except content.TooBig:
            return self._handover.refuse(self._open, TOO_BIG, "too big")
        except (ConnectionError, EOFError):
            raise
        except OSError as error:
            return self._handover.refuse(self._open, storage_fault(error), f"spool: {error}")
        except Exception as error:
            return self._handover.refuse(self._open, OUR_FAULT, repr(error))
        try:
            with self.untimed():
                return await self._handover.message(self._open, message)
        finally:
            message.close()

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
