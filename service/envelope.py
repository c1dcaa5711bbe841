"""The envelope of a transaction: paths and parameters exactly as the client wrote them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from ipaddress import ip_address

_CONTROLS = re.compile(rb"[\x00-\x1f\x7f]")
# A path in brackets may hold quoted strings, and those may hold anything, `>` and blanks included.
_BRACKETED = re.compile(rb'<(?:[^"<>]|"(?:[^"\\]|\\.)*+")*+>')
_BARE = re.compile(rb"[^ <>]++")
_XTEXT = re.compile(rb"\+([0-9A-F]{2})")  # RFC 3461, 4
_SIZE = re.compile(rb"SIZE=([0-9]{1,20})", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Path:
    """The argument of MAIL or RCPT: `raw` with its brackets, and the parameters behind it. `line` is the command."""

    raw: bytes
    parameters: tuple[bytes, ...] = ()
    line: bytes = b""

    @property
    def address(self) -> bytes:
        return self.raw[1:-1] if self.raw.startswith(b"<") else self.raw

    @property
    def size(self) -> int:
        """What SIZE= announces; 0 without it."""
        return max((int(found[1]) for p in self.parameters if (found := _SIZE.fullmatch(p))), default=0)


@dataclass(slots=True)
class Envelope:
    """What MAIL and RCPT have built up, and from whom."""

    helo: bytes = b""
    peer: str = ""
    extended: bool = True
    sender: Path | None = None
    recipients: list[Path] = field(default_factory=list)
    lmtp: bool = False

    @property
    def protocol(self) -> bytes:
        """The word for Received: (RFC 3848, RFC 6531)."""
        parameters = self.sender.parameters if self.sender else ()
        if any(parameter.upper() == b"SMTPUTF8" for parameter in parameters):
            return b"UTF8LMTP" if self.lmtp else b"UTF8SMTP"
        if self.lmtp:
            return b"LMTP"
        return b"ESMTP" if self.extended else b"SMTP"

    def only(self, places: Sequence[int]) -> Envelope:
        """The same with only the recipients at these places."""
        return replace(self, recipients=[self.recipients[place] for place in places])


def has_controls(line: bytes) -> bool:
    """Whether a command holds a control byte, with which it could be read as two."""
    return _CONTROLS.search(line) is not None


def parse(keyword: bytes, line: bytes) -> Path | None:
    """Read a line `MAIL FROM:<path> parameters` or `RCPT TO:...`; None if it is neither. Nothing is rewritten."""
    argument = line.partition(b" ")[2]
    if argument[: len(keyword)].upper() != keyword:
        return None
    rest = argument[len(keyword) :].lstrip(b" ")
    found = _BRACKETED.match(rest) or _BARE.match(rest)
    if found is None:
        return None
    tail = rest[found.end() :]
    if tail and not tail.startswith(b" "):
        return None
    return Path(found[0], tuple(tail.split()), line)


def address_of(value: bytes) -> str | None:
    """The address of an XCLIENT attribute, "" if it is said to be unknown; None if it is no address."""
    text = _XTEXT.sub(lambda found: bytes.fromhex(found[1].decode()), value).decode("ascii", "replace")
    if text.upper() in ("[UNAVAILABLE]", "[TEMPUNAVAIL]"):
        return ""
    if text[:5].upper() == "IPV6:":
        text = text[5:]
    try:
        return str(ip_address(text))
    except ValueError:
        return None
