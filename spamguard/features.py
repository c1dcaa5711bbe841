"""The structural features of a message: what its MIME tree, links and letters say, one table.

Each is evidence of spam or of its absence wherever and whenever a mail was collected: nothing reads Received (but to
compare a date with it), List-*, X-*, Message-ID or the presence of a header, and nothing knows today's date. Counts
are log1p, shares lie in [0, 1] or are scaled to it, all are clipped to [0, 10].
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

import numpy as np
import numpy.typing as npt

from .decoding import codec
from .message import Attachment, Link, Message, host_of

_SAMPLE = 10_000  # characters of a body that are counted
_LIMIT = 10.0


@dataclass(frozen=True, slots=True)
class Feature:
    """A named function of a message; `words` says to a user what it means when it is large."""

    name: str
    words: str
    compute: Callable[[Message], float]


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


# --- Links ---------------------------------------------------------------------------------------------------------

_SECOND_LEVEL = _names("ac co com edu go gob gov ltd me mil ne net nom or org plc sch")
_SHORTENERS = _names(
    "bit.ly bitly.com tinyurl.com goo.gl t.co ow.ly is.gd v.gd buff.ly rebrand.ly cutt.ly shorturl.at rb.gy t.ly "
    "tiny.cc s.id lnkd.in qrco.de adf.ly bl.ink soo.gd clck.ru u.to x.co urlz.fr tr.im snipurl.com dlvr.it"
)
_SHOWN_HOST = re.compile(
    r"(?:https?://|\bwww\.)([\w.-]{3,255})|^\s*((?:[\w-]{1,63}\.){1,5}[a-z]{2,12})(?:/\S*)?\s*$", re.IGNORECASE
)
_IP = re.compile(r"\d{1,3}(?:\.\d{1,3}){3}|\[[0-9a-f:.]{2,45}\]?|\d{8,10}|0x[0-9a-f]{8}|(?:0[x0-7][0-9a-f]*\.){3}\w+")
_AUTHORITY = re.compile(r"(?:https?|ftp):/*([^/?#\s]*)", re.IGNORECASE)
# A user name that looks like a host, or a letter or digit as %xx. People write http://info@shop.example and links
# with %20 in them by mistake: all of those in modern ham (19 mails of 509).
_ENCODED_LETTER = re.compile(r"%(?:3\d|[46][1-9a-f]|[57][0-9a])", re.IGNORECASE)
_PORT = re.compile(r":(\d{1,5})$")


def registrable(host: str) -> str:
    """The domain that somebody registered: the last two labels, or three below `co.uk` and its like.

    A rule of thumb instead of the public suffix list: it takes `a.github.io` and `b.github.io` for one owner.
    """
    labels = host.strip(".").split(".")
    keep = 3 if len(labels) > 2 and len(labels[-1]) == 2 and labels[-2] in _SECOND_LEVEL else 2
    return ".".join(labels[-keep:])


def _domain(address: str) -> str:
    return registrable(address.rpartition("@")[2])


def _web(message: Message) -> list[Link]:
    return [
        link for link in message.links if link.href[:4].lower() in ("http", "www.", "ftp:") or link.href[:2] == "//"
    ]


def _hosts(message: Message) -> set[str]:
    return {host for link in _web(message) if (host := host_of(link.href))}


def _authorities(message: Message) -> list[str]:
    return [match[1] for link in message.links if (match := _AUTHORITY.match(link.href))]


def _link_mismatch(message: Message) -> float:
    count = 0
    for link in _web(message):
        shown = _SHOWN_HOST.search(link.text) if "." in link.text else None
        if shown and registrable((shown[1] or shown[2]).lower()) != registrable(host_of(link.href)):
            count += 1
    return math.log1p(count)


def _link_port(message: Message) -> float:
    ports = [match[1] for authority in _authorities(message) if (match := _PORT.search(authority))]
    return math.log1p(sum(port not in ("80", "443") for port in ports))


def _link_disguise(message: Message) -> float:
    disguised = (
        "." in authority.rpartition("@")[0] or _ENCODED_LETTER.search(authority)
        for authority in _authorities(message)
    )
    return math.log1p(sum(map(bool, disguised)))


def _link_code(message: Message) -> float:
    schemes = (link.href[:20].lower().replace("\t", "").replace("\n", "") for link in message.links)
    return math.log1p(sum(scheme.startswith(("data:", "javascript:", "vbscript:")) for scheme in schemes))


# --- Senders -------------------------------------------------------------------------------------------------------

_NAMED_DOMAIN = re.compile(r"(?:@|\b)((?:[a-z0-9-]{1,63}\.){1,4}(?:com|net|org|info|biz|[a-z]{2}))\b", re.IGNORECASE)


def _reply_elsewhere(message: Message) -> float:
    if not message.reply_address or not message.sender_address:
        return 0.0
    return float(_domain(message.reply_address) != _domain(message.sender_address))


def _name_elsewhere(message: Message) -> float:
    match = _NAMED_DOMAIN.search(message.sender_name[:200])
    if match is None or not message.sender_address:
        return 0.0
    return float(registrable(match[1].lower()) != _domain(message.sender_address))


_RESERVED = _names("example invalid local localhost test")  # RFC 2606 and 6762: nobody's
_FREE_MAIL = _names(
    "126.com 163.com aol.com gmail.com gmx.de gmx.net googlemail.com hotmail.com icloud.com live.com mail.ru msn.com "
    "outlook.com proton.me protonmail.com qq.com web.de yahoo.com yandex.ru"
)
_NAME_WORD = re.compile(r"[^\W\d_]{3,}")
_SEPARATORS = bytes(byte for byte in range(128) if not chr(byte).isalnum())


def _joined(text: str) -> bytes:
    """Letters and digits alone, in UTF-8: "PM Press" is found in pmpress.org so, and the other way round."""
    return text.lower().encode("utf-8", "replace").translate(None, _SEPARATORS)


def _named_in(message: Message, where: bytes) -> bool:
    """Whether a word of the sender's name stands there."""
    return any(_joined(word) in where for word in _NAME_WORD.findall(message.sender_name[:200]))


