"""What is in the quarantine, quick to search: a cache in SQLite of what the files say; it may be deleted at any time.

Before each use it is compared with the names in the folders, so that after whatever crash it says what they say.
"""

from __future__ import annotations

import json
import os
import sqlite3
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spamguard import headers, message
from spamguard.errors import QuarantineError
from spamguard.policy import plain

from .envelope import Envelope
from .held import envelope_in, source_in
from .quarantine import HELD, Quarantine, read_head

_VERSION = 1
_TABLE = """CREATE TABLE items (
    id TEXT PRIMARY KEY, state TEXT NOT NULL, received REAL NOT NULL, source TEXT NOT NULL, sender TEXT NOT NULL,
    recipients TEXT NOT NULL, header_from TEXT NOT NULL, subject TEXT NOT NULL, label TEXT, score REAL,
    size INTEGER NOT NULL, damaged TEXT)"""
_INSERT = "INSERT OR REPLACE INTO items VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
_HEAD = 65_536  # bytes in which From and Subject are looked for
_WAIT_S = 60  # for another process that writes
_ITEMS_A_TRANSACTION = 1000


@dataclass(frozen=True, slots=True)
class Item:
    """A message in the quarantine, `state` `held` or `released`; `damaged` says what is wrong with it, if anything.

    `received` is in seconds since 1970 (of a damaged one, when it was last touched), `size` in bytes. `sender` and
    `recipients` are addresses of the envelope; of a message from a Maildir, what its last server noted above its
    Received. `source` is `smtp`, `lmtp` or the path of a Maildir's folder.
    """

    id: str
    state: str
    received: float
    source: str = ""
    sender: str = ""
    recipients: tuple[str, ...] = ()
    header_from: str = ""
    subject: str = ""
    label: str | None = None
    score: float | None = None
    size: int = 0
    damaged: str | None = None

    def is_for(self, mailbox: str) -> bool:
        """Whether this mailbox is a recipient, in whatever spelling."""
        wanted = plain(mailbox.encode("utf-8", "surrogateescape"))
        return any(plain(one.encode("utf-8", "surrogateescape")) == wanted for one in self.recipients)


