"""The next hop: a pool of connections, and for each client session a way out that mirrors its replies."""

from __future__ import annotations

import asyncio
import ssl
from collections import deque
from collections.abc import Mapping

from spamguard.config import NextHopTable
from spamguard.errors import DeliveryError

from . import content
from .content import Content
from .envelope import Envelope
from .hop import LOST, UNEXPECTED, Gone, Hop, Reply, connect

_STRAIN = 5  # Postfix slows down at 10 errors without a message in between (smtpd_soft_error_limit).


class NextHop:
    """The connections to the next hop that are open and idle, newest last."""

    def __init__(self, table: NextHopTable, hostname: str, tls: ssl.SSLContext | None = None) -> None:
        self.per_recipient = table.protocol == "lmtp"
        self.ends: set[object] = set()
        """Near and far address of each open connection: a client with the same two is ourselves."""
        self._table = table
        self._hostname = hostname.encode("ascii", "replace")
        self._tls = tls
        self.keywords: Mapping[bytes, bytes] = {}
        """What the next hop could do when it was asked last."""
        self._idle: deque[tuple[Hop, float]] = deque()
        self._sweeper: asyncio.TimerHandle | None = None

    async def connect(self) -> Hop:
        """A new connection. Raises DeliveryError."""
        hop = await connect(self._table, self._hostname, self._tls, self.ends)
        self.keywords = hop.keywords
        return hop

    def idle(self) -> Hop | None:
        """The youngest idle connection that is alive; it stays where it is."""
        while self._idle:
            hop = self._idle[-1][0]
            if hop.idle:
                return hop
            self._idle.pop()
            hop.quit()
        return None

    def take(self) -> Hop | None:
        hop = self.idle()
        if hop is not None:
            self._idle.pop()
        return hop

    def keep(self, hop: Hop) -> bool:
        """Take a connection that is between two transactions back; False if there is no room for it."""
        if not hop.idle or hop.strain > _STRAIN or len(self._idle) >= self._table.idle_connections:
            return False
        loop = asyncio.get_running_loop()
        self._idle.append((hop, loop.time() + self._table.idle_s))
        if self._sweeper is None:
            self._sweeper = loop.call_later(self._table.idle_s, self._sweep)
        return True

    def _sweep(self) -> None:
        self._sweeper = None
        loop = asyncio.get_running_loop()
        while self._idle and (self._idle[0][1] <= loop.time() or self._idle[0][0].dead):
            self._idle.popleft()[0].quit()
        if self._idle:
            self._sweeper = loop.call_at(self._idle[0][1], self._sweep)

    def close(self) -> None:
        if self._sweeper is not None:
            self._sweeper.cancel()
        while self._idle:
            self._idle.pop()[0].quit()


