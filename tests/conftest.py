"""The fixtures that start real parts: a daemon with a fake scorer, on a loop in a thread of its own."""

from __future__ import annotations

import asyncio
import gc
import io
import json
import os
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import pytest
from hypothesis import settings

from service.daemon import Daemon
from service.journal import Journal
from spamguard.config import Config
from spamguard.config_file import Loaded
from tests.fakes import FakeNextHop, FakeScorer, load_fake_scorer

T = TypeVar("T")

# The same examples each time, so that a change is not refused for what it did not touch; new ones are sought with
# `--hypothesis-profile explore`. Several tests run at once: how long one takes says nothing.
settings.register_profile("spamguard", deadline=None, derandomize=True)
settings.register_profile("explore", deadline=None, max_examples=1000)
settings.load_profile("spamguard")


class LoopThread:
    """An event loop in a thread. At its end no task may be left, and nothing may have gone to the loop's handler."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.complaints: list[dict[str, Any]] = []
        self.loop.set_exception_handler(lambda _loop, context: self.complaints.append(context))
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(60)

    def stop(self) -> None:
        async def leftovers() -> list[str]:
            for _ in range(20):
                others = asyncio.all_tasks() - {asyncio.current_task()}
                if not others:
                    return []
                await asyncio.wait(others, timeout=0.5)
            return [repr(task) for task in asyncio.all_tasks() - {asyncio.current_task()}]

        left = self.run(leftovers())
        self.run(self.loop.shutdown_default_executor())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(10)
        self.loop.close()
        gc.collect()
        assert left == []
        assert self.complaints == []


class Running:
    """A daemon that runs, and what stands around it."""

    def __init__(self, loop: LoopThread, daemon: Daemon, log: io.StringIO, hop: FakeNextHop | None) -> None:
        self.loop = loop
        self.daemon = daemon
        self.hop = hop
        self._log = log

    @property
    def scorer(self) -> FakeScorer:
        scorer = self.daemon.scorer
        assert isinstance(scorer, FakeScorer)
        return scorer

    @property
    def log(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self._log.getvalue().splitlines()]

    def client(self, source: tuple[str, int] | None = None) -> Client:
        return Client(self.daemon.address, source)

    def check_alive(self) -> None:
        """After an attack: the next normal message is scored and delivered, and nobody else is left."""
        with self.client() as client:
            assert client.deliver(b"Subject: still here\r\n\r\nmeeting\r\n").startswith(b"250")
            assert client.ask(b"QUIT").startswith(b"221") and client.closed()
        assert self.scorer.batches[-1] == [b"Subject: still here\r\n\r\nmeeting\r\n"]
        assert [line for line in self.log if line["event"] == "message"][-1]["label"] == "ham"
        self.wait_until_empty()

    def wait_until_empty(self) -> None:
        """Wait until every session has ended and its place is free; the test's own time limit is the limit."""
        listener = self.daemon.listener
        assert listener is not None
        while listener.connections:
            time.sleep(0.01)


class Client:
    """A client that sends bytes and reads replies; `source` is the end it connects from."""

    def __init__(self, address: tuple[str, int] | str, source: tuple[str, int] | None = None) -> None:
        if isinstance(address, str):
            self.socket = socket.socket(socket.AF_UNIX)
            self.socket.settimeout(30)
            self.socket.connect(address)
        else:
            self.socket = socket.create_connection(address, timeout=30, source_address=source)
        self.file = self.socket.makefile("rb")

    def reply(self) -> bytes:
        """The next reply, all of its lines, without the last line end; b"" at the end of the connection."""
        lines = []
        while line := self.file.readline():
            lines.append(line)
            if line[3:4] != b"-":
                break
        return b"".join(lines).removesuffix(b"\r\n")

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def ask(self, line: bytes) -> bytes:
        self.send(line + b"\r\n")
        return self.reply()

    def greet(self) -> bytes:
        greeting = self.reply()
        assert greeting.startswith(b"220 ")
        return self.ask((b"LHLO" if b" LMTP " in greeting else b"EHLO") + b" client.example")

    def replies(self, count: int) -> list[bytes]:
        return [self.reply() for _ in range(count)]

    def encrypt(self, context: ssl.SSLContext, name: str | None = None) -> None:
        """The client side of the handshake, after STARTTLS has been answered."""
        self.socket = context.wrap_socket(self.socket, server_hostname=name)
        self.file = self.socket.makefile("rb")

    def begin(self, sender: bytes = b"<a@example.org>", recipient: bytes = b"<b@example.net>") -> None:
        """Up to 354."""
        self.greet()
        assert self.ask(b"MAIL FROM:" + sender).startswith(b"250")
        assert self.ask(b"RCPT TO:" + recipient).startswith(b"250")
        assert self.ask(b"DATA").startswith(b"354")

    def deliver(self, wire: bytes) -> bytes:
        self.begin()
        return self.ask(wire + b".")

    def closed(self) -> bool:
        try:
            return self.file.read() == b""
        except ConnectionResetError:
            return True

    def close(self) -> None:
        self.file.close()
        self.socket.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


