"""A mail as the filter sees it: headers, the text that a reader sees, its links and its structure.

`parse` takes any bytes, is bounded in time and memory by the caps of this module, `mime` and `html_text`, and never
raises: what is wrong with a mail is named in `Message.defects`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from itertools import islice
from typing import NamedTuple

from . import mime
from .decoding import clean, decode, decode_words
from .disguise import fold
from .html_text import MAX_TAGS, Link, Page, read_html

__all__ = ["GTUBE", "TEXT_VERSION", "Attachment", "Link", "Message", "is_gtube", "parse"]

# Part of every cache key: change it whenever the text handed to the encoder may change.
TEXT_VERSION = "4"

MAX_TEXT = 262_144  # characters of a body
MAX_LINKS = 1_000
MAX_VALUE = 4_096  # characters of a header that is decoded
_MAX_PART = 1_048_576  # bytes of a text part that are decoded
_HEAD = 64  # bytes of an attachment looked at

GTUBE = "XJS*C4JDBQADN1.NSBN3*2IDNEN*GTUBE-STANDARD-ANTI-UBE-TEST-EMAIL*C.34X"

_READ = frozenset({"text/plain", "text/html", "text/enriched", "text/richtext", "application/xhtml+xml"})
_LOOKS_LIKE_HTML = re.compile(r"\s*<(?:!doctype html|html|head|body|table|div)\b", re.IGNORECASE)
# Beginning with a set, and not by IGNORECASE, so that `re` skips at the speed of C to letters that may begin one.
_URL = re.compile(
    r"[hHfFwW](?:(?<=[hH])[tT]{2}[pP][sS]?://|(?<=[fF])[tT][pP]://|(?<=\b[wW])[wW]{2}\.(?=\w))[^\s<>\"']{1,2048}"
)
_HOST = re.compile(r"(?:[a-z]+:)?/*+(?:[^\s/@?#]*+@)?([^\s/?#:@]++)", re.IGNORECASE)
_QUOTED = re.compile(r'"((?:[^"\\]|\\.)*+)"')
_QUOTED_PAIR = re.compile(r"\\(.)")
_ADDRESS = re.compile(r"[^\s<>\"(),:;@]{1,64}@[^\s<>\"(),:;@]{1,255}")
_META_CHARSET = re.compile(rb"<meta[^>]{1,200}?charset\s{0,9}=\s{0,9}[\"']?([\w.:-]{1,40})", re.IGNORECASE | re.ASCII)
_UUENCODED = re.compile(
    r"^begin [0-7]{3} ([^\r\n]{1,255})\r?\n(?:[\x20-\x60]{1,90}\r?\n)*+(?:end\b|`)?", re.MULTILINE
)


class Attachment(NamedTuple):
    """A part that is not read: kind and name as declared, bytes as sent, and its first decoded bytes."""

    kind: str
    filename: str
    size: int
    head: bytes


@dataclass(frozen=True, slots=True)
class Message:
    """One mail, read. Only bounded facts; the attached bytes stay in `raw`.

    `headers` are unfolded, in order, names as they came, words not decoded (`header` decodes them).
    `body` is the visible text: of alternatives the HTML, if it has text; attached mails too; blanks collapsed; URLs
    shortened to their hosts. `plain` is the text/plain alternative that was not read ("" if none).
    `hidden`, `zero_width` and `bidi` count the characters that were left out of `body`, and `visible` those of it,
    blanks not counted; `broken_words` and `mixed_words` count words that were set apart letter by letter or that mix
    alphabets, before the text was mended; `base64_text` counts text parts sent as base64.
    """

    raw: bytes = field(repr=False)
    headers: mime.Headers = field(repr=False)
    subject: str
    sender_name: str
    sender_address: str
    reply_address: str
    body: str
    plain: str = field(repr=False)
    links: tuple[Link, ...] = field(repr=False)
    attachments: tuple[Attachment, ...]
    charsets: tuple[str, ...]
    has_html: bool
    has_plain: bool
    visible: int
    hidden: int
    zero_width: int
    bidi: int
    broken_words: int
    mixed_words: int
    images: int
    forms: int
    scripts: int
    base64_text: int
    defects: tuple[str, ...]

    @property
    def text(self) -> str:
        """What the encoder reads: subject, the sender's name and the body. Nothing that tells where or when."""
        name = " ".join(_ADDRESS.sub(" ", self.sender_name).split())
        return "\n".join(filter(None, (self.subject, name, self.body)))

    def header(self, name: str) -> str | None:
        """The first header of that name with its encoded words (RFC 2047) read, or None."""
        name = name.lower()
        return next((_header_text(value) for key, value in self.headers if key.lower() == name), None)

    def headers_all(self, name: str) -> tuple[str, ...]:
        """All headers of that name, topmost first, encoded words read."""
        name = name.lower()
        return tuple(_header_text(value) for key, value in self.headers if key.lower() == name)


