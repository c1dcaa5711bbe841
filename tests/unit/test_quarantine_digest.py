"""A digest tells one recipient of his own mail, once, and nothing in it is obeyed or can be clicked."""

from __future__ import annotations

import email
import json
import os
import re
import sqlite3
import threading
import time
from collections.abc import Callable
from contextlib import closing
from email import policy
from email.message import EmailMessage
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from service import digest
from service.envelope import Envelope
from service.envelope import Path as Mailbox
from service.held import Source
from spamguard import released
from spamguard.cli import main
from spamguard.verdict import Reason
from tests.fakes import DROP, verdict
from tests.held_mail import Store
from tests.unit.test_quarantine_commands import assert_one_line, config_file

A, B, C = "aaaaaaaa0001", "bbbbbbbb0002", "cccccccc0003"
Run = Callable[..., Result]


@pytest.fixture(autouse=True)
def empty(store: Store) -> None:
    for message_id in store.quarantine.states():
        store.quarantine.delete(message_id)


@pytest.fixture
def run(store: Store) -> Run:
    def invoke(recipient: str, *options: str) -> Result:
        arguments = ["--config", str(config_file(store)), "quarantine", "digest", "--to", recipient, *options]
        return CliRunner().invoke(main, arguments)

    return invoke


def hold(store: Store, message_id: str, *to: str, subject: str = "pills", reasons: tuple[Reason, ...] = ()) -> None:
    recipients = [Mailbox(f"<{one}>".encode("utf-8", "surrogateescape")) for one in to]
    envelope = Envelope(sender=Mailbox(b"<ann@example.org>"), recipients=recipients)
    raw = f"From: Ann <ann@example.org>\r\nTo: {', '.join(to)}\r\nSubject: {subject}\r\n\r\nbody\r\n"
    staged = store.quarantine.stage(
        message_id, envelope, [raw.encode("utf-8", "surrogateescape")], verdict(0.97, reasons=reasons)
    )
    staged.commit()


def read(raw: bytes) -> tuple[EmailMessage, str, str]:
    """The mail, its text and its HTML."""
    message = email.message_from_bytes(raw, policy=policy.default)
    assert isinstance(message, EmailMessage) and not message.defects
    text, page = message.iter_parts()
    assert (text.get_content_type(), page.get_content_type()) == ("text/plain", "text/html")
    return message, text.get_content(), page.get_content()


def test_it_goes_to_the_recipient_with_what_he_needs(run, store, hop):
    behind = hop()
    hold(store, A, "Bob@Example.net", reasons=(Reason("wide", '"pills"', 1.5), Reason("deep", "meaning", -1.0)))
    result = run("bob@example.net")
    assert (result.exit_code, result.output) == (0, "")
    (got,) = behind.messages
    assert got.mail.startswith(b"MAIL FROM:<> ") and got.rcpt == [b"RCPT TO:<bob@example.net>"]
    message, text, page = read(got.data)
    assert (message["From"], message["To"]) == ("spamguard <postmaster@filter.example>", "bob@example.net")
    assert (message["Subject"], message["Auto-Submitted"]) == ("Held as spam: 1 message", "auto-generated")
    for part in (text, page):
        for words in ("Ann", "ann@example.org", "pills", "0.9700", f"spamguard quarantine release {A}"):
            assert words in part
        assert "meaning" not in part
    assert released.is_ours(got.data, store.key)


def test_what_he_was_told_he_is_not_told_again(run, store, hop):
    behind = hop()
    hold(store, A, "bob@x")
    run("bob@x")
    assert (run("bob@x").exit_code, len(behind.messages)) == (0, 1)
    hold(store, B, "bob@x")
    run("BOB@x")
    _, text, _ = read(behind.messages[1].data)
    assert B in text and A not in text


@pytest.mark.parametrize("jump", [-(10**8), 10**8])
def test_row_30_no_clock_has_a_say_in_what_is_new(run, store, hop, monkeypatch, jump):
    behind = hop()
    hold(store, A, "bob@x")
    run("bob@x")
    now = time.time()
    monkeypatch.setattr("time.time", lambda: now + jump)
    hold(store, B, "bob@x")
    monkeypatch.undo()
    run("bob@x")
    assert B in read(behind.messages[1].data)[1] and len(behind.messages) == 2