Start = Callable[..., Running]


class Process:
    """The whole daemon as a process of its own, with the fake scorer; its log is a file."""

    def __init__(self, file: Path, command: Sequence[str] = (), **environment: str) -> None:
        command = command or (sys.executable, str(Path(__file__).parent / "fakes.py"), str(file))
        self._file = file.with_suffix(".log")
        with self._file.open("ab") as log:
            self._start = log.tell()
            self.popen = subprocess.Popen(command, stderr=log, env=os.environ | environment)

    @property
    def log(self) -> list[dict[str, Any]]:
        with self._file.open("rb") as file:
            file.seek(self._start)
            return [json.loads(line) for line in file if line.startswith(b"{") and line.endswith(b"\n")]

    def wait_for(self, event: str, count: int = 1) -> dict[str, Any]:
        """Wait for the count-th line of an event; the test's own time limit is the limit."""
        while len(found := [line for line in self.log if line["event"] == event]) < count:
            assert self.popen.poll() is None, self._file.read_text()
            time.sleep(0.01)
        return found[count - 1]

    @property
    def address(self) -> tuple[str, int]:
        host, port = self.wait_for("ready")["listen"].rsplit(":", 1)
        return host, int(port)

    def client(self) -> Client:
        return Client(self.address)

    def stop(self) -> int:
        self.popen.terminate()
        return self.popen.wait(60)


@pytest.fixture
def daemon_process() -> Iterator[Callable[..., Process]]:
    started: list[Process] = []

    def start(*arguments: Any, **environment: str) -> Process:
        started.append(Process(*arguments, **environment))
        return started[-1]

    yield start
    for process in started:
        if process.popen.poll() is None:
            process.popen.kill()
            process.popen.wait()


@pytest.fixture
def loop_thread() -> Iterator[LoopThread]:
    loop = LoopThread()
    yield loop
    loop.stop()


@pytest.fixture
def running_daemon(loop_thread: LoopThread, tmp_path: Path) -> Iterator[Start]:
    """Start a real daemon with the fake scorer: `running_daemon(hop, limits={"idle_s": 1}, ...)`.

    Without a next hop it delivers into `tmp_path / "Maildir"`.
    """
    started: list[Running] = []

    def start(hop: FakeNextHop | None = None, load_scorer: Any = load_fake_scorer, **tables: Any) -> Running:
        tables = {"listen": {"port": 0, "hostname": "filter.example"}, "log": {"format": "json"}} | tables
        if hop is not None:
            port = loop_thread.run(hop.start())
            there = {"socket": hop.unix} if hop.unix else {"host": "127.0.0.1", "port": port}
            there["protocol"] = "lmtp" if hop.lmtp else "smtp"
            tables["next_hop"] = there | tables.get("next_hop", {})
        config = Config.model_validate({"state_dir": str(tmp_path)} | tables)
        log = io.StringIO()
        daemon = Daemon(Loaded(config, None, frozenset()), load_scorer, Journal(config.log, log))
        loop_thread.run(daemon.start())
        running = Running(loop_thread, daemon, log, hop)
        started.append(running)
        return running

    yield start
    for running in started:
        if isinstance(running.daemon.scorer, FakeScorer):
            running.daemon.scorer.gate.set()
        if running.hop is not None:
            loop_thread.loop.call_soon_threadsafe(running.hop.release.set)
        loop_thread.run(running.daemon.stop())
        if running.hop is not None:
            loop_thread.run(running.hop.stop())
