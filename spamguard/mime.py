"""The MIME tree of a message (RFC 2045, 2046) cut out of its bytes, with a cap on everything.

Not the `email` package: its header parser takes 45 s for one hostile header, its feed parser runs line by line in
Python, and neither has a limit on depth or number. What is wrong is named in `defects`; nothing is raised.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from urllib.parse import unquote_to_bytes

from .decoding import decode, decode_words, transfer_decode

MAX_DEPTH = 20
MAX_PARTS = 200
MAX_HEADER_BYTES = 65_536  # of one header block
MAX_HEADERS = 1_000
MAX_SCANNED = 32_000_000  # bytes of a message looked at
_MAX_BOUNDARY = 200  # RFC 2046 says 70
_MAX_PARAMETERS = 4_096  # characters of a Content-Type or Content-Disposition read
_MAX_LOOKALIKES = 5_000  # lines that begin like a boundary and are none

_BLANK_LINE = re.compile(rb"\n\r?\n")
_FIELD = re.compile(rb"([!-9;-~]+)[ \t]*:")
_KIND = re.compile(r"\s*([\w.+-]{1,80}/[\w.+-]{1,80})", re.ASCII)
_PARAMETER = re.compile(
    r';\s*+([^\s=;"*]++)(\*?)(\d{0,3})(\*?)\s*+=\s*+(?:"((?:[^"\\]|\\.)*+)"?|([^;]*+))', re.DOTALL
)

Headers = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Part:
    """A leaf of the tree: its kind as declared, and where its still encoded body lies in `source`.

    `kind` (type/subtype), `encoding` and `disposition` are in lower case; `charset` is as declared ("" if not).
    `alternative` numbers the innermost multipart/alternative that holds the leaf (0: none). An attached message is
    a leaf of kind message/rfc822 without a body but with its headers, followed by its own leaves.
    """

    kind: str
    charset: str
    encoding: str
    disposition: str
    filename: str
    source: bytes = field(repr=False)
    start: int
    end: int
    alternative: int
    headers: Headers = field(repr=False)

    @property
    def size(self) -> int:
        """Bytes of the body as sent."""
        return self.end - self.start

    def content(self, limit: int, defects: set[str]) -> tuple[bytes, bool]:
        """The decoded body, at most `limit` bytes, and whether that cut it."""
        return transfer_decode(self.source[self.start : self.end], self.encoding, limit, defects)


def find(headers: Headers, name: str) -> str:
    """The first header of that name, "" when there is none; words not decoded."""
    name = name.lower()
    return next((value for key, value in headers if key.lower() == name), "")


def read_headers(source: bytes, start: int, end: int, defects: set[str]) -> tuple[Headers, int]:
    """The header block at `start`, unfolded, words not decoded; and where the body begins.

    A block ends at a blank line, or at the first line that is no header: there the body begins.
    """
    headers: list[tuple[str, list[str]]] = []
    at, cap = start, min(end, start + MAX_HEADER_BYTES)
    while at < end:
        if at >= cap or len(headers) > MAX_HEADERS:
            defects.add("headers-cut")
            blank = _BLANK_LINE.search(source, at - 1, end)
            at = blank.end() if blank else end
            break
        stop = source.find(b"\n", at, end)
        following = end if stop < 0 else stop + 1
        line = source[at : min(following, cap)].rstrip(b"\r\n\0")
        name = _FIELD.match(line)
        if not line:
            at = following
            break
        if line[0] in b" \t" and headers:
            headers[-1][1].append(_line_text(line))
        elif name is not None:
            headers.append((name[1].decode("ascii"), [_line_text(line[name.end() :])]))
        elif not (line.startswith((b"From ", b">From ")) and not headers):  # the first line of an mbox entry
            defects.add("no-header-body-separator")
            break
        at = following
    return tuple((key, " ".join(lines).strip()) for key, lines in headers), at


def _line_text(line: bytes) -> str:
    return (line.decode("ascii") if line.isascii() else decode(line, None, set())).strip()


def parameters(value: str) -> tuple[str, dict[str, str]]:
    """The bare value and the parameters of a MIME header, continuations joined (RFC 2231)."""
    value = value[:_MAX_PARAMETERS]
    found: dict[str, list[tuple[int, bool, str]]] = {}
    for name, star, number, last_star, quoted, bare in _PARAMETER.findall(";" + value.partition(";")[2]):
        extended = bool(last_star or (star and not number))
        text = re.sub(r"\\(.)", r"\1", quoted) if quoted else bare.strip()
        found.setdefault(name.lower(), []).append((int(number or 0), extended, text))
    return value.partition(";")[0].strip(), {name: _join(pieces) for name, pieces in found.items()}


def _join(pieces: list[tuple[int, bool, str]]) -> str:
    if not pieces[0][1] and pieces[0][0] == 0 and (len(pieces) == 1 or pieces[1][0] == 0):
        return decode_words(pieces[0][2])  # not allowed in a parameter, and everywhere
    pieces.sort(key=lambda piece: piece[0])
    charset, data = "", b""
    for index, (_, extended, text) in enumerate(pieces):
        if extended and index == 0 and text.count("'") >= 2:
            charset, _, text = text.split("'", 2)
        data += unquote_to_bytes(text) if extended else text.encode("utf-8", "replace")
    return decode(data, charset or None, set())


class Tree:
    """The leaves of a message in order, found by one walk."""

    def __init__(self, source: bytes, defects: set[str]) -> None:
        self.parts: list[Part] = []
        self.defects = defects
        self._alternatives = 0
        end = len(source)
        if end > MAX_SCANNED:
            defects.add("message-cut")
            end = MAX_SCANNED
        self.headers, body = read_headers(source, 0, end, defects)
        self._walk(source, self.headers, body, end, 0, 0, "text/plain")

    def _walk(
        self, source: bytes, headers: Headers, start: int, end: int, depth: int, alternative: int, default: str
    ) -> None:
        if len(self.parts) >= MAX_PARTS:
            self.defects.add("too-many-parts")
            return
        declared = find(headers, "content-type")
        match = _KIND.match(declared)
        kind = match[1].lower() if match else default
        if declared and match is None:
            self.defects.add("bad-content-type")
        given = parameters(declared)[1]
        encoding = find(headers, "content-transfer-encoding").partition(";")[0].strip().lower()
        if kind.startswith("multipart/") or kind == "message/rfc822":
            if depth >= MAX_DEPTH:
                self.defects.add("too-deep")
                return
            if kind == "message/rfc822":
                self._walk_message(source, headers, start, end, depth, alternative, encoding)
                return
            pieces = self._split(source, start, end, given.get("boundary", "").rstrip())
            if pieces:
                if kind == "multipart/alternative":
                    self._alternatives += 1
                    alternative = self._alternatives
                inner = "message/rfc822" if kind == "multipart/digest" else "text/plain"
                for piece_start, piece_end in pieces:
                    inner_headers, body = read_headers(source, piece_start, piece_end, self.defects)
                    self._walk(source, inner_headers, body, piece_end, depth + 1, alternative, inner)
                return
            kind = "text/plain"  # readers show what they cannot take apart
        disposition, named = parameters(find(headers, "content-disposition"))
        filename = named.get("filename") or given.get("name", "")
        charset = given.get("charset", "").strip()
        self.parts.append(
            Part(kind, charset, encoding, disposition.lower(), filename, source, start, end, alternative, headers)
        )

    def _walk_message(
        self, source: bytes, headers: Headers, start: int, end: int, depth: int, alternative: int, encoding: str
    ) -> None:
        if encoding in ("base64", "quoted-printable"):  # forbidden by RFC 2046 section 5.2.1, and met
            source, _ = transfer_decode(source[start:end], encoding, MAX_SCANNED // 16, self.defects)
            start, end = 0, len(source)
        inner, body = read_headers(source, start, end, self.defects)
        self.parts.append(Part("message/rfc822", "", encoding, "", "", source, body, body, alternative, inner))
        self._walk(source, inner, body, end, depth + 1, alternative, "text/plain")

    def _split(self, source: bytes, start: int, end: int, boundary: str) -> list[tuple[int, int]]:
        """Where the pieces between the boundary lines lie (RFC 2046 section 5.1.1); none without a boundary."""
        line = b"--" + boundary.encode("utf-8", "replace")
        if not boundary or len(line) > _MAX_BOUNDARY:
            self.defects.add("no-boundary")
            return []
        pieces: list[tuple[int, int]] = []
        opened, at, lookalikes = -1, start, 0
        while (found := source.find(line, at, end)) >= 0:
            at = found + len(line)
            begins_line = found == start or source[found - 1] == 10
            line_end = source.find(b"\n", at, end) if begins_line else at
            line_end = end if line_end < 0 else line_end
            tail = source[at : min(line_end, at + 80)].strip()
            if not begins_line or tail not in (b"", b"--"):
                lookalikes += 1  # text, or a longer boundary that begins like this one
                if lookalikes > _MAX_LOOKALIKES:
                    break
                continue
            if opened >= 0:
                pieces.append((opened, max(opened, found - (2 if source[found - 2 : found - 1] == b"\r" else 1))))
            opened = min(line_end + 1, end)
            if tail:
                return pieces
            if len(pieces) >= MAX_PARTS:
                self.defects.add("too-many-parts")
                return pieces
        if opened < 0:
            self.defects.add("no-boundary")
            return []
        self.defects.add("no-closing-boundary")
        return [*pieces, (opened, end)]
