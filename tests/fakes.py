"""Small real classes in the place of slow or remote parts. Run as a script: the whole daemon with the fake scorer."""

from __future__ import annotations

import asyncio
import re
import ssl
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from spamguard.config import Config
from spamguard.head import Row
from spamguard.headers import content_hash
from spamguard.verdict import Cutoffs, Reason, Verdict
from spamguard.wide import Counts

CUTOFFS = Cutoffs(0.5, 0.9)


def verdict(probability: float, head: str = "head-1", reasons: tuple[Reason, ...] = ()) -> Verdict:
    label = CUTOFFS.label(probability) if probability == probability else CUTOFFS.label(0)
    return Verdict(probability, label, CUTOFFS, {"deep": 1.0, "wide": -0.5}, reasons, "fake-encoder", head, 1.0)


@dataclass
class FakePrepared:
    raw: bytes
    tokens: int
    head: str
    probability: float
    content: str = ""


@dataclass
class FakeScorer:
    """The word `viagra` is spam, `maybe` is unsure; `X-Fake: raise | nan` misbehaves.

    Remembers its batches, or with `remember` off nothing, so that a daemon of it can be measured. With `sees` a
    verdict says what the head saw: rows of as many numbers, views of one array as a real scorer's are.
    """

    head_id: str = "head-1"
    encoder_id: str = "fake-encoder"
    encoder: object = None
    remember: bool = True
    sees: int = 0
    batches: list[list[bytes]] = field(default_factory=list)
    threads: set[int] = field(default_factory=set)
    gate: threading.Event = field(default_factory=threading.Event)
    entered: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self.gate.set()

    def prepare(self, raw: bytes) -> FakePrepared:
        if b"X-Fake: unpreparable" in raw:
            raise ValueError("cannot be prepared")
        found = re.search(rb"X-Tokens: (\d+)", raw)
        p = 0.99 if b"viagra" in raw else 0.7 if b"maybe" in raw else 0.01
        content = content_hash(raw) if self.sees else ""
        tokens = int(found[1]) if found else 10
        return FakePrepared(raw if self.remember else raw[:1024], tokens, self.head_id, p, content)

    def score(self, batch: Sequence[FakePrepared]) -> list[Verdict]:
        if self.remember:
            self.batches.append([one.raw for one in batch])
        self.threads.add(threading.get_ident())
        self.entered.set()
        self.gate.wait(60)
        verdicts = [self._one(prepared) for prepared in batch]
        if not self.sees:
            return verdicts
        seen = np.full((len(batch), self.sees), 0.5, np.float32)
        wide = Counts(np.arange(self.sees // 5, dtype=np.uint32), np.ones(self.sees // 5, np.uint16))
        return [
            replace(verdict, content=one.content, seen=Row(row, wide, row[: self.sees // 25]))
            for verdict, one, row in zip(verdicts, batch, seen, strict=True)
        ]

    def _one(self, prepared: FakePrepared) -> Verdict:
        assert prepared.head == self.head_id, "prepared by another scorer"
        raw = prepared.raw
        if b"X-Fake: raise" in raw:
            raise RuntimeError("secret path /srv/model\r\n250 injected")
        if b"X-Fake: nan" in raw:
            return verdict(float("nan"))
        reasons = Reason("wide", 'the word "meeting"', -1.5), Reason("deep", "meaning", 0.5)
        return verdict(prepared.probability, self.head_id, reasons)


def load_fake_scorer(config: Config, encoder: object) -> FakeScorer:
    """A head is a text file that holds its name; `broken` cannot be loaded."""
    name = config.head.path.read_text().strip() if config.head.path else "head-1"
    if name == "broken":
        raise ValueError("the head is broken")
    return FakeScorer(head_id=name, encoder=encoder or object())


@dataclass
class Received:
    """What reached the fake next hop in one transaction."""

    mail: bytes
    rcpt: list[bytes]
    wire: bytes | None = None
    xforward: list[bytes] = field(default_factory=list)

    @property
    def data(self) -> bytes:
        assert self.wire is not None
        return (b"\r\n" + self.wire).replace(b"\r\n.", b"\r\n")[2:-2]


HANG, DROP = object(), object()
GREETING, END_OF_DATA = "greeting", "dot"
EHLO = (
    b"250-next.example\r\n250-PIPELINING\r\n250-SIZE 20000000\r\n250-8BITMIME\r\n250-SMTPUTF8\r\n250-DSN\r\n"
    b"250-VRFY\r\n250-STARTTLS\r\n250-CHUNKING\r\n250-XFORWARD NAME ADDR PROTO HELO\r\n250 ENHANCEDSTATUSCODES"
)


class FakeNextHop:
    """An SMTP server that plays a script: at each step a reply in bytes, HANG, or DROP; and remembers everything.

    A list of replies is used up one by one; the last one stays. With `lmtp` the final dot is answered once for each
    recipient. `unix` is the socket to listen on in place of a port; `tls` makes STARTTLS work.
    """

    def __init__(
        self, lmtp: bool = False, unix: Path | None = None, tls: ssl.SSLContext | None = None, **script: object
    ) -> None:
        self.lmtp = lmtp
        self.unix = unix
        self.tls = tls
        self.script: dict[str, object] = {
            GREETING: b"220 next.example ESMTP",
            "LHLO" if lmtp else "EHLO": EHLO,
            "STARTTLS": b"220 2.0.0 Ready to start TLS",
            "XFORWARD": b"250 2.0.0 Ok",
            "MAIL": b"250 2.1.0 Sender ok",
            "RCPT": b"250 2.1.5 Recipient ok",
            "DATA": b"354 go on",
            END_OF_DATA: b"250 2.0.0 Ok: queued as NEXT1",
            "RSET": b"250 2.0.0 Ok",
            "QUIT": b"221 2.0.0 Bye",
        } | script
        self.lines: list[bytes] = []
        self.messages: list[Received] = []
        self.torn: list[bytes] = []
        self.connections = 0
        self.step_reached = {step: threading.Event() for step in self.script}
        self.release = asyncio.Event()
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self, port: int = 0) -> int:
        if self.unix is not None:
            self._server = await asyncio.start_unix_server(self._serve, self.unix, limit=2**26)
            return 0
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", port, limit=2**26)
        return self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        assert self._server is not None
        self._server.close()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.connections += 1
        try:
            await self._session(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError, ssl.SSLError):
            pass
        finally:
            self._tasks.discard(task)
            writer.close()

    async def _play(self, step: str, writer: asyncio.StreamWriter) -> bytes:
        act = self.script.get(step, b"500 5.5.2 what?")
        if isinstance(act, list):
            act = act.pop(0) if len(act) > 1 else act[0]
        if step in self.step_reached:
            self.step_reached[step].set()
        if act is HANG:
            await self.release.wait()
            act = b"250 2.0.0 Ok: late"
        if act is DROP:
            raise ConnectionResetError
        assert isinstance(act, bytes)
        writer.write(act + b"\r\n")
        await writer.drain()
        return act

    async def _session(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await self._play(GREETING, writer)
        now: Received | None = None
        xforward: list[bytes] = []
        while line := (await reader.readuntil(b"\n")).rstrip(b"\r\n"):
            self.lines.append(line)
            verb = line.split(b" ")[0].upper().decode("latin-1")
            if verb == "DATA":
                if not (await self._play("DATA", writer)).startswith(b"354"):
                    continue
                assert now is not None
                head = await reader.readexactly(3)
                try:
                    now.wire = head if head == b".\r\n" else head + await reader.readuntil(b"\r\n.\r\n")
                except asyncio.IncompleteReadError as error:
                    self.torn.append(head + error.partial)
                    raise
                took = [
                    line
                    for line in (now.rcpt if self.lmtp else [b"all"])
                    if (await self._play(END_OF_DATA, writer)).startswith(b"2")
                ]
                if took:
                    self.messages.append(replace(now, rcpt=took) if self.lmtp else now)
                now = None
                continue
            reply = await self._play(verb, writer)
            if verb == "XFORWARD":
                xforward.append(line)
            elif verb == "MAIL" and reply.startswith(b"2"):
                now, xforward = Received(line, [], xforward=xforward), []
            elif verb == "RCPT" and reply.startswith(b"2") and now is not None:
                now.rcpt.append(line)
            elif verb == "STARTTLS" and self.tls is not None:
                await writer.start_tls(self.tls)
            elif verb in ("RSET", "EHLO", "LHLO"):
                now, xforward = None, []
            elif verb == "QUIT":
                return


if __name__ == "__main__":
    from service.daemon import run
    from spamguard.config_file import load

    def slow_scorer(config: Config, encoder: object) -> FakeScorer:
        scorer = load_fake_scorer(config, encoder)
        scorer.remember = False
        original = scorer.score

        def score(batch: Sequence[FakePrepared]) -> list[Verdict]:
            if any(b"X-Fake: slow" in one.raw for one in batch):
                time.sleep(1.5)
            verdicts = original(batch)
            scorer.batches.clear()  # for tests in this process only; a benchmark of memory would count them
            return verdicts

        scorer.score = score  # type: ignore[method-assign]
        return scorer

    run(load(Path(sys.argv[1])), slow_scorer)
