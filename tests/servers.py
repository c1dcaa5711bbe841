"""What the tests with real mail servers share: ports, patience, mailboxes, clients, and the lines of our pages."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from email import message_from_bytes
from email.message import Message
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def needs(*programs: str) -> list[pytest.MarkDecorator]:
    """The marks of a file whose tests start these programs as root."""
    missing = [name for name in programs if not shutil.which(name)]
    return [
        pytest.mark.integration,
        pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)}"),
        pytest.mark.skipif(os.geteuid() != 0, reason="mail servers change users, which root alone may do"),
    ]


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def until(condition: Callable[[], object], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@contextmanager
def private_folder(name: str) -> Iterator[Path]:
    """Not pytest's own folder: the users of a mail server must be able to pass through its parents."""
    with tempfile.TemporaryDirectory(prefix=f"spamguard-{name}-", ignore_cleanup_errors=True) as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


def documented(page: str, heading: str, replaced: Mapping[str, object]) -> list[str]:
    """The code blocks under a heading of one of our pages, with the words of the page replaced by those of the test.

    What the pages tell a postmaster to write is what the tests run.
    """
    text = (ROOT / page).read_text(encoding="utf-8")
    section = re.search(rf"^(#+) {re.escape(heading)}\n(.*?)(?=^\1 |\Z)", text, re.MULTILINE | re.DOTALL)
    assert section is not None, f"{page} has no heading {heading!r}"
    blocks = re.findall(r"^```\w+\n(.*?)^```$", section[2], re.MULTILINE | re.DOTALL)
    for word, other in replaced.items():
        assert any(word in block for block in blocks), f"{page}, {heading}: {word!r} does not occur"
        blocks = [block.replace(word, str(other)) for block in blocks]
    return blocks


class Box:
    """A Maildir that a server behind us delivers into."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def raw(self) -> list[bytes]:
        return [path.read_bytes() for path in (self.folder / "new").glob("*")]

    def mails(self) -> list[Message]:
        return [message_from_bytes(raw) for raw in self.raw()]

    def all(self, subject: str, count: int) -> list[Message]:
        """Wait for this many mails with a subject; more of them are an error."""
        until(lambda: len([one for one in self.mails() if one["Subject"] == subject]) >= count)
        found = [one for one in self.mails() if one["Subject"] == subject]
        assert len(found) == count
        return found

    def one(self, subject: str) -> Message:
        return self.all(subject, 1)[0]

    def body(self, subject: str) -> bytes:
        """The text of the one mail with this subject, as it lies on the disk."""
        self.one(subject)
        (body,) = [
            text
            for head, _, text in (raw.replace(b"\r\n", b"\n").partition(b"\n\n") for raw in self.raw())
            if b"\nSubject: %s\n" % subject.encode() in head + b"\n"
        ]
        return body


class Sink:
    """An smtp-sink that keeps what it takes. Extra options make it slow or faulty, or an LMTP server (`-L`)."""

    def __init__(self, folder: Path, port: int, *options: str) -> None:
        self.port = port
        self._folder = folder
        folder.mkdir(exist_ok=True)
        shutil.chown(folder, "nobody")
        command = ["smtp-sink", *options, "-u", "nobody", "-d", f"{folder}/mail.", f"127.0.0.1:{port}", "100"]
        self._process = subprocess.Popen(command)
        until(lambda: listens(port))

    def dumps(self) -> list[bytes]:
        """Each message, with the lines that smtp-sink puts above (X-Mail-Args, X-Rcpt-Args and their like)."""
        return [path.read_bytes() for path in self._folder.iterdir()]

    def __enter__(self) -> Sink:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait(60)


def swaks(port: int, *options: str) -> subprocess.CompletedProcess[str]:
    command = ["swaks", "--server", f"127.0.0.1:{port}", "--from", "a@example.org", "--to", "b@example.net", *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=100)


def smtp_source(port: int, messages: int, *options: str) -> None:
    """Ten connections of smtp-source; it fails if one message is not accepted."""
    command = ["smtp-source", "-s", "10", "-m", str(messages), "-f", "a@example.org", "-t", "b@example.net", *options]
    subprocess.run([*command, f"127.0.0.1:{port}"], check=True, timeout=100)
