"""A scene of the storm: three Maildirs, those who deliver, the user and the watcher, and the evidence they leave."""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from .conftest import Process
from .storm_delivery import Delivery, deliver
from .storm_delivery import read as read_deliveries
from .storm_ledger import SLACK_S, Evidence, Found, Life, Row
from .storm_mail import MAILDIRS, mails, number_of
from .storm_user import ARCHIVE, JUNK, TRASH
from .storm_user import read as read_acts

ROOT = Path(__file__).parents[1]
STALL_S, PATIENCE_S = 60, 3
SHARES = 3
TICK_S = 0.02

Progress = Callable[[int], None]


class Scene:
    """`rate` is messages a second, 0 for as fast as possible; `fsync` as an MTA does it. `unmet` is for what should
    have happened and did not.
    """

    def __init__(
        self,
        folder: Path,
        messages: int,
        seed: int,
        *,
        old: int = 0,
        rate: float = 0,
        fsync: bool = False,
        quiet_s: float = 2,
        rescan_s: float = 300,
    ) -> None:
        self.folder = folder
        self.load = mails(messages, seed, old)
        self.rng = random.Random(seed)
        self.unmet: list[str] = []
        self.lives: list[Life] = []
        self.progress: Progress = lambda judged: None
        self.judged = 0
        self.began = self.ended = self.labels_late = 0.0
        self._seed, self._old, self._messages = seed, old, messages
        self._quiet_s = quiet_s
        self._deliverer = [f"--pause={SHARES / rate}"] if rate else []
        self._deliverer += ["--fsync"] if fsync else []
        self._file = folder / "spamguard.toml"
        self._memory = folder / "state/watch.sqlite3"
        self._processes: list[subprocess.Popen[bytes]] = []
        self._daemon: Process | None = None
        self._ready = 0.0
        folder.mkdir(exist_ok=True)
        for maildir in MAILDIRS:
            # One has no Junk yet: the watcher must make it.
            for name in ("", ARCHIVE, TRASH, *([JUNK] if maildir != MAILDIRS[0] else [])):
                for part in ("tmp", "new", "cur"):
                    (folder / maildir / name / part).mkdir(parents=True)
                if name:
                    (folder / maildir / name / "maildirfolder").touch()
        self._old_mail = [deliver(folder, mail, fsync=False) for mail in self.load[:old]]
        self._file.write_text(
            f'state_dir = "state"\n[listen]\nprotocol = "off"\n[log]\nformat = "json"\n[watch]\n'
            f"maildirs = {list(MAILDIRS)}\nquiet_s = {quiet_s}\nrescan_s = {rescan_s}\n".replace("'", '"')
        )

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """The watcher is up; at the end it must stop as it is asked to, and all else is ended."""
        try:
            self.start()
            yield
            assert self._daemon is not None
            code = self._daemon.stop()
            self._end_of_life()
            if code:
                self.unmet.append(f"the daemon ended with {code} after SIGTERM")
        finally:
            for popen in [*self._processes, *([self._daemon.popen] if self._daemon else [])]:
                if popen.poll() is None:
                    popen.kill()
                    popen.wait()

    def start(self) -> None:
        command = (sys.executable, "-m", "tests.storm_daemon", str(self._file), str(self._notes))
        self._daemon = Process(self._file, command, PYTHONPATH=os.environ.get("PYTHONPATH") or str(ROOT))
        self._daemon.wait_for("ready")
        self._ready = time.time()

    def kill(self) -> None:
        assert self._daemon is not None
        self._daemon.popen.kill()
        self._daemon.popen.wait()
        self._end_of_life()

    def kill_at_random_moments(self, times: int) -> None:
        """Each in its share of what is to be judged; the watcher stays away for up to two seconds."""
        for number in range(times):
            self.reached(int((number + self.rng.random()) * self._messages / times))
            time.sleep(self.rng.uniform(0, 0.3))
            self.kill()
            time.sleep(self.rng.uniform(0, 2))
            self.start()

    @property
    def _notes(self) -> Path:
        return self.folder / f"scored-{len(self.lives)}"

    def _end_of_life(self) -> None:
        scored = Counter(map(int, self._notes.read_text().split())) if self._notes.exists() else Counter[int]()
        self.lives.append(Life(self._ready, time.time(), scored))

    def begin(self, user: bool) -> None:
        """Start those who deliver, and the user."""
        self.began = time.time()
        for share in range(SHARES):
            numbers = (self._messages, self._seed, self._old, share, SHARES)
            self._spawn("tests.storm_delivery", self.folder, *numbers, *self._deliverer)
        if user:
            self._spawn("tests.storm_user", self.folder, self._seed, self._old)

    def _spawn(self, module: str, *arguments: object) -> None:
        command = [sys.executable, "-m", module, *map(str, arguments)]
        self._processes.append(subprocess.Popen(command, cwd=ROOT))

    def reached(self, count: int) -> None:
        """Return when so many messages are judged, or when nothing goes on: the user may have taken the rest away."""
        since = time.monotonic()
        while (judged := self._count()) < count and time.monotonic() < since + PATIENCE_S:
            if judged != self.judged:
                since, self.judged = time.monotonic(), judged
                self.progress(judged)
            time.sleep(TICK_S)

    def settle(self, linger_s: float = 0) -> None:
        """Return when all is delivered, judged and has lain still for long; the user goes on for `linger_s`."""
        deliverers, users = self._processes[:SHARES], self._processes[SHARES:]
        for process in deliverers:
            if process.wait(600):
                self.unmet.append("a deliverer failed")
        since, left = time.monotonic(), -1
        while (waiting := self._waiting()) and time.monotonic() < since + STALL_S:
            if waiting != left:
                since, left = time.monotonic(), waiting
                self.progress(self._count())
            time.sleep(0.2)
        time.sleep(linger_s)
        for process in users:
            process.send_signal(signal.SIGTERM)
            if process.wait(60):
                self.unmet.append("the user failed")
        stopped = time.time()
        time.sleep(self._quiet_s + SLACK_S + 1)
        self._all_believed()
        self.labels_late = max([0.0, *(at - stopped for _, _, at in self._given())])
        self.ended = time.time()

    def _all_believed(self) -> None:
        """Labels are written with care, so that many take their time."""
        since, left = time.monotonic(), -1
        while (waiting := len(self._select("SELECT 1 FROM belief"))) and time.monotonic() < since + STALL_S:
            if waiting != left:
                since, left = time.monotonic(), waiting
            time.sleep(0.2)

    def _waiting(self) -> int:
        """How many lie in an inbox and have not been judged."""
        known = {number_of(str(base)) for (base,) in self._select("SELECT base FROM message")}
        return sum(
            (number := number_of(path.name)) not in known and number >= self._old
            for maildir in MAILDIRS
            for place in ("new", "cur")
            for path in (self.folder / maildir / place).iterdir()
        )

    def _count(self) -> int:
        rows = self._select("SELECT count(*) FROM message WHERE label IS NOT NULL")
        return int(rows[0][0]) if rows else 0

    def _select(self, query: str) -> list[tuple[object, ...]]:
        """Rows of the watcher's memory; none before it has one."""
        if not self._memory.exists():
            return []
        with contextlib.closing(sqlite3.connect(f"file:{self._memory}?mode=ro", uri=True, timeout=60)) as db:
            try:
                return db.execute(query).fetchall()
            except sqlite3.OperationalError as error:
                if "no such table" in str(error):
                    return []
                raise

    def evidence(self) -> Evidence:
        acts = self.folder / "acts"
        return Evidence(
            load=self.load,
            deliveries=[*self._old_mail, *self._deliveries()],
            acts=read_acts(acts) if acts.exists() else [],
            found=self._found(),
            rows=[
                Row(Path(str(maildir)).name, str(content), str(label), float(str(at)))
                for maildir, content, label, at in self._select(
                    "SELECT maildir, content, label, at FROM message WHERE label IS NOT NULL"
                )
            ],
            labels={content: label for content, label, _ in self._given()},
            lives=self.lives,
            quiet_s=self._quiet_s,
            ended=self.ended,
        )

    def _deliveries(self) -> Iterator[Delivery]:
        for share in range(SHARES):
            yield from read_deliveries(self.folder / f"delivered-{share}")

    def _found(self) -> Iterator[Found]:
        """Every file below the Maildirs but Maildir++'s own markers."""
        for maildir in MAILDIRS:
            root = self.folder / maildir
            for path in root.rglob("*"):
                if path.name == "maildirfolder" or not path.is_file():
                    continue
                status = path.stat()
                *folder, place = path.parent.relative_to(root).parts or ("",)
                sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
                yield Found(
                    maildir,
                    "/".join(folder),
                    place,
                    path.name,
                    sha256,
                    status.st_ino,
                    status.st_mode & 0o7777,
                    status.st_mtime_ns,
                )

    def _given(self) -> list[tuple[str, str, float]]:
        """Content, label and time of what users are believed to have said."""
        file = self.folder / "state/labels.sqlite3"
        if not file.exists():
            return []
        with contextlib.closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True, timeout=60)) as db:
            return db.execute("SELECT content, label, at FROM label").fetchall()