def parse(raw: bytes) -> Message:
    """Read a mail in any form: CRLF, LF or CR, with an mbox line or without headers, broken or hostile."""
    defects: set[str] = set()
    # Old Macintosh line ends; looked for where headers are, as a body may be one long line.
    source = raw if b"\n" in raw[: mime.MAX_HEADER_BYTES] else raw.replace(b"\r", b"\n")
    tree = mime.Tree(source, defects)
    reading = _Reading(tree.parts, defects)
    subject = clean(_header_text(mime.find(tree.headers, "subject")))
    name, address = split_address(mime.find(tree.headers, "from"))
    sender = clean(name)
    texts, mixed_words = [subject.text, sender.text, reading.body, reading.plain], 0
    if not all(map(str.isascii, texts)):
        # All at once, as a name alone may be too short to tell its alphabet. None of them holds a line end.
        folded, mixed_words = fold("\n".join(texts))
        texts = folded.split("\n")
    subject_text, sender_name, body, plain = texts
    return Message(
        raw=raw,
        headers=tree.headers,
        subject=subject_text,
        sender_name=sender_name,
        sender_address=address,
        reply_address=split_address(mime.find(tree.headers, "reply-to"))[1],
        body=body,
        plain=plain,
        links=tuple(reading.links),
        attachments=tuple(reading.attachments),
        charsets=tuple(reading.charsets),
        has_html=reading.has_html,
        has_plain=reading.has_plain,
        visible=len(body) - body.count(" "),
        hidden=reading.hidden,
        zero_width=reading.zero_width + subject.zero_width + sender.zero_width,
        bidi=reading.bidi + subject.bidi + sender.bidi,
        broken_words=reading.broken_words + subject.broken + sender.broken,
        mixed_words=mixed_words,
        images=reading.images,
        forms=reading.forms,
        scripts=reading.scripts,
        base64_text=reading.base64_text,
        defects=tuple(sorted(defects)),
    )


def is_gtube(mail: bytes | Message) -> bool:
    """Whether a body holds the test pattern of spam filters."""
    message = mail if isinstance(mail, Message) else parse(mail)
    return GTUBE in message.body or GTUBE in message.plain


def host_of(url: str) -> str:
    """The host of a URL in lower case, without user, port and closing punctuation; "" where there is none."""
    match = _HOST.match(url.replace("\\", "/"))
    return match[1].lower().rstrip(".,;!)]}'*") if match else ""


def split_address(value: str) -> tuple[str, str]:
    """The display name, decoded, and the address in lower case of a From or Reply-To (RFC 5322 section 3.4).

    Of several addresses the last in angle brackets counts: readers show the name, and the real one stands last.
    """
    value = value[:MAX_VALUE]
    name, bracket, rest = value.rpartition("<")
    if not bracket:
        found = _ADDRESS.search(value)
        address = found[0] if found else ""
        return _header_text(value.replace(address, "").strip(' ()"')), address.lower()
    found = _ADDRESS.search(rest.partition(">")[0])
    name = name.strip()
    if quoted := _QUOTED.fullmatch(name):
        name = _QUOTED_PAIR.sub(r"\1", quoted[1])
    elif name[:1] == name[-1:] == "'":
        name = name[1:-1]
    return _header_text(name), found[0].lower() if found else ""


