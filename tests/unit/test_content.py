"""A message on the wire, rows 1, 2 and 29: line ends and dots, nothing lost and nothing smuggled in."""

from __future__ import annotations

import asyncio
import itertools
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from service import content
from spamguard import headers
from tests.fakes import FakeNextHop

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
