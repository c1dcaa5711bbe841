"""Our verdict in the header block: strips forged verdicts, stamps ours; every other byte stays as it was."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterable, Iterator
from functools import lru_cache

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

# A tag in the Subject has a mark of its own, quoted, since its blanks count. A message without a Subject gets one.
_SUBJECT_MARK = re.compile(rb'x-spamguard-subject: (begins|added) "([!-~][ -~]{0,63})"\r?\n', re.IGNORECASE)
_SUBJECT_START = re.compile(rb"subject[ \t]*+:[ \t]*+", re.IGNORECASE)

RELEASED = "X-Spamguard-Released"

_WIDTH = 78
_LINE = re.compile(rf"(?:\S.{{0,{_WIDTH - 2}}}|\S+)(?= |\Z)")
_NAME_BYTES = 998
_REASONS = 5
_REASON_CHARACTERS = 60

Field = tuple[str, str]


def strip(raw: bytes) -> bytes:
    """Remove X-Spam, X-Spam-* and X-Spamguard* fields from the top header block, whoever wrote them.

    So is a tag at the start of the Subject that the first X-Spamguard-Subject names. Everything else, body and
    nested messages included, is returned byte for byte.
    """
    if not _mentions_ours(raw):
        return raw
    ours, _ = _scan(raw)
    if not ours:
        return raw
    kept, position = [], 0
    for start, end in ours:
        kept.append(raw[position:start])
        position = end
    kept.append(raw[position:])
    return b"".join(kept)


def _mentions_ours(raw: bytes) -> bool:
    """Whether there may be anything to strip: a quick look for what most mail has not.

    Nothing behind the first empty line is stripped unless something before it is.
    """
    blank = raw.find(b"\n\r\n")
    stop = blank if blank >= 0 else len(raw)
    bare = raw.find(b"\n\n", 0, stop)
    return b"x-spam" in raw[: bare if bare >= 0 else stop].lower()


def end(raw: bytes) -> int:
    """Where the top header block ends, and strip() stops reading; len(raw) if it may go on behind `raw`."""
    found = _scan(raw)[1]
    # A line that is not whole may still become a field, unless it is too long already for the name of one.
    ended = raw.find(b"\n", found) >= 0 or len(raw) - found > _NAME_BYTES
    return found if ended else len(raw)


def stamp(raw: bytes, verdict: Verdict, subject_tag: str = "") -> bytes:
    """Put our verdict above a message in the place of any other; strip() takes it off again.

    `subject_tag` is put before the Subject: 1 to 64 printable ASCII characters, the first no blank.
    """
    return _stamped(strip(raw), _verdict_fields(verdict), subject_tag.encode("ascii"))


def stamp_unscored(raw: bytes, why: str) -> bytes:
    """Say above a message, in the place of any verdict, that none was reached; `why` is cut to its first word."""
    reason = re.match(r"[a-z]{1,20}", why)
    return _stamped(strip(raw), [("X-Spamguard", f"unscored; reason={reason[0] if reason else 'fault'}")])


def stamp_released(raw: bytes, message_id: str, mark: str) -> bytes:
    """Say above a message, in the place of any verdict, that it was released; `mark` proves it (see released.py)."""
    return _stamped(strip(raw), [("X-Spamguard", f"released; id={message_id}"), (RELEASED, mark)])


def released_mark(raw: bytes) -> str | None:
    """The value of the topmost X-Spamguard-Released on one line, true or forged; None if there is none."""
    if not _mentions_ours(raw):
        return None
    values = (value for name, value in fields(raw) if name == RELEASED.lower().encode())
    return next((value.decode("ascii", "replace") for value in values), None)


def fields(raw: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Name in lower case and value of each field of the top header block; the value on one line, blanks as one."""
    for field in _fields(raw):
        yield field[1].lower(), b" ".join(field[0].partition(b":")[2].split())


def raw_fields(raw: bytes, name: bytes) -> Iterator[bytes]:
    """The fields of this name in the top header block, with their folds as they stand."""
    return (field[0] for field in _fields(raw) if field[1].lower() == name)


def body_start(raw: bytes) -> int:
    """Where the body begins, behind the empty line that ends the header block if there is one."""
    stop = _after_mbox_line(raw, 0)
    for field in _fields(raw):
        stop = field.end()
    blank = _BLANK_LINE.match(raw, stop)
    return blank.end() if blank else stop


