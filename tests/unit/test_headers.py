"""Header work: what is forged goes, what is ours is added, and not one other byte moves."""

from __future__ import annotations

import email
import time
from email.header import decode_header, make_header

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spamguard import headers
from spamguard.verdict import Cutoffs, Label, Reason, Verdict


def verdict(p: float = 0.9731, reasons: tuple[Reason, ...] = (), **changes: object) -> Verdict:
    cutoffs = Cutoffs(0.5, 0.9)
    fields = {
        "probability": p,
        "label": cutoffs.label(p),
        "cutoffs": cutoffs,
        "parts": {"deep": 2.0, "wide": -1.0, "structure": 0.5},
        "reasons": reasons,
        "encoder": "0123456789abcdef0123456789abcdef",
        "head": "default",
        "milliseconds": 41.4,
    }
    return Verdict(**fields | changes)  # type: ignore[arg-type]


MESSAGE = b"Received: by mx\r\nSubject: hi\r\n\r\nbody\r\n"


@pytest.mark.parametrize(
    "forged",
    [
        b"X-Spam-Flag: NO\r\n",
        b"x-sPaM-fLaG: NO\r\n",
        b"X-Spam: no\r\n",
        b"X-Spam-Status : No\r\n",
        b"X-Spam-Status \t :No\r\n",
        b"X-Spam-Report: one\r\n two\r\n\tthree\r\n",
        b"X-Spam-Report:\r\n \r\n blank continuation\r\n",
        b"X-Spamguard: ham; p=0.0001\r\n",
        b"X-Spamguard-Reason: trust me\r\n",
        b"X-Spam-:\r\n",
        b"X-SPAM-LEVEL:\t\r\n",
        b"X-Spam-Score: -99\r\nX-Spam-Status: No,\r\n\tscore=-99\r\nX-Spam-Checker-Version: x\r\n",
        b'X-SpamGuard-Subject: begins "x"\r\nx-spamguard-separator \t: added\r\n',
        b"X-Spam-Flag: NO\r\n" * 500,
    ],
)
def test_row_5_forged_fields_go_wherever_they_stand(forged):
    assert headers.strip(forged + MESSAGE) == MESSAGE
    assert headers.strip(MESSAGE.replace(b"Subject", forged + b"Subject")) == MESSAGE
    assert headers.strip(MESSAGE.replace(b"\r\n\r\n", b"\r\n" + forged + b"\r\n", 1)) == MESSAGE
    unix = MESSAGE.replace(b"\r\n", b"\n")
    assert headers.strip(forged.replace(b"\r\n", b"\n") + unix) == unix


@pytest.mark.parametrize(
    "kept",
    [
        b"",
        b"\r\n",
        b"Subject: x",
        b"no field at all",
        b" folded from nowhere\r\nX-Spam-Flag: YES\r\n",
        b"Subject: x\r\n\r\nX-Spam-Flag: YES\r\n",
        b"Subject: x\r\nthis line ends the block\r\nX-Spam-Flag: YES\r\n",
        b"Content-Type: message/rfc822\r\n\r\nX-Spam-Flag: YES\r\n\r\ninner\r\n",
        b'Subject: [SPAM] x\r\n\r\nX-Spamguard-Subject: begins "[SPAM] "\r\nSubject: [SPAM] x\r\n',
        b"X-Spammer: no\r\nX-Spam\x80-Flag: x\r\nX-MS-X-Spam-Flag: x\r\nX-Spamd-Result: default\r\n\r\n",
        b"From me@here Mon Jan 1\nSubject: x\n\nX-Spam-Flag: YES\n",
    ],
)
def test_row_5_all_else_is_left_alone(kept):
    assert headers.strip(kept) is kept


def test_mbox_line_stays_first():
    raw = b"From me@here Mon Jan 1\nX-Spam-Flag: NO\nSubject: x\n\nbody\n"
    clean = headers.strip(raw)
    assert clean == b"From me@here Mon Jan 1\nSubject: x\n\nbody\n"
    stamped = headers.stamp(clean, verdict())
    assert stamped.startswith(b"From me@here Mon Jan 1\nX-Spam-Flag: YES\nX-Spam-Status: Yes,")
    assert headers.strip(stamped) == clean


