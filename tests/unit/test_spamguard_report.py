"""docs/dovecot/spamguard-report, which Dovecot runs: what it takes down is stored in the background, in order."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.skipif(
    not all(map(shutil.which, ("flock", "timeout"))), reason="needs flock(1) and timeout(1) of Linux"
)


class Report:
    """The program as we ship it, with a `spamguard` and a `logger` of the test's in front of its PATH."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.file = folder / "spamguard-report"
        text = (ROOT / "docs/dovecot/spamguard-report").read_text()
        for word, other in (("=/opt/spamguard/bin:", f"={folder}:"), ("reports=/tmp/", f"reports={folder}/")):
            assert text.count(word) == 1, word
            text = text.replace(word, other)
        self.program("spamguard-report", text)
        self.program("logger", f'#!/bin/sh\necho "$@" >>{folder}/logged\n')
        self.program("spamguard", f"#!/bin/sh\n{{ echo $$ $*; cat; }} >>{folder}/stored\n")
        self.gate = folder / "gate"

    def program(self, name: str, text: str) -> None:
        (self.folder / name).write_text(text)
        (self.folder / name).chmod(0o755)

    def slow(self) -> None:
        """Let `spamguard` say that it was called, and wait for the gate."""
        self.program(
            "spamguard",
            f"#!/bin/sh\necho called >>{self.folder}/called\nuntil [ -e {self.gate} ]; do sleep 0.05; done\n"
            f"{{ echo $$ $*; cat; }} >>{self.folder}/stored\n",
        )

    def run(self, label: str, message: bytes) -> None:
        """As Dovecot runs it: no environment, message on standard input, waits for the end of the output."""
        done = subprocess.run([self.file, label], input=message, capture_output=True, env={}, timeout=30)
        assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")

    def lines(self, name: str) -> list[str]:
        file = self.folder / name
        return file.read_text().splitlines() if file.exists() else []

    def processes(self) -> int:
        found = 0
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):
                found += str(self.file).encode() in path.read_bytes().split(b"\0")
        return found

    @property
    def left(self) -> list[str]:
        """Messages that lie in its folder."""
        (folder,) = self.folder.glob("spamguard-reports-*")
        return sorted(path.name for path in folder.iterdir() if path.name not in ("waiting", "working"))


@pytest.fixture
def report(tmp_path: Path) -> Iterator[Report]:
    report = Report(tmp_path)
    yield report
    report.gate.touch()


def until(condition: Callable[[], object]) -> None:
    while not condition():  # the test's own time limit is the limit
        time.sleep(0.01)


def test_the_message_is_handed_to_labels_add(report: Report) -> None:
    report.run("spam", b"Subject: a\r\n\r\nviagra\r\n")
    until(lambda: report.lines("stored") and not report.left)
    call, *message = (report.folder / "stored").read_bytes().splitlines(keepends=True)
    assert call.split()[1:] == [b"labels", b"add", b"-", b"--spam"]
    assert b"".join(message) == b"Subject: a\r\n\r\nviagra\r\n"
    assert report.lines("logged") == []


def test_nobody_waits_for_a_slow_disk_and_the_words_keep_their_order(report: Report) -> None:
    report.slow()
    words = ["spam", "ham"] * 10
    for number, word in enumerate(words):
        report.run(word, b"%d\n" % number)
    until(lambda: report.lines("called"))
    assert len(report.left) == 20 and report.lines("stored") == []  # all have returned, nothing is stored
    report.gate.touch()
    until(lambda: not report.left)
    stored = report.lines("stored")
    assert [line.split()[-1] for line in stored[::2]] == [f"--{word}" for word in words]
    assert stored[1::2] == [str(number) for number in range(20)]


def test_many_reports_at_once_start_one_spamguard(report: Report) -> None:
    report.slow()
    for number in range(30):
        report.run("spam", b"%d\n" % number)
    until(lambda: report.lines("called"))
    until(lambda: report.processes() <= 2)
    assert len(report.lines("called")) == 1
    report.gate.touch()
    until(lambda: not report.left)
    assert sorted(report.lines("stored")[1::2], key=int) == [str(number) for number in range(30)]


def test_what_cannot_be_stored_is_logged_and_does_not_stop_the_next(report: Report) -> None:
    report.program("spamguard", "#!/bin/sh\necho 'spamguard: labels.sqlite3: disk full' >&2\nexit 2\n")
    report.run("ham", b"one\n")
    report.run("ham", b"two\n")
    until(lambda: len(report.lines("logged")) == 2 and not report.left)
    assert all("labels.sqlite3: disk full" in line for line in report.lines("logged"))


def test_without_spamguard_the_user_hears_nothing(report: Report) -> None:
    (report.folder / "spamguard").unlink()
    report.run("spam", b"one\n")
    until(lambda: report.lines("logged"))
    assert "spamguard" in report.lines("logged")[0]


@pytest.mark.parametrize("trap", ["link", "file", "another owner"])
def test_a_folder_that_is_not_ours_is_not_used(report: Report, tmp_path: Path, trap: str) -> None:
    report.run("spam", b"one\n")
    until(lambda: report.lines("stored") and not report.left)
    (folder,) = report.folder.glob("spamguard-reports-*")
    shutil.rmtree(folder)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    if trap == "another owner":
        if os.geteuid() != 0:
            pytest.skip("root alone may give a folder away")
        elsewhere.rename(folder)
        os.chown(folder, 65534, 65534)
        elsewhere = folder
    else:
        folder.symlink_to(elsewhere) if trap == "link" else folder.touch()
    report.run("spam", b"two\n")
    assert "no folder of ours" in report.lines("logged")[0]
    assert list(elsewhere.iterdir()) == [] and "two" not in report.lines("stored")


def test_any_other_word_is_refused(report: Report) -> None:
    report.run("--spam", b"one\n")
    assert "spam or ham?" in report.lines("logged")[0]
    assert not list(report.folder.glob("spamguard-reports-*"))
