"""Senders that behave like an MTA: what is not answered 250 is sent again, and each answer is remembered."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter, deque
from collections.abc import Sequence

from .crash_ledger import Attempt, Mail
from .crash_mail import compose, sender

PATIENCE_S = 60
_BUDGETS = (1, 1, 10, 50)  # messages a connection


def mails(count: int, seed: int, large: float = 0.1) -> list[Mail]:
    """One in ten is spam, and that share is 200 KB, the others some KB."""
    rng = random.Random(seed)
    return [
        Mail(n, 200_000 if rng.random() < large else rng.randrange(500, 8000), rng.random() < 0.1)
        for n in range(count)
    ]


class Senders:
    def __init__(self, port: int, load: Sequence[Mail], seed: int, pause_s: float = 0, count: int = 20) -> None:
        self.accepted = self.unanswered = 0
        self.put_off: Counter[str] = Counter()
        self.going = asyncio.Event()
        self.going.set()
        self._port, self._pause_s = port, pause_s
        self._waiting = deque(load)
        self._open = self._total = len(load)
        self._seeds = [seed * 1000 + n for n in range(count)]

    @property
    def settled(self) -> int:
        """Mails that have their last answer."""
        return self._total - self._open

    async def run(self) -> None:
        """Return when each mail has its 250, or has been refused for good."""
        async with asyncio.TaskGroup() as group:
            for seed in self._seeds:
                group.create_task(self._sender(random.Random(seed)))

    async def _sender(self, rng: random.Random) -> None:
        while self._open:
            await self.going.wait()
            try:
                async with asyncio.timeout(PATIENCE_S):
                    reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
            except (OSError, TimeoutError):
                await asyncio.sleep(rng.uniform(0.02, 0.1))
                continue
            try:
                await self._session(_Dialogue(reader, writer), rng)
            except (OSError, EOFError, TimeoutError):
                pass
            finally:
                writer.close()
            await asyncio.sleep(rng.uniform(0, 0.02))

    async def _session(self, dialogue: _Dialogue, rng: random.Random) -> None:
        if not (await dialogue.reply()).startswith(b"220"):
            await asyncio.sleep(rng.uniform(0.1, 0.3))
            return
        await dialogue.ask(b"EHLO client.example")
        for _ in range(rng.choice(_BUDGETS)):
            if not self._waiting or not self.going.is_set():
                break
            mail = self._waiting.popleft()
            try:
                reply = await self._mail(dialogue, mail)
            finally:
                if mail.settled:
                    self._open -= 1
                else:
                    self._waiting.append(mail)
            if reply.startswith(b"421"):
                return
            if not mail.accepted:
                await asyncio.sleep(rng.uniform(0.02, 0.1))
                await dialogue.ask(b"RSET")
            await asyncio.sleep(rng.uniform(0, 2 * self._pause_s))
        await dialogue.ask(b"QUIT")

    async def _mail(self, dialogue: _Dialogue, mail: Mail) -> bytes:
        address = sender(mail.number, len(mail.attempts))
        for line in (b"MAIL FROM:<%s>" % address, b"RCPT TO:<b@example.net>", b"DATA"):
            reply = await dialogue.ask(line)
            if reply[:1] not in b"23":
                return self._not_taken(mail, reply)
        attempt = Attempt(time.monotonic())
        mail.attempts.append(attempt)
        wire = (b"\r\n" + compose(mail.number, mail.size, mail.spam)).replace(b"\r\n.", b"\r\n..")[2:]
        try:
            attempt.reply = await dialogue.ask(wire + b".")
        finally:
            attempt.ended = time.monotonic()
            self.unanswered += not attempt.reply
        if not mail.accepted:
            return self._not_taken(mail, attempt.reply)
        self.accepted += 1
        return attempt.reply

    def _not_taken(self, mail: Mail, reply: bytes) -> bytes:
        if reply.startswith(b"4"):
            self.put_off[reply[:9].decode("ascii", "replace")] += 1
        else:
            mail.refused = reply
        return reply


class _Dialogue:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    async def ask(self, line: bytes) -> bytes:
        async with asyncio.timeout(PATIENCE_S):
            self._writer.write(line + b"\r\n")
            await self._writer.drain()
            return await self.reply()

    async def reply(self) -> bytes:
        """The last line of the next reply; EOFError if the connection ends before."""
        async with asyncio.timeout(PATIENCE_S):
            while True:
                line = await self._reader.readline()
                if not line.endswith(b"\n"):
                    raise EOFError
                if line[3:4] != b"-":
                    return line.rstrip(b"\r\n")
