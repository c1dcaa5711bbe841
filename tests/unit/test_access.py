"""Who may come in, who they are, and when the next hop is ourselves: PROXY, XCLIENT, allow_from, sockets, loops."""

from __future__ import annotations

import errno
import os
import socket
import stat
import struct
import threading

import pytest

from service import smtp
from service.listener import bind
from spamguard.config import Config, ListenTable
from spamguard.errors import ConfigError
from tests.conftest import Client
from tests.fakes import FakeNextHop

MAIL = b"Subject: hi\r\n\r\nmeeting\r\n"
BALANCER = ("127.0.0.2", 0)


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


needs_ipv6 = pytest.mark.skipif(not has_ipv6(), reason="no IPv6 here")


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


# Addresses and sockets


@needs_ipv6
@pytest.mark.parametrize(("host", "near"), [("::1", ["::1"]), ("::", ["::1", "127.0.0.1"])])
def test_ipv6_listeners(running_daemon, host, near):
    running = running_daemon(listen=listen(host=host, allow_from=["::1", "127.0.0.0/8"]))
    for address in near:
        with Client((address, running.daemon.address[1])) as client:
            assert client.deliver(MAIL).startswith(b"250")
    assert peers(running) == near, "an IPv4 client has an IPv4 address"


@needs_ipv6
def test_row_14_the_share_of_an_address_is_the_same_in_both_spellings(running_daemon):
    table = listen(host="::", allow_from=["::/0", "0.0.0.0/0"], proxy_from=["127.0.0.2"])
    running = running_daemon(listen=table, limits={"connections_per_peer": 1})
    port = running.daemon.address[1]
    with Client(("127.0.0.1", port)) as direct, Client(("127.0.0.1", port), BALANCER) as behind:
        assert direct.reply().startswith(b"220")
        behind.send(b"PROXY TCP4 127.0.0.1 127.0.0.1 1 2\r\n")
        assert behind.reply().startswith(b"421 4.7.0")


def test_a_unix_socket_listener(running_daemon, tmp_path):
    path = tmp_path / "smtp.sock"
    running = running_daemon(listen=listen(socket=str(path), socket_mode="0600"), limits={"connections_per_peer": 1})
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with running.client() as one, running.client() as two:
        assert one.deliver(MAIL).startswith(b"250")
        assert two.deliver(MAIL).startswith(b"250"), "those at a Unix socket are not counted: they have no address"
        assert two.ask(V1.rstrip()).startswith(b"550")
    with pytest.raises(ConfigError, match="in use"):
        bind(ListenTable(socket=path))
    assert stat.S_ISSOCK(path.stat().st_mode), "a live one is left alone"
    running.check_alive()
    running.loop.run(running.daemon.stop())
    assert not path.exists()


def test_a_stale_unix_socket_is_taken_over_and_another_file_is_not(running_daemon, tmp_path):
    path = tmp_path / "smtp.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    running = running_daemon(listen=listen(socket=str(path)))
    running.check_alive()
    file = tmp_path / "file"
    file.write_bytes(b"precious")
    with pytest.raises(ConfigError, match="in use"):
        bind(ListenTable(socket=file))
    assert file.read_bytes() == b"precious"


def test_a_live_unix_socket_with_a_full_queue_is_not_taken_over(tmp_path):
    path = tmp_path / "smtp.sock"
    clients = []
    with socket.socket(socket.AF_UNIX) as busy:
        busy.bind(str(path))
        busy.listen(0)
        while True:
            clients.append(socket.socket(socket.AF_UNIX))
            clients[-1].setblocking(False)
            if clients[-1].connect_ex(str(path)) == errno.EAGAIN:
                break
        with pytest.raises(ConfigError, match="in use"):
            bind(ListenTable(socket=path))
        assert path.exists()
        for client in clients:
            client.close()


def test_a_unix_socket_that_was_removed_meanwhile_does_not_stop_the_stop(running_daemon, tmp_path):
    path = tmp_path / "smtp.sock"
    running = running_daemon(listen=listen(socket=str(path)))
    path.unlink()
    running.loop.run(running.daemon.stop())
    assert [line["broken_off"] for line in running.log if line["event"] == "stopped"] == [0]


# Row 19: loops


@pytest.mark.parametrize("hops", [50, 51])
def test_row_19_a_loop_ends(running_daemon, hops):
    hop = FakeNextHop()
    with running_daemon(hop).client() as client:
        reply = client.deliver(b"Received: x\r\n" * hops + MAIL)
    assert reply.startswith(b"250" if hops == 50 else b"554 5.4.6")
    assert len(hop.messages) == (hops == 50)


