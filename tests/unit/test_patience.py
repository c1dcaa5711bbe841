"""How long: slow senders, slow readers, silence, and whose time it is (row 13)."""

from __future__ import annotations

import contextlib
import socket
import ssl
import time
from pathlib import Path

import pytest
import trustme

from service import smtp
from tests.conftest import Client
from tests.fakes import END_OF_DATA, HANG, FakeNextHop

MAIL = b"Subject: hi\r\n\r\nmeeting\r\n"
TIMED_OUT = b"421 4.4.2 Timeout, closing connection"


def test_row_13_silence_ends_in_421_at_each_step(running_daemon):
    hop = FakeNextHop()
    running = running_daemon(hop, limits={"idle_s": 0.3})
    for lines in (
        [],
        [b"EHLO x"],
        [b"EHLO x", b"MAIL FROM:<a@b>"],
        [b"EHLO x", b"MAIL FROM:<a@b>", b"RCPT TO:<a@b>", b"DATA"],
    ):
        with running.client() as client:
            for line in [b"", *lines]:
                client.send(line + b"\r\n" if line else b"")
                client.reply()
            assert client.reply() == b"421 4.4.2 Timeout, closing connection"
            assert client.closed()
    assert hop.messages == []


def test_row_13_a_client_that_never_reads_is_cut_off(running_daemon):
    running = running_daemon(limits={"idle_s": 0.2})
    with running.client() as client:
        client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
        client.greet()
        with pytest.raises(OSError):
            while True:
                client.send(b"MAIL FROM:<a@b>\r\nRSET\r\n" * 4000)


def test_scoring_and_relaying_do_not_count_as_the_clients_silence(running_daemon):
    hop = FakeNextHop(dot=HANG)
    running = running_daemon(hop, limits={"idle_s": 0.3})
    running.scorer.gate.clear()
    running.scorer.entered.clear()
    with running.client() as client:
        client.begin()
        client.send(MAIL + b".\r\n")
        assert running.scorer.entered.wait(30)
        time.sleep(0.6)  # twice the idle time
        running.scorer.gate.set()
        assert hop.step_reached[END_OF_DATA].wait(30)
        time.sleep(0.6)
        running.loop.loop.call_soon_threadsafe(hop.release.set)
        assert client.reply() == b"250 2.0.0 Ok: late"


def drip(client: Client, data: bytes, pause: float = 0.04) -> None:
    """Byte by byte, until all is sent or the other side has had enough."""
    try:
        for byte in data:
            client.send(bytes([byte]))
            time.sleep(pause)
    except OSError:
        pass


@pytest.mark.parametrize("before", [[], [b"EHLO x"], [b"EHLO x", b"MAIL FROM:<a@b>"]], ids=len)
def test_row_13_a_command_that_comes_byte_by_byte_has_the_time_of_a_silence(running_daemon, before):
    running = running_daemon(limits={"idle_s": 0.5})
    with running.client() as client:
        assert client.reply().startswith(b"220")
        for line in before:
            assert client.ask(line).startswith(b"250")
        drip(client, b"NOOP " + b"x" * 20)
        assert client.reply() == TIMED_OUT
        assert client.closed()
    running.wait_until_empty()


def test_row_13_content_that_comes_byte_by_byte_has_the_time_of_a_message(running_daemon):
    hop = FakeNextHop()
    running = running_daemon(hop, limits={"data_s": 0.5})
    with running.client() as client:
        client.begin()
        drip(client, b"Subject: slow" * 3)
        assert client.reply() == TIMED_OUT
        assert client.closed()
    running.wait_until_empty()
    assert (hop.messages, hop.torn) == ([], [])


def test_row_13_each_byte_of_content_is_a_sign_of_life(running_daemon):
    hop = FakeNextHop()
    running = running_daemon(hop, limits={"idle_s": 1})
    with running.client() as client:
        client.begin()
        drip(client, MAIL + b".\r\n", 0.05)  # twice the idle time and more
        assert client.reply().startswith(b"250")
    assert len(hop.messages) == 1


def test_row_13_the_time_of_a_message_ends_a_large_one_too_big_as_well(running_daemon):
    """Draining what is over the limit is patience, too, and has the same end."""
    running = running_daemon(limits={"data_s": 0.5, "message_bytes": 65_536})
    with running.client() as client:
        client.begin()
        client.send(b"x" * 200_000)
        drip(client, b"x" * 40)
        assert client.reply() == TIMED_OUT
        assert client.closed()
    running.wait_until_empty()


