"""Row 15: whatever the next hop does wrong is temporary for the client, and its refusals are its own."""

from __future__ import annotations

import socket

import pytest

from tests.fakes import DROP, END_OF_DATA, GREETING, HANG, FakeNextHop

MAIL = b"Subject: hi\r\n\r\nmeeting\r\n"
FAULTS = [
    (GREETING, b"554 go away", b"451 4.4.1"),
    (GREETING, DROP, b"451 4.4.1"),
    (GREETING, HANG, b"451 4.4.1"),
    (GREETING, b"garbage", b"451 4.4.1"),
    ("EHLO", DROP, b"451 4.4.1"),
    ("EHLO", HANG, b"451 4.4.1"),
    ("EHLO", b"421 4.3.2 busy", b"451 4.4.1"),
    ("MAIL", DROP, b"451 4.4.2"),
    ("MAIL", HANG, b"451 4.4.2"),
    ("MAIL", b"452 4.3.1 full", b"452 4.3.1 full"),
    ("MAIL", b"2x0 garbage", b"451 4.3.0"),
    ("MAIL", b"250-one\r\n550 two", b"451 4.3.0"),
    ("MAIL", b"x" * 100_000, b"451 4.3.0"),
    ("MAIL", b"250-x\r\n" * 600 + b"250 x", b"451 4.3.0"),
    ("RCPT", DROP, b"451 4.4.2"),
    ("RCPT", HANG, b"451 4.4.2"),
    ("RCPT", b"550 5.1.1 no", b"550 5.1.1 no"),
    ("RCPT", b"\0\0\0\0", b"451 4.3.0"),
    ("DATA", DROP, b"451 4.4.2"),
    ("DATA", HANG, b"451 4.4.2"),
    ("DATA", b"250 fine", b"451 4.3.0"),
    ("DATA", b"451 4.3.5 later", b"451 4.3.5 later"),
    ("DATA", b"554 5.5.1 no valid recipients", b"554 5.5.1 no valid recipients"),
    (END_OF_DATA, DROP, b"451 4.4.2"),
    (END_OF_DATA, HANG, b"451 4.4.2"),
    (END_OF_DATA, b"354 again", b"451 4.3.0"),
    (END_OF_DATA, b"552 5.3.4 big", b"552 5.3.4 big"),
    (END_OF_DATA, b"garbage", b"451 4.3.0"),
]


@pytest.mark.parametrize(
    ("step", "act", "expected"),
    FAULTS,
    ids=lambda value: str(value)[:20] if value not in (HANG, DROP) else "HANG" if value is HANG else "DROP",
)
def test_row_15_the_next_hops_faults_are_temporary_and_its_refusals_its_own(running_daemon, step, act, expected):
    hop = FakeNextHop(**{step: act})
    timeouts = {f"{name}_timeout_s": 0.2 for name in ("reply", "data", "connect")}
    running = running_daemon(hop, next_hop=timeouts)
    with running.client() as client:
        assert client.greet().startswith(b"250"), "EHLO never fails"
        replies = [client.ask(b"MAIL FROM:<a@b>")]
        for line in (b"RCPT TO:<c@d>", b"DATA", MAIL + b"."):
            if replies[-1][:1] in b"23":
                replies.append(client.ask(line))
        assert replies[-1].startswith(expected)
        assert hop.messages == []
        assert client.ask(b"NOOP").startswith(b"250"), "the session goes on"
        running.loop.loop.call_soon_threadsafe(hop.release.set)
        hop.script[step] = FakeNextHop().script[step]
        client.ask(b"RSET")
        assert [client.ask(line)[:3] for line in (b"MAIL FROM:<a@b>", b"RCPT TO:<c@d>", b"DATA", MAIL + b".")] == [
            b"250", b"250", b"354", b"250",
        ]  # fmt: skip


def test_row_15_a_next_hop_that_is_not_there(running_daemon):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    running = running_daemon(next_hop={"host": "127.0.0.1", "port": port})
    with running.client() as client:
        assert client.greet() == (
            b"250-filter.example\r\n250-SIZE 33554432\r\n250-PIPELINING\r\n250-8BITMIME\r\n250-SMTPUTF8\r\n"
            b"250-DSN\r\n250 ENHANCEDSTATUSCODES"
        )
        assert client.ask(b"MAIL FROM:<a@b>").startswith(b"451 4.4.1")
        hop = FakeNextHop()
        running.hop = hop
        running.loop.run(hop.start(port))
        assert client.ask(b"MAIL FROM:<a@b>").startswith(b"250"), "it has come back"


def test_row_15_a_hundred_lines_are_a_reply(running_daemon):
    reply = b"\r\n".join([b"250-line"] * 99 + [b"250 last"])
    with running_daemon(FakeNextHop(MAIL=reply)).client() as client:
        client.greet()
        assert client.ask(b"MAIL FROM:<a@b>") == reply


def test_an_overlong_or_dirty_reply_line_is_cut_and_cleaned(running_daemon):
    with running_daemon(FakeNextHop(MAIL=b"550 a\0b\x1b[31m" + b"c" * 3000)).client() as client:
        client.greet()
        reply = client.ask(b"MAIL FROM:<a@b>")
    assert reply.startswith(b"550 a b [31mccc") and len(reply) == 2000


def test_421_of_the_next_hop_ends_the_session(running_daemon):
    with running_daemon(FakeNextHop(RCPT=b"421 4.3.2 going down")).client() as client:
        client.greet()
        client.ask(b"MAIL FROM:<a@b>")
        assert client.ask(b"RCPT TO:<a@b>") == b"421 4.3.2 going down"
        assert client.closed()


@pytest.mark.parametrize("act", [DROP, b"421 4.4.2 idle too long"])
def test_a_next_hop_that_closed_an_idle_connection_is_asked_again(running_daemon, act):
    hop = FakeNextHop(MAIL=[b"250 ok", act, b"250 ok"])
    with running_daemon(hop).client() as client:
        assert client.deliver(MAIL).startswith(b"250")
        assert client.ask(b"MAIL FROM:<second@b>").startswith(b"250")
        assert client.ask(b"RCPT TO:<a@b>").startswith(b"250")
        assert client.ask(b"DATA").startswith(b"354")
        assert client.ask(MAIL + b".").startswith(b"250")
    assert (len(hop.messages), hop.connections) == (2, 2)


def test_a_client_named_by_xforward_is_named_again_on_a_new_connection(running_daemon):
    hop = FakeNextHop(MAIL=[b"250 ok", DROP, b"250 ok"])
    with running_daemon(hop).client() as client:
        assert client.deliver(MAIL).startswith(b"250")
        assert client.ask(b"XFORWARD NAME=spike").startswith(b"250")
        assert client.ask(b"MAIL FROM:<second@b>").startswith(b"250")
        assert client.ask(b"RCPT TO:<a@b>").startswith(b"250")
        assert client.ask(b"DATA").startswith(b"354")
        assert client.ask(MAIL + b".").startswith(b"250")
    assert (len(hop.messages), hop.connections) == (2, 2)
    assert hop.messages[1].xforward == [b"XFORWARD NAME=spike"]
