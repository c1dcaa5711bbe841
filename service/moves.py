"""Labels from what the user moves: into Junk is spam, out of it is ham, to the trash says nothing."""

from __future__ import annotations

import time

from spamguard.config import Config
from spamguard.errors import SpamguardError
from spamguard.labels import Labels
from spamguard.verdict import Label

from .journal import Journal
from .mailbox import Mailbox, Refused, Spot
from .sightings import Belief, Known, Place, Sightings

JUNK, HAM, TRASH = "junk", "ham", "trash"
_LABEL = {JUNK: Label.SPAM, HAM: Label.HAM}


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
        self._complained = False

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
        maildir = str(box.path)
        self._sightings.arrived(maildir, known.content, spot, stamp, keyword)
        now = self.side(spot.folder)
        if now in (known.side, TRASH):
            self._sightings.dismiss(maildir, known.content)
        else:
            self._expect(maildir, known.content, _LABEL[now], "moved")

    def flagged(self, box: Mailbox, place: Place, spot: Spot, keyword: Label | None) -> None:
        """The keyword of a message has changed."""
        maildir = str(box.path)
        self._sightings.arrived(maildir, place.content, spot, place.stamp, keyword)
        if keyword is None:
            self._sightings.dismiss(maildir, place.content)
        elif self.side(spot.folder) != TRASH:
            self._expect(maildir, place.content, keyword, "keyword")

    def _expect(self, maildir: str, content: str, label: Label, source: str) -> None:
        belief = Belief(maildir, content, label, source)
        self._sightings.expect(belief, time.time() + self._table.quiet_s)

    def settle(self) -> int:
        """Make labels of what has stayed long enough; return how many. What cannot be written waits."""
        made = 0
        for belief in self._sightings.due(time.time(), self._table.quiet_s):
            spot = self._still_there(belief)
            try:
                if spot is None:
                    self._sightings.dismiss(belief.maildir, belief.content)
                    continue
                raw = Mailbox.at(belief.maildir).read(spot, self._limit)
                with Labels(self._labels_file) as labels:
                    labels.add(raw, belief.label, belief.source, f"{belief.maildir}/{spot.folder}")
            except (FileNotFoundError, Refused):
                continue  # moved on a moment ago: there will be news of it, or it is found gone the next time
            except (OSError, SpamguardError) as error:
                if not self._complained:
                    self._journal.write("error", "label not written, trying again", cause=str(error))
                self._complained = True
                break
            self._complained = False
            self._sightings.settle(belief, self.side(spot.folder) if belief.source == "moved" else None)
            self._journal.count(f"label.{belief.label}")
            self._journal.write(
                "info",
                "label",
                maildir=belief.maildir,
                folder=spot.folder,
                content=belief.content,
                label=belief.label.value,
                source=belief.source,
            )
            made += 1
        return made

    def _still_there(self, belief: Belief) -> Spot | None:
        """Where the message is that the belief is about; None if it is gone, or does not say so any more."""
        box = Mailbox.at(belief.maildir)
        found: Spot | None = None
        for folder, base in self._sightings.places(belief.maildir, belief.content):
            try:
                spot = box.find(folder, base)
                if spot is None or "T" in spot.flags:
                    continue
                if belief.source == "keyword":
                    if box.keyword(spot) is belief.label:
                        return spot
                elif _LABEL.get(self.side(folder)) is belief.label:
                    found = spot
                elif belief.label is Label.HAM and self.side(folder) == JUNK:
                    return None  # It lies in Junk as well: a second delivery has come, and nobody has moved anything.
            except OSError:
                continue
        return found
