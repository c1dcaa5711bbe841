"""The SMTP side of a real daemon with a fake scorer: dialogues, clients that leave, faults, journal and shutdown."""

from __future__ import annotations

import asyncio
import os
import re
import socket
from collections import defaultdict
from pathlib import Path

import pytest

from service.relay import Relay
from spamguard import headers
from tests.fakes import END_OF_DATA, HANG, FakeNextHop

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
