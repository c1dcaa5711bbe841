"""How much and how many: giant things (row 12) and floods (row 14)."""

from __future__ import annotations

import contextlib
import socket
import threading

import pytest

from tests.conftest import Client
from tests.fakes import EHLO, FakeNextHop

MAIL = b"Subject: hi\r\n\r\nmeeting\r\n"
TIMED_OUT = b"421 4.4.2 Timeout, closing connection"


# Row 12: giant things


def test_row_12_size_is_enforced_at_mail_and_after_draining(running_daemon):
    hop = FakeNextHop()
    with running_daemon(hop, limits={"message_bytes": 65_536}).client() as client:
        assert b"250-SIZE 65536\r\n" in client.greet()
        assert client.ask(b"MAIL FROM:<a@b> size=65537") == b"552 5.3.4 Message is too big"
        assert client.ask(b"MAIL FROM:<a@b> SIZE=99999999999999999999") == b"552 5.3.4 Message is too big"
        assert client.ask(b"MAIL FROM:<a@b> SIZE=65536").startswith(b"250")
        assert client.ask(b"RCPT TO:<a@b>").startswith(b"250")
        assert client.ask(b"DATA").startswith(b"354")
        assert client.ask(b"x" * 10_000_000 + b"\r\n.") == b"552 5.3.4 Message is too big"
        assert client.ask(b"MAIL FROM:<a@b>").startswith(b"250")
        assert client.ask(b"RCPT TO:<a@b>").startswith(b"250")
        assert client.ask(b"DATA").startswith(b"354")
        assert client.ask(b"x" * 65_534 + b"\r\n.").startswith(b"250")
    assert len(hop.messages) == 1
    assert hop.lines.count(b"DATA") == 1


def test_the_smaller_size_of_both_is_offered(running_daemon):
    hop = FakeNextHop(EHLO=EHLO.replace(b"SIZE 20000000", b"SIZE 1000"))
    with running_daemon(hop).client() as client:
        assert b"250-SIZE 1000\r\n" in client.greet()
        assert client.ask(b"MAIL FROM:<a@b> SIZE=1001").startswith(b"552 5.3.4")


def test_row_12_recipients_are_limited(running_daemon):
    hop = FakeNextHop()
    with running_daemon(hop, limits={"recipients": 2}).client() as client:
        client.greet()
        client.ask(b"MAIL FROM:<a@b>")
        replies = [client.ask(b"RCPT TO:<r%d@b>" % number)[:9] for number in range(3)]
        assert replies == [b"250 2.1.5", b"250 2.1.5", b"452 4.5.3"]
        assert client.ask(b"DATA").startswith(b"354")
        assert client.ask(b"x\r\n.").startswith(b"250")
    assert len(hop.messages[0].rcpt) == 2


def test_row_12_command_lines_of_a_megabyte_are_refused_and_the_session_goes_on(running_daemon):
    with running_daemon().client() as client:
        client.greet()
        assert client.ask(b"MAIL FROM:<" + b"a" * 5000 + b"@b>") == b"500 5.5.2 Line too long"
        assert client.ask(b"NOOP " + b"a" * 1_000_000) == b"500 5.5.2 Line too long"
        assert client.ask(b"NOOP").startswith(b"250")


def flood(client: Client, data: bytes) -> list[bytes]:
    """Send all of it, whether or not it is read, and return what is answered until the connection ends.

    A client that is thrown out while it sends may miss the last of it: what it sent then is answered by a reset.
    """

    def send() -> None:
        with contextlib.suppress(OSError):
            client.send(data)

    sender = threading.Thread(target=send)
    sender.start()
    replies = []
    try:
        while reply := client.reply():
            replies.append(reply)
    except ConnectionError:
        pass
    sender.join(30)
    assert not sender.is_alive()
    return replies


