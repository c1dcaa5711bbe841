"""The user of the storm: reads, files, junks and rescues mail while it arrives.

    python -m tests.storm_user FOLDER SEED OLD

Works until SIGTERM, and leaves the first OLD messages alone. What was done is written to FOLDER/acts.
"""

from __future__ import annotations

import contextlib
import json
import random
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from .storm_mail import MAILDIRS, name_of, number_of

INBOX, JUNK, ARCHIVE, TRASH, GONE = "", ".Junk", ".Archive", ".Trash", "expunged"
# Not T: what is marked for deletion says as little as what is in the trash.
MORE_FLAGS = {"": "S", "S": "RS", "F": "FS", "RS": "FRS", "FS": "FRS", "Sab": "RSab"}
BATCH, PAUSE_S = 25, 0.004

# What the user does, from where to where, and how often. From a folder to itself: other flags.
HABITS: Sequence[tuple[str, str, int]] = (
    (INBOX, INBOX, 50),
    (JUNK, JUNK, 10),
    (INBOX, ARCHIVE, 10),
    (INBOX, JUNK, 10),
    (JUNK, INBOX, 12),
    (JUNK, TRASH, 5),
    (JUNK, GONE, 3),
)


@dataclass(frozen=True, slots=True)
class Act:
    """A message is now in `folder`, under `place`/`name`; the rename was between `began` and `ended`."""

    number: int
    began: float
    ended: float
    source: str
    folder: str
    place: str = ""
    name: str = ""

    @property
    def moved(self) -> bool:
        return self.source != self.folder


def acts(root: Path, rng: random.Random, old: int) -> Iterator[Act | None]:
    """Without end: look into a folder, then act on some of what was there. None: it has gone meanwhile."""
    habits, weights = HABITS, [often for *_, often in HABITS]
    while True:
        source, folder, _ = rng.choices(habits, weights)[0]
        maildir, place = root / rng.choice(MAILDIRS), rng.choice(("new", "cur"))
        names: list[str] = []
        with contextlib.suppress(FileNotFoundError):  # Junk may not be there yet
            names = [one.name for one in (maildir / source / place).iterdir() if number_of(one.name) >= old]
        time.sleep(PAUSE_S)
        for name in rng.sample(names, min(BATCH, len(names))):
            yield _act(maildir, source, place, name, folder, rng)
            time.sleep(PAUSE_S)
        yield None


def _act(maildir: Path, source: str, place: str, name: str, folder: str, rng: random.Random) -> Act | None:
    base, _, flags = name.partition(":2,")
    number = number_of(base)
    began = time.time()
    try:
        if folder == GONE:
            (maildir / source / place / name).unlink()
            return Act(number, began, time.time(), source, GONE)
        if folder == source:
            flags = MORE_FLAGS.get(flags, flags)
        to = "new" if place == "new" and folder != source and rng.random() < 0.3 else "cur"
        after = name_of(base, to, flags)
        (maildir / source / place / name).rename(maildir / folder / to / after)
    except FileNotFoundError:
        return None
    return Act(number, began, time.time(), source, folder, to, after)


def read(file: Path) -> list[Act]:
    return [Act(**json.loads(line)) for line in file.read_text().splitlines()]


def main() -> None:
    folder, seed, old = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    going = True

    def stop(*_: object) -> None:
        nonlocal going
        going = False

    signal.signal(signal.SIGTERM, stop)
    with (folder / "acts").open("w") as out:
        for act in acts(folder, random.Random(seed), old):
            if act is not None:
                print(json.dumps(asdict(act)), file=out)
            if not going:
                break


if __name__ == "__main__":
    main()
