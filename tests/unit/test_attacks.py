"""Text disguised from filters but not from readers is read as if it were not; what is no disguise stays."""

from __future__ import annotations

import base64
import time
import unicodedata
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spamguard.decoding import clean
from spamguard.disguise import fold, join, without_marks
from spamguard.message import Message, parse

TEXT = "Dear customer, your account at Bank of Examples is locked. Buy cheap viagra now."
WORD = "viagra"
PATIENCE = 5.0  # seconds; what is not linear takes minutes

_TO_CYRILLIC = str.maketrans("aeopcyxABEKMHOPCTX", "аеорсухАВЕКМНОРСТХ")
_TO_GREEK = str.maketrans("oviaABEHIKMNOPTXYZ", "ονιαΑΒΕΗΙΚΜΝΟΡΤΧΥΖ")
_SMALL = str.maketrans("abcdeghijklmnoprtuvwyz", "ᴀʙᴄᴅᴇɢʜɪᴊᴋʟᴍɴᴏᴘʀᴛᴜᴠᴡʏᴢ")


def html(body: str) -> Message:
    return read(body, "text/html")


def read(body: str, kind: str = "text/plain", subject: str = "Your account") -> Message:
    word = "=?utf-8?b?" + base64.b64encode(subject.encode()).decode() + "?="
    head = f"From: Ann <ann@shop.example>\r\nSubject: {word}\r\nContent-Type: {kind}; charset=utf-8\r\n\r\n"
    return parse(head.encode() + body.encode())


def fullwidth(text: str) -> str:
    return "".join(chr(ord(c) + 0xFEE0) if c.isalnum() else c for c in text)


def bold(text: str) -> str:
    lower = {chr(97 + i): chr(0x1D41A + i) for i in range(26)}
    return "".join(lower.get(c, c) for c in text)


def stacked(text: str) -> str:
    return "".join(c + "\u0336\u0337\u0359" * c.isalpha() for c in text)


INVISIBLE = "\u200b\u200c\u200d\u2060\ufeff\u00ad\u034f\u180e\u202a\u202e\u2066\u2069\U000e0041\ufe0f"

DISGUISES: dict[str, Callable[[str], str]] = {
    "cyrillic": lambda text: text.translate(_TO_CYRILLIC),
    "greek": lambda text: text.translate(_TO_GREEK),
    "full width": fullwidth,
    "mathematical": bold,
    "marks": stacked,
    **{f"U+{ord(sign):04X}": lambda text, sign=sign: sign.join(text) for sign in INVISIBLE},  # type: ignore[misc]
}


@pytest.mark.parametrize("name", DISGUISES)
def test_disguised_text_reads_the_same(name: str) -> None:
    disguised = DISGUISES[name](TEXT)
    assert disguised != TEXT
    assert read(disguised, subject=DISGUISES[name]("Your account")).text == read(TEXT).text


@pytest.mark.parametrize("name", DISGUISES)
def test_disguised_html_reads_the_same(name: str) -> None:
    entities = "".join(c if c.isascii() else f"&#{ord(c)};" for c in DISGUISES[name](TEXT))
    assert html(f"<p>{entities}").body == TEXT


def test_small_capitals_read_as_letters() -> None:
    assert read(TEXT.lower().translate(_SMALL)).body == TEXT.lower()


def test_disguises_are_counted_before_they_are_undone() -> None:
    message = read("v\u0456agra for p\u0430yp\u0430l, v i a g r a, via\u200bgra")
    assert message.body == "viagra for paypal, viagra, viagra"
    assert (message.mixed_words, message.broken_words, message.zero_width) == (2, 1, 1)
    plain = read("viagra for paypal")
    assert (plain.mixed_words, plain.broken_words, plain.zero_width) == (0, 0, 0)


# --- Alphabets -----------------------------------------------------------------------------------------------------

RUSSIAN = "Москва, Россия: СССР и мир, рассмотрите наше предложение о покупке"
GREEK = "Η Αθήνα είναι η πρωτεύουσα της Ελλάδας και τόπος"


@pytest.mark.parametrize(
    "text",
    [
        RUSSIAN,
        GREEK,
        "Հայաստան և Երևան",
        "Hello there, the trip to Москва went well and we saw the river",  # only nearly look-alikes
        "My name is Сара, that is Sara; дом means house and мир means peace and world",
        "SMSки и PDFки приходят",
        "a gap of 10 μm at 5 kΩ, and the Ωmega",
        "Việt Nam, phở, Đặng Thị Ngọc, café, Gödel, Łódź, ẹ̀kọ́, naïve",
        "日本語のメール",
        "СССР",
    ],
)
def test_text_in_one_alphabet_stays(text: str) -> None:
    composed = unicodedata.normalize("NFKC", text)
    assert fold(composed)[0] == composed


