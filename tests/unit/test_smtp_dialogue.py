"""The SMTP side against a real daemon with a fake scorer, and a next hop that can do everything wrong."""

from __future__ import annotations

import asyncio
import itertools
import os
import re
import socket
import tempfile
from collections import defaultdict
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from service import content
from service.relay import Relay
from spamguard import headers
from tests.fakes import DROP, END_OF_DATA, GREETING, HANG, FakeNextHop

DIALOGUES = sorted((Path(__file__).parent.parent / "dialogues").glob("*.smtp"))
MAIL = b"Subject: hi\r\n\r\nmeeting\r\n"


def unescaped(text: str) -> bytes:
    return re.sub(r"\\(x..|[trn])", lambda found: eval(f'"{found[0]}"'), text).encode("latin-1")


@pytest.mark.parametrize("path", DIALOGUES, ids=lambda path: path.stem)
def test_dialogue(path, running_daemon):
    lines = [line for line in path.read_text().splitlines() if line and not line.startswith("#")]
    script: dict[str, list[bytes]] = defaultdict(list)
    for line in lines:
        if found := re.fullmatch(r"hop ([A-Za-z]+): (.*)", line):
            script[found[1]].append(unescaped(found[2]))
    lmtp = "lmtp" in path.stem
    hop = FakeNextHop(lmtp=lmtp, **script)
    listen = {"port": 0, "hostname": "filter.example", "protocol": "lmtp" if lmtp else "smtp"}
    running = running_daemon(hop, listen=listen)
    saw = []
    with running.client() as client:
        for line in lines:
            if line == "S: closed":
                assert client.closed(), line
            elif line.startswith("S: "):
                got = client.file.readline()
                assert got.endswith(b"\r\n"), line
                assert got.startswith(unescaped(line[3:])), f"{line!r} but got {got!r}"
            elif line.startswith("C- "):
                client.send(unescaped(line[3:]))
            elif line.startswith("C:"):
                client.send(unescaped(line[3:]) + b"\r\n")
            elif line.startswith("hop saw: "):
                saw.append(unescaped(line[9:]))
            elif line.startswith("hop never saw: "):
                assert not any(unescaped(line[15:]) in seen for seen in hop.lines), line
            else:
                assert re.match("hop [A-Za-z]+: ", line), f"not understood: {line}"
    if b"QUIT" in saw:
        assert hop.step_reached["QUIT"].wait(30)
    assert [line for line in hop.lines if line in saw] == saw


# The way out, and what it makes of a message


def test_ham_reaches_the_next_hop_with_our_headers_above_and_no_other_change(running_daemon):
    hop = FakeNextHop()
    with running_daemon(hop).client() as client:
        assert client.deliver(MAIL) == b"250 2.0.0 Ok: queued as NEXT1"
    (message,) = hop.messages
    assert message.data.endswith(MAIL)
    assert message.data.startswith(b"X-Spam-Status: No, score=0.0100 required=0.9000 ")
    assert headers.strip(message.data) == MAIL


def test_forged_verdicts_do_not_pass_and_are_not_scored(running_daemon):
    hop = FakeNextHop()
    running = running_daemon(hop, policy={"ham": "pass"})
    with running.client() as client:
        client.deliver(b"X-Spam-Flag: NO\r\n" + MAIL)
    assert hop.messages[0].data == MAIL
    assert running.scorer.batches[-1] == [MAIL]


@pytest.mark.parametrize(("word", "folder"), [(b"viagra", ".Junk/new"), (b"maybe", "new"), (b"meeting", "new")])
def test_without_next_hop_mail_goes_into_the_maildir(running_daemon, tmp_path, word, folder):
    with running_daemon().client() as client:
        greeting = client.greet()
        assert b"SMTPUTF8" in greeting and b"DSN" not in greeting and b"XFORWARD" not in greeting
        assert client.ask(b"XFORWARD NAME=x").startswith(b"502")
        assert client.ask(b"MAIL FROM:<a@b> RET=HDRS").startswith(b"250")
        assert client.ask(b"RCPT TO:<c@d> NOTIFY=NEVER").startswith(b"250")
        assert client.ask(b"DATA").startswith(b"354")
        assert client.ask(b"Subject: x\r\n\r\n" + word + b"\r\n.").startswith(b"250 2.0.0 Ok: delivered as ")
    (file,) = (tmp_path / "Maildir" / folder).iterdir()
    assert file.read_bytes().endswith(b"\nSubject: x\n\n" + word + b"\n")


