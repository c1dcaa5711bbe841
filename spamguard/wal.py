"""SQLite with a write-ahead log, which readers and writers of several processes may use at once."""

from __future__ import annotations

import re
import sqlite3
import time

BUSY_S = 60.0
_TABLE = re.compile(r"CREATE TABLE IF NOT EXISTS (\w+)")


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
