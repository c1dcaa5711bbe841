"""What is held is whole, exact and safe, or not there at all; and no id leads out of the folder."""

from __future__ import annotations

import errno
import json
import os
import resource
import stat
import subprocess
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.envelope import Envelope
from service.envelope import Path as Mailbox
from service.held import Source
from service.quarantine import Quarantine
from spamguard.errors import QuarantineError
from spamguard.verdict import Reason
from tests.fakes import verdict

ID = "0123456789ab"
RAW = b"X-Spam-Flag: NO\r\nSubject: \xff\0\r\n\r\nlone \r and \n and .\r\n."
SPAM = verdict(0.99, reasons=(Reason("wide", '"viagra" \u202e\udc80', 1.5),))
ENVELOPE = Envelope(
    helo=b"mx.example",
    peer="192.0.2.1",
    sender=Mailbox(b"<bounce+x@example.org>", (b"BODY=8BITMIME", b"RET=HDRS", b"ENVID=a+20b")),
    recipients=[Mailbox(b"<@r:Bob@example.net>", (b"NOTIFY=NEVER",)), Mailbox(b"<\xff\xe4@x>"), Mailbox(b"eve@x")],
)


@pytest.fixture
def quarantine(tmp_path: Path) -> Quarantine:
    made = Quarantine(tmp_path / "q")
    made.create()
    return made


def hold(quarantine: Quarantine, message_id: str = ID) -> Path:
    staged = quarantine.stage(message_id, ENVELOPE, [RAW], SPAM)
    staged.commit()
    return staged.final


def everything(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


EMPTY = ["held", "released", "tmp"]


def test_what_is_held_is_what_came(tmp_path, quarantine):
    pieces = [RAW[:7], b"", RAW[7:]]
    staged = quarantine.stage(ID, ENVELOPE, iter(pieces), SPAM)
    assert list(quarantine.held()) == []
    staged.commit()
    staged.discard()
    assert list(quarantine.held()) == [ID]
    held = quarantine.open(ID)
    assert (held.id, held.content, held.envelope) == (ID, RAW, ENVELOPE)
    assert abs(held.received - time.time()) < 60
    assert held.verdict is not None
    assert (held.verdict["label"], held.verdict["probability"], held.verdict["head"], held.verdict["encoder"]) == (
        "spam", 0.99, "head-1", "fake-encoder",
    )  # fmt: skip
    assert held.verdict["reasons"] == [{"part": "wide", "what": '"viagra" \u202e\udc80', "logit": 1.5}]
    assert everything(tmp_path / "q") == [
        "held", f"held/{ID}", f"held/{ID}/envelope.json", f"held/{ID}/message.eml", "released", "tmp",
    ]  # fmt: skip
    assert (tmp_path / f"q/held/{ID}/message.eml").read_bytes() == RAW


@given(st.lists(st.binary(max_size=30)), st.binary(max_size=20), st.lists(st.binary(max_size=20), max_size=4))
def test_any_bytes_come_back(tmp_path_factory, pieces, path, parameters):
    quarantine = Quarantine(tmp_path_factory.mktemp("q"))
    quarantine.create()
    envelope = Envelope(path, "::1", False, None, [Mailbox(path, tuple(parameters))])
    quarantine.stage(ID, envelope, pieces, None).commit()
    held = quarantine.open(ID)
    assert (held.content, held.envelope, held.verdict) == (b"".join(pieces), envelope, None)


SOURCE = Source(
    "/home/ann/Maildir", ".Lists", "1700000000.M1P2\udcff.host,S=20", "FSa", 1_700_000_000_123_456_789, 0o640
)


@pytest.mark.parametrize(("lmtp", "source"), [(False, None), (True, None), (False, SOURCE)])
def test_where_it_came_from_comes_back(quarantine, lmtp, source):
    envelope = Envelope(lmtp=lmtp)
    quarantine.stage(ID, envelope, [RAW], None, source).commit()
    held = quarantine.open(ID)
    assert (held.source, held.envelope) == (source, envelope)


def test_files_from_before_there_were_watchers_are_read(quarantine):
    final = hold(quarantine)
    said = json.loads((final / "envelope.json").read_text())
    assert said.pop("source") == "smtp"
    (final / "envelope.json").write_text(json.dumps(said))
    assert (quarantine.open(ID).source, quarantine.open(ID).envelope) == (None, ENVELOPE)


@pytest.mark.parametrize(
    "wrong",
    [{"folder": ".."}, {"folder": "Lists"}, {"folder": "./x"}, {"name": "../x"}, {"name": ".x"}, {"name": ""},
     {"name": "a:2,S"}, {"name": "a\0"}, {"flags": "S/"}, {"maildir": "Maildir"}, {"mode": 0o10644}, {"mode": "x"},
     {"mtime_ns": 2**63}, {"name": "x" * 256}, {"folder": 7}],
)  # fmt: skip
def test_row_20_no_source_leads_out_of_its_maildir(quarantine, wrong):
    with pytest.raises((ValueError, TypeError)):
        replace(SOURCE, **wrong)
    final = hold(quarantine)
    said = json.loads((final / "envelope.json").read_text())
    (final / "envelope.json").write_text(json.dumps(said | {"source": asdict(SOURCE) | wrong}))
    with pytest.raises(QuarantineError, match="damaged"):
        quarantine.open(ID)


def test_nobody_else_can_read_it(tmp_path, quarantine):
    before = os.umask(0)
    try:
        hold(quarantine)
    finally:
        os.umask(before)
    modes = {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "q").rglob("*") if path.is_dir()}
    assert modes | {stat.S_IMODE((tmp_path / "q").stat().st_mode)} == {0o700}
    assert {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "q").rglob("*.*")} == {0o600}


