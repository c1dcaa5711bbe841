"""LMTP on either side: one reply for each recipient on every path, and each recipient's own fate (RFC 2033)."""

from __future__ import annotations

import json

import pytest

from tests.fakes import DROP, END_OF_DATA, HANG, FakeNextHop

MAIL = b"Subject: hi\r\n\r\nmeeting\r\n"
SPAM = b"Subject: hi\r\n\r\nviagra\r\n"
LMTP = {"port": 0, "hostname": "filter.example", "protocol": "lmtp"}
SMTP = LMTP | {"protocol": "smtp"}


def accepted(client, *recipients: bytes) -> None:
    """Up to 354."""
    client.greet()
    assert client.ask(b"MAIL FROM:<a@b>").startswith(b"250")
    for recipient in recipients:
        assert client.ask(b"RCPT TO:<%s>" % recipient).startswith(b"250")
    assert client.ask(b"DATA").startswith(b"354")


def held(tmp_path) -> list[tuple[dict, bytes]]:
    folders = sorted((tmp_path / "quarantine/held").iterdir())
    return [(json.loads((f / "envelope.json").read_text()), (f / "message.eml").read_bytes()) for f in folders]


# One reply for each recipient, whatever happens


PATHS = {
    "delivered": ({}, {}, MAIL, b"250 2.0.0 Ok"),
    "dot dropped": ({END_OF_DATA: DROP}, {}, MAIL, b"451 4.4.2"),
    "dot hangs": ({END_OF_DATA: HANG}, {}, MAIL, b"451 4.4.2"),
    "dot nonsense": ({END_OF_DATA: b"354 more"}, {}, MAIL, b"451 4.3.0"),
    "DATA dropped": ({"DATA": DROP}, {}, MAIL, b"451 4.4.2"),
    "DATA refused": ({"DATA": b"451 4.3.2 not now"}, {}, MAIL, b"451 4.3.2 not now"),
    "too big": ({}, {"limits": {"message_bytes": 65_536}}, b"x" * 70_000 + b"\r\n", b"552 5.3.4"),
    "loop": ({}, {}, b"Received: x\r\n" * 51 + MAIL, b"554 5.4.6"),
    "unscored": ({}, {"policy": {"on_failure": "tempfail"}}, b"X-Fake: raise\r\n\r\n", b"451 4.7.1"),
    "rejected": ({}, {"policy": {"spam": "reject"}}, SPAM, b"550 5.7.1"),
    "quarantined": ({}, {"policy": {"spam": "quarantine"}}, SPAM, b"250 2.0.0 Ok: held as "),
    "stray": ({}, {"listen": LMTP | {"stray_line_ends": "reject"}}, b"a\nb\r\n", b"550 5.6.0"),
}


@pytest.mark.parametrize("lmtp_behind", [True, False], ids=["lmtp behind", "smtp behind"])
@pytest.mark.parametrize(("script", "tables", "mail", "expected"), PATHS.values(), ids=PATHS)
def test_row_15_each_recipient_has_a_reply_on_every_path(running_daemon, script, tables, mail, expected, lmtp_behind):
    hop = FakeNextHop(lmtp=lmtp_behind, **script)
    timeouts = {"reply_timeout_s": 0.3, "data_timeout_s": 0.3}
    running = running_daemon(hop, **{"listen": LMTP, "next_hop": timeouts} | tables)
    with running.client() as client:
        accepted(client, b"one@x", b"two@x", b"two@x")
        client.send(mail + b".\r\n")
        replies = client.replies(3)
        assert all(reply.startswith(expected) for reply in replies), replies
        assert client.ask(b"NOOP").startswith(b"250"), "and no reply more"
        running.loop.loop.call_soon_threadsafe(hop.release.set)
        hop.script |= FakeNextHop(lmtp=lmtp_behind).script
        assert client.ask(b"MAIL FROM:<next@b>").startswith(b"250"), "the session goes on"


@pytest.mark.parametrize(
    ("replies", "expected"),
    [
        ([b"250 one", b"550 two", b"250 three"], [b"250 one", b"550 two", b"250 three"]),
        ([b"250 one", DROP], [b"250 one", b"451 4.4.2", b"451 4.4.2"]),
        ([b"250 one", HANG], [b"250 one", b"451 4.4.2", b"451 4.4.2"]),
        ([b"552 one", b"250 two", b"garbage"], [b"552 one", b"250 two", b"451 4.3.0"]),
    ],
)
def test_replies_that_do_not_come_are_failures_of_those_recipients_alone(running_daemon, replies, expected):
    hop = FakeNextHop(lmtp=True, dot=replies)
    running = running_daemon(hop, listen=LMTP, next_hop={"data_timeout_s": 0.3})
    with running.client() as client:
        accepted(client, b"one@x", b"two@x", b"three@x")
        client.send(MAIL + b".\r\n")
        got = client.replies(3)
    assert [reply[: len(want)] for reply, want in zip(got, expected, strict=True)] == expected
    line = running.log[-1]
    assert line["refused_count"] == sum(not reply.startswith(b"2") for reply in got)


