"""STARTTLS on either side, and what an attacker on the line can put before or behind it (RFC 3207; row 26)."""

from __future__ import annotations

import ssl
from pathlib import Path

import pytest
import trustme

from service.hop import tls_context
from service.listener import server_tls
from spamguard.config import ListenTable, NextHopTable
from spamguard.errors import ConfigError
from tests.fakes import EHLO, FakeNextHop

MAIL = b"Subject: hi\r\n\r\nmeeting\r\n"


class Certificates:
    """An authority, a certificate of filter.example for us, and one of next.example for the next hop."""

    def __init__(self, folder: Path) -> None:
        authority = trustme.CA()
        self.ca = folder / "ca.pem"
        authority.cert_pem.write_to_path(str(self.ca))
        self.ours, self.key = folder / "ours.pem", folder / "key.pem"
        ours = authority.issue_cert("filter.example")
        ours.private_key_pem.write_to_path(str(self.key))
        for blob in ours.cert_chain_pems:
            blob.write_to_path(str(self.ours), append=True)
        self.client = ssl.create_default_context(cafile=str(self.ca))
        self.server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        authority.issue_cert("next.example").configure_cert(self.server)

    def listen(self, tls: str = "may", **more: object) -> dict[str, object]:
        return {"port": 0, "tls": tls, "tls_certificate": self.ours, "tls_key": self.key} | more


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("certificates"))


# In front


@pytest.mark.parametrize("protocol", ["smtp", "lmtp"])
def test_mail_comes_in_encrypted(running_daemon, certificates, protocol):
    hop = FakeNextHop()
    with running_daemon(hop, listen=certificates.listen(protocol=protocol)).client() as client:
        assert b"STARTTLS" in client.greet()
        assert client.ask(b"STARTTLS now") == b"501 5.5.4 Syntax: STARTTLS"
        assert client.ask(b"STARTTLS").startswith(b"220 2.0.0")
        client.encrypt(certificates.client, "filter.example")
        assert client.ask(b"MAIL FROM:<a@b>").startswith(b"503 5.5.1 Send "), "all that was said before is forgotten"
        greeting = client.ask(b"EHLO x" if protocol == "smtp" else b"LHLO x")
        assert b"STARTTLS" not in greeting and b"SIZE" in greeting
        assert client.ask(b"STARTTLS").startswith(b"503 5.5.1")
        for line in (b"MAIL FROM:<a@b>", b"RCPT TO:<c@d>"):
            assert client.ask(line).startswith(b"250")
        assert client.ask(b"DATA").startswith(b"354")
        body = b"x" * 3_000_000 + b"\r\n"
        assert client.ask(body + b".").startswith(b"250")
        assert client.ask(b"QUIT").startswith(b"221")
        assert client.closed()
    assert hop.messages[0].data.endswith(body)


def test_row_26_what_is_sent_in_plain_behind_starttls_is_never_obeyed(running_daemon, certificates):
    hop = FakeNextHop()
    with running_daemon(hop, listen=certificates.listen()).client() as client:
        client.greet()
        client.send(b"STARTTLS\r\nMAIL FROM:<evil@x>\r\nRCPT TO:<evil@x>\r\n")
        assert client.reply().startswith(b"220")
        client.encrypt(certificates.client, "filter.example")
        assert client.ask(b"NOOP") == b"250 2.0.0 Ok", "the first reply is to the first command"
        assert client.ask(b"EHLO x").startswith(b"250-")
        assert client.ask(b"RCPT TO:<c@d>").startswith(b"503 5.5.1 Send MAIL first")
    assert not [line for line in hop.lines if b"evil" in line]


def test_row_26_a_transaction_begun_in_plain_is_forgotten(running_daemon, certificates):
    hop = FakeNextHop()
    with running_daemon(hop, listen=certificates.listen()).client() as client:
        client.greet()
        client.ask(b"MAIL FROM:<evil@x>")
        assert client.ask(b"STARTTLS").startswith(b"220")
        client.encrypt(certificates.client, "filter.example")
        client.ask(b"EHLO x")
        assert client.ask(b"DATA").startswith(b"503")
    assert hop.lines[-1] == b"RSET"


def test_row_26_nothing_but_starttls_where_it_is_demanded(running_daemon, certificates):
    hop = FakeNextHop()
    with running_daemon(hop, listen=certificates.listen("require")).client() as client:
        client.greet()
        assert client.ask(b"MAIL FROM:<a@b>") == b"530 5.7.0 Must issue a STARTTLS command first"
        assert client.ask(b"STARTTLS").startswith(b"220")
        client.encrypt(certificates.client, "filter.example")
        client.ask(b"EHLO x")
        assert client.ask(b"MAIL FROM:<a@b>").startswith(b"250")


@pytest.mark.parametrize("rubbish", [b"MAIL FROM:<evil@x>\r\n" * 20, b"\x16\x03\x01", b""])
def test_a_handshake_that_fails_ends_the_session_alone(running_daemon, certificates, rubbish):
    running = running_daemon(FakeNextHop(), listen=certificates.listen())
    with running.client() as client:
        client.greet()
        assert client.ask(b"STARTTLS").startswith(b"220")
        client.send(rubbish)
        client.socket.shutdown(1)
        client.closed()
    with running.client() as client:
        assert client.deliver(MAIL).startswith(b"250")


