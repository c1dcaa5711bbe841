"""A signature made before us verifies after us (row 29 of the attacks): through the daemon, with dkimpy."""

from __future__ import annotations

import base64
from dataclasses import dataclass

import dkim
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from spamguard import headers
from tests.fakes import FakeNextHop

CANONICALIZATIONS = [(b"relaxed", b"relaxed"), (b"simple", b"simple")]
HEAD = (
    b"Received: from a.example by b.example; Sun, 1 Nov 2026 10:00:00 +0000\r\n"
    b"From: Anna <anna@example.org>\r\nTo: b@example.net\r\n"
    b"Subject:  two blanks,\r\n\tfolded, \xc3\xa4 \r\nDate: Sun, 1 Nov 2026 10:00:00 +0000\r\n"
)
BODIES = {
    "plain": b"Hello\r\n",
    "no body": b"",
    "8-bit": "Grüße aus Köln, 漢字\r\n".encode() + b"\xff\xfe\r\n",
    "long line": b"x" * 100_000 + b"\r\n",
    "dots": b".\r\n..\r\n.x\r\n\r\n.\r\n",
    "blanks": b"  two  blanks \t\r\n \r\n\r\n\r\n",
    "no line end": b"the last line has no end",
}
KINDS = {"ham": b"X-Mood: meeting\r\n", "spam": b"X-Mood: viagra\r\n", "unscored": b"X-Fake: raise\r\n"}


@dataclass
class Key:
    private: bytes
    public: bytes

    def sign(self, message: bytes, canonicalization: tuple[bytes, bytes]) -> bytes:
        signed = [b"from", b"to", b"subject", b"date", b"x-mood", b"x-fake"]
        args = (message, b"sel", b"example.org", self.private, None, canonicalization)
        return bytes(dkim.sign(*args, include_headers=signed)) + message

    def verifies(self, message: bytes) -> bool:
        def dns(name: bytes, timeout: int = 5) -> bytes:
            assert name == b"sel._domainkey.example.org."
            return b"v=DKIM1; k=rsa; p=" + base64.b64encode(self.public)

        return bool(dkim.verify(message, dnsfunc=dns))


@pytest.fixture(scope="module")
def key() -> Key:
    private = rsa.generate_private_key(65537, 2048)
    pem = private.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption())
    return Key(pem, private.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo))


def through(running, hop: FakeNextHop, message: bytes) -> bytes:
    if not message.endswith(b"\r\n"):
        message += b"\r\n"
    with running.client() as client:
        assert client.deliver((b"\r\n" + message).replace(b"\r\n.", b"\r\n..")[2:]).startswith(b"250")
    return hop.messages[-1].data


@pytest.mark.parametrize("canonicalization", CANONICALIZATIONS, ids=lambda one: b"/".join(one).decode())
@pytest.mark.parametrize("body", BODIES)
def test_row_29_a_signature_made_before_us_verifies_after_us(running_daemon, key, body, canonicalization):
    hop = FakeNextHop()
    running = running_daemon(hop)
    for kind, field in KINDS.items():
        signed = key.sign(HEAD + field + b"\r\n" + BODIES[body], canonicalization)
        arrived = through(running, hop, signed)
        assert arrived != signed and b"X-Spamguard: " + kind.encode() in arrived
        assert key.verifies(arrived)


def test_a_changed_message_does_not_verify(key):
    signed = key.sign(HEAD + b"\r\nHello\r\n", (b"relaxed", b"relaxed"))
    assert key.verifies(signed)
    assert not key.verifies(signed.replace(b"Hello", b"Hallo"))
    assert not key.verifies(signed.replace(b"two blanks", b"three blanks"))


@pytest.mark.parametrize("canonicalization", CANONICALIZATIONS, ids=lambda one: b"/".join(one).decode())
def test_a_tag_in_the_subject_voids_the_signature_and_strip_mends_it(running_daemon, key, canonicalization):
    hop = FakeNextHop()
    running = running_daemon(hop, policy={"subject_tag": "[SPAM] "})
    signed = {kind: key.sign(HEAD + field + b"\r\nHello\r\n", canonicalization) for kind, field in KINDS.items()}
    arrived = {kind: through(running, hop, message) for kind, message in signed.items()}
    assert {kind: key.verifies(message) for kind, message in arrived.items()} == {
        "ham": True,
        "spam": False,
        "unscored": True,
    }
    assert b"\r\nSubject:  [SPAM] two blanks" in arrived["spam"]
    assert headers.strip(arrived["spam"]) == signed["spam"]
