"""A Maildir that is watched, and what may be wrong with one."""

from __future__ import annotations

import os
from collections import defaultdict
from typing import Any

from spamguard.config import INBOX, WatchTable

from .mailbox import Mailbox


class Watched:
    """A Maildir, and how far we are with it."""

    def __init__(self, box: Mailbox, judges: bool) -> None:
        self.box = box
        self.maildir = str(box.path)
        self.judges = judges
        self.left: defaultdict[str, set[str]] = defaultdict(set)
        """What has been taken out of each folder, by the part of the name that never changes."""
        self.inode: tuple[int, int] | None = None
        self.watch: Any = None


def fault(box: Mailbox, table: WatchTable) -> str | None:
    """Why this Maildir cannot be watched. Makes the junk folder if that is all there is to mend. Raises OSError."""
    if not box.has(INBOX):
        return "no such Maildir (it has no folders new and cur; links are not followed)"
    for part in ("new", "cur"):
        if not os.access(box.path / part, os.R_OK | os.W_OK | os.X_OK):
            return f"its {part} may not be read and written by user id {os.geteuid()}"
    junk = table.junk
    if junk and not box.has(junk):
        if not table.create_junk:
            return f"it has no folder {junk} (watch.junk); there are: {', '.join(box.folders())}"
        try:
            box.create(junk)
        except OSError as error:
            return f"its folder {junk} (watch.junk) cannot be made, or is a link: {error.strerror}"
    return None
