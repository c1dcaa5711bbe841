"""The attacks of every parser, and any bytes at all: text comes out, soon, and the same one twice."""

from __future__ import annotations

import base64
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spamguard.decoding import decode
from spamguard.html_text import MAX_LINKS
from spamguard.message import MAX_TEXT, Message, is_gtube, parse
from spamguard.mime import MAX_PARTS
from tests.unit.test_message import HEAD, mail, multipart, part

# Seconds; most take a hundredth. A machine of a test may be busy, a parser that is not linear takes minutes.
PATIENCE = 5.0


def timed(raw: bytes) -> Message:
    start = time.process_time()
    message = parse(raw)
    assert time.process_time() - start < PATIENCE
    assert len(message.body) <= MAX_TEXT
    return message


@pytest.mark.parametrize("name", [b"To", b"From", b"Subject", b"Content-Type", b"Content-Disposition", b"Reply-To"])
@pytest.mark.parametrize("unit", [b"=?utf-8?q?a?= ", b"a@b.c,", b"=?", b"<", b'"', b"(", b"\\", b";a*0=b", b"x\r\n "])
def test_row06_header_bombs(name: bytes, unit: bytes) -> None:
    message = timed(name + b": " + unit * 20_000 + b"\r\n" + mail(b"hi"))
    assert "headers-cut" in message.defects or message.body.endswith("hi")


@pytest.mark.parametrize("depth", [50, 5_000, 50_000])
@pytest.mark.parametrize("kind", [b"multipart/mixed; boundary=b#\r\n\r\n--b#\r\n", b"message/rfc822\r\n\r\n"])
def test_row07_nesting(depth: int, kind: bytes) -> None:
    raw = HEAD + b"".join(b"Content-Type: " + kind.replace(b"#", b"%d" % i) for i in range(depth)) + b"\r\nhi"
    assert "too-deep" in timed(raw).defects


def test_row07_many_parts() -> None:
    message = timed(multipart(*[part(b"a", b"image/png")] * 50_000))
    assert "too-many-parts" in message.defects
    assert len(message.attachments) <= MAX_PARTS


@pytest.mark.parametrize(
    "raw",
    [
        b"\r\n" * 500_000 + mail(b"x"),
        mail(b"--sepx\r\n" * 500_000, b"multipart/mixed; boundary=sep"),
        HEAD + b"Content-Type: multipart/mixed; boundary=x\r\n\r\n--x\r\n" * 20_000,
        mail(b"x", b"text/plain; " + b"; ".join(b"name*%d*=a" % i for i in range(10_000))),
        b"".join(b"X-%d: y\r\n" % i for i in range(50_000)) + mail(b"x"),
        multipart(*[part(b"<b>" * 30_000, b"text/html")] * 190),
    ],
    ids=["blank lines", "boundary prefix", "boundary in itself", "parameters", "header lines", "large parts"],
)
def test_row07_bombs(raw: bytes) -> None:
    timed(raw)


CHARSETS = [
    "bogus",
    "\0",
    "rot13",
    "zlib",
    "idna",
    "utf-7",
    "punycode",
    "unicode_escape",
    "hex",
    "utf-16",
    "x" * 5_000,
    "é",
]


@pytest.mark.parametrize("charset", CHARSETS)
def test_row08_charset_always_gives_text(charset: str) -> None:
    assert parse(mail(b"plain words", b'text/plain; charset="' + charset.encode() + b'"')).body == "plain words"
    assert decode("naïve".encode(), charset, set()) == "naïve"


@pytest.mark.parametrize(
    "charset", [*CHARSETS, "utf-8", "iso-2022-jp", "iso-2022-kr", "big5", "gb18030", "koi8-r", "cp874"]
)
def test_row08_any_bytes_decode(charset: str) -> None:
    assert isinstance(decode(bytes(range(256)) * 3, charset, set()), str)


@pytest.mark.parametrize(
    ("data", "charset", "text"),
    [
        ("ключ".encode("koi8-r"), "KOI8-R", "ключ"),
        ("日本".encode("iso2022_jp"), "iso-2022-jp", "日本"),
        ("日本".encode("cp932"), "Shift_JIS", "日本"),
        ("“x”".encode("cp1252"), "iso-8859-1", "“x”"),
        ("中文 x".encode("utf-16"), "utf-16", "中文 x"),
        ("one two".encode("utf-16-le"), "utf-16", "one two"),
        ("one two".encode("utf-16-be"), "utf-16", "one two"),
        ("é".encode(), "us-ascii", "é"),
        ("日本語".encode()[:-1], "utf-8", "日本\ufffd"),
        ("日本語".encode()[:-1], None, "日本\ufffd"),
        ("café".encode("latin-1"), "utf-8", "café"),
        (b"\x81\x8d", None, "\x81\x8d"),
    ],
)
def test_row08_charsets(data: bytes, charset: str | None, text: str) -> None:
    assert decode(data, charset, set()) == text


