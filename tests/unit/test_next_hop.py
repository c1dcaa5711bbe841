"""The connections to the next hop: kept, cleaned, replaced when dead, over TCP and Unix sockets."""

from __future__ import annotations

import asyncio
import socket
import time

import pytest

from tests.fakes import DROP, EHLO, END_OF_DATA, GREETING, HANG, FakeNextHop

MAIL = b"Subject: hi\r\n\r\nmeeting\r\n"


def send(client, number: int = 0) -> bytes:
    assert client.ask(b"MAIL FROM:<m%d@b>" % number).startswith(b"250")
    assert client.ask(b"RCPT TO:<c@d>").startswith(b"250")
    assert client.ask(b"DATA").startswith(b"354")
    return client.ask(MAIL + b".")


def close_idle(running, hop) -> None:
    """The next hop closes all its connections, and the daemon gets to see it."""

    async def close() -> None:
        for task in tuple(hop._tasks):
            task.cancel()

    running.loop.run(close())
    pool = running.daemon.next_hop
    while any(not one.dead for one, _ in pool._idle):
        time.sleep(0.01)


def test_one_connection_serves_many_clients(running_daemon):
    hop = FakeNextHop()
    running = running_daemon(hop)
    for number in range(5):
        with running.client() as client:
            client.greet()
            assert send(client, number).startswith(b"250")
            assert client.ask(b"QUIT").startswith(b"221")
    assert (hop.connections, len(hop.messages)) == (1, 5)
    assert hop.lines.count(b"EHLO filter.example") == 1
    assert b"RSET" not in hop.lines, "the dot has ended each transaction"


def test_only_an_open_transaction_holds_a_connection(running_daemon):
    hop = FakeNextHop()
    running = running_daemon(hop)
    clients = [running.client() for _ in range(20)]
    for client in clients:
        client.greet()
    assert hop.connections == 1
    for client in clients[:3]:
        client.ask(b"MAIL FROM:<a@b>")
    assert hop.connections == 3
    for client in clients:
        client.close()


def test_what_a_client_left_open_is_reset_before_the_next_one_comes(running_daemon):
    hop = FakeNextHop(RCPT=[b"550 no", b"250 ok"])
    running = running_daemon(hop)
    with running.client() as client:
        client.greet()
        client.ask(b"XFORWARD NAME=spike")
        client.ask(b"MAIL FROM:<one@b>")
        assert client.ask(b"RCPT TO:<c@d>").startswith(b"550")
        assert client.ask(b"RSET").startswith(b"250")
    with running.client() as client:
        client.greet()
        assert send(client).startswith(b"250")
    assert hop.connections == 1
    at = hop.lines.index(b"RSET")
    assert hop.lines[at - 1 : at + 2] == [b"RCPT TO:<c@d>", b"RSET", b"MAIL FROM:<m0@b>"]
    assert hop.messages[0].xforward == []


@pytest.mark.parametrize("step", ["MAIL", "RCPT", "DATA"])
def test_a_kept_connection_that_is_dead_is_replaced_unnoticed(running_daemon, step):
    """The server goes away between two messages, or anywhere before DATA is taken; the client never hears of it."""
    hop = FakeNextHop()
    running = running_daemon(hop)
    with running.client() as client:
        client.greet()
        assert send(client, 1).startswith(b"250")
        client.ask(b"XFORWARD NAME=spike")
        hop.script[step] = [DROP, FakeNextHop().script[step]]
        assert send(client, 2).startswith(b"250")
    assert [message.mail for message in hop.messages] == [b"MAIL FROM:<m1@b>", b"MAIL FROM:<m2@b>"]
    assert hop.messages[1].rcpt == [b"RCPT TO:<c@d>"]
    assert hop.messages[1].xforward == [b"XFORWARD NAME=spike"]
    assert hop.connections == 2


