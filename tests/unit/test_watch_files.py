"""Row 20: what lies in a Maildir and is no mail, or is mail with an odd name. Nothing hangs, nothing is followed."""

from __future__ import annotations

import os
import socket
import stat
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Running
from tests.maildirs import Box
from tests.servers import private_folder
from tests.watching import check_alive, ham, label, quiet, row, scored, soon, spam

Start = Callable[..., Running]
NOBODY = 65_534

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root may make this")


def described(path: Path) -> tuple[int, int, int, int, int]:
    """What must not change of something that is no mail."""
    found = path.lstat()
    return found.st_ino, found.st_mode, found.st_uid, found.st_size, found.st_mtime_ns


# Each makes something at a path; the mail outside must be neither judged nor moved.


def _symlink(path: Path, outside: Path) -> None:
    path.symlink_to(outside)


def _dangling(path: Path, _: Path) -> None:
    path.symlink_to("nowhere")


def _loop(path: Path, _: Path) -> None:
    path.symlink_to(path.name)


def _to_folder(path: Path, outside: Path) -> None:
    path.symlink_to(outside.parent)


def _foreign(path: Path, outside: Path) -> None:
    os.chown(outside, NOBODY, NOBODY)
    path.hardlink_to(outside)


def _pipe(path: Path, _: Path) -> None:
    os.mkfifo(path)


def _null(path: Path, _: Path) -> None:
    os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 3))


def _endless(path: Path, _: Path) -> None:
    os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 5))  # /dev/zero


def _disk(path: Path, _: Path) -> None:
    os.mknod(path, stat.S_IFBLK | 0o666, os.makedev(7, 99))  # a loop device that there is none of


def _socket(path: Path, _: Path) -> None:
    here = Path.cwd()
    os.chdir(path.parent)  # the name of a socket is at most 108 bytes long
    try:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(path.name)
    finally:
        os.chdir(here)


def _huge(path: Path, _: Path) -> None:
    temporary = path.parents[1] / "tmp" / path.name
    with temporary.open("wb") as file:
        file.write(b"Subject: pills\n\nviagra\n")
        file.truncate(2**40)
    temporary.rename(path)


def _folder(path: Path, _: Path) -> None:
    path.mkdir()
    (path / "mail").write_bytes(spam())


def _hidden(path: Path, _: Path) -> None:
    (path.parent / f".{path.name}").write_bytes(spam())


NO_MAIL = [
    pytest.param(plant, id=plant.__name__[1:], marks=[as_root] if plant in (_foreign, _null, _endless, _disk) else [])
    for plant in (
        *(_symlink, _dangling, _loop, _to_folder, _foreign, _pipe, _null, _endless, _disk, _socket, _huge, _folder),
        _hidden,
    )
]


@pytest.mark.parametrize("plant", NO_MAIL)
def test_row_20_what_is_no_mail_of_this_maildir_is_left_alone(
    watch: Start, box: Box, tmp_path: Path, plant: Callable[[Path, Path], None]
) -> None:
    raw, outside = spam(), tmp_path / "outside/1.M1P1.mda.example"
    outside.parent.mkdir()
    outside.write_bytes(raw)
    running = watch(rescan_s=0.1)
    check_alive(box)
    plant(box.path / "new/1.M1P1.mda.example", outside)
    plant(box.path / "cur/2.M1P1.mda.example:2,S", outside)
    planted = [path for part in ("new", "cur") for path in (box.path / part).iterdir() if "M1P1" in path.name]
    before = [described(path) for path in (*planted, outside)]
    check_alive(box)
    time.sleep(0.5)
    assert [described(path) for path in (*planted, outside)] == before and len(planted) == 2
    assert row(tmp_path, raw) is None and scored(running, raw) == 0
    judged = [line for line in running.log if line["event"] == "message"]
    assert {line["label"] for line in judged} == {"spam"} and len(judged) == 2, "only what shows that we live"
    complaints = [line for line in running.log if line["level"] in ("warning", "error")]
    assert len(complaints) <= 2, "each is told of once"


def test_row_20_what_is_no_mail_takes_no_file_descriptors(watch: Start, box: Box) -> None:
    watch(rescan_s=0.05)
    check_alive(box)
    before = len(list(Path("/proc/self/fd").iterdir()))
    for number in range(20):
        (box.path / "new" / f"{number}.folder").mkdir()
        os.mkfifo(box.path / "new" / f"{number}.pipe")
        (box.path / "new" / f"{number}.link").symlink_to("/etc/passwd")
    (box.path / "dovecot-keywords").mkdir()
    box.deliver(ham(), part="cur", info=":2,Sa")
    time.sleep(3)
    check_alive(box)
    assert len(list(Path("/proc/self/fd").iterdir())) < before + 15


