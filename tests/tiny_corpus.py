"""Forty tiny messages, and every kind of labelled path that they can be laid out as."""

from __future__ import annotations

import csv
from pathlib import Path

GTUBE = "XJS*C4JDBQADN1.NSBN3*2IDNEN*GTUBE-STANDARD-ANTI-UBE-TEST-EMAIL*C.34X"
_HAM = (
    "the meeting is at noon",
    "please see the report attached",
    "see you tomorrow at noon",
    "the report is attached",
)
_SPAM = ("buy cheap pills now", "free money now", "buy now cheap free pills", "free cheap money buy")


def message(subject: str, body: str, sender: str = "Ann <ann@example.org>") -> bytes:
    """A plain mail with LF line ends."""
    return (
        f"From: {sender}\nTo: bob@example.net\nSubject: {subject}\n"
        f"Content-Type: text/plain; charset=utf-8\n\n{body}\n"
    ).encode()


def ham(i: int) -> bytes:
    return message(_HAM[i % 4], f"{_HAM[(i + 1) % 4]} {i} {_HAM[(i // 4) % 4]}")


def spam(i: int) -> bytes:
    return message(_SPAM[i % 4], f"{_SPAM[(i + 1) % 4]} {i} {_SPAM[(i // 4) % 4]}", "Shop <shop@example.com>")


HAM = [ham(i) for i in range(20)]
SPAM = [spam(i) for i in range(20)]


def write_files(folder: Path, messages: list[bytes], suffix: str = ".eml") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for i, raw in enumerate(messages):
        (folder / f"{i:03}{suffix}").write_bytes(raw)
    return folder


def write_folders(root: Path) -> Path:
    """root/ham/*.eml and root/spam/*.eml"""
    write_files(root / "ham", HAM)
    write_files(root / "spam", SPAM)
    return root


def make_maildir(folder: Path) -> Path:
    for name in ("cur", "new", "tmp"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    return folder


def write_maildir(root: Path) -> Path:
    """A Maildir++: seen ham in the inbox, spam in .Junk (some of it not read)."""
    write_files(make_maildir(root) / "cur", HAM, ":2,S")
    junk = make_maildir(root / ".Junk")
    write_files(junk / "cur", SPAM[:15], ":2,")
    write_files(junk / "cur", SPAM[15:], ":2,S")
    return root


def mbox(messages: list[bytes]) -> bytes:
    return b"".join(b"From ann@example.org Thu Jan  1 00:00:00 2026\n" + raw + b"\n" for raw in messages)


def write_mboxes(root: Path) -> Path:
    """root/ham.mbox and root/spam.mbox"""
    root.mkdir(parents=True, exist_ok=True)
    (root / "ham.mbox").write_bytes(mbox(HAM))
    (root / "spam.mbox").write_bytes(mbox(SPAM))
    return root


def write_csv(file: Path) -> Path:
    """label,text: words instead of numbers, and numbers instead of words, half and half."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w", newline="", encoding="utf-8") as stream:
        rows = csv.writer(stream)
        rows.writerow(["label", "text"])
        for i in range(20):
            rows.writerow(["ham" if i % 2 else "0", f"{_HAM[i % 4]} {i}"])
            rows.writerow(["spam" if i % 2 else "1", f"{_SPAM[i % 4]} {i}"])
    return file
