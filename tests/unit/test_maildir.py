"""Delivery into a Maildir: nothing is answered before a crash can no longer take it back."""

from __future__ import annotations

import asyncio
import errno
import mailbox
import os
from pathlib import Path

import pytest

from service import maildir
from service.content import Content
from service.envelope import Envelope
from service.envelope import Path as MailPath
from service.maildir import Maildir, MaildirDelivery
from spamguard.actions import Disposition, pass_on, tag
from spamguard.config import PolicyTable
from spamguard.errors import DeliveryError
from tests.fakes import verdict

DATA = b"Subject: x\n\nbody\n"


class Spy:
    """Notes what is done to the disk, in order; may fail at one step."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, fail: str = "", error: int = errno.EIO) -> None:
        self.steps: list[str] = []
        self.fail, self.error = fail, error
        self.real = {name: getattr(os, name) for name in ("open", "write", "fsync")}
        self.names: dict[int, str] = {}
        monkeypatch.setattr(os, "open", self.open)
        monkeypatch.setattr(os, "write", self.write)
        monkeypatch.setattr(os, "fsync", self.fsync)
        rename = Path.rename
        monkeypatch.setattr(Path, "rename", lambda path, to: (self.step("rename"), rename(path, to))[1])

    def step(self, name: str) -> None:
        self.steps.append(name)
        if name == self.fail:
            raise OSError(self.error, os.strerror(self.error))

    def open(self, path, flags, *rest, **more):
        if flags & os.O_CREAT:
            self.step("create")
        descriptor = self.real["open"](path, flags, *rest, **more)
        self.names[descriptor] = "folder" if flags & os.O_DIRECTORY else "file"
        return descriptor

    def write(self, descriptor, data):
        if self.names.get(descriptor) != "file":
            return self.real["write"](descriptor, data)
        self.step("write")
        return self.real["write"](descriptor, data[:7])  # a short write, as a full pipe or disk makes them

    def fsync(self, descriptor):
        self.step(f"fsync {self.names[descriptor]}")
        return self.real["fsync"](descriptor)


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.name != "maildirfolder")


def test_written_synced_renamed_and_the_folder_synced_in_that_order(tmp_path, monkeypatch):
    box = Maildir(tmp_path / "box", ".Junk")
    box.create()
    spy = Spy(monkeypatch)
    path = box.deliver([DATA], junk=False)
    assert spy.steps == ["create", "write", "write", "write", "fsync file", "rename", "fsync folder"]
    assert path.read_bytes() == DATA
    assert path.parent == tmp_path / "box/new"
    assert path.name.endswith(f",S={len(DATA)}")
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("step", ["create", "write", "fsync file", "rename"])
def test_a_fault_leaves_nothing_behind(tmp_path, monkeypatch, step):
    box = Maildir(tmp_path, ".Junk")
    box.create()
    Spy(monkeypatch, fail=step)
    with pytest.raises(OSError):
        box.deliver([DATA], junk=False)
    assert files(tmp_path) == []


def test_spam_goes_into_a_folder_that_is_made_like_maildir_plus_plus(tmp_path):
    path = Maildir(tmp_path / "box", ".Junk").deliver([DATA], junk=True)
    assert path.parent == tmp_path / "box/.Junk/new"
    assert (tmp_path / "box/.Junk/maildirfolder").is_file()
    assert {folder.name for folder in (tmp_path / "box/.Junk").iterdir() if folder.is_dir()} == {"tmp", "new", "cur"}
    box = mailbox.Maildir(tmp_path / "box", create=False)
    assert box.list_folders() == ["Junk"]
    assert [message["Subject"] for message in box.get_folder("Junk")] == ["x"]


def test_without_a_junk_folder_all_goes_into_the_inbox(tmp_path):
    assert Maildir(tmp_path, "").deliver([DATA], junk=True).parent == tmp_path / "new"


def test_names_are_unique(tmp_path, monkeypatch):
    monkeypatch.setattr(maildir.time, "time_ns", lambda: 1_700_000_000_000_000_000)
    box = Maildir(tmp_path, "")
    assert len({box.deliver([DATA], junk=False).name for _ in range(100)}) == 100


def test_a_file_that_is_there_is_never_overwritten(tmp_path, monkeypatch):
    box = Maildir(tmp_path, "")
    box.create()
    monkeypatch.setattr(maildir, "unique_name", lambda: "same")
    (tmp_path / "tmp/same").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(FileExistsError):
        box.deliver([DATA], junk=False)
    assert not (tmp_path / "elsewhere").exists()


def deliver(tmp_path: Path, disposition: Disposition, envelope: Envelope) -> tuple[bytes, bytes]:
    way_out = MaildirDelivery(Maildir(tmp_path, ".Junk"), "filter.example")
    replies = asyncio.run(way_out.deliver("id1", envelope, Content(disposition.data), disposition.junk))
    (path,) = files(tmp_path)
    assert len(replies) == len(envelope.recipients) and len(set(replies)) <= 1
    return b"".join(set(replies)), path.read_bytes()


def test_the_last_server_adds_its_trace(tmp_path):
    recipients = [MailPath(b"<b@example.net>"), MailPath(b"<c@example.net>")]
    sender = MailPath(b"<\xc3\xbc@example.org>", (b"smtputf8",))
    envelope = Envelope(b"cli\xffent", "192.0.2.1", sender=sender, recipients=recipients)
    reply, data = deliver(tmp_path, tag(b"Subject: x\r\n\r\nbody\r\n", verdict(0.99), PolicyTable()), envelope)
    assert reply == b"250 2.0.0 Ok: delivered as id1"
    lines = data.split(b"\n")
    assert lines[:3] == [
        b"Return-Path: <\xc3\xbc@example.org>", b"Delivered-To: b@example.net", b"Delivered-To: c@example.net"
    ]  # fmt: skip
    assert lines[3] == b"Received: from cli?ent ([192.0.2.1])"
    assert lines[4] == b"\tby filter.example (spamguard) with UTF8SMTP id id1;"
    assert lines[6] == b"X-Spam-Flag: YES"
    assert b"\r" not in data
    assert data.endswith(b"\nSubject: x\n\nbody\n")


def test_text_without_headers_stays_text(tmp_path):
    _, data = deliver(tmp_path, pass_on(b" text\r\n", verdict(0.01), PolicyTable()), Envelope(sender=MailPath(b"<>")))
    assert data.startswith(b"Return-Path: <>\nReceived: ")
    assert data.endswith(b"\n\n text\n")


@pytest.mark.parametrize(
    ("error", "reply"),
    [
        (errno.ENOSPC, b"452 4.3.1 "),
        (errno.EDQUOT, b"452 4.3.1 "),
        (errno.EIO, b"451 4.3.0 "),
        (errno.EROFS, b"451 4.3.0 "),
    ],
)
def test_row_31_a_full_or_broken_disk_is_the_senders_reason_to_wait(tmp_path, monkeypatch, error, reply):
    box = Maildir(tmp_path, ".Junk")
    box.create()
    Spy(monkeypatch, fail="fsync file", error=error)
    with pytest.raises(DeliveryError) as caught:
        asyncio.run(MaildirDelivery(box, "h").deliver("id1", Envelope(), Content(DATA), junk=False))
    assert caught.value.reply.startswith(reply)
    assert str(tmp_path).encode() not in caught.value.reply
    assert files(tmp_path) == []
