"""What a spammer does to a mail so that a reader sees the same and a filter something else: bytes -> bytes.

Each attack rewrites the text parts of the mail as it finds them, and the subject where it is said; other parts and
headers stay. `ham` is text that the filter has learnt as ham.
"""

from __future__ import annotations

import base64
import html as entities
import io
import re
import struct
import zlib
from collections.abc import Callable
from email.charset import BASE64, Charset
from email.generator import BytesGenerator
from email.header import Header
from email.message import Message
from email.parser import BytesParser
from email.policy import compat32
from itertools import pairwise

from spamguard.message import parse

Attack = Callable[[bytes, str], bytes]
Rewrite = Callable[[str], str]

ZERO_WIDTH = "\u200b"
OVERRIDE, END = "\u202e", "\u202c"  # right to left, until
# Latin letters and those of other scripts that look the same: Cyrillic, and Greek for the rest.
LOOKALIKES = str.maketrans("aceopxyisjABCEHIKMNOPTXYZv", "асеорхуіѕјАВСЕНІКМΝОРТХΥΖν")
HIDING = ('<div style="display:none">', '<div style="color:#ffffff;background:#ffffff">', '<div style="font-size:0">')
FEW, MANY = 300, 4000  # words of ham
_WORD = re.compile(r"[A-Za-z]{4,}")
# A tag, a comment, a style, a script, or an entity: what is not text of an HTML part.
_MARKUP = re.compile(r"(<!--.*?-->|<(style|script|title)\b.*?</\2\s*>|<[^>]*>|&#?\w+;)", re.DOTALL | re.IGNORECASE)
_LINK = re.compile(r"https?://[^\s\"'<>]+")
_WORD_OR_LINK = re.compile(rf"{_LINK.pattern}|({_WORD.pattern})")


def zero_width(raw: bytes, ham: str) -> bytes:
    """A character without width in the middle of each word."""
    return _words(raw, lambda word: word[:2] + ZERO_WIDTH + word[2:])


def bidi(raw: bytes, ham: str) -> bytes:
    """Each word written backwards, in a right-to-left override."""
    return _words(raw, lambda word: OVERRIDE + word[::-1] + END)


def homoglyphs(raw: bytes, ham: str) -> bytes:
    """Letters of other scripts that look like Latin ones."""
    return _words(raw, lambda word: word.translate(LOOKALIKES))


def tags(raw: bytes, ham: str) -> bytes:
    """Empty tags and comments within each word; plain text becomes HTML."""

    def broken(word: str) -> str:
        return word[:2] + ("<b></b>" if len(word) % 2 else "<!-- -->") + word[2:]

    return _rewrite(
        raw, html=lambda text: _between(text, lambda part: _WORD.sub(lambda found: broken(found[0]), part))
    )


def spaces(raw: bytes, ham: str) -> bytes:
    """A space between all letters of each word."""
    return _words(raw, " ".join)


def hidden_ham(raw: bytes, ham: str) -> bytes:
    """Ham that no reader sees, hidden in three ways; plain text becomes HTML."""
    some = entities.escape(_first(ham, FEW))
    return _rewrite(raw, html=lambda text: _at_the_end(text, "".join(f"{tag}{some}</div>" for tag in HIDING)))


def good_words(raw: bytes, ham: str) -> bytes:
    """Ham below the spam, to be seen."""
    some = _first(ham, FEW)
    return _rewrite(
        raw,
        plain=lambda text: f"{text}\n\n{some}\n",
        html=lambda text: _at_the_end(text, f"<p>{entities.escape(some)}</p>"),
        as_html=False,
    )


def preamble(raw: bytes, ham: str) -> bytes:
    """Thousands of words of ham before the spam."""
    some = _first(ham, MANY)
    return _rewrite(
        raw,
        plain=lambda text: f"{some}\n\n{text}",
        html=lambda text: f"<p>{entities.escape(some)}</p>{text}",
        as_html=False,
    )


def in_base64(raw: bytes, ham: str) -> bytes:
    """The same text, all of it in base64, the subject too."""
    mail = _parsed(raw)
    for part in _texts(mail):
        _fill(part, _text(part), base64_too=True)
    _subject(mail, parse(raw).subject, always=True)
    return _bytes(mail)


def image(raw: bytes, ham: str) -> bytes:
    """The text in a picture; a subject that says nothing and a link remain."""
    found = _LINK.search(raw.decode("latin-1"))
    link = found[0] if found else "http://www.example.com/"
    mail = _parsed(raw)
    for name in ("Content-Type", "Content-Transfer-Encoding", "Content-Disposition", "MIME-Version"):
        del mail[name]
    mail["MIME-Version"] = "1.0"
    mail["Content-Type"] = 'multipart/related; boundary="=_picture"'
    page = f'<html><body><a href="{entities.escape(link)}"><img src="cid:1"></a></body></html>'
    text, picture = Message(), Message()
    text["Content-Type"] = "text/html; charset=utf-8"
    text.set_payload(page)
    picture["Content-Type"] = 'image/png; name="1.png"'
    picture["Content-ID"] = "<1>"
    picture["Content-Transfer-Encoding"] = "base64"
    picture.set_payload(base64.encodebytes(_png()).decode())
    mail.set_payload([text, picture])
    _subject(mail, "Information")
    return _bytes(mail)


