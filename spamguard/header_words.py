"""The words of a message's headers, as columns beside the words of its text.

They say who writes, and with which program: the strongest evidence there is in one user's own mail, and none in
anybody else's. So only a head fitted on the user's own labels gives them weight; the head that ships has none.

Nothing is read that tells how or where a message was received, filed or judged (Received, Delivered-To, List-*,
X-Spam-*, ...): mail collected at two places would differ in that, whatever it says.
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
_MOST_HEADERS, _MOST_WORDS, _LONGEST = 100, 256, 500

_TRANSPORT = re.compile(
    r"arc-|authentication-results|delivered-to|delivery-date|dkim-|domainkey|envelope-to|errors-to|in-reply-to|list-"
    r"|precedence|received|references|resent-|return-path|sender$|status$|subject$|x-account-key|x-apparently-to"
    r"|x-beenthere|x-bogosity|x-eop|x-forefront|x-forwarded|x-gm-|x-google|x-greylist|x-incoming|x-keywords|x-loop"
    r"|x-mailman|x-message-|x-microsoft|x-mozilla|x-ms-|x-original|x-received|x-sender-ip|x-sid-|x-spam|x-status"
    r"|x-uid|x-virus|x-ymail"
)
_ADDRESSES = frozenset({"from", "reply-to", "to", "cc"})
_ADDRESS = re.compile(r'[^\s<>"(),:;@]{1,64}@([^\s<>"(),:;@]{1,255})')
_WORD = re.compile(r"[^\W_]{2,24}")
_LETTERS, _DIGITS = re.compile(r"[a-z]+"), re.compile(r"\d+")
_TYPE = re.compile(r"[a-z]+/[a-z0-9.+-]{1,40}|charset=\"?[\w-]{1,30}")
_BOUNDARY = re.compile(r'boundary="?([^";\s]{1,70})')
_ZONE = re.compile(r"([+-]\d{4}|[a-z]{3})\s*(?:\([^)]*\))?\s*$")


def header_words(headers: Headers) -> list[str]:
    """The words, sorted, each once: `from:@shop.example`, `x-mailer:outlook`, ...; at most 256."""
    found: set[str] = set()
    for name, value in headers[:_MOST_HEADERS]:
        name = name.lower()
        if not _TRANSPORT.match(name):
            found.add(f"{name}:")
            found.update(f"{name}:{word}" for word in _words(name, value[:_LONGEST].lower()))
    return sorted(found)[:_MOST_WORDS]


def _words(name: str, value: str) -> list[str]:
    if name in _ADDRESSES:
        addresses = list(_ADDRESS.finditer(value))[:8]
        domains = [f"@{registrable(match[1])}" for match in addresses]
        return [match[0] for match in addresses] + domains + _WORD.findall(value.partition("<")[0])[:12]
    if name == "message-id":
        local, _, domain = value.strip().strip("<>").rpartition("@")
        return [f"@{registrable(domain)}", _shape(local)]
    if name == "date":
        zone = _ZONE.search(value)
        return [zone[1]] if zone else []
    if name == "content-type":
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
