"""One of the processes that deliver the storm: to tmp/, then into new/, or like Sieve with flags into cur/.

    python -m tests.storm_delivery FOLDER MESSAGES SEED OLD SHARE SHARES [--pause S] [--fsync]

The moment before each rename is written to FOLDER/delivered-SHARE.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from .storm_mail import Mail, compose, mails, name_of


@dataclass(frozen=True, slots=True)
class Delivery:
    """`at` is seconds since the epoch, `inode` that of the file."""

    number: int
    at: float
    inode: int
    base: str


def deliver(root: Path, mail: Mail, fsync: bool) -> Delivery:
    """tmp, rename; with `fsync` as an MTA does it, file and folder."""
    raw = compose(mail)
    maildir = root / mail.maildir
    seconds, nanoseconds = divmod(time.time_ns(), 10**9)
    base = f"{seconds}.M{nanoseconds // 1000}P{os.getpid()}Q{mail.number}.storm.example,S={len(raw)}"
    temporary, final = maildir / "tmp" / base, maildir / mail.place / name_of(base, mail.place, mail.flags)
    with temporary.open("xb") as file:
        os.fchmod(file.fileno(), mail.mode)
        file.write(raw)
        file.flush()
        os.utime(file.fileno(), ns=(mail.mtime, mail.mtime))
        inode = os.fstat(file.fileno()).st_ino
        if fsync:
            os.fsync(file.fileno())
    at = time.time()
    temporary.rename(final)
    if fsync:
        folder = os.open(final.parent, os.O_RDONLY | os.O_DIRECTORY)
        os.fsync(folder)
        os.close(folder)
    return Delivery(mail.number, at, inode, base)


def write(file: Path, deliveries: Iterator[Delivery]) -> None:
    with file.open("w", encoding="ascii") as out:
        for one in deliveries:
            out.write(f"{one.number} {one.at:.6f} {one.inode} {one.base}\n")


def read(file: Path) -> Iterator[Delivery]:
    for line in file.read_text(encoding="ascii").splitlines():
        number, at, inode, base = line.split()
        yield Delivery(int(number), float(at), int(inode), base)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    for name in ("messages", "seed", "old", "share", "shares"):
        parser.add_argument(name, type=int)
    parser.add_argument("--pause", type=float, default=0.0, help="seconds between two messages")
    parser.add_argument("--fsync", action="store_true")
    options = parser.parse_args()
    load = mails(options.messages, options.seed, options.old)[options.old :]

    def each() -> Iterator[Delivery]:
        for mail in load[options.share :: options.shares]:
            yield deliver(options.folder, mail, options.fsync)
            time.sleep(options.pause)

    write(options.folder / f"delivered-{options.share}", each())


if __name__ == "__main__":
    main()
