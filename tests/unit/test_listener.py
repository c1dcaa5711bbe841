"""Where we listen: addresses, Unix sockets, and how we find out that the next hop is ourselves (row 19)."""

from __future__ import annotations

import errno
import os
import socket
import stat

import pytest

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
        assert two.ask(b"PROXY UNKNOWN").startswith(b"550")
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