def test_block_in_full():
    reasons = (Reason("wide", 'the word "refinance"', 2.31), Reason("structure", "link text differs", -0.4))
    assert headers.stamp(MESSAGE, verdict(reasons=reasons)) == (
        b"X-Spam-Flag: YES\r\n"
        b"X-Spam-Status: Yes, score=0.9731 required=0.9000 tests=SG_DEEP,SG_STRUCTURE\r\n"
        b" autolearn=no version=spamguard-0.1.0\r\n"
        b"X-Spam-Level: **********\r\n"
        b"X-Spamguard: spam; p=0.9731; cutoffs=0.5000,0.9000; encoder=0123456789abcdef;\r\n"
        b" head=default; t=41ms\r\n"
        b'X-Spamguard-Reason: the word "refinance" (+2.31), link text differs (-0.40)\r\n' + MESSAGE
    )


def test_only_spam_carries_the_flag():
    for p, label in ((0.01, Label.HAM), (0.6, Label.UNSURE)):
        stamped = email.message_from_bytes(headers.stamp(MESSAGE, verdict(p)))
        assert stamped["X-Spam-Flag"] is None
        assert stamped["X-Spam-Status"].startswith("No, score=")
        assert stamped["X-Spamguard"].startswith(f"{label}; ")
    assert email.message_from_bytes(headers.stamp(MESSAGE, verdict(0.0)))["X-Spam-Level"] == ""


@pytest.mark.parametrize(
    ("why", "said"),
    [("deadline: 20 s", "deadline"), ("overload", "overload"), ("X\r\nBcc: a@b", "fault"), ("", "fault")],
)
def test_unscored_says_so_and_why(why, said):
    stamped = headers.stamp_unscored(MESSAGE, why)
    assert stamped == f"X-Spamguard: unscored; reason={said}\r\n".encode() + MESSAGE
    assert headers.strip(stamped) == MESSAGE


@pytest.mark.parametrize(
    "what",
    [
        "a\r\nX-Injected: yes\r\n\r\nbody",
        "nul\0 escape\x1b[31m \u202e right to left \u2028 line",
        "Grüße aus Köln, Ж, 漢字, 🎉" * 50,
        "x" * 100_000,
        "=?utf-8?b?WC1TcGFt?=",
        "lone \udc80 surrogate",
    ],
)
def test_row_4_text_of_the_mail_cannot_break_our_headers(what):
    mail = headers.stamp(MESSAGE, verdict(reasons=(Reason("wide", what, 1.0),) * 20, head=what, encoder=what))
    assert mail.endswith(MESSAGE)
    block = mail.removesuffix(MESSAGE)
    assert block.isascii()
    assert all(len(line) <= 78 and line.decode().isprintable() for line in block.split(b"\r\n"))
    parsed = email.message_from_bytes(mail)
    assert parsed.keys() == [
        "X-Spam-Flag", "X-Spam-Status", "X-Spam-Level", "X-Spamguard", "X-Spamguard-Reason", "Received", "Subject",
    ]  # fmt: skip
    assert parsed["X-Spamguard-Reason"].count("(+1.00)") == 5
    assert len(block) < 2500


def test_reasons_in_other_scripts_can_be_read():
    mail = headers.stamp(MESSAGE, verdict(reasons=(Reason("wide", "the word „Grüße“ und viele weitere", 1.0),)))
    value = email.message_from_bytes(mail)["X-Spamguard-Reason"].replace("\r\n", "")
    assert str(make_header(decode_header(value))) == "the word „Grüße“ und viele weitere (+1.00)"


@pytest.mark.parametrize(
    "raw", [b"", b"\r\nbody", b"text at once\r\n", b" blank at once\r\n", b"From no line end", b"\0"]
)
def test_what_was_body_stays_body(raw):
    stamped = headers.stamp(raw, verdict())
    parsed = email.message_from_bytes(stamped)
    assert parsed.get_payload(decode=True) == raw.removeprefix(b"\r\n")
    assert headers.strip(stamped) == raw


def test_row_5_a_forged_mark_above_an_mbox_line_hides_none_below():
    forged = b"X-Spam-Flag: NO\nFrom me@here\nX-Spam-Status: No\nSubject: x\n\nbody\n"
    clean = headers.strip(forged)
    assert clean == b"From me@here\nSubject: x\n\nbody\n"
    assert headers.strip(clean) is clean


