"""What the head saw of the mail it judged of late, and what it said: for `doctor` and `heads diff`.

It stands in a table of its own in the feature store's file (featurestore.py), and is kept for `learning.keep_days`,
whereas a label's row stays as long as the label. Nothing of the text is kept, and no subject or address.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from . import wal
from .featurestore import FeatureStoreError, connect, file_of, inputs_version, pack, unpack
from .head import Row
from .headers import printable
from .verdict import Label

_BUSY_S = 5.0  # less than elsewhere, as all this can be done without
_ABOUT = 200  # characters
_DAY_S = 86_400.0

_ADD = """
INSERT OR REPLACE INTO judged (at, p, label, head, about, content, version, deep, columns, counts, structure)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
"""
_SINCE = """
SELECT content, at, p, label, head, about, deep, columns, counts, structure FROM judged
WHERE version = ? AND at >= ? ORDER BY at, seq
"""
_OUTSIDE = "DELETE FROM judged WHERE at <= ? OR at > ?"
_ABOVE = "DELETE FROM judged WHERE seq IN (SELECT seq FROM judged ORDER BY at DESC, seq DESC LIMIT -1 OFFSET ?)"


@dataclass(frozen=True, slots=True)
class Judged:
    """One message: its content hash, when it was judged (seconds since 1970), the verdict's p, label and head.

    `about` says in a word which message it was: `smtp/ID` with its ID in the log, or `FOLDER/NAME` in a Maildir.
    """

    content: str
    at: float
    p: float
    label: Label
    head: str
    about: str
    row: Row


class Recent:
    """The mail that one encoder has read of late. Use as a context manager, from one thread."""

    def __init__(self, folder: Path, fingerprint: str, read_only: bool = False) -> None:
        """Open `folder/FINGERPRINT.sqlite3`; `read_only` creates nothing. Raises FeatureStoreError."""
        self.file = file_of(folder, fingerprint)
        self._version = inputs_version()
        try:
            self._db = _to_read(self.file) if read_only else connect(self.file)
            self._db.execute(f"PRAGMA busy_timeout = {_BUSY_S * 1000:.0f}")
            self._db.execute("PRAGMA secure_delete = ON")
        except (OSError, sqlite3.Error) as error:
            raise FeatureStoreError(f"{self.file}: {error}") from error

    def __enter__(self) -> Recent:
        return self

    def __exit__(self, *_: object) -> None:
        self._db.close()

    def add(self, judged: Iterable[Judged]) -> None:
        """Note them: all, or on an error none. The last verdict on a message is kept. Raises FeatureStoreError."""
        values = [
            (m.at, m.p, m.label.value, m.head, printable(m.about, _ABOUT), m.content, self._version, *pack(m.row))
            for m in judged
        ]
        try:
            self._db.execute("BEGIN IMMEDIATE")
            with self._db:
                self._db.executemany(_ADD, values)
        except sqlite3.Error as error:
            raise FeatureStoreError(f"{self.file}: {error}") from error

    def since(self, days: float) -> list[Judged]:
        """What was judged in the last days, oldest first, and read as mail is read now. Raises FeatureStoreError."""
        try:
            rows = self._db.execute(_SINCE, (self._version, time.time() - days * _DAY_S))
            return [
                Judged(content, at, p, Label(label), head, about, unpack(*packed))
                for content, at, p, label, head, about, *packed in rows
            ]
        except sqlite3.Error as error:
            raise FeatureStoreError(f"{self.file}: {error}") from error

    def prune(self, days: float, most: int) -> int:
        """Forget what is older, and of more than `most` the oldest. Returns how many. Raises FeatureStoreError.

        What seems to come from tomorrow was judged under a wrong clock, and goes as well: it would stay too long.
        """
        now = time.time()
        try:
            self._db.execute("BEGIN IMMEDIATE")
            with self._db:
                outside = (now - days * _DAY_S, now + _DAY_S)
                gone = self._db.execute(_OUTSIDE, outside).rowcount
                gone += self._db.execute(_ABOVE, (most,)).rowcount
        except sqlite3.Error as error:
            raise FeatureStoreError(f"{self.file}: {error}") from error
        return gone


def prune_everywhere(folder: Path, days: float, most: int) -> int:
    """Recent.prune in the stores of all encoders. Raises FeatureStoreError."""
    gone = 0
    for file in sorted(folder.glob("*.sqlite3")):
        with Recent(folder, file.stem) as recent:
            gone += recent.prune(days, most)
    return gone


def _to_read(file: Path) -> sqlite3.Connection:
    """The store, or an empty one in memory where there is none yet, or only one of an earlier version."""
    if file.exists():
        with closing(wal.to_read(file)) as there:
            if there.execute("SELECT 1 FROM sqlite_master WHERE name = 'judged'").fetchone():
                return wal.to_read(file)
    return connect(Path(":memory:"))