def test_rejected_spam_leaves_nothing_at_the_next_hop(running_daemon):
    hop = FakeNextHop()
    with running_daemon(hop, policy={"spam": "reject"}).client() as client:
        assert client.deliver(b"viagra\r\n").startswith(b"550 5.7.1 ")
        assert client.ask(b"MAIL FROM:<a@b>").startswith(b"250")
        assert client.ask(b"RCPT TO:<a@b>").startswith(b"250")
        assert client.ask(b"DATA").startswith(b"354")
        assert client.ask(MAIL + b".").startswith(b"250")
    before = hop.lines[: hop.lines.index(b"MAIL FROM:<a@b>")]
    assert b"DATA" not in before and before[-1] == b"RSET"
    assert (len(hop.messages), hop.torn, hop.connections) == (1, [], 1)


def test_row_28_addresses_in_any_script_and_broken_bytes_pass_as_they_are(running_daemon):
    hop = FakeNextHop()
    paths = [
        "<grüße@例え.jp>".encode(),
        b"<nfd-u\xcc\x88@x>",
        b"<\xed\xa0\x80@x>",
        b"<\xc0\xaf\xff@x>",
        b"<" + b"l" * 300 + b"@x>",
    ]
    with running_daemon(hop).client() as client:
        client.greet()
        assert client.ask(b"MAIL FROM:" + paths[0] + b" SMTPUTF8 BODY=8BITMIME").startswith(b"250")
        for path in paths:
            assert client.ask(b"RCPT TO:" + path).startswith(b"250")
        assert client.ask(b"DATA").startswith(b"354")
        assert client.ask(MAIL + b".").startswith(b"250")
    assert hop.messages[0].mail == b"MAIL FROM:" + paths[0] + b" SMTPUTF8 BODY=8BITMIME"
    assert hop.messages[0].rcpt == [b"RCPT TO:" + path for path in paths]


# Row 1 and 2: line ends and dots

STRAY_ENDS = {
    "LF.LF": b"\n.\n",
    "LF.CRLF": b"\n.\r\n",
    "CRLF.LF": b"\r\n.\n",
    "CR.CR": b"\r.\r",
    "CR.CRLF": b"\r.\r\n",
    "CRLF.CR": b"\r\n.\r",
    "CRCRLF.CRCRLF": b"\r\r\n.\r\r\n",
    "CRLF-NUL.CRLF": b"\r\n\0.\r\n",
}


@pytest.mark.parametrize("end", STRAY_ENDS.values(), ids=STRAY_ENDS)
def test_row_1_nothing_but_crlf_dot_crlf_ends_a_message(running_daemon, end):
    hop = FakeNextHop()
    smuggled = b"MAIL FROM:<evil@x>\r\nRCPT TO:<evil@x>\r\nDATA\r\nevil\r\n"
    with running_daemon(hop).client() as client:
        assert client.deliver(b"Subject: x\r\n\r\nhi" + end + smuggled).startswith(b"250")
        assert client.ask(b"QUIT").startswith(b"221")
    (message,) = hop.messages
    assert message.wire is not None
    wire = b"\r\n" + message.wire
    assert wire.count(b"\r\n.\r\n") == 1
    assert wire.replace(b"\r\n", b"").translate(None, b"\r\n") == wire.replace(b"\r\n", b"")
    assert b"\nMAIL FROM:<evil@x>\r\n" in message.data or b" MAIL FROM:<evil@x>\r\n" in message.data
    assert b"MAIL FROM:<evil@x>" not in hop.lines