def free_port(host: str = "127.0.0.1") -> int:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def own_address() -> str:
    """The address of an interface; no packet is sent. The loopback's where there is no other."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        if probe.connect_ex(("192.0.2.1", 9)):
            return "127.0.0.3"
        return str(probe.getsockname()[0])


@pytest.mark.parametrize(
    ("host", "hop"),
    [
        ("127.0.0.1", "127.0.0.1"),
        ("127.0.0.1", "localhost"),
        ("127.0.0.1", "127.1"),
        ("127.0.0.1", "0.0.0.0"),
        ("127.0.0.1", "0"),
        ("0.0.0.0", "127.0.0.1"),
        ("0.0.0.0", "127.0.0.3"),
        ("0.0.0.0", own_address()),
        pytest.param("::1", "::1", marks=needs_ipv6),
        pytest.param("::1", "0:0::1", marks=needs_ipv6),
        pytest.param("::", "::1", marks=needs_ipv6),
        pytest.param("::", "127.1", marks=needs_ipv6),
        pytest.param("::", own_address(), marks=needs_ipv6),
        pytest.param("127.0.0.1", "::ffff:127.0.0.1", marks=needs_ipv6),
    ],
)
def test_row_19_a_next_hop_that_is_ourselves_is_refused_at_start(running_daemon, host, hop):
    port = free_port(host)
    table = listen(host=host, port=port, allow_from=["127.0.0.0/8"])
    with pytest.raises((ConfigError, ValueError), match="our own listener"):
        running_daemon(listen=table, next_hop={"host": hop, "port": port})
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind((host, port))  # nothing is left open


@pytest.mark.parametrize("link", [None, os.symlink, os.link], ids=["same", "symlink", "hard-link"])
def test_row_19_the_same_unix_socket_by_another_path_is_refused_at_start(running_daemon, tmp_path, link, monkeypatch):
    path, other = tmp_path / "smtp.sock", tmp_path / "other.sock"
    (tmp_path / "folder").mkdir()
    if link is None:
        other = tmp_path / "folder" / ".." / "smtp.sock"
    else:
        # A link made beforehand points to what will be bound there; a hard link cannot.
        created = socket.socket.bind

        def bound(self: socket.socket, address: object) -> None:
            created(self, address)
            if not other.exists():
                link(path, other)

        monkeypatch.setattr(socket.socket, "bind", bound, raising=False)
    with pytest.raises((ConfigError, ValueError), match="our own listener"):
        running_daemon(listen=listen(socket=str(path)), next_hop={"socket": str(other)})


def test_row_19_another_server_on_the_same_port_is_no_loop(running_daemon):
    port = free_port()
    hop = FakeNextHop()
    running = running_daemon(listen=listen(port=port, host="127.0.0.2"), next_hop={"host": "127.0.0.1", "port": port})
    running.hop = hop
    running.loop.run(hop.start(port))
    running.check_alive()
    assert len(hop.messages) == 1


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0", pytest.param("::", marks=needs_ipv6)])
@pytest.mark.parametrize("protocol", ["smtp", "lmtp"])
def test_row_19_ourselves_behind_a_name_are_found_when_we_call(running_daemon, monkeypatch, host, protocol):
    port = free_port(host)
    resolve, known = socket.getaddrinfo, []

    def getaddrinfo(name, *arguments, **more):
        if name != "hidden.example":
            return resolve(name, *arguments, **more)
        if not known:
            raise socket.gaierror("not yet")
        return resolve("127.0.0.1", *arguments, **more)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    table = listen(host=host, port=port, allow_from=["127.0.0.0/8"], protocol=protocol)
    running = running_daemon(listen=table, next_hop={"host": "hidden.example", "port": port, "protocol": protocol})
    known.append(True)
    with Client(("127.0.0.1", port)) as client:
        assert client.reply().startswith(b"220 ")
        assert client.ask(b"LHLO x" if protocol == "lmtp" else b"EHLO x").startswith(b"250"), "EHLO never fails"
        assert client.ask(b"MAIL FROM:<a@b>").startswith(b"451 4.4.1")
        assert client.ask(b"MAIL FROM:<a@b>").startswith(b"451 4.4.1")
        assert client.ask(b"QUIT").startswith(b"221")
    running.wait_until_empty()
    events = [line["event"] for line in running.log if line["level"] == "error"]
    assert events == ["loop"] * 3, "one for each connection to ourselves, and none of them made another"
    causes = [line["cause"] for line in running.log if line["event"] == "delivery"]
    assert all("554 5.4.6" in cause or "connection lost" in cause for cause in causes) and causes


def test_row_19_an_innocent_client_with_the_port_of_our_connection_is_not_ourselves(running_daemon):
    near = []

    class Watching(FakeNextHop):
        async def _serve(self, reader, writer):
            near.append(writer.get_extra_info("peername"))
            await super()._serve(reader, writer)

    running = running_daemon(Watching())
    with running.client() as first:
        first.greet()
        first.ask(b"MAIL FROM:<a@b>")
        ((_, port),) = near
        with running.client(("127.0.0.2", port)) as innocent:
            assert innocent.socket.getsockname()[1] == port
            assert innocent.deliver(MAIL).startswith(b"250")
    running.check_alive()


def test_loops_known_from_the_file_alone_are_refused_by_it():
    with pytest.raises(ValueError, match="our own listener"):
        Config.model_validate({"listen": {"port": 25}, "next_hop": {"host": "localhost", "port": 25}})
