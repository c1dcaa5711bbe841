"""What tests of the watcher ask it: what it has judged, what it remembers, which labels it made, whether it lives."""

from __future__ import annotations

import contextlib
import itertools
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from spamguard.headers import content_hash
from spamguard.labels import Labels

from .conftest import Running
from .maildirs import Box
from .servers import until

PATIENCE_S = 30
_numbers = itertools.count()


def spam() -> bytes:
    """One that was never seen before."""
    return b"Subject: pills\n\nviagra, offer %d\n" % next(_numbers)


def ham() -> bytes:
    return b"Subject: lunch\n\nmeeting %d\n" % next(_numbers)


def soon(condition: Callable[[], object]) -> None:
    """Wait for it, or fail."""
    until(condition, PATIENCE_S)


def row(state: Path, raw: bytes) -> tuple[str, str | None] | None:
    """State and label that the watcher remembers of a message."""
    with contextlib.closing(sqlite3.connect(f"file:{state / 'watch.sqlite3'}?mode=ro", uri=True, timeout=60)) as db:
        query = "SELECT state, label FROM message WHERE content = ?"
        found: tuple[str, str | None] | None = db.execute(query, (content_hash(raw),)).fetchone()
        return found


def label(state: Path, raw: bytes) -> str | None:
    """What the user is believed to have said of it."""
    with Labels(state / "labels.sqlite3") as labels:
        return {given.content: given.label.value for given in labels.rows()}.get(content_hash(raw))


def scored(running: Running, raw: bytes) -> int:
    """How often the scorer was asked about it."""
    return sum(batch.count(raw) for batch in running.scorer.batches)


def quiet() -> None:
    """Longer than the quiet time of the tests and the look at what is due, which comes every second."""
    time.sleep(1.6)


def check_alive(box: Box) -> None:
    """The next normal message is judged."""
    raw = spam()
    name = box.deliver(raw)
    soon((box.path / ".Junk/new" / name).exists)
    assert (box.path / ".Junk/new" / name).read_bytes() == raw


def messages(running: Running) -> list[dict[str, Any]]:
    return [line for line in running.log if line["event"] == "message"]


def labels(running: Running) -> dict[str, tuple[str, str]]:
    """Content -> label, source."""
    with Labels(running.daemon.loaded.config.labels_file) as given:
        return {row.content: (row.label.value, row.source) for row in given.rows()}


def settled(running: Running, count: int = 1) -> None:
    """A message that comes after has been judged, and labels have had their time."""
    until(lambda: len(messages(running)) >= count)


def remembered(running: Running, query: str, *values: str) -> list[Any]:
    with contextlib.closing(
        sqlite3.connect(running.daemon.loaded.config.state_dir / "watch.sqlite3", timeout=60)
    ) as db:
        return db.execute(query, values).fetchall()


def seen_at(running: Running, place: str) -> None:
    """The watcher has noted that the message lies there, and has believed or dismissed what that may mean."""
    *folder, _, name = place.split("/")
    where = (folder[0] if folder else "INBOX", name.partition(":")[0])
    until(lambda: remembered(running, "SELECT 1 FROM place WHERE folder = ? AND base = ?", *where))
    until(lambda: not remembered(running, "SELECT 1 FROM belief"))