def read_in_pieces(
    wire: bytes, pieces: list[bytes], limit: int = 10**6, buffer: int = 2**16, memory: int = 10**6
) -> tuple[bytes | None, bytes]:
    """What DATA reads when the bytes arrive in these pieces, and what is left for the next command."""

    async def main() -> tuple[bytes | None, bytes]:
        reader = asyncio.StreamReader(limit=buffer)
        task = asyncio.create_task(content.read(reader, limit, memory, Path(tempfile.gettempdir())))
        for piece in pieces:
            await asyncio.sleep(0)
            reader.feed_data(piece)
        try:
            message = await task
        except content.TooBig:
            data = None
        else:
            data = b"".join(message.pieces())
            assert len(message.beginning) <= memory and message.size == len(data)
            assert message.whole == (len(data) <= memory)
        reader.feed_eof()
        return data, await reader.read()

    assert b"".join(pieces) == wire
    return asyncio.run(main())


@given(st.lists(st.sampled_from([b"\r", b"\n", b".", b"x", b"\r\n", b"\0"]), max_size=40), st.integers(5, 12))
def test_row_1_a_spooled_message_is_mended_like_one_in_memory(parts, buffer):
    wire = (b"".join(parts) + b"\r\n").replace(b"\r\n.", b"\r\n..") + b".\r\n"
    wire = b"." + wire if wire.startswith(b".") else wire
    whole, left = read_in_pieces(wire, [wire])
    assert left == b"" and whole is not None and content.normalised(whole) == (whole, False)
    for memory in (1, 3, 10):
        assert read_in_pieces(wire, [wire], buffer=buffer, memory=memory) == (whole, b"")


@pytest.mark.parametrize("end", [*STRAY_ENDS.values(), b"\r\n.\r\n"], ids=[*STRAY_ENDS, "CRLF.CRLF"])
def test_row_1_wherever_the_packets_are_cut(end):
    wire = b"hi" + end + b"x\r\n.\r\nQUIT\r\n"
    expected = read_in_pieces(wire, [wire])
    for cut in range(1, len(wire)):
        assert read_in_pieces(wire, [wire[:cut], wire[cut:]]) == expected
    assert read_in_pieces(wire, [bytes([byte]) for byte in wire]) == expected


LINES = st.lists(st.sampled_from([b"", b".", b"..", b".x", b"x", b"x.", b"\0", b"\xff" * 9]), max_size=12)


def wire_of(data: bytes) -> bytes:
    return b"".join(content.wire([data]))


@given(LINES, st.integers(8, 64), st.integers(1, 64), st.data())
def test_row_2_dots_and_lengths_survive(lines, buffer, memory, data):
    body = b"".join(line + b"\r\n" for line in lines)
    wire = wire_of(body)
    assert (b"\r\n" + wire).count(b"\r\n.\r\n") == 1
    cuts = sorted(data.draw(st.lists(st.integers(0, len(wire)), max_size=6)))
    pieces = [wire[a:b] for a, b in zip([0, *cuts], [*cuts, len(wire)], strict=True)]
    assert read_in_pieces(wire, pieces, buffer=buffer, memory=memory) == (body, b"")
    assert content.normalised(body) == (body, False)


@pytest.mark.parametrize(("lines", "fits"), [(1000, True), (1001, False), (9000, False)])
def test_row_2_stuffed_dots_are_not_counted(lines, fits):
    wire = b"..\r\n" * lines + b".\r\n"
    assert read_in_pieces(wire + b"QUIT\r\n", [wire, b"QUIT\r\n"], limit=3000, buffer=64) == (
        b".\r\n" * lines if fits else None,
        b"QUIT\r\n",
    )