def test_row_20_an_empty_file_is_judged_and_stays(watch: Start, box: Box) -> None:
    running = watch(rescan_s=0.2)
    names = [box.deliver(b"", name=name) for name in ("1.empty", "2.empty")]
    soon(lambda: [line for line in running.log if line["event"] == "message"])
    check_alive(box)
    assert {f"new/{name}" for name in names} <= set(box.files())


@contextmanager
def as_nobody() -> Iterator[None]:
    os.setegid(NOBODY)
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)


@as_root
def test_row_20_what_cannot_be_read_stays_and_is_judged_when_it_can(running_daemon: Start) -> None:
    with private_folder("watch") as folder, as_nobody_in(folder):
        box = Box(folder / "mail")
        table = {"maildirs": [str(box.path)], "quiet_s": 0.2, "rescan_s": 0.2}
        running = running_daemon(None, state_dir=str(folder / "state"), listen={"protocol": "off"}, watch=table)
        raw = spam()
        name = box.deliver(raw, mode=0)
        soon(lambda: [line for line in running.log if line["event"] == "not judged"])
        check_alive(box)
        assert (box.path / "new" / name).exists()
        (box.path / "new" / name).chmod(0o600)
        soon(lambda: box.files().get(f".Junk/new/{name}") == raw)


@contextmanager
def as_nobody_in(folder: Path) -> Iterator[None]:
    os.chown(folder, NOBODY, NOBODY)
    with as_nobody():
        yield


# Names.

NAMES = (
    b"1.M1\nP1.x",
    b"2.\x01\x1b[31m\x7f",
    "3.café".encode(),
    b"4." + b"x" * 250,
    b"5.M1P1.x:2,",
    b"6.M1P1.x:2,SXyz",
    b"7.M1P1.x:2,S,W=3",
    b"8.M1P1.x:1,whatever",
    b"9:2:3:2,S",
    b"10'; DROP TABLE message; --\"%s%n",
    rb"11\xe9\n",
    b",S=3",
    b" 12 ",
    b"%2e%2e%2f1",
)


def check_names(watch: Start, box: Box, state: Path, names: Sequence[bytes], part: str) -> None:
    running, mail = watch(), {os.fsdecode(name): spam() for name in names}
    for name, raw in mail.items():
        (box.path / "tmp/1").write_bytes(raw)
        (box.path / "tmp/1").rename(box.path / part / name)
    soon(lambda: box.files() == {f".Junk/{part}/{name}": raw for name, raw in mail.items()})
    check_alive(box)
    for name in mail:
        (box.path / ".Junk" / part / name).rename(box.path / part / name)
    soon(lambda: {label(state, raw) for raw in mail.values()} == {"ham"})
    assert {box.files()[f"{part}/{name}"]: scored(running, raw) for name, raw in mail.items()} == dict.fromkeys(
        mail.values(), 1
    )
    assert all("\x1b" not in str(line) for line in running.log)


@pytest.mark.parametrize("part", ["new", "cur"])
def test_row_20_odd_names_are_kept_and_messages_known_by_them(
    watch: Start, box: Box, tmp_path: Path, part: str
) -> None:
    check_names(watch, box, tmp_path, NAMES, part)


def test_row_20_a_name_of_8_bit_is_kept_and_a_message_known_by_it(watch: Start, box: Box, tmp_path: Path) -> None:
    check_names(watch, box, tmp_path, [b"1.caf\xe9"], "new")


@pytest.mark.parametrize("order", [(ham, spam), (spam, ham)])
def test_row_20_names_that_differ_late_are_of_different_messages(
    watch: Start, box: Box, order: tuple[Callable[[], bytes], ...]
) -> None:
    for number, make in enumerate(order):
        box.deliver(make(), name=f"1,S={number}")
    watch(rescan_s=0.5)
    soon(lambda: any(path.startswith(".Junk/") for path in box.files()))
    assert {path.partition("/")[0]: b"viagra" in raw for path, raw in box.files().items()} == {
        ".Junk": True,
        "new": False,
    }


# Folders.

FOLDERS = (
    b"..evil",
    b"...",
    b".Lists.",
    b".Entw&APw-rfe",
    b".&&-&",
    ".Entwürfe".encode(),
    b".a\nb",
    b"." + b"x" * 250,
    b".\x1b[31m",
    b".Junkyard",
    b".%2e%2e",
)