def _untold(message: Message) -> bool:
    """Whether neither the text nor the sender's name says whose address this is: no "Shop" for ann@mail.shop.com."""
    domain = _domain(message.sender_address)
    owner = _joined(domain.partition(".")[0])
    if len(owner) < 3 or "." not in domain or domain.rpartition(".")[2] in _RESERVED or _named_in(message, owner):
        return False
    return owner not in _joined(f"{message.subject} {message.body[:_SAMPLE]}")


def _bulk_untold(message: Message) -> float:
    # Of bulk mail alone, which is HTML with links: letters need not name their writer's provider or employer.
    if not message.has_html or _domain(message.sender_address) in _FREE_MAIL or not _hosts(message):
        return 0.0
    return float(_untold(message))


def _sender_untold(message: Message) -> float:
    return float(not _named_in(message, _joined(message.sender_address)) and _untold(message))


# --- Letters -------------------------------------------------------------------------------------------------------

_WORD = re.compile(r"[^\W\d_]{2,}")
_CAPITALS = re.compile(r"[A-Z]{3,}(?![a-z])")
_MONEY = ("$", "€", "£", "¥", "₹", "₦", "₽", "USD", "EUR", "GBP", "BTC")
_LATIN = frozenset({"utf-8", "cp1252", "iso8859_15", "utf-16", "utf-16-le", "utf-16-be"})


def _share(count: int, total: int) -> float:
    return count / total if total else 0.0


def _count(text: str, signs: Iterable[str]) -> int:
    return sum(text.count(sign, 0, _SAMPLE) for sign in signs)


def _capitals(text: str) -> float:
    return min(1.0, _share(len(_CAPITALS.findall(text)), len(text.split())))


def _non_ascii(text: str) -> float:
    return _share(len(text) - len(text.encode("ascii", "ignore")), len(text))


def _longest_word(message: Message) -> float:
    return math.log1p(max(map(len, message.body[:_SAMPLE].split()), default=0))


def _charset_odd(message: Message) -> float:
    odd = sum(
        (name := codec(label)) is None or (name not in _LATIN and message.body.isascii())
        for label in message.charsets
    )
    return math.log1p(odd + ("wrong-charset" in message.defects))


def _alternatives_differ(message: Message) -> float:
    if not message.plain:
        return 0.0
    shown = set(_WORD.findall(message.body[:_SAMPLE].lower()))
    other = set(_WORD.findall(message.plain[:_SAMPLE].lower()))
    return 1.0 - _share(len(shown & other), min(len(shown), len(other))) if shown and other else 0.0


# --- Attachments ---------------------------------------------------------------------------------------------------

