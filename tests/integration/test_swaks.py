"""swaks as the client of the daemon, smtp-sink behind: each way in, spoken by somebody else's client."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trustme

from tests.servers import Sink, free_ports, needs, private_folder, swaks

pytestmark = needs("swaks", "smtp-sink")

FILTER, BEHIND = free_ports(2)


@pytest.fixture
def folder() -> Iterator[Path]:
    with private_folder("swaks") as folder:
        yield folder


@pytest.fixture
def sink(folder) -> Iterator[Sink]:
    with Sink(folder / "sink", BEHIND) as sink:
        yield sink


@pytest.fixture
def start(sink, folder, daemon_process) -> Callable:
    def start(*listen: str):
        file = folder / "spamguard.toml"
        lines = "\n".join(("[listen]", f"port = {FILTER}", *listen))
        file.write_text(f'state_dir = "."\n{lines}\n[next_hop]\nhost = "127.0.0.1"\nport = {BEHIND}\n')
        process = daemon_process(file)
        process.wait_for("ready")
        return process

    return start


@pytest.fixture
def certificate(folder) -> Path:
    """Our certificate with its key; who signed it is in `ca.pem` beside it."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(folder / "ca.pem")
    authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(folder / "both.pem")
    return folder / "both.pem"


def the_one(sink: Sink) -> bytes:
    (dump,) = sink.dumps()
    return dump


def test_a_whole_envelope_in_one_packet(start, sink):
    start()
    done = swaks(FILTER, "--pipeline", "--to", "b@example.net,c@example.net", "--body", "viagra")
    assert done.returncode == 0, done.stdout
    assert re.search(r" -> MAIL FROM.*\n -> RCPT TO.*\n -> RCPT TO.*\n -> DATA\n<-  250", done.stdout), "pipelined"
    dump = the_one(sink)
    assert dump.count(b"X-Rcpt-Args: ") == 2
    assert b"\nX-Spam-Flag: YES\n" in dump


def test_eight_bits_and_lines_that_begin_with_dots(start, sink, folder):
    start()
    mail = "Subject: Grüße\n\n.\n..\n.Grüße aus Köln, 漢字\n" + "x" * 5000 + "\n"
    (folder / "mail").write_text(mail, encoding="utf-8")
    done = swaks(FILTER, "--data", f"@{folder}/mail")
    assert done.returncode == 0, done.stdout
    assert the_one(sink).rstrip(b"\n").endswith(b"\n" + mail.encode().rstrip(b"\n"))


def test_a_listed_peer_may_name_another_client(start):
    process = start('xclient_from = ["127.0.0.1"]', 'allow_from = ["127.0.0.1", "192.0.2.0/24"]')
    done = swaks(FILTER, "--xclient-addr", "192.0.2.7", "--xclient-name", "sender.example")
    assert done.returncode == 0, done.stdout
    assert process.wait_for("message")["peer"] == "192.0.2.7"
    done = swaks(FILTER, "--xclient-addr", "198.51.100.7")
    assert done.returncode != 0 and "554 5.7.1" in done.stdout, "the other client is not in allow_from"


def test_a_peer_that_is_not_listed_is_not_offered_it(start, sink):
    start('xclient_from = ["192.0.2.0/24"]')
    done = swaks(FILTER, "--xclient-addr", "192.0.2.7")
    assert done.returncode != 0 and "Host did not advertise XCLIENT" in done.stderr
    assert sink.dumps() == []


@pytest.mark.parametrize("version", ["1", "2"])
def test_a_balancer_says_who_the_client_is(start, version):
    process = start('proxy_from = ["127.0.0.1"]')
    ends = ["--proxy-source", "192.0.2.7", "--proxy-source-port", "4711"]
    ends += ["--proxy-dest", "192.0.2.1", "--proxy-dest-port", "25", "--proxy-family"]
    family = ["TCP4"] if version == "1" else ["AF_INET", "--proxy-protocol", "STREAM", "--proxy-command", "PROXY"]
    done = swaks(FILTER, "--proxy-version", version, *ends, *family)
    assert done.returncode == 0, done.stdout
    assert process.wait_for("message")["peer"] == "192.0.2.7"


def test_starttls(start, sink, certificate):
    start('tls = "require"', f'tls_certificate = "{certificate}"')
    done = swaks(FILTER)
    assert done.returncode != 0 and "<** 530 5.7.0" in done.stdout
    assert sink.dumps() == []
    done = swaks(FILTER, "--tls", "--tls-verify", "--tls-ca-path", str(certificate.parent / "ca.pem"))
    assert done.returncode == 0, done.stdout
    assert "=== TLS started with cipher TLSv1." in done.stdout
    assert b"\nX-Spamguard: ham" in the_one(sink)


def test_lmtp_over_a_unix_socket(start, sink, folder):
    start('protocol = "lmtp"', f'socket = "{folder}/lmtp"')
    command = ["swaks", "--socket", str(folder / "lmtp"), "--protocol", "LMTP", "--from", "a@example.org"]
    to = ["--to", "b@example.net,c@example.net"]
    done = subprocess.run([*command, *to], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stdout
    after_the_dot = done.stdout.partition(" -> .\n")[2]
    assert after_the_dot.count("<-  250 ") == 2, "one reply for each recipient"
    assert the_one(sink).count(b"X-Rcpt-Args: ") == 2
