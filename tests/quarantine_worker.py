"""Works on a quarantine without rest, until it is killed: holds, releases, deletes, expires, and notes each step.

A process that starts it and has loaded all modules already, for 50 starts in a minute: for each number it reads, it
forks the worker, kills it after so many milliseconds, and answers.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sys
import time
from pathlib import Path

from service.digest import Digests
from service.envelope import Envelope
from service.envelope import Path as Mailbox
from service.held import Source
from service.quarantine import Quarantine
from service.quarantine_index import Index
from service.release import WayOut, release
from service.retention import expire
from spamguard.config import Config, QuarantineTable
from tests.fakes import verdict

MOST_HELD, KEEP = 20, 30  # so that expire deletes nothing but what was released


def raw_of(message_id: str) -> bytes:
    """The message that is held under an id; of 100 bytes to 100 kB."""
    size = 100 + int(message_id[-4:], 16) ** 2 % 100_000
    return b"From: ann@example.org\nSubject: %s\n\n" % message_id.encode() + (message_id.encode() + b"\n") * (
        size // 20
    )


class Worker:
    def __init__(self, folder: Path, port: int, number: int) -> None:
        self._random = random.Random(f"{os.getpid()} {number}")
        self._ledger = os.open(folder / "ledger", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._quarantine = Quarantine(folder / "quarantine")
        self._maildir = folder / "ann"
        hop = {"host": "127.0.0.1", "port": port, "protocol": "lmtp"}
        self._way_out = WayOut(Config.model_validate({"state_dir": folder, "next_hop": hop}))
        self._counter = 0

    def work(self) -> None:
        self._quarantine.create()
        while True:
            held = list(self._quarantine.held())
            acts = [self._hold] * 4 if len(held) < MOST_HELD else []
            acts += [self._release, self._release, self._delete] if held else []
            act = self._random.choice([*acts, self._expire, self._look])
            act(self._random.choice(held) if held else "")

    def _note(self, what: str, message_id: str) -> None:
        os.write(self._ledger, f"{what} {message_id}\n".encode())

    def _hold(self, _: str) -> None:
        self._counter += 1
        message_id = f"{time.time_ns():016x}{self._counter & 0xFFFF:04x}"
        envelope, source = (
            Envelope(sender=Mailbox(b"<ann@x>"), recipients=[Mailbox(b"<b@x>"), Mailbox(b"<c@x>")]),
            None,
        )
        if self._random.random() < 0.3:
            envelope, source = Envelope(), Source(str(self._maildir), "INBOX", f"{message_id}.host", "S", 0, 0o600)
        raw = raw_of(message_id)
        staged = self._quarantine.stage(message_id, envelope, [raw[:50], raw[50:]], verdict(0.99), source)
        staged.commit()
        self._note("held", message_id)

    def _release(self, message_id: str) -> None:
        self._note("releasing", message_id)
        done = asyncio.run(release(self._quarantine, message_id, self._way_out))
        self._note("released" if done.state != "held" else "refused", message_id)

    def _delete(self, message_id: str) -> None:
        self._note("deleting", message_id)
        self._quarantine.delete(message_id)
        self._note("deleted", message_id)

    def _expire(self, _: str) -> None:
        expire(self._quarantine, QuarantineTable(keep_messages=KEEP))

    def _look(self, _: str) -> None:
        with Index(self._quarantine) as index:
            index.items(released=True)
        with Digests(self._quarantine) as digests:
            digests.tell("b@x", digests.waiting("b@x"))


def main() -> None:
    folder, port = Path(sys.argv[1]), int(sys.argv[2])
    for number, line in enumerate(sys.stdin):
        child = os.fork()
        if child == 0:
            try:
                Worker(folder, port, number).work()
            finally:
                sys.stderr.flush()
                os._exit(1)  # It never ends of itself.
        time.sleep(float(line) / 1000)
        os.kill(child, signal.SIGKILL)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


if __name__ == "__main__":
    main()
