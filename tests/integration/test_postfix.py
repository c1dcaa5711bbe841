"""Before the queue of a real Postfix: front smtpd -> our daemon -> smtpd behind -> Maildir, as the README says."""

from __future__ import annotations

import smtplib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import postfix as real
from tests.servers import Sink, documented, free_ports, listens, needs, smtp_source, swaks, until

pytestmark = needs(*real.PROGRAMS)

FRONT, FAST, BACK, FILTER = free_ports(4)
BEFORE_THE_QUEUE = "Before the queue of Postfix"


def entries() -> str:
    """The README's entries; its front as it is (`speed_adjust`) and without; one recipient is refused behind."""
    master, _, _ = documented(
        "README.md",
        BEFORE_THE_QUEUE,
        {
            "10025": FILTER,
            "10026": BACK,
            "smtpd_client_connection_count_limit=10": "smtpd_client_connection_count_limit=0",
            "smtpd_recipient_restrictions=permit_mynetworks,reject": "myhostname=back.example\n"
            "    -o { smtpd_recipient_restrictions = check_recipient_access "
            "inline:{ { refused@example.net = 550 5.1.1 nobody of that name } }, permit_mynetworks, reject }",
        },
    )
    front, back = master.split("\n\n")
    fast = front.replace("smtp      inet", f"127.0.0.1:{FAST} inet")
    slow = front.replace("smtp      inet", f"127.0.0.1:{FRONT} inet").replace(
        "    -o smtpd_proxy_options=speed_adjust\n", ""
    )
    assert fast.count("speed_adjust") == 1 and "speed_adjust" not in slow
    return f"{fast}\n{slow}\n{back}"


@pytest.fixture(scope="module")
def postfix() -> Iterator[real.Postfix]:
    with real.private_postfix(FRONT, master=entries()) as instance:
        until(lambda: listens(BACK))
        yield instance


def config(folder: Path, next_hop: int) -> Path:
    file = folder / "spamguard.toml"
    _, _, body = documented("README.md", BEFORE_THE_QUEUE, {"10025": FILTER, "10026": next_hop})
    file.write_text(f'state_dir = "."\n{body}')
    return file


@pytest.fixture
def daemon(postfix, tmp_path, daemon_process):
    process = daemon_process(config(tmp_path, BACK))
    process.wait_for("ready")
    return process


@pytest.mark.parametrize("port", [FRONT, FAST], ids=["without speed_adjust", "speed_adjust"])
def test_mail_passes_the_filter_and_is_tagged(postfix, daemon, port):
    for body, flag in (("meeting", None), ("viagra", "YES")):
        subject = f"{body} through {port}"
        done = swaks(port, "--header", f"Subject: {subject}", "--header", "X-Spam-Flag: FORGED", "--body", body)
        assert done.returncode == 0, done.stdout
        mail = postfix.box.one(subject)
        assert mail.get_all("X-Spam-Flag", []) == ([flag] if flag else [])
        assert mail["X-Spamguard"].startswith("spam; p=0.99" if flag else "ham; p=0.01")
        assert mail.get_payload().strip() == body
        ours, received = mail.keys().index("X-Spamguard"), [i for i, k in enumerate(mail.keys()) if k == "Received"]
        assert received[0] < ours < received[1], "below what the server behind adds, above what was there"
    assert "orig_client=localhost[127.0.0.1]" in postfix.log, "XFORWARD has passed"


def test_envelope_parameters_pass_before_the_queue(postfix, daemon):
    with smtplib.SMTP("127.0.0.1", FRONT, timeout=60) as client:
        client.ehlo("client.example")
        options = ["RET=HDRS", "ENVID=Env+2BelopeId"]
        client.sendmail(
            "sender@example.net",
            ["b@example.net"],
            b"Subject: with parameters\r\n\r\nbody\r\n",
            mail_options=options,
            rcpt_options=["NOTIFY=SUCCESS,FAILURE", "ORCPT=rfc822;Bob+2BOrig@example.net"],
        )
    postfix.box.one("with parameters")
    report = postfix.box.one("Successful Mail Delivery Report").as_string()
    assert "Original-Envelope-Id: Env+elopeId" in report
    assert "Original-Recipient: rfc822;Bob+Orig@example.net" in report


def test_long_lines_eight_bits_and_dots_arrive_as_they_were_sent(postfix, daemon):
    body = "x" * 5000 + "\r\n.\r\n..\r\nGrüße\r\n" + ".end\r\n"
    with smtplib.SMTP("127.0.0.1", FRONT, timeout=60) as client:
        client.ehlo("client.example")
        mail = b"Subject: long\r\n\r\n" + body.encode()
        client.sendmail("a@example.org", ["b@example.net"], mail, ["BODY=8BITMIME"])
    assert postfix.box.body("long") == body.replace("\r\n", "\n").encode()


def test_a_refusal_of_the_server_behind_comes_back_as_it_is(postfix, daemon):
    done = swaks(FRONT, "--to", "refused@example.net")
    assert done.returncode != 0
    assert "550 5.1.1 <refused@example.net>: Recipient address rejected: nobody of that name" in done.stdout


def test_a_load_of_two_hundred(postfix, daemon):
    before = len(postfix.box.mails())
    smtp_source(FRONT, 200, "-l", "5000")
    until(lambda: len(postfix.box.mails()) == before + 200)
    assert [
        one for one in postfix.box.mails() if one["Return-Path"] == "<a@example.org>" and not one["X-Spamguard"]
    ] == []


def test_without_the_filter_the_mail_stays_with_the_sender(postfix):
    done = swaks(FRONT, "--header", "Subject: no filter")
    assert "<** 451 4.3.0 " in done.stdout
    assert not [mail for mail in postfix.box.mails() if mail["Subject"] == "no filter"]
    until(lambda: not postfix.queued())


def test_without_the_server_behind_the_mail_stays_with_the_sender_until_it_is_back(postfix, tmp_path, daemon_process):
    """The server behind is an smtp-sink here, so that it can be stopped alone."""
    (behind,) = free_ports(1)
    process = daemon_process(config(tmp_path, behind))
    process.wait_for("ready")
    done = swaks(FRONT, "--header", "Subject: waits")
    assert "<** 451 4.4.1 " in done.stdout, done.stdout
    until(lambda: not postfix.queued())
    with Sink(postfix.folder / "sink", behind) as sink:
        assert swaks(FRONT, "--header", "Subject: waits").returncode == 0
    (dump,) = [dump for dump in sink.dumps() if b"Subject: waits" in dump]
    assert b"X-Spamguard: ham" in dump