def test_all_is_on_the_disk_before_it_is_held(tmp_path, quarantine, monkeypatch):
    steps = []
    fsync, rename = os.fsync, Path.rename

    def noted_fsync(descriptor: int) -> None:
        steps.append(("fsync", Path(f"/proc/self/fd/{descriptor}").readlink().name))
        fsync(descriptor)

    def noted_rename(self: Path, target: Path) -> Path:
        steps.append(("rename", target.parent.name))
        return rename(self, target)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(Path, "rename", noted_rename)
    hold(quarantine)
    assert steps == [
        ("fsync", "message.eml"), ("fsync", "envelope.json"), ("fsync", ID), ("rename", "held"), ("fsync", "held"),
    ]  # fmt: skip


def test_what_is_discarded_leaves_nothing(tmp_path, quarantine):
    staged = quarantine.stage(ID, ENVELOPE, [RAW], SPAM)
    staged.discard()
    staged.discard()
    assert everything(tmp_path / "q") == EMPTY
    with pytest.raises(FileNotFoundError):
        staged.commit()


def test_only_old_leftovers_of_a_crash_are_removed(tmp_path, quarantine):
    old = quarantine.stage(ID, ENVELOPE, [RAW], SPAM)
    new = quarantine.stage("f" * 12, ENVELOPE, [RAW], SPAM)
    hold(quarantine, "e" * 12)
    for folder in (old.temporary, tmp_path / "q/held" / ("e" * 12)):
        os.utime(folder, (time.time() - 90_000,) * 2)
    quarantine.create()
    assert not old.temporary.exists()
    new.commit()
    assert list(quarantine.held()) == ["e" * 12, "f" * 12]


def test_an_id_is_not_used_twice(tmp_path, quarantine):
    final = hold(quarantine)
    second = quarantine.stage(ID, ENVELOPE, [b"other"], SPAM)
    with pytest.raises(FileExistsError):
        quarantine.stage(ID, ENVELOPE, [b"third"], SPAM)
    with pytest.raises(OSError):
        second.commit()
    assert (final / "message.eml").read_bytes() == RAW
    assert everything(tmp_path / "q/tmp") == []


# --- Faults ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("nth", [1, 2, 3])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EIO])
def test_row_31_a_disk_that_fails_at_any_step_leaves_nothing(tmp_path, quarantine, monkeypatch, nth, number):
    calls = []

    def failing(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) == nth:
            raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", failing)
    with pytest.raises(OSError) as caught:
        quarantine.stage(ID, ENVELOPE, [RAW], SPAM)
    assert caught.value.errno == number
    assert everything(tmp_path / "q") == EMPTY


def test_row_31_a_write_that_fails_half_way_leaves_nothing(tmp_path, quarantine):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(OSError) as caught:
            quarantine.stage(ID, ENVELOPE, [b"x" * 60_000] * 3, SPAM)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert caught.value.errno == errno.EFBIG
    assert everything(tmp_path / "q") == EMPTY


def test_content_that_cannot_be_read_leaves_nothing(tmp_path, quarantine):
    def content() -> Iterator[bytes]:
        yield b"beginning"
        raise OSError(errno.EIO, "Input/output error")

    with pytest.raises(OSError, match="Input/output"):
        quarantine.stage(ID, ENVELOPE, content(), SPAM)
    assert everything(tmp_path / "q") == EMPTY


def test_row_31_a_full_and_a_read_only_disk(tmp_path):
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", folder], capture_output=True)
    if mount.returncode:
        pytest.skip("may not mount")
    try:
        quarantine = Quarantine(folder / "q")
        quarantine.create()
        with pytest.raises(OSError) as caught:
            quarantine.stage(ID, ENVELOPE, [b"x" * 10_000] * 10, SPAM)
        assert caught.value.errno == errno.ENOSPC
        assert everything(folder / "q") == EMPTY
        staged = quarantine.stage(ID, ENVELOPE, [RAW], SPAM)
        subprocess.run(["mount", "-o", "remount,ro", folder], check=True)
        for act in (staged.commit, lambda: quarantine.stage("f" * 12, ENVELOPE, [RAW], SPAM)):
            with pytest.raises(OSError) as caught:
                act()
            assert caught.value.errno == errno.EROFS
        assert list(quarantine.held()) == []
    finally:
        subprocess.run(["umount", folder], check=True)