def test_without_a_next_hop_it_goes_into_the_inbox(run, store):
    hold(store, A, "bob@x")
    assert run("bob@x").exit_code == 0
    (file,) = (store.folder / "Maildir/new").iterdir()
    raw = file.read_bytes()
    assert b"\r" not in raw and A in read(raw)[1] and released.is_ours(raw, store.key)


def test_nothing_held_no_mail(run, store, hop):
    behind = hop()
    hold(store, A, "eve@x")
    assert (run("bob@x").exit_code, run("bob@x", "--print").output, behind.lines) == (0, "", [])


@pytest.mark.parametrize("script", [{"RCPT": b"550 5.1.1 no such user"}, {"dot": DROP}, {"dot": b"452 4.2.2 full"}])
def test_it_has_not_been_told_until_the_mail_is_taken(run, store, hop, script):
    behind = hop(**script)
    hold(store, A, "bob@x")
    assert_one_line(run("bob@x"), "")
    behind.script |= {"RCPT": b"250 ok", "dot": b"250 ok"}
    assert run("bob@x").exit_code == 0 and len(behind.messages) == 1


def test_print_writes_it_and_that_is_telling(run, store, hop):
    behind = hop()
    hold(store, A, "bob@x")
    raw = run("bob@x", "--print").stdout_bytes
    assert A in read(raw)[1] and released.is_ours(raw, store.key)
    assert run("bob@x").exit_code == 0 and behind.messages == []


def test_what_was_released_deleted_or_damaged_is_not_in_it(run, store, hop):
    for message_id in (A, B, C):
        hold(store, message_id, "bob@x")
    store.quarantine.settle(store.quarantine.path(A))
    (store.quarantine.path(B) / "envelope.json").write_bytes(b"{")
    text = read(run("bob@x", "--print").stdout_bytes)[1]
    assert C in text and A not in text and B not in text


def test_what_is_gone_is_forgotten(run, store):
    told = store.quarantine.folder / "digests.json"
    hold(store, A, "bob@x")
    run("bob@x", "--print")
    assert json.loads(told.read_text()) == {"bob@x": [A]}
    store.quarantine.delete(A)
    hold(store, B, "eve@x")
    run("eve@x", "--print")
    assert json.loads(told.read_text()) == {"eve@x": [B]}


@pytest.mark.parametrize("said", [b"", b"{", b"[]", b'{"bob@x": 7}', b"[" * 100_000])
def test_a_damaged_note_of_what_was_told_tells_it_again(run, store, said):
    hold(store, A, "bob@x")
    run("bob@x", "--print")
    (store.quarantine.folder / "digests.json").write_bytes(said)
    assert A in read(run("bob@x", "--print").stdout_bytes)[1]


def test_of_very_many_the_oldest_come_first_and_the_others_next_time(run, store, monkeypatch):
    monkeypatch.setattr(digest, "_MOST", 2)
    for message_id in (A, B, C):
        hold(store, message_id, "bob@x")
    message, text, _ = read(run("bob@x", "--print").stdout_bytes)
    assert message["Subject"] == "Held as spam: 3 messages" and "oldest 2 of them" in text
    assert A in text and B in text and C not in text
    text = read(run("bob@x", "--print").stdout_bytes)[1]
    assert C in text and A not in text


