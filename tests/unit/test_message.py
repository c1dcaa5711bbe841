"""What a message is read as: forms, headers, charsets, encodings, MIME and HTML."""

from __future__ import annotations

import base64

import pytest

from spamguard.decoding import clean, decode_words
from spamguard.html_text import read_html
from spamguard.message import GTUBE, host_of, is_gtube, parse, split_address

HEAD = b"From: Ann <ann@shop.example>\r\nTo: bob@home.example\r\nSubject: Hello\r\n"


def mail(body: bytes, kind: bytes = b"text/plain; charset=utf-8", encoding: bytes = b"") -> bytes:
    more = b"Content-Transfer-Encoding: " + encoding + b"\r\n" if encoding else b""
    return HEAD + b"Content-Type: " + kind + b"\r\n" + more + b"\r\n" + body


def multipart(*parts: bytes, kind: bytes = b"mixed", boundary: bytes = b"sep") -> bytes:
    body = b"".join(b"--" + boundary + b"\r\n" + part + b"\r\n" for part in parts)
    return mail(body + b"--" + boundary + b"--\r\n", b"multipart/" + kind + b"; boundary=" + boundary)


def part(body: bytes, kind: bytes = b"text/plain", *more: bytes) -> bytes:
    return b"\r\n".join((b"Content-Type: " + kind, *more, b"", body))


def visible(html: str) -> str:
    return " ".join(read_html(html).text.split())


# --- Forms ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", [b"\r\n", b"\n", b"\r"])
def test_line_ends_do_not_matter(end: bytes) -> None:
    message = parse(mail(b"one\r\ntwo\r\n").replace(b"\r\n", end))
    assert (message.subject, message.sender_name, message.sender_address) == ("Hello", "Ann", "ann@shop.example")
    assert message.body == "one two"
    assert message.defects == ()


def test_mixed_line_ends() -> None:
    assert parse(b"Subject: a\nFrom: b@c.example\r\n\nbody\r\nmore\n").body == "body more"


def test_mbox_line_is_no_header() -> None:
    message = parse(b"From ann@shop.example Mon Jan  1 00:00:00 2024\n" + mail(b"x"))
    assert message.subject == "Hello" and message.defects == ()


def test_empty() -> None:
    message = parse(b"")
    assert (message.text, message.headers, message.links, message.defects) == ("", (), (), ())


def test_no_headers_at_all() -> None:
    message = parse(b"just some words\nand more\n")
    assert message.body == "just some words and more"
    assert message.defects == ("no-header-body-separator",)


def test_text_instead_of_a_blank_line_begins_the_body() -> None:
    message = parse(b"Subject: a\nThis is no header\nbody\n")
    assert message.body == "This is no header body"
    assert "no-header-body-separator" in message.defects


def test_folded_and_repeated_headers() -> None:
    message = parse(b"Subject: one\r\n two\r\n\tthree\r\nX-A: 1\r\nx-a: 2\r\n\r\n")
    assert message.subject == "one two three"
    assert message.header("X-a") == "1"
    assert message.headers_all("X-A") == ("1", "2")
    assert message.header("X-B") is None
    assert message.headers[1] == ("X-A", "1")


def test_text_is_subject_name_and_body_only() -> None:
    message = parse(b"Date: Mon, 1 Jan 2024 00:00:00 +0000\r\nList-Id: <x.example>\r\n" + mail(b"body"))
    assert message.text == "Hello\nAnn\nbody"


def test_text_holds_no_address_of_the_sender() -> None:
    assert parse(b'From: "ann@shop.example" <ann@shop.example>\nSubject: s\n\nb').text == "s\nb"


# --- Headers -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        ("=?utf-8?q?caf=C3=A9_au_lait?=", "café au lait"),
        ("=?UTF-8?B?Y2Fmw6k=?= =?utf-8?Q?_!?=", "café !"),
        ("=?utf-8?B?4oI=?= =?utf-8?B?rA==?=", "€"),  # a character split between two words
        ("=?iso-8859-1*fr?q?=E9?= et", "é et"),
        ("a =?utf-8?q?b?= c", "a b c"),
        ("=?bogus?q?x=41?=", "xA"),
        ("=?utf-8?b?!!!?=", "!!!"),
        ("=?utf-8?x?abc?=", "=?utf-8?x?abc?="),
        ("=?utf-8?q?never closed", "=?utf-8?q?never closed"),
    ],
)
def test_encoded_words(raw: str, text: str) -> None:
    assert decode_words(raw) == text


def test_raw_8_bit_header() -> None:
    assert parse("Subject: café\r\n\r\n".encode()).subject == "café"
    assert parse("Subject: café\r\n\r\n".encode("latin-1")).subject == "café"


