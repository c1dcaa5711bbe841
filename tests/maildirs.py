"""A Maildir++ tree for tests: delivers as an MDA does, and looks at what is there."""

from __future__ import annotations

import contextlib
import itertools
import os
import time
from pathlib import Path

_numbers = itertools.count()


class Box:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.make("")

    def make(self, folder: str) -> None:
        """The folder is there already, or is made as Maildir++ wants it."""
        for part in ("tmp", "new", "cur"):
            (self.path / folder / part).mkdir(parents=True, exist_ok=True)
        if folder:
            (self.path / folder / "maildirfolder").touch()

    def deliver(
        self,
        raw: bytes,
        *,
        folder: str = "",
        part: str = "new",
        name: str = "",
        info: str = "",
        mtime: float | None = None,
        mode: int = 0o600,
    ) -> str:
        """Write to tmp/, rename into place; the name without what stands behind the colon."""
        self.make(folder)
        name = name or f"{time.time_ns()}.P{os.getpid()}Q{next(_numbers)}.mda.example,S={len(raw)}"
        temporary = self.path / folder / "tmp" / name
        temporary.write_bytes(raw)
        temporary.chmod(mode)
        if mtime is not None:
            os.utime(temporary, (mtime, mtime))
        temporary.rename(self.path / folder / part / (name + info))
        return name

    def rename(self, here: str, there: str) -> None:
        """What a client does; to nowhere is to expunge."""
        if there:
            (self.path / there).parents[1].mkdir(exist_ok=True)
            self.make(str((self.path / there).parents[1].relative_to(self.path)))
            (self.path / here).rename(self.path / there)
        else:
            (self.path / here).unlink()

    def files(self) -> dict[str, bytes]:
        """Path below the Maildir -> content, of all messages; without what is moved while we look."""
        found: dict[str, bytes] = {}
        for part in ("new", "cur"):
            for folder in (inner for pattern in (part, f".*/{part}") for inner in self.path.glob(pattern)):
                for file in folder.iterdir():
                    with contextlib.suppress(FileNotFoundError):
                        if file.is_file() and not file.is_symlink():
                            found[str(file.relative_to(self.path))] = file.read_bytes()
        return found
