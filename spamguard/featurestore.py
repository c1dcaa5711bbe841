"""Encoder output, token counts and structure of mail already seen, by content hash. The mail itself is not kept.

One SQLite file for each encoder (WAL journal: readers and writers of several processes, and SIGKILL, do no harm).
Rows are keyed by content hash and by the version of everything between bytes and head, so a stale row is never found.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
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
"""


class FeatureStoreError(SpamguardError):
    """The store's file cannot be used."""


class FeatureStore:
    """The store for one encoder. Use as a context manager, from one thread."""

    def __init__(self, folder: Path, fingerprint: str, *, read_only: bool = False) -> None:
        """Open `folder/FINGERPRINT.sqlite3`, and create it unless `read_only`. Raises FeatureStoreError."""
        self.file = folder / f"{fingerprint}.sqlite3"
        self._version = _inputs_version()
        try:
            if read_only:
                self._db = wal.to_read(self.file)
                return
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._db = sqlite3.connect(self.file, timeout=wal.BUSY_S, isolation_level=None)
            self._db.execute("PRAGMA synchronous = NORMAL")
            wal.set_up(self._db, _SCHEMA)
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
        return {
            content: Row(
                np.frombuffer(deep, dtype=np.float16).astype(np.float32),
                Counts(np.frombuffer(columns, dtype=np.uint32), np.frombuffer(counts, dtype=np.uint16)),
                np.frombuffer(structure, dtype=np.float32),
            )
            for content, deep, columns, counts, structure in self._select(wanted, contents)
        }

    def put(self, rows: Iterable[tuple[str, Row]]) -> None:
        """Keep the rows: all of them, or on an error none. Raises FeatureStoreError."""
        values = [
            (
                content,
                self._version,
                row.deep.astype(np.float16).tobytes(),
                row.wide.columns.tobytes(),
                row.wide.counts.tobytes(),
                row.structure.tobytes(),
            )
            for content, row in rows
        ]
        try:
            self._db.execute("BEGIN IMMEDIATE")
            with self._db:
                self._db.executemany("INSERT OR REPLACE INTO row VALUES (?, ?, ?, ?, ?, ?)", values)
        except sqlite3.Error as error:
            raise FeatureStoreError(f"{self.file}: {error}") from error

    def remove(self, contents: Iterable[str]) -> None:
        """Forget the rows of those content hashes, of all versions, without a trace. Raises FeatureStoreError."""
        keys = [(content,) for content in contents]
        try:
            self._db.execute("BEGIN IMMEDIATE")
            with self._db:
                gone = self._db.executemany("DELETE FROM row WHERE content = ?", keys).rowcount
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


def _inputs_version() -> str:
    named = [message.TEXT_VERSION, wide.WIDE_VERSION, wide.WIDE_TOKENS, features.FEATURES_VERSION]
    return hashlib.sha256(json.dumps(named).encode()).hexdigest()[:16]
