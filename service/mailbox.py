"""A Maildir++ tree as the watcher sees it: folders, names, flags, keywords. Files are read and moved, never changed.

Below the Maildir itself no symbolic link is followed, so that nobody can make us read or move what is not his mail.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from spamguard.config import INBOX
from spamguard.verdict import Label

from .maildir import unique_name

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_PARTS = ("new", "cur")
KEYWORD_FILE, _KEYWORD_BYTES = "dovecot-keywords", 65_536
# mbsync keeps the UID of a folder in the name; in another folder it would be a wrong one.
_UID = re.compile(r",U=\d+")
# Those of Dovecot and RFC 9051, and what Thunderbird and Apple Mail set.
_KEYWORDS = {
    "$junk": Label.SPAM,
    "junk": Label.SPAM,
    "$nonjunk": Label.HAM,
    "nonjunk": Label.HAM,
    "$notjunk": Label.HAM,
    "notjunk": Label.HAM,
}


class Refused(Exception):
    """This is nothing that we read: a link, a device, a pipe, somebody else's, or too large. The text says which."""


class TooLarge(Refused):
    """The file is over the limit."""


@dataclass(frozen=True, slots=True)
class Spot:
    """Where a message lies: folder (`INBOX` or as `.Junk`), `new` or `cur`, and the name of its file."""

    folder: str
    part: str
    name: str

    @property
    def unique(self) -> str:
        """What never changes of the name, whatever a server or client does with flags and UIDs; as text()."""
        return text(_UID.sub("", self.name.partition(":")[0]))

    @property
    def folder_text(self) -> str:
        return text(self.folder)

    @property
    def flags(self) -> str:
        """Flags and Dovecot's keyword letters, as they stand in the name."""
        return self.name.partition(":2,")[2]

    def __str__(self) -> str:
        return f"{self.folder}/{self.part}/{self.name}"