def test_what_strangers_do_wrong_is_not_laid_to_the_next_clients_charge(running_daemon):
    """Postfix slows down and hangs up on who makes errors and brings no mail; a dictionary attack makes many."""
    hop = FakeNextHop(RCPT=b"550 5.1.1 nobody")
    running = running_daemon(hop)
    with running.client() as client:
        client.greet()
        client.ask(b"MAIL FROM:<a@b>")
        for number in range(10):
            assert client.ask(b"RCPT TO:<%d@x>" % number).startswith(b"550")
        client.ask(b"QUIT")
    hop.script["RCPT"] = b"250 ok"
    with running.client() as client:
        client.greet()
        assert send(client).startswith(b"250")
        assert hop.connections == 2
        assert send(client).startswith(b"250")
    assert hop.connections == 2


def test_connections_that_were_closed_while_idle_are_not_tried_again(running_daemon):
    hop = FakeNextHop()
    running = running_daemon(hop)
    with running.client() as client:
        client.greet()
        assert send(client, 1).startswith(b"250")
        close_idle(running, hop)
        assert send(client, 2).startswith(b"250")
    assert hop.connections == 2


def test_what_is_refused_when_said_again_stays_with_the_sender(running_daemon):
    hop = FakeNextHop(MAIL=[b"250 ok", b"451 4.3.0 not now"], RCPT=[DROP, b"250 ok"])
    with running_daemon(hop).client() as client:
        client.greet()
        client.ask(b"MAIL FROM:<a@b>")
        assert client.ask(b"RCPT TO:<c@d>").startswith(b"451 4.4.2")
    assert hop.messages == []


def test_a_message_is_never_sent_twice_by_ourselves(running_daemon):
    """Lost between dot and reply: it may have been taken, so only the sender may try again."""
    hop = FakeNextHop(dot=DROP)
    with running_daemon(hop).client() as client:
        client.greet()
        assert send(client).startswith(b"451 4.4.2")
    assert hop.lines.count(b"DATA") == 1


def test_a_word_out_of_turn_ends_a_kept_connection(running_daemon):
    """A reply that nobody asked for must not be taken for the reply to the next command."""
    hop = FakeNextHop(dot=[b"250 2.0.0 Ok\r\n250 one too many", b"250 2.0.0 Ok"])
    running = running_daemon(hop)
    with running.client() as client:
        client.greet()
        assert send(client, 1) == b"250 2.0.0 Ok"
        hop.script["MAIL"] = b"550 5.7.1 not you"
        assert client.ask(b"MAIL FROM:<x@b>") == b"550 5.7.1 not you"
    assert hop.connections == 2


