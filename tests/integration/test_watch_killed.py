"""Row 32: the watcher is killed between what it has noted and what it does, and the user acts while it is dead; or it
hangs, and events are lost.

Two cases cannot be told apart by anybody: killed before the rename, and killed after it with the user moving the
message back to its old place. The message is then judged once more.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import Process
from tests.maildirs import Box
from tests.servers import until
from tests.watching import check_alive, ham, label, quiet, row, soon, spam

pytestmark = pytest.mark.integration
ROOT = Path(__file__).parents[2]

_KILLED_AT_RENAME = """
import os, runpy, sys
from service.mailbox import Mailbox

after, file, fakes = sys.argv[1] == "after", *sys.argv[2:]
move = Mailbox.move

def move_and_die(*arguments):
    if after:
        move(*arguments)
    os.kill(os.getpid(), 9)

Mailbox.move = move_and_die
sys.argv[1:] = [file]
runpy.run_path(fakes, run_name="__main__")
"""


class Killed:
    """A daemon of its own process that dies at its first move, and its next lives."""

    def __init__(self, box: Box, folder: Path, start: Callable[..., Process], rescan_s: float) -> None:
        self._start = start
        self._file = folder / "spamguard.toml"
        self._file.write_text(
            f'state_dir = "."\n[listen]\nprotocol = "off"\n[log]\nformat = "json"\n'
            f'[watch]\nmaildirs = ["{box.path}"]\nquiet_s = 0.2\nrescan_s = {rescan_s}\n'
        )

    def dies(self, when: str) -> None:
        fakes = str(ROOT / "tests/fakes.py")
        command = (sys.executable, "-c", _KILLED_AT_RENAME, when, str(self._file), fakes)
        process = self._start(self._file, command, PYTHONPATH=os.environ.get("PYTHONPATH") or str(ROOT))
        assert process.popen.wait(30) == -signal.SIGKILL

    def lives(self) -> Process:
        process = self._start(self._file, (), PYTHONPATH=os.environ.get("PYTHONPATH") or str(ROOT))
        process.wait_for("ready")
        return process


@pytest.fixture
def box(tmp_path: Path) -> Box:
    return Box(tmp_path / "mail")


@pytest.fixture
def killed(box: Box, tmp_path: Path, daemon_process: Callable[..., Process]) -> Killed:
    return Killed(box, tmp_path, daemon_process, rescan_s=0.3)


@pytest.mark.parametrize(
    ("when", "user", "expected"),
    [
        ("before", None, ".Junk/new/{}"),
        ("before", "cur/{}:2,S", ".Junk/cur/{}:2,S"),
        ("before", ".Archive/cur/{}:2,S", ".Archive/cur/{}:2,S"),
        ("before", ".Junk/cur/{}:2,S", ".Junk/cur/{}:2,S"),
        ("before", "", None),
        ("after", None, ".Junk/new/{}"),
        ("after", ".Junk/cur/{}:2,S", ".Junk/cur/{}:2,S"),
        ("after", ".Archive/cur/{}:2,S", ".Archive/cur/{}:2,S"),
        ("after", "", None),
    ],
)
def test_row_32_killed_between_its_note_and_its_rename(
    killed: Killed, box: Box, tmp_path: Path, when: str, user: str | None, expected: str | None
) -> None:
    raw = spam()
    name = box.deliver(raw)
    killed.dies(when)
    if user is not None:
        box.rename(f".Junk/new/{name}" if when == "after" else f"new/{name}", user.format(name))
    killed.lives()
    check_alive(box)
    quiet()
    here = [path for path, data in box.files().items() if data == raw]
    assert here == ([expected.format(name)] if expected else [])
    if user is None or user.startswith("cur"):
        assert row(tmp_path, raw) is not None
    assert label(tmp_path, raw) != "spam"


def test_row_32_an_odd_name_survives_a_kill_too(killed: Killed, box: Box) -> None:
    raw, name = spam(), os.fsdecode(b"1.M1P1.caf\xe9")
    box.deliver(raw, name=name)
    killed.dies("before")
    killed.lives()
    soon(lambda: box.files() == {f".Junk/new/{name}": raw})


@pytest.mark.parametrize("part", ["new", "cur"])
def test_row_32_what_comes_after_the_first_start_is_new_though_that_was_killed_at_once(
    killed: Killed, box: Box, part: str
) -> None:
    box.deliver(ham(), part="cur", info=":2,S")
    killed.lives().popen.kill()
    raw = spam()
    name = box.deliver(raw, part=part, info=":2,S" if part == "cur" else "")
    killed.lives()
    soon(lambda: raw in box.files().values() and any(path.startswith(".Junk/") for path in box.files()))
    assert [path.partition("/")[0] for path in box.files() if name in path] == [".Junk"]


def test_row_32_events_that_the_kernel_dropped_are_made_up_for_at_once(
    box: Box, tmp_path: Path, daemon_process: Callable[..., Process]
) -> None:
    # A delivery is three events: made in tmp/, moved from there, moved to new/.
    messages = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text()) // 3 + 1000
    if messages > 10_000:
        pytest.skip("the queue of this kernel is long")
    watcher = Killed(box, tmp_path, daemon_process, rescan_s=300).lives()
    check_alive(box)
    watcher.popen.send_signal(signal.SIGSTOP)
    for number in range(messages):
        (box.path / "tmp/1").write_bytes(b"Subject: viagra %d\n\n" % number)
        (box.path / "tmp/1").rename(box.path / "new" / f"{number}.mda.example")
    watcher.popen.send_signal(signal.SIGCONT)
    until(lambda: not any((box.path / "new").iterdir()))
    assert len(list((box.path / ".Junk/new").iterdir())) == messages + 1