def test_row_13_a_client_that_chats_has_the_time_of_a_session(running_daemon):
    running = running_daemon(limits={"session_s": 1})
    with running.client() as client:
        client.greet()
        replies = [b"250"]
        while replies[-1].startswith(b"250"):
            time.sleep(0.05)
            try:
                client.send(b"NOOP\r\n")
            except ConnectionError:
                break
            replies.append(client.reply())
        assert replies[-1] == TIMED_OUT and 1 < len(replies) < 30
    running.wait_until_empty()


@pytest.mark.parametrize("slow", ["content", "scoring", "next-hop"])
def test_row_13_the_time_of_a_session_never_ends_a_message_under_way(running_daemon, slow):
    hop = FakeNextHop(dot=HANG if slow == "next-hop" else b"250 2.0.0 Ok: late")
    running = running_daemon(hop, limits={"session_s": 1})
    with running.client() as client:
        client.begin()
        if slow == "scoring":
            running.scorer.gate.clear()
        if slow == "content":
            drip(client, MAIL, 0.06)
        client.send(MAIL + b".\r\n")
        if slow == "next-hop":
            assert hop.step_reached[END_OF_DATA].wait(30)
        if slow != "content":
            time.sleep(1.5)
        running.scorer.gate.set()
        running.loop.loop.call_soon_threadsafe(hop.release.set)
        assert client.reply() == b"250 2.0.0 Ok: late"
        assert client.reply() == TIMED_OUT, "and then it has been long enough"
        assert client.closed()
    running.wait_until_empty()
    assert len(hop.messages) == 1


@pytest.mark.parametrize("step", ["greeting", "EHLO", "MAIL", "RCPT", "DATA"])
def test_row_13_the_time_that_the_next_hop_takes_is_not_the_clients(running_daemon, step):
    hop = FakeNextHop(**{step: [HANG, FakeNextHop().script[step]]})
    running = running_daemon(hop, limits={"idle_s": 0.4})
    with running.client() as client:
        assert client.reply().startswith(b"220")
        lines = [b"EHLO x", b"MAIL FROM:<a@b>", b"RCPT TO:<a@b>", b"DATA", MAIL + b"."]
        asked = {"greeting": 0, "EHLO": 0, "MAIL": 1, "RCPT": 2, "DATA": 4}[step]
        for line in lines[:asked]:
            assert client.ask(line)[:3] in (b"250", b"354")
        client.send(lines[asked] + b"\r\n")
        assert hop.step_reached[step].wait(30)
        time.sleep(0.9)
        running.loop.loop.call_soon_threadsafe(hop.release.set)
        assert not client.reply().startswith(b"421"), "twice the idle time has passed, but not by its fault"


def narrow(running) -> Client:
    """A client that takes a few KB before the daemon has to wait for it to read."""
    client = running.client()
    client.greet()
    (connection,) = running.daemon.listener.connections
    connection._writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    return client


LONG = b"\r\n".join([b"450-" + b"x" * 1900] * 400 + [b"450 x"])


def test_row_13_a_client_that_does_not_read_a_long_reply_is_cut_off(running_daemon):
    hop = FakeNextHop(MAIL=LONG)
    running = running_daemon(hop, limits={"idle_s": 0.5})
    with narrow(running) as client:
        client.send(b"MAIL FROM:<a@b>\r\n" * 50)
        running.wait_until_empty()
    assert hop.lines.count(b"MAIL FROM:<a@b>") == 1, "nobody is asked again before the reply is taken"
    hop.script["MAIL"] = b"250 ok"
    running.check_alive()


def test_row_13_a_client_that_does_not_read_our_last_words_gives_its_place_back(running_daemon):
    """close() alone would wait for it as long as it likes, behind the back of `limits.connections`."""
    hop = FakeNextHop(MAIL=[LONG, b"250 ok"])
    running = running_daemon(hop, limits={"connections": 1, "idle_s": 0.5})
    with narrow(running) as client:
        (connection,) = running.daemon.listener.connections
        transport = connection._writer.transport
        transport.set_write_buffer_limits(high=10**6)  # so that QUIT is read before all has been taken
        client.send(b"MAIL FROM:<a@b>\r\nQUIT\r\n")
        while not connection.task().done():
            time.sleep(0.01)
        assert transport.get_write_buffer_size() > 100_000
        with running.client() as second:
            assert second.reply().startswith(b"421 4.3.2"), "the socket is open, so the place is taken"
        running.wait_until_empty()
        assert transport.get_write_buffer_size() == 0
    running.check_alive()


