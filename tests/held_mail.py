"""A quarantine for tests, with one message in it and a way to release it."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

from service import release
from service.envelope import Envelope
from service.envelope import Path as Mailbox
from service.held import Source
from service.quarantine import Quarantine
from service.release import Outcome, WayOut
from spamguard import released
from spamguard.config import Config
from tests.conftest import LoopThread
from tests.fakes import FakeNextHop, verdict

ID = "0123456789ab"
RAW = b"X-Spam-Flag: YES\r\nFrom: ann@example.org\r\nSubject: caf\xe9\r\n\r\nviagra\r\n.\r\n..two\r\nend"
CLEAN = RAW.partition(b"\r\n")[2]
ENVELOPE = Envelope(
    helo=b"mx.example",
    peer="192.0.2.1",
    sender=Mailbox(b"<bounce+x@example.org>", (b"SIZE=99999", b"BODY=8BITMIME", b"RET=HDRS", b"ENVID=a+20b", b"X=y")),
    recipients=[
        Mailbox(b"<bob@example.net>", (b"NOTIFY=FAILURE", b"ORCPT=rfc822;bob@example.net")),
        Mailbox(b'<"a b"@example.net>'),
        Mailbox(b"<eve@x>"),
    ],
)


class Store:
    """A quarantine with one message in it, and a way to release it."""

    def __init__(self, folder: Path, loop: LoopThread) -> None:
        self.folder = folder
        self.quarantine = Quarantine(folder / "quarantine")
        self.quarantine.create()
        self._loop = loop
        self._next_hop: dict[str, Any] = {}

    def hold(self, raw: bytes = RAW, envelope: Envelope = ENVELOPE, source: Source | None = None) -> None:
        self.quarantine.stage(ID, envelope, [raw], verdict(0.99), source).commit()

    def start(self, hop: FakeNextHop, **keys: object) -> FakeNextHop:
        port = self._loop.run(hop.start())
        where = {"socket": str(hop.unix)} if hop.unix else {"host": "127.0.0.1", "port": port}
        self._next_hop = where | {"protocol": "lmtp" if hop.lmtp else "smtp"} | keys
        return hop

    @property
    def config(self) -> Config:
        return Config.model_validate({
            "state_dir": self.folder, "listen": {"hostname": "filter.example"}, "next_hop": self._next_hop,
        })  # fmt: skip

    def release(self, *to: str) -> Outcome:
        return asyncio.run(release.release(self.quarantine, ID, WayOut(self.config), to))

    @property
    def state(self) -> str | None:
        return self.quarantine.states().get(ID)

    @property
    def key(self) -> bytes:
        return released.make_key(self.config.release_key)


def age(folder: Path, received: object) -> None:
    """Change when a message was received."""
    file = folder / "envelope.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"received": received}))
