"""An attack changes the bytes, and what a reader sees stays (or what is added is ham)."""

from __future__ import annotations

import email
import html
import re
from email.header import decode_header, make_header
from email.message import Message

import pytest

from benchmarks import attacks
from spamguard.message import parse

HAM = "The meeting about the harvest report is on Thursday, and the minutes are attached. " * 400

PLAIN = (
    b"From: Shop <shop@example.com>\nTo: bob@example.net\nSubject: Cheap pills for everybody\n"
    b"X-Long: " + b"folded header that must stay as it is, " * 4 + b"then\n goes on\n"
    b"Content-Type: text/plain; charset=iso-8859-1\nContent-Transfer-Encoding: quoted-printable\n\n"
    b"Viagra and other pills, caf=E9 prices!\nOrder today: http://pills.example.com/buy?now=3Dyes\n"
)
HTML = (
    b"From: Shop <shop@example.com>\nSubject: =?utf-8?Q?Gr=C3=BCnes_Angebot?=\nMIME-Version: 1.0\n"
    b'Content-Type: multipart/alternative; boundary="b"\n\n--b\nContent-Type: text/plain; charset=utf-8\n\n'
    b"Cheap replica watches inside\n--b\nContent-Type: text/html; charset=utf-8\n"
    b"Content-Transfer-Encoding: base64\n\n"
    b"PGh0bWw+PGhlYWQ+PHN0eWxlPnAge2NvbG9yOiByZWR9PC9zdHlsZT48L2hlYWQ+PGJvZHk+PHAgY2xhc3M9ImNoZWFwZXN0Ij5DaGVhcCA8\n"
    b"Yj5yZXBsaWNhPC9iPiB3YXRjaGVzICZhbXA7IG1vcmU8L3A+PGEgaHJlZj0iaHR0cDovL3dhdGNoZXMuZXhhbXBsZS5uZXQvIj5vcmRlciBo\n"
    b"ZXJlPC9hPjwvYm9keT48L2h0bWw+\n--b\nContent-Type: application/pdf\nContent-Transfer-Encoding: base64\n\n"
    b"JVBERi0xLjQK\n--b--\n"
)
NO_TEXT = b"From: a@example.com\nSubject: Only an image inside\nContent-Type: image/png\n\n\x89PNG\n"
MAIL = {"plain": PLAIN, "html": HTML, "no text": NO_TEXT}
BACK = {strange: plain for plain, strange in attacks.LOOKALIKES.items()}
SAME = ["zero_width", "bidi", "homoglyphs", "tags", "spaces", "hidden_ham", "in_base64"]


def leaves(raw: bytes) -> list[Message]:
    return [part for part in email.message_from_bytes(raw).walk() if not part.is_multipart()]


def content(part: Message) -> str:
    payload = part.get_payload(decode=True)
    assert isinstance(payload, bytes)
    return payload.decode(part.get_content_charset("utf-8"))


def subject(raw: bytes) -> str:
    return str(make_header(decode_header(str(email.message_from_bytes(raw)["Subject"]))))


def seen(text: str) -> str:
    """What a person sees of a text of HTML, or of plain text, blanks left out."""
    text = re.sub(r"<style.*?</style>|<!--.*?-->", "", text, flags=re.DOTALL)
    text = re.sub(r'<div style="(?:display:none|color:#ffffff|font-size:0).*?</div>', "", text, flags=re.DOTALL)
    text = html.unescape(re.sub(r"<[^>]*>", "", text))
    text = re.sub("\u202e(.*?)\u202c", lambda found: found[1][::-1], text, flags=re.DOTALL)
    return re.sub(r"[\s\u200b]", "", text.translate(BACK))


def seen_of(raw: bytes) -> list[str]:
    texts = [seen(content(part)) for part in leaves(raw) if part.get_content_maintype() == "text"]
    return [seen(subject(raw)), *texts]


@pytest.mark.parametrize("name", SAME)
@pytest.mark.parametrize("mail", MAIL)
def test_a_reader_sees_the_same_and_the_bytes_differ(name: str, mail: str) -> None:
    raw = MAIL[mail]
    changed = getattr(attacks, name)(raw, HAM)
    assert seen_of(changed) == seen_of(raw)
    if mail != "no text":
        assert changed != raw
    assert changed == getattr(attacks, name)(raw, HAM)  # the same each time: its encoding is kept between runs