def test_two_digests_at_once_tell_it_once(store):
    hold(store, A, "bob@x")
    told: list[str] = []

    def one() -> None:
        with digest.Digests(store.quarantine) as digests:
            waiting = digests.waiting("bob@x")
            told.extend(item.id for item in waiting)
            digests.tell("bob@x", waiting)

    threads = [threading.Thread(target=one) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert told == [A]


@pytest.mark.parametrize("wrong", ["", "a b@x", "a@x>\r\nBcc: <eve@x", "a@x\0", "\x1b[2J x"])
def test_an_address_that_is_none_is_one_line(run, store, wrong):
    hold(store, A, "bob@x")
    assert_one_line(run(wrong), "is no address")


# --- Row 23 ---------------------------------------------------------------------------------------------------------


def test_row_23_nobody_sees_what_is_held_for_another(run, store):
    hold(store, A, "bob@example.net", subject="for bob")
    hold(store, B, "eve@example.net", subject="for eve")
    hold(store, C, "eve@example.net", "bob@example.net", "carol@example.net", subject="for all")
    raw = run("bob@example.net", "--print").stdout_bytes
    _, text, page = read(raw)
    for part in (text, page):
        assert A in part and C in part and "for bob" in part and "for all" in part
        assert B not in part and "for eve" not in part
        assert "eve@" not in part and "carol@" not in part
    assert b"eve@" not in raw and b"carol@" not in raw


@pytest.mark.parametrize(
    "other", ["bob@example.net.evil", "xbob@example.net", "bob@example", "bob", "@example.net", "bob%@example.net"]
)
def test_row_23_addresses_that_resemble_his_are_not_his(run, store, other):
    hold(store, A, "bob@example.net")
    assert run(other, "--print").output == ""


def test_row_23_list_to_shows_only_what_is_for_him(store):
    hold(store, A, "bob@example.net")
    hold(store, B, "eve@example.net")
    arguments = ["--config", str(config_file(store)), "quarantine", "list", "--to", "bob@example.net"]
    output = CliRunner().invoke(main, arguments).output
    assert A in output and B not in output and "eve" not in output


def test_row_23_a_forged_delivered_to_is_not_believed(run, store):
    source = Source("/home/eve/Maildir", "INBOX", "1.M2.host", "", 0, 0o600)
    forged = b"Received: from mx\nDelivered-To: bob@example.net\nSubject: for eve\n\nx\n"
    store.quarantine.stage(A, Envelope(), [b"Delivered-To: eve@example.net\n" + forged], None, source).commit()
    assert run("bob@example.net", "--print").output == ""
    assert A in read(run("eve@example.net", "--print").stdout_bytes)[1]


# --- Nothing is obeyed ----------------------------------------------------------------------------------------------


def test_hostile_text_is_only_text(run, store):
    evil = '<img src="http://evil.example/x"><script>x()</script>" onload=x() \u202e \x1b[2J www.evil.example &amp;'
    hold(store, A, "bob@x", subject=evil, reasons=(Reason("wide", evil, 1.0),))
    raw = run("bob@x", "--print").stdout_bytes
    message, text, page = read(raw)
    assert set(re.findall(r"<(\w+)", page)) <= {"html", "body", "p", "table", "tr", "th", "td"}
    assert not re.search(r"(?i)href|src=[^\"]*http://|<a\b", page) and "&lt;script&gt;" in page
    for part in (text, page, str(message["Subject"])):
        assert all(line.isprintable() for line in part.splitlines())
        assert "://" not in part and "www." not in part
    assert len(text.splitlines()) < 20


def test_an_odd_recipient_and_odd_bytes(run, store):
    odd = {A: '"a b"@example.net', B: "dörte@example.net", C: "\udcff@example.net"}
    for message_id, recipient in odd.items():
        hold(store, message_id, recipient, subject="\udcfe\udcff")
        raw = run(recipient, "--print").stdout_bytes
        assert message_id in read(raw)[1]
        assert b"To: <" + recipient.encode("utf-8", "surrogateescape") + b">\r\n" in raw


def test_row_31_a_full_disk_tells_it_again(run, store, monkeypatch):
    hold(store, A, "bob@x")
    assert len(store.key) == 32
    rename = Path.rename

    def full(self: Path, target: Path) -> Path:
        if target.name == "digests.json":
            raise OSError(28, "No space left on device")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", full)
    result = run("bob@x", "--print")
    assert result.exit_code == 2 and "No space left" in result.stderr and result.stderr.count("\n") == 1
    monkeypatch.undo()
    assert A in read(run("bob@x", "--print").stdout_bytes)[1]
    assert os.listdir(store.quarantine.folder / "tmp") == []  # noqa: PTH208


@pytest.mark.parametrize("said", ['["eve@example.net"]', "not json", '"x"'])
def test_row_23_a_damaged_index_shows_nobody_anothers_mail(store: Store, said: str) -> None:
    hold(store, A, "bob@example.net")
    with digest.Digests(store.quarantine) as digests:
        assert [item.id for item in digests.waiting("bob@example.net")] == [A]
        with closing(sqlite3.connect(store.quarantine.folder / "index.sqlite3")) as database, database:
            database.execute("UPDATE items SET recipients = ?", (said,))
        assert digests.waiting("eve@example.net") == []
