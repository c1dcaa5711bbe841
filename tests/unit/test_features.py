"""Each feature fires on a mail that shows it and not on its neighbour that does not."""

from __future__ import annotations

import base64
import re
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spamguard.features import FEATURES, FEATURES_VERSION, NAMES, registrable, structure
from spamguard.message import parse


def mail(body: str = "See you at noon, then.", kind: str = "text/plain; charset=utf-8", **headers: str) -> bytes:
    fields = {"From": "Ann <ann@shop.example>", "Subject": "Lunch", "Content-Type": kind} | headers
    head = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in fields.items())
    return (head + "\r\n" + body).encode()


def html(body: str) -> bytes:
    return mail(f"<p>See you at noon, then, by the old oak.</p>{body}", "text/html; charset=utf-8")


def link(href: str, text: str = "here") -> bytes:
    return html(f'<a href="{href}">{text}</a>')


def both(plain: str, rich: str) -> bytes:
    return mail(
        f"--x\r\nContent-Type: text/plain\r\n\r\n{plain}\r\n--x\r\nContent-Type: text/html\r\n\r\n{rich}\r\n--x--",
        "multipart/alternative; boundary=x",
    )


def attached(name: str, data: bytes = b"data", kind: str = "application/octet-stream") -> bytes:
    body = base64.b64encode(data).decode()
    return mail(
        "--x\r\n\r\nSee the file that is attached.\r\n--x\r\nContent-Type: "
        + kind
        + "\r\nContent-Transfer-Encoding: "
        f'base64\r\nContent-Disposition: attachment; filename="{name}"\r\n\r\n{body}\r\n--x--',
        "multipart/mixed; boundary=x",
    )


def encoded(text: str) -> bytes:
    return mail(base64.b64encode(text.encode()).decode(), Content_Transfer_Encoding="base64")


DATE = "Mon, 1 Jan 2024 10:00:00 +0000"
WORDS = "one two three four five six seven eight nine ten"