def test_smtp_in_front_of_lmtp_takes_one_recipient_at_a_time(running_daemon):
    """SMTP has one reply after the dot: if two recipients fared differently, one would lose or double the mail."""
    hop = FakeNextHop(lmtp=True, dot=[b"250 one", b"552 5.2.2 two is full"])
    with running_daemon(hop, listen=SMTP).client() as client:
        client.greet()
        for recipients, final in (([b"one@x", b"two@x"], b"250 one"), ([b"two@x"], b"552 5.2.2 two is full")):
            assert client.ask(b"MAIL FROM:<a@b>").startswith(b"250")
            replies = [client.ask(b"RCPT TO:<%s>" % recipient)[:9] for recipient in recipients]
            assert replies == [b"250 2.1.5", b"452 4.5.3"][: len(recipients)]
            assert client.ask(b"DATA").startswith(b"354")
            assert client.ask(MAIL + b".") == final
    assert [message.rcpt for message in hop.messages] == [[b"RCPT TO:<one@x>"]]


def test_smtp_behind_lmtp_answers_alike_for_all(running_daemon):
    hop = FakeNextHop()
    with running_daemon(hop, listen=LMTP).client() as client:
        accepted(client, b"one@x", b"two@x")
        client.send(MAIL + b".\r\n")
        assert client.replies(2) == [b"250 2.0.0 Ok: queued as NEXT1"] * 2
    assert len(hop.messages) == 1


def test_without_next_hop_each_recipient_hears_of_the_one_copy(running_daemon, tmp_path):
    with running_daemon(listen=LMTP).client() as client:
        greeting = client.greet()
        assert b"PIPELINING" in greeting and b"ENHANCEDSTATUSCODES" in greeting
        client.send(b"MAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\nRCPT TO:<e@f>\r\nDATA\r\n")
        assert [reply[:3] for reply in client.replies(4)] == [b"250", b"250", b"250", b"354"]
        client.send(MAIL + b".\r\n")
        assert all(reply.startswith(b"250 2.0.0 Ok: delivered as ") for reply in client.replies(2))
    (file,) = (tmp_path / "Maildir/new").iterdir()
    assert b"with LMTP id " in file.read_bytes()


# A fate for each recipient

OWN = {
    "spam": "tag",
    "recipients": {
        "held@x": {"spam": "quarantine"},
        "plain@x": {"spam": "pass"},
        "strict@x": {"spam": "reject"},
    },
}


@pytest.mark.parametrize("lmtp_behind", [True, False], ids=["lmtp behind", "smtp behind"])
def test_each_recipient_has_a_fate_of_his_own(running_daemon, tmp_path, lmtp_behind):
    hop = FakeNextHop(lmtp=lmtp_behind)
    running = running_daemon(hop, listen=LMTP, policy=OWN)
    with running.client() as client:
        client.greet()
        client.ask(b"XFORWARD NAME=spike")
        client.ask(b"MAIL FROM:<a@b> RET=HDRS")
        for name in (b"tagged@x", b"held@x", b"plain@x", b"strict@x", b"other@x"):
            client.ask(b"RCPT TO:<%s>" % name)
        client.ask(b"DATA")
        client.send(b"X-Spam-Flag: NO\r\n" + SPAM + b".\r\n")
        tagged, quarantined, plain, strict, other = client.replies(5)
    assert tagged == plain == other == b"250 2.0.0 Ok: queued as NEXT1"
    assert quarantined.startswith(b"250 2.0.0 Ok: held as ") and strict.startswith(b"550 5.7.1")
    first, second = hop.messages
    assert first.data.startswith(b"X-Spam-Flag: YES\r\n") and first.data.endswith(SPAM)
    assert first.rcpt == [b"RCPT TO:<tagged@x>", b"RCPT TO:<other@x>"]
    assert second.data == SPAM and second.rcpt == [b"RCPT TO:<plain@x>"]
    assert first.mail == second.mail == b"MAIL FROM:<a@b> RET=HDRS"
    assert first.xforward == second.xforward == [b"XFORWARD NAME=spike"]
    ((envelope, data),) = held(tmp_path)
    assert data == b"X-Spam-Flag: NO\r\n" + SPAM, "what is held is what came"
    assert [one["path"] for one in envelope["recipients"]] == ["<held@x>"]
    lines = [line for line in running.log if line["event"] == "message"]
    assert sorted((line["fate"], line["recipient_count"]) for line in lines) == [
        ("deliver", 1), ("deliver", 2), ("quarantine", 1), ("reject", 1)
    ]  # fmt: skip


