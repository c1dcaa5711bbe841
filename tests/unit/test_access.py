"""Who may come in, and who they are: allow_from, shares, PROXY and XCLIENT (row 27)."""

from __future__ import annotations

import socket
import struct
import threading

import pytest

from service import smtp
from tests.conftest import Client
from tests.fakes import FakeNextHop

MAIL = b"Subject: hi\r\n\r\nmeeting\r\n"
BALANCER = ("127.0.0.2", 0)


def listen(**more: object) -> dict[str, object]:
    return {"port": 0, "hostname": "filter.example"} | more


def peers(running) -> list[str]:
    return [line["peer"] for line in running.log if line["event"] == "message"]


# allow_from, and how many


def test_row_27_only_listed_clients_come_in(running_daemon):
    running = running_daemon(listen=listen(allow_from=["127.0.0.2", "192.0.2.0/24"]))
    with running.client() as client:
        assert client.reply() == b"554 5.7.1 Access denied"
        assert client.closed()
    with running.client(BALANCER) as client:
        assert client.reply().startswith(b"220")
    running.wait_until_empty()


def test_connections_are_limited_and_places_come_free(running_daemon):
    running = running_daemon(limits={"connections": 2})
    with running.client() as one, running.client() as two:
        assert one.reply().startswith(b"220") and two.reply().startswith(b"220")
        with running.client() as three:
            assert three.reply() == b"421 4.3.2 Too many connections, try again later"
            assert three.closed()
        assert one.ask(b"QUIT").startswith(b"221")
        assert one.closed()
        with running.client() as four:
            assert four.reply().startswith(b"220")
    running.wait_until_empty()
    assert running.daemon.journal.counters["refused.connections"] == 1


def test_row_14_one_address_gets_its_share_and_no_more(running_daemon):
    running = running_daemon(limits={"connections_per_peer": 2})
    with running.client() as one, running.client() as two:
        assert one.reply().startswith(b"220") and two.reply().startswith(b"220")
        with running.client() as three, running.client(BALANCER) as other:
            assert three.reply() == b"421 4.7.0 Too many connections from you, try again later"
            assert three.closed()
            assert other.reply().startswith(b"220")
        one.close()
        reply = b"421"
        while reply.startswith(b"421"):  # until our leaving has been noticed
            with running.client() as next_one:
                reply = next_one.reply()
    running.wait_until_empty()
    running.check_alive()


# The PROXY protocol


def v2(family: int, addresses: bytes, command: int = 0x21, length: int | None = None) -> bytes:
    size = len(addresses) if length is None else length
    return b"\r\n\r\n\0\r\nQUIT\n" + struct.pack("!BBH", command, family, size) + addresses


def v4(source: str, more: bytes = b"") -> bytes:
    return v2(0x11, socket.inet_aton(source) + socket.inet_aton("192.0.2.9") + struct.pack("!HH", 4321, 25) + more)


V6 = v2(0x21, socket.inet_pton(socket.AF_INET6, "2001:db8::7") * 2 + struct.pack("!HH", 4321, 25))
V1 = b"PROXY TCP4 192.0.2.7 192.0.2.9 4321 25\r\n"

