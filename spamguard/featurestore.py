"""Encoder output, token counts and structure of mail already seen, by content hash. The mail itself is not kept.

One SQLite file for each encoder (WAL journal: readers and writers of several processes, and SIGKILL, do no harm).
Rows are keyed by content hash and by the version of everything between bytes and head, so a stale row is never found.
In another table of the same file stands what was judged of late (recent.py); it goes by its age, these rows do not.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from . import features, message, wal, wide
from .errors import SpamguardError
from .head import Row
from .headers import content_hash as content_hash  # the key of every row
from .wide import Counts

# SQLite's default limit on variables of one statement is 32,766; far fewer keep the statements small.
KEYS_A_QUERY = 500


_SCHEMA = """
CREATE TABLE IF NOT EXISTS row (
    content TEXT, version TEXT, deep BLOB NOT NULL, columns BLOB NOT NULL, counts BLOB NOT NULL,
    structure BLOB NOT NULL, PRIMARY KEY (content, version)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS judged (
    seq INTEGER PRIMARY KEY, at REAL NOT NULL, p REAL NOT NULL, label TEXT NOT NULL, head TEXT NOT NULL,
    about TEXT NOT NULL, content TEXT NOT NULL, version TEXT NOT NULL, deep BLOB NOT NULL, columns BLOB NOT NULL,
    counts BLOB NOT NULL, structure BLOB NOT NULL, UNIQUE (content, version)
);
CREATE TABLE IF NOT EXISTS encoded (content TEXT PRIMARY KEY, at REAL NOT NULL) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS judged_at ON judged (at);
"""


class FeatureStoreError(SpamguardError):
    """The store's file cannot be used."""


class FeatureStore:
    """The store for one encoder. Use as a context manager, from one thread."""

    def __init__(self, folder: Path, fingerprint: str, *, read_only: bool = False) -> None:
        """Open `folder/FINGERPRINT.sqlite3`, and create it unless `read_only`. Raises FeatureStoreError."""
        self.file = file_of(folder, fingerprint)
        self._version = inputs_version()
        try:
            self._db = wal.to_read(self.file) if read_only else connect(self.file)
        except (OSError, sqlite3.Error) as error:
            raise FeatureStoreError(f"{self.file}: {error}") from error

    def __enter__(self) -> FeatureStore:
        return self

    def __exit__(self, *_: object) -> None:
        self._db.close()

    def known(self, contents: Sequence[str]) -> set[str]:
        """Those of the content hashes that have a row."""
        return {found[0] for found in self._select("content", contents)}

    def get(self, contents: Sequence[str]) -> dict[str, Row]:
        """The rows of those content hashes that have one. Raises FeatureStoreError."""
        wanted = "content, deep, columns, counts, structure"
        return {content: unpack(*packed) for content, *packed in self._select(wanted, contents)}

    def put(self, rows: Iterable[tuple[str, Row]]) -> None:
        """Keep the rows: all of them, or on an error none. Raises FeatureStoreError."""
        values = [(content, self._version, *pack(row)) for content, row in rows]
        try:
            self._db.execute("BEGIN IMMEDIATE")
            with self._db:
                self._db.executemany("INSERT OR REPLACE INTO row VALUES (?, ?, ?, ?, ?, ?)", values)
                now = time.time()
                self._db.executemany("INSERT OR REPLACE INTO encoded VALUES (?, ?)", [(v[0], now) for v in values])
        except sqlite3.Error as error:
            raise FeatureStoreError(f"{self.file}: {error}") from error

    def remove(self, contents: Iterable[str]) -> None:
        """Forget the rows of those content hashes, of all versions, without a trace. Raises FeatureStoreError."""
        keys = [(content,) for content in contents]
        try:
            self._db.execute("BEGIN IMMEDIATE")
            with self._db:
                gone = self._db.executemany("DELETE FROM row WHERE content = ?", keys).rowcount
                self._db.executemany("DELETE FROM encoded WHERE content = ?", keys)
                gone = max(gone, self._db.executemany("DELETE FROM judged WHERE content = ?", keys).rowcount)
            if gone > 0:  # else pages and journal would keep copies
                self._db.execute("VACUUM")
                self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        except sqlite3.Error as error:
            raise FeatureStoreError(f"{self.file}: {error}") from error

    def _select(self, wanted: str, contents: Sequence[str]) -> Iterator[Any]:
        for start in range(0, len(contents), KEYS_A_QUERY):
            part = contents[start : start + KEYS_A_QUERY]
            marks = ",".join("?" * len(part))
            query = f"SELECT {wanted} FROM row WHERE version = ? AND content IN ({marks})"  # noqa: S608 (no user text)
            try:
                yield from self._db.execute(query, (self._version, *part))
            except sqlite3.Error as error:
                raise FeatureStoreError(f"{self.file}: {error}") from error


def remove_everywhere(folder: Path, contents: Sequence[str]) -> None:
    """Forget those content hashes in the stores of all encoders. Raises FeatureStoreError."""
    for file in sorted(folder.glob("*.sqlite3")):
        with FeatureStore(folder, file.stem) as store:
            store.remove(contents)


def file_of(folder: Path, fingerprint: str) -> Path:
    return folder / f"{fingerprint}.sqlite3"


def connect(file: Path) -> sqlite3.Connection:
    """Open a store for reading and writing; create what is missing. Raises OSError or sqlite3.Error."""
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    database = sqlite3.connect(file, timeout=wal.BUSY_S, isolation_level=None)
    database.execute("PRAGMA synchronous = NORMAL")
    wal.set_up(database, _SCHEMA)
    return database


def pack(row: Row) -> tuple[bytes, bytes, bytes, bytes]:
    """A row as it stands in the file: what the encoder made of it in half precision, the rest to the bit."""
    wide = row.wide
    deep = row.deep.astype(np.float16).tobytes()
    return deep, wide.columns.tobytes(), wide.counts.tobytes(), row.structure.tobytes()


def unpack(deep: bytes, columns: bytes, counts: bytes, structure: bytes) -> Row:
    """The row that pack() made these of."""
    return Row(
        np.frombuffer(deep, dtype=np.float16).astype(np.float32),
        Counts(np.frombuffer(columns, dtype=np.uint32), np.frombuffer(counts, dtype=np.uint16)),
        np.frombuffer(structure, dtype=np.float32),
    )


def inputs_version() -> str:
    """Of everything between the bytes of a mail and its row."""
    named = [message.TEXT_VERSION, wide.WIDE_VERSION, wide.WIDE_TOKENS, features.FEATURES_VERSION]
    return hashlib.sha256(json.dumps(named).encode()).hexdigest()[:16]