@pytest.mark.parametrize("relayed", [False, True], ids=["maildir", "next-hop"])
def test_row_12_a_hundred_thousand_recipients(running_daemon, relayed):
    running = running_daemon(FakeNextHop() if relayed else None)
    with running.client() as client:
        client.greet()
        assert client.ask(b"MAIL FROM:<a@b>").startswith(b"250")
        replies = []
        for _ in range(4):
            client.send(b"".join(b"RCPT TO:<r%d@b>\r\n" % number for number in range(500)))
            replies += [client.reply()[:9] for _ in range(500)]
        # So many in excess are forgiven, as Postfix does.
        assert replies == [b"250 2.1.5"] * 1000 + [b"452 4.5.3"] * 1000
        assert client.ask(b"RCPT TO:<a@b>") == b"421 4.5.3 Too many recipients"
        assert client.closed()
    with running.client() as client:
        client.greet()
        assert client.ask(b"MAIL FROM:<a@b>").startswith(b"250")
        assert len(flood(client, b"RCPT TO:<a@b>\r\n" * 100_000)) <= 2001
    running.check_alive()


def test_row_12_a_sender_with_more_recipients_than_we_take_gets_all_of_them_delivered(running_daemon):
    hop = FakeNextHop()
    left = [b"<r%d@b>" % number for number in range(25)]
    with running_daemon(hop, limits={"recipients": 10}).client() as client:
        client.greet()
        while left:
            assert client.ask(b"MAIL FROM:<a@b>").startswith(b"250")
            left = [path for path in left if client.ask(b"RCPT TO:" + path).startswith(b"452")]
            assert client.ask(b"DATA").startswith(b"354")
            assert client.ask(MAIL + b".").startswith(b"250")
    assert [len(message.rcpt) for message in hop.messages] == [10, 10, 5]


def test_row_12_the_excess_is_that_of_one_transaction(running_daemon):
    with running_daemon(limits={"recipients": 10}).client() as client:
        client.greet()
        for _ in range(3):
            assert client.ask(b"MAIL FROM:<a@b>").startswith(b"250")
            client.send(b"RCPT TO:<a@b>\r\n" * 910)
            assert [client.reply()[:3] for _ in range(910)] == [b"250"] * 10 + [b"452"] * 900
            assert client.ask(b"DATA").startswith(b"354")
            assert client.ask(MAIL + b".").startswith(b"250")


@pytest.mark.parametrize("lines", [1, 2, 3])
def test_row_12_overlong_lines_in_a_row_are_one_error_each(running_daemon, lines):
    running = running_daemon(limits={"errors": 2})
    with running.client() as client:
        client.greet()
        replies = flood(client, (b"x" * 1_000_000 + b"\r\n") * lines + b"QUIT\r\n")
    assert [reply[:3] for reply in replies] == [b"500"] * min(lines, 2) + [b"421" if lines == 3 else b"221"]
    running.check_alive()


# Row 14: floods


def test_row_14_too_many_errors_or_idle_commands_end_the_session(running_daemon):
    running = running_daemon()
    with running.client() as client:
        client.greet()
        client.send(b"BOGUS\r\n" * 30)
        replies = [client.reply() for _ in range(21)]
        assert replies[19].startswith(b"500") and replies[20] == b"421 4.7.0 Too many errors"
        assert client.closed()
    with running.client() as client:
        client.greet()
        client.send(b"NOOP\r\nRSET\r\n" * 60)
        replies = [client.reply() for _ in range(100)]
        assert replies[98].startswith(b"250") and replies[99] == b"421 4.7.0 Too many commands"
        assert client.closed()


