"""Whole mails as people and shops send them: a person has read what must come out."""

from __future__ import annotations

import base64
import quopri

import pytest

from spamguard.message import parse


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
