"""A mail that can tell whether it is whole: its first line holds number, length and sha256 of all the rest."""

from __future__ import annotations

import hashlib
import random
import re

_FIRST_LINE = re.compile(rb"^X-Crash: (\d+) (\d+) ([0-9a-f]{64})\r\n", re.MULTILINE)
_SENDER = re.compile(rb"crash-(\d+)-(\d+)@")
_RANDOM = random.Random(0)
# Hexadecimal digits, so that no word of the fake scorer is among them; a line in ten begins with dots.
_LINES = [
    (b"." * _RANDOM.randrange(1, 4) if n % 10 == 0 else b"") + _RANDOM.randbytes(36).hex().encode() + b"\r\n"
    for n in range(4000)
]


def compose(number: int, size: int, spam: bool) -> bytes:
    """A mail of about this size; the fake scorer takes the word `viagra` for spam."""
    count, first = max(1, size // 74), number * 97 % len(_LINES)
    text = b"".join((_LINES * 2)[first : first + count])
    word = b"viagra" if spam else b"meeting"
    rest = b"From: a@example.org\r\nTo: b@example.net\r\nSubject: mail %d about a %s\r\n\r\n" % (number, word)
    rest += text + b"end of %d\r\n" % number
    return b"X-Crash: %d %d %s\r\n" % (number, len(rest), hashlib.sha256(rest).hexdigest().encode()) + rest


def sender(number: int, attempt: int) -> bytes:
    return b"crash-%d-%d@example.org" % (number, attempt)


def attempt_of(envelope: bytes) -> tuple[int, int]:
    """(number, attempt) of an envelope in whatever notation; ValueError if there is none."""
    found = _SENDER.search(envelope)
    if found is None:
        raise ValueError("no sender of ours")
    return int(found[1]), int(found[2])


def whole(data: bytes, number: int) -> bool:
    """Whether this is that mail to its last byte, whatever stands above it."""
    found = _FIRST_LINE.search(data)
    if found is None or int(found[1]) != number:
        return False
    rest = data[found.end() :]
    end = b"end of %d\r\n" % number
    return len(rest) == int(found[2]) and rest.endswith(end) and hashlib.sha256(rest).hexdigest().encode() == found[3]