_PROGRAM = _names(
    "ade adp app bat chm cmd com cpl dll exe hta ins iso img jar js jse lnk msc msi msp ps1 pif reg scr sct vb vbe "
    "vbs vhd wsc wsf wsh xll"
)
_ARCHIVE = _names("zip rar 7z gz tgz tar bz2 xz ace arj cab lzh z")
_PAGE = _names("htm html shtml xhtml mht mhtml svg")
_MACRO = _names("docm dotm xlsm xltm xlam pptm potm doc xls xlsb ppt rtf one")


def _extension(attachment: Attachment) -> str:
    return attachment.filename.lower().rstrip(" .").rpartition(".")[2]


def _attached(kinds: frozenset[str], *declared: str) -> Callable[[Message], float]:
    def compute(message: Message) -> float:
        return math.log1p(sum(_extension(a) in kinds or a.kind in declared for a in message.attachments))

    return compute


def _attached_program(message: Message) -> float:
    return math.log1p(sum(_extension(a) in _PROGRAM or a.head[:2] == b"MZ" for a in message.attachments))


def _attached_locked(message: Message) -> float:
    # APPNOTE 4.4.4: bit 0 of the flags at offset 6 of the first local header. The archive is never opened.
    return math.log1p(
        sum(a.head[:4] == b"PK\x03\x04" and a.head[6:7] > b"" and a.head[6] & 1 for a in message.attachments)
    )


# --- The rest ------------------------------------------------------------------------------------------------------


def _date_skew(message: Message) -> float:
    sent = _moment(message.header("Date"))
    received = _moment((message.header("Received") or "").rpartition(";")[2])
    if sent is None or received is None:
        return 0.0
    return math.log1p(max(0.0, abs((received - sent).total_seconds()) / 86_400 - 1.0))


def _moment(value: str | None) -> datetime | None:
    if not value or len(value) > 200:
        return None
    try:
        moment = parsedate_to_datetime(value.strip())
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