@pytest.mark.parametrize(
    ("value", "name", "address"),
    [
        ("Ann Lee <Ann@Shop.Example>", "Ann Lee", "ann@shop.example"),
        ('"Lee, Ann" <ann@shop.example>', "Lee, Ann", "ann@shop.example"),
        ("ann@shop.example", "", "ann@shop.example"),
        ("ann@shop.example (Ann)", "Ann", "ann@shop.example"),
        ('"help@bank.example" <x@evil.example>', "help@bank.example", "x@evil.example"),
        ("Bank <help@bank.example> <x@evil.example>", "Bank <help@bank.example>", "x@evil.example"),
        ("=?utf-8?q?Ann=2C?= <a@b.example>", "Ann,", "a@b.example"),
        ("<>", "", ""),
        ("", "", ""),
        ("Ann", "Ann", ""),
        (r'"John \"Jack\"" <a@b.example>', 'John "Jack"', "a@b.example"),
        ("'Ann' <a@b.example>", "Ann", "a@b.example"),
        ("'Your Membership' Editor <a@b.example>", "'Your Membership' Editor", "a@b.example"),
    ],
)
def test_sender(value: str, name: str, address: str) -> None:
    assert split_address(value) == (name, address)


@pytest.mark.parametrize(
    ("url", "host"),
    [
        ("https://Click.Example.com/abc?d=1", "click.example.com"),
        ("http://bank.example@evil.example:8080/", "evil.example"),
        ("www.example.com.", "www.example.com"),
        ("//example.com/x", "example.com"),
        ("http:\\\\example.com\\x", "example.com"),
        ("", ""),
    ],
)
def test_host_of(url: str, host: str) -> None:
    assert host_of(url) == host


# --- Bodies --------------------------------------------------------------------------------------------------------


def test_quoted_printable_and_base64() -> None:
    assert parse(mail(b"caf=C3=A9 =\r\nau lait", encoding=b"quoted-printable")).body == "café au lait"
    assert parse(mail(base64.encodebytes("café".encode()), encoding=b"base64")).body == "café"


def test_url_becomes_its_host_and_a_link() -> None:
    message = parse(mail(b"see https://click.example.com/abc?d=aaaa and www.example.org now"))
    assert message.body == "see click.example.com and www.example.org now"
    assert [link.href for link in message.links] == ["https://click.example.com/abc?d=aaaa", "www.example.org"]


def test_invisible_characters_are_removed_and_counted() -> None:
    message = parse(mail("V\u200bia\u00adgra \u202eevil\u202c \u200b pad \ufeff".encode()))
    assert message.body == "Viagra evil pad"
    assert (message.zero_width, message.bidi) == (2, 2)


def test_compatibility_forms_are_folded() -> None:
    assert clean("Ｆｒｅｅ 𝐦𝐨𝐧𝐞𝐲").text == "Free money"


def test_alternatives_prefer_html_with_text() -> None:
    message = parse(multipart(part(b"plain words"), part(b"<p>rich words", b"text/html"), kind=b"alternative"))
    assert (message.body, message.plain) == ("rich words", "plain words")
    assert message.has_html and message.has_plain
    message = parse(multipart(part(b"plain words"), part(b"<img src=x>", b"text/html"), kind=b"alternative"))
    assert (message.body, message.plain) == ("plain words", "")


def test_mixed_parts_are_all_read_and_attachments_are_not() -> None:
    attached = part(b"secret", b"text/plain; name=a.txt", b"Content-Disposition: attachment")
    message = parse(
        multipart(part(b"one"), part(b"two"), attached, part(b"UEsDBA==", b"application/zip; name=b.zip"))
    )
    assert message.body == "one two"
    assert [a.filename for a in message.attachments] == ["a.txt", "b.zip"]


def test_only_text_is_read_though_called_attachment() -> None:
    assert parse(multipart(part(b"alone", b"text/plain", b"Content-Disposition: attachment"))).body == "alone"


def test_attached_message_is_read() -> None:
    inner = b"Subject: inner\r\nContent-Type: text/html\r\n\r\n<p>deep</p>"
    assert parse(multipart(part(b"see"), part(inner, b"message/rfc822"))).body == "see inner deep"
    encoded = part(base64.encodebytes(inner), b"message/rfc822", b"Content-Transfer-Encoding: base64")
    assert parse(multipart(encoded)).body == "inner deep"


def test_file_name_of_rfc2231() -> None:
    attached = part(
        b"x", b"application/pdf", b"Content-Disposition: attachment; filename*0*=utf-8''caf%C3; filename*1*=%A9.pdf"
    )
    assert parse(multipart(attached)).attachments[0].filename == "café.pdf"


def test_boundary_that_begins_like_another() -> None:
    inner = b'Content-Type: multipart/mixed; boundary="sepa"\r\n\r\n--sepa\r\n\r\ninside\r\n--sepa--'
    message = parse(multipart(inner, part(b"outside")))
    assert message.body == "inside outside"
    assert message.defects == ()