@pytest.mark.parametrize(
    ("line", "taken", "last"),
    [
        (b"NOOP", 99, b"421 4.7.0 Too many commands"),
        (b"RSET", 99, b"421 4.7.0 Too many commands"),
        (b"VRFY x", 99, b"421 4.7.0 Too many commands"),
        (b"EHLO x", 99, b"421 4.7.0 Too many commands"),
        (b"HELO x", 99, b"421 4.7.0 Too many commands"),
        (b"BOGUS", 20, b"421 4.7.0 Too many errors"),
        (b"", 20, b"421 4.7.0 Too many errors"),
        (b"MAIL FROM:<a@b>", 21, b"421 4.7.0 Too many errors"),
        (b"RCPT TO:<a@b>", 20, b"421 4.7.0 Too many errors"),
        (b"DATA", 20, b"421 4.7.0 Too many errors"),
        (b"MAIL FROM:<a@b>\r\nRSET", 199, b"421 4.7.0 Too many commands"),
        (b"\0", 20, b"421 4.7.0 Too many errors"),
        (b"BDAT 1", 0, b"502 5.5.1 BDAT is not offered"),
        (b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2", 0, b"550 5.7.1 Not from here"),
        (b"XCLIENT ADDR=192.0.2.1", 20, b"421 4.7.0 Too many errors"),
    ],
    ids=lambda value: value.split(b" ")[0].decode("latin-1") if isinstance(value, bytes) else "",
)
@pytest.mark.parametrize("relayed", [False, True], ids=["maildir", "next-hop"])
def test_row_14_a_megabyte_of_one_command(running_daemon, relayed, line, taken, last):
    running = running_daemon(FakeNextHop() if relayed else None)
    with running.client() as client:
        client.greet()
        replies = flood(client, (line + b"\r\n") * 250)
        assert replies[-1] == last
        assert len(replies) == taken + 1
    with running.client() as client:
        client.greet()
        assert len(flood(client, (line + b"\r\n") * (1_000_000 // (len(line) + 2)))) <= taken + 1
    running.check_alive()


def test_row_14_who_sends_mail_may_go_on_for_ever(running_daemon):
    """What is counted is counted from one message to the next."""
    hop = FakeNextHop()
    with running_daemon(hop).client() as client:
        client.greet()
        for _ in range(40):
            client.send(b"NOOP\r\nRSET\r\nVRFY x\r\nEHLO x\r\n")
            assert [client.reply()[:2] for _ in range(4)] == [b"25"] * 4
            client.send(b"MAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\nDATA\r\n")
            assert [client.reply()[:3] for _ in range(3)] == [b"250", b"250", b"354"]
            assert client.ask(MAIL + b".").startswith(b"250")
    assert len(hop.messages) == 40


def test_row_14_an_early_talker_is_answered_in_order(running_daemon):
    hop = FakeNextHop()
    running = running_daemon(hop)
    with running.client() as client:
        client.send(b"EHLO x\r\nMAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\nDATA\r\n" + MAIL + b".\r\nQUIT\r\n")
        assert [client.reply()[:3] for _ in range(7)] == [b"220", b"250", b"250", b"250", b"354", b"250", b"221"]
        assert client.closed()
    assert len(hop.messages) == 1
    running.check_alive()


def test_row_14_an_early_talker_who_may_not_come_in_is_not_obeyed(running_daemon):
    hop = FakeNextHop()
    running = running_daemon(hop, listen={"port": 0, "allow_from": ["192.0.2.1"]})
    with running.client() as client:
        client.send(b"EHLO x\r\nMAIL FROM:<a@b>\r\n")
        assert client.reply().startswith(b"554 5.7.1")
        assert client.closed()
    running.wait_until_empty()
    assert hop.lines == []


def test_row_14_a_crowd_that_comes_while_we_are_busy_waits_in_the_systems_queue(running_daemon):
    running = running_daemon()
    busy = threading.Event()
    running.loop.loop.call_soon_threadsafe(busy.wait)
    with contextlib.ExitStack() as stack:
        stack.callback(busy.set)
        clients = [stack.enter_context(running.client()) for _ in range(200)]
        busy.set()
        assert all(client.reply().startswith(b"220") for client in clients)
    running.wait_until_empty()
    running.check_alive()


@pytest.mark.parametrize("reset", [False, True], ids=["FIN", "RST"])
def test_row_14_connect_and_close(running_daemon, reset):
    running = running_daemon(limits={"connections": 50, "connections_per_peer": 40})
    for _ in range(300):
        with socket.create_connection(running.daemon.address) as client:
            if reset:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    running.wait_until_empty()
    running.check_alive()
