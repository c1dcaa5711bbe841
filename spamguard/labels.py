"""What the user said of which message, by content hash: the last word wins, and what is forgotten leaves no trace.

One SQLite file (WAL journal: several processes, and SIGKILL, do no harm). The labels are all that a retrain learns
from. Of a message itself nothing is kept once it has been encoded (spamguard/featurestore.py).
"""

from __future__ import annotations

import os
import re
import sqlite3
import time
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import headers, wal
from .errors import SpamguardError
from .headers import content_hash, printable
from .verdict import Label

# A user said so: by moving mail, by a keyword, by a command, by releasing from the quarantine.
USERS = ("moved", "keyword", "command", "release")
FOLDER = "folder"  # a retrain found it there
SENT = "sent"  # ... among what the user sent: no spam, but little like what he gets
# What a retrain finds, and what such a message weighs in a fit; a user's word weighs 1.
FOUND = {FOLDER: 1.0, SENT: 0.3}

LEAST_OF_AN_ID = 8
_ID = re.compile(rf"[0-9a-f]{{{LEAST_OF_AN_ID},64}}")
_WHERE = 1000  # characters

_SCHEMA = """
CREATE TABLE IF NOT EXISTS label (
    content TEXT PRIMARY KEY, label TEXT NOT NULL, source TEXT NOT NULL, location TEXT NOT NULL, at REAL NOT NULL,
    seq INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS waiting (seq INTEGER PRIMARY KEY, content TEXT NOT NULL UNIQUE, raw BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS counter (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
"""
_ROWS = "SELECT content, label, source, location, at, seq, content IN (SELECT content FROM waiting) FROM label"


class LabelsError(SpamguardError):
    """The file of labels cannot be used, or there is no such label."""


@dataclass(frozen=True, slots=True)
class Given:
    """One label: of which content, by whom, where the message lay, when (seconds since 1970), and in which order.

    `waits` says that the message has not been encoded yet.
    """

    content: str
    label: Label
    source: str
    where: str
    at: float
    seq: int
    waits: bool = False

    @property
    def weight(self) -> float:
        """What the message weighs in a fit."""
        return FOUND.get(self.source, 1.0)


