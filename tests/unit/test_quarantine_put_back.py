"""Release into a Maildir: where it was, as it was, and once."""

from __future__ import annotations

import errno
import os
import socket
import stat
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from service import put_back
from service.envelope import Envelope
from service.held import Source
from service.put_back import free_place
from spamguard import headers, released
from spamguard.errors import QuarantineError
from tests.held_mail import CLEAN, ID, RAW, Store


def box(folder: Path) -> Path:
    for part in ("tmp", "new", "cur"):
        (folder / part).mkdir(parents=True)
    return folder


def mails(folder: Path) -> list[Path]:
    return sorted(path for part in ("tmp", "new", "cur") for path in (folder / part).iterdir())


def test_without_a_next_hop_it_goes_into_the_inbox(store):
    done = store.release()
    inbox = store.folder / "Maildir"
    assert (done.state, done.taken, store.state) == ("released", (str(inbox),), "released")
    (file,) = mails(inbox)
    content = file.read_bytes()
    assert file.parent.name == "new" and f",S={len(content)}" in file.name
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert b"\r" not in content and content.endswith(CLEAN.replace(b"\r\n", b"\n"))
    assert content.startswith(b"X-Spamguard: released; id=0123456789ab\n")
    assert b"Return-Path: <bounce+x@example.org>\nDelivered-To: bob@example.net\n" in content
    assert released.is_ours(content, store.key) == ID
    assert store.release().state == "already" and len(mails(inbox)) == 1


def test_without_a_next_hop_there_is_no_way_to_others(store):
    with pytest.raises(QuarantineError, match="without next_hop there is no way to carol@x"):
        store.release("carol@x")
    assert store.state == "held"


@pytest.fixture
def taken(store: Store, tmp_path: Path) -> Callable[..., Source]:
    """Hold a message taken from a Maildir."""

    def take(folder: str = "INBOX", flags: str = "FSa", name: str = "1700000000.M1P2.host,S=90,W=99,U=7") -> Source:
        root = tmp_path / "ann"
        box(root if folder == "INBOX" else root / folder)
        source = Source(str(root), folder, name, flags, 1_700_000_000_123_456_789, 0o6640)
        store.quarantine.delete(ID)
        store.hold(RAW.replace(b"\r\n", b"\n"), Envelope(), source)
        return source

    return take


@pytest.mark.parametrize("folder", ["INBOX", ".Lists.Work"])
@pytest.mark.parametrize("flags", ["FSa", ""])
def test_what_a_watcher_took_goes_back_where_it_was(store, hop, taken, folder, flags):
    behind = hop()
    taken(folder, flags)
    where = store.folder / "ann" / ("" if folder == "INBOX" else folder)
    done = store.release()
    assert (done.state, done.taken, behind.messages) == ("released", (str(where),), [])
    (file,) = mails(where)
    content = file.read_bytes()
    name = f"1700000000.M1P2.host,S={len(content)}"
    assert (file.parent.name, file.name) == (("cur", f"{name}:2,FSa") if flags else ("new", name))
    assert file.stat().st_mtime_ns == 1_700_000_000_123_456_789 and stat.S_IMODE(file.stat().st_mode) == 0o640
    assert content.endswith(CLEAN.replace(b"\r\n", b"\n")) and headers.strip(content).startswith(b"From: ann")
    assert released.is_ours(content, store.key) == ID and store.state == "released"


def test_a_name_that_is_taken_is_not_used(store, taken):
    source = taken()
    inbox = store.folder / "ann"
    place = free_place(source, len(released.sign(RAW.replace(b"\r\n", b"\n"), ID, store.key)))
    (inbox / "cur" / f"{place.name}:2,S").write_bytes(b"another")
    store.release()
    assert (inbox / "cur" / f"{place.name}:2,S").read_bytes() == b"another"
    assert len(mails(inbox)) == 2


