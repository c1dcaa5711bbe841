"""The words of a message's headers, as columns beside the words of its text.

They say who writes, and with which program: the strongest evidence there is in one user's own mail, and none in
anybody else's. So only a head fitted on the user's own labels gives them weight; the head that ships has none.

Read are the headers that the sender's program writes for the reader's, and no others: what tells how a mail was
received, filed or judged (Received, List-*, X-Spam-*, ...) tells the places apart where mail was collected.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from .features import registrable
from .mime import Headers

# Columns of header words; two that share one are as one word.
HEADER_COLUMNS = 1 << 15
_MOST_HEADERS, _MOST_WORDS, _LONGEST_VALUE, _LONGEST_WORD = 100, 256, 500, 80

_ADDRESSES = frozenset({"from", "reply-to", "to", "cc"})
_READ = _ADDRESSES | {
    "content-transfer-encoding", "content-type", "date", "importance", "message-id", "mime-version", "organization",
    "user-agent", "x-mailer", "x-mimeole", "x-msmail-priority", "x-priority",
}  # fmt: skip
_DOMAIN = r"([\w.:\[\]-]{1,255})"
_ADDRESS = re.compile(rf"[\w.!#$%&'*+/=?^`{{|}}~-]{{1,64}}@{_DOMAIN}")
_MESSAGE_ID = re.compile(rf"<?([!-;=?-~]{{1,200}})@{_DOMAIN}>?")
_WORD = re.compile(r"[^\W_]{2,24}")
_LETTERS, _DIGITS = re.compile(r"[a-z]+"), re.compile(r"\d+")
_TYPE = re.compile(r"[a-z]+/[a-z0-9.+-]{1,40}|charset=\"?[\w-]{1,30}")
_BOUNDARY = re.compile(r'boundary="?([!#-~]{1,70})')
_ZONE = re.compile(r"([+-]\d{4}|[a-z]{3})\s*(?:\([^)]*\))?\s*$")


def header_words(headers: Headers) -> list[str]:
    """The words, sorted, each once: `from:@shop.example`, `x-mailer:outlook`, ...

    At most 256 of 80 characters, and all of them may be shown: none holds a blank or a control character.
    """
    found: set[str] = set()
    for name, value in headers[:_MOST_HEADERS]:
        name = name.lower()
        if name in _READ:
            words = _words(name, value[:_LONGEST_VALUE].lower())
            found.update(f"{name}:{word}"[:_LONGEST_WORD] for word in ("", *words))
    return sorted(found)[:_MOST_WORDS]


def _words(header: str, value: str) -> list[str]:
    if header in _ADDRESSES:
        addresses = list(_ADDRESS.finditer(value))[:8]
        domains = [f"@{registrable(match[1])}" for match in addresses]
        name = "" if "=?" in value else value.partition("<")[0]  # encoded words (RFC 2047) are no words
        return [match[0] for match in addresses] + domains + _WORD.findall(name)[:12]
    if header == "message-id":
        found = _MESSAGE_ID.search(value)
        return [f"@{registrable(found[2])}", _shape(found[1])] if found else []
    if header == "date":
        zone = _ZONE.search(value)
        return [zone[1]] if zone else []
    if header == "content-type":
        return _TYPE.findall(value) + [_shape(match[1]) for match in _BOUNDARY.finditer(value)]
    return _WORD.findall(value)[:12]


def _shape(value: str) -> str:
    """What a program makes anew for each message, but always in one form."""
    return _LETTERS.sub("a", _DIGITS.sub("0", value))[:40]


def column(word: str) -> int:
    """The column of a word, counted from 0."""
    return zlib.crc32(word.encode("utf-8", "surrogateescape")) % HEADER_COLUMNS


def columns(words: Sequence[str]) -> npt.NDArray[np.uint32]:
    """The columns of the words, ascending, each once."""
    return np.unique(np.asarray([column(word) for word in words], dtype=np.uint32))