def test_vietnamese_and_accents_stay_whatever_their_form() -> None:
    text = "Việt Nam, phở, Đặng Thị Ngọc, café, Gödel, Łódź, naïve"
    assert clean(text).text == clean(unicodedata.normalize("NFD", text)).text == text


def test_words_wholly_of_look_alikes() -> None:
    word = "раураӏ"  # Cyrillic to the last letter
    assert read(f"Dear {word} user, your account is locked").body == "Dear paypal user, your account is locked"
    assert parse(f"From: {word} <x@evil.example>\r\n\r\nYour account is locked, dear user".encode()).sender_name == (
        "paypal"
    )
    assert fold(word) == (word, 0)  # no Latin text around it
    assert fold(f"{RUSSIAN} {word}") == (f"{RUSSIAN} {word}", 0)
    assert fold(f"The Russian for with is со, she said, and {word} was там")[0].count(word) == 1


def test_each_look_alike_folds_to_one_latin_letter() -> None:
    for letter in "АВЕЅІЈКМНОРСТУХаеѕіјорсухһԁԛԝӏΑΒΕΖΗΙΚΜΝΟΡΤΥΧανορօսոᎪꓮвкмнтғ":
        folded, mixed = fold(f"q{letter}q")
        assert mixed == 1 and len(folded) == 3 and folded.isascii() and folded.isalpha()


LETTERS = st.text("aZ9_ .-éαοжорсвկօꓮᴀ\u0301\u0336\n", max_size=40)


@given(LETTERS | st.text(max_size=40))
@settings(max_examples=500)
def test_what_is_undone_stays_undone(text: str) -> None:
    once, _ = fold(text)
    assert fold(once)[0] == once
    assert once.count("\n") == text.count("\n") and len(once) == len(text)
    assert without_marks(without_marks(text)) == without_marks(text)
    assert clean(clean(text).text).text == clean(text).text


@given(st.text(st.characters(min_codepoint=0x400, max_codepoint=0x4FF), max_size=60))
def test_cyrillic_alone_stays(text: str) -> None:
    assert fold(text) == (text, 0)


@given(st.text(st.characters(min_codepoint=0x20, max_codepoint=0x24F), max_size=60))
def test_latin_alone_stays(text: str) -> None:
    assert fold(text) == (text, 0)


# --- Broken words --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sign", [" ", ".", "-", "_", "*", "\u00a0"])
@pytest.mark.parametrize("word", [WORD, "VIAGRA", "покупка"])
def test_letters_set_apart_are_joined(sign: str, word: str) -> None:
    assert read(f"cheap {sign.join(word)}, now").body == f"cheap {word}, now"
    assert html(f"<b>cheap {sign.join(word)}, now</b>").body == f"cheap {word}, now"


def test_two_blanks_part_words_set_apart() -> None:
    assert read("b u y i t   c h e a p   v i a g r a").body == "buyit cheap viagra"
    assert html("O r d e r&nbsp;&nbsp; c h e a p\u0336").body == "Order cheap"


@pytest.mark.parametrize(
    "text",
    [
        "the U S A and the U.S.S.R.",
        "J. R. R. Tolkien and J.R.R.T. of the B.B.C.",
        "choose a b c d e or f",
        "A-B-C-D-E-F-G-H-I",
        "x o x o x o x o x",
        "o o o o o o",
        "I am a man, a b-c plan",
        "1 2 3 4 5 6 7",
        "v-i a.g r-a",
        "see a.example or b.c.example",
        "| Y | N | Y | N | ? | - - - - - -",
    ],
)
def test_single_letters_that_are_none_of_that_stay(text: str) -> None:
    assert join(text) == (text, 0)
    assert read(text).body == text


def test_letters_below_each_other_are_no_word() -> None:
    rows = "\r\n".join("svtqw")
    assert read(rows).body == "s v t q w"
    assert html("".join(f"<td>{letter}" for letter in "svtqw")).body == "s v t q w"


