"""What is held back: each message's exact bytes, envelope and verdict, in a folder of its own, safe from a crash."""

from __future__ import annotations

import fcntl
import hashlib
import json
import math
import os
import re
import secrets
import shutil
import stat
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from spamguard.errors import QuarantineError
from spamguard.verdict import Verdict

from .envelope import Envelope
from .held import VERSION, Held, Source, check, envelope_in, said_of, source_in
from .maildir import sync_folder

HELD, RELEASED = STATES = ("held", "released")

_ID = re.compile(r"[0-9a-f]{8,64}")
_MESSAGE, _ENVELOPE = "message.eml", "envelope.json"
_LEFTOVER_S = 86_400
_LARGEST_ENVELOPE = 2**26
_FOLDER = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_DIRECTORY


@dataclass(frozen=True, slots=True)
class Staged:
    """A message that is on the disk, but not held yet."""

    temporary: Path
    final: Path

    def commit(self) -> None:
        """From the return on it is held, whatever crashes. Raises OSError: it is not, but for a failing disk."""
        try:
            self.temporary.rename(self.final)
        except OSError:
            self.discard()
            raise
        sync_folder(self.final.parent)

    def discard(self) -> None:
        """Forget it; after commit() this does nothing. What cannot be removed now is a leftover."""
        gone = self.temporary.with_name(f"{self.temporary.name}.{secrets.token_hex(8)}")
        with suppress(OSError):
            self.temporary.rename(gone)  # so that a commit() in another thread takes all of it or nothing
            shutil.rmtree(gone, ignore_errors=True)


