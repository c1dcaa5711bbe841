"""A scene of the crash rig: the whole daemon, its next hop and the senders, and what can be done to them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from pathlib import Path

from .conftest import Process
from .crash_hop import records
from .crash_ledger import DAEMON_KILLED, HOP_HUNG, HOP_KILLED, HOP_PATIENCE_S, Copy, Fault, Mail
from .crash_mail import attempt_of, whole
from .crash_senders import Senders, mails

ROOT = Path(__file__).parents[1]
SPOOL_BYTES = 65_536
STALL_S = 60

Act = Callable[[], Awaitable[None]]


class Stalled(Exception):
    """Nothing has gone on for too long."""


class Scene:
    """`large` is the share of 200 KB mails, `pause_s` the rest of a sender after a message, `files` the bound on the
    daemon's file descriptors. `unmet` is for what should have happened and did not.
    """

    def __init__(
        self, folder: Path, messages: int, seed: int, *, large: float = 0.1, pause_s: float = 0, files: int = 0
    ) -> None:
        self.load: Sequence[Mail] = mails(messages, seed, large)
        self.rng = random.Random(seed)
        self.state = folder / "state"
        self.faults: list[Fault] = []
        self.starts: list[float] = []
        self.unmet: list[str] = []
        self.port, self._hop_port = _free_ports(2)
        self.senders = Senders(self.port, self.load, seed, pause_s)
        self._file, self._records = folder / "spamguard.toml", folder / "records"
        limited = ("prlimit", f"--nofile={files}:{files}") if files else ()
        self._command = (*limited, sys.executable, str(ROOT / "tests/fakes.py"), str(self._file))
        self._hop: subprocess.Popen[bytes] | None = None
        self._daemon: Process | None = None
        self._sending: asyncio.Task[None] | None = None

    @property
    def daemon(self) -> Process:
        assert self._daemon is not None
        return self._daemon

    @property
    def hop(self) -> subprocess.Popen[bytes]:
        assert self._hop is not None
        return self._hop

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Senders at work, until the last mail has its answer; then the daemon must end as it is asked to."""
        self.state.mkdir(exist_ok=True)
        self._file.write_text(
            f'state_dir = "state"\n[listen]\nport = {self.port}\nhostname = "filter.example"\n'
            f'[next_hop]\nhost = "127.0.0.1"\nport = {self._hop_port}\nconnect_timeout_s = {HOP_PATIENCE_S}\n'
            f"reply_timeout_s = {HOP_PATIENCE_S}\ndata_timeout_s = {HOP_PATIENCE_S}\n"
            f"[limits]\nmemory_bytes = {SPOOL_BYTES}\nshutdown_s = 5\n"
            '[policy]\nspam = "quarantine"\n[log]\nformat = "json"\n'
        )
        try:
            await self._start_hop()
            await self._start_daemon()
            self._sending = asyncio.create_task(self.senders.run())
            try:
                yield
                await self.reached(len(self.load))
            except* Stalled:
                self.unmet.append(f"nothing went on for {STALL_S} s")
            finally:
                self._sending.cancel()
                await asyncio.wait([self._sending])
            if code := await asyncio.to_thread(self.daemon.stop):
                self.unmet.append(f"the daemon ended with {code} after SIGTERM")
        finally:
            for popen in (self._daemon.popen if self._daemon else None, self._hop):
                if popen is not None and popen.poll() is None:
                    popen.kill()
                    popen.wait()

    async def reached(self, count: int) -> None:
        """Return when so many mails have their last answer. Raises Stalled, or what has ended the senders."""
        assert self._sending is not None
        seen, since = -1, 0.0
        while (settled := self.senders.settled) < count:
            if self._sending.done():
                self._sending.result()
            if settled != seen:
                seen, since = settled, time.monotonic()
            if time.monotonic() > since + STALL_S:
                raise Stalled
            await asyncio.sleep(0.005)

    async def spread(self, acts: Sequence[Act]) -> None:
        """Do each at a random moment of its share of the load."""
        for number, act in enumerate(acts):
            await self.reached(int((number + self.rng.random()) * len(self.load) / len(acts)))
            await asyncio.sleep(self.rng.uniform(0, 0.2))
            await act()

    async def _start_hop(self) -> None:
        command = [sys.executable, "-m", "tests.crash_hop", str(self._hop_port), str(self._records)]
        self._hop = subprocess.Popen(command, cwd=ROOT)
        while not _listens(self._hop_port):
            assert self._hop.poll() is None, "the next hop does not start"
            await asyncio.sleep(0.01)

    async def _start_daemon(self) -> None:
        began = time.monotonic()
        self._daemon = Process(self._file, self._command, PYTHONPATH=os.environ.get("PYTHONPATH") or str(ROOT))
        await asyncio.to_thread(self._daemon.wait_for, "ready")
        self.starts.append(time.monotonic() - began)

    async def kill_daemon(self) -> None:
        with self._fault(DAEMON_KILLED):
            self.daemon.popen.kill()
            self.daemon.popen.wait()
        await self._start_daemon()

    async def kill_hop(self) -> None:
        with self._fault(HOP_KILLED):
            self.hop.kill()
            self.hop.wait()
        await self._start_hop()

    async def hang_hop(self) -> None:
        with self._fault(HOP_HUNG):
            self.hop.send_signal(signal.SIGSTOP)
            await asyncio.sleep(HOP_PATIENCE_S * self.rng.uniform(0.2, 2))
            self.hop.send_signal(signal.SIGCONT)

    @contextlib.contextmanager
    def _fault(self, kind: str) -> Iterator[None]:
        began = time.monotonic()
        yield
        self.faults.append(Fault(kind, began, time.monotonic()))

    def copies(self) -> Iterator[Copy]:
        """All that has arrived anywhere."""
        for number, attempt, is_whole in records(self._records):
            yield Copy(number, attempt, is_whole, "next hop")
        for held in (self.state / "quarantine/held").glob("*"):
            try:
                number, attempt = attempt_of((held / "envelope.json").read_bytes())
                yield Copy(number, attempt, whole((held / "message.eml").read_bytes(), number), "quarantine")
            except (OSError, ValueError):
                yield Copy(-1, -1, False, f"quarantine, {held.name}")


def _free_ports(count: int) -> list[int]:
    """Below those that the system gives out, or a sender that calls a dead daemon might be given its very port."""
    found: list[int] = []
    while len(found) < count:
        with (
            contextlib.suppress(OSError),
            socket.create_server(("127.0.0.1", random.randrange(20_000, 32_000))) as one,
        ):
            found.append(one.getsockname()[1])
    return found


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