ATTACKS: dict[str, Attack] = {
    "zero-width characters in words": zero_width,
    "words backwards in bidi overrides": bidi,
    "homoglyphs": homoglyphs,
    "words broken by tags": tags,
    "words broken by spaces": spaces,
    "hidden ham appended": hidden_ham,
    "ham appended, to be seen": good_words,
    "long ham before the spam": preamble,
    "text moved to an image": image,
    "all in base64": in_base64,
}


def _words(raw: bytes, change: Rewrite) -> bytes:
    """Each word of four letters or more changed, in the subject as well."""

    def text(part: str) -> str:
        return _WORD_OR_LINK.sub(lambda found: change(found[0]) if found[1] else found[0], part)

    return _rewrite(raw, plain=text, html=lambda page: _between(page, text), subject=text, as_html=False)


def _between(page: str, change: Rewrite) -> str:
    """The text between the tags changed."""
    ends = [0, *(end for found in _MARKUP.finditer(page) for end in found.span()), len(page)]
    pieces = [page[start:end] for start, end in pairwise(ends)]
    return "".join(piece if number % 2 else change(piece) for number, piece in enumerate(pieces))


def _rewrite(
    raw: bytes,
    *,
    html: Rewrite,
    plain: Rewrite = lambda text: text,
    subject: Rewrite | None = None,
    as_html: bool = True,
) -> bytes:
    """The mail with its text parts changed; with `as_html` a mail without HTML is made one first."""
    mail = _parsed(raw)
    parts = _texts(mail)
    if as_html and parts and not any(part.get_content_subtype() == "html" for part in parts):
        text = _text(parts[0])
        _fill(parts[0], html(f"<html><body><pre>{entities.escape(text)}</pre></body></html>"), kind="text/html")
    else:
        for part in parts:
            change = html if part.get_content_subtype() == "html" else plain
            _fill(part, change(_text(part)))
    if subject is not None:
        _subject(mail, subject(parse(raw).subject))
    return _bytes(mail)


def _at_the_end(page: str, more: str) -> str:
    end = page.lower().rfind("</body")
    return page + more if end < 0 else page[:end] + more + page[end:]


def _parsed(raw: bytes) -> Message:
    return BytesParser(policy=compat32).parsebytes(raw)


def _texts(mail: Message) -> list[Message]:
    return [
        part
        for part in mail.walk()
        if part.get_content_type() in {"text/plain", "text/html"} and part.get_content_disposition() != "attachment"
    ]


def _text(part: Message) -> str:
    payload = part.get_payload(decode=True)
    content = payload if isinstance(payload, bytes) else b""
    for charset in (part.get_content_charset("utf-8"), "utf-8"):
        try:
            return content.decode(charset)
        except (LookupError, ValueError):
            continue
    return content.decode("latin-1")


def _fill(part: Message, text: str, *, kind: str = "", base64_too: bool = False) -> None:
    """Put text into a part, in UTF-8; what was base64 stays so."""
    coded = base64_too or str(part.get("Content-Transfer-Encoding", "")).strip().lower() == "base64"
    kind = kind or part.get_content_type()
    for name in ("Content-Type", "Content-Transfer-Encoding", "MIME-Version"):
        del part[name]
    part["MIME-Version"] = "1.0"
    part["Content-Type"] = f"{kind}; charset=utf-8"
    part["Content-Transfer-Encoding"] = "base64" if coded else "8bit"
    content = text.encode("utf-8", "replace")
    part.set_payload(base64.encodebytes(content).decode() if coded else content.decode("ascii", "surrogateescape"))


def _subject(mail: Message, subject: str, *, always: bool = False) -> None:
    """A subject that needs it, or `always`, as encoded words in base64 (RFC 2047)."""
    del mail["Subject"]
    charset = Charset("utf-8")
    charset.header_encoding = BASE64
    plain = subject.isascii() and not always
    mail["Subject"] = subject if plain else Header(subject, charset, maxlinelen=70).encode()


def _bytes(mail: Message) -> bytes:
    out = io.BytesIO()
    BytesGenerator(out, mangle_from_=False, maxheaderlen=0).flatten(mail)
    return out.getvalue()


def _first(text: str, words: int) -> str:
    return " ".join(text.split()[:words])


def _png() -> bytes:
    """A white picture of 600 by 400 points (ISO/IEC 15948)."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", 600, 400, 8, 0, 0, 0, 0)
    rows = zlib.compress((b"\0" + b"\xff" * 600) * 400)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