@given(st.lists(st.sampled_from([b"\r", b"\n", b".", b"x", b"\r\n", b"\0"]), max_size=30).map(b"".join))
def test_row_1_what_we_send_can_be_read_in_one_way_only(data):
    once, _ = content.normalised(data)
    wire = wire_of(once)
    framed = b"\r\n" + wire
    assert framed.endswith(b"\r\n.\r\n") and framed.count(b"\r\n.\r\n") == 1
    assert b"\r" not in framed.replace(b"\r\n", b"") and b"\n" not in framed.replace(b"\r\n", b"")
    assert content.normalised(once) == (once, False)
    # Whatever the pieces, as long as none ends between CR and LF, the wire holds the same.
    cuts = [at for at in range(len(once)) if once[at - 1 : at + 1] != b"\r\n"]
    assert b"".join(content.wire([once[a:b] for a, b in itertools.pairwise([0, *cuts, len(once)])])) == wire


def test_row_2_a_hostile_start_takes_linear_time():
    body = b"\r\n" * 500_000 + b"\r" * 500_000 + b"\r\n"
    wire = wire_of(content.normalised(body)[0])
    assert read_in_pieces(wire, [wire], limit=10**7)[1] == b""


def test_lines_of_any_length_pass(running_daemon):
    hop = FakeNextHop()
    body = b"Subject: x\r\n\r\n" + b"a" * 1100 + b"\r\n" + b"b" * 3_000_000 + b"\r\n"
    with running_daemon(hop).client() as client:
        assert client.deliver(body).startswith(b"250")
    assert headers.strip(hop.messages[0].data) == body


# Row 15: the next hop misbehaves

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


# Row 16: the client vanishes


def gone(running, hop) -> None:
    """Wait until the daemon has noticed, and its session has ended."""

    async def ended() -> None:
        listener = running.daemon.listener
        assert listener is not None
        tasks = [connection.task() for connection in listener.connections]
        if tasks:
            await asyncio.wait(tasks)

    running.loop.run(ended())


@pytest.mark.parametrize("half", [False, True], ids=["close", "half-close"])
@pytest.mark.parametrize("after", ["greeting", "EHLO", "MAIL", "RCPT", "DATA", "body", "scoring"])
def test_row_16_a_client_that_leaves_before_the_hand_over_leaves_nothing(running_daemon, after, half):
    hop = FakeNextHop()
    running = running_daemon(hop)
    lines = {"EHLO": b"EHLO x", "MAIL": b"MAIL FROM:<a@b>", "RCPT": b"RCPT TO:<a@b>", "DATA": b"DATA"}
    running.scorer.gate.clear()
    running.scorer.entered.clear()
    with running.client() as client:
        client.reply()
        for step, line in lines.items():
            if after == "greeting":
                break
            client.ask(line)
            if step == after:
                break
        if after in ("body", "scoring"):
            client.send(MAIL + (b".\r\n" if after == "scoring" else b""))
        if after == "scoring":
            assert running.scorer.entered.wait(30)
        if half:
            client.socket.shutdown(socket.SHUT_WR)
            assert client.closed()
    gone(running, hop)
    running.scorer.gate.set()
    assert (hop.messages, hop.torn) == ([], [])
    assert b"DATA" not in hop.lines
    if after == "scoring":
        assert running.log[-1]["client"] == "left"


def test_row_16_a_client_that_has_said_quit_may_close_its_side_and_hears_all_replies(running_daemon):
    """Exim sends the final dot and QUIT in one packet, closes its side, and then waits for our reply."""
    hop = FakeNextHop()
    running = running_daemon(hop)
    running.scorer.gate.clear()
    running.scorer.entered.clear()
    with running.client() as client:
        client.begin()
        client.send(MAIL + b".\r\nQUIT\r\n")
        client.socket.shutdown(socket.SHUT_WR)
        assert running.scorer.entered.wait(30)
        running.scorer.gate.set()
        assert client.reply() == b"250 2.0.0 Ok: queued as NEXT1"
        assert client.reply().startswith(b"221 ")
        assert client.closed()
    assert [message.data.endswith(MAIL) for message in hop.messages] == [True]


