"""Our verdict in the header block: strips forged verdicts, stamps ours; every other byte stays as it was."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Iterator

from . import __version__
from .verdict import Label, Reason, Verdict

# One field with its folded lines. Possessive quantifiers keep it linear whatever comes. Blanks before the colon
# are RFC 5322 obsolete syntax (4.5), which real readers accept, so a forged field may use it.
_FIELD = re.compile(rb"([!-9;-~]++)[ \t]*+:[^\n]*+(?:\n[ \t][^\n]*+)*+(?:\n|\Z)")
_OURS = re.compile(rb"x-spam(?:-.*|guard.*)?\Z", re.IGNORECASE)
_MBOX_LINE = re.compile(rb">?From [^\n]*\n")
_BLANK_LINE = re.compile(rb"\r?\n")
_RECEIVED = re.compile(rb"received\Z", re.IGNORECASE)

# A message whose first line is no field needs an empty line below our block, else that line would read as a part
# of our last field. This mark says that the empty line is ours, so that strip() can take it away again.
_SEPARATOR = "X-Spamguard-Separator"
_SEPARATOR_NAME = _SEPARATOR.lower().encode()

_WIDTH = 78
_REASONS = 5
_REASON_CHARACTERS = 60

Field = tuple[str, str]


def strip(raw: bytes) -> bytes:
    """Remove X-Spam, X-Spam-* and X-Spamguard* fields from the top header block, whoever wrote them.

    Everything else, body and nested messages included, is returned byte for byte.
    """
    kept: list[bytes] = []
    start, position = 0, _after_mbox_line(raw, 0)
    mbox, separated, only_ours = position > 0, False, True
    while True:
        if field := _FIELD.match(raw, position):
            if _OURS.match(field[1]):
                kept.append(raw[start:position])
                start = field.end()
                separated |= field[1].lower() == _SEPARATOR_NAME
            else:
                only_ours = False
            position = field.end()
        elif separated and only_ours and (blank := _BLANK_LINE.match(raw, position)):
            kept.append(raw[start:position])
            start = position = blank.end()
            separated = False
            if not mbox:
                position = _after_mbox_line(raw, start)
                mbox = position > start
        else:
            break
    if not kept:
        return raw
    kept.append(raw[start:])
    return b"".join(kept)


def stamp(raw: bytes, verdict: Verdict) -> bytes:
    """Put our verdict above a message that strip() has cleaned; strip() takes it off again."""
    return _stamped(raw, _verdict_fields(verdict))


def stamp_unscored(raw: bytes, why: str) -> bytes:
    """Say above a message that no verdict was reached; `why` is cut to its first word."""
    reason = re.match(r"[a-z]{1,20}", why)
    return _stamped(raw, [("X-Spamguard", f"unscored; reason={reason[0] if reason else 'fault'}")])


def prepend(raw: bytes, block: bytes) -> bytes:
    """Put whole header lines above a message, below an mbox "From " line; what was body stays body."""
    head = _after_mbox_line(raw, 0)
    gap = _line_end(raw, head) if _lacks_fields(raw, head) else b""
    return b"".join((raw[:head], block, gap, raw[head:]))


def hops(raw: bytes) -> int:
    """How many Received fields the top header block has."""
    return sum(1 for name in _names(raw) if _RECEIVED.match(name))


def printable(text: str, limit: int) -> str:
    """Text of foreign origin for a header or a log: one line, nothing that a terminal obeys, bounded."""
    if len(text) <= limit and text.isprintable():
        return text
    shown = "".join(c if c.isprintable() else " " for c in text[: limit + 1])
    return shown if len(shown) <= limit else shown[: limit - 3] + "..."


def _stamped(raw: bytes, fields: Iterable[Field]) -> bytes:
    head = _after_mbox_line(raw, 0)
    eol = _line_end(raw, head)
    lines = [_folded(name, value, eol) for name, value in fields]
    if _lacks_fields(raw, head):
        lines.append(_folded(_SEPARATOR, "added", eol))
    return prepend(raw, b"".join(lines))


def _lacks_fields(raw: bytes, head: int) -> bool:
    """Whether the text starts at once, with neither a field nor the empty line before it."""
    return head < len(raw) and not _FIELD.match(raw, head) and not _BLANK_LINE.match(raw, head)


def _names(raw: bytes) -> Iterator[bytes]:
    position = _after_mbox_line(raw, 0)
    while field := _FIELD.match(raw, position):
        yield field[1]
        position = field.end()


def _after_mbox_line(raw: bytes, position: int) -> int:
    found = _MBOX_LINE.match(raw, position)
    return found.end() if found else position


def _line_end(raw: bytes, position: int) -> bytes:
    """The line end of the first line from `position` on, else of the line before, else the wire's."""
    newline = raw.find(b"\n", position)
    if newline < 0:
        newline = raw.rfind(b"\n", 0, position)
    return b"\n" if newline >= 0 and raw[newline - 1 : newline] != b"\r" else b"\r\n"


def _verdict_fields(verdict: Verdict) -> Iterator[Field]:
    spam = verdict.label is Label.SPAM
    p, cutoffs = verdict.probability, verdict.cutoffs
    if spam:
        yield "X-Spam-Flag", "YES"
    pushing = [part for part, logit in verdict.parts.items() if logit > 0 and part != "bias"]
    tests = ",".join(f"SG_{_token(part).upper()}" for part in pushing) or "none"
    yield (
        "X-Spam-Status",
        f"{'Yes' if spam else 'No'}, score={p:.4f} required={cutoffs.spam:.4f} tests={tests} "
        f"autolearn=no version=spamguard-{__version__}",
    )
    yield "X-Spam-Level", "*" * round(10 * p)
    yield (
        "X-Spamguard",
        f"{verdict.label}; p={p:.4f}; cutoffs={cutoffs.unsure:.4f},{cutoffs.spam:.4f}; "
        f"encoder={_token(verdict.encoder)}; head={_token(verdict.head)}; t={verdict.milliseconds:.0f}ms",
    )
    if verdict.reasons:
        yield "X-Spamguard-Reason", ", ".join(map(_reason, verdict.reasons[:_REASONS]))


def _token(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]", "_", text[:16])


def _reason(reason: Reason) -> str:
    what = printable(reason.what, _REASON_CHARACTERS)
    if not what.isascii() or "=?" in what:
        what = _encoded_words(what)
    return f"{what} ({reason.logit:+.2f})"


def _encoded_words(text: str) -> str:
    """RFC 2047; ten characters a word keep it below the 75 octets that a word may have."""
    words = (text[i : i + 10].encode("utf-8", "replace") for i in range(0, len(text), 10))
    return " ".join(f"=?utf-8?b?{base64.b64encode(word).decode()}?=" for word in words)


def _folded(name: str, value: str, eol: bytes) -> bytes:
    lines, line = [], f"{name}:"
    for word in value.split():
        if len(line) + 1 + len(word) > _WIDTH and line.strip() != "":
            lines.append(line)
            line = ""
        line += f" {word}"
    return eol.join(part.encode("ascii", "replace") for part in (*lines, line)) + eol