def test_row_5_forged_separator_smuggles_nothing():
    mark = b"X-Spamguard-Separator: added\r\n\r\n"
    assert headers.strip(mark * 3 + b"X-Spam-Flag: NO\r\nSubject: x\r\n\r\n") == b"Subject: x\r\n\r\n"
    assert headers.strip(mark + b"From a\nX-Spam: NO\n\n") == b"From a\n\n"
    below = b"Received: by mx\r\nX-Spamguard-Separator: added\r\n\r\nX-Spam-Flag: NO\r\n"
    assert headers.strip(below) == b"Received: by mx\r\n\r\nX-Spam-Flag: NO\r\n"


# --- The tag in the Subject -----------------------------------------------------------------------------------------

TAG = "[SPAM] "


@pytest.mark.parametrize(
    ("subject", "tagged"),
    [
        (b"Subject: hi\r\n", b"Subject: [SPAM] hi\r\n"),
        (b"Subject:hi\r\n", b"Subject:[SPAM] hi\r\n"),
        (b"subject \t:  hi\r\n", b"subject \t:  [SPAM] hi\r\n"),
        (b"Subject:\r\n", b"Subject:[SPAM] \r\n"),
        (b"SUBJECT: \r\n folded\r\n\ttwice\r\n", b"SUBJECT: [SPAM] \r\n folded\r\n\ttwice\r\n"),
        (b"Subject: [SPAM] hi\r\n", b"Subject: [SPAM] [SPAM] hi\r\n"),
        (b"Subject: one\r\nSubject: two\r\n", b"Subject: [SPAM] one\r\nSubject: two\r\n"),
        (b"Subject: =?utf-8?q?gr=C3=BC=C3=9Fe?=\r\n", b"Subject: [SPAM] =?utf-8?q?gr=C3=BC=C3=9Fe?=\r\n"),
    ],
)
@pytest.mark.parametrize("mbox", [b"", b"From me@here Mon Jan 1\r\n"])
@pytest.mark.parametrize("eol", [b"\r\n", b"\n"])
def test_the_tag_stands_before_the_first_subject_and_can_be_taken_off(subject, tagged, mbox, eol):
    raw = (mbox + b"Received: by mx\r\n" + subject + b"\r\nSubject: body\r\n").replace(b"\r\n", eol)
    stamped = headers.stamp(raw, verdict(), TAG)
    below = (b"Received: by mx\r\n" + tagged + b"\r\nSubject: body\r\n").replace(b"\r\n", eol)
    mark = b'X-Spamguard-Subject: begins "[SPAM] "' + eol
    assert stamped == headers.stamp(raw, verdict()).replace(b"Received", mark + b"Received", 1).replace(
        raw.removeprefix(mbox.replace(b"\r\n", eol)), below
    )
    assert headers.strip(stamped) == raw


@pytest.mark.parametrize("raw", [b"From: a@b\r\n\r\nSubject: body\r\n", b"\r\nbody", b"", b"no field", b"From x\n"])
def test_without_a_subject_one_is_added_and_can_be_taken_off(raw):
    stamped = headers.stamp(raw, verdict(), TAG)
    assert email.message_from_bytes(stamped)["Subject"].strip() == "[SPAM]"
    assert headers.strip(stamped) == raw


@pytest.mark.parametrize("how", [b"begins", b"added"])
def test_row_5_a_forged_tag_costs_little_and_only_of_the_subject(how):
    forged = b"X-Spamguard-Subject: " + how + b' "Free "\r\n'
    rest = b"Subject: Free money\r\nSubject: Free Free\r\nFrom: Free \r\n\r\nFree \r\n"
    clean = headers.strip(forged * 9 + rest)
    assert clean == (rest.replace(b"Free ", b"", 1) if how == b"begins" else rest)
    two = b'X-Spamguard-Subject: added "Free "\r\nSubject: Free \r\n' * 2 + b"From: x\r\n"
    assert headers.strip(two) == b"Subject: Free \r\nFrom: x\r\n"
    wide = b'X-Spamguard-Subject: begins "' + b"x" * 65 + b'"\r\n'
    assert headers.strip(wide + b"Subject: " + b"x" * 65) == b"Subject: " + b"x" * 65
    other = b'X-Spamguard-Subject: added "Free "\r\nFrom: a\r\nSubject: Free \r\n\r\n'
    assert headers.strip(other) == b"From: a\r\nSubject: Free \r\n\r\n"


# --- For any bytes --------------------------------------------------------------------------------------------------

