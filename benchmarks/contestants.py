"""What stands between smtp-source and smtp-sink: each relay a process of its own, with one core to itself."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
HOST = "127.0.0.1"
SESSIONS = 10
SYSLOG_PORT = 514
_TICK = os.sysconf("SC_CLK_TCK")

CORES = sorted(os.sched_getaffinity(0))
RELAY_CORE, OTHER_CORES = {CORES[-1]}, set(CORES[:-1] or CORES)


class Unavailable(Exception):
    """The contestant cannot run here; the text says why."""


def free_port() -> int:
    with socket.create_server((HOST, 0)) as probe:
        return int(probe.getsockname()[1])


@dataclass
class Running:
    """A process that listens. `None` for its process: nothing stands between source and sink."""

    port: int
    process: subprocess.Popen[bytes] | None = None

    def cpu_seconds(self) -> float:
        """User and system time of the process, its threads and its children, the dead ones included."""
        return sum(_cpu_seconds(pid) for pid in _family(self.process.pid)) if self.process else 0.0

    def memory(self, key: str = "VmRSS") -> float:
        """MB of /proc/PID/status: VmRSS is now, VmHWM the most there ever was."""
        assert self.process is not None
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        (line,) = [line for line in status.splitlines() if line.startswith(f"{key}:")]
        return int(line.split()[1]) / 1024


def _family(pid: int) -> list[int]:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *(one for child in children for one in _family(int(child)))]


def _cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:15])) / _TICK  # utime, stime, and those of children that were waited for


@contextlib.contextmanager
def process(command: Sequence[object], port: int, cores: set[int], log: Path) -> Iterator[Running]:
    """Start a command on these cores, wait until it listens, and end it at the end."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with log.open("ab") as output:
        popen = subprocess.Popen(
            [str(word) for word in command],
            stdout=output,
            stderr=output,
            env=environment,
            preexec_fn=lambda: os.sched_setaffinity(0, cores),
        )
    try:
        end = time.monotonic() + 60
        while not _listens(port):
            if popen.poll() is not None or time.monotonic() > end:
                raise Unavailable(f"{command[0]} did not start: {log.read_text()[-500:]}")
            time.sleep(0.05)
        yield Running(port, popen)
    finally:
        popen.terminate()
        popen.wait(60)


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((HOST, port)) == 0


@contextlib.contextmanager
def sink(folder: Path) -> Iterator[int]:
    """smtp-sink, which takes everything and keeps nothing; it does not hang up on a pooled connection that waits."""
    port = free_port()
    user = ["-u", "nobody"] if os.geteuid() == 0 else []
    command = ["smtp-sink", *user, "-t", "3600", "-m", "2000", f"{HOST}:{port}", "1000"]
    with process(command, port, OTHER_CORES, folder / "sink.log"):
        yield port


def source(port: int, messages: int, *, keep: bool, length: int, sessions: int = SESSIONS) -> subprocess.Popen[bytes]:
    options = ["-s", str(sessions), "-m", str(messages), "-l", str(length), *(["-d"] if keep else [])]
    addresses = ["-M", "client.example", "-f", "a@example.org", "-t", "b@example.net"]
    return subprocess.Popen(
        ["smtp-source", *options, *addresses, f"{HOST}:{port}"],
        stdout=subprocess.DEVNULL,
        preexec_fn=lambda: os.sched_setaffinity(0, OTHER_CORES),
    )


@contextlib.contextmanager
def direct(next_port: int, folder: Path) -> Iterator[Running]:
    yield Running(next_port)


@contextlib.contextmanager
def plain(next_port: int, folder: Path, *options: str) -> Iterator[Running]:
    port = free_port()
    script = ROOT / "benchmarks/plain_relay.py"
    with process(
        [sys.executable, script, str(port), str(next_port), *options], port, RELAY_CORE, folder / "plain.log"
    ) as it:
        yield it


@contextlib.contextmanager
def pooled(next_port: int, folder: Path) -> Iterator[Running]:
    with plain(next_port, folder, "--pooled") as running:
        yield running


@contextlib.contextmanager
def spampd(next_port: int, folder: Path, *, scan: bool) -> Iterator[Running]:
    """With a child for each connection. It will not run without a syslog: a port that nobody reads is one."""
    if not shutil.which("spampd"):
        raise Unavailable("not installed (Debian: spampd)")
    if os.geteuid() != 0:
        raise Unavailable("needs root, for a syslog to write to")
    port = free_port()
    command = ["spampd", "--nodetach", f"--host={HOST}:{port}", f"--relayhost={HOST}:{next_port}", "--logsock=inet"]
    command += [f"--children={SESSIONS}", "--maxrequests=1000000", "--user=nobody", "--group=nogroup", "--tagall"]
    command += ["--local-only", f"--maxsize={64 if scan else 0}", f"--pid={folder}/spampd-{scan}.pid"]
    with _syslog(), process(command, port, RELAY_CORE, folder / "spampd.log") as running:
        yield running


@contextlib.contextmanager
def _syslog() -> Iterator[None]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as nobody_reads:
        with contextlib.suppress(OSError):  # Then there is one.
            nobody_reads.bind((HOST, SYSLOG_PORT))
        yield


@contextlib.contextmanager
def spampd_scanning(next_port: int, folder: Path) -> Iterator[Running]:
    with spampd(next_port, folder, scan=True) as running:
        yield running


@contextlib.contextmanager
def spampd_relaying(next_port: int, folder: Path) -> Iterator[Running]:
    with spampd(next_port, folder, scan=False) as running:
        yield running


@contextlib.contextmanager
def ours(next_port: int, folder: Path, limits: Mapping[str, float] | None = None) -> Iterator[Running]:
    """The whole daemon; the fake scorer of the tests costs next to nothing. Its log goes into a file, as JSON."""
    port = free_port()
    file = folder / "spamguard.toml"
    lines = [f"{key} = {value}" for key, value in (limits or {}).items()]
    file.write_text(
        'state_dir = "state"\n'
        f'[listen]\nport = {port}\nhostname = "filter.example"\n[next_hop]\nhost = "{HOST}"\nport = {next_port}\n'
        '[batch]\npatience_ms = 0\n[log]\nformat = "json"\n[limits]\n' + "\n".join(lines) + "\n"
    )
    (folder / "state").mkdir(exist_ok=True)
    command = [sys.executable, ROOT / "tests/fakes.py", file]
    with process(command, port, RELAY_CORE, folder / "spamguard.log") as running:
        yield running
