"""What the watcher remembers, in SQLite: which messages it has judged, where each lies, and which moves wait to be
believed. What a process did before SIGKILL is known to the next one.

A message is known by the hash of its content, as servers and clients give it a new name when they move it. As long as
it stays in its folder, the part of its name that never changes says that it is still there.
"""

from __future__ import annotations

import fcntl
import sqlite3
import time
from collections.abc import Callable, Container, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

from spamguard.errors import SpamguardError
from spamguard.verdict import Label, Verdict

from .mailbox import Spot, text

# Of a message that is in no folder any more; so long it may come back, from a backup or another client.
_KEPT_S = 90 * 86_400

_SCHEMA = """
CREATE TABLE IF NOT EXISTS maildir (path TEXT PRIMARY KEY, since REAL NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS message (
    maildir TEXT, content TEXT, state TEXT NOT NULL, side TEXT NOT NULL, at REAL NOT NULL, base TEXT NOT NULL,
    label TEXT, probability REAL, head TEXT, folder TEXT NOT NULL, target TEXT,
    gone_at REAL, PRIMARY KEY (maildir, content)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS place (
    maildir TEXT, folder TEXT, base TEXT, content TEXT NOT NULL, stamp TEXT NOT NULL, keyword TEXT,
    PRIMARY KEY (maildir, folder, base)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS place_content ON place (maildir, content);
CREATE TABLE IF NOT EXISTS belief (
    maildir TEXT, content TEXT, label TEXT NOT NULL, source TEXT NOT NULL, due REAL NOT NULL,
    PRIMARY KEY (maildir, content)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS message_state ON message (state) WHERE state IN ('moving', 'tagging', 'holding');
"""


class SightingsError(SpamguardError):
    """The file of the watcher's memory cannot be used."""


@dataclass(frozen=True, slots=True)
class Known:
    """A message that was seen before.

    `state` is `seen` (never judged: it was there before us, or lay where nothing is judged), `left`, `moved`, `held`,
    `tagged`, or while we are at it `moving`, `holding`, `tagging`. `side` is `junk` or `ham`: where it lies as far
    as we did it or believe it. `at` is when that was noted first, `base` and `folder` where the message was, `target`
    the name or id that we give it.
    """

    content: str
    state: str
    side: str
    at: float
    base: str
    label: str | None
    folder: str
    target: str | None


@dataclass(frozen=True, slots=True)
class Place:
    """The message under a name in a folder; no content: it was there before us and has not been looked at."""

    content: str
    stamp: str
    keyword: str | None


@dataclass(frozen=True, slots=True)
class Belief:
    """What the user seems to have said of a message, and why: `moved` or `keyword`; to be believed at `due`."""

    maildir: str
    content: str
    label: Label
    source: str
    due: float


