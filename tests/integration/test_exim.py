"""A real Exim: as the next hop of ours, and on both sides of us by the lines of our page."""

from __future__ import annotations

import smtplib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import exim as real
from tests.servers import free_ports, needs, smtp_source, swaks, until

pytestmark = needs(*real.PROGRAMS)

FRONT, BACK, FILTER = free_ports(3)


@pytest.fixture(scope="module")
def exim() -> Iterator[real.Exim]:
    with real.private_exim(FRONT, BACK, FILTER) as instance:
        yield instance


@pytest.fixture
def file(tmp_path) -> Path:
    file = tmp_path / "spamguard.toml"
    # The host name is that of Exim: on one machine it is, and must not look like a loop.
    file.write_text(
        f'state_dir = "."\n[listen]\nport = {FILTER}\nhostname = "exim.example"\n'
        f'[next_hop]\nhost = "127.0.0.1"\nport = {BACK}\n'
    )
    return file


@pytest.fixture
def daemon(exim, file, daemon_process):
    process = daemon_process(file)
    process.wait_for("ready")
    return process


@pytest.mark.parametrize("port", [FILTER, FRONT], ids=["behind us", "on both sides"])
def test_mail_arrives_tagged_once(exim, daemon, port):
    for body, flag in (("meeting", None), ("viagra", "YES")):
        subject = f"{body} through {port}"
        assert swaks(port, "--header", f"Subject: {subject}", "--body", body).returncode == 0
        mail = exim.box.one(subject)
        assert mail.get_all("X-Spam-Flag", []) == ([flag] if flag else [])
        (verdict,) = mail.get_all("X-Spamguard")
        assert verdict.startswith("spam; p=0.99" if flag else "ham; p=0.01")
        assert mail.get_payload().strip() == body
    until(lambda: not exim.queued())
    assert len([line for line in daemon.log if line["event"] == "message"]) == 2


def test_a_pipelined_envelope_gets_exims_own_replies(exim, daemon):
    subject = ("--header", "Subject: pipelined")
    done = swaks(FILTER, "--pipeline", "--to", "refused@example.net,b@example.net,c@example.net", *subject)
    assert done.returncode == 0, done.stdout
    assert "550 nobody of that name" in done.stdout
    assert {mail["Envelope-to"] for mail in exim.box.all("pipelined", 2)} == {"b@example.net", "c@example.net"}


def test_eight_bits_long_lines_and_dots_arrive_as_they_were_sent(exim, daemon):
    body = "x" * 5000 + "\r\n.\r\n..\r\nGrüße\r\n" + ".end\r\n"
    for subject, port in (("bytes behind", FILTER), ("bytes both", FRONT)):
        with smtplib.SMTP("127.0.0.1", port, timeout=60) as client:
            client.ehlo("client.example")
            mail = b"Subject: %s\r\n\r\n%s" % (subject.encode(), body.encode())
            client.sendmail("a@example.org", ["b@example.net"], mail, ["BODY=8BITMIME"])
        assert exim.box.body(subject) == body.replace("\r\n", "\n").encode()


def test_while_the_filter_is_down_mail_waits_in_exims_queue(exim, file, daemon_process):
    assert swaks(FRONT, "--header", "Subject: patience").returncode == 0
    until(lambda: "T=spamguard defer" in exim.log)
    assert exim.queued()
    daemon_process(file).wait_for("ready")
    exim.flush()
    assert exim.box.one("patience")["X-Spamguard"].startswith("ham")
    until(lambda: not exim.queued())


@pytest.mark.parametrize(("port", "count"), [(FILTER, 100), (FRONT, 30)], ids=["behind us", "on both sides"])
def test_a_load(exim, daemon, port, count):
    before = len(exim.box.raw())
    smtp_source(port, count, "-l", "5000")
    until(lambda: len(exim.box.raw()) == before + count)
    until(lambda: not exim.queued())
    assert all(raw.count(b"\nX-Spamguard: ") == 1 for raw in exim.box.raw())
