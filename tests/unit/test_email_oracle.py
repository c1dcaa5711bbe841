"""Honest mail read as Python's `email` reads its MIME and headers.

It is attackable (spamguard.mime says how), and right about what is well formed. Where it is wrong, or we differ on
purpose, the generator keeps away from it and a comment says why.
"""

from __future__ import annotations

import email
import email.policy
from collections.abc import Iterator
from dataclasses import dataclass
from email import encoders
from email.header import Header, decode_header, make_header
from email.message import EmailMessage, Message
from email.mime.message import MIMEMessage
from email.mime.multipart import MIMEMultipart
from email.mime.nonmultipart import MIMENonMultipart
from email.utils import formataddr, parseaddr
from itertools import count
from unittest import mock

from hypothesis import given, settings
from hypothesis import strategies as st

from spamguard.decoding import clean, decode
from spamguard.message import parse
from spamguard.mime import Tree

SETTINGS = settings(max_examples=80, deadline=None)


def words_of(text: str) -> str:
    return " ".join(text.split())


ASCII = "abcdefgh XYZ 0123 .,:;!?()[]*+-=_/&%#'\"<>@"
# Letters that Python's codec and the browsers' superset, which we use, read alike. They differ in a few signs
# (Shift_JIS 8160 is a tilde or a wave dash), and latin-1 has controls where cp1252 has quotation marks.
# Of latin-1 no letter below U+00E0: text that is valid UTF-8 is read as UTF-8, whatever it calls itself.
LETTERS = {
    "us-ascii": "",
    "utf-8": "äöüßéñçÀŁőЖдя中文かなカナ한글אבעربي€“”…🎉",
    "iso-8859-1": "àáâãäåæçèéêëìíîïñòóôõöøùúûüÿ",
    "iso-8859-15": "àäöüßéèê",
    "windows-1252": "àäöüéèê",
    "windows-1251": "БбДдЖжЯяЁё№",
    "koi8-r": "БбДдЖжЯяЁё",
    "gb2312": "你好世界中文邮件",
    "big5": "你好世界中文郵件",
    "euc-kr": "안녕하세요한글",
    "iso-2022-jp": "日本語かなカナ",
    "shift_jis": "日本語かなカナ",
    "euc-jp": "日本語かなカナ",
}
CHARSETS = st.sampled_from(sorted(LETTERS))
FILES = ("application/octet-stream", "application/pdf", "image/png", "text/csv", "text/calendar")


@dataclass(frozen=True)
class Leaf:
    kind: str
    charset: str
    encoding: str
    filename: str
    naming: str
    data: bytes


@dataclass(frozen=True)
class Many:
    kind: str  # "mixed", ..., or "message" for an attached mail
    parts: tuple[Leaf | Many, ...]
    boundary: str
    preamble: str
    epilogue: str


def text_in(charset: str, more: str = "", least: int = 0, most: int = 80) -> st.SearchStrategy[str]:
    return st.text(st.sampled_from(ASCII + LETTERS[charset] * 3 + more), min_size=least, max_size=most)


@st.composite
def filenames(draw: st.DrawFn) -> tuple[str, str]:
    """A name, and how it is written."""
    naming = draw(st.sampled_from(["none", "disposition", "type", "2231", "2231 pieces", "2047"]))
    letters = "abc XYZ 12._-;=()%'" + ('"\\' if naming in ("disposition", "type") else "")
    letters += LETTERS["utf-8"] if naming.startswith("2") else ""
    return words_of(draw(st.text(st.sampled_from(letters), max_size=60))) + ".txt", naming


@st.composite
def leaves(draw: st.DrawFn) -> Leaf:
    filename, naming = draw(filenames())
    if draw(st.booleans()):
        charset = draw(CHARSETS)
        data = draw(text_in(charset, "\n\n", most=300)).encode(charset)
        kind = draw(st.sampled_from(["text/plain", "text/html"]))
        plain = "7bit" if data.isascii() else "8bit"
    else:
        charset = ""
        data = draw(st.binary(max_size=200))
        kind = draw(st.sampled_from(FILES))
        plain = "base64"  # `email` writes no Content-Transfer-Encoding: binary
    encoding = draw(st.sampled_from([plain, "base64", "quoted-printable"]))
    if kind not in ("text/plain", "text/html") and encoding == "quoted-printable":
        # Quoted-printable is for lines: a bare CR or LF within does not survive the generator of `email`.
        encoding = "base64"
    return Leaf(kind, charset, encoding, filename, naming, data)


