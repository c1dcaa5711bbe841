"""SQLite with a write-ahead log, which readers and writers of several processes may use at once."""

from __future__ import annotations

import re
import sqlite3
import time
from pathlib import Path

BUSY_S = 60.0
_TABLE = re.compile(r"CREATE TABLE IF NOT EXISTS (\w+)")


def to_read(file: Path) -> sqlite3.Connection:
    """Open a database that is there, for reading alone: nothing is made or changed. Raises sqlite3.Error.

    Not by mode=ro, which leaves files of the log behind.
    """
    database = sqlite3.connect(f"{file.absolute().as_uri()}?mode=rw", uri=True, timeout=BUSY_S, isolation_level=None)
    database.execute("PRAGMA query_only = ON")
    return database


def set_up(database: sqlite3.Connection, schema: str) -> None:
    """Switch to the log, and make what is missing of the tables that `schema` creates. Raises sqlite3.Error.

    SQLite does not wait here as it does elsewhere: who makes the file at the same time as another tries again.
    """
    until = time.monotonic() + BUSY_S
    while True:
        try:
            database.execute("PRAGMA journal_mode = WAL")
            there = {name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
            if not there.issuperset(_TABLE.findall(schema)):
                database.executescript(f"BEGIN IMMEDIATE; {schema} COMMIT;")
            return
        except sqlite3.OperationalError as error:
            if database.in_transaction:
                database.execute("ROLLBACK")
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > until:
                raise
            time.sleep(0.01)