def check_folders(watch: Start, box: Box, state: Path, names: Sequence[bytes]) -> None:
    watch(rescan_s=0.5)
    mail = {os.fsdecode(name): spam() for name in names}
    files = {folder: box.deliver(raw) for folder, raw in mail.items()}
    soon(lambda: set(box.files()) == {f".Junk/new/{file}" for file in files.values()})
    for folder, file in files.items():
        box.make(folder)
        (box.path / ".Junk/new" / file).rename(box.path / folder / "cur" / f"{file}:2,S")
    soon(lambda: {label(state, raw) for raw in mail.values()} == {"ham"})
    assert box.files() == {f"{folder}/cur/{files[folder]}:2,S": raw for folder, raw in mail.items()}
    check_alive(box)


def test_row_20_a_folder_with_an_odd_name_is_a_folder(watch: Start, box: Box, tmp_path: Path) -> None:
    check_folders(watch, box, tmp_path, FOLDERS)


def test_row_20_a_folder_with_a_name_of_8_bit_is_a_folder(watch: Start, box: Box, tmp_path: Path) -> None:
    check_folders(watch, box, tmp_path, [b".Entw\xfcrfe"])


@pytest.fixture
def outside(tmp_path: Path) -> Box:
    """Somebody else's, with the same layout."""
    return Box(tmp_path / "outside")


def listing(path: Path) -> list[tuple[str, int, int]]:
    return sorted((str(one), one.lstat().st_mode, one.lstat().st_uid) for one in (path, *path.rglob("*")))


@pytest.mark.parametrize("part", ["new", "cur"])
def test_row_20_a_symlink_for_new_or_cur_is_not_followed_and_said(
    watch: Start, box: Box, outside: Box, part: str
) -> None:
    outside.deliver(spam())
    outside.deliver(spam(), part="cur", info=":2,S")
    before = outside.files()
    (box.path / part).rmdir()
    (box.path / part).symlink_to(outside.path / part)
    said: list[Any] = []
    try:
        running = watch(rescan_s=0.2)
        quiet()
        said = [line for line in running.log if line["level"] in ("warning", "error")]
    except Exception as error:
        said = [str(error)]
    assert outside.files() == before
    assert said, "nobody is told that this Maildir is not watched"


@pytest.mark.parametrize("part", ["new", "cur"])
def test_row_20_a_symlink_that_comes_in_the_place_of_new_or_cur_is_not_followed(
    watch: Start, box: Box, outside: Box, part: str
) -> None:
    watch(rescan_s=0.2)
    check_alive(box)
    outside.deliver(spam())
    outside.deliver(spam(), part="cur", info=":2,S")
    before = outside.files()
    (box.path / part).rmdir()
    (box.path / part).symlink_to(outside.path / part)
    quiet()
    assert outside.files() == before
    (box.path / part).unlink()
    (box.path / part).mkdir()
    quiet()
    check_alive(box)


def test_row_20_a_symlinked_folder_is_not_followed(watch: Start, box: Box, outside: Box) -> None:
    (box.path / ".Lists").symlink_to(outside.path)
    outside.deliver(spam())
    watch(rescan_s=0.2, folders=["INBOX", ".Lists"])
    outside.deliver(spam())
    before = outside.files()
    check_alive(box)
    quiet()
    assert outside.files() == before and len(before) == 2


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("late", [True, False])
def test_row_20_a_symlinked_junk_is_not_followed(
    watch: Start, box: Box, tmp_path: Path, whole: bool, late: bool
) -> None:
    """Neither is spam put behind it nor anything made there."""
    outside = Box(tmp_path / "outside").path if whole else tmp_path / "outside"
    outside.mkdir(exist_ok=True)
    before = listing(outside)
    raw = spam()
    if late:
        watch()
        check_alive(box)
        (box.path / ".Junk").rename(tmp_path / "taken")
    (box.path / ".Junk").symlink_to(outside)
    if not late:
        with pytest.raises(Exception, match="Junk"):
            watch()
    name = box.deliver(raw)
    quiet()
    assert listing(outside) == before
    assert box.files() == {f"new/{name}": raw}


@as_root
def test_row_20_a_folder_that_turns_into_a_link_while_it_is_made_changes_nobodys_mode(
    watch: Start, box: Box, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The owner of a Maildir may swap what root has just given to him."""
    secret = tmp_path / "secret"
    secret.write_text("of root")
    secret.chmod(0o600)
    (box.path / "cur").chmod(0o777)
    chown = os.fchown

    def chown_and_swap(descriptor: int, uid: int, gid: int) -> None:
        chown(descriptor, uid, gid)
        inside = box.path / ".Junk/new"
        if inside.is_dir() and not inside.is_symlink():
            inside.rmdir()
            inside.symlink_to(secret)

    monkeypatch.setattr(os, "fchown", chown_and_swap)
    with pytest.raises(Exception, match="Junk"):
        watch()
    assert stat.S_IMODE(secret.stat().st_mode) == 0o600