@pytest.mark.parametrize(
    "body",
    [
        "v<b></b>iagra",
        "via<!-- x -->gra",
        "via<!-- <b> -- -->gra",
        "<span>vi</span><span>agra</span>",
        "v<i>i</i>a<u>g</u><font size=1>r</font>a",
        "via<xyz foo='>'>gra",
        "via<wbr>gra",
        "via&shy;gra",
        "via&#8203;gra",
        "via&zwnj;<b>&ZeroWidthSpace;</b>gra",
        "&#118;&#x69;&#97;g&#0114;&#x00061;",
        "via<span style='display:none'>xx</span>gra",
        "via<span style='font-size:0'>xx</span>gra",
        "via<script>x</script>gra",
        "via</p foo>gra".replace("p", "q"),
    ],
)
def test_words_broken_by_markup_are_whole(body: str) -> None:
    assert html(f"<p>cheap {body} now").body == "cheap viagra now"


# --- Padding and wrapping ------------------------------------------------------------------------------------------

GOOD_WORDS = "meeting agenda minutes regards attached report thanks schedule"


@pytest.mark.parametrize(
    "attributes",
    [
        "hidden",
        'style="display:none"',
        'style="DISPLAY : none !important"',
        'style="display/* x */:none"',
        'style="visibility:hidden"',
        'style="visibility:collapse"',
        'style="opacity:0"',
        'style="opacity:0.0"',
        'style="max-height:0"',
        'style="max-height:0px;overflow:hidden"',
        'style="mso-hide:all"',
        'style="text-indent:-9999px"',
        'style="position:absolute;left:-9999px"',
        'style="position:absolute;top:-9999px"',
        'style="margin-left:-9999px"',
        'style="clip:rect(0,0,0,0)"',
        'style="font-size:0"',
        'style="font-size:1px"',
        'style="font-size:0.01em"',
        'style="font-size:1%"',
        'style="color:#ffffff"',
        'style="color:white"',
        'style="color:#fefefe"',
        'style="color:rgb(255,255,255)"',
        'style="color:#123456;background:#123456"',
        'style="color:#123456;background-color:#123457"',
    ],
)
def test_hidden_good_words_are_not_read(attributes: str) -> None:
    plain = html(f"<p>{TEXT}</p>")
    padded = html(f"<p>{TEXT}</p><div {attributes}>{GOOD_WORDS} <b>{GOOD_WORDS}</b></div>")
    assert padded.text == plain.text
    assert padded.hidden > plain.hidden == 0


@pytest.mark.parametrize(
    "wrapped",
    [
        f"<font color=white>{GOOD_WORDS}</font>",
        f"<table bgcolor='#333333'><tr><td><font color='#333333'>{GOOD_WORDS}</font></td></tr></table>",
        f"<!-- {GOOD_WORDS} -->",
        f"<title>{GOOD_WORDS}</title>",
        f"<style>{GOOD_WORDS}</style>",
        f"<noframes>{GOOD_WORDS}</noframes>",
        f"<template>{GOOD_WORDS}</template>",
        f"<img alt='{GOOD_WORDS}'>",
    ],
)
def test_good_words_where_nobody_reads_are_not_read(wrapped: str) -> None:
    assert html(f"<p>{TEXT}</p>{wrapped}").text == html(f"<p>{TEXT}</p>").text


def test_base64_of_everything_reads_the_same() -> None:
    plain = read(TEXT)
    subject = base64.b64encode(b"Your account").decode()
    name = base64.b64encode(b"Ann").decode()
    head = (
        f"From: =?utf-8?B?{name}?= <ann@shop.example>\r\nSubject: =?utf-8?B?{subject}?=\r\n"
        "Content-Type: text/plain; charset=utf-8\r\nContent-Transfer-Encoding: base64\r\n\r\n"
    )
    for width in (4, 76, 1000):
        coded = base64.b64encode(TEXT.encode()).decode()
        lines = "\r\n".join(coded[i : i + width] for i in range(0, len(coded), width))
        assert parse((head + lines).encode()).text == plain.text
    whole = parse(
        (head.replace("text/plain", "text/html") + base64.b64encode(f"<p>{TEXT}".encode()).decode()).encode()
    )
    assert whole.text == plain.text


@pytest.mark.parametrize(
    "text",
    [
        "a " * 100_000,
        "a.b-" * 60_000,
        "aж" * 120_000,
        "ж a" * 80_000,
        "v i a g r a " * 20_000,
        "9" * 250_000 + "ж",
        "раура " * 40_000 + "a" * 9_000,
        "\u0336" * 250_000,
        "a" + "\u0336" * 250_000,
        "_" * 250_000 + "ο",
        "ο1" * 120_000,
    ],
    ids=lambda text: repr(text[:8]),
)
def test_mending_is_linear(text: str) -> None:
    started = time.perf_counter()
    clean(text)
    fold(text)
    join(text)
    without_marks(text)
    assert time.perf_counter() - started < PATIENCE