# name: (a mail that shows it, one that shows it less or not)
CASES: dict[str, tuple[bytes, bytes]] = {
    "html_only": (html("x"), both("See you", "<p>See you")),
    "links": (link("http://a.example/"), link("mailto:a@b.example")),
    "link_hosts": (html("<a href=http://a.example>x</a><a href=http://b.example>x</a>"), link("http://a.example/")),
    "link_mismatch": (
        link("http://evil.example/", "https://www.bank.example/login"),
        link("http://login.bank.example/", "https://www.bank.example/login"),
    ),
    "link_punycode": (link("http://xn--pypal-4ve.example/"), link("http://paypal.example/")),
    "link_ip": (link("http://192.0.2.7/x"), link("http://a192.example/")),
    "link_shortener": (link("https://bit.ly/x"), link("https://abit.ly/x")),
    "link_port": (link("http://a.example:8081/"), link("http://a.example:443/")),
    "link_disguise": (link("http://bank.example@evil.example/"), link("http://evil.example/@bank")),
    "link_code": (link("data:text/html;base64,xxxx"), link("http://data.example/")),
    "reply_elsewhere": (mail(Reply_To="x@other.example"), mail(Reply_To="Ann <help@mail.shop.example>")),
    "name_elsewhere": (mail(From="help@bank.com <x@evil.example>"), mail(From="shop.com <ann@mail.shop.com>")),
    "bulk_untold": (
        mail("<a href=http://x.example.net/>Buy now</a>", "text/html", From="Great Deal <great@qzxshop.com>"),
        mail("<a href=http://x.example.net/>Qzx Shop</a>", "text/html", From="Great Deal <great@qzxshop.com>"),
    ),
    "sender_untold": (mail(From="Ann <info@qzxshop.com>"), mail(From="Ann <ann@qzxshop.com>")),
    "hidden_text": (html("<i style='display:none'>hash busting</i>"), html("<i>hash busting</i>")),
    "hidden_share": (html(f"<i hidden>{'x' * 400}</i>"), html("<i hidden>x</i>")),
    "zero_width": (mail("Via\u200bgra"), mail("preview \u200b \u200c \ufeff")),
    "bidi": (mail("\u202etxt.exe"), mail("txt.exe")),
    "mixed_script": (mail("p\u0430ypal"), mail("paypal \u043f\u0430\u0440\u0430")),
    "images": (html("<img src=x>"), html("")),
    "image_share": (html("<img src=x>"), html("<img src=x>" + WORDS * 20)),
    "attached_program": (attached("invoice.pdf.exe"), attached("invoice.pdf")),
    "attached_archive": (attached("a.zip"), attached("a.zip.txt")),
    "attached_page": (attached("a.html"), attached("a.txt")),
    "attached_macro": (attached("a.docm"), attached("a.docx")),
    "attached_pdf": (attached("a.pdf"), attached("a.png")),
    "attached_locked": (attached("a.zip", b"PK\3\4\x14\0\1\0"), attached("a.zip", b"PK\3\4\x14\0\0\0")),
    "capitals": (mail("BUY THIS NOW or never"), mail("Buy this now or never, US")),
    "subject_capitals": (mail(Subject="GREAT NEWS"), mail(Subject="Great news")),
    "exclamations": (mail("Now! Or never!"), mail("Now. Or never.")),
    "money": (mail("$ 5,000,000.00"), mail("5,000,000.00")),
    "charset_odd": (mail(kind="text/plain; charset=bogus"), mail(kind="text/plain; charset=iso-8859-1")),
    "date_skew": (
        mail(Date=DATE, Received="by x; Mon, 8 Jan 2024 10:00:00 +0000"),
        mail(Date=DATE, Received="by x; Mon, 1 Jan 2024 12:00:00 +0200"),
    ),
    "empty": (mail("<img src=http://a.example/b.png>", "text/html"), mail("Hi!")),
    "broken_words": (mail("cheap v i a g r a now"), mail("I am a man of no means")),
    "forms": (html("<form><input type=password></form>"), html("<input type=hidden>")),
    "scripts": (html("<script>x</script>"), html("")),
    "alternatives_differ": (both("an innocent recipe", "<p>cheap pills"), both("cheap pills", "<p>cheap pills")),
    "base64_ascii": (encoded("plain English words"), encoded("обычные слова")),
    "longest_word": (mail("x" * 80), mail("x " * 40)),
    "digits": (mail("1234567890 now"), mail("many a digit now")),
    "non_ascii": (mail("обычные слова"), mail("plain words")),
    "defects": (mail("x", "multipart/mixed"), mail("x")),
}


def value(name: str, raw: bytes) -> float:
    return float(structure(parse(raw))[NAMES.index(name)])


@pytest.mark.parametrize("authority", ["info@shop.example", "see%20https:", "%22Activists%20in"])
def test_slips_of_honest_writers_are_no_disguise(authority: str) -> None:
    assert value("link_disguise", link(f"http://{authority}/")) == 0.0


@pytest.mark.parametrize("authority", ["www.bank.example@evil.example", "%65vil.example"])
def test_disguised_hosts(authority: str) -> None:
    assert value("link_disguise", link(f"http://{authority}/")) > 0.0


@pytest.mark.parametrize(
    ("sender", "text"),
    [
        ("Acme <news@mail.acme.com>", "Hello"),  # its name is its site's
        ("News <news@mail.acme.co.uk>", "Bye, A C M E or Acme."),
        ("PM Press <a@pmpress.org>", "Hello"),
        ("News <a@pm-press.org>", "Yours, PM Press"),
        ("News <a@pmpress.org>", "Read on at www.pmpress.org today"),
        ("News <sender@mail.invalid>", "Hello"),  # nobody's
        ("News <ann@localhost>", "Hello"),
        ("News", "Hello"),
    ],
)
def test_a_sender_that_says_who_he_is(sender: str, text: str) -> None:
    shown = mail(f"<p>{text}<a href=http://elsewhere.example/>x</a>", "text/html", From=sender)
    assert value("bulk_untold", shown) == 0.0
    assert value("sender_untold", shown) == 0.0