PIECES = st.sampled_from(
    [
        b"Subject: hi", b"X-Spam-Flag: NO", b"x-spam : 1", b"X-Spamguard-Separator: added", b"X-Spamguard: ham",
        b"From a", b" folded", b"\tfolded", b"text", b"\r\n", b"\n", b"\r", b"", b":", b"\0", b"\xff", b">From b",
        b"Received: x", b"X-Spam-Flag: NO\n", b"From a\n", b"subject \t:", b"Subject: [SPAM] hi\r\n",
        b'X-Spamguard-Subject: begins "[SPAM] "\r\n', b'X-Spamguard-Subject: added "[SPAM] "\n', b"[SPAM] ",
        b"Subject: [SPAM] \n",
    ]
)  # fmt: skip
MESSAGES = st.one_of(st.binary(max_size=80), st.lists(PIECES, max_size=14).map(b"".join))
VERDICTS = st.builds(
    verdict,
    st.floats(0, 1),
    st.lists(st.builds(Reason, st.just("wide"), st.text(max_size=90), st.floats(-9, 9)), max_size=7).map(tuple),
)
PRINTABLE = "".join(map(chr, range(0x20, 0x7F)))
TAGS = st.sampled_from(["", TAG, "s", "x" * 64, '" ']) | st.text(PRINTABLE, max_size=64).filter(
    lambda t: t[:1] != " "
)


@given(MESSAGES, VERDICTS, TAGS)
def test_row_29_strip_undoes_stamp(raw, judged, tag):
    clean = headers.strip(raw)
    assert headers.strip(clean) is clean
    assert headers.strip(headers.stamp(raw, judged, tag)) == clean
    assert headers.strip(headers.stamp_unscored(raw, "deadline")) == clean


@given(MESSAGES, VERDICTS, TAGS)
def test_row_4_the_body_is_the_body_still(raw, judged, tag):
    stamped = headers.stamp(raw, judged, tag)
    body = headers.strip(raw)[headers.end(headers.strip(raw)) :]
    assert stamped.endswith(body)
    assert len(stamped) - headers.end(stamped) == len(body)


@given(MESSAGES)
def test_strip_reads_no_further_than_the_end_of_the_block(raw):
    end = headers.end(raw)
    assert 0 <= end <= len(raw)
    assert headers.strip(raw) == headers.strip(raw[:end]) + raw[end:]


BLOCK = b"From me@here\r\nX-Spam: 1\r\nSubject : x\r\n folded\r\nReceived: by mx\r\n"


@pytest.mark.parametrize("line", [b"\r\n", b"no field\r\n"])
def test_a_block_that_is_cut_anywhere_has_no_end(line):
    raw = BLOCK + line + b"X-Spam-Flag: NO\r\n\r\nbody"
    for cut in range(len(raw) + 1):
        assert headers.end(raw[:cut]) == (len(BLOCK) if cut >= len(BLOCK + line) else cut)


@given(MESSAGES, VERDICTS)
def test_stamped_mail_ends_with_the_mail(raw, judged):
    clean = headers.strip(raw)
    assert headers.strip(clean) == clean
    head = len(clean) - len(clean.split(b"\n", 1)[-1]) if clean.startswith((b"From ", b">From ")) else 0
    stamped = headers.stamp(clean, judged)
    assert stamped.endswith(clean[head:])
    assert stamped.startswith(clean[:head])
    assert headers.strip(stamped) == clean


@pytest.mark.parametrize(
    "line",
    [
        b"a",
        b"X-Spam-Flag: NO\r\n",
        b" \t",
        b"X-Spam ",
        b"a:\n",
        b"\n ",
        b"X-Spamguard-Separator:\n\n",
        b"Subject:\n",
        b'X-Spamguard-Subject: added "x"\nSubject: x\n',
        b'X-Spamguard-Subject: begins "',
    ],
)
def test_time_is_linear(line):
    def seconds(size: int) -> float:
        raw = line * (size // len(line))
        began = time.process_time()
        headers.strip(raw)
        headers.hops(raw)
        headers.stamp(raw, verdict(), TAG)
        return time.process_time() - began

    seconds(100_000)
    # Quadratic work on 4 MB would take hours; this bound has room for a slow machine.
    assert seconds(4_000_000) < 20


def test_hops_counts_the_top_block_only():
    raw = b"received: 1\r\nRECEIVED : 2\r\n folded\r\nX-Received: no\r\n\r\nReceived: body\r\n"
    assert headers.hops(raw) == 2