FEATURES: tuple[Feature, ...] = (
    # Spammers' tools write HTML alone; programs for people send both.
    Feature("html_only", "HTML without a plain text part", lambda m: float(m.has_html and not m.has_plain)),
    # Advertising lives by the click.
    Feature("links", "many links", lambda m: math.log1p(len(_web(m)))),
    # Many different sites: newsletters and padded spam; one site only: a lure.
    Feature("link_hosts", "links to many sites", lambda m: math.log1p(len(_hosts(m)))),
    # The classic of phishing.
    Feature("link_mismatch", "a link shows one site and goes to another", _link_mismatch),
    # Look-alikes of known names need letters of other scripts.
    Feature("link_punycode", "a link to an internationalised site name",
            lambda m: math.log1p(sum("xn--" in host or not host.isascii() for host in _hosts(m)))),
    # Who has a name uses it.
    Feature("link_ip", "a link to a bare IP address",
            lambda m: math.log1p(sum(_IP.fullmatch(host) is not None for host in _hosts(m)))),
    # A shortener hides where a link goes.
    Feature("link_shortener", "a link through a URL shortener",
            lambda m: math.log1p(len(_hosts(m) & _SHORTENERS))),
    # Broken-into machines serve pages on spare ports.
    Feature("link_port", "a link to an unusual port", _link_port),
    # user@ or %41 before a host only serve to disguise it.
    Feature("link_disguise", "a link with a disguised host", _link_disguise),
    # A page inside the link escapes the lists of bad sites.
    Feature("link_code", "a link that holds a page or a script", _link_code),
    # Answers to a fraud must not go to the borrowed address.
    Feature("reply_elsewhere", "replies go to another domain than the sender's", _reply_elsewhere),
    # Readers show the name and hide the address.
    Feature("name_elsewhere", "the sender's name gives another domain", _name_elsewhere),
    # Shops say who they are. Of senders never seen nothing told spam so well (docs/lab-notes.md).
    Feature("bulk_untold", "a mailing that never names its sender's site", _bulk_untold),
    # Letters are signed by whom the address names, or say where they come from.
    Feature("sender_untold", "neither name nor text fit the sender's address", _sender_untold),
    # Text for filters only.
    Feature("hidden_text", "much hidden text", lambda m: math.log1p(m.hidden)),
    # A preview line is a small share, hash-busting a large one.
    Feature("hidden_share", "more hidden than visible text", lambda m: _share(m.hidden, m.hidden + m.visible)),
    # Invisible characters break the words that filters look for.
    Feature("zero_width", "invisible characters inside words", lambda m: math.log1p(m.zero_width)),
    # Reversed text reads right and matches nothing.
    Feature("bidi", "characters that turn the direction of text", lambda m: math.log1p(m.bidi)),
    # A Cyrillic letter in a Latin word is no accident.
    Feature("mixed_script", "words that mix alphabets", lambda m: math.log1p(m.mixed_words)),
    # Pictures carry the message past text filters.
    Feature("images", "many pictures", lambda m: math.log1p(m.images)),
    # ... the more so with little text.
    Feature("image_share", "pictures with little text", lambda m: m.images / (m.images + m.visible / 200)
            if m.images else 0.0),
    # Programs come by mail for one purpose.
    Feature("attached_program", "an attached program or script", _attached_program),
    # Archives hide programs.
    Feature("attached_archive", "an attached archive", _attached(_ARCHIVE, "application/zip")),
    # A page opened from disk escapes the browser's warnings.
    Feature("attached_page", "an attached web page or SVG", _attached(_PAGE, "text/html", "image/svg+xml")),
    # Office files that may hold macros.
    Feature("attached_macro", "an attached Office file that may hold macros", _attached(_MACRO)),
    # Invoices, true and false.
    Feature("attached_pdf", "an attached PDF", _attached(frozenset({"pdf"}), "application/pdf")),
    # The password stands in the mail: no scanner can look inside.
    Feature("attached_locked", "an attached archive under a password", _attached_locked),
    # Shouting.
    Feature("capitals", "many words in capitals", lambda m: _capitals(m.body[:_SAMPLE])),
    Feature("subject_capitals", "a subject in capitals", lambda m: _capitals(m.subject)),
    # ... and excitement, per hundred characters.
    Feature("exclamations", "many exclamation marks",
            lambda m: 100 * _share(_count(m.body, "!"), len(m.body[:_SAMPLE]))),
    # Money is what it is about.
    Feature("money", "many currency signs", lambda m: math.log1p(_count(m.body, _MONEY))),
    # A charset that no program knows, or that the text does not use.
    Feature("charset_odd", "a character set that does not fit", _charset_odd),
    # Faked dates put a mail on top of the inbox; days between Date and the last Received.
    Feature("date_skew", "a date far from the day of arrival", _date_skew),
    # Nothing to read but a picture, a link or an attachment. The mere length of a text is no feature: it tied, and
    # told newsletters from letters more than ham from spam.
    Feature("empty", "hardly any text beside a picture, link or attachment",
            lambda m: float(m.visible < 20 and bool(m.images or m.links or m.attachments))),
    # v i a g r a
    Feature("broken_words", "words broken up letter by letter",
            lambda m: math.log1p(m.broken_words)),
    # Who asks for data by mail?
    Feature("forms", "a form to fill in", lambda m: math.log1p(m.forms)),
    # No reader runs scripts; a sender who does not know this is no mail program.
    Feature("scripts", "scripts in the HTML", lambda m: math.log1p(m.scripts)),
    # An innocent text for the filter, another for the eye.
    Feature("alternatives_differ", "the plain text differs from the HTML", _alternatives_differ),
    # Text in base64 hides from simple filters.
    Feature("base64_ascii", "plain English sent as base64",
            lambda m: float(m.base64_text > 0 and _non_ascii(m.body[:_SAMPLE]) < 0.01)),
    # Random strings against checksums.
    Feature("longest_word", "a very long word", _longest_word),
    # Prices, telephone numbers, reference numbers.
    Feature("digits", "many digits", lambda m: _share(_count(m.body, "0123456789"), len(m.body[:_SAMPLE]))),
    # A foreign script, or letters in fancy dress.
    Feature("non_ascii", "many characters outside ASCII", lambda m: _non_ascii(m.body[:_SAMPLE])),
    # Broken mail is the work of hand-made senders.
    Feature("defects", "a malformed message", lambda m: math.log1p(len(m.defects))),
)  # fmt: skip

NAMES: tuple[str, ...] = tuple(feature.name for feature in FEATURES)

# Changes with the table; a change in what a function computes must change _REVISION.
_REVISION = 5
FEATURES_VERSION: str = hashlib.sha256(repr((_REVISION, NAMES)).encode()).hexdigest()[:16]


def structure(message: Message) -> npt.NDArray[np.float32]:
    """The features of a message, in the order of `NAMES`: float32, finite, in [0, 10]."""
    values = [min(max(feature.compute(message), 0.0), _LIMIT) for feature in FEATURES]
    return np.array(values, dtype=np.float32)
