"""Before the queue of a real Postfix: front smtpd -> our daemon -> smtpd behind -> Maildir, in a private instance."""

from __future__ import annotations

import os
import pwd
import shutil
import smtplib
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from email import message_from_bytes
from email.message import Message
from pathlib import Path

import pytest

MISSING = [name for name in ("postfix", "postconf", "swaks", "smtp-source", "smtp-sink") if not shutil.which(name)]
pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}"),
    pytest.mark.skipif(os.geteuid() != 0, reason="Postfix's master must be started by root"),
]

MAIN = """
compatibility_level = 3.6
queue_directory = {folder}/queue
data_directory = {folder}/data
maillog_file = {folder}/maillog
maillog_file_prefixes = {folder}
myhostname = front.example
mydestination =
inet_interfaces = 127.0.0.1
inet_protocols = ipv4
alias_maps =
local_recipient_maps =
mynetworks = 127.0.0.0/8
virtual_mailbox_domains = example.net
virtual_mailbox_base = {folder}/mail
virtual_mailbox_maps = static:box/
virtual_uid_maps = static:{uid}
virtual_gid_maps = static:{gid}
virtual_minimum_uid = 1
default_transport = discard
smtpd_client_connection_count_limit = 0
smtpd_recipient_restrictions = permit_mynetworks, reject
"""

