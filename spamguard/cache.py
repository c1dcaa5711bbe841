"""How large the feature stores are, and what of them can go: never the row of a labelled message, as no mail is kept
that it could be made of again.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from . import wal
from .featurestore import FeatureStoreError, connect, inputs_version

DAY_S = 86_400.0

_HELD = """
SELECT version, count(*), sum(content IN needed),
    sum(length(deep) + length(columns) + length(counts) + length(structure) + length(content) + length(version))
FROM row GROUP BY version ORDER BY version = ? DESC, version
"""
# Going back to the release that wrote them would read them again, and they are all that is left of the mail.
_STALE = """
DELETE FROM row WHERE version <> ?1 AND NOT (content IN needed AND NOT EXISTS
    (SELECT 1 FROM row AS present WHERE present.content = row.content AND present.version = ?1))
"""
_OLD = """
DELETE FROM row WHERE content NOT IN needed
    AND coalesce((SELECT at FROM encoded WHERE encoded.content = row.content), 0) < ?
"""


@dataclass(frozen=True, slots=True)
class Held:
    """The rows of one version in an encoder's store; `stale`: mail is read otherwise now, and nothing finds them.

    `labelled` of them are of labelled messages; `size` counts the bytes of their values.
    """

    encoder: str
    version: str
    stale: bool
    rows: int
    labelled: int
    size: int


def held(folder: Path, labelled: Collection[str]) -> list[Held]:
    """What the stores of all encoders hold, the present version first. Raises FeatureStoreError."""
    found, present = [], inputs_version()
    for file in sorted(folder.glob("*.sqlite3")):
        with _errors(file), closing(wal.to_read(file)) as database:
            database.execute("PRAGMA temp_store = MEMORY")
            database.execute("PRAGMA query_only = OFF")  # for the table in memory
            _note(database, labelled)
            for version, rows, of_labels, size in database.execute(_HELD, (present,)):
                found.append(Held(file.stem, version, version != present, rows, of_labels, size))
    return found


def on_disk(folder: Path) -> dict[str, int]:
    """Bytes that the store of each encoder takes, its journal among them."""
    return {
        file.stem: sum(part.stat().st_size for part in folder.glob(f"{file.name}*"))
        for file in sorted(folder.glob("*.sqlite3"))
    }


def prune(
    folder: Path,
    labelled: Callable[[], Collection[str]],
    *,
    stale: bool = False,
    older_than: float | None = None,
) -> dict[str, int]:
    """Remove rows that nothing needs; returns how many of each encoder. Not to be called during a retrain.

    `stale` rows of other versions go, but where one is all that is left of a labelled message; rows that were made
    more than `older_than` days ago go, but those of labelled messages. `labelled` is asked when nothing can be added
    any more. Raises FeatureStoreError, and then the stores from that one on are as they were.
    """
    gone = {}
    for file in sorted(folder.glob("*.sqlite3")):
        with _errors(file), closing(connect(file)) as database:
            database.execute("PRAGMA temp_store = MEMORY")
            database.execute("BEGIN IMMEDIATE")
            with database:
                _note(database, labelled())
                count = database.execute(_STALE, (inputs_version(),)).rowcount if stale else 0
                if older_than is not None:
                    count += database.execute(_OLD, (time.time() - older_than * DAY_S,)).rowcount
                database.execute("DELETE FROM encoded WHERE content NOT IN (SELECT content FROM row)")
            if count:
                database.execute("VACUUM")
                database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            gone[file.stem] = count
    return gone


def _note(database: sqlite3.Connection, labelled: Collection[str]) -> None:
    database.execute("CREATE TEMP TABLE needed (content TEXT PRIMARY KEY) WITHOUT ROWID")
    database.executemany("INSERT OR IGNORE INTO needed VALUES (?)", ((content,) for content in labelled))


@contextmanager
def _errors(file: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, sqlite3.Error) as error:
        raise FeatureStoreError(f"{file}: {error}") from error
