"""rspamd as a contestant: its Bayes, and its local rules with Bayes; nothing is asked of the network.

An rspamd and a redis of our own, on loopback and a Unix socket, with all state in a folder that goes with them.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .mail import Mail, join
from .peers import Scores, Unavailable

Array = npt.NDArray[np.float64]
ADD_HEADER = 6.0  # points from which rspamd marks a message as spam, out of the box
# Modules that ask the network, or that remember what is no part of learning.
OFF = (
    "rbl surbl fuzzy_check dkim dkim_signing arc dmarc spf asn mx_check greylist history_redis ratelimit neural "
    "reputation replies rspamd_update url_redirector phishing bimi p0f"
).split()
START_S = 90.0


class Server:
    """A running rspamd, and what its Bayes has learnt."""

    def __init__(self, folder: Path, normal: int, controller: int) -> None:
        self._folder, self._ports = folder, {"check": normal, "learn": controller}
        self._connections: dict[str, http.client.HTTPConnection] = {}
        self._learnt: frozenset[tuple[str, int]] = frozenset()

    def learn(self, mail: Mail) -> None:
        """Forget everything, and learn exactly this mail."""
        wanted = frozenset(zip(mail.table["content"], mail.labels.tolist(), strict=True))
        if wanted == self._learnt:
            return
        subprocess.run(["redis-cli", "-s", _socket(self._folder), "flushall"], check=True, capture_output=True)
        # In the order of the hash, ham and spam mixed, as its Bayes does not learn what it knows for certain.
        for i in np.argsort(mail.table["sha256"].to_numpy(), kind="stable"):
            self._post("learn", "/learnspam" if mail.labels[i] else "/learnham", mail.raw[i])
        self._learnt = wanted

    def check(self, raw: bytes) -> tuple[float, float]:
        """Points of rules and Bayes together, and of Bayes alone."""
        said = self._post("check", "/checkv2", raw)
        symbols = said.get("symbols", {})
        bayes = sum(symbols[name]["score"] for name in ("BAYES_SPAM", "BAYES_HAM") if name in symbols)
        return float(said.get("score", 0.0)), float(bayes)

    def ready(self) -> bool:
        try:
            self._post("learn", "/stat", None)
            self._post("check", "/checkv2", b"Subject: ready\n\nready\n")
        except (OSError, http.client.HTTPException):
            self._connections.clear()
            return False
        return True

    def _post(self, what: str, path: str, raw: bytes | None) -> dict[str, Any]:
        connection = self._connections.get(what)
        if connection is None:
            connection = http.client.HTTPConnection("127.0.0.1", self._ports[what], timeout=60)
            self._connections[what] = connection
        # Bulk: it is not refused for being known already.
        connection.request("GET" if raw is None else "POST", path, raw, {"Learn-Type": "bulk"})
        answer = connection.getresponse()
        content = answer.read()
        if answer.status >= 500:
            raise RuntimeError(f"rspamd answered {answer.status}: {content[:200]!r}")
        return dict(json.loads(content)) if content else {}  # nothing is said of mail that gives it nothing to learn


@contextlib.contextmanager
def running() -> Iterator[Server]:
    """Raises Unavailable."""
    for program in ("rspamd", "redis-server", "redis-cli"):
        if not shutil.which(program):
            raise Unavailable(f"{program} is not installed")
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="rspamd-")))
        normal, controller = _free_port(), _free_port()
        _configure(folder, normal, controller)
        redis = ["redis-server", "--port", "0", "--unixsocket", _socket(folder), "--save", "", "--dir", str(folder)]
        stack.enter_context(_process([*redis, "--appendonly", "no"]))
        places = {"LOCAL_CONFDIR": "local", "DBDIR": "db", "RUNDIR": "run", "LOGDIR": "log"}
        command = ["rspamd", "-c", "/etc/rspamd/rspamd.conf", "-f", *(["-i"] if os.geteuid() == 0 else [])]
        for name, place in places.items():
            (folder / place).mkdir(exist_ok=True)
            command += ["--var", f"{name}={folder / place}"]
        stack.enter_context(_process(command))
        server, until = Server(folder, normal, controller), time.monotonic() + START_S
        while not server.ready():
            if time.monotonic() > until:
                raise Unavailable(f"rspamd did not start within {START_S:g} s")
            time.sleep(0.5)
        yield server


class Rspamd:
    """Either of the two contestants; they share the server."""

    def __init__(self, server: Server, rules: bool, others: Mail | None = None) -> None:
        self._server, self._rules, self._others = server, rules, others
        self.name = f"rspamd, {'rules and Bayes' if rules else 'Bayes'} (reads headers)"
        self.probable = False  # points

    def after(self, others: Mail) -> Rspamd:
        return Rspamd(self._server, self._rules, others)

    def learn(self, own: Mail) -> Scores:
        mail = own if self._others is None else join([self._others, own])

        def score(other: Mail) -> Array:
            self._server.learn(mail)
            points = np.asarray([self._server.check(raw) for raw in other.raw], dtype=np.float64).reshape(-1, 2)
            return points[:, 0 if self._rules else 1]

        return Scores(score, ADD_HEADER, ADD_HEADER) if self._rules else Scores(score)


def _configure(folder: Path, normal: int, controller: int) -> None:
    files = {
        "options.inc": (
            'dns { nameserver = ["127.0.0.1:9"]; timeout = 0.01s; retransmits = 1; }\n'
            f'tempdir = "{folder}";\nhs_cache_dir = "{folder}";\nhistory_file = "{folder}/history";\n'
        ),
        "worker-normal.inc": f'bind_socket = "127.0.0.1:{normal}";\ncount = 1;\n',
        "worker-controller.inc": f'bind_socket = "127.0.0.1:{controller}";\ncount = 1;\nsecure_ip = "127.0.0.1";\n',
        "worker-proxy.inc": "enabled = false;\n",
        "worker-fuzzy.inc": "enabled = false;\n",
        "redis.conf": f'servers = "{_socket(folder)}";\n',
        "logging.inc": f'type = "file";\nfilename = "{folder}/log.txt";\nlevel = "error";\n',
        **{f"{module}.conf": "enabled = false;\n" for module in OFF},
    }
    local = folder / "local/local.d"
    local.mkdir(parents=True)
    for name, content in files.items():
        (local / name).write_text(content, encoding="utf-8")


@contextlib.contextmanager
def _process(command: list[str]) -> Iterator[None]:
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _socket(folder: Path) -> str:
    return str(folder / "redis")


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
