"""Honest mail read as the well-kept libraries read it: `email` for MIME and headers, lexbor for HTML.

Both are attackable (spamguard.mime and spamguard.html_text say how), and both are right about what is well formed.
Where they are wrong, or we differ on purpose, the generator keeps away from it and a comment says why.
"""

from __future__ import annotations

import base64
import email
import email.policy
import quopri
from collections.abc import Callable, Iterator
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

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from selectolax.lexbor import LexborHTMLParser

from spamguard.decoding import clean, decode
from spamguard.html_text import read_html
from spamguard.message import parse
from spamguard.mime import Tree

SETTINGS = settings(max_examples=80, deadline=None)


def squeezed(text: str) -> str:
    return "".join(text.split())


def words_of(text: str) -> str:
    return " ".join(text.split())


# --- Mail ----------------------------------------------------------------------------------------------------------

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


# --- HTML ----------------------------------------------------------------------------------------------------------

PLAIN = st.text(st.sampled_from("abc XYZ 019 .,:;!?()'\"-/=> äß中я€\n\t"), min_size=1, max_size=20)
_REFERENCES = """
    &amp; &lt; &gt; &nbsp; &quot; &copy; &eacute; &Eacute; &euro; &mdash; &#8364; &#x20AC; &#X20ac; &#146; &#39;
    &copy &notit; &amp;lt; &bogus; AT&T R&D &; &#; &#x;
"""
# None of a control character: lexbor keeps those, html.unescape drops them, and `clean` does in the end.
REFERENCES = st.sampled_from(_REFERENCES.split()) | st.sampled_from(
    [" & ", " < ", "1<2", " <3 ", "a<=b", "< p>", "a && b"]
)
COMMENTS = st.sampled_from(
    [
        "<!-- a <b>comment</b> -->",
        "<!---->",
        "<!-->",
        "<!--[if mso]><table><tr><td>x<![endif]-->",
        "<![if !mso]>",
        "<![endif]>",
        '<?xml:namespace prefix = o ns = "urn:x" />',
    ]
)
RAW = st.sampled_from(
    [
        "<style>p > a { color: red } /* <b> */</style>",
        "<STYLE type='text/css'><!-- td { } --></STYLE>",
        "<script>if (a < b && c > d) document.write('<p>no</p>')</script>",
        '<script src="x.js"></script >',
    ]
)
# Nothing here hides anything, and no style sheet makes it so.
ATTRIBUTES = st.sampled_from(
    [
        "",
        " ",
        ' class="a b"',
        " class='it\"s > that'",
        " width=100%",
        " WIDTH = 600",
        '\n  style="margin:0; font-size: 12px"',
        " nowrap",
        ' title="1 > 0 &amp; so"',
        " data-x=a=\"b'c",
        ' alt=""',
        " id=x class='' nowrap=",
        ' id="a"class="b"',
        " data-u=/a/b?c=d&e=f ",
    ]
)
HREFS = st.sampled_from(
    [
        "http://shop.example/",
        "https://shop.example/a?b=1&amp;c=2",
        "https://shop.example/?a=1&copy=2&lang=en&section=3&reg",
        "http://shop.example/?x=&notit;&amp=1&lt;",
        "mailto:ann@shop.example?subject=a%20b",
        "http://shop.example/?q=%22a%22&#61;&#x3d;",
        "//shop.example/ä",
        "#top",
    ]
)


def written(name: str) -> st.SearchStrategy[str]:
    return st.sampled_from([name, name, name.upper(), name.capitalize()])


def joined(strategy: st.SearchStrategy[str], most: int = 4) -> st.SearchStrategy[str]:
    return st.lists(strategy, max_size=most).map("".join)


@st.composite
def element(draw: st.DrawFn, names: str, inside: st.SearchStrategy[str], ends: str = "always") -> str:
    name = draw(written(draw(st.sampled_from(names.split()))))
    end = "" if ends == "seldom" and draw(st.booleans()) else f"</{name}{draw(st.sampled_from(['', '', ' ']))}>"
    return f"<{name}{draw(ATTRIBUTES)}>{draw(inside)}{end}"