def _header_text(value: str) -> str:
    return decode_words(value[:MAX_VALUE])


class _Reading:
    """Collects what the leaves of one mail say."""

    def __init__(self, parts: list[mime.Part], defects: set[str]) -> None:
        self.defects = defects
        self.links: list[Link] = []
        self.attachments: list[Attachment] = []
        self.charsets: list[str] = []
        self.has_html = self.has_plain = False
        self.hidden = self.zero_width = self.bidi = self.broken_words = 0
        self.images = self.forms = self.scripts = self.base64_text = 0
        self._tags = 0
        self._budget = 2 * _MAX_PART  # decoded bytes of all text parts together

        shown = [part for part in parts if part.kind in _READ and part.disposition != "attachment"]
        # A mail of which the only text is called an attachment is still read.
        chosen = {id(part) for part in shown or [part for part in parts if part.kind in _READ]}
        pages: list[tuple[mime.Part, Page]] = []
        for part in parts:
            if part.kind == "message/rfc822":
                subject = _header_text(mime.find(part.headers, "subject"))
                pages.append((part, Page(text=subject)))
            elif id(part) in chosen:
                pages.append((part, self._page(part)))
            else:
                self._attach(part)
        self._assemble(pages)

    def _page(self, part: mime.Part) -> Page:
        data, cut = part.content(min(_MAX_PART, self._budget), self.defects)
        self._budget -= len(data)
        # What is cut may end within a character: no fault of the sender's.
        defects = set() if cut else self.defects
        text = decode(data, part.charset or _declared_in_html(part.kind, data), defects)
        if part.charset:
            self.charsets.append(part.charset)
        if part.encoding == "base64":
            self.base64_text += 1
        if part.kind != "text/plain" or _LOOKS_LIKE_HTML.match(text):
            self.has_html = True
            page = read_html(text, MAX_TAGS - self._tags)
            self._tags += page.tags
        else:
            self.has_plain = True
            page = Page(text=self._without_uuencoded(text))
            page.links = [Link(url[0], "") for url in islice(_URL.finditer(page.text), MAX_LINKS)]
        if cut or page.cut:
            self.defects.add("text-cut")
        return page

    def _assemble(self, pages: list[tuple[mime.Part, Page]]) -> None:
        rich = {part.alternative for part, page in pages if part.kind != "text/plain" and page.text.strip()}
        body: list[str] = []
        plain: list[str] = []
        for part, page in pages:
            self.hidden += page.hidden
            self.images += page.images
            self.forms += page.forms
            self.scripts += page.scripts
            if part.kind == "text/plain" and part.alternative and part.alternative in rich:
                plain.append(page.text)
                continue
            body.append(page.text)
            self.links.extend(page.links[: MAX_LINKS - len(self.links)])
        self.body = self._finish(body)
        self.plain = self._finish(plain)

    def _finish(self, texts: list[str]) -> str:
        text = "\n".join(texts)[: 2 * MAX_TEXT]
        cleaned = clean(_URL.sub(lambda match: f" {host_of(match[0])} ", text), MAX_TEXT)
        self.zero_width += cleaned.zero_width
        self.bidi += cleaned.bidi
        self.broken_words += cleaned.broken
        if len(cleaned.text) == MAX_TEXT:
            self.defects.add("text-cut")
        return cleaned.text

    def _attach(self, part: mime.Part) -> None:
        head, _ = part.content(_HEAD, set())
        if part.kind.startswith("image/"):
            self.images += 1
        self.attachments.append(Attachment(part.kind, clean(part.filename[:MAX_VALUE]).text, part.size, head))

    def _without_uuencoded(self, text: str) -> str:
        if "begin " not in text:
            return text
        for match in islice(_UUENCODED.finditer(text), mime.MAX_PARTS):
            size = match.end() - match.start()
            self.attachments.append(Attachment("application/octet-stream", match[1].strip(), size, b""))
        return _UUENCODED.sub(" ", text)


def _declared_in_html(kind: str, data: bytes) -> str | None:
    if kind == "text/plain":
        return None
    match = _META_CHARSET.search(data, 0, 2048)
    return match[1].decode("ascii") if match else None