@pytest.mark.parametrize(
    ("body", "encoding", "text"),
    [
        (b"this is not base64 at all, but words", b"base64", "this is not base64 at all, but words"),
        (b"aGVsbG8gd29ybGQ", b"base64", "hello world"),
        (b"aGVs\r\n!bG8gd29ybGQ=\r\n", b"base64", "hello world"),
        (b"aGVsbG8gd", b"base64", "hello "),
        (
            base64.encodebytes(b"hello there " * 40 + b"you.") + b"\r\n-- \r\nfooter",
            b"base64",
            "hello there " * 40 + "you.",
        ),
        (b"half =", b"quoted-printable", "half"),
        (b"half =4", b"quoted-printable", "half =4"),
        (b"=ZZ odd", b"quoted-printable", "=ZZ odd"),
        (b"words", b"BASE64 ", None),
    ],
)
def test_row08_wrong_encodings_give_text(body: bytes, encoding: bytes, text: str | None) -> None:
    message = parse(mail(body, encoding=encoding))
    assert text is None or message.body == text.strip()


def test_row08_uuencode_is_named_and_not_unpacked() -> None:
    message = parse(mail(b"see\r\nbegin 644 ../../etc/passwd\r\n#86)C\r\n`\r\nend\r\nbye"))
    assert message.body == "see bye"
    assert message.attachments[0].filename == "../../etc/passwd"


HTML_UNITS = [
    "<div>", "<b>", "<a href=x>", "<table>", "<td>", "<a><b><i><u>", "<", "<a", "</a", "</", "<!", "<!--", "<a b=\"",
    "</a b=\">\"", "<a b =", "&amp;", "&", "&#", "&#0", "<script>", "<style></style", "<p style='font-size:0'>x",
    "<li>x", "<form><input>", "a=\"", "</div>", "<font color=white>x",
]  # fmt: skip


@pytest.mark.parametrize("unit", HTML_UNITS)
def test_row09_html_bombs(unit: str) -> None:
    timed(mail(unit.encode() * (5_000_000 // len(unit)), b"text/html"))


@pytest.mark.parametrize(
    "html",
    [
        b"<a href='" + b"x" * 1_000_000 + b"'>y</a>",
        b"<a " + b" ".join(b"a%d=1" % i for i in range(150_000)) + b">y</a>",
        b"<a style='" + b"/*" * 500_000 + b"'>y</a>",
        b"&#" + b"9" * 900_000 + b";",
        b"&amp;" + b"amp;" * 200_000,
    ],
    ids=["attribute", "attributes", "style", "number", "entities"],
)
def test_row09_huge_tokens(html: bytes) -> None:
    timed(mail(html, b"text/html"))


def test_row09_links_are_bounded() -> None:
    assert len(timed(mail(b"<a href=x>y</a>" * 20_000, b"text/html")).links) == MAX_LINKS


@pytest.mark.parametrize(
    "unit",
    ["a", " ", "=?", "http://", "http://a/ ", "www.", "www.a ", "a@", "v i a ", "begin 644 x\n", "\u200b", "a\u200b",
     "\u0301\u0316", "\ufdfa", "\0", "\r", "\n", "$", "<", "&"],
)  # fmt: skip
def test_row10_patterns_are_linear(unit: str) -> None:
    data = (unit * 1_000_000).encode()[:1_000_000]
    for raw in (
        data,
        mail(data),
        mail(data, b"text/html"),
        mail(data, encoding=b"quoted-printable"),
        b"Subject: " + data,
    ):
        timed(raw)


def test_row12_one_line_of_10_mb() -> None:
    message = timed(mail(b"x" * 10_000_000))
    assert len(message.body) == MAX_TEXT and "text-cut" in message.defects


@pytest.mark.parametrize("subject", ["\ud800", "e\u0301", "\xff", "a@\u00e9.example"])
def test_row28_unicode(subject: str) -> None:
    message = parse(
        b"Subject: "
        + subject.encode("utf-8", "surrogatepass")
        + b'\r\nFrom: ""@x.example\r\n\r\n\xc0\xaf\xed\xa0\x80'
    )
    message.text.encode()


# --- Anything ------------------------------------------------------------------------------------------------------

SAMPLES = [
    mail("Grüße, https://a.example/x?y".encode()),
    multipart(part(b"plain"), part(b"<p style='opacity:0'>x</p><a href='http://1.2.3.4'>b.example</a>", b"text/html"),
              kind=b"alternative"),
    multipart(part(b"=?x", b"message/rfc822"), part(b"UEsDBBQAAQ", b"application/zip; name*0*=utf-8''a; name*1=b",
              b"Content-Transfer-Encoding: base64")),
    b"From: =?utf-8?b?w6k=?= <a@b.example>\r\nSubject: =?koi8-r?q?=CB?=\r\n\r\nbegin 644 a\r\n#86)C\r\nend",
]  # fmt: skip


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    raw = draw(st.sampled_from(SAMPLES))
    for _ in range(draw(st.integers(1, 6))):
        at, length = draw(st.integers(0, len(raw))), draw(st.integers(0, 20))
        piece = draw(
            st.one_of(st.binary(max_size=8), st.sampled_from([b"\n", b"--sep\r\n", b"<", b'"', b"=?", b"\0"]))
        )
        raw = raw[:at] + piece + raw[at + length :]
    return raw


@settings(max_examples=300, deadline=None)
@given(st.one_of(st.binary(max_size=2_000), mutated()))
def test_any_bytes_parse_the_same_twice(raw: bytes) -> None:
    message = parse(raw)
    assert message == parse(raw)
    assert message.raw is raw
    assert len(message.body) <= MAX_TEXT
    message.text.encode()
    assert is_gtube(message) is False
