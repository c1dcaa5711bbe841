"""Row 3: what stands in a command is one command, for us, for the next hop and in the log."""

from __future__ import annotations

import re

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fakes import FakeNextHop

MAIL = b"Subject: hi\r\n\r\nmeeting\r\n"
REFUSED = b"501 5.5.2 Control characters in command"
BYTES = {"NUL": b"\0", "TAB": b"\t", "CR": b"\r", "VT": b"\x0b", "ESC": b"\x1b", "US": b"\x1f", "DEL": b"\x7f"}
COMMANDS = (
    b"EHLO a%bb",
    b"HELO a%bb",
    b"MAIL FROM:<a%bRCPT TO:<hidden@x>@b>",
    b"MAIL FROM:<a@b> RET=HDRS%bENVID=1",
    b"MAIL%bFROM:<a@b>",
    b'RCPT TO:<"a%bDATA"@b>',
    b"RCPT TO:<a@b> ORCPT=rfc822;%b",
    b"XFORWARD NAME=spike ADDR=%b192.0.2.1",
    b"XCLIENT ADDR=%b192.0.2.1",
    b"NOOP %b",
    b"%bRSET",
    b"QUIT%b",
)


@pytest.mark.parametrize("byte", BYTES.values(), ids=BYTES)
def test_row_3_no_control_byte_goes_on_or_comes_back(running_daemon, byte):
    hop = FakeNextHop()
    running = running_daemon(hop, listen={"port": 0, "xclient_from": ["127.0.0.1"]})
    with running.client() as client:
        client.greet()
        for command in COMMANDS:
            assert client.ask(command % byte) == REFUSED, command
        for line in (b"MAIL FROM:<a@b>", b"RCPT TO:<a@b>", b"DATA", MAIL + b"."):
            assert client.ask(line)[:3] in (b"250", b"354")
    assert len(hop.messages) == 1
    assert not [line for line in hop.lines if byte in line or b"hidden" in line]
    running.check_alive()


@pytest.mark.parametrize("stray", ["normalize", "reject"])
def test_row_3_a_line_feed_ends_a_command_or_is_refused_in_it(running_daemon, stray):
    """Never is it a part of one: what the next hop gets are the lines that we have obeyed."""
    hop = FakeNextHop()
    running = running_daemon(hop, listen={"port": 0, "stray_line_ends": stray})
    with running.client() as client:
        client.greet()
        client.send(b"MAIL FROM:<a@b>\nRCPT TO:<hidden@x>\r\n")
        replies = [client.reply(), client.reply()]
        if stray == "normalize":
            assert [reply[:3] for reply in replies] == [b"250", b"250"]
        else:
            assert replies == [REFUSED, b"503 5.5.1 Send MAIL first"]
    assert not [line for line in hop.lines if b"\n" in line or line.count(b"@") > 1]


def test_row_3_nothing_of_a_refused_command_is_said_back(running_daemon):
    with running_daemon().client() as client:
        client.greet()
        for line in (
            b"EVIL-WORD",
            b"EVIL-WORD \x1b[2J",
            b"MAIL EVIL-WORD",
            b"RCPT TO:EVIL WORD",
            b"XCLIENT EVIL-WORD",
        ):
            assert b"EVIL" not in client.ask(line)


def test_row_3_what_a_client_says_stays_on_its_line_of_the_log(running_daemon):
    running = running_daemon()
    with running.client() as client:
        assert client.reply().startswith(b"220")
        assert client.ask("EHLO x\u2028\u0085y\u202e".encode()).startswith(b"250")
        assert client.ask('MAIL FROM:<"\u2028{\\"event\\": \\"ready\\"}"@b>'.encode()).startswith(b"250")
        assert client.ask("RCPT TO:<\u0085\u009b2J@b>".encode()).startswith(b"250")
        assert client.ask(b"DATA").startswith(b"354")
        assert client.ask(MAIL + b".").startswith(b"250")
    assert [line["event"] for line in running.log] == ["ready", "message"], "each line is JSON, and they are ours"
    text = running._log.getvalue()
    assert all(character.isprintable() or character == "\n" for character in text)


WORDS = st.sampled_from(
    [
        b"MAIL FROM:<",
        b"RCPT TO:<",
        b"a@b",
        b">",
        b'"',
        b"\\",
        b" ",
        b"XFORWARD ",
        b"NAME=",
        b"RSET",
        b"NOOP",
        b"VRFY ",
    ]
)
JUNK = st.lists(WORDS | st.binary(max_size=3), max_size=10).map(b"".join)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(line=JUNK.filter(lambda line: b"\n" not in line and not re.match(rb"(?i)data|quit|bdat|proxy", line)))
def test_row_3_any_line_is_one_command_and_has_one_reply(front, line):
    hop, running = front
    seen = len(hop.lines)
    with running.client() as client:
        client.greet()
        client.send(line + b"\r\nNOOP\r\n")
        reply = client.reply()
        assert re.fullmatch(rb"(?:\d{3}-[ -~]*\r\n)*[245]\d\d [ -~]+", reply)
        assert client.reply() == b"250 2.0.0 Ok"
    passed = [one for one in hop.lines[seen:] if one not in (b"EHLO filter.example", b"RSET", b"QUIT")]
    assert passed in ([], [line]), "as it came, or not at all"
    running.wait_until_empty()


@pytest.fixture
def front(running_daemon):
    hop = FakeNextHop()
    return hop, running_daemon(hop)