class Quarantine:
    """`folder/held/ID/` for each message, `folder/tmp/ID/` while it is written, `folder/released/ID/` at the end.

    Nothing else says what is held. Synchronous.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._tmp = folder / "tmp"
        self._held = folder / HELD

    def create(self) -> None:
        """Create what is missing, and remove what a crash has left behind a day ago. Raises OSError."""
        self._create_folders()
        for left in self._tmp.iterdir():
            with suppress(FileNotFoundError):  # Another is at work.
                if left.lstat().st_mtime < time.time() - _LEFTOVER_S:
                    self._out_of_the_way(left)

    def _out_of_the_way(self, left: Path) -> None:
        """Remove a leftover. Should it be wanted still, as a clock has jumped, its commit() fails as a whole."""
        gone = self._tmp / f"{left.name[:64]}.{secrets.token_hex(8)}"
        left.rename(gone)
        _remove(gone)

    def _create_folders(self) -> None:
        for missing in (self.folder, self._tmp, self._held, self.folder / RELEASED):
            if not missing.is_dir():
                missing.mkdir(mode=0o700, parents=True, exist_ok=True)
                sync_folder(missing.parent)

    def stage(
        self,
        message_id: str,
        envelope: Envelope,
        content: Iterable[bytes],
        verdict: Verdict | None,
        source: Source | None = None,
    ) -> Staged:
        """Write a message down, under an id that none has had before; `source` is for what was taken from a Maildir,
        whose envelope is empty.

        Raises OSError, and then nothing is left behind.
        """
        staged = Staged(self._tmp / _checked(message_id), self._held / message_id)
        staged.temporary.mkdir(mode=0o700)
        try:
            size, digest = _write(staged.temporary / _MESSAGE, content)
            said = {"version": VERSION, "id": message_id, "received": time.time(), "size": size, "sha256": digest}
            said |= said_of(envelope, verdict, source)
            _write(staged.temporary / _ENVELOPE, [json.dumps(said, indent=1).encode()])
            sync_folder(staged.temporary)
        except BaseException:
            staged.discard()
            raise
        return staged

    def held(self) -> Iterator[str]:
        """The ids of what is held. Raises OSError."""
        yield from sorted(entry.name for entry in self._held.iterdir() if _ID.fullmatch(entry.name))

    def states(self) -> dict[str, str]:
        """`held` or `released` of each message that is there, damaged ones too. Raises OSError."""
        found: dict[str, str] = {}
        for state in STATES:  # In the order in which messages move, so that none is missed.
            with suppress(FileNotFoundError):
                names = [entry.name for entry in (self.folder / state).iterdir()]
                found |= {name: state for name in names if _ID.fullmatch(name)}
        return found

    def resolve(self, text: str) -> str:
        """The id that is, or that alone begins with, `text`. Raises QuarantineError, OSError."""
        there, text = self.states(), _checked(text)
        begun = [text] if text in there else [one for one in there if one.startswith(text)]
        if len(begun) != 1:
            what = f"{len(begun)} messages have such an id, say more of it" if begun else "no such message"
            raise QuarantineError(f"{text}: {what}")
        return begun[0]

    def path(self, message_id: str) -> Path:
        """The folder of a message. Raises QuarantineError if there is none."""
        for state in STATES:
            path = self.folder / state / _checked(message_id)
            if os.path.lexists(path):
                return path
        raise QuarantineError(f"{message_id}: no such message")

    def open(self, message_id: str) -> Held:
        """Read a message, held or released. Raises QuarantineError if it is not there, or not as we wrote it."""
        return read(self.path(message_id))

    @contextmanager
    def locked(self, message_id: str, wait: bool = True) -> Iterator[Path]:
        """The folder of a message, which nobody else releases or deletes meanwhile.

        Raises QuarantineError if it is not there, OSError, and BlockingIOError instead of waiting.
        """
        while True:
            folder = self.path(message_id)
            try:
                descriptor = os.open(folder, _FOLDER)
            except FileNotFoundError:
                continue  # It has moved.
            except NotADirectoryError:
                yield folder  # A link or file in its place is damaged, and can only be deleted.
                return
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
                if _is_at(folder, descriptor):
                    yield folder
                    return
            finally:
                os.close(descriptor)

    def settle(self, folder: Path) -> None:
        """A held message is released now: from the return on nobody releases it again. Within locked().

        Raises OSError.
        """
        self._create_folders()
        folder.rename(self.folder / RELEASED / folder.name)
        sync_folder(self.folder / RELEASED)
        sync_folder(folder.parent)

    def delete(self, message_id: str, wait: bool = True) -> None:
        """Remove a message, damaged or not. Raises as locked()."""
        with self.locked(message_id, wait) as folder:
            self._create_folders()
            gone = self._tmp / f"{message_id}.{secrets.token_hex(8)}"
            folder.rename(gone)
            sync_folder(folder.parent)
        _remove(gone)


def read(folder: Path) -> Held:
    """The message in such a folder. Raises QuarantineError if it is not there, or if it is not as we wrote it."""
    with _opened(folder) as descriptor:
        said = _said(descriptor, folder.name)
        with _file(descriptor, _MESSAGE, said["size"]) as file:
            content = file.read()  # at most `size`, or it would not be open
        if len(content) != said["size"] or hashlib.sha256(content).hexdigest() != said["sha256"]:
            raise ValueError("its bytes have changed")
        return Held(folder.name, said["received"], envelope_in(said), said["verdict"], source_in(said), content)


def read_head(folder: Path, limit: int) -> tuple[dict[str, Any], bytes]:
    """What envelope.json says, and the first `limit` bytes of the message at most. Raises as read()."""
    with _opened(folder) as descriptor:
        said = _said(descriptor, folder.name)
        with _file(descriptor, _MESSAGE, said["size"]) as file:
            if os.fstat(file.fileno()).st_size != said["size"]:
                raise ValueError("its bytes have changed")
            return said, file.read(limit)


@contextmanager
def _opened(folder: Path) -> Iterator[int]:
    """The folder of a message, open; what proves wrong with it is one line."""
    try:
        descriptor = os.open(folder, _FOLDER)
        try:
            yield descriptor
        finally:
            os.close(descriptor)
    except OSError as error:
        raise QuarantineError(f"{folder.name}: cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise QuarantineError(f"{folder.name}: damaged: {error!r}") from error


def _said(folder: int, message_id: str) -> dict[str, Any]:
    with _file(folder, _ENVELOPE, _LARGEST_ENVELOPE) as file:
        said = json.loads(file.read(_LARGEST_ENVELOPE))
    if said["version"] != VERSION or said["id"] != message_id:
        raise ValueError("it is the envelope of another message or of another version")
    if not isinstance(said["received"], float) or not math.isfinite(said["received"]):
        raise TypeError("it has no time")
    assert isinstance(said, dict)
    check(said)
    return said


@contextmanager
def _file(folder: int, name: str, limit: int) -> Iterator[BinaryIO]:
    """A file of a folder that is open, and no link, device or pipe, nor larger than the limit."""
    # Without O_NONBLOCK the opening of a pipe would wait for a writer.
    descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
    try:
        about = os.fstat(descriptor)
        if not stat.S_ISREG(about.st_mode) or about.st_size > limit:
            raise ValueError(f"{name} is not what we wrote")
        with open(descriptor, "rb", closefd=False) as file:
            yield file
    finally:
        os.close(descriptor)


def replace_file(path: Path, content: bytes) -> None:
    """Write a file in the place of another, at once or not at all. Raises OSError."""
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(8)}")
    try:
        _write(temporary, [content])
        temporary.rename(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def _is_at(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.lstat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _remove(path: Path) -> None:
    """Remove what is out of the way already; what cannot be removed now is a leftover."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _checked(message_id: str) -> str:
    """An id of ours, so that none can lead out of the folder."""
    if not _ID.fullmatch(message_id):
        raise QuarantineError(f"{message_id[:70]!r} is no id of a message")
    return message_id


def _write(path: Path, content: Iterable[bytes]) -> tuple[int, str]:
    """Write a new file to the disk; its size and sha256."""
    size, digest = 0, hashlib.sha256()
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600), "wb") as file:  # noqa: PTH123
        for piece in content:
            file.write(piece)
            digest.update(piece)
            size += len(piece)
        file.flush()
        os.fsync(file.fileno())
    return size, digest.hexdigest()
