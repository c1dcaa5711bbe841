"""After the queue of a real Postfix: smtpd -> queue -> smtp -> our daemon -> smtpd -> Maildir, as our page says."""

from __future__ import annotations

import smtplib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import postfix as real
from tests.servers import documented, free_ports, listens, needs, smtp_source, swaks, until

pytestmark = needs(*real.PROGRAMS)

FRONT, BACK, FILTER = free_ports(3)


@pytest.fixture(scope="module")
def postfix() -> Iterator[real.Postfix]:
    main, master = documented("docs/mail-servers.md", "After the queue of Postfix", {"10025": FILTER, "10026": BACK})
    with real.private_postfix(FRONT, main, master) as instance:
        until(lambda: listens(BACK))
        yield instance


@pytest.fixture
def file(tmp_path) -> Path:
    file = tmp_path / "spamguard.toml"
    # The host name is that of Postfix: on one machine it is, and must not look like a loop.
    file.write_text(
        f'state_dir = "."\n[listen]\nport = {FILTER}\nhostname = "front.example"\n'
        f'[next_hop]\nhost = "127.0.0.1"\nport = {BACK}\n'
    )
    return file


@pytest.fixture
def daemon(postfix, file, daemon_process):
    process = daemon_process(file)
    process.wait_for("ready")
    return process


def judged(daemon) -> list[dict]:
    return [line for line in daemon.log if line["event"] == "message"]


def test_mail_comes_back_tagged_once_and_goes_round_once(postfix, daemon):
    for body, flag in (("meeting", None), ("viagra", "YES")):
        assert swaks(FRONT, "--header", f"Subject: {body}", "--body", body).returncode == 0
        mail = postfix.box.one(body)
        assert mail.get_all("X-Spam-Flag", []) == ([flag] if flag else [])
        (verdict,) = mail.get_all("X-Spamguard")
        assert verdict.startswith("spam; p=0.99" if flag else "ham; p=0.01")
        assert mail.get_payload().strip() == body
        assert len(mail.get_all("Received")) == 2, "once in front, once behind"
    until(lambda: not postfix.queued())
    assert len(judged(daemon)) == 2
    assert "orig_client=localhost[127.0.0.1]" in postfix.log, "XFORWARD has passed"
    assert "loops back" not in postfix.log


def test_two_recipients_are_one_message_to_judge(postfix, daemon):
    done = swaks(FRONT, "--to", "b@example.net,c@example.net", "--header", "Subject: both")
    assert done.returncode == 0
    mails = postfix.box.all("both", 2)
    assert {mail["Delivered-To"] for mail in mails} == {"b@example.net", "c@example.net"}
    (line,) = judged(daemon)
    assert line["recipients"] == ["b@example.net", "c@example.net"]


def test_while_the_filter_is_down_mail_waits_in_the_queue(postfix, file, daemon_process):
    assert swaks(FRONT, "--header", "Subject: patience").returncode == 0
    until(postfix.deferred)
    assert not [mail for mail in postfix.box.mails() if mail["Subject"] == "patience"]
    daemon_process(file).wait_for("ready")
    postfix.flush()
    assert postfix.box.one("patience")["X-Spamguard"].startswith("ham")
    until(lambda: not postfix.queued())


def test_what_cannot_be_scored_for_now_waits_as_well(postfix, file, daemon_process):
    settings = file.read_text()
    file.write_text(settings + '[policy]\non_failure = "tempfail"\n')
    process = daemon_process(file)
    process.wait_for("ready")
    assert swaks(FRONT, "--header", "Subject: unlucky", "--header", "X-Fake: raise").returncode == 0
    until(postfix.deferred)
    assert "dsn=4.7.1, status=deferred" in postfix.log
    process.stop()
    file.write_text(settings)
    daemon_process(file).wait_for("ready")
    postfix.flush()
    assert postfix.box.one("unlucky")["X-Spamguard"] == "unscored; reason=fault"


def test_eight_bits_and_dots_come_back_as_they_were(postfix, daemon):
    body = ".\r\n..\r\nGrüße\r\n" + ".end\r\n" + "x" * 998 + "\r\n"
    with smtplib.SMTP("127.0.0.1", FRONT, timeout=60) as client:
        client.ehlo("client.example")
        mail = b"Subject: bytes\r\n\r\n" + body.encode()
        client.sendmail("a@example.org", ["b@example.net"], mail, ["BODY=8BITMIME"])
    assert postfix.box.body("bytes") == body.replace("\r\n", "\n").encode()


def test_a_load_of_two_hundred(postfix, daemon):
    before = len(postfix.box.raw())
    smtp_source(FRONT, 200, "-l", "5000")
    until(lambda: len(postfix.box.raw()) == before + 200)
    until(lambda: not postfix.queued())
    assert len(judged(daemon)) == 200
    assert all(raw.count(b"\nX-Spamguard: ") == 1 for raw in postfix.box.raw())