def text(name: str) -> str:
    """A file's name as a database takes it: what is no UTF-8 is spelt out."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


class Mailbox:
    """Synchronous; every method may raise OSError."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def at(cls, path: str) -> Mailbox:
        return cls(Path(path))

    @property
    def inode(self) -> tuple[int, int]:
        """What changes when the Maildir is removed and made again."""
        found = self.path.stat()
        return found.st_dev, found.st_ino

    def folders(self) -> list[str]:
        """All folders that are whole."""
        with os.scandir(self.path) as entries:
            dotted = [e.name for e in entries if e.name.startswith(".") and e.is_dir(follow_symlinks=False)]
        return [folder for folder in (INBOX, *sorted(dotted)) if self.has(folder)]

    def has(self, folder: str) -> bool:
        """Whether this is a folder that mail may be in."""
        return all(self._is_real(folder, part) for part in _PARTS)

    def spots(self, folder: str) -> list[Spot]:
        """All messages of a folder, those in new/ first; a part that cannot be read counts as empty."""
        found = []
        for part in _PARTS:
            with contextlib.suppress(FileNotFoundError), self._opened(folder, part) as descriptor:
                names = os.listdir(descriptor)  # noqa: PTH208
                found += [Spot(folder, part, name) for name in names if not name.startswith(".")]
        return found

    def find(self, folder: str, unique: str) -> Spot | None:
        """Where in a folder the message is now; the folder by its name or as text()."""
        return next((spot for spot in self.spots(self.named(folder)) if spot.unique == unique), None)

    def named(self, folder: str) -> str:
        """The folder whose name is this as text()."""
        if "\\" not in folder:
            return folder
        return next((name for name in self.folders() if folder in (name, text(name))), folder)

    def spot(self, path: str) -> Spot | None:
        """What an event's path says; None if it is no message."""
        parts = path[len(str(self.path)) :].strip("/").split("/")
        if len(parts) not in (2, 3) or parts[-2] not in _PARTS or parts[-1].startswith("."):
            return None
        if len(parts) == 3 and not parts[0].startswith("."):
            return None
        return Spot(parts[0] if len(parts) == 3 else INBOX, parts[-2], parts[-1])

    def read(self, spot: Spot, limit: int) -> bytes:
        """The message. Raises Refused, TooLarge, FileNotFoundError if it has another name by now, other OSError."""
        with self._opened(spot.folder, spot.part) as folder, _file(spot.name, folder) as descriptor:
            about = os.fstat(descriptor)
            # A hard link to what only the daemon may read would be read for whoever made it.
            if about.st_uid not in (os.fstat(folder).st_uid, self.path.stat().st_uid):
                raise Refused("the file belongs to somebody else than the Maildir")
            if about.st_size > limit or len(data := _content(descriptor, limit + 1)) > limit:
                raise TooLarge(f"larger than {limit} bytes")
            return data

    def destination(self, spot: Spot, folder: str) -> Spot:
        """Where a move will put a message: same part and name, but for what would be wrong in the other folder."""
        base, colon, info = spot.name.partition(":")
        base = _UID.sub("", base)
        if info.startswith("2,"):
            info = self._translated(info, spot.folder, folder)
        with self._opened(folder, spot.part) as there:
            if _exists(base + colon + info, there):
                base = unique_name()
        return Spot(folder, spot.part, base + colon + info)

    def move(self, spot: Spot, to: Spot) -> None:
        """One rename: nothing about the file changes. Raises FileNotFoundError if it has another name by now."""
        with self._opened(spot.folder, spot.part) as here, self._opened(to.folder, to.part) as there:
            if not stat.S_ISREG(os.stat(spot.name, dir_fd=here, follow_symlinks=False).st_mode):
                raise Refused("not a file")
            os.rename(spot.name, to.name, src_dir_fd=here, dst_dir_fd=there)
            # Or after a power cut we might remember a move that the disk does not: that would read as the user's.
            os.fsync(there)

    def remove(self, spot: Spot) -> None:
        with self._opened(spot.folder, spot.part) as here:
            os.unlink(spot.name, dir_fd=here)

    def stamp(self, spot: Spot) -> str:
        """What another file under the same name would have differently, and the same one after a move would not."""
        return _stamp(self.about(spot))

    def about(self, spot: Spot) -> os.stat_result:
        with self._opened(spot.folder, spot.part) as here:
            return os.stat(spot.name, dir_fd=here, follow_symlinks=False)

    def write(self, data: bytes, like: Spot, folder: str) -> tuple[Spot, str]:
        """Write a message into tmp/ of a folder, with time, mode and owner of another; publish() puts it in place.

        Returns that place, and its stamp().
        """
        about = self.about(like)
        name = f"{unique_name()},S={len(data)}"
        if ",W=" in like.name:
            bare = data.count(b"\n") - data.count(b"\r\n")
            name += f",W={len(data) + bare}"
        with self._opened(folder, "tmp") as there:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            with open(os.open(name, flags, 0o600, dir_fd=there), "wb") as file:  # noqa: PTH123
                try:
                    file.write(data)
                    file.flush()
                    if os.geteuid() == 0:
                        os.fchown(file.fileno(), about.st_uid, about.st_gid)
                    os.fchmod(file.fileno(), stat.S_IMODE(about.st_mode))
                    os.utime(file.fileno(), ns=(about.st_atime_ns, about.st_mtime_ns))
                    os.fsync(file.fileno())
                except BaseException:
                    os.unlink(name, dir_fd=there)
                    raise
                return Spot(folder, "new", name), _stamp(os.fstat(file.fileno()))

    def publish(self, spot: Spot) -> None:
        """Put what write() has written in its place, for good."""
        with self._opened(spot.folder, "tmp") as here, self._opened(spot.folder, spot.part) as there:
            os.rename(spot.name, spot.name, src_dir_fd=here, dst_dir_fd=there)
            os.fsync(there)

    def withdraw(self, spot: Spot) -> None:
        """Remove what write() has written and publish() has not."""
        with contextlib.suppress(FileNotFoundError), self._opened(spot.folder, "tmp") as here:
            os.unlink(spot.name, dir_fd=here)

    def create(self, folder: str) -> None:
        """Make what is missing of a folder as Maildir++ wants it, with mode and owner of the Maildir."""
        like = (self.path / "cur").stat()
        maildir = os.open(self.path, _DIRECTORY)
        try:
            inside = _make_folder(folder, maildir, like)
            try:
                for part in ("tmp", *_PARTS):
                    os.close(_make_folder(part, inside, like))
                with contextlib.suppress(FileExistsError):
                    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
                    mark = os.open("maildirfolder", flags, 0o600, dir_fd=inside)
                    _give(mark, like, stat.S_IMODE(like.st_mode) & 0o666)
                    os.close(mark)
            finally:
                os.close(inside)
        finally:
            os.close(maildir)
        if not self.has(folder):
            raise NotADirectoryError(errno.ENOTDIR, "is no folder of a Maildir", folder)

    def keyword(self, spot: Spot) -> Label | None:
        """What the junk keywords say; None if there is none of them, or two that contradict each other."""
        letters = [letter for letter in spot.flags if letter.islower()]
        if not letters:
            return None
        names = self._keywords(spot.folder)
        said = {_KEYWORDS[name] for letter in letters if (name := names.get(letter, "").lower()) in _KEYWORDS}
        return said.pop() if len(said) == 1 else None

    def _translated(self, info: str, here: str, there: str) -> str:
        """Each folder has letters of its own for keywords; what has none in the other folder is left out."""
        if not any(letter.islower() for letter in info):
            return info
        names = self._keywords(here)
        letters = {name: letter for letter, name in self._keywords(there).items()}
        flags, comma, more = info[2:].partition(",")
        kept = {letters.get(names[letter], "") if letter in names else letter for letter in flags}
        return "2," + "".join(sorted(kept)) + comma + more

    def _keywords(self, folder: str) -> dict[str, str]:
        """Letter -> name, as Dovecot's file says."""
        try:
            with self._opened(folder, "") as inside, _file(KEYWORD_FILE, inside) as descriptor:
                lines = _content(descriptor, _KEYWORD_BYTES).decode("utf-8", "replace").splitlines()
        except (OSError, Refused):
            return {}
        found = (line.partition(" ") for line in lines)
        return {chr(ord("a") + int(n)): name for n, _, name in found if re.fullmatch(r"\d|1\d|2[0-5]", n)}

    @contextlib.contextmanager
    def _opened(self, folder: str, part: str) -> Iterator[int]:
        """A part of a folder, or with no part the folder itself."""
        descriptor = os.open(self.path, _DIRECTORY)
        try:
            for name in filter(None, ("" if folder == INBOX else folder, part)):
                inner = os.open(name, _DIRECTORY | os.O_NOFOLLOW, dir_fd=descriptor)
                os.close(descriptor)
                descriptor = inner
            yield descriptor
        finally:
            os.close(descriptor)

    def _is_real(self, folder: str, part: str) -> bool:
        try:
            with self._opened(folder, part):
                return True
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                return False
            raise