@pytest.mark.parametrize("half", [False, True], ids=["close", "half-close"])
def test_row_16_a_client_that_leaves_during_the_hand_over_leaves_a_whole_message(running_daemon, half):
    hop = FakeNextHop(dot=HANG)
    running = running_daemon(hop)
    with running.client() as client:
        client.begin()
        client.send(MAIL + b".\r\n")
        assert hop.step_reached[END_OF_DATA].wait(30)
        if half:
            client.socket.shutdown(socket.SHUT_WR)
            running.loop.loop.call_soon_threadsafe(hop.release.set)
            assert client.reply() == b"250 2.0.0 Ok: late"
            assert client.closed()
    running.loop.loop.call_soon_threadsafe(hop.release.set)
    gone(running, hop)
    assert [message.data.endswith(MAIL) for message in hop.messages] == [True]
    assert hop.torn == []
    assert running.log[-1]["reply"] == "250 2.0.0 Ok: late"


# Row 17: scoring fails


@pytest.mark.parametrize("fault", [b"raise", b"nan", b"unpreparable"])
def test_row_17_unscored_mail_passes_and_says_so(running_daemon, fault):
    hop = FakeNextHop()
    running = running_daemon(hop)
    mail = b"X-Spam-Status: No\r\nX-Fake: " + fault + b"\r\n\r\nbody\r\n"
    with running.client() as client:
        assert client.deliver(mail) == b"250 2.0.0 Ok: queued as NEXT1"
        assert client.ask(b"NOOP").startswith(b"250")
    clean = mail.removeprefix(b"X-Spam-Status: No\r\n")
    assert hop.messages[0].data == b"X-Spamguard: unscored; reason=fault\r\n" + clean
    assert running.log[-1]["label"] == "unscored"
    assert running.daemon.journal.counters["deliver.unscored"] == 1


def test_row_17_or_stays_with_the_sender(running_daemon):
    hop = FakeNextHop()
    with running_daemon(hop, policy={"on_failure": "tempfail"}).client() as client:
        reply = client.deliver(b"X-Fake: raise\r\n\r\nbody\r\n")
        assert reply == b"451 4.7.1 Message could not be checked, try again later"
        assert client.ask(b"MAIL FROM:<a@b>").startswith(b"250")
        assert client.ask(b"RCPT TO:<a@b>").startswith(b"250")
        assert client.ask(b"DATA").startswith(b"354")
        assert client.ask(MAIL + b".").startswith(b"250")
    assert len(hop.messages) == 1


def test_row_17_a_scorer_that_hangs_costs_the_deadline(running_daemon):
    hop = FakeNextHop()
    running = running_daemon(hop, batch={"deadline_s": 0.1})
    running.scorer.gate.clear()
    with running.client() as client:
        assert client.deliver(MAIL).startswith(b"250")
    assert hop.messages[0].data == b"X-Spamguard: unscored; reason=deadline\r\n" + MAIL


def test_a_fault_of_ours_is_temporary_and_keeps_its_text_to_itself(running_daemon, monkeypatch):
    def broken(*_):
        raise RuntimeError("secret path /srv/mail")

    hop = FakeNextHop()
    running = running_daemon(hop)
    with running.client() as client:
        client.greet()
        monkeypatch.setattr(Relay, "mail", broken)
        assert client.ask(b"MAIL FROM:<a@b>") == b"451 4.3.0 Internal error, try again later"
        monkeypatch.undo()
        monkeypatch.setattr(running.daemon.pipeline, "handle", broken)
        client.ask(b"MAIL FROM:<a@b>")
        client.ask(b"RCPT TO:<a@b>")
        client.ask(b"DATA")
        assert client.ask(MAIL + b".") == b"451 4.3.0 Internal error, try again later"
        monkeypatch.undo()
        assert client.ask(b"MAIL FROM:<a@b>").startswith(b"250")
    assert [line for line in running.log if "secret" in str(line)]
    assert hop.messages == []


