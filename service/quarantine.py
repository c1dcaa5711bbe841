"""What is held back: each message's exact bytes, envelope and verdict, in a folder of its own, safe from a crash."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import stat
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from spamguard.errors import QuarantineError
from spamguard.verdict import Verdict

from .envelope import Envelope
from .held import VERSION, Held, Source, envelope_in, said_of, source_in
from .maildir import sync_folder

_ID = re.compile(r"[0-9a-f]{8,64}")
_MESSAGE, _ENVELOPE = "message.eml", "envelope.json"
_LEFTOVER_S = 86_400
_LARGEST_ENVELOPE = 2**26


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
        shutil.rmtree(self.temporary, ignore_errors=True)


class Quarantine:
    """`folder/held/ID/` for each message; `folder/tmp/ID/` while it is written. Synchronous."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._tmp = folder / "tmp"
        self._held = folder / "held"

    def create(self) -> None:
        """Create what is missing, and remove what a crash has left behind a day ago. Raises OSError."""
        for missing in (self._folder, self._tmp, self._held):
            if not missing.is_dir():
                missing.mkdir(mode=0o700, parents=True, exist_ok=True)
                sync_folder(missing.parent)
        for left in self._tmp.iterdir():
            if left.lstat().st_mtime < time.time() - _LEFTOVER_S:
                shutil.rmtree(left, ignore_errors=True)

    def stage(
        self,
        message_id: str,
        envelope: Envelope,
        content: Iterable[bytes],
        verdict: Verdict | None,
        source: Source | None = None,
    ) -> Staged:
        """Write a message down; `source` is for what was taken from a Maildir, whose envelope is empty.

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

    def has(self, message_id: str) -> bool:
        """Whether it has been held: it still is, or it was released."""
        return any((self._folder / state / _checked(message_id)).is_dir() for state in ("held", "released"))

    def open(self, message_id: str) -> Held:
        """Read what is held. Raises QuarantineError if there is no such message, or if it is not as we wrote it."""
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            folder = os.open(self._held / _checked(message_id), flags | os.O_DIRECTORY)
            try:
                said = json.loads(_read(folder, _ENVELOPE, _LARGEST_ENVELOPE))
                content = _read(folder, _MESSAGE, said["size"])
            finally:
                os.close(folder)
            if said["version"] != VERSION or said["id"] != message_id:
                raise ValueError("it is the envelope of another message or of another version")
            if len(content) != said["size"] or hashlib.sha256(content).hexdigest() != said["sha256"]:
                raise ValueError("its bytes have changed")
            return Held(message_id, said["received"], envelope_in(said), said["verdict"], source_in(said), content)
        except OSError as error:
            raise QuarantineError(f"{message_id}: cannot be read: {error.strerror}") from error
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise QuarantineError(f"{message_id}: damaged: {error!r}") from error


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


def _read(folder: int, name: str, limit: int) -> bytes:
    """A file of a folder that is open, and no link, device or pipe; never more than one byte over the limit."""
    # Without O_NONBLOCK the opening of a pipe would wait for a writer.
    descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
    with open(descriptor, "rb") as file:  # noqa: PTH123
        about = os.fstat(descriptor)
        if not stat.S_ISREG(about.st_mode) or about.st_size > limit:
            raise ValueError(f"{name} is not what we wrote")
        return file.read(limit + 1)