class Index:
    """Use as a context manager, from one thread. Where its file cannot be used it does without: slow, but right."""

    def __init__(self, quarantine: Quarantine) -> None:
        self._quarantine = quarantine
        self._file = quarantine.folder / "index.sqlite3"

    def __enter__(self) -> Index:
        """Raises OSError if the folders cannot be read."""
        try:
            try:
                self._open(self._file)
            except sqlite3.OperationalError:
                raise  # It is locked, or the disk is full or read-only: nothing is wrong with what is in it.
            except sqlite3.DatabaseError:
                self._discard_file()
                self._open(self._file)
        except (sqlite3.Error, OSError):
            self._open(None)
        return self

    def __exit__(self, *_: object) -> None:
        self._database.close()

    def _open(self, file: Path | None) -> None:
        if file is not None:
            os.close(os.open(file, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600))
        self._database = sqlite3.connect(file or ":memory:", timeout=_WAIT_S, isolation_level=None)
        try:
            self._database.create_function("mentions", 2, _mentions, deterministic=True)
            if file is not None:
                self._database.execute("PRAGMA journal_mode = WAL")
            with self._transaction():
                self._prepare()
            self._refresh()
        except BaseException:
            self._database.close()
            raise

    def _prepare(self) -> None:
        (version,) = self._database.execute("PRAGMA user_version").fetchone()
        if version != _VERSION:
            self._database.execute("DROP TABLE IF EXISTS items")
            self._database.execute(_TABLE)
            self._database.execute(f"PRAGMA user_version = {_VERSION}")

    def _transaction(self) -> _Transaction:
        return _Transaction(self._database)

    def _refresh(self) -> None:
        there = self._quarantine.states()
        # What is damaged is looked at again each time: perhaps it only could not be read.
        known = dict(self._database.execute("SELECT id, state FROM items WHERE damaged IS NULL"))
        with self._transaction():
            gone = [(one,) for (one,) in self._database.execute("SELECT id FROM items") if one not in there]
            self._database.executemany("DELETE FROM items WHERE id = ?", gone)
            moved = [(state, one) for one, state in there.items() if known.get(one, state) != state]
            self._database.executemany("UPDATE items SET state = ? WHERE id = ?", moved)
        missing = sorted(there.keys() - known.keys())
        for start in range(0, len(missing), _ITEMS_A_TRANSACTION):
            rows = [
                row for one in missing[start : start + _ITEMS_A_TRANSACTION] if (row := self._row(one, there[one]))
            ]
            with self._transaction():
                self._database.executemany(_INSERT, rows)

    def _row(self, message_id: str, state: str) -> tuple[Any, ...] | None:
        """A message as a row; None if it is not there any more."""
        folder = self._quarantine.folder / state / message_id
        try:
            said, head = read_head(folder, _HEAD)
            return _row(said, state, head)
        except (QuarantineError, KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            what = str(error) if isinstance(error, QuarantineError) else f"{message_id}: damaged: {error!r}"
            with suppress(FileNotFoundError):
                touched = folder.lstat().st_mtime
                return message_id, state, touched, "", "", "[]", "", "", None, None, 0, _text(what)
            return None

    def items(
        self,
        since: float | None = None,
        sender: str = "",
        recipient: str = "",
        score: float | None = None,
        released: bool = False,
    ) -> list[Item]:
        """Oldest first: what came at `since` or later, has this text in an address, and this score or more.

        With `released` what has been released too. What is damaged has no addresses and no score to go by, and is
        left out where they are asked for.
        """
        try:
            return self._items(since, sender, recipient, score, released)
        except (sqlite3.Error, ValueError, TypeError):
            self.__exit__()  # What is in the file is damaged: the messages themselves say it again.
            self._discard_file()
            self._open(None)
            return self._items(since, sender, recipient, score, released)

    def _discard_file(self) -> None:
        with suppress(OSError):
            for end in ("", "-wal", "-shm"):
                self._file.with_name(self._file.name + end).unlink(missing_ok=True)

    def _items(
        self, since: float | None, sender: str, recipient: str, score: float | None, released: bool
    ) -> list[Item]:
        found = self._database.execute(
            "SELECT * FROM items WHERE (? OR state = ?) AND received >= ? AND (? IS NULL OR score >= ?)"
            " AND (NOT ? OR mentions(json_array(sender, header_from), ?)) AND (NOT ? OR mentions(recipients, ?))"
            " ORDER BY received, id",
            (
                released, HELD, float("-inf") if since is None else since, score, score,
                bool(sender), _text(sender), bool(recipient), _text(recipient),
            ),
        )  # fmt: skip
        return [_item(*row) for row in found]


def _item(*row: Any) -> Item:
    message_id, state, received, source, sender, recipients, *rest = row
    return Item(message_id, state, received, source, sender, tuple(json.loads(recipients)), *rest)


def in_folder(folder: Path, state: str) -> Item:
    """A message as its folder says, past the index. Raises QuarantineError if it is damaged."""
    said, head = read_head(folder, _HEAD)
    try:
        return _item(*_row(said, state, head))
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise QuarantineError(f"{folder.name}: damaged: {error!r}") from error


class _Transaction:
    """One that waits for its turn at the beginning: SQLite does not wait where a reader becomes a writer."""

    def __init__(self, database: sqlite3.Connection) -> None:
        self._database = database

    def __enter__(self) -> None:
        self._database.execute("BEGIN IMMEDIATE")

    def __exit__(self, kind: object, *_: object) -> None:
        self._database.execute("COMMIT" if kind is None else "ROLLBACK")


def _row(said: dict[str, Any], state: str, head: bytes) -> tuple[Any, ...]:
    envelope, source, verdict = envelope_in(said), source_in(said), said["verdict"]
    if source is None:
        where = "lmtp" if envelope.lmtp else "smtp"
        sender, recipients = _envelope_addresses(envelope)
    else:
        where = source.maildir if source.folder == "INBOX" else f"{source.maildir}/{source.folder}"
        sender, recipients = noted_addresses(head)
    top = message.parse(head[: headers.end(head)])
    shown = f"{top.sender_name} <{top.sender_address}>" if top.sender_name else top.sender_address
    return (
        said["id"], state, said["received"], _text(where), _text(sender), json.dumps(recipients), _text(shown),
        _text(top.subject), str(verdict["label"]) if verdict else None,
        float(verdict["probability"]) if verdict else None, int(said["size"]), None,
    )  # fmt: skip


def _envelope_addresses(envelope: Envelope) -> tuple[str, list[str]]:
    sender = envelope.sender.address if envelope.sender else b""
    return sender.decode("utf-8", "surrogateescape"), [
        path.address.decode("utf-8", "surrogateescape") for path in envelope.recipients
    ]


def noted_addresses(head: bytes) -> tuple[str, list[str]]:
    """Sender and recipients as the last server noted them; below its Received anybody may have written anything."""
    sender, recipients = "", []
    for name, value in headers.fields(head):
        address = value.strip(b"<> ").decode("utf-8", "surrogateescape")
        if name == b"received":
            break
        if name == b"return-path":
            sender = sender or address
        elif name in (b"delivered-to", b"x-original-to", b"envelope-to"):
            found = [one.strip(" <>") for one in address.split(",")] if name == b"envelope-to" else [address]
            recipients += [one for one in dict.fromkeys(found) if one and one not in recipients]
    return sender, recipients


def _mentions(texts: str, wanted: str) -> bool:
    return any(wanted.casefold() in _text(text).casefold() for text in json.loads(texts))


def _text(text: str) -> str:
    """Text that SQLite can keep: it knows no lone surrogates."""
    return text.encode("utf-8", "backslashreplace").decode()