@st.composite
def void(draw: st.DrawFn) -> str:
    name = draw(written(draw(st.sampled_from(["br", "img", "wbr", "hr"]))))
    return f"<{name}{draw(ATTRIBUTES)}{draw(st.sampled_from(['>', '/>', ' />']))}"


@st.composite
def link(draw: st.DrawFn, inside: st.SearchStrategy[str]) -> str:
    href, quote = draw(HREFS), draw(st.sampled_from(['"', "'", ""]))
    around = draw(st.sampled_from(["", " "])) if quote else ""
    name, equals = draw(st.sampled_from(["href", "HREF"])), draw(st.sampled_from(["=", " = ", "=\n"]))
    before, after = draw(ATTRIBUTES), draw(ATTRIBUTES)
    return f"<a{before} {name}{equals}{quote}{around}{href}{around}{quote} {after}>{draw(inside)}</a>"


words = PLAIN | PLAIN | REFERENCES
phrasing = joined(words | COMMENTS | void().filter(lambda tag: tag[1:3].lower() != "hr"))
inline = st.recursive(
    phrasing, lambda inside: element("b i em strong span font u small sup code", joined(inside, 3)), max_leaves=4
)
# A link in a link, or one that is never closed, is no ordinary HTML: the standard makes two of it.
flow = joined(inline | link(inline) | RAW | words, 4)
items = joined(element("li", flow, "seldom"), 3)
cells = joined(element("td th", flow, "seldom"), 3)
# Blanks and comments only between the cells: other text there is moved before the table by the standard
# ("foster parenting"), and is where it stands for us.
rows = joined(element("tr", cells, "seldom") | COMMENTS | st.sampled_from(["\n", " "]), 3)
blocks = st.recursive(
    element("p", flow, "seldom") | element("h1 h2 h3 pre", inline) | flow | void(),
    lambda inside: (
        element("div center blockquote section", joined(inside, 3))
        | element("ul ol", items | joined(element("li", joined(inside, 2)), 2))
        | element("table", rows | joined(element("tr", joined(element("td", joined(inside, 2)), 2)), 2))
        | element("table", element("tbody", rows, "seldom"))
    ),
    max_leaves=6,
)
bodies = joined(blocks, 5)
WRAPPERS: tuple[Callable[[str], str], ...] = (
    lambda body: body,
    lambda body: f"<html><body>{body}</body></html>",
    lambda body: f"<!DOCTYPE html>\n<HTML lang=en><HEAD><meta charset=utf-8></HEAD><BODY bgcolor=white>{body}</BODY>",
    lambda body: f"<body>{body}\n</body>\n</html>\n",
)


def lexbor(source: str) -> tuple[str, list[tuple[str, str]]]:
    page = LexborHTMLParser(source)
    for node in page.css("script, style"):
        node.decompose()
    links = [((node.attributes["href"] or "").strip(), squeezed(node.text())) for node in page.css("a[href]")]
    assert page.body is not None
    return page.body.text(), links


@SETTINGS
@given(bodies, st.sampled_from(WRAPPERS))
def test_html_agrees_with_lexbor(body: str, wrap: Callable[[str], str]) -> None:
    source = wrap(body)
    text, links = lexbor(source)
    page = read_html(source)
    assert squeezed(page.text) == squeezed(text)
    assert page.hidden == 0
    assert [(href, squeezed(shown)) for href, shown in page.links] == links


@pytest.mark.parametrize(
    "source",
    [
        '<a href=http://shop.example/?q="><b>shown</b> <a href="/x">too</a>',
        "<p title=it's>shown</p><p title='x'>too</p>",
        "<p a=\"1\"b='2'c=3/d>shown</p>",
        '<p ="x>shown</p><p x="">too</p>',
        "<p/class=a / id = b >shown",
        "<p class=>shown</p>",
        "<br/><br / >shown<hr/>",
    ],
)
def test_tags_end_where_lexbor_ends_them(source: str) -> None:
    text, links = lexbor(source)
    page = read_html(source)
    assert squeezed(page.text) == squeezed(text)
    assert "shown" in page.text
    assert [link.href for link in page.links] == [href for href, _ in links]


