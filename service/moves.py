"""Labels from what the user moves: into Junk is spam, out of it is ham, to the trash says nothing."""

from __future__ import annotations

import time
from typing import Any

from spamguard.config import Config
from spamguard.labels import Labels
from spamguard.verdict import Label

from .journal import Journal
from .mailbox import Mailbox, Refused, Spot
from .sightings import Belief, Known, Place, Sightings

JUNK, HAM, TRASH = "junk", "ham", "trash"
_LABEL = {JUNK: Label.SPAM, HAM: Label.HAM}
_AT_ONCE = 100

_Listings = dict[tuple[str, str], dict[str, Spot]]


def _is_in(folder: str, parent: str) -> bool:
    return folder == parent or folder.startswith(f"{parent}.")


class Moves:
    """A move is believed when the message has stayed where it is for `watch.quiet_s`. Synchronous, for a thread.

    The trash is looked through: it takes back what was not believed yet, and from there on to Junk or the inbox a
    message counts as coming from where it was before.
    """

    def __init__(self, config: Config, sightings: Sightings, journal: Journal) -> None:
        self._table = config.watch
        self._limit = config.limits.message_bytes
        self._labels_file = config.labels_file
        self._sightings = sightings
        self._journal = journal
        self._unreadable: set[str] = set()

    def side(self, folder: str) -> str:
        """Where a folder belongs, subfolders with their parent."""
        if self._table.junk and _is_in(folder, self._table.junk):
            return JUNK
        return TRASH if any(_is_in(folder, name) for name in self._table.trash) else HAM

    def first_side(self, folder: str) -> str:
        """Where a message counts as coming from that we see for the first time."""
        return JUNK if self.side(folder) == JUNK else HAM

    def arrived(self, box: Mailbox, known: Known, spot: Spot, stamp: str, keyword: Label | None) -> None:
        """A message that we know lies where it did not, and it was not we who put it there."""
        maildir, now = str(box.path), self.side(spot.folder)
        expect: Belief | None = None
        ours = known.target == f"{spot.folder_text}/{spot.unique}" and known.state in ("moving", "tagging")
        if not ours and now not in (known.side, TRASH):  # If ours, that is only not noted yet.
            expect = Belief(maildir, known.content, _LABEL[now], "moved", self._due())
        dismiss = "moved" if expect is None and not ours else None
        self._sightings.arrived(maildir, known.content, spot, stamp, keyword, expect=expect, dismiss=dismiss)

    def flagged(self, box: Mailbox, place: Place, spot: Spot, keyword: Label | None) -> None:
        """The keyword of a message has changed."""
        maildir = str(box.path)
        expect: Belief | None = None
        if keyword is not None and self.side(spot.folder) != TRASH:
            expect = Belief(maildir, place.content, keyword, "keyword", self._due())
        dismiss = "keyword" if keyword is None else None
        self._sightings.arrived(maildir, place.content, spot, place.stamp, keyword, expect=expect, dismiss=dismiss)

    def _due(self) -> float:
        return time.time() + self._table.quiet_s

    def settle(self) -> bool:
        """Make labels of what has stayed long enough, so many at a time. What cannot be written waits.

        False if everything is to be looked at once more, as the user was at it meanwhile. Raises SpamguardError.
        """
        beliefs = self._sightings.due(time.time(), self._table.quiet_s, _AT_ONCE)
        if not beliefs:
            return True
        folders: _Listings = {}
        quiet = True
        with Labels(self._labels_file) as labels:
            for belief in beliefs:
                try:
                    quiet &= self._believe(belief, labels, folders)
                except FileNotFoundError:
                    pass  # moved on a moment ago: of that there will be news
                except OSError as error:
                    if belief.content not in self._unreadable:
                        self._unreadable.add(belief.content)
                        self._say("warning", "label waits", belief, cause=str(error))
                else:
                    self._unreadable.discard(belief.content)
        return quiet

    def _believe(self, belief: Belief, labels: Labels, folders: _Listings) -> bool:
        """False if the user has moved it on meanwhile."""
        box = Mailbox.at(belief.maildir)
        spot = self._still_there(box, belief, folders)
        try:
            raw = box.read(spot, self._limit) if spot else None
        except Refused:
            raw = None
        if spot is None or raw is None:
            self._sightings.dismiss(belief)
            return True
        labels.add(raw, belief.label, belief.source, f"{belief.maildir}/{spot.folder}")
        now = self.side(spot.folder)
        quiet = self._sightings.settle(belief, None if now == TRASH else now)
        self._journal.count(f"label.{belief.label}")
        self._say("info", "label", belief, folder=spot.folder)
        return quiet

    def _say(self, level: str, event: str, belief: Belief, **more: Any) -> None:
        what = {"maildir": belief.maildir, "content": belief.content, "label": belief.label.value}
        self._journal.write(level, event, **what, source=belief.source, **more)

    def _still_there(self, box: Mailbox, belief: Belief, folders: _Listings) -> Spot | None:
        """Where the message is that the belief is about; None if it is gone, or does not say so any more."""
        found: Spot | None = None
        for folder, base in self._sightings.places(belief.maildir, belief.content):
            key = (belief.maildir, folder)
            if key not in folders:
                folders[key] = {spot.unique: spot for spot in box.spots(box.named(folder))}
            # A folder that is listed while a message gets other flags may show neither name: look twice.
            spot = folders[key].get(base) or box.find(folder, base)
            if spot is None or "T" in spot.flags:
                continue
            if belief.source == "keyword":
                if box.keyword(spot) is belief.label:
                    return spot
            elif _LABEL.get(self.side(folder)) is belief.label:
                found = spot
            elif belief.label is Label.HAM and self.side(folder) == JUNK:
                return None  # It lies in Junk as well: a second delivery has come, and nobody has moved anything.
        if belief.source == "moved" and belief.label is Label.HAM and not box.has(self._table.junk):
            return None  # It was Junk itself that was renamed or removed.
        return found
