"""What does not fit into memory waits in a file without a name: same bytes, nothing left behind, faults temporary."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from service import content
from service.content import Content, Spool
from spamguard import headers
from tests.fakes import FakeNextHop

HEAD = b"Subject: large\r\n\r\n"
LARGE = HEAD + b"".join(b".%07d " % number * 9 + b"\r\n" for number in range(12_000))
SMALL_MEMORY = {"memory_bytes": 65_536, "message_bytes": 8_000_000}


def stuffed(data: bytes) -> bytes:
    return b"".join(content.wire([data]))


def open_files(folder: Path) -> list[str]:
    """The files of this process that have been opened in a folder."""
    found = []
    for link in Path("/proc/self/fd").iterdir():
        try:
            found.append(str(link.readlink()))
        except OSError:
            continue
    return [name for name in found if name.startswith(f"{folder}/")]


@pytest.mark.parametrize("word", [b"", b"viagra\r\n"], ids=["ham", "spam"])
def test_a_large_message_arrives_as_it_was_sent(running_daemon, tmp_path, word):
    hop = FakeNextHop()
    running = running_daemon(hop, limits=SMALL_MEMORY)
    mail = LARGE + word
    with running.client() as client:
        client.begin()
        client.send(stuffed(mail))
        assert client.reply() == b"250 2.0.0 Ok: queued as NEXT1"
    assert headers.strip(hop.messages[0].data) == mail
    assert running.scorer.batches[-1] == [mail], "all of it was judged"
    assert b"X-Spam-Flag: YES" in hop.messages[0].data[:200] if word else b"Yes" not in hop.messages[0].data[:200]
    assert open_files(tmp_path) == []


@pytest.mark.parametrize("policy", [{"spam": "quarantine"}, {}], ids=["quarantine", "maildir"])
def test_a_large_message_is_written_as_it_was_sent(running_daemon, tmp_path, policy):
    running = running_daemon(limits=SMALL_MEMORY, policy=policy)
    mail = LARGE + b"viagra\r\n"
    with running.client() as client:
        client.begin()
        client.send(stuffed(mail))
        assert client.reply().startswith(b"250")
    if policy:
        (folder,) = (tmp_path / "quarantine/held").iterdir()
        assert (folder / "message.eml").read_bytes() == mail
        assert hashlib.sha256(mail).hexdigest() in (folder / "envelope.json").read_text()
    else:
        (file,) = (tmp_path / "Maildir/.Junk/new").iterdir()
        assert file.read_bytes().endswith(mail.replace(b"\r\n", b"\n"))
        assert file.name.endswith(f",S={file.stat().st_size}")


def test_row_1_stray_line_ends_are_mended_in_the_spool_too(running_daemon):
    hop = FakeNextHop()
    strays = b"a\nb\rc\r\r\n.\n..\r\n" * 20_000
    running = running_daemon(hop, limits=SMALL_MEMORY)
    with running.client() as client:
        client.begin()
        client.send((b"\r\n" + HEAD + strays).replace(b"\r\n.", b"\r\n..")[2:] + b".\r\n")
        assert client.reply().startswith(b"250")
    (message,) = hop.messages
    assert message.wire is not None
    wire = b"\r\n" + message.wire
    assert wire.count(b"\r\n.\r\n") == 1 and wire.endswith(b"\r\n.\r\n")
    bare = wire.replace(b"\r\n", b"")
    assert b"\r" not in bare and b"\n" not in bare
    assert headers.strip(message.data) == content.normalised(HEAD + strays)[0]
    assert running.log[-1]["stray_line_ends"] is True


def test_row_1_stray_line_ends_are_refused_where_they_shall_be(running_daemon):
    hop = FakeNextHop()
    listen = {"port": 0, "stray_line_ends": "reject"}
    with running_daemon(hop, listen=listen).client() as client:
        client.begin()
        assert client.ask(b"one\ntwo\r\n.").startswith(b"550 5.6.0")
        client.send(b"NOOP\n")
        assert client.reply().startswith(b"501 5.5.2")
        assert client.ask(b"NOOP").startswith(b"250")
    assert hop.messages == []


def test_row_12_a_header_that_does_not_fit_into_memory_is_refused(running_daemon):
    """Its verdict fields could not be taken off before it is passed on."""
    hop = FakeNextHop()
    running = running_daemon(hop, limits=SMALL_MEMORY)
    with running.client() as client:
        client.begin()
        assert client.ask(b"X-Filler: x\r\n" * 6000 + b"X-Spam-Flag: NO\r\n\r\nbody\r\n.").startswith(
            b"552 5.3.4 Message header"
        )
        for line in (b"MAIL FROM:<a@b>", b"RCPT TO:<c@d>"):
            assert client.ask(line).startswith(b"250")
        assert client.ask(b"DATA").startswith(b"354")
        head = b"X-Filler: x\r\n" * 4000
        assert client.ask(head + b"X-Spam-Flag: NO\r\n\r\n" + b"x" * 100_000 + b"\r\n.").startswith(b"250")
    assert b"X-Spam-Flag" not in hop.messages[0].data


@pytest.mark.parametrize(("number", "reply"), [(28, b"452 4.3.1"), (5, b"451 4.3.0"), (24, b"451 4.3.0")])
def test_row_31_a_spool_that_cannot_be_written_is_temporary(running_daemon, tmp_path, monkeypatch, number, reply):
    def broken(_self, _data):
        raise OSError(number, os.strerror(number))

    hop = FakeNextHop()
    running = running_daemon(hop, limits=SMALL_MEMORY)
    with running.client() as client:
        client.begin()
        monkeypatch.setattr(Spool, "write", broken)
        client.send(stuffed(LARGE))
        got = client.reply()
        assert got.startswith(reply) and str(tmp_path).encode() not in got
        monkeypatch.undo()
        for line in (b"MAIL FROM:<a@b>", b"RCPT TO:<c@d>"):
            assert client.ask(line).startswith(b"250")
        assert client.ask(b"DATA").startswith(b"354")
        client.send(stuffed(LARGE))
        assert client.reply().startswith(b"250"), "the same session goes on when there is room again"
    assert len(hop.messages) == 1 and open_files(tmp_path) == []


def test_row_31_a_folder_that_has_gone_is_temporary(running_daemon, tmp_path):
    hop = FakeNextHop()
    running = running_daemon(hop, state_dir=str(tmp_path / "state"), limits=SMALL_MEMORY)
    moved = (tmp_path / "state").rename(tmp_path / "gone")
    with running.client() as client:
        client.begin()
        client.send(stuffed(LARGE))
        assert client.reply().startswith(b"451 4.3.0")
    assert moved.is_dir() and hop.messages == []


def test_row_16_a_client_that_leaves_in_the_middle_leaves_no_file(running_daemon, tmp_path):
    hop = FakeNextHop()
    running = running_daemon(hop, limits=SMALL_MEMORY)
    with running.client() as client:
        client.begin()
        client.send(stuffed(LARGE)[:500_000])
        while not open_files(tmp_path):
            pass
    while running.daemon.listener.connections or open_files(tmp_path):  # a thread may let go of it last
        pass
    assert hop.messages == []


def test_pieces_never_end_between_cr_and_lf(tmp_path):
    spool = Spool(tmp_path)
    spool.write(b"\nb\r\n" + b"x" * (2**18 - 5) + b"\r\nend")
    message = Content(b"a\r", spool)
    pieces = list(message.pieces())
    assert b"".join(pieces) == b"a\r\nb\r\n" + b"x" * (2**18 - 5) + b"\r\nend"
    assert not any(piece.endswith(b"\r") for piece in pieces) and len(pieces) == 3
    assert message.size == len(b"".join(pieces)) and message.rest() == b"".join(pieces)[2:]


@pytest.mark.parametrize("protocol", ["smtp", "lmtp"])
def test_row_1_after_a_fault_of_ours_the_rest_of_the_message_is_not_read_as_commands(
    running_daemon, monkeypatch, protocol
):
    """No thread can be started for the spool: an unforeseen fault in the middle of the content."""

    def broken(*_):
        raise RuntimeError("can't start new thread")

    hop = FakeNextHop()
    running = running_daemon(hop, limits=SMALL_MEMORY, listen={"port": 0, "protocol": protocol})
    with running.client() as client:
        client.greet()
        for line in (b"MAIL FROM:<a@b>", b"RCPT TO:<c@d>", b"RCPT TO:<e@f>"):
            assert client.ask(line).startswith(b"250")
        assert client.ask(b"DATA").startswith(b"354")
        monkeypatch.setattr(Spool, "__init__", broken)
        evil = b"MAIL FROM:<evil@x>\r\nRCPT TO:<evil@x>\r\nDATA\r\nevil\r\n"
        client.send(HEAD + b"x" * 400_000 + b"\r\n" + evil + b".\r\nNOOP\r\n")
        replies = client.replies(3 if protocol == "lmtp" else 2)
        assert [reply[:9] for reply in replies] == [b"451 4.3.0"] * (len(replies) - 1) + [b"250 2.0.0"]
    assert not [line for line in hop.lines if b"evil" in line]


def test_a_spool_lets_go_of_its_file_when_nobody_has_it_any_more(tmp_path):
    spool = Spool(tmp_path)
    assert len(open_files(tmp_path)) == 1
    with spool._lock:
        spool.close()
        assert len(open_files(tmp_path)) == 1, "somebody is busy with it"
    del spool
    assert open_files(tmp_path) == []