@pytest.mark.parametrize("name", ["good_words", "preamble"])
@pytest.mark.parametrize("mail", ["plain", "html"])
def test_ham_to_be_seen_stands_beside_all_that_was_there(name: str, mail: str) -> None:
    before, after = seen_of(MAIL[mail]), seen_of(getattr(attacks, name)(MAIL[mail], HAM))
    assert before[0] == after[0]
    for old, new in zip(before[1:], after[1:], strict=True):
        rest = new.removeprefix(old) if name == "good_words" else new.removesuffix(old)
        assert len(new) == len(old) + len(rest)
        words = attacks.FEW if name == "good_words" else attacks.MANY
        assert rest == seen(" ".join(HAM.split()[:words]))


@pytest.mark.parametrize("mail", ["plain", "html"])
def test_headers_and_other_parts_stay(mail: str) -> None:
    raw = MAIL[mail]
    for name in (*SAME, "good_words", "preamble", "image"):
        changed = getattr(attacks, name)(raw, HAM)
        for line in raw.split(b"\n\n")[0].split(b"\n"):
            if line.startswith((b"From:", b"To:", b"X-Long:", b" goes")):
                assert line in changed.split(b"\n"), (name, line)
        if mail == "html" and name != "image":
            assert b"JVBERi0xLjQK" in changed, name


def test_words_are_changed_in_the_text_and_not_in_tags_links_and_entities() -> None:
    for name, sign in (("zero_width", "\u200b"), ("bidi", "\u202e"), ("homoglyphs", "а")):
        page = content(leaves(getattr(attacks, name)(HTML, HAM))[1])
        assert sign in page
        for piece in ('class="cheapest"', "{color: red}", 'href="http://watches.example.net/"', "&amp;"):
            assert piece in page, name
        plain = content(leaves(getattr(attacks, name)(PLAIN, HAM))[0])
        assert "http://pills.example.com/buy?now=yes" in plain
        assert sign in subject(getattr(attacks, name)(PLAIN, HAM))


def test_broken_words_are_broken() -> None:
    assert "re<b></b>plica" in content(leaves(attacks.tags(HTML, HAM))[1])
    assert "Vi<!-- -->agra" in content(leaves(attacks.tags(PLAIN, HAM))[0])
    assert leaves(attacks.tags(PLAIN, HAM))[0].get_content_type() == "text/html"
    assert "V i a g r a" in content(leaves(attacks.spaces(PLAIN, HAM))[0])
    assert subject(attacks.spaces(PLAIN, HAM)) == "C h e a p p i l l s for e v e r y b o d y"


def test_hidden_ham_is_there_and_hidden_three_times() -> None:
    page = content(leaves(attacks.hidden_ham(PLAIN, HAM))[0])
    assert page.count("harvest") >= 3 * (attacks.FEW // 20)
    assert all(tag in page for tag in attacks.HIDING)
    # Inside the body, or a lenient reader would not look at it.
    assert page.index("harvest") < page.index("</body")


def test_base64_leaves_nothing_to_be_read_in_the_bytes() -> None:
    for raw in (PLAIN, HTML):
        changed = attacks.in_base64(raw, HAM)
        assert b"pills" not in changed and b"watches" not in changed.lower()
        assert parse(changed).subject == parse(raw).subject


def test_an_image_takes_the_place_of_the_text_and_the_link_stays() -> None:
    for raw, link in ((PLAIN, "http://pills.example.com/"), (NO_TEXT, "http://www.example.com/")):
        changed = attacks.image(raw, HAM)
        page, picture = leaves(changed)
        assert seen(content(page)) == ""
        assert link in content(page)
        payload = picture.get_payload(decode=True)
        assert isinstance(payload, bytes) and payload.startswith(b"\x89PNG\r\n\x1a\n")
        assert subject(changed) == "Information"
        assert parse(changed).images or parse(changed).attachments


def test_damaged_mail_is_attacked_without_a_complaint() -> None:
    strange = (
        b"",
        b"\n\n",
        b"Subject: \xff\xfe raw bytes\nContent-Type: text/plain; charset=no-such\n\nfree \xff money\n",
        b"Content-Type: text/plain; charset=utf-8\nContent-Transfer-Encoding: base64\n\nnot base64 at all!\n",
        b"Content-Type: multipart/mixed; boundary=x\n\n--x\nContent-Type: text/html\n\n<p>no end\n",
        b"Content-Type: multipart/mixed\n\nno boundary\n",
    )
    for raw in strange:
        for attack in attacks.ATTACKS.values():
            assert isinstance(attack(raw, HAM), bytes)