@pytest.mark.parametrize("moved", ["", ":2,RS"])
def test_a_second_attempt_makes_no_second_copy(store, taken, monkeypatch, moved):
    taken(flags="")
    inbox = store.folder / "ann"
    monkeypatch.setattr(store.quarantine, "settle", lambda folder: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        store.release()
    monkeypatch.undo()
    (file,) = mails(inbox)
    if moved:  # The server has seen it, and the user has read it.
        file = file.rename(inbox / "cur" / f"{file.name}{moved}")
    before = file.read_bytes()
    assert store.release().state == "released"
    assert mails(inbox) == [file] and file.read_bytes() == before


@pytest.mark.parametrize("step", ["write", "link", "fsync"])
def test_row_31_a_fault_leaves_nothing_in_the_maildir_and_the_message_held(store, taken, monkeypatch, step):
    taken()
    assert len(store.key) == 32

    def failing(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    if step == "write":
        monkeypatch.setattr(os, "fchmod", failing)
    elif step == "link":
        monkeypatch.setattr(os, "link", failing)
    else:
        real = put_back._write
        monkeypatch.setattr(put_back, "_write", lambda *a: (real(*a), failing()))
    with pytest.raises(OSError, match="No space"):
        store.release()
    monkeypatch.undo()
    assert mails(store.folder / "ann") == [] and store.state == "held"
    assert store.release().state == "released" and len(mails(store.folder / "ann")) == 1


def test_what_an_attempt_left_that_was_killed_is_no_hindrance(store, taken, monkeypatch):
    taken()
    assert len(store.key) == 32
    unlink = os.unlink
    monkeypatch.setattr(os, "link", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
    monkeypatch.setattr(os, "unlink", lambda path, **more: None if more else unlink(path))
    with pytest.raises(KeyboardInterrupt):
        store.release()
    monkeypatch.undo()
    (leftover,) = mails(store.folder / "ann")
    assert leftover.parent.name == "tmp"
    leftover.write_bytes(b"torn")
    assert store.release().state == "released"
    (file,) = mails(store.folder / "ann")
    assert file.parent.name == "cur" and released.is_ours(file.read_bytes(), store.key) == ID


def test_row_20_no_link_is_followed_on_the_way_back(store, taken):
    taken(".Lists")
    folder = store.folder / "ann/.Lists"
    outside = box(store.folder / "outside")
    for harm in ("cur", "tmp", ".Lists"):
        victim = folder if harm == ".Lists" else folder / harm
        aside = victim.rename(store.folder / f"aside{harm}")
        victim.symlink_to(outside if harm == ".Lists" else outside / harm)
        with pytest.raises(OSError):
            store.release()
        assert mails(outside) == [] and store.state == "held"
        victim.unlink()
        aside.rename(victim)
    assert store.release().state == "released"


def test_a_folder_that_is_gone_leaves_it_held_and_to_is_a_way(store, hop, taken):
    behind = hop()
    taken(".Lists")
    (store.folder / "ann/.Lists").rename(store.folder / "gone")
    with pytest.raises(FileNotFoundError):
        store.release()
    assert store.release("ann@example.net").state == "released"
    assert behind.messages[0].mail.startswith(b"MAIL FROM:<> BODY=8BITMIME SIZE=")
    assert behind.messages[0].data.endswith(CLEAN + b"\r\n")


def test_what_root_puts_back_belongs_to_the_owner_of_the_folder(store, taken):
    if os.geteuid() != 0:
        pytest.skip("not root")
    taken()
    for path in [store.folder / "ann", *(store.folder / "ann").iterdir()]:
        os.chown(path, 12345, 23456)
    store.release()
    (file,) = mails(store.folder / "ann")
    assert (file.stat().st_uid, file.stat().st_gid) == (12345, 23456)


def test_a_host_name_of_any_kind_makes_a_name(monkeypatch, store):
    monkeypatch.setattr(socket, "gethostname", lambda: "a/b:c,d")
    assert store.release().state == "released"
    assert len(mails(store.folder / "Maildir")) == 1
    assert time.time() - mails(store.folder / "Maildir")[0].stat().st_mtime < 60
