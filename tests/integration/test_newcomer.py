"""What a newcomer does on the first day: `make run`, three mails, Ctrl-C. The real encoder, the head that ships."""

from __future__ import annotations

import re
import signal
import smtplib
import sys
from email import message_from_bytes
from pathlib import Path

import pytest

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]

# Lines that a careless filter would change: a dot first, trailing blanks, a long line, 8-bit text, blanks at the end.
HAM = (
    "From: Ruth Falk <ruth.falk@example.org>\r\n"
    "To: Jonas Adler <jonas@example.net>\r\n"
    "Subject: Re: minutes of Tuesday's meeting\r\n"
    "Date: Wed, 04 Jun 2025 09:12:44 +0200\r\n"
    "Message-ID: <minutes-2@example.org>\r\n"
    "MIME-Version: 1.0\r\n"
    "Content-Type: text/plain; charset=utf-8\r\n"
    "Content-Transfer-Encoding: 8bit\r\n"
    "\r\n"
    "Hi Jonas,\r\n"
    "\r\n"
    "thanks for the minutes. Two small things: the review of the parser is on Thursday, not on Friday, and Sören\r\n"
    "wrote the patch for the build server, so his name should stand there instead of mine.   \r\n"
    "\r\n"
    ".config in the repository is still the old one; I will send you a diff tonight.\r\n"
    "\r\n"
    f"> {'the rest of the old thread ' * 60}\r\n"
    "\r\n"
    "See you tomorrow\r\n"
    "Ruth\r\n"
    "\r\n"
).encode()

SCAM = (
    b"From: Barrister Frank Moore <winner.claims@example.com>\r\n"
    b"Reply-To: barrister.moore.chambers@example.info\r\n"
    b"To: undisclosed-recipients:;\r\n"
    b"Subject: CONGRATULATIONS!!! YOU HAVE WON $4,500,000.00 USD\r\n"
    b"\r\n"
    b"ATTENTION: BENEFICIARY,\r\n\r\n"
    b"I am Barrister Frank Moore, attorney to the late Engineer who died in a plane crash and left the sum of\r\n"
    b"US$4,500,000.00 (Four Million Five Hundred Thousand United States Dollars) in a bank account. Your email\r\n"
    b"address has won! To claim your fund, send your full name, bank account number, telephone number and a\r\n"
    b"processing fee of $250 by Western Union URGENTLY!!! This transaction is 100% RISK FREE and strictly\r\n"
    b"CONFIDENTIAL. Click here now: http://192.0.2.77/claim.php to claim your million dollars!!!\r\n\r\n"
    b"God bless you,\r\nBarrister Frank Moore\r\n"
)

GTUBE = (
    b"From: Test <test@example.org>\r\n"
    b"Subject: is the filter there?\r\n"
    b"\r\n"
    b"XJS*C4JDBQADN1.NSBN3*2IDNEN*GTUBE-STANDARD-ANTI-UBE-TEST-EMAIL*C.34X\r\n"
)

# What the last server adds (RFC 5321, 4.4), and our own fields.
OURS = {"Return-Path", "Delivered-To", "Received"} | {
    f"X-{name}" for name in ("Spam-Flag", "Spam-Status", "Spam-Level", "Spamguard", "Spamguard-Reason")
}


@pytest.fixture
def file(tmp_path) -> Path:
    """docs/newcomer.toml itself, but for the folder and the port."""
    text = (ROOT / "docs/newcomer.toml").read_text(encoding="utf-8")
    adapted = re.sub(r"^state_dir = .*$", "state_dir = 'state'", text, count=1, flags=re.MULTILINE)
    assert adapted != text
    file = tmp_path / "spamguard.toml"
    file.write_text(adapted + "\n[listen]\nport = 0\n", encoding="utf-8")
    return file


def send(address: tuple[str, int], message: bytes) -> None:
    with smtplib.SMTP(*address, timeout=60) as client:
        assert client.sendmail("sender@example.org", ["you@example.net"], message) == {}


def the_mail(maildir: Path, folder: str, message: bytes) -> bytes:
    """The block above the message, in the one file of the folder that ends with it to the byte."""
    local = message.replace(b"\r\n", b"\n")
    found = [data for path in (maildir / folder).iterdir() if (data := path.read_bytes()).endswith(b"\n" + local)]
    assert len(found) == 1, f"{folder}: {len(found)} copies"
    block = found[0].removesuffix(local)
    assert set(message_from_bytes(block).keys()) <= OURS
    return block


def test_the_first_day(file, tmp_path, daemon_process):
    command = (str(Path(sys.executable).with_name("spamguard")), "--config", str(file), "serve")
    process = daemon_process(file, command)
    ready = process.wait_for("ready")
    assert ready["to"] == str(tmp_path / "state/Maildir")
    for message in (HAM, SCAM, GTUBE):
        send(process.address, message)
    process.popen.send_signal(signal.SIGTERM)
    assert process.popen.wait(60) == 0

    maildir = tmp_path / "state/Maildir"
    assert len(list((maildir / "new").iterdir())) == 1
    ham = message_from_bytes(the_mail(maildir, "new", HAM))
    assert ham["X-Spam-Status"].startswith("No, ")
    assert ham["X-Spamguard"].startswith("ham; p=0.")
    assert ham["X-Spam-Flag"] is None
    for message in (SCAM, GTUBE):
        spam = message_from_bytes(the_mail(maildir, ".Junk/new", message))
        assert spam["X-Spam-Flag"] == "YES"
        assert spam["X-Spam-Status"].startswith("Yes, ")
        assert spam["X-Spamguard"].startswith("spam; p=")
        assert spam["X-Spamguard-Reason"]
    assert "GTUBE" in message_from_bytes(the_mail(maildir, ".Junk/new", GTUBE))["X-Spamguard-Reason"]

    lines = [line for line in process.log if line["event"] == "message"]
    assert [line["label"] for line in lines] == ["ham", "spam", "spam"]
    assert {line["head"] for line in lines} == {ready["head"]}