NAMED = {
    "v1-tcp4": (V1, "192.0.2.7"),
    "v1-tcp6": (b"PROXY TCP6 2001:DB8::7 2001:db8::9 4321 25\r\n", "2001:db8::7"),
    "v1-mapped": (b"PROXY TCP6 ::ffff:192.0.2.7 ::1 4321 25\r\n", "192.0.2.7"),
    "v1-unknown": (b"PROXY UNKNOWN\r\n", "127.0.0.2"),
    "v1-unknown-junk": (b"PROXY UNKNOWN " + b"\xff" * 91 + b"\r\n", "127.0.0.2"),
    "v2-inet": (v4("192.0.2.7"), "192.0.2.7"),
    "v2-inet6": (V6, "2001:db8::7"),
    "v2-local": (v4("192.0.2.7").replace(b"\x21\x11", b"\x20\x11", 1), "127.0.0.2"),
    "v2-unspec": (v2(0x00, b"junk"), "127.0.0.2"),
    "v2-unix": (v2(0x31, b"/tmp/evil\r\nQUIT\r\n".ljust(216, b"\0")), "127.0.0.2"),
    "v2-tlv": (v4("192.0.2.7", b"\x04\x00\x03abc"), "192.0.2.7"),
    "v2-tlv-junk": (v4("192.0.2.7", b"\x20\xff\xff\r\nQUIT\r\n"), "192.0.2.7"),
    "v2-65535": (v4("192.0.2.7", b"\r\nQUIT\r\n".ljust(65_523, b"\n")), "192.0.2.7"),
}


@pytest.mark.parametrize(("header", "peer"), NAMED.values(), ids=NAMED)
def test_row_27_a_balancer_says_who_the_client_is(running_daemon, header, peer):
    """What follows in the same packet is the client's, from its first byte on."""
    running = running_daemon(listen=listen(proxy_from=["127.0.0.2"]))
    with running.client(BALANCER) as client:
        client.send(header + b"EHLO x\r\n")
        assert client.reply().startswith(b"220 ")
        assert client.reply().startswith(b"250")
        for line in (b"MAIL FROM:<a@b>", b"RCPT TO:<a@b>", b"DATA", MAIL + b"."):
            assert client.ask(line)[:3] in (b"250", b"354")
    assert peers(running) == [peer]
    running.check_alive()


@pytest.mark.parametrize("header", [V1, v4("192.0.2.7", b"\x04\x00\x03abc")], ids=["v1", "v2"])
def test_row_27_a_header_may_come_byte_by_byte(running_daemon, header):
    running = running_daemon(listen=listen(proxy_from=["127.0.0.2"], allow_from=["192.0.2.7"]))
    with running.client(BALANCER) as client:
        client.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in header:
            client.send(bytes([byte]))
            threading.Event().wait(0.001)
        assert client.reply().startswith(b"220 ")


BAD = {
    "none": b"EHLO client.example\r\n",
    "lower-case": V1.lower(),
    "v1-108-bytes": b"PROXY UNKNOWN " + b"x" * 92 + b"\r\n",
    "v1-without-end": b"PROXY TCP4 " + b"x" * 1_000_000,
    "v1-lf": V1.replace(b"\r", b""),
    "v1-empty": b"PROXY\r\n",
    "v1-short": b"PROXY TCP4\r\n",
    "v1-no-ports": b"PROXY TCP4 192.0.2.7 192.0.2.9\r\n",
    "v1-port": V1.replace(b"4321", b"99999"),
    "v1-port-word": V1.replace(b"4321", b"smtp"),
    "v1-address": V1.replace(b"192.0.2.7", b"999.0.2.7"),
    "v1-family": V1.replace(b"192.0.2.7", b"::1"),
    "v1-more": V1.replace(b"25\r", b"25 x\r"),
    "v1-unglued": b"PROXYTCP4 192.0.2.7 192.0.2.9 4321 25\r\n",
    "v2-signature": v4("192.0.2.7").replace(b"QUIT", b"EHLO"),
    "v2-version": v4("192.0.2.7").replace(b"\x21\x11", b"\x11\x11"),
    "v2-command": v4("192.0.2.7").replace(b"\x21\x11", b"\x2f\x11"),
    "v2-family": v2(0xF1, b"x" * 12),
    "v2-protocol": v2(0x1F, b"x" * 12),
    "v2-truncated": v2(0x11, b"\x7f\0\0\1"),
    "v2-no-address": v2(0x21, b""),
}