# --- Read by hand --------------------------------------------------------------------------------------------------


def crlf(text: str, charset: str = "utf-8") -> bytes:
    return text.encode(charset).replace(b"\n", b"\r\n")


def test_newsletter() -> None:
    html = quopri.encodestring(
        b"""<!DOCTYPE html PUBLIC "-//W3C//DTD XHTML 1.0 Transitional//EN" "http://www.w3.org/TR/xhtml1/DTD/xhtml1.dtd">
<html xmlns="http://www.w3.org/1999/xhtml"><head><title>Issue 12</title>
<style type="text/css">a { color: #06c } @media screen { p > a { color: red } }</style></head>
<body bgcolor="#ffffff" style="margin:0">
<!--[if mso]><table><tr><td>Outlook only<![endif]-->
<div style="display:none;max-height:0">Apples are back &#847;&zwnj;&nbsp;&#847;&zwnj;&nbsp;</div>
<TABLE WIDTH=600 cellpadding='0'><TR><TD><IMG SRC=logo.png ALT="Logo"><h1>The Orchard Post</h1>
<td>Issue&nbsp;12, <b>Aut</b>umn
<tr><td colspan=2><p>Dear reader,<p>the apples are back &mdash; 5&nbsp;kg for &euro;9 &amp; cheaper than 2023.
<ul><li>Boskoop<li><a href="https://shop.example/?sort=cox&amp;copy=1&section=2">Cox Orange</a></ul>
</table>
<p>Read <a href='https://shop.example/12'>the whole issue</a> or <A HREF=https://shop.example/bye>unsubscribe</A>.</p>
</body></html>
"""
    )
    message = parse(
        b"From: =?utf-8?q?The_Orchard_Post_=F0=9F=8D=8E?= <news@shop.example>\n"
        b"Subject: Apples,\n =?utf-8?q?apples_=E2=80=93_a?=\n =?utf-8?q?pples!?=\n"
        b"MIME-Version: 1.0\nContent-Type: text/html; charset=utf-8\n"
        b"Content-Transfer-Encoding: quoted-printable\n\n" + html
    )
    assert message.subject == "Apples, apples – apples!"
    assert message.sender_name == "The Orchard Post 🍎"
    assert message.body == (
        "The Orchard Post Issue 12, Autumn Dear reader, the apples are back — 5 kg for €9 & cheaper than 2023. "
        "Boskoop Cox Orange Read the whole issue or unsubscribe."
    )
    assert message.links == (
        ("https://shop.example/?sort=cox&copy=1&section=2", "Cox Orange"),
        ("https://shop.example/12", "the whole issue"),
        ("https://shop.example/bye", "unsubscribe"),
    )
    assert message.hidden == len("Applesareback") + 4  # a joiner and a non-joiner, twice
    assert (message.images, message.defects) == (1, ())


def test_receipt_of_nested_tables_with_plain_text_beside_it() -> None:
    message = parse(
        crlf("""Return-Path: <bounce@shop.example>
From: "Shop, Inc." <orders@shop.example>
Subject: Your receipt 4711
MIME-Version: 1.0
Content-Type: multipart/mixed; boundary="outer"

This is a multi-part message in MIME format.

--outer
Content-Type: multipart/alternative;
 boundary="outer-inner"

--outer-inner
Content-Type: text/plain; charset=us-ascii

Total: $12.50
See http://shop.example/4711
--outer-inner
Content-Type: text/html; charset="UTF-8"
Content-Transfer-Encoding: 8bit

<table><tr><td><table border=0><tr><th>Item</th><th>Price</th></tr>
<tr><td>Tea &quot;Oolong&quot;</td><td align=right>$10.00</td></tr>
<tr><td>Post</td><td align=right>$2.50</td></tr></table></td></tr>
<tr><td><b>Total:</b></td></tr><tr><td>$12.50</td></tr></table>
<a href="http://shop.example/4711"><img src="cid:button" alt="See it"></a>
--outer-inner--

--outer
Content-Type: application/pdf; name="receipt.pdf"
Content-Disposition: attachment; filename*=UTF-8''re%C3%A7u.pdf
Content-Transfer-Encoding: base64

JVBERi0xLjQK
--outer--
""")
    )
    assert message.sender_name == "Shop, Inc."
    assert message.body == 'Item Price Tea "Oolong" $10.00 Post $2.50 Total: $12.50'
    assert message.plain == "Total: $12.50 See shop.example"
    assert message.links == (("http://shop.example/4711", ""),)
    assert message.attachments == (("application/pdf", "reçu.pdf", 12, b"%PDF-1.4\n"),)
    assert message.defects == ()