@contextlib.contextmanager
def _file(name: str, folder: int) -> Iterator[int]:
    """A plain file, for reading. Raises Refused if it is anything else, OSError."""
    try:
        # A pipe would have us wait.
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
        descriptor = os.open(name, flags, dir_fd=folder)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO, errno.ENODEV):
            raise Refused("not a file") from error
        raise
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise Refused("not a file")
        yield descriptor
    finally:
        os.close(descriptor)


def _content(descriptor: int, limit: int) -> bytes:
    with open(descriptor, "rb", closefd=False) as file:
        return file.read(limit)


def _stamp(about: os.stat_result) -> str:
    return f"{about.st_ino}.{about.st_mtime_ns}.{about.st_size}"


def _exists(name: str, folder: int) -> bool:
    try:
        os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def _make_folder(name: str, inside: int, like: os.stat_result) -> int:
    """A folder that is there or made; its descriptor. Raises OSError if it is a link or a file."""
    made = False
    with contextlib.suppress(FileExistsError):
        os.mkdir(name, 0o700, dir_fd=inside)
        made = True
    folder = os.open(name, _DIRECTORY | os.O_NOFOLLOW, dir_fd=inside)
    if made:
        _give(folder, like, stat.S_IMODE(like.st_mode))
    return folder


def _give(descriptor: int, like: os.stat_result, mode: int) -> None:
    if os.geteuid() == 0:
        os.fchown(descriptor, like.st_uid, like.st_gid)
    os.fchmod(descriptor, mode)
