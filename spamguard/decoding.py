"""Bytes of mail to text: transfer encodings, charsets, RFC 2047 words, invisible characters. Nothing here raises.

Every function is linear in its input, and the names of what was wrong go into the caller's `defects`.
"""

from __future__ import annotations

import base64
import binascii
import re
import unicodedata
from typing import NamedTuple

from .disguise import join, may_be_apart, without_marks

# Codecs by the name that mail gives them. An allow-list: Python's registry also holds rot13, zlib, idna, punycode,
# utf-7 (a way round filters) and whatever a package registered. The supersets that browsers read are used, as
# senders write cp1252 and call it latin-1.
_CODECS = {
    "utf-8": "utf-8", "utf8": "utf-8", "unicode-1-1-utf-8": "utf-8", "utf-8-sig": "utf-8", "cp65001": "utf-8",
    "us-ascii": "cp1252", "ascii": "cp1252", "ansi_x3.4-1968": "cp1252", "iso-8859-1": "cp1252",
    "iso8859-1": "cp1252", "latin1": "cp1252", "latin-1": "cp1252", "cp1252": "cp1252",
    "utf-16": "utf-16", "utf16": "utf-16", "utf-16le": "utf-16-le", "utf-16be": "utf-16-be",
    "gb2312": "gb18030", "gbk": "gb18030", "gb18030": "gb18030", "cp936": "gb18030", "x-gbk": "gb18030",
    "eucgb2312-cn": "gb18030", "big5-tw": "big5hkscs",  # what Python's `email` writes for gb2312 and big5
    "chinesebig5": "big5hkscs", "big5": "big5hkscs", "big5-hkscs": "big5hkscs", "cp950": "big5hkscs",
    "shift_jis": "cp932", "shift-jis": "cp932", "sjis": "cp932", "x-sjis": "cp932", "windows-31j": "cp932",
    "iso-2022-jp": "iso2022_jp_2", "euc-jp": "euc_jp", "iso-2022-kr": "iso2022_kr",
    "euc-kr": "cp949", "ks_c_5601-1987": "cp949", "ks_c_5601": "cp949", "cp949": "cp949",
    "koi8-r": "koi8_r", "koi8-u": "koi8_u", "tis-620": "cp874", "windows-874": "cp874", "macintosh": "mac_roman",
    **{f"windows-125{n}": f"cp125{n}" for n in range(9)},
    **{f"cp125{n}": f"cp125{n}" for n in range(9)},
    **{f"iso-8859-{n}": f"iso8859_{n}" for n in (2, 3, 4, 5, 6, 7, 8, 10, 13, 14, 15, 16)},
    "iso-8859-8-i": "iso8859_8", "iso-8859-9": "cp1254", "iso-8859-11": "cp874",
}  # fmt: skip