def _many(children: st.SearchStrategy[Leaf | Many]) -> st.SearchStrategy[Leaf | Many]:
    notes = st.sampled_from(["", "This is a multi-part message in MIME format.\n", "--\n", "--b\n--b0x\n"])
    several = st.builds(
        Many,
        st.sampled_from(["mixed", "alternative", "related"]),
        st.lists(children, min_size=1, max_size=3).map(tuple),
        # The number of the multipart is added: with "b" one boundary begins like another.
        st.sampled_from(["b", "=_Part_", "----=_NextPart_000_01C2.", "a b'()+_,./:=?", "==="]),
        notes,
        notes,
    )
    attached = st.builds(Many, st.just("message"), st.tuples(children), st.just(""), st.just(""), st.just(""))
    return several | several | attached


trees = _many(st.recursive(leaves(), _many, max_leaves=6)) | leaves()


def build(tree: Leaf | Many, numbers: Iterator[int]) -> Message:
    if isinstance(tree, Leaf):
        return build_leaf(tree)
    if tree.kind == "message":
        inner = build(tree.parts[0], numbers)
        inner["Subject"] = "attached"
        return MIMEMessage(inner)
    part = MIMEMultipart(tree.kind, boundary=f"{tree.boundary}{next(numbers)}")
    part.preamble = tree.preamble or None
    part.epilogue = tree.epilogue or None
    for child in tree.parts:
        part.attach(build(child, numbers))
    return part


def build_leaf(leaf: Leaf) -> Message:
    more = {"charset": leaf.charset} if leaf.charset else {}
    if leaf.naming == "type":
        more["name"] = leaf.filename
    part = MIMENonMultipart(*leaf.kind.split("/"), **more)
    part.set_payload(leaf.data.decode("ascii", "surrogateescape"))
    if leaf.encoding == "base64":
        encoders.encode_base64(part)
    elif leaf.encoding == "quoted-printable":
        encoders.encode_quopri(part)
    else:
        part["Content-Transfer-Encoding"] = leaf.encoding
    if leaf.naming == "disposition":
        part.add_header("Content-Disposition", "attachment", filename=leaf.filename)
    elif leaf.naming == "2231":
        part.add_header("Content-Disposition", "attachment", filename=("utf-8", "en", leaf.filename))
    elif leaf.naming == "2231 pieces":
        part["Content-Disposition"] = "attachment" + pieces_2231(leaf.filename)
    elif leaf.naming == "2047":
        # Forbidden in a parameter, and written by half of the world.
        word = Header(leaf.filename, "utf-8", maxlinelen=70).encode()
        part["Content-Disposition"] = f'inline; filename="{word}"'
    return part


def pieces_2231(name: str) -> str:
    escaped = [f"%{byte:02X}" for byte in name.encode("koi8-r", "replace")]
    cut = [escaped[at : at + 12] for at in range(0, len(escaped), 12)]
    pieces = ["".join(piece) for piece in cut]
    pieces[:1] = [f"koi8-r''{piece}" for piece in pieces[:1]]
    lines = [f";\n filename*{number}*={piece}" for number, piece in enumerate(pieces)]
    return "".join(lines)


def header_of(value: object) -> str:
    return words_of(str(make_header(decode_header(str(value)))))


Found = tuple[str, str, str, bytes]


def leaves_of(mail: Message) -> list[Found]:
    found: list[Found] = []
    for part in mail.walk():
        kind = part.get_content_type()
        if kind == "message/rfc822":
            found.append((kind, "", "", b""))
        elif not part.is_multipart():
            data = part.get_payload(decode=True)
            assert isinstance(data, bytes)
            name = header_of(part.get_filename(""))
            found.append((kind, str(part.get_content_charset("")), name, data))
    return found


