"""Words of headers: who writes and with what; nothing of the way the mail came."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spamguard.header_words import HEADER_COLUMNS, column, columns, header_words
from spamguard.message import parse

MAIL = b"""Received: from mx.example (mx.example [192.0.2.1]) by here.example; Mon, 1 Jan 2024 10:00:00 +0000
Return-Path: <bounce@list.example>
X-Spam-Flag: YES
List-Id: <news.list.example>
From: "The Shop" <orders@mail.shop.example>
To: me@home.example
Message-ID: <20240101.12345.abc@mta7.shop.example>
X-Mailer: Shopmailer 2.4
Date: Mon, 1 Jan 2024 11:00:00 +0100
Content-Type: text/plain; charset=utf-8
Subject: your parcel

It is on its way.
"""


def test_sender_and_program_are_words() -> None:
    words = header_words(parse(MAIL).headers)
    assert {"from:orders@mail.shop.example", "from:@shop.example", "from:shop", "x-mailer:shopmailer"} <= set(words)
    assert {"message-id:@shop.example", "message-id:0.0.a", "date:+0100", "content-type:text/plain"} <= set(words)
    assert words == sorted(set(words))


@pytest.mark.parametrize(
    "header", [b"Received", b"X-Spam-Flag", b"List-Id", b"Return-Path", b"Delivered-To", b"Sender"]
)
def test_the_way_it_came_says_nothing(header: bytes) -> None:
    more = header + b": anything at all 12\n" + MAIL
    assert header_words(parse(more).headers) == header_words(parse(MAIL).headers)


def test_an_encoded_name_is_no_words() -> None:
    words = header_words(parse(b"From: =?utf-8?Q?J=C3=B6rg?= <j@x.example>\n\nhi").headers)
    assert words == ["from:", "from:@x.example", "from:j@x.example"]


def test_the_subject_is_text_and_not_read_twice() -> None:
    assert not any("parcel" in word for word in header_words(parse(MAIL).headers))


NAMES = st.sampled_from(["From", "reply-to", "TO", "Message-ID", "Date", "Content-Type", "X-Mailer", "X-Odd"])


@given(st.lists(st.tuples(NAMES | st.text(max_size=30), st.text(max_size=2000)), max_size=200))
def test_any_headers_give_bounded_words(headers: list[tuple[str, str]]) -> None:
    words = header_words(tuple(headers))
    found = columns(words)
    assert len(words) <= 256 and all(len(word) <= 80 for word in words)
    assert found.tolist() == sorted({column(word) for word in words})
    assert all(0 <= one < HEADER_COLUMNS for one in found.tolist())


def test_a_header_that_is_no_utf_8_has_columns() -> None:
    words = header_words(parse(b"From: \xff\xfe <a\xe9@b.example>\nX-Odd: \xdf\xdf\xdf\n\nhi").headers)
    assert len(columns(words)) == len(words)


@pytest.mark.parametrize(
    "header",
    [
        "From: pwned\x07\x1b[2j@x.example",
        "Message-ID: <a@b\x1b[31m evil \u202e thing.example>",
        "Content-Type: text/plain; boundary=\x1b[0m",
        "X-Mailer: \x9b31m",
    ],
)
def test_no_word_holds_what_a_terminal_obeys(header: str) -> None:
    words = header_words(parse(f"{header}\n\nhi".encode()).headers)
    assert words and all(word.isprintable() and " " not in word for word in words)


@pytest.mark.parametrize("name", ["X-Rspamd-Score", "X-Barracuda-Spam-Status", "X-Junk", "XStatus", "X" * 65_000])
def test_what_another_filter_wrote_is_not_read(name: str) -> None:
    assert header_words(parse(f"{name}: no\n".encode() + MAIL).headers) == header_words(parse(MAIL).headers)
