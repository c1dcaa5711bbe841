"""Crowds: a thousand stalled clients, ten thousand that come and go, and no file descriptor left."""

from __future__ import annotations

import os
import resource
import socket
import sys
import time
from pathlib import Path

import pytest

from tests import fakes
from tests.conftest import Client, Process
from tests.fakes import FakeNextHop

pytestmark = pytest.mark.integration

MAIL = b"Subject: hi\r\n\r\nmeeting\r\n"
IDLE_HOPS = 20
SETTINGS = """state_dir = "."
[log]
format = "json"
[listen]
port = 0
hostname = "filter.example"
[limits]
connections = {connections}
"""


class CountingHop(FakeNextHop):
    """Knows how many connections are open."""

    open = 0

    async def _serve(self, reader, writer):
        self.open += 1
        try:
            await super()._serve(reader, writer)
        finally:
            self.open -= 1


@pytest.fixture
def hop(loop_thread):
    hop = CountingHop()
    hop.port = loop_thread.run(hop.start())
    yield hop
    loop_thread.run(hop.stop())


@pytest.fixture
def many_files():
    """Leave for the test's own ends of so many connections."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 4096
    if hard != resource.RLIM_INFINITY and hard < wanted:
        pytest.skip(f"only {hard} open files are allowed here")
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


class Watch:
    """What a process uses, and whether it uses it no more when all is over."""

    def __init__(self, process: Process) -> None:
        self._proc = Path(f"/proc/{process.popen.pid}")
        self._process = process
        self._before = self.files(), self.megabytes()

    def files(self) -> int:
        return len(list((self._proc / "fd").iterdir()))

    def megabytes(self) -> float:
        return int((self._proc / "statm").read_text().split()[1]) * resource.getpagesize() / 2**20

    def cpu_seconds(self) -> float:
        fields = (self._proc / "stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def check_alive(self) -> None:
        """The next normal message is judged and passes at once."""
        began = time.monotonic()
        with self._process.client() as client:
            assert client.deliver(MAIL).startswith(b"250")
        assert time.monotonic() - began < 2
        messages = [line for line in self._process.log if line["event"] == "message"]
        assert messages[-1]["label"] == "ham"

    def check_given_back(self) -> None:
        files, megabytes = self._before
        while self.files() > files + IDLE_HOPS + 5:  # the test's own time limit is the limit
            time.sleep(0.05)
        assert self.megabytes() < megabytes + 50


def started(
    daemon_process, tmp_path: Path, connections: int, more: str = "", command: tuple[str, ...] = ()
) -> Process:
    file = tmp_path / "spamguard.toml"
    file.write_text(SETTINGS.format(connections=connections) + more)
    if command:
        command = (*command, sys.executable, fakes.__file__, str(file))
    process = daemon_process(file, command)
    process.wait_for("ready")
    return process


def test_row_13_a_thousand_stalled_clients_beside_a_good_one(tmp_path, daemon_process, hop, many_files):
    more = f'[next_hop]\nhost = "127.0.0.1"\nport = {hop.port}\nidle_connections = {IDLE_HOPS}\n'
    process = started(daemon_process, tmp_path, 1100, more)
    watch = Watch(process)
    address = process.address
    hello, mail = b"EHLO stalled.example\r\n", b"MAIL FROM:<stalled@example.org>\r\n"
    states = {
        "silent": (b"", 1),
        "EHLO": (hello, 2),
        "MAIL": (hello + mail, 3),
        "DATA": (hello + mail + b"RCPT TO:<x@y>\r\nDATA\r\nSubject: half a mess", 5),
        "half a line": (hello + b"MAIL FROM:<half", 2),
    }
    stalled = {state: [Client(address) for _ in range(200)] for state in states}
    try:
        for state, (said, replies) in states.items():
            for client in stalled[state]:
                client.send(said)
                assert all(client.reply()[:3] in (b"220", b"250", b"354") for _ in range(replies)), state
        in_transaction = len(stalled["MAIL"]) + len(stalled["DATA"])
        # No transaction, no connection to the next hop.
        assert in_transaction <= hop.open <= in_transaction + IDLE_HOPS, (
            "no transaction, no connection to the next hop"
        )
        watch.check_alive()
        assert len(hop.messages) == 1
        with process.client() as client:
            client.deliver(MAIL)
            for _ in range(20):  # on one connection, too
                began = time.monotonic()
                client.send(mail + b"RCPT TO:<x@y>\r\nDATA\r\n")
                assert [client.reply()[:3] for _ in range(3)] == [b"250", b"250", b"354"]
                assert client.ask(MAIL + b".").startswith(b"250")
                assert time.monotonic() - began < 2
        stalled["DATA"][0].send(b"age\r\n.\r\n")
        assert stalled["DATA"][0].reply().startswith(b"250"), "and the stalled may go on"
    finally:
        for clients in stalled.values():
            for client in clients:
                client.close()
    while hop.open > IDLE_HOPS:
        time.sleep(0.05)
    watch.check_alive()
    watch.check_given_back()
    assert hop.torn == []
    assert process.stop() == 0


def test_row_14_ten_thousand_come_and_go(tmp_path, daemon_process):
    process = started(daemon_process, tmp_path, 100)
    watch = Watch(process)
    watch.check_alive()
    address = process.address
    for number in range(10_000):
        with socket.create_connection(address) as client:
            if number % 3 == 1:
                client.send(b"EHLO x\r\nMAIL FROM:<a@b>\r\n")
            if number % 3 == 2:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # RST
    watch.check_alive()
    watch.check_given_back()
    assert [line for line in process.log if line["level"] == "error"] == []
    assert process.stop() == 0


def test_row_31_no_file_descriptor_left(tmp_path, daemon_process):
    """Those who wait are let in when others leave; until then nothing spins, and the log does not fill up."""
    few = ("sh", "-c", 'ulimit -n 80 && exec "$0" "$@"')
    process = started(daemon_process, tmp_path, 200, command=few)
    assert process.wait_for("few open files are allowed")["limit"] == 80
    watch = Watch(process)
    first = process.client()
    first.greet()
    crowd = [process.client() for _ in range(120)]
    while watch.files() < 80:
        time.sleep(0.01)
    lines, used = len(process.log), watch.cpu_seconds()
    time.sleep(4)
    assert watch.cpu_seconds() - used < 0.5
    new = process.log[lines:]
    assert 1 <= len(new) <= 6, new
    # asyncio's line now and again, and that of each task that wants a file, once.
    said = [line.get("text") or line["cause"] for line in new]
    assert all("out of system resource" in text or "open" in text for text in said), new
    for line in (b"MAIL FROM:<a@b>", b"RCPT TO:<a@b>", b"DATA"):
        assert first.ask(line)[:3] in (b"250", b"354")
    assert first.ask(MAIL + b".").startswith(b"451 4.3.0"), "it cannot be written, so it stays with the sender"
    for client in crowd[:60]:
        client.close()
    assert crowd[-1].reply().startswith(b"220"), "the last one in the queue"
    for client in crowd:
        client.close()
    watch.check_alive()
    watch.check_given_back()
    for line in (b"MAIL FROM:<a@b>", b"RCPT TO:<a@b>", b"DATA"):
        assert first.ask(line)[:3] in (b"250", b"354")
    assert first.ask(MAIL + b".").startswith(b"250")
    first.close()
    assert process.stop() == 0
