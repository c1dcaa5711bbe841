"""A message back into a folder of a Maildir, as it lay there: name, flags, time, mode; once, while it lies there."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace

from spamguard.config import INBOX

from .held import Source
from .maildir import unique_name

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_LONGEST = 255
_UNIQUE = re.compile(r"[^,]*")


def free_place(wanted: Source, size: int) -> Source:
    """The place for a message of so many bytes: `wanted`, or if its name is taken the same with a name of its own.

    What stands behind a comma in a name (`S=` and `W=`, sizes for Dovecot; `U=`, an offline copy's id) is true of
    the message that was taken, not of one with a mark more. Raises OSError.
    """
    with _folders(wanted) as folders:
        for unique in (_UNIQUE.match(wanted.name)[0], unique_name()):  # type: ignore[index]
            name = f"{unique},S={size}"
            if len(os.fsencode(name)) + len(":2,") + len(wanted.flags) > _LONGEST:
                continue
            place = replace(wanted, name=name)
            if not _is_there(folders, place.name):
                return place
    raise FileExistsError(f"{wanted.maildir}: no name is free")


def put_back(place: Source, content: bytes) -> None:
    """From the return on it is there, whatever crashes. A message that has the name already is the one of an earlier
    attempt: free_place() has found it free. Raises OSError, and then nothing is left behind.
    """
    with _folders(place) as folders:
        tmp = folders["tmp"]
        with suppress(FileNotFoundError):
            os.unlink(place.name, dir_fd=tmp)  # What an attempt has left that was killed.
        if _is_there(folders, place.name):
            return
        try:
            _write(tmp, place, content)
            folder, name = ("cur", f"{place.name}:2,{place.flags}") if place.flags else ("new", place.name)
            os.link(place.name, name, src_dir_fd=tmp, dst_dir_fd=folders[folder], follow_symlinks=False)
            os.fsync(folders[folder])
        finally:
            with suppress(FileNotFoundError):
                os.unlink(place.name, dir_fd=tmp)


def _write(folder: int, place: Source, content: bytes) -> None:
    with open(os.open(place.name, _FILE, 0o600, dir_fd=folder), "wb") as file:  # noqa: PTH123
        file.write(content)
        file.flush()
        about = os.fstat(folder)
        if os.geteuid() == 0:
            os.fchown(file.fileno(), about.st_uid, about.st_gid)
        os.fchmod(file.fileno(), place.mode & 0o777)
        os.utime(file.fileno(), ns=(place.mtime_ns, place.mtime_ns))
        os.fsync(file.fileno())


def _is_there(folders: dict[str, int], name: str) -> bool:
    entries = (entry for one in ("new", "cur") for entry in os.listdir(folders[one]))  # noqa: PTH208 (of an open one)
    return any(entry.partition(":")[0] == name for entry in entries)


@contextmanager
def _folders(place: Source) -> Iterator[dict[str, int]]:
    """`tmp`, `new` and `cur` of a folder, open. None may be a link: the Maildir is another's, and we may be root."""
    opened: dict[str, int] = {}
    try:
        opened["folder"] = os.open(place.maildir, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        if place.folder != INBOX:
            inner = os.open(place.folder, _FOLDER, dir_fd=opened["folder"])
            os.close(opened["folder"])
            opened["folder"] = inner
        for name in ("tmp", "new", "cur"):
            opened[name] = os.open(name, _FOLDER, dir_fd=opened["folder"])
        yield opened
    finally:
        for descriptor in opened.values():
            os.close(descriptor)