def test_letters_need_not_name_a_provider() -> None:
    page = "<p>See you at noon <a href=http://maps.example/>here</a>"
    assert value("bulk_untold", mail(page, "text/html", From="Ann <ann@gmail.com>")) == 0.0
    assert value("bulk_untold", mail("See http://maps.example/", From="Ann <ann@qzxshop.com>")) == 0.0
    assert value("bulk_untold", mail("<p>See you", "text/html", From="Ann <ann@qzxshop.com>")) == 0.0
    assert value("bulk_untold", mail(page, "text/html", From="Ann <ann@qzxshop.com>")) == 1.0


def test_words_that_mix_alphabets_are_seen_though_folded() -> None:
    assert parse(mail("p\u0430ypal")).body == "paypal"
    assert value("mixed_script", mail("p\u0430ypal and p\u0430ypal")) == pytest.approx(np.log1p(2))


def test_every_feature_has_a_case() -> None:
    assert set(CASES) == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_feature_fires_and_not_on_its_neighbour(name: str) -> None:
    shown, not_shown = CASES[name]
    assert value(name, shown) > value(name, not_shown)
    if name not in ("link_hosts", "hidden_share", "image_share", "longest_word", "html_only"):
        assert value(name, not_shown) == 0.0


def test_table() -> None:
    assert len(set(NAMES)) == len(NAMES) == len(FEATURES)
    assert all(re.fullmatch("[a-z][a-z0-9_]+", name) for name in NAMES)
    assert all(feature.words and not feature.words.endswith(".") for feature in FEATURES)
    assert len(FEATURES_VERSION) == 16


@pytest.mark.parametrize(
    "header",
    ["Received: by x", "List-Id: <a.example>", "List-Unsubscribe: <mailto:a@b.example>", "Precedence: bulk",
     "X-Spam: yes",
     "Message-ID: <1@a.example>", "In-Reply-To: <1@a.example>", "References: <1@a.example>", f"Date: {DATE}",
     "To: b@c.example", "Sender: list@a.example", "Return-Path: <a@b.example>", "Delivered-To: b@c.example"],
)  # fmt: skip
def test_origin_is_no_evidence(header: str) -> None:
    plain = parse(mail())
    marked = parse(header.encode() + b"\r\n" + mail())
    assert marked.text == plain.text
    assert np.array_equal(structure(marked), structure(plain))


@pytest.mark.parametrize("date", ["", "nonsense", "99 Foo 99999", "x" * 5_000, "Mon, 1 Jan 0000 00:00:00 +9999"])
def test_row30_odd_dates_say_nothing(date: str) -> None:
    assert value("date_skew", mail(Date=date, Received=f"by x; {DATE}")) == 0.0
    assert value("date_skew", mail(Date=DATE, Received=f"by x; {date}")) == 0.0


@pytest.mark.parametrize(
    ("host", "domain"),
    [
        ("a.b.example.com", "example.com"),
        ("www.shop.co.uk", "shop.co.uk"),
        ("co.uk", "co.uk"),
        ("x.de", "x.de"),
        ("", ""),
    ],
)
def test_registrable(host: str, domain: str) -> None:
    assert registrable(host) == domain


@settings(max_examples=200, deadline=None)
@given(st.one_of(st.binary(max_size=1_000), st.text(max_size=500).map(mail), st.text(max_size=500).map(html)))
def test_bounded_and_finite(raw: bytes) -> None:
    values = structure(parse(raw))
    assert values.dtype == np.float32 and values.shape == (len(FEATURES),)
    assert np.isfinite(values).all() and (values >= 0).all() and (values <= 10).all()


@pytest.mark.parametrize("unit", ["a", "a.", ".", "@", "%", "0x0.", "1.", "www.", "a ", "a-", "$", "\u0430a"])
def test_row10_features_are_linear(unit: str) -> None:
    long = unit * (2_000 // len(unit))
    messages = [
        parse(html(f'<a href="http://{long}">{long}</a>' * 500)),
        parse(mail(long * 100)),
        parse(mail(From=long * 2)),
    ]
    start = time.process_time()
    for message in messages:
        structure(message)
    assert time.process_time() - start < 5.0