def test_starttls_is_unknown_where_it_is_off(running_daemon):
    with running_daemon().client() as client:
        assert b"STARTTLS" not in client.greet()
        assert client.ask(b"STARTTLS").startswith(b"500 5.5.2")


def test_a_wrong_certificate_is_an_error_with_file_and_key(tmp_path, certificates):
    for file, key in ((tmp_path / "none.pem", None), (certificates.ca, None)):
        with pytest.raises(ConfigError, match=f"listen.tls_certificate: {file}: "):
            server_tls(ListenTable(tls="may", tls_certificate=file, tls_key=key))
    for file in (tmp_path / "none.pem", certificates.key):
        with pytest.raises(ConfigError, match=f"next_hop.tls_ca: {file}: "):
            tls_context(NextHopTable(host="h", tls="verify", tls_ca=file))


# Behind


OPEN = EHLO.replace(b"250-STARTTLS\r\n", b"")


@pytest.mark.parametrize(
    ("tls", "ehlo", "expected", "encrypted"),
    [
        ("off", EHLO, b"250", False),
        ("may", EHLO, b"250", True),
        ("may", OPEN, b"250", False),
        ("require", EHLO, b"250", True),
        ("require", OPEN, b"451 4.7.5", False),
        ("verify", EHLO, b"250", True),
        ("verify", OPEN, b"451 4.7.5", False),
    ],
)
def test_the_next_hop_is_encrypted_as_configured(running_daemon, certificates, tls, ehlo, expected, encrypted):
    hop = FakeNextHop(tls=certificates.server, EHLO=ehlo)
    table = {"tls": tls, "tls_ca": certificates.ca, "tls_name": "next.example"}
    with running_daemon(hop, next_hop=table).client() as client:
        assert client.greet().startswith(b"250"), "EHLO never fails"
        assert client.ask(b"MAIL FROM:<a@b>").startswith(expected)
        if expected == b"250":
            client.ask(b"RCPT TO:<c@d>")
            client.ask(b"DATA")
            assert client.ask(MAIL + b".").startswith(b"250")
    assert (b"STARTTLS" in hop.lines) == encrypted
    assert hop.lines[: 3 if encrypted else 1].count(b"EHLO filter.example") == (2 if encrypted else 1)


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        ({"tls": "verify", "tls_name": "other.example"}, b"451 4.7.5"),
        ({"tls": "verify", "tls_name": "next.example", "tls_ca": None}, b"451 4.7.5"),
        ({"tls": "require", "tls_ca": None}, b"250"),
    ],
    ids=["another name", "unknown authority", "not checked"],
)
def test_a_certificate_is_checked_where_it_shall_be(running_daemon, certificates, table, expected):
    hop = FakeNextHop(tls=certificates.server)
    running = running_daemon(hop, next_hop={"tls_ca": certificates.ca} | table)
    with running.client() as client:
        client.greet()
        assert client.ask(b"MAIL FROM:<a@b>").startswith(expected)


def test_row_26_what_the_next_hop_says_in_plain_behind_220_is_never_believed(running_daemon, certificates):
    """Whoever sits on the line could put replies there, to be taken for those to commands under TLS."""
    injected = b"220 2.0.0 go\r\n250-evil\r\n250 SIZE 1"
    hop = FakeNextHop(tls=certificates.server, STARTTLS=injected)
    with running_daemon(hop, next_hop={"tls": "require"}).client() as client:
        assert b"evil" not in client.greet()
        assert client.ask(b"MAIL FROM:<a@b>").startswith(b"451 4.")
    assert hop.messages == []


def test_refused_starttls_is_no_reason_to_go_on_in_plain(running_daemon):
    hop = FakeNextHop(STARTTLS=b"454 4.7.0 not now")
    with running_daemon(hop, next_hop={"tls": "require"}).client() as client:
        client.greet()
        assert client.ask(b"MAIL FROM:<a@b>").startswith(b"451 4.7.5")
    assert not [line for line in hop.lines if line.startswith(b"MAIL")]


def test_refused_starttls_is_no_hindrance_where_it_is_welcome_but_not_demanded(running_daemon):
    hop = FakeNextHop(STARTTLS=b"454 4.7.0 not now")
    with running_daemon(hop, next_hop={"tls": "may"}).client() as client:
        client.greet()
        assert client.ask(b"MAIL FROM:<a@b>").startswith(b"250")


def test_contexts_follow_the_table(certificates):
    assert tls_context(NextHopTable(host="h")) is None
    checked = tls_context(NextHopTable(host="h", tls="verify", tls_ca=certificates.ca))
    assert checked is not None and checked.check_hostname and checked.verify_mode is ssl.CERT_REQUIRED
    unchecked = tls_context(NextHopTable(host="h", tls="require"))
    assert unchecked is not None and unchecked.verify_mode is ssl.CERT_NONE