# --- Row 20 ---------------------------------------------------------------------------------------------------------

WRONG_IDS = [
    "", ".", "..", "../tmp", f"../tmp/{ID}", f"/etc/{ID}", f"{ID}/../{ID}", f"{ID}\0", f"{ID}\n", "%2e%2e%2f0123",
    "0123", ID.upper(), "a" * 65, "a" * 300, "é" * 12, "٠١٢٣٤٥٦٧٨٩٠١", " " + ID, "~", "-rf00000",
]  # fmt: skip


@pytest.mark.parametrize("wrong", WRONG_IDS)
def test_row_20_only_our_ids_name_a_message(tmp_path, quarantine, wrong):
    hold(quarantine)
    before = everything(tmp_path)
    with pytest.raises(QuarantineError, match="is no id"):
        quarantine.open(wrong)
    with pytest.raises(QuarantineError, match="is no id") as caught:
        quarantine.stage(wrong, ENVELOPE, [RAW], SPAM)
    assert len(str(caught.value)) < 400 and str(caught.value).isprintable()
    assert everything(tmp_path) == before


def test_row_20_other_names_are_not_listed(tmp_path, quarantine):
    hold(quarantine)
    for name in ("..a", "ID", "a" * 65, f"{ID}.bak"):
        (tmp_path / "q/held" / name).mkdir()
    assert list(quarantine.held()) == [ID]


def _link_folder(folder: Path) -> None:
    folder.rename(folder.with_name("elsewhere"))
    folder.symlink_to("elsewhere")


def _replace(name: str, how: str):
    def planted(folder: Path) -> None:
        file, outside = folder / name, folder.parents[2] / "secret"
        outside.write_bytes(file.read_bytes() if how == "symlink" else b"root:*:\n")
        file.unlink()
        if how == "symlink":
            file.symlink_to(outside)
        elif how == "hardlink":
            file.hardlink_to(outside)
        elif how == "pipe":
            os.mkfifo(file)
        elif how == "folder":
            file.mkdir()

    return planted


def _sparse(name: str):
    return lambda folder: os.truncate(folder / name, 2**40)


def _edit(**changes: object):
    def edited(folder: Path) -> None:
        file = folder / "envelope.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))

    return edited


@pytest.mark.parametrize(
    "damage",
    [
        _link_folder,
        *(_replace(name, how) for name in ("message.eml", "envelope.json")
          for how in ("symlink", "hardlink", "pipe", "folder", "gone")),
        _sparse("message.eml"),
        _sparse("envelope.json"),
        lambda folder: (folder / "message.eml").write_bytes(b""),
        lambda folder: (folder / "message.eml").write_bytes(RAW.replace(b"S", b"s")),
        lambda folder: (folder / "envelope.json").write_bytes(b"[" * 100_000),
        lambda folder: (folder / "envelope.json").write_bytes(b"[]"),
        _edit(id="f" * 12), _edit(version=2), _edit(size="1"), _edit(size=-1), _edit(sha256=None), _edit(sender=7),
        _edit(recipients=[{}]),
    ],
)  # fmt: skip
def test_row_20_what_is_not_as_we_wrote_it_is_not_opened(tmp_path, quarantine, damage):
    damage(hold(quarantine))
    with pytest.raises(QuarantineError, match=f"^{ID}: ") as caught:
        quarantine.open(ID)
    assert "\n" not in str(caught.value)


def test_what_is_not_there_is_one_line(quarantine):
    with pytest.raises(QuarantineError, match=f"^{ID}: no such message$"):
        quarantine.open(ID)


def test_what_is_taken_for_a_leftover_while_it_is_written_is_not_half_held(quarantine: Quarantine) -> None:
    """A clock has jumped a day ahead, and the hourly expiry cleans up; the sender hears 451 and comes again."""
    staged = quarantine.stage("ab" * 10, Envelope(), [b"x"], None)
    os.utime(staged.temporary, (1, 1))
    quarantine.create()
    with pytest.raises(OSError):
        staged.commit()
    assert "ab" * 10 not in quarantine.states()


def test_a_folder_in_the_place_of_a_file_leaks_no_descriptor(quarantine: Quarantine) -> None:
    folder = hold(quarantine, "cd" * 10)
    (folder / "envelope.json").unlink()
    (folder / "envelope.json").mkdir()
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(20):
        with pytest.raises(QuarantineError, match="damaged"):
            quarantine.open("cd" * 10)
    assert len(list(Path("/proc/self/fd").iterdir())) <= before + 1