def test_reply_with_quote() -> None:
    message = parse(
        crlf("""From: Bob <bob@home.example>
Subject: Re: Saturday
In-Reply-To: <1@home.example>

On Monday, Ann wrote:
> Shall we meet at 3 < 4 pm?
>> See https://maps.example/x?y=z.

Fine -- see you!
--
Bob
""")
    )
    assert message.text == (
        "Re: Saturday\nBob\nOn Monday, Ann wrote: > Shall we meet at 3 < 4 pm? >> See maps.example "
        "Fine -- see you! -- Bob"
    )


def test_forwarded_mail_is_read_too() -> None:
    message = parse(
        crlf("""From: Bob <bob@home.example>
Subject: Fwd: Lunch
Content-Type: multipart/mixed; boundary=x

--x

See below.
--x
Content-Type: message/rfc822

From: Ann <ann@home.example>
Subject: =?iso-8859-1?Q?Caf=E9?=
Content-Type: text/plain; charset=iso-8859-1
Content-Transfer-Encoding: quoted-printable

At the caf=E9 =
at noon.
--x--
""")
    )
    assert message.body == "See below. Café At the café at noon."


@pytest.mark.parametrize(
    ("charset", "label", "subject", "name", "text"),
    [
        ("latin-1", "iso-8859-1", "Grüße aus Köln", "Jürgen Groß", "Schöne Grüße, heute nur 5 Äpfel."),
        ("utf-8", "utf-8", "Grüße aus Köln", "Jürgen Groß", "Schöne Grüße – für 5 €."),
        ("koi8-r", "KOI8-R", "Привет", "Анна Иванова", "Добрый день! Счёт прилагается."),
        ("cp1251", "windows-1251", "Счёт", "ООО «Ромашка»", "Добрый день! Счёт – прилагается."),
        ("iso-2022-jp", "ISO-2022-JP", "お知らせ", "山田太郎", "ご注文ありがとうございます。カードで払います。"),
        ("shift_jis", "Shift_JIS", "お知らせ", "山田太郎", "ご注文ありがとうございます。"),
        ("euc-jp", "EUC-JP", "お知らせ", "山田太郎", "ご注文ありがとうございます。"),
    ],
)
def test_german_russian_japanese(charset: str, label: str, subject: str, name: str, text: str) -> None:
    def word(of: str) -> bytes:
        return b"=?%b?B?%b?=" % (label.encode(), base64.b64encode(of.encode(charset)))

    head = b"From: %b <a@b.example>\r\nSubject: %b\r\n" % (word(name), word(subject))
    kind = b"Content-Type: text/plain; charset=%b\r\n" % label.encode()
    for encoding, data in (
        (b"8bit", text.encode(charset)),
        (b"base64", base64.encodebytes(text.encode(charset))),
        (b"quoted-printable", quopri.encodestring(text.encode(charset))),
    ):
        message = parse(head + kind + b"Content-Transfer-Encoding: %b\r\n\r\n%b\r\n" % (encoding, data))
        assert message.text == f"{subject}\n{name}\n{text}"
        assert (message.charsets, message.defects) == ((label,), ())