def test_row_13_a_goodbye_that_cannot_be_sent_is_waited_for_no_longer_than_a_silence(running_daemon):
    running = running_daemon(limits={"idle_s": 1})
    with narrow(running) as client:
        client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        (connection,) = running.daemon.listener.connections
        to_client = connection._writer.get_extra_info("socket")._sock
        for _ in range(4):
            with contextlib.suppress(BlockingIOError):
                while True:
                    to_client.send(b"x" * 4096)
            time.sleep(0.1)  # What was under way has arrived, and there may be room again.
        assert not connection._writer.is_closing(), "nothing fits any more, and nothing waits in the transport yet"
        running.wait_until_empty()
    running.check_alive()


def test_row_13_our_last_words_reach_a_client_that_reads_slowly(running_daemon):
    hop = FakeNextHop(MAIL=LONG)
    running = running_daemon(hop)
    with narrow(running) as client:
        (connection,) = running.daemon.listener.connections
        connection._writer.transport.set_write_buffer_limits(high=10**6)
        client.send(b"MAIL FROM:<a@b>\r\nQUIT\r\n")
        while not connection.task().done():
            time.sleep(0.01)
        assert client.reply() == LONG
        assert client.reply() == b"221 2.0.0 Bye"
        assert client.closed()
    running.wait_until_empty()


def test_row_13_a_network_error_is_a_client_that_left(running_daemon):
    """No route, timed out: such an OSError is no ConnectionError. It must not be taken for a fault of ours."""
    hop = FakeNextHop(dot=HANG)
    running = running_daemon(hop)
    with running.client() as client:
        client.begin()
        client.send(MAIL + b".\r\n")
        assert hop.step_reached[END_OF_DATA].wait(30)
        (connection,) = running.daemon.listener.connections
        running.loop.loop.call_soon_threadsafe(
            connection._writer.transport._force_close, OSError(113, "No route to host")
        )
        while connection.transport is not None:
            time.sleep(0.01)
        assert running.daemon.listener.connections == {connection}, "its message is still under way, and stop() waits"
        running.loop.loop.call_soon_threadsafe(hop.release.set)
        running.wait_until_empty()
    assert [line["event"] for line in running.log if line["level"] == "error"] == []
    assert len(hop.messages) == 1
    running.check_alive()


def test_row_13_clients_that_only_greet_hold_no_connections_to_the_next_hop(running_daemon):
    """Many at once, so that none finds the connection of another in the pool."""

    class Late(FakeNextHop):
        async def _session(self, reader, writer):
            await self.release.wait()
            await super()._session(reader, writer)

    hop = Late()
    running = running_daemon(hop, next_hop={"idle_connections": 2})
    clients = [running.client() for _ in range(5)]
    try:
        for client in clients:
            client.send(b"EHLO x\r\n")
        while hop.connections < 5:
            time.sleep(0.01)
        running.loop.loop.call_soon_threadsafe(hop.release.set)
        for client in clients:
            assert client.reply().startswith(b"220") and client.reply().startswith(b"250")
        while len(running.daemon.next_hop.ends) > 2:
            time.sleep(0.01)
    finally:
        for client in clients:
            client.close()


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("certificate") / "ours.pem"
    trustme.CA().issue_cert("filter.example").private_key_and_cert_chain_pem.write_to_path(str(file))
    return file


@pytest.mark.parametrize("how", ["silent", "byte by byte", "garbage", "close", "half-close", "reset"])
def test_row_13_a_handshake_that_comes_to_nothing_gives_its_place_back(running_daemon, monkeypatch, certificate, how):
    monkeypatch.setattr(smtp, "_HANDSHAKE_S", 0.5)
    running = running_daemon(listen={"port": 0, "tls": "may", "tls_certificate": certificate})
    with running.client() as client:
        client.greet()
        assert client.ask(b"STARTTLS").startswith(b"220")
        if how == "byte by byte":
            drip(client, b"\x16\x03\x01\x02\x00\x01" + b"\0" * 30)
        elif how == "garbage":
            client.send(b"EHLO x\r\nMAIL FROM:<a@b>\r\n")
        elif how == "close":
            client.close()
        elif how == "half-close":
            client.socket.shutdown(socket.SHUT_WR)
        elif how == "reset":
            client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            client.close()
        running.wait_until_empty()
    running.check_alive()


def test_row_13_a_client_that_does_not_read_has_no_more_time_under_tls(running_daemon, certificate):
    hop = FakeNextHop(MAIL=LONG)
    tls = {"port": 0, "tls": "may", "tls_certificate": certificate}
    running = running_daemon(hop, limits={"idle_s": 0.5}, listen=tls)
    with narrow(running) as client:
        assert client.ask(b"STARTTLS").startswith(b"220")
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        client.encrypt(context)
        assert client.ask(b"EHLO x").startswith(b"250")
        client.send(b"MAIL FROM:<a@b>\r\n" * 50)
        running.wait_until_empty()
    hop.script["MAIL"] = b"250 ok"
    running.check_alive()