def prepend(raw: bytes, block: bytes) -> bytes:
    """Put whole header lines above a message, below an mbox "From " line; what was body stays body."""
    head = _after_mbox_line(raw, 0)
    gap = _line_end(raw, head) if _lacks_fields(raw, head) else b""
    return b"".join((raw[:head], block, gap, raw[head:]))


def content_hash(raw: bytes) -> str:
    """sha256 of a message without our headers and with LF line ends: the same before and after we tagged it."""
    return hashlib.sha256(strip(raw).replace(b"\r\n", b"\n")).hexdigest()


def hops(raw: bytes) -> int:
    """How many Received fields the top header block has."""
    return sum(1 for field in _fields(raw) if _RECEIVED.match(field[1]))


def printable(text: str, limit: int) -> str:
    """Text of foreign origin for a header or a log: one line, nothing that a terminal obeys, bounded."""
    if len(text) <= limit and text.isprintable():
        return text
    shown = "".join(c if c.isprintable() else " " for c in text[: limit + 1])
    return shown if len(shown) <= limit else shown[: limit - 3] + "..."


def _scan(raw: bytes) -> tuple[list[tuple[int, int]], int]:
    """The spans that strip() removes, in order, and the end of the header block."""
    ours: list[tuple[int, int]] = []
    position, mbox, separated, only_ours = 0, False, False, True
    tag: bytes | None = None
    while True:
        if only_ours and not mbox and (line := _MBOX_LINE.match(raw, position)):
            mbox = True
            position = line.end()
        elif field := _FIELD.match(raw, position):
            stop = field.end()
            if _OURS.match(field[1]):
                separated |= field[1].lower() == _SEPARATOR_NAME
                if tag is None and (mark := _SUBJECT_MARK.fullmatch(raw, position, stop)):
                    # Only one tag is believed, so that who forges marks loses little, and nothing but his Subject.
                    tag = mark[2] if mark[1].lower() == b"begins" else b""
                    added = _FIELD.match(raw, stop)
                    if not tag and added and added[0].rstrip(b"\r\n") == b"Subject: " + mark[2]:
                        stop = added.end()
                ours.append((position, stop))
            else:
                only_ours = False
                if tag and (subject := _SUBJECT_START.match(raw, position)):
                    if raw.startswith(tag, subject.end()):
                        ours.append((subject.end(), subject.end() + len(tag)))
                    tag = b""
            position = stop
        elif separated and only_ours and (blank := _BLANK_LINE.match(raw, position)):
            separated = False
            ours.append((position, blank.end()))
            position = blank.end()
        else:
            return ours, position


def _stamped(raw: bytes, fields: Iterable[Field], tag: bytes = b"") -> bytes:
    head = _after_mbox_line(raw, 0)
    eol = _line_end(raw, head)
    lines = [_folded(name, value, eol) for name, value in fields]
    if tag:
        subject = next((found for field in _fields(raw) if (found := _SUBJECT_START.match(raw, field.start()))), None)
        how = b"begins" if subject else b"added"
        lines.append(b'X-Spamguard-Subject: %s "%s"' % (how, tag) + eol)
        if subject:
            raw = raw[: subject.end()] + tag + raw[subject.end() :]
        else:
            lines.append(b"Subject: " + tag + eol)
    if _lacks_fields(raw, head):
        lines.append(_folded(_SEPARATOR, "added", eol))
    return prepend(raw, b"".join(lines))


def _lacks_fields(raw: bytes, head: int) -> bool:
    """Whether the text starts at once, with neither a field nor the empty line before it."""
    return head < len(raw) and not _FIELD.match(raw, head) and not _BLANK_LINE.match(raw, head)


def _fields(raw: bytes) -> Iterator[re.Match[bytes]]:
    position = _after_mbox_line(raw, 0)
    while field := _FIELD.match(raw, position):
        yield field
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


@lru_cache(64)
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
    text = " ".join([f"{name}:", *value.split()])
    lines = [text] if len(text) <= _WIDTH else _LINE.findall(text)
    return (eol + b" ").join([line.encode("ascii", "replace") for line in lines]) + eol