def our_leaves(tree: Tree) -> list[Found]:
    return [
        (part.kind, part.charset.lower(), words_of(part.filename), part.content(10_000_000, tree.defects)[0])
        for part in tree.parts
    ]


def check_mail(wire: bytes) -> None:
    oracle = email.message_from_bytes(wire, policy=email.policy.compat32)
    defects: set[str] = set()
    tree = Tree(wire, defects)
    expected = leaves_of(oracle)
    assert our_leaves(tree) == expected
    assert defects == set()
    for _, charset, _, data in expected:
        if charset:
            assert decode(data, charset, defects) == data.decode(charset)
    assert defects == set()
    # A disguise is undone by what stands beside it, and `email` undoes none: tests of their own.
    with mock.patch("spamguard.message.fold", lambda text: (text, 0)):
        message = parse(wire)
    assert message.subject == clean(header_of(oracle["Subject"] or "")).text
    name, address = parseaddr(str(oracle["From"] or ""))
    assert message.sender_name == clean(header_of(name)).text
    assert message.sender_address == address.lower()


@st.composite
def subjects(draw: st.DrawFn) -> Header | str:
    if draw(st.booleans()):
        return words_of(draw(text_in("us-ascii", most=200)))
    # Words of several charsets, with plain ones between them, folded after 76 columns.
    header = Header(header_name="Subject")
    for charset in draw(st.lists(CHARSETS, min_size=1, max_size=3)):
        header.append(words_of(draw(text_in(charset, least=1, most=60))), charset)
    return header


# `formataddr` quotes a name where it must, or encodes it. No quotation marks: of those inside a quoted name we take
# the last for the closing one. No brackets: the new API writes them bare beside an encoded word, as a comment.
names = st.text(st.sampled_from("abc XYZ.,-" + LETTERS["utf-8"]), max_size=30).map(words_of)


@SETTINGS
@given(trees, subjects(), names, st.sampled_from(["\n", "\r\n"]))
def test_mime_agrees_with_email(tree: Leaf | Many, subject: Header | str, name: str, end: str) -> None:
    mail = build(tree, count())
    mail["Subject"] = subject
    mail["From"] = formataddr((name, "Ann@Shop.example"))
    check_mail(mail.as_bytes(policy=email.policy.compat32.clone(linesep=end)))


@SETTINGS
# Not SMTPUTF8: compat32 gives U+FFFD for bare UTF-8 in a header, and we read it.
@given(st.data(), st.sampled_from([email.policy.SMTP, email.policy.default]))
def test_mail_of_the_new_api_agrees_with_email(data: st.DataObject, policy: email.policy.EmailPolicy) -> None:
    def text(least: int = 0, most: int = 120) -> str:
        return data.draw(text_in("utf-8", least=least, most=most))

    mail = EmailMessage(policy)
    mail["Subject"] = words_of(text())
    mail["From"] = f"{formataddr((data.draw(names), 'ann@shop.example'))}"
    mail.set_content(text() + "\n", cte=data.draw(st.sampled_from(["base64", "quoted-printable", "8bit"])))
    if data.draw(st.booleans()):
        mail.add_alternative(f"<p>{text()}</p>\n", subtype="html")
        if data.draw(st.booleans()):
            related = list(mail.iter_parts())[1]
            assert isinstance(related, EmailMessage)
            related.add_related(data.draw(st.binary(max_size=90)), "image", "png", cid="<x@y>", filename="x.png")
    for _ in range(data.draw(st.integers(0, 2))):
        filename = words_of(data.draw(st.text(st.sampled_from("ab c-1" + LETTERS["utf-8"]), max_size=90))) + ".bin"
        mail.add_attachment(data.draw(st.binary(max_size=90)), "application", "octet-stream", filename=filename)
    if data.draw(st.booleans()):
        inner = EmailMessage(policy)
        inner["Subject"] = "attached"
        inner.set_content("inner\n")
        mail.add_attachment(inner)
    check_mail(mail.as_bytes())
