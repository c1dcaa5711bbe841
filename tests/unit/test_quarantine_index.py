"""The index says what the files say, whatever became of either; and what is odd or damaged is listed, never fatal."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import time
from pathlib import Path

import pytest

from service.envelope import Envelope
from service.envelope import Path as Mailbox
from service.held import Source
from service.item_text import line_of
from service.quarantine import Quarantine
from service.quarantine_index import Index, Item
from tests.fakes import verdict
from tests.held_mail import age

A, B, C = "aaaaaaaa0001", "bbbbbbbb0002", "cccccccc0003"
MAIL = b"From: =?utf-8?q?B=C3=BCro?= <office@example.org>\r\nSubject: =?utf-8?q?Gr=C3=BC=C3=9Fe?=\r\n\r\nbody\r\n"


@pytest.fixture
def quarantine(tmp_path: Path) -> Quarantine:
    made = Quarantine(tmp_path / "q")
    made.create()
    return made


def hold(
    quarantine: Quarantine,
    message_id: str = A,
    raw: bytes = MAIL,
    sender: bytes = b"<ann@example.org>",
    to: tuple[bytes, ...] = (b"<bob@example.net>",),
    score: float | None = 0.97,
    source: Source | None = None,
    lmtp: bool = False,
) -> Path:
    envelope = Envelope(sender=Mailbox(sender), recipients=[Mailbox(one) for one in to], lmtp=lmtp)
    staged = quarantine.stage(message_id, envelope, [raw], None if score is None else verdict(score), source)
    staged.commit()
    return staged.final


def items(quarantine: Quarantine, **filters: object) -> list[Item]:
    with Index(quarantine) as index:
        return index.items(**filters)  # type: ignore[arg-type]


def ids(quarantine: Quarantine, **filters: object) -> list[str]:
    return [item.id for item in items(quarantine, **filters)]


def test_an_item_is_what_the_files_say(quarantine):
    hold(quarantine, to=(b"<bob@example.net>", b'<"a b"@x>'), lmtp=True)
    (item,) = items(quarantine)
    assert abs(item.received - time.time()) < 60
    assert (item.id, item.state, item.source, item.sender, item.recipients) == (
        A, "held", "lmtp", "ann@example.org", ("bob@example.net", '"a b"@x'),
    )  # fmt: skip
    assert (item.header_from, item.subject) == ("Büro <office@example.org>", "Grüße")
    assert (item.label, item.score, item.size, item.damaged) == ("spam", 0.97, len(MAIL), None)


def test_it_follows_the_files(quarantine):
    hold(quarantine)
    assert ids(quarantine) == [A]
    second = hold(quarantine, B)
    assert ids(quarantine) == [A, B]
    quarantine.settle(second)
    assert (ids(quarantine), ids(quarantine, released=True)) == ([A], [A, B])
    assert [item.state for item in items(quarantine, released=True)] == ["held", "released"]
    quarantine.delete(A)
    assert ids(quarantine, released=True) == [B]
    hold(quarantine, A, b"Subject: other\r\n\r\n")
    shutil.rmtree(quarantine.folder / "held" / A)
    hold(quarantine, C)
    assert ids(quarantine, released=True) == [B, C]


def test_each_message_is_read_once(quarantine, monkeypatch):
    from service import quarantine_index

    read = []
    real = quarantine_index.read_head
    monkeypatch.setattr(quarantine_index, "read_head", lambda f, limit: (read.append(f.name), real(f, limit))[1])
    hold(quarantine, A)
    hold(quarantine, B)
    for _ in range(3):
        assert ids(quarantine) == [A, B]
    assert read == [A, B]


def test_filters(quarantine):
    for number, (message_id, score) in enumerate([(A, 0.5), (B, 0.97), (C, None)]):
        age(hold(quarantine, message_id, score=score), 1000.0 + number)
    for wanted, filters in [
        ([A, B, C], {}),
        ([B, C], {"since": 1001.0}),
        ([], {"since": 1002.5}),
        ([B], {"score": 0.97}),
        ([A, B], {"score": 0.0}),
        ([A, B, C], {"sender": "ANN@"}),
        ([A, B, C], {"sender": "bÜro"}),
        ([], {"sender": "bob"}),
        ([A, B, C], {"recipient": "Bob@Example.NET"}),
        ([], {"recipient": "ann"}),
        ([], {"recipient": "%"}),
        ([], {"sender": "\udcff"}),
        ([A, B], {"score": 0.1, "sender": "ann", "recipient": "bob", "since": 1000.0, "released": True}),
    ]:  # fmt: skip
        assert ids(quarantine, **filters) == wanted, filters


@pytest.mark.parametrize(
    "harm",
    [
        lambda file: file.unlink(),
        lambda file: file.write_bytes(b""),
        lambda file: file.write_bytes(b"no database at all" * 1000),
        lambda file: file.write_bytes(file.read_bytes()[:5000]),
        lambda file: file.write_bytes(file.read_bytes()[:100] + os.urandom(20_000)),
        lambda file: (file.unlink(), file.mkdir()),
        lambda file: (file.unlink(), file.symlink_to("/etc/passwd")),
        lambda file: sqlite3.connect(file).execute("PRAGMA user_version = 99").connection.close(),
        lambda file: (file.parent / "index.sqlite3-wal").write_bytes(os.urandom(50_000)),
    ],
)
def test_a_damaged_index_is_made_again(quarantine, harm):
    hold(quarantine, A)
    quarantine.settle(hold(quarantine, B))
    before = items(quarantine, released=True)
    harm(quarantine.folder / "index.sqlite3")
    assert items(quarantine, released=True) == before
    hold(quarantine, C)
    assert ids(quarantine, released=True) == [A, B, C]
    assert Path("/etc/passwd").read_bytes().startswith(b"root:")


def test_what_stands_in_the_index_and_not_in_the_files_is_not_there(quarantine):
    hold(quarantine, A)
    items(quarantine)
    shutil.rmtree(quarantine.folder / "held")
    assert items(quarantine) == []


def test_without_a_folder_nothing_is_held_and_nothing_is_made(tmp_path):
    assert items(Quarantine(tmp_path / "none")) == []
    assert list(tmp_path.iterdir()) == []


def test_two_indexes_at_once(quarantine):
    hold(quarantine, A)
    with Index(quarantine) as first:
        hold(quarantine, B)
        with Index(quarantine) as second:
            assert [item.id for item in second.items()] == [A, B]
        assert [item.id for item in first.items()] == [A, B]


def test_it_is_for_its_owner_alone(quarantine):
    before = os.umask(0)
    try:
        items(quarantine)
    finally:
        os.umask(before)
    assert {file.stat().st_mode & 0o777 for file in quarantine.folder.glob("index*")} == {0o600}


# --- Row 20, and odd mail -------------------------------------------------------------------------------------------


def _fifo(folder: Path) -> None:
    (folder / "message.eml").unlink()
    os.mkfifo(folder / "message.eml")


def _linked(folder: Path) -> None:
    shutil.move(folder, folder.parents[2] / "elsewhere")
    folder.symlink_to(folder.parents[2] / "elsewhere")


@pytest.mark.parametrize(
    "damage",
    [
        _fifo,
        _linked,
        lambda folder: (folder / "envelope.json").unlink(),
        lambda folder: (folder / "message.eml").unlink(),
        lambda folder: (folder / "envelope.json").write_bytes(b"[" * 100_000),
        lambda folder: (folder / "envelope.json").write_bytes(b"\xff{"),
        lambda folder: (folder / "message.eml").write_bytes(b"shorter"),
        lambda folder: (shutil.rmtree(folder), folder.write_bytes(b"a file")),
        lambda folder: age(folder, float("nan")),
        lambda folder: age(folder, "yesterday"),
        lambda folder: _said(folder, verdict={"label": [], "probability": {}}),
        lambda folder: _said(folder, verdict=7),
        lambda folder: _said(folder, size=2**70),
        lambda folder: _said(folder, recipients="x"),
    ],
)
def test_row_20_what_is_damaged_is_listed_as_that(quarantine, damage):
    folder = hold(quarantine, A)
    hold(quarantine, B)
    damage(folder)
    found = {item.id: item for item in items(quarantine)}
    assert found[B].damaged is None
    assert (found[A].damaged or "").startswith(f"{A}: ")
    assert line_of(found[A], True).isprintable()
    assert ids(quarantine, recipient="bob") == [B]


def _said(folder: Path, **changes: object) -> None:
    file = folder / "envelope.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def test_what_could_not_be_read_once_is_tried_again(quarantine):
    folder = hold(quarantine, A)
    shutil.move(folder / "envelope.json", folder / "away")
    assert items(quarantine)[0].damaged
    shutil.move(folder / "away", folder / "envelope.json")
    assert items(quarantine)[0].damaged is None


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"no header at all",
        b"Subject: caf\x82 \xff\xfe raw\r\nFrom: \xe4 <\xf6@x>\r\n\r\n",
        b"Content-Type: text/plain; charset=cp-850\r\nSubject: =?cp850?q?=82?= =?nonsense?x?y?=\r\n\r\n\x82",
        b"Subject: \x1b[2J\x07 \xe2\x80\xae evil\r\n\r\n",
        b"Subject: a\0b\r\n\r\n",
        b"Subject: " + b"x" * 100_000 + b"\r\n\r\n",
        b"Content-Type: multipart/mixed; boundary=x\r\nFrom: <>\r\n\r\n--x\r\n--x",
        b"From: a@b, c@d <e@f\r\n\r\n",
    ],
)
def test_odd_mail_is_listed_safely(quarantine, raw):
    hold(quarantine, A, raw, sender=b"<\xff\xfe\x1b[31m@x>", to=(b'<"\\\xe4 \x07>"@x>', b"<@r,@s:u@x>", b"<>"))
    (item,) = items(quarantine)
    assert item.damaged is None and item.size == len(raw)
    assert line_of(item, False).isprintable()
    json.dumps(item.recipients)
    assert ids(quarantine, recipient="U@X") == [A]


def test_odd_spellings_of_a_mailbox_are_the_same_mailbox(quarantine):
    hold(quarantine, A, to=(b"<@r:Bob@Example.net>", b'<"eve"@x>', b"<\xff@x>"))
    (item,) = items(quarantine)
    assert item.is_for("bob@example.net") and item.is_for("EVE@x") and item.is_for("\udcff@x")
    assert not item.is_for("ob@example.net") and not item.is_for("\\udcff@x") and not item.is_for("")


SOURCE = Source("/home/ann/Maildir", "INBOX", "1700000000.M1.host", "", 0, 0o600)


def test_a_message_of_a_maildir_has_the_addresses_that_its_last_server_noted(quarantine):
    top = b"Return-Path: <ann@example.org>\nX-Original-To: info@example.net\nDelivered-To: bob@example.net\n"
    forged = b"Received: from x\nReturn-Path: <no@x>\nDelivered-To: eve@example.net\n"
    hold(quarantine, A, top + forged + MAIL, b"<>", (), source=SOURCE)
    hold(quarantine, B, top + forged + MAIL, b"<>", (), source=Source("/m", ".Lists", "a", "S", 0, 0))
    assert [item.source for item in items(quarantine)] == ["/home/ann/Maildir", "/m/.Lists"]
    for item in items(quarantine):
        assert item.sender == "ann@example.org" and item.recipients == ("info@example.net", "bob@example.net")