# The listener behind as in Postfix's SMTPD_PROXY_README.
MASTER = """
127.0.0.1:{front} inet n - n - 20 smtpd
    -o smtpd_proxy_filter=127.0.0.1:{filter}
127.0.0.1:{fast} inet n - n - 20 smtpd
    -o smtpd_proxy_filter=127.0.0.1:{filter} -o smtpd_proxy_options=speed_adjust
127.0.0.1:{back} inet n - n - - smtpd
    -o myhostname=back.example
    -o smtpd_authorized_xforward_hosts=127.0.0.0/8
    -o smtpd_client_restrictions= -o smtpd_helo_restrictions= -o smtpd_sender_restrictions=
    -o smtpd_data_restrictions= -o smtpd_relay_restrictions= -o mynetworks=127.0.0.0/8
    -o receive_override_options=no_unknown_recipient_checks
    -o {{ smtpd_recipient_restrictions = check_recipient_access
          inline:{{ {{ refused@example.net = 550 5.1.1 nobody of that name }} }}, permit_mynetworks, reject }}
cleanup   unix n - n - 0 cleanup
qmgr      unix n - n 300 1 qmgr
rewrite   unix - - n - - trivial-rewrite
bounce    unix - - n - 0 bounce
defer     unix - - n - 0 bounce
trace     unix - - n - 0 bounce
proxymap  unix - - n - - proxymap
error     unix - - n - - error
retry     unix - - n - - error
discard   unix - - n - - discard
virtual   unix - n n - - virtual
anvil     unix - - n - 1 anvil
postlog   unix-dgram n - n - 1 postlogd
"""


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def until(condition: Callable[[], object], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


class Postfix:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.front, self.fast, self.back, self.filter = free_ports(4)
        self.master: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        user = pwd.getpwnam("postfix")
        self.folder.chmod(0o755)
        for name in ("conf", "queue", "data", "mail"):
            (self.folder / name).mkdir()
        for name in ("data", "mail"):
            os.chown(self.folder / name, user.pw_uid, user.pw_gid)
        names = {"folder": self.folder, "uid": user.pw_uid, "gid": user.pw_gid} | vars(self)
        (self.folder / "conf/main.cf").write_text(MAIN.format(**names))
        (self.folder / "conf/master.cf").write_text(MASTER.format(**names))
        conf = str(self.folder / "conf")
        subprocess.run(["postfix", "-c", conf, "check"], check=True, capture_output=True)
        daemons = subprocess.run(["postconf", "-h", "daemon_directory"], check=True, capture_output=True, text=True)
        self.master = subprocess.Popen([f"{daemons.stdout.strip()}/master", "-c", conf, "-d"])
        until(lambda: listens(self.back))

    def stop(self) -> None:
        if self.master is not None:
            self.master.terminate()
            self.master.wait(60)

    @property
    def log(self) -> str:
        return (self.folder / "maillog").read_text()

    def queue_is_empty(self) -> bool:
        folders = ("incoming", "active", "deferred", "hold", "maildrop")
        return not [path for name in folders for path in (self.folder / "queue" / name).rglob("*") if path.is_file()]

    def mails(self) -> list[Message]:
        return [message_from_bytes(path.read_bytes()) for path in (self.folder / "mail/box/new").glob("*")]

    def mail(self, subject: str) -> Message:
        until(lambda: [one for one in self.mails() if one["Subject"] == subject])
        (found,) = [one for one in self.mails() if one["Subject"] == subject]
        return found


@pytest.fixture(scope="module")
def postfix() -> Iterator[Postfix]:
    # Not pytest's own folder: Postfix's processes must be able to pass through its parents.
    with tempfile.TemporaryDirectory(prefix="spamguard-postfix-", ignore_cleanup_errors=True) as folder:
        instance = Postfix(Path(folder))
        try:
            instance.start()
            yield instance
        finally:
            instance.stop()


def config(folder: Path, listen: int, next_hop: int) -> Path:
    file = folder / f"{listen}.toml"
    file.write_text(
        f'state_dir = "."\n[listen]\nport = {listen}\nhostname = "filter.example"\n'
        f'[next_hop]\nhost = "127.0.0.1"\nport = {next_hop}\n'
    )
    return file


@pytest.fixture
def daemon(postfix, tmp_path, daemon_process):
    process = daemon_process(config(tmp_path, postfix.filter, postfix.back))
    process.wait_for("ready")
    return process


def swaks(port: int, *options: str) -> subprocess.CompletedProcess[str]:
    command = ["swaks", "--server", f"127.0.0.1:{port}", "--from", "a@example.org", "--to", "b@example.net", *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=100)


@pytest.mark.parametrize("listener", ["front", "fast"])
def test_mail_passes_the_filter_and_is_tagged(postfix, daemon, listener):
    port = getattr(postfix, listener)
    for body, flag in (("meeting", None), ("viagra", "YES")):
        subject = f"{listener} {body}"
        done = swaks(port, "--header", f"Subject: {subject}", "--header", "X-Spam-Flag: FORGED", "--body", body)
        assert done.returncode == 0, done.stdout
        mail = postfix.mail(subject)
        assert mail.get_all("X-Spam-Flag", []) == ([flag] if flag else [])
        assert mail["X-Spamguard"].startswith("spam; p=0.99" if flag else "ham; p=0.01")
        assert mail.get_payload().strip() == body
        ours, received = mail.keys().index("X-Spamguard"), [i for i, k in enumerate(mail.keys()) if k == "Received"]
        assert received[0] < ours < received[1], "below what the server behind adds, above what was there"
    assert "orig_client=localhost[127.0.0.1]" in postfix.log, "XFORWARD has passed"


def test_envelope_parameters_pass_before_the_queue(postfix, daemon):
    with smtplib.SMTP("127.0.0.1", postfix.front, timeout=60) as client:
        client.ehlo("client.example")
        options = ["RET=HDRS", "ENVID=Env+2BelopeId"]
        client.sendmail(
            "sender@example.net",
            ["b@example.net"],
            b"Subject: with parameters\r\n\r\nbody\r\n",
            mail_options=options,
            rcpt_options=["NOTIFY=SUCCESS,FAILURE", "ORCPT=rfc822;Bob+2BOrig@example.net"],
        )
    postfix.mail("with parameters")
    report = postfix.mail("Successful Mail Delivery Report").as_string()
    assert "Original-Envelope-Id: Env+elopeId" in report
    assert "Original-Recipient: rfc822;Bob+Orig@example.net" in report


def test_long_lines_eight_bits_and_dots_arrive_as_they_were_sent(postfix, daemon):
    body = "x" * 5000 + "\r\n.\r\n..\r\nGrüße\r\n" + ".end\r\n"
    with smtplib.SMTP("127.0.0.1", postfix.front, timeout=60) as client:
        client.ehlo("client.example")
        mail = b"Subject: long\r\n\r\n" + body.encode()
        client.sendmail("a@example.org", ["b@example.net"], mail, ["BODY=8BITMIME"])
    postfix.mail("long")
    contents = [path.read_bytes().partition(b"\n\n") for path in (postfix.folder / "mail/box/new").glob("*")]
    (arrived,) = [text for head, _, text in contents if b"\nSubject: long\n" in head]
    assert arrived == body.replace("\r\n", "\n").encode()


def test_a_refusal_of_the_server_behind_comes_back_as_it_is(postfix, daemon):
    done = swaks(postfix.front, "--to", "refused@example.net")
    assert done.returncode != 0
    assert "550 5.1.1 <refused@example.net>: Recipient address rejected: nobody of that name" in done.stdout


def test_a_load_of_two_hundred(postfix, daemon):
    before = len(postfix.mails())
    source = ["smtp-source", "-s", "10", "-m", "200", "-l", "5000", "-f", "a@example.org", "-t", "b@example.net"]
    subprocess.run([*source, f"127.0.0.1:{postfix.front}"], check=True, timeout=100)
    until(lambda: len(postfix.mails()) == before + 200)
    assert [
        one for one in postfix.mails() if one["Return-Path"] == "<a@example.org>" and not one["X-Spamguard"]
    ] == []


def test_without_the_filter_the_mail_stays_with_the_sender(postfix):
    done = swaks(postfix.front, "--header", "Subject: no filter")
    assert "<** 451 4.3.0 " in done.stdout
    assert not [mail for mail in postfix.mails() if mail["Subject"] == "no filter"]
    assert postfix.queue_is_empty()


def test_without_the_server_behind_the_mail_stays_with_the_sender_until_it_is_back(postfix, tmp_path, daemon_process):
    """The server behind is an smtp-sink here, so that it can be stopped alone."""
    (behind,) = free_ports(1)
    process = daemon_process(config(tmp_path, postfix.filter, behind))
    process.wait_for("ready")
    done = swaks(postfix.front, "--header", "Subject: waits")
    assert "<** 451 4.4.1 " in done.stdout, done.stdout
    assert postfix.queue_is_empty()
    dumps = postfix.folder / "sink"
    dumps.mkdir()
    shutil.chown(dumps, "nobody")
    sink = subprocess.Popen(["smtp-sink", "-u", "nobody", "-d", f"{dumps}/mail.", f"127.0.0.1:{behind}", "100"])
    try:
        until(lambda: listens(behind))
        assert swaks(postfix.front, "--header", "Subject: waits").returncode == 0
    finally:
        sink.terminate()
        sink.wait(60)
    (dump,) = [path.read_bytes() for path in dumps.iterdir() if b"Subject: waits" in path.read_bytes()]
    assert b"X-Spamguard: ham" in dump