def test_a_full_disk_is_temporary(running_daemon, tmp_path, monkeypatch):
    running = running_daemon()

    def full(_descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with running.client() as client:
        assert client.deliver(MAIL) == b"452 4.3.1 Insufficient storage, try again later"
    assert not [path for path in (tmp_path / "Maildir").rglob("*") if path.is_file() and path.name != "maildirfolder"]


# The journal


def test_row_25_one_line_a_message_whatever_is_in_it(running_daemon):
    hop = FakeNextHop(dot=b"250 ok \x1b[31m red")
    running = running_daemon(hop)
    with running.client() as client:
        client.begin("<ü\u2028x\u202e@example>".encode(), b'<"' + b"y" * 2000 + b'"@x>')
        client.ask(b"X-Fake: raise\r\n\r\n.")
    line = running.log[-1]
    assert line["sender"] == "ü x @example"
    assert len(line["recipients"][0]) == 300
    assert line["reply"] == "250 ok  [31m red"
    assert line["failure"].startswith("fault: RuntimeError: secret path")
    assert (line["event"], line["fate"], line["ingress"], line["recipient_count"]) == (
        "message",
        "deliver",
        "smtp",
        1,
    )
    assert all(character.isprintable() for value in line.values() if isinstance(value, str) for character in value)


def test_addresses_can_be_kept_out_of_the_log(running_daemon):
    running = running_daemon(log={"format": "json", "addresses": False})
    with running.client() as client:
        client.begin(b"<secret@example.org>", b"<hidden@example.net>")
        client.ask(b".")
    assert "secret" not in str(running.log) and "hidden" not in str(running.log)
    assert running.log[-1]["recipient_count"] == 1


# Shutdown and reload, inside the process


def test_shutdown_dismisses_the_idle_and_finishes_what_is_past_data(running_daemon):
    hop = FakeNextHop(dot=HANG)
    running = running_daemon(hop)
    with running.client() as idle, running.client() as busy, running.client() as writing:
        idle.greet()
        writing.begin()
        writing.send(b"half a mess")
        busy.begin()
        busy.send(MAIL + b".\r\n")
        assert hop.step_reached[END_OF_DATA].wait(30)
        stopping = asyncio.run_coroutine_threadsafe(running.daemon.stop(), running.loop.loop)
        assert idle.reply() == b"421 4.3.2 Shutting down, try again later"
        assert idle.closed()
        running.loop.loop.call_soon_threadsafe(hop.release.set)
        assert busy.reply() == b"250 2.0.0 Ok: late"
        assert busy.reply() == b"421 4.3.2 Shutting down, try again later"
        writing.send(b"age\r\n.\r\n")
        assert writing.reply() == b"250 2.0.0 Ok: late"
        stopping.result(30)
        with pytest.raises(ConnectionRefusedError):
            running.client()
    assert len(hop.messages) == 2


def test_shutdown_breaks_off_what_takes_too_long_and_says_how_many(running_daemon):
    hop = FakeNextHop(dot=HANG)
    running = running_daemon(hop, limits={"shutdown_s": 0.1})
    with running.client() as client:
        client.begin()
        client.send(MAIL + b".\r\n")
        assert hop.step_reached[END_OF_DATA].wait(30)
        running.loop.run(running.daemon.stop())
        assert client.reply() == b"421 4.3.2 Shutting down, try again later"
    assert [line["broken_off"] for line in running.log if line["event"] == "stopped"] == [1]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lines=st.lists(LINES.map(b"\r\n".join), min_size=1, max_size=3))
def test_row_29_ham_is_the_same_on_both_sides(shared_daemon, lines):
    hop, client = shared_daemon
    for body in lines:
        body += b"\r\n"
        client.ask(b"MAIL FROM:<a@b>")
        client.ask(b"RCPT TO:<a@b>")
        client.ask(b"DATA")
        assert client.ask((b"\r\n" + body).replace(b"\r\n.", b"\r\n..")[2:] + b".").startswith(b"250")
        assert headers.strip(hop.messages.pop().data) == body


@pytest.fixture
def shared_daemon(running_daemon):
    hop = FakeNextHop()
    with running_daemon(hop).client() as client:
        client.greet()
        yield hop, client