@pytest.mark.parametrize("header", BAD.values(), ids=BAD)
def test_row_27_a_balancer_without_a_valid_header_is_refused(running_daemon, header):
    running = running_daemon(listen=listen(proxy_from=["127.0.0.2"]))
    with running.client(BALANCER) as client:
        try:
            client.send(header)
            assert client.reply() == b"550 5.7.1 Not from here"
        except ConnectionError:
            assert len(header) > 100_000, "only who is cut off while sending may miss the reply"
        assert client.closed()
    assert [line["cause"] for line in running.log if line["event"] == "refused"] == ["no valid PROXY header"]
    running.check_alive()


@pytest.mark.parametrize("half", [False, True], ids=["close", "half-close"])
@pytest.mark.parametrize("header", [V1[:3], V1[:20], V6[:14], V6[:40], v2(0, b"x", length=65_535)], ids=len)
def test_row_27_a_balancer_that_leaves_inside_its_header(running_daemon, header, half):
    running = running_daemon(listen=listen(proxy_from=["127.0.0.2"]))
    with running.client(BALANCER) as client:
        client.send(header)
        if half:
            client.socket.shutdown(socket.SHUT_WR)
            assert client.closed()
    running.check_alive()


@pytest.mark.parametrize("header", [b"", V1, v2(0, b"x", length=65_535) + b"x" * 65_000], ids=["none", "v1", "v2"])
def test_row_27_a_header_has_a_limit_in_time_that_no_byte_moves(running_daemon, monkeypatch, header):
    monkeypatch.setattr(smtp, "_HANDSHAKE_S", 0.3)
    running = running_daemon(listen=listen(proxy_from=["127.0.0.2"]))
    with running.client(BALANCER) as client:
        client.send(header[:-60])
        for byte in header[-60:-2]:
            if client.socket.fileno() < 0:
                break
            try:
                client.send(bytes([byte]))
            except ConnectionError:
                break
            threading.Event().wait(0.02)
        assert client.reply() == b"421 4.4.2 Timeout, closing connection"
        assert client.closed()
    running.check_alive()


def test_row_27_who_has_shown_a_header_has_the_patience_of_anybody(running_daemon, monkeypatch):
    monkeypatch.setattr(smtp, "_HANDSHAKE_S", 0.2)
    running = running_daemon(listen=listen(proxy_from=["127.0.0.2"]))
    with running.client(BALANCER) as client:
        client.send(V1)
        assert client.reply().startswith(b"220")
        threading.Event().wait(0.5)
        assert client.ask(b"NOOP").startswith(b"250")


def test_row_27_a_header_of_an_unlisted_client_is_no_header(running_daemon):
    running = running_daemon(listen=listen(proxy_from=["127.0.0.2"], allow_from=["127.0.0.1", "192.0.2.7"]))
    behind = b"EHLO x\r\nMAIL FROM:<a@b>\r\n"
    with running.client() as client:
        client.send(V1 + behind)
        assert client.reply().startswith(b"220")
        assert client.reply() == b"550 5.7.1 Not from here"
        assert client.closed()
    with running.client() as client:
        client.send(v4("192.0.2.7") + behind)
        assert client.reply().startswith(b"220")
        replies = [client.reply()[:3] for _ in range(4)]
        assert replies == [b"500", b"500", b"501", b"221"], "two empty lines, one with a NUL, QUIT"
        assert client.closed()
    with running.client() as client:
        client.greet()
        assert client.ask(b"MAIL FROM:<a@b>").startswith(b"250")
        assert client.ask(V1.rstrip()) == b"550 5.7.1 Not from here", "and not inside a transaction either"
        assert client.closed()
    running.check_alive()


def test_row_27_allow_from_is_about_the_client_behind_the_balancer(running_daemon):
    running = running_daemon(listen=listen(proxy_from=["127.0.0.2"], allow_from=["192.0.2.0/28", "127.0.0.1"]))
    for header, expected in (
        (V1, b"220 "),
        (v4("192.0.2.8"), b"220 "),
        (v4("192.0.2.77"), b"554 5.7.1 Access denied"),
        (b"PROXY UNKNOWN\r\n", b"554 5.7.1 Access denied"),  # the balancer, which is not listed
    ):
        with running.client(BALANCER) as client:
            client.send(header)
            assert client.reply().startswith(expected)
    assert [line["peer"] for line in running.log if line["event"] == "refused"] == ["192.0.2.77", "127.0.0.2"]
    running.check_alive()