def test_in_smtp_what_one_recipient_would_refuse_is_held_for_him(running_daemon, tmp_path):
    hop = FakeNextHop()
    with running_daemon(hop, listen=SMTP, policy=OWN).client() as client:
        accepted(client, b"tagged@x", b"strict@x")
        assert client.ask(SPAM + b".") == b"250 2.0.0 Ok: queued as NEXT1"
    assert [message.rcpt for message in hop.messages] == [[b"RCPT TO:<tagged@x>"]]
    assert [one["path"] for envelope, _ in held(tmp_path) for one in envelope["recipients"]] == ["<strict@x>"]


@pytest.mark.parametrize("reply", [b"451 4.3.0 later", b"554 5.7.1 no"])
def test_in_smtp_nothing_is_held_when_the_rest_is_not_taken(running_daemon, tmp_path, reply):
    """The sender hears of a failure and keeps the mail for all; a copy in the quarantine would be one too many."""
    hop = FakeNextHop(dot=reply)
    with running_daemon(hop, listen=SMTP, policy=OWN).client() as client:
        accepted(client, b"held@x", b"tagged@x")
        assert client.ask(SPAM + b".") == reply
    assert held(tmp_path) == []
    assert list((tmp_path / "quarantine/tmp").iterdir()) == []


def test_in_smtp_a_failure_for_some_is_the_answer_for_all_and_the_log_says_who_has_it(running_daemon):
    hop = FakeNextHop(dot=[b"250 ok", b"554 5.7.1 no"])
    running = running_daemon(hop, listen=SMTP, policy=OWN)
    with running.client() as client:
        accepted(client, b"tagged@x", b"plain@x")
        assert client.ask(SPAM + b".") == b"554 5.7.1 no"
    assert [line.get("partly_delivered") for line in running.log if line["event"] == "message"] == [True, True]


def test_in_smtp_a_place_in_the_quarantine_that_is_lost_at_the_last_moment_is_a_failure(
    running_daemon, tmp_path, monkeypatch
):
    def broken(_self):
        raise OSError(5, "Input/output error")

    hop = FakeNextHop()
    running = running_daemon(hop, listen=SMTP, policy=OWN)
    monkeypatch.setattr("service.quarantine.Staged.commit", broken)
    with running.client() as client:
        accepted(client, b"tagged@x", b"held@x")
        assert client.ask(SPAM + b".").startswith(b"451 4.3.0")
    assert (len(hop.messages), held(tmp_path)) == (1, [])
    lines = [line for line in running.log if line["event"] == "message"]
    assert [line["partly_delivered"] for line in lines] == [True, True]


def test_who_is_refused_when_said_again_takes_nobody_with_him(running_daemon):
    """Tagged and plain are two transactions behind us; the first is refused, the second goes through."""
    hop = FakeNextHop(RCPT=[b"250 ok", b"250 ok", b"450 4.2.0 not you, not now", b"250 ok"])
    with running_daemon(hop, listen=LMTP, policy=OWN).client() as client:
        accepted(client, b"tagged@x", b"plain@x")
        client.send(SPAM + b".\r\n")
        assert [reply[:9] for reply in client.replies(2)] == [b"451 4.4.2", b"250 2.0.0"]
    assert [message.rcpt for message in hop.messages] == [[b"RCPT TO:<plain@x>"]]


@pytest.mark.parametrize("protocol", [LMTP, SMTP], ids=["lmtp", "smtp"])
def test_a_quarantine_that_cannot_be_written_is_temporary(running_daemon, tmp_path, protocol, monkeypatch):
    hop = FakeNextHop()
    running = running_daemon(hop, listen=protocol, policy=OWN)
    with running.client() as client:
        accepted(client, b"tagged@x", b"held@x")
        monkeypatch.setattr("os.fsync", full)
        client.send(SPAM + b".\r\n")
        if protocol is SMTP:
            assert client.reply().startswith(b"452 4.3.1")
            assert hop.messages == [], "nobody has it, so nobody gets it twice"
        else:
            assert [reply[:9] for reply in client.replies(2)] == [b"250 2.0.0", b"452 4.3.1"]
    assert held(tmp_path) == []


def full(_descriptor):
    raise OSError(28, "No space left on device")