class Sightings:
    """Any thread may use it. Methods raise SightingsError."""

    def __init__(self, file: Path) -> None:
        """Open or make the file; only one process may have it. Raises SightingsError."""
        self._file = file
        self._lock = Lock()
        self._listings: list[set[tuple[str, str, str]]] = []
        """For each look into a folder that is going on, what has been put anywhere meanwhile."""
        try:
            self._alone = file.with_suffix(".lock").open("wb")
            fcntl.flock(self._alone, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self._alone.close()
            raise SightingsError(f"{file}: another daemon of this state folder is watching already") from error
        except OSError as error:
            raise SightingsError(f"{file.with_suffix('.lock')}: {error.strerror}") from error
        try:
            file.touch(0o600)
            # A power cut may take the last second: then that mail is judged once more.
            self._db = sqlite3.connect(file, timeout=60, isolation_level=None, check_same_thread=False)
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = NORMAL")
            self._db.executescript(_SCHEMA)
        except (OSError, sqlite3.Error) as error:
            raise SightingsError(f"{file}: {error}") from error

    def close(self) -> None:
        with self._lock:
            self._db.close()
            self._alone.close()

    def begin(self, maildir: str, there: Callable[[], Iterable[Spot]]) -> None:
        """Where we have never been, note what is there: it is nothing new, and will be looked at in its turn."""
        with self._transaction() as db:
            if db.execute("SELECT 1 FROM maildir WHERE path = ?", (maildir,)).fetchone():
                return
            rows = [(maildir, spot.folder_text, spot.unique) for spot in there()]
            db.executemany("INSERT OR IGNORE INTO place VALUES (?, ?, ?, '', '', NULL)", rows)
            db.execute("INSERT INTO maildir VALUES (?, ?)", (maildir, time.time()))

    def place(self, maildir: str, spot: Spot) -> Place | None:
        """What is known to lie in this folder under this name."""
        with self._transaction() as db:
            found = db.execute(
                "SELECT content, stamp, keyword FROM place WHERE maildir = ? AND folder = ? AND base = ?",
                (maildir, spot.folder_text, spot.unique),
            ).fetchone()
            return Place(*found) if found else None

    def message(self, maildir: str, content: str) -> Known | None:
        with self._transaction() as db:
            found = db.execute(
                "SELECT content, state, side, at, base, label, folder, target FROM message"
                " WHERE maildir = ? AND content = ?",
                (maildir, content),
            ).fetchone()
            return Known(*found) if found else None

    def judged(
        self,
        maildir: str,
        content: str,
        spot: Spot,
        *,
        state: str,
        side: str,
        stamp: str,
        keyword: Label | None = None,
        verdict: Verdict | None = None,
        target: str | None = None,
        place: tuple[Spot, str] | None = None,
        at: float | None = None,
    ) -> bool:
        """Note a message, before anything is done with it; False if it was judged already, or only `seen` again.

        `place` is where we are going to put it, and the stamp it will have: there it will be no news. `at` is the
        time in place of now, 0 for what was there before us.
        """
        said = (verdict.label.value, verdict.probability, verdict.head) if verdict else (None, None, None)
        when = time.time() if at is None else at
        row = (maildir, content, state, side, when, spot.unique, *said, spot.folder_text, target, None)
        with self._transaction() as db:
            if state != "seen":
                db.execute(
                    "DELETE FROM message WHERE maildir = ? AND content = ? AND state = 'seen'", (maildir, content)
                )
            first = db.execute("INSERT OR IGNORE INTO message VALUES (?,?,?,?,?,?,?,?,?,?,?,?)", row).rowcount == 1
            if first:
                self._put(db, maildir, spot, content, stamp, keyword)
                if place is not None:
                    self._put(db, maildir, place[0], content, place[1], keyword)
        return first

    def finished(
        self,
        maildir: str,
        content: str,
        state: str,
        side: str,
        *,
        gone: Spot | None = None,
        lies: tuple[Spot, str] | None = None,
    ) -> None:
        """Note what has become of a message: where it does not lie (any more), and where it does, with its stamp.

        What the user seemed to say of it meanwhile was our own doing.
        """
        with self._transaction() as db:
            key = (maildir, content)
            db.execute(
                "UPDATE message SET state = ?, side = ? WHERE maildir = ? AND content = ?", (state, side, *key)
            )
            if gone is not None:
                where = (maildir, gone.folder_text, gone.unique)
                db.execute("DELETE FROM place WHERE maildir = ? AND folder = ? AND base = ?", where)
            if lies is not None:
                # A user may have moved it on already: where else it lies is to be looked at once more.
                db.execute("DELETE FROM place WHERE maildir = ? AND content = ?", key)
                self._put(db, maildir, lies[0], content, lies[1], None)
                db.execute("DELETE FROM belief WHERE maildir = ? AND content = ?", key)

    def forget(self, maildir: str, content: str) -> None:
        """As if it had never been seen."""
        with self._transaction() as db:
            for table in ("message", "place", "belief"):
                db.execute(f"DELETE FROM {table} WHERE maildir = ? AND content = ?", (maildir, content))  # noqa: S608

    def unfinished(self) -> list[tuple[str, Known]]:
        """What a process was at when it was killed, with its Maildir."""
        with self._transaction() as db:
            rows = db.execute(
                "SELECT maildir, content, state, side, at, base, label, folder, target FROM message"
                " WHERE state IN ('moving', 'tagging', 'holding')"
            ).fetchall()
        return [(row[0], Known(*row[1:])) for row in rows]

    def arrived(
        self,
        maildir: str,
        content: str,
        spot: Spot,
        stamp: str,
        keyword: Label | None,
        *,
        expect: Belief | None = None,
        dismiss: str | None = None,
    ) -> None:
        """Note that a known message lies here as well, or with another keyword, and with it what that says.

        `expect`: the user seems to have said this, to be believed when it is due unless he changes his mind.
        `dismiss`: what he seemed to have said in this way he has taken back.
        """
        with self._transaction() as db:
            self._put(db, maildir, spot, content, stamp, keyword)
            if dismiss is not None:
                query = "DELETE FROM belief WHERE maildir = ? AND content = ? AND source = ?"
                db.execute(query, (maildir, content, dismiss))
            if expect is not None:
                row = (maildir, content, expect.label.value, expect.source, expect.due)
                db.execute("INSERT OR REPLACE INTO belief VALUES (?, ?, ?, ?, ?)", row)

    def reconcile(self, maildir: str, folder: str, look: Callable[[], Iterable[Spot]]) -> list[Spot]:
        """Forget the places in this folder where nothing lies any more; return what is not known to lie here.

        `look` lists the folder. What is put into it while that goes on, or is about to be, is not forgotten.
        """
        meanwhile: set[tuple[str, str, str]] = set()
        with self._lock:
            self._listings.append(meanwhile)
        try:
            there = {spot.unique: spot for spot in look()}
            with self._transaction() as db:
                rows = db.execute(
                    "SELECT base, content, EXISTS (SELECT 1 FROM message WHERE message.maildir = place.maildir"
                    " AND message.content = place.content AND state IN ('moving', 'tagging', 'holding'))"
                    " FROM place WHERE maildir = ? AND folder = ?",
                    (maildir, text(folder)),
                ).fetchall()
                gone = [
                    key
                    for base, _, busy in rows
                    if base not in there and not busy and (key := (maildir, text(folder), base)) not in meanwhile
                ]
                db.executemany("DELETE FROM place WHERE maildir = ? AND folder = ? AND base = ?", gone)
        finally:
            with self._lock:
                self._listings = [one for one in self._listings if one is not meanwhile]
        known = {base: content for base, content, _ in rows}
        return [spot for base, spot in there.items() if not known.get(base)]

    def gone(self, maildir: str, folder: str, names: Iterable[str], back: Container[str]) -> None:
        """Forget that messages lie under those names: they have been taken away, and some are back.

        Of those only what has never been looked at stays known, as it would be taken for new mail.
        """
        rows = [(maildir, text(folder), name, name not in back) for name in names]
        with self._transaction() as db:
            query = "DELETE FROM place WHERE maildir = ? AND folder = ? AND base = ? AND (content <> '' OR ?)"
            db.executemany(query, rows)

    def keep_folders(self, maildir: str, folders: Iterable[str]) -> None:
        """Forget the places in folders that are gone."""
        there = [text(folder) for folder in folders]
        with self._transaction() as db:
            rows = db.execute("SELECT DISTINCT folder FROM place WHERE maildir = ?", (maildir,)).fetchall()
            gone = [(maildir, row[0]) for row in rows if row[0] not in there]
            db.executemany("DELETE FROM place WHERE maildir = ? AND folder = ?", gone)

    def places(self, maildir: str, content: str) -> list[tuple[str, str]]:
        """Folder and name of each place where the message lay when we looked last."""
        with self._transaction() as db:
            query = "SELECT folder, base FROM place WHERE maildir = ? AND content = ?"
            return list(db.execute(query, (maildir, content)))

    def dismiss(self, belief: Belief) -> None:
        """It was not so. (What the user has said since stays.)"""
        with self._transaction() as db:
            self._drop(db, belief)

    def dismiss_moves(self, maildir: str) -> None:
        """No move in this Maildir that is not believed yet was a word of the user."""
        with self._transaction() as db:
            db.execute("DELETE FROM belief WHERE maildir = ? AND source = 'moved'", (maildir,))

    def due(self, now: float, quiet_s: float, most: int) -> list[Belief]:
        """What is to be believed now. (What is due later than it can be was noted before the clock was put back.)"""
        with self._transaction() as db:
            query = "SELECT maildir, content, label, source, due FROM belief WHERE due <= ? OR due > ?"
            rows = db.execute(f"{query} ORDER BY due LIMIT ?", (now, now + quiet_s + 3600, most)).fetchall()
        return [Belief(maildir, content, Label(label), source, due) for maildir, content, label, source, due in rows]

    def settle(self, belief: Belief, side: str | None) -> bool:
        """It has become a label; `side` is where the message now lies for good, None if it has not moved.

        False if the user has gone on meanwhile: what that says was measured against where it lay before, so it is
        as if it had not been seen, and everything is to be looked at once more.
        """
        key = (belief.maildir, belief.content)
        with self._transaction() as db:
            if side is not None:
                db.execute("UPDATE message SET side = ? WHERE maildir = ? AND content = ?", (side, *key))
            if self._drop(db, belief):
                return True
            db.execute("DELETE FROM belief WHERE maildir = ? AND content = ? AND source = 'moved'", key)
            db.execute("DELETE FROM place WHERE maildir = ? AND content = ?", key)
            return False

    def prune(self) -> None:
        """Forget what has long been in no folder."""
        here = (
            "EXISTS (SELECT 1 FROM place WHERE place.maildir = message.maildir AND place.content = message.content)"
        )
        now = time.time()
        with self._transaction() as db:
            db.execute(f"UPDATE message SET gone_at = NULL WHERE gone_at IS NOT NULL AND {here}")  # noqa: S608
            db.execute(f"DELETE FROM message WHERE gone_at < ? AND NOT {here}", (now - _KEPT_S,))  # noqa: S608
            db.execute(f"UPDATE message SET gone_at = ? WHERE gone_at IS NULL AND NOT {here}", (now,))  # noqa: S608

    def _drop(self, db: sqlite3.Connection, belief: Belief) -> bool:
        """False if the user has taken it back meanwhile, or said it anew."""
        row = (belief.maildir, belief.content, belief.source, belief.due)
        query = "DELETE FROM belief WHERE maildir = ? AND content = ? AND source = ? AND due = ?"
        return db.execute(query, row).rowcount == 1

    def _put(
        self, db: sqlite3.Connection, maildir: str, spot: Spot, content: str, stamp: str, keyword: Label | None
    ) -> None:
        row = (maildir, spot.folder_text, spot.unique, content, stamp, keyword.value if keyword else None)
        db.execute("INSERT OR REPLACE INTO place VALUES (?, ?, ?, ?, ?, ?)", row)
        for meanwhile in self._listings:
            meanwhile.add(row[:3])

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            try:
                self._db.execute("BEGIN IMMEDIATE")
                with self._db:
                    yield self._db
            except sqlite3.Error as error:
                raise SightingsError(f"{self._file}: {error}") from error