def test_row_27_each_client_behind_a_balancer_has_its_own_share(running_daemon):
    running = running_daemon(listen=listen(proxy_from=["127.0.0.2"]), limits={"connections_per_peer": 1})

    def through(header: bytes) -> tuple[Client, bytes]:
        client = running.client(BALANCER)
        client.send(header)
        return client, client.reply()[:9]

    one, reply = through(v4("192.0.2.1"))
    two, second = through(v4("192.0.2.2"))
    three, third = through(v4("192.0.2.1"))
    assert (reply[:4], second[:4], third) == (b"220 ", b"220 ", b"421 4.7.0")
    for client in (one, two, three):
        client.close()
    running.wait_until_empty()
    four, reply = through(v4("192.0.2.1"))
    assert reply.startswith(b"220 ")
    four.close()


def test_row_27_what_the_balancer_may_do_its_clients_may_not(running_daemon):
    """The address that counts is the client's: XCLIENT from behind a balancer in `xclient_from` is a forgery."""
    running = running_daemon(listen=listen(proxy_from=["127.0.0.2"], xclient_from=["127.0.0.0/8", "192.0.2.8"]))
    for header, may in ((V1, False), (v4("192.0.2.8"), True), (b"PROXY UNKNOWN\r\n", True)):
        with running.client(BALANCER) as client:
            client.send(header)
            assert (b"XCLIENT" in client.greet()) == may
            assert client.ask(b"XCLIENT ADDR=198.51.100.1").startswith(b"220" if may else b"550 5.7.0")


# XCLIENT


@pytest.mark.parametrize(
    ("attributes", "peer"),
    [
        (b"ADDR=192.0.2.7", "192.0.2.7"),
        (b"addr=IPv6:2001:DB8::7 PROTO=ESMTP", "2001:db8::7"),
        (b"ADDR=IPV6:::ffff:192.0.2.7", "192.0.2.7"),
        (b"ADDR=192.0.2.+37", "192.0.2.7"),
        (b"ADDR=[UNAVAILABLE] NAME=[tempunavail]", "127.0.0.1"),
        (b"NAME=a+2Bb+0D+0AQUIT HELO=x+20y LOGIN=joe PORT=25 DESTADDR=192.0.2.9 DESTPORT=25", "127.0.0.1"),
    ],
)
def test_row_27_xclient_of_a_listed_peer_names_the_client_and_starts_anew(running_daemon, attributes, peer):
    running = running_daemon(listen=listen(xclient_from=["127.0.0.1"]))
    with running.client() as client:
        assert b"\r\n250 XCLIENT ADDR DESTADDR DESTPORT HELO LOGIN NAME PORT PROTO" in client.greet()
        client.send(b"XCLIENT " + attributes + b"\r\nMAIL FROM:<a@b>\r\n")
        assert client.reply().startswith(b"220 ")
        assert client.reply().startswith(b"503 5.5.1 Send EHLO first"), "what was pipelined is of the new session"
        assert client.ask(b"EHLO x").startswith(b"250")
        for line in (b"MAIL FROM:<a@b>", b"RCPT TO:<a@b>", b"DATA", MAIL + b"."):
            assert client.ask(line)[:3] in (b"250", b"354")
    assert peers(running) == [peer]