@pytest.mark.parametrize(
    ("raw", "body", "defect"),
    [
        (mail(b"--x\r\n\r\nhi", b"multipart/mixed; boundary=x"), "hi", "no-closing-boundary"),
        (mail(b"hi", b"multipart/mixed; boundary=x"), "hi", "no-boundary"),
        (mail(b"hi", b'multipart/mixed; boundary=""'), "hi", "no-boundary"),
        (mail(b"hi", b"multipart/mixed"), "hi", "no-boundary"),
        (mail(b"hi", b"nonsense"), "hi", "bad-content-type"),
        (mail(b"hi", encoding=b"x-own"), "hi", "unknown-encoding"),
    ],
)
def test_broken_mime_gives_text_and_a_defect(raw: bytes, body: str, defect: str) -> None:
    message = parse(raw)
    assert message.body == body and defect in message.defects


@pytest.mark.parametrize("body", [GTUBE.encode(), b"<p>" + GTUBE.encode() + b"</p>"])
def test_gtube(body: bytes) -> None:
    assert is_gtube(mail(body, b"text/html"))
    assert is_gtube(parse(mail(base64.encodebytes(body), b"text/html", b"base64")))
    assert is_gtube(multipart(part(body), part(b"<p>other", b"text/html"), kind=b"alternative"))
    assert not is_gtube(mail(body[:-9]))


def test_base64_with_scattered_blanks_is_read() -> None:
    words = b"Buy the cheap pills that your doctor does not want you to know of, today only."
    scattered = b" ".join(base64.b64encode(words)[i : i + 8] for i in range(0, 200, 8))
    raw = b"Content-Type: text/plain\nContent-Transfer-Encoding: base64\n\n" + scattered
    assert parse(raw).body == words.decode()


def test_prose_that_claims_to_be_base64_is_read_as_prose() -> None:
    words = "Dear all, the meeting is at noon and there will be tea for everybody who comes along to it."
    raw = b"Content-Type: text/plain\nContent-Transfer-Encoding: base64\n\n" + words.encode()
    assert parse(raw).body == words


# --- HTML ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("html", "text"),
    [
        ("<p>one</p><p>two", "one two"),
        ("one<br>two<td>three", "one two three"),
        ("V<b></b>ia<span>gr</span>a<xyz>!", "Viagra!"),
        ("<head><title>t</title><style>p{}</style></head><script>x</script>y", "y"),
        ("a<!-- hidden > --!x -->b", "ab"),
        ("a<!-->b", "ab"),
        ("<!--[if mso]>x<![endif]-->a<![if !mso]>b<![endif]>", "ab"),
        ("&lt;b&gt; &amp;amp; &#65;&#x42;&#0000067; caf&eacute;", "<b> &amp; ABC café"),
        ("1 < 2 and 3 <4 <<b>x", "1 < 2 and 3 <4 <x"),
        ("<a title='>' href=x>y</a>", "y"),
        ("<a title=\"un'closed>text", "text"),
        ("cut <a href='x", "cut"),
        ("a</3>b</>c", "abc"),
        ("<div style=\"display:none\">no</div>yes", "yes"),
        ("<div style='DISPLAY : none !important'>no<div>no</div>no</div>yes", "yes"),
        ("<span style='visibility:hidden'>no<b style='visibility:visible'>yes</b></span>", "yes"),
        ("<td style='font-size:0px'>no<div style='font-size:13px'>yes</div></td>", "yes"),
        ("<span style='font-size:1px'>no</span><span style='font-size:10px'>yes</span>", "yes"),
        ("<span style='opacity:0'>no</span><span style='opacity:0.9'>yes</span>", "yes"),
        ("<span style='max-height:0'>no</span><span style='max-height:0.5em;'>yes</span>", "yes"),
        ("<span style='mso-hide:all'>no</span><p hidden>no<p>yes", "yes"),
        ("<font color=white>no</font><font color=#000>yes</font>", "yes"),
        ("<table bgcolor=#000000><td><font color=white>yes</font><font color='#010101'>no</font></table>", "yes"),
        ("<p style='color:#fff;background-color:rgb(255, 255, 255)'>no</p>yes", "yes"),
        ("<p style='background:#000;color:#fff'>yes</p>", "yes"),
        ("<style>.x{background:black}</style><font color=white>yes</font>", "yes"),
        ("<td style='display:none'>no<td>yes", "yes"),
        ("<p style='display:none'>no<p>yes", "yes"),
    ],
)  # fmt: skip
def test_visible_text(html: str, text: str) -> None:
    assert visible(html) == text


def test_hidden_text_is_counted() -> None:
    assert read_html("<div style='display:none'>a b c</div>x").hidden == 3


def test_links_of_html() -> None:
    page = read_html(
        "<a href='http://x.example/?a&amp;b'>see <b>bank.example</b></a><a name=x>n</a><A HREF=y><img></A>"
    )
    assert [tuple(link) for link in page.links] == [("http://x.example/?a&b", "see bank.example"), ("y", "")]
    assert page.images == 1
