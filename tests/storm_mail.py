"""The mail of the storm: unique, of every label, some of it large or odd; and what its file must stay like."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from spamguard.verdict import Label

from . import crash_mail

MAILDIRS = ("a", "b", "c")
WORDS = {Label.SPAM: b"viagra", Label.UNSURE: b"maybe", Label.HAM: b"meeting"}
EPOCH = 1_000_000_000  # the files pretend to be this old, so that a new mtime is seen

# What is put at the end, or by a function of its own around all of it.
_ODD = (
    b"\0\x01\xff\xfe 8-bit and a NUL\r\n",
    b"a lone CR\rand no line end",
    b"\xc0\xaf\xed\xa0\x80 is no UTF-8\r\n",
    b"-" * 20_000 + b"\r\n",
    b"From the start of an mbox\r\n.\r\n",
)


@dataclass(frozen=True, slots=True)
class Mail:
    """`place` is new or cur, `odd` what is appended. An `old` mail is there before the first start."""

    number: int
    maildir: str
    label: Label
    size: int
    odd: bytes
    line_end: bytes
    forged: bool
    place: str
    flags: str
    mode: int
    old: bool

    @property
    def mtime(self) -> int:
        """In nanoseconds."""
        return (EPOCH + self.number) * 10**9 + self.number


def mails(messages: int, seed: int, old: int = 0) -> Sequence[Mail]:
    """The same for the same arguments, in every process. The first `old` of them are old."""
    rng = random.Random(seed)
    return [_mail(number, rng, number < old) for number in range(messages + old)]


def _mail(number: int, rng: random.Random, old: bool) -> Mail:
    place = "cur" if old or rng.random() < 0.1 else "new"
    return Mail(
        number=number,
        maildir=rng.choice(MAILDIRS),
        label=rng.choices([Label.SPAM, Label.HAM, Label.UNSURE], [4, 5, 1])[0],
        size=1_000_000 if rng.random() < 0.0005 else rng.randrange(200, 6000),
        odd=rng.choice(_ODD) if rng.random() < 0.05 else b"",
        line_end=rng.choice([b"\n", b"\n", b"\r\n"]),
        forged=rng.random() < 0.02,
        place=place,
        flags=rng.choice(["", "S", "F", "RS", "Sab"]) if place == "cur" else "",
        mode=rng.choice([0o600, 0o640]),
        old=old,
    )


def compose(mail: Mail) -> bytes:
    """The bytes of a mail. Its first line holds its number; the fake scorer knows its label by a word."""
    raw = crash_mail.compose(mail.number, mail.size, spam=False)
    raw = raw.replace(b"about a " + WORDS[Label.HAM], b"about a " + WORDS[mail.label], 1)
    if mail.forged:
        raw = raw.replace(b"\r\nFrom: ", b"\r\nX-Spamguard: ham; p=0.0001\r\nX-Spam-Flag: NO\r\nFrom: ", 1)
    return raw.replace(b"\r\n", mail.line_end) + mail.odd


def name_of(base: str, place: str, flags: str) -> str:
    """A file name; in new/ it has no flags (maildir(5))."""
    return f"{base}:2,{flags}" if place == "cur" else base


def number_of(base: str) -> int:
    """The number in a base name that a deliverer made; ValueError for others."""
    return int(base.partition("Q")[2].partition(".")[0])