def test_an_early_refusal_of_the_content_comes_back_as_it_is(running_daemon):
    """It has heard enough of 20 MB and says so before the end."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        running = running_daemon(
            next_hop={"host": "127.0.0.1", "port": server.getsockname()[1]}, limits={"memory_bytes": 65_536}
        )
        client = running.client()
        client.send(b"EHLO x\r\nMAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\nDATA\r\n")
        there, _ = server.accept()
        file = there.makefile("rb")
        there.sendall(b"220 x\r\n")
        for reply in (EHLO, b"250 ok", b"250 ok", b"354 go"):
            if reply == b"354 go":
                client.send(b"x" * 19_000_000 + b"\r\n.\r\n")
            file.readline()
            there.sendall(reply + b"\r\n")
        file.read(100_000)
        there.sendall(b"552 5.3.4 enough\r\n")
        replies = b""
        while b"552" not in replies and b"451" not in replies:
            replies += client.reply() + b"\n"
        assert replies.endswith(b"552 5.3.4 enough\n")
        client.close()
        there.close()


def test_idle_connections_are_few_and_do_not_stay(running_daemon):
    hop = FakeNextHop()
    running = running_daemon(hop, next_hop={"idle_connections": 2, "idle_s": 0.3})
    clients = [running.client() for _ in range(4)]
    for client in clients:
        client.greet()
        client.ask(b"MAIL FROM:<a@b>")
    for client in clients:
        client.ask(b"RSET")
        client.close()
    assert hop.connections == 4
    assert len(running.daemon.next_hop._idle) == 2
    assert hop.step_reached["QUIT"].wait(30)
    while running.daemon.next_hop._idle:
        time.sleep(0.01)


def test_a_unix_socket_is_a_next_hop(running_daemon, tmp_path):
    hop = FakeNextHop(lmtp=True, unix=tmp_path / "hop")
    with running_daemon(hop).client() as client:
        client.greet()
        assert send(client).startswith(b"250")
    assert hop.lines[0] == b"LHLO filter.example"


@pytest.mark.parametrize("reply", [b"421 4.3.2 going down", b"421 4.4.2 idle too long"])
def test_421_to_the_first_word_on_a_kept_connection_is_its_own_affair(running_daemon, reply):
    hop = FakeNextHop(MAIL=[b"250 ok", reply, b"250 ok"])
    with running_daemon(hop).client() as client:
        client.greet()
        assert send(client, 1).startswith(b"250")
        assert send(client, 2).startswith(b"250")
    assert hop.connections == 2


def test_a_slow_taker_is_given_up_after_the_time_for_data(running_daemon):
    """It says 354 and then never reads: the content does not fit into the buffers on the way."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        table = {"host": "127.0.0.1", "port": server.getsockname()[1], "data_timeout_s": 0.5}
        with running_daemon(next_hop=table).client() as client:
            client.send(b"EHLO x\r\nMAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\nDATA\r\n")
            there, _ = server.accept()
            file = there.makefile("rb")
            there.sendall(b"220 x\r\n")
            for reply in (EHLO, b"250 ok", b"250 ok"):
                file.readline()
                there.sendall(reply + b"\r\n")
            client.send(b"x" * 19_000_000 + b"\r\n.\r\n")
            file.readline()
            there.sendall(b"354 go\r\n")
            replies = [client.reply() for _ in range(6)]
            assert replies[-1].startswith(b"451 4.4.2"), replies
            there.close()


def test_the_end_of_data_is_the_only_promise(running_daemon):
    """354 and an early 250 in one packet: nothing has been taken yet, so nothing may be promised."""
    hop = FakeNextHop(DATA=b"354 go\r\n250 2.0.0 taken", dot=DROP)
    with running_daemon(hop).client() as client:
        client.greet()
        assert send(client).startswith(b"451")
    assert END_OF_DATA in hop.step_reached


def test_a_transaction_that_lost_its_connection_never_goes_on_upon_anothers(running_daemon):
    """While nothing can be reached the recipient is put off; then the whole of it is said again, or nothing."""
    hop = FakeNextHop()
    running = running_daemon(hop)
    with running.client() as one, running.client() as two:
        for client in (one, two):
            client.greet()
        one.ask(b"XFORWARD NAME=spike")
        assert one.ask(b"MAIL FROM:<one@b>").startswith(b"250")
        assert two.ask(b"MAIL FROM:<two@b>").startswith(b"250")
        hop.script["RCPT"] = DROP
        hop.script[GREETING] = DROP
        assert one.ask(b"RCPT TO:<c@d>").startswith(b"451")
        hop.script |= {"RCPT": b"250 ok", GREETING: b"220 back"}
        assert two.ask(b"RSET").startswith(b"250"), "its connection is in the pool now"
        assert one.ask(b"RCPT TO:<c@d>").startswith(b"250")
        assert one.ask(b"DATA").startswith(b"354")
        assert one.ask(MAIL + b".").startswith(b"250")
    (message,) = hop.messages
    assert (message.mail, message.rcpt) == (b"MAIL FROM:<one@b>", [b"RCPT TO:<c@d>"])
    assert message.xforward == [b"XFORWARD NAME=spike"]


