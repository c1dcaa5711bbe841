"""What the Maildir watcher has moved into Junk by itself: its own verdicts, from which nothing can be learnt.

The watcher (service/sightings.py) writes the file; here it is only read.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path

from . import wal
from .errors import SpamguardError

# What we are about to do and what we have done; `side` is where a message lies as far as we or the user put it there.
_OWN = "state IN ('moving', 'tagging') OR state IN ('moved', 'tagged') AND side = 'junk'"


class OwnMovesError(SpamguardError):
    """The watcher's memory cannot be read."""


def moved_to_junk(file: Path) -> frozenset[str]:
    """The contents that the watcher moved into Junk, and that by its knowledge the user has not moved out for good.

    Empty where nothing was ever watched. Raises OwnMovesError.
    """
    if not file.exists():
        return frozenset()
    try:
        database = wal.to_read(file)
        try:
            rows = database.execute(f"SELECT content FROM message WHERE {_OWN}")  # noqa: S608 (a constant)
            return frozenset(content for (content,) in rows)
        finally:
            database.close()
    except (OSError, sqlite3.Error) as error:
        raise OwnMovesError(f"{file}: {error}") from error