class Relay:
    """One client session's way to the next hop. A connection is taken for each transaction and put back after it.

    The commands of the open transaction are remembered, so that they can be said again where a connection turns out
    dead before DATA, or where the recipients part ways.
    """

    def __init__(self, next_hop: NextHop) -> None:
        self.keywords = next_hop.keywords
        self.per_recipient = next_hop.per_recipient
        self._next_hop = next_hop
        self._hop: Hop | None = None
        self._begun = False  # Something has been said on the connection since it was taken.
        self._forward: list[bytes] = []  # the XFORWARD lines
        self._mail: list[bytes] = []
        self._rcpts: list[bytes] = []

    async def open(self) -> None:
        """Learn what the next hop can do. Who has no transaction open holds no connection to it."""
        hop = self._next_hop.idle()
        if hop is None:
            hop = await self._next_hop.connect()
            if not self._next_hop.keep(hop):
                hop.quit()
        self.keywords = hop.keywords

    async def xforward(self, line: bytes) -> bytes:
        return await self._said(line, self._forward)

    async def mail(self, line: bytes) -> bytes:
        return await self._said(line, self._mail)

    async def rcpt(self, line: bytes) -> bytes:
        return await self._said(line, self._rcpts)

    async def _said(self, line: bytes, said: list[bytes]) -> bytes:
        """The reply as it came, unless it makes no sense here: then it must not become a promise of ours."""
        reply = await self._say(line)
        if 300 <= reply.code < 400:
            self._drop()
            raise DeliveryError(f"unexpected reply: {reply.raw[:200]!r}", UNEXPECTED)
        if reply.positive:
            said.append(line)
        return reply.raw

    async def _say(self, line: bytes) -> Reply:
        """A command before the content. A connection that proves dead is replaced by a new one, once."""
        kept = fresh = False
        if self._hop is None and not (self._forward or self._mail):
            self._hop = self._next_hop.take()
            kept = self._hop is not None
        if self._hop is None:
            self._hop = await self._anew(self._rcpts)
            fresh = True
        self._begun = True
        try:
            reply = await self._hop.ask(line)
            # A server that has had enough of an idle connection says 421 to whatever comes next.
            if reply.code != 421 or not kept:
                return reply
        except Gone:
            if fresh:
                raise
        self._hop = await self._anew(self._rcpts)
        return await self._hop.ask(line)

    async def _anew(self, rcpts: list[bytes]) -> Hop:
        """A new connection, brought to where the transaction stands. Raises DeliveryError if it is refused there."""
        self._drop()
        self._hop = hop = await self._next_hop.connect()
        await self._repeat(hop, rcpts)
        return hop

    async def _repeat(self, hop: Hop, rcpts: list[bytes]) -> None:
        for line in (*self._forward, *self._mail, *rcpts):
            reply = await hop.ask(line)
            if not reply.positive:
                self._drop()
                raise DeliveryError(f"said again, and refused: {reply.raw[:200]!r}", LOST)

    async def _begin_again(self, hop: Hop, rcpts: list[bytes]) -> None:
        if not (await hop.ask(b"RSET")).positive:
            raise Gone("RSET is refused", LOST)
        await self._repeat(hop, rcpts)

    async def reset(self) -> None:
        hop, begun = self._hop, self._begun
        self._begun, self._forward, self._mail, self._rcpts = False, [], [], []
        try:
            if hop is not None and begun:
                hop.strain += 1
                if not (await hop.ask(b"RSET")).positive:
                    hop.abort()
        finally:
            self._give_back()

    async def deliver(self, message_id: str, envelope: Envelope, message: Content, junk: bool) -> list[bytes]:
        rcpts = [path.line for path in envelope.recipients]
        reply = await self._data(rcpts)
        assert self._hop is not None
        if reply.code != 354:
            if reply.code < 400:
                self._drop()
                raise DeliveryError(f"unexpected reply to DATA: {reply.raw[:200]!r}", UNEXPECTED)
            return [reply.raw] * len(rcpts)
        try:
            return await self._content(self._hop, message, len(rcpts))
        finally:
            self._give_back()

    async def _data(self, rcpts: list[bytes]) -> Reply:
        """Say DATA in a transaction that has these recipients and no others."""
        fresh = False
        if self._hop is not None and self._rcpts != rcpts:
            try:
                await self._begin_again(self._hop, rcpts)
            except Gone:
                self._drop()
        if self._hop is None:
            self._hop = await self._anew(rcpts)
            fresh = True
        self._rcpts = rcpts
        try:
            return await self._hop.ask(b"DATA")
        except Gone:
            if fresh:
                raise
        self._hop = await self._anew(rcpts)
        return await self._hop.ask(b"DATA")

    async def _content(self, hop: Hop, message: Content, recipients: int) -> list[bytes]:
        """Send it and read one reply, or in LMTP one for each recipient; those that do not come are failures."""
        count = recipients if self.per_recipient else 1
        replies: list[bytes] = []
        try:
            await hop.send_content(content.wire(message.pieces()), count)
            while len(replies) < count:
                reply = await hop.end_of_data()
                if 300 <= reply.code < 400:
                    raise DeliveryError(f"unexpected reply to the content: {reply.raw[:200]!r}", UNEXPECTED)
                replies.append(reply.raw)
            if any(reply[:1] == b"2" for reply in replies):
                hop.strain = 0
        except BaseException as error:
            hop.abort()
            if not isinstance(error, DeliveryError) or not replies:
                raise
            replies += [error.reply] * (count - len(replies))
        return replies if self.per_recipient else replies * recipients

    def _give_back(self) -> None:
        if self._hop is not None and not self._next_hop.keep(self._hop):
            self._hop.quit()
        self._hop = None

    def _drop(self) -> None:
        if self._hop is not None:
            self._hop.abort()
        self._hop = None

    async def abort(self) -> None:
        self._drop()

    async def close(self) -> None:
        if self._begun:
            self._drop()
        self._give_back()