def test_row_27_bad_xclient_renames_nobody(running_daemon):
    running = running_daemon(listen=listen(xclient_from=["127.0.0.1"]))
    with running.client() as client:
        client.greet()
        for attributes in (
            b"",
            b"ADDR",
            b"ADDR=",
            b"ADDR=localhost",
            b"ADDR=192.0.2.7 BOGUS=1",
            b"ADDR=192.0.2.7 ADDR=bogus",
            b"ADDR=192.0.2.7 ADDR=192.0.2.8",
            b"ADDR=192.0.2.+ZZ",
            b"ADDR=\xff",
        ):
            assert client.ask(b"XCLIENT " + attributes).startswith(b"501 5.5.4"), attributes
        assert client.ask(b"MAIL FROM:<a@b>").startswith(b"250"), "the session goes on"
        assert client.ask(b"XCLIENT ADDR=192.0.2.7").startswith(b"503 5.5.1"), "not inside a transaction"
        for line in (b"RCPT TO:<a@b>", b"DATA", MAIL + b"."):
            assert client.ask(line)[:3] in (b"250", b"354")
    assert peers(running) == ["127.0.0.1"]


def test_row_27_xclient_of_an_unlisted_peer_is_refused(running_daemon):
    running = running_daemon(listen=listen(xclient_from=["192.0.2.0/24"]))
    with running.client() as client:
        assert b"XCLIENT" not in client.greet()
        assert client.ask(b"XCLIENT ADDR=192.0.2.1") == b"550 5.7.0 Not authorized"
        assert client.ask(b"XCLIENT ADDR=192.0.2.1") == b"550 5.7.0 Not authorized", "naming one helps nobody"
        assert client.ask(b"MAIL FROM:<a@b>").startswith(b"250")
    running.wait_until_empty()
    running.check_alive()


def test_row_27_a_client_named_by_xclient_has_to_be_allowed(running_daemon):
    allowed = listen(xclient_from=["127.0.0.1"], allow_from=["127.0.0.1", "192.0.2.7"])
    running = running_daemon(listen=allowed, limits={"connections_per_peer": 1})
    with running.client() as client:
        client.greet()
        assert client.ask(b"XCLIENT ADDR=198.51.100.1") == b"554 5.7.1 Access denied"
        assert client.closed()
    with running.client() as client:
        client.greet()
        assert client.ask(b"XCLIENT ADDR=192.0.2.7").startswith(b"220")
        with running.client() as second:
            assert second.greet().startswith(b"250"), "the first one's place is another's now"
            assert second.ask(b"XCLIENT ADDR=192.0.2.7").startswith(b"421 4.7.0")
            assert second.closed()
    running.wait_until_empty()
    running.check_alive()


def test_row_27_xforward_goes_no_further_than_the_next_hop_wants(running_daemon):
    hop = FakeNextHop(EHLO=b"250-next.example\r\n250 PIPELINING")
    running = running_daemon(hop)
    with running.client() as client:
        assert b"XFORWARD" not in client.greet()
        assert client.ask(b"XFORWARD ADDR=192.0.2.1").startswith(b"502")
    running.wait_until_empty()
    assert not any(line.startswith(b"XFORWARD") for line in hop.lines)


@pytest.mark.parametrize(("listed", "may"), [([], False), (["198.51.100.0/24"], False), (["192.0.2.0/24"], True)])
def test_row_27_xforward_is_for_those_who_are_trusted_with_it(running_daemon, listed, may):
    """Whoever comes through a balancer is a stranger, and must not tell the next hop that he is somebody else."""
    hop = FakeNextHop()
    running = running_daemon(hop, listen=listen(proxy_from=["127.0.0.1"], xforward_from=listed))
    with running.client() as client:
        client.send(b"PROXY TCP4 192.0.2.7 192.0.2.1 1 25\r\n")
        assert (b"XFORWARD" in client.greet()) is may
        reply = client.ask(b"XFORWARD ADDR=203.0.113.1")
        assert reply == (b"250 2.0.0 Ok" if may else b"550 5.7.0 Not authorized")
    running.wait_until_empty()
    assert any(line.startswith(b"XFORWARD") for line in hop.lines) is may