@pytest.mark.parametrize("word", [b"XFORWARD ADDR=192.0.2.9 PORT=bad", b"MAIL FROM:<a@b>"])
def test_what_was_refused_may_have_left_something_behind(running_daemon, word):
    """Postfix takes the attributes of XFORWARD one by one, up to the bad one."""
    hop = FakeNextHop(XFORWARD=b"501 5.5.4 Bad PORT", MAIL=[b"451 4.3.0 not now", b"250 ok"])
    running = running_daemon(hop)
    with running.client() as client:
        client.greet()
        assert client.ask(word)[:1] in b"45"
        if word.startswith(b"XF"):
            hop.script["MAIL"] = b"250 ok"
        assert client.ask(b"RSET").startswith(b"250")
    with running.client() as client:
        client.greet()
        assert send(client).startswith(b"250")
    at = hop.lines.index(word)
    assert hop.lines[at + 1] == b"RSET"


def test_a_passing_refusal_of_ehlo_is_no_reason_for_helo(running_daemon):
    hop = FakeNextHop(EHLO=[b"451 4.3.2 busy", EHLO])
    with running_daemon(hop).client() as client:
        assert client.greet().startswith(b"250")
        assert client.ask(b"MAIL FROM:<a@b> BODY=8BITMIME").startswith(b"250")
    assert b"HELO filter.example" not in hop.lines


def test_what_the_next_hop_could_do_last_is_offered_while_it_is_down(running_daemon):
    hop = FakeNextHop()
    running = running_daemon(hop)
    with running.client() as client:
        known = client.greet()
    close_idle(running, hop)
    hop.script[GREETING] = DROP
    with running.client() as client:
        assert client.greet() == known
        assert client.ask(b"MAIL FROM:<a@b> SMTPUTF8").startswith(b"451 4.4.1")


def test_refused_content_is_an_error_like_any_other(running_daemon):
    hop = FakeNextHop(dot=b"554 5.7.1 no")
    with running_daemon(hop).client() as client:
        client.greet()
        for number in range(8):
            assert send(client, number).startswith(b"554")
    assert hop.connections == 2


def test_the_reply_does_not_wait_for_the_next_hop_to_forget(running_daemon):
    hop = FakeNextHop(RSET=HANG)
    with running_daemon(hop, policy={"spam": "quarantine"}).client() as client:
        client.begin()
        client.send(b"viagra\r\n.\r\n")
        assert client.reply().startswith(b"250 2.0.0 Ok: held as ")
        assert hop.step_reached["RSET"].wait(30)


def test_a_client_that_leaves_while_all_is_said_again_leaves_no_connection(running_daemon):
    hop = FakeNextHop()
    running = running_daemon(hop)
    with running.client() as client:
        client.greet()
        assert client.ask(b"MAIL FROM:<a@b>").startswith(b"250")
        hop.step_reached["MAIL"].clear()
        hop.script |= {"RCPT": DROP, "MAIL": HANG}
        client.send(b"RCPT TO:<c@d>\r\n")
        assert hop.step_reached["MAIL"].wait(30)
    while running.daemon.next_hop.ends:
        time.sleep(0.01)


def test_a_next_hop_that_takes_its_time_at_each_step_is_given_up(running_daemon):
    """Each reply is in time, but all of them together would keep the client waiting at EHLO."""

    class Slow(FakeNextHop):
        async def _play(self, step, writer):
            await asyncio.sleep(0.35)
            return await super()._play(step, writer)

    hop = Slow(EHLO=b"502 5.5.1 what?", HELO=b"502 5.5.1 what?")
    running = running_daemon(hop, next_hop={"connect_timeout_s": 0.3, "reply_timeout_s": 0.5})
    with running.client() as client:
        client.greet()
    assert b"HELO filter.example" in hop.lines
    assert [line["cause"] for line in running.log if line["event"] == "delivery"] == ["greeting: timeout"]