_NOT_BASE64 = bytes(
    sorted(set(range(256)) - set(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/="))
)
_NOISE = bytes((*range(9), *range(14, 27), *range(28, 32), 127))
_CONTROLS = re.compile("[\x00-\x08\x0e-\x1f\x7f-\x9f]+")

_ENCODED_WORD = re.compile(r"=\?([^?\s]{1,60})\?([bBqQ])\?([^?]*+)\?=")

_SOFT = "\u00ad\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180e\u200b-\u200d\u2060-\u2064\u206a-\u206f\ufe00-\ufe0f\ufeff"
_BLANKS = re.compile(r"\s{2,}+|[\t-\r\x1c-\x1f\u2028\u2029]")
_BIDI = "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"
_INVISIBLE = re.compile(f"[{_SOFT}{_BIDI}\ufff9-\ufffb\U000e0000-\U000e0fff]+")
# Between two letters only: joiners are spelling in Persian and in emoji, and newsletters pad previews with them.
_LETTER = "[0-9A-Za-z\u00c0-\u024f\u0370-\u03ff\u0400-\u052f]"
_INSIDE_WORD = re.compile(f"(?<={_LETTER})[{_SOFT}]++(?={_LETTER})")
_OVERRIDES = re.compile("[\u202a-\u202e\u2066-\u2069]")

# CPython sorts a run of combining marks by insertion: whole texts of marks would cost quadratic time.
_NFKC_CHUNK = 512


class Cleaned(NamedTuple):
    """A text without invisible characters, how many of them stood inside words or turned the direction, and how many
    words were set apart letter by letter.
    """

    text: str
    zero_width: int
    bidi: int
    broken: int


def codec(label: str | None) -> str | None:
    """The Python codec for a charset name as mail writes it, or None when we do not take that name."""
    return (
        _CODECS.get(label.strip().strip("\"'").lower().replace("_", "-"), _CODECS.get(label.lower()))
        if label
        else None
    )


def decode(data: bytes, label: str | None, defects: set[str]) -> str:
    """Text of `data`: as declared, else UTF-8, else cp1252; always text.

    A multi-byte charset that fits but for a few bytes (a text cut off, say) is kept, with U+FFFD in their places.
    """
    name = codec(label)
    if label and name is None:
        defects.add("unknown-charset")
    if name is not None and name.startswith("utf-16"):
        # ASCII that claims UTF-16 would read as Chinese; true UTF-16 has NUL in its blanks and line ends.
        if b"\0" not in data[:4096]:
            defects.add("wrong-charset")
            name = None
        elif name == "utf-16" and data[:2] not in (b"\xff\xfe", b"\xfe\xff"):
            name = "utf-16-be" if data[0] == 0 else "utf-16-le"
    if name in (None, "cp1252"):
        name = "utf-8"  # UTF-8 that calls itself latin-1 is commoner than latin-1 that happens to be UTF-8
        if data.isascii():
            return data.decode("ascii")
    else:
        text = _strictly(data, name)
        if text is not None:
            return text.removeprefix("\ufeff")
        defects.add("wrong-charset")
    text = _strictly(data, "utf-8")
    if text is None:
        text = data.decode(name, "replace")
        bad = text.count("\ufffd")
        if 2 * bad > len(text) - len(text.encode("ascii", "ignore")):
            text = _strictly(data, "cp1252") or data.decode("latin-1")
    return text.removeprefix("\ufeff")


def _strictly(data: bytes, name: str) -> str | None:
    try:
        return data.decode(name)
    except (UnicodeError, ValueError):
        return None


def transfer_decode(data: bytes, encoding: str, limit: int, defects: set[str]) -> tuple[bytes, bool]:
    """Undo a Content-Transfer-Encoding (RFC 2045 section 6); at most `limit` bytes out, and whether it was cut."""
    if encoding == "base64":
        cut = len(data) > limit * 3 // 2
        return _base64(data[: limit * 3 // 2], defects)[:limit], cut
    if encoding == "quoted-printable":
        cut = len(data) > limit * 3
        return binascii.a2b_qp(data[: limit * 3])[:limit], cut
    if encoding not in ("", "7bit", "8bit", "binary"):
        defects.add("unknown-encoding")  # x-uuencode among them: left as it is, never unpacked to a file
    return data[:limit], len(data) > limit


def _base64(data: bytes, defects: set[str]) -> bytes:
    letters = data.translate(None, _NOT_BASE64)
    junk = len(data) - len(letters) - data.count(b"\n") - data.count(b"\r")
    if junk:
        defects.add("bad-base64")
    body, padding, rest = letters.partition(b"=")
    if rest.strip(b"="):
        defects.add("bad-base64")
    if len(body) % 4 == 1:
        defects.add("bad-base64")
        body = body[:-1]
    elif not padding and len(body) % 4:
        defects.add("bad-base64")
    decoded = base64.b64decode(body + b"=" * (-len(body) % 4))
    # RFC 2045 section 6.8 has other characters ignored, and spam scatters blanks; but prose has a blank in every
    # dozen characters too, and what only claims to be base64 decodes to noise, a tenth of it control characters.
    if junk * 12 > len(data) and len(decoded.translate(None, _NOISE)) <= 0.98 * len(decoded):
        return data
    return decoded


def decode_words(value: str) -> str:
    """A header value with its encoded words (RFC 2047) read; what is no proper word stays as it is."""
    if "=?" not in value:
        return value
    out: list[str] = []
    pending, label, end = b"", "", 0
    ignored: set[str] = set()
    for match in _ENCODED_WORD.finditer(value):
        gap = value[end : match.start()]
        charset = match[1].partition("*")[0].lower()  # RFC 2231 section 5 adds a language after a star
        adjacent = bool(pending) and not gap.strip()
        # Senders split characters between words, against RFC 2047 section 5: same-charset neighbours join as bytes.
        if not (adjacent and charset == label):
            out.append(decode(pending, label, ignored) if pending else "")
            pending = b""
        if not adjacent:
            out.append(gap)
        label, end = charset, match.end()
        payload = match[3].encode("utf-8", "replace")
        if match[2] in "bB":
            pending += _base64(payload, ignored)
        else:
            pending += binascii.a2b_qp(payload.replace(b" ", b"_"), header=True)
    out.append(decode(pending, label, ignored) if pending else "")
    return "".join(out) + value[end:]


def clean(text: str, limit: int = 262_144) -> Cleaned:
    """`text` in NFKC with blanks collapsed, broken words joined, and controls, zero-width and bidi characters gone.

    At most `limit` characters; the counts are of the whole of it.
    """
    zero_width = bidi = broken = 0
    if not text.isascii():
        zero_width, bidi = len(_INSIDE_WORD.findall(text)), len(_OVERRIDES.findall(text))
        text = _INVISIBLE.sub("", text)
    cleaned = " ".join(text.split())
    if not (text.isascii() and cleaned.isprintable()):
        cleaned = " ".join(_normal(cleaned, limit).split())
    cleaned = cleaned[:limit]
    if may_be_apart(cleaned):
        # Two blanks keep words apart that are themselves set apart, so that this needs the text with its blanks.
        joined, broken = join(_normal(_BLANKS.sub("\n", text), limit))
        cleaned = " ".join(joined.split()) if broken else cleaned
    return Cleaned(cleaned, zero_width, bidi, broken)


def _normal(text: str, limit: int) -> str:
    """At most `limit` characters of it in NFKC, encodable, without controls and marks that do not compose."""
    if not text.isprintable():
        text = _CONTROLS.sub(" ", text)
    text = text[:limit]
    if text.isascii():
        return text
    if not unicodedata.is_normalized("NFKC", text):
        chunks: list[str] = []
        size = 0
        for start in range(0, len(text), _NFKC_CHUNK):
            chunks.append(unicodedata.normalize("NFKC", text[start : start + _NFKC_CHUNK]))
            size += len(chunks[-1])
            if size > limit:  # one character may become eighteen
                break
        text = "".join(chunks)[:limit]
    # Lone surrogates (of UTF-7 or JSON tricks) cannot be encoded again by anybody downstream.
    return without_marks(text).encode("utf-8", "replace").decode("utf-8")