class Labels:
    """The labels of one state folder. Use as a context manager, from one thread."""

    def __init__(self, file: Path, *, read_only: bool = False) -> None:
        """Open the file; unless `read_only` create it, for its owner alone. Raises LabelsError."""
        self.file = file
        try:
            if read_only:
                self._db = wal.to_read(file)
                return
            file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            os.close(os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
            self._db = sqlite3.connect(file, timeout=wal.BUSY_S, isolation_level=None)
        except (OSError, sqlite3.Error) as error:
            raise self._error(error) from error
        try:
            self._db.execute("PRAGMA secure_delete = ON")
            self._db.execute("PRAGMA synchronous = FULL")  # a user's word, once taken, is not lost with the power
            self._db.execute("PRAGMA temp_store = MEMORY")  # what VACUUM copies stays out of /var/tmp
            wal.set_up(self._db, _SCHEMA)
        except sqlite3.Error as error:
            self._db.close()
            raise self._error(error) from error

    def __enter__(self) -> Labels:
        return self

    def __exit__(self, *_: object) -> None:
        self._db.close()

    def add(self, raw: bytes, label: Label, source: str, where: str = "") -> str:
        """Note what `source` (one of USERS, or FOLDER) says of a message, and keep it until it has been encoded.

        Nobody's word changes a user's but a user's. Returns the content hash. Raises LabelsError.
        """
        if label is Label.UNSURE or source not in (*USERS, FOLDER):
            raise ValueError(f"{label} by {source}")
        content = content_hash(raw)
        with self._transaction():
            old = self._db.execute("SELECT label, source FROM label WHERE content = ?", (content,)).fetchone()
            beaten = old is not None and old[1] in USERS and source not in USERS
            # The same word again, by whatever way it came, is nothing to learn.
            said = old is not None and old[0] == label and (old[1] == source or {old[1], source} <= set(USERS))
            if not beaten and not said:
                self._say([(content, label, where)], source)
            self._db.execute("INSERT OR IGNORE INTO waiting VALUES (NULL, ?, ?)", (content, headers.strip(raw)))
        return content

    def replace_folder(self, found: Mapping[str, tuple[Label, str]], sent: Container[str] = ()) -> int:
        """Make `found` (content -> label, where) the labels of FOLDER, or of SENT where `sent` holds the content.

        All others of these go; users' words stay. Returns the number of changes. Raises LabelsError, and then nothing
        has changed.
        """
        with self._transaction():
            rows = self._db.execute("SELECT content, label, source FROM label")
            there = {content: (label, source) for content, label, source in rows}
            new: dict[str, list[tuple[str, Label, str]]] = {FOLDER: [], SENT: []}
            for content, (label, where) in found.items():
                source = SENT if content in sent else FOLDER
                if there.get(content) != (label, source) and there.get(content, ("", source))[1] in FOUND:
                    new[source].append((content, label, where))
            for source, said in new.items():
                self._say(said, source)
            gone = [content for content, (_, source) in there.items() if source in FOUND and content not in found]
            self._remove(gone)
        return sum(map(len, new.values())) + len(gone)

    def forget(self, contents: Sequence[str]) -> None:
        """Remove labels, and mail that waits. Rows of the feature stores are the caller's. Raises LabelsError."""
        with self._transaction():
            self._remove(contents)
        self._wipe()

    def find(self, prefix: str) -> str:
        """The content hash that begins so. Raises LabelsError if none does, or more than one."""
        shown = printable(prefix, 80)
        if not _ID.fullmatch(prefix):
            raise LabelsError(f"{shown}: an ID is {LEAST_OF_AN_ID} to 64 of 0-9a-f, see `spamguard labels list`")
        query = "SELECT content FROM label WHERE content >= ? AND content < ? LIMIT 2"
        found = self._read(query, (prefix, prefix + "g"))  # g follows the last digit
        if not found:
            raise LabelsError(f"{shown}: no such label")
        if len(found) > 1:
            raise LabelsError(f"{shown}: more than one label begins so")
        return str(found[0][0])

    def rows(self, label: Label | None = None, source: str | None = None) -> list[Given]:
        """The labels, oldest word first. Raises LabelsError."""
        query = f"{_ROWS} WHERE ? IN ('', label) AND ? IN ('', source) ORDER BY seq"
        return [_given(row) for row in self._read(query, (label or "", source or ""))]

    def snapshot(self) -> tuple[list[Given], int]:
        """All labels in the order of their content, and the count of changes that they stand for."""
        with self._transaction("DEFERRED"):
            return [_given(row) for row in self._db.execute(f"{_ROWS} ORDER BY content")], self._counter("changes")

    def waiting(self) -> list[str]:
        """The contents that have not been encoded yet, oldest first. Raises LabelsError."""
        return [row[0] for row in self._read("SELECT content FROM waiting ORDER BY seq", ())]

    def raw(self, content: str) -> bytes | None:
        """A message that waits, without our headers; None if it waits no more. Raises LabelsError."""
        found = self._read("SELECT raw FROM waiting WHERE content = ?", (content,))
        return found[0][0] if found else None

    def encoded(self, contents: Sequence[str]) -> set[str]:
        """Drop mail that has been encoded. Returns those contents whose label was forgotten meanwhile.

        Their rows in the feature store are to be removed again. Raises LabelsError.
        """
        with self._transaction():
            self._db.executemany("DELETE FROM waiting WHERE content = ?", [(content,) for content in contents])
            forgotten = {content for content in contents if not self._has(content)}
            more = self._db.execute("SELECT 1 FROM waiting LIMIT 1").fetchone()
        if not more:
            self._wipe()
        return forgotten

    def changes(self) -> tuple[int, int]:
        """How often a label changed in all, and how often since the last fit. Raises LabelsError."""
        with self._transaction("DEFERRED"):
            changes = self._counter("changes")
            return changes, changes - self._counter("fitted")

    def fitted(self, changes: int) -> None:
        """A head of the labels after so many changes is in service. Raises LabelsError."""
        with self._transaction():
            self._count("fitted", changes)

    def _say(self, new: Iterable[tuple[str, Label, str]], source: str) -> None:
        seq, at = self._counter("changes"), time.time()
        for content, label, where in new:
            seq += 1
            place = where[:_WHERE].encode("utf-8", "backslashreplace").decode()  # names of files need not be UTF-8
            self._db.execute(
                "INSERT OR REPLACE INTO label VALUES (?, ?, ?, ?, ?, ?)", (content, label, source, place, at, seq)
            )
        self._count("changes", seq)

    def _remove(self, contents: Sequence[str]) -> None:
        keys = [(content,) for content in contents]
        gone = self._db.executemany("DELETE FROM label WHERE content = ?", keys).rowcount if keys else 0
        self._db.executemany("DELETE FROM waiting WHERE content = ?", keys)
        self._count("changes", self._counter("changes") + gone)

    def _has(self, content: str) -> bool:
        return bool(self._db.execute("SELECT 1 FROM label WHERE content = ?", (content,)).fetchone())

    def _counter(self, name: str) -> int:
        found = self._db.execute("SELECT value FROM counter WHERE name = ?", (name,)).fetchone()
        return int(found[0]) if found else 0

    def _count(self, name: str, value: int) -> None:
        self._db.execute("INSERT OR REPLACE INTO counter VALUES (?, ?)", (name, value))

    def _wipe(self) -> None:
        """Leave nothing of what was deleted: pages that were divided or joined keep copies of it, and the journal
        does. Who reads just now delays the journal's end until the last one closes the file.
        """
        try:
            self._db.execute("VACUUM")
            self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        except sqlite3.Error as error:
            raise self._error(error) from error

    @contextmanager
    def _transaction(self, kind: str = "IMMEDIATE") -> Iterator[None]:
        """All of it or nothing."""
        try:
            self._db.execute(f"BEGIN {kind}")
            with self._db:
                yield
        except sqlite3.Error as error:
            raise self._error(error) from error

    def _read(self, query: str, values: Sequence[str]) -> list[tuple[Any, ...]]:
        try:
            return self._db.execute(query, values).fetchall()
        except sqlite3.Error as error:
            raise self._error(error) from error

    def _error(self, error: OSError | sqlite3.Error) -> LabelsError:
        return LabelsError(f"{self.file}: {error.strerror if isinstance(error, OSError) else error}")


def _given(row: tuple[Any, ...]) -> Given:
    content, label, source, where, at, seq, waits = row
    return Given(content, Label(label), source, where, at, seq, bool(waits))
