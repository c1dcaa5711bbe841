"""A real Dovecot with IMAP: what users move is what they say, by imapsieve and by the watcher of Maildirs."""

from __future__ import annotations

import json
import pwd
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from imaplib import IMAP4, Internaldate2tuple, Time2Internaldate
from pathlib import Path
from typing import Any

import pytest

from spamguard.headers import content_hash
from tests import dovecot as dovecots
from tests.servers import ROOT, free_ports, needs, until

pytestmark = needs(*dovecots.PROGRAMS, "setpriv", "flock")

LMTP, IMAP, LMTP_2, IMAP_2 = free_ports(4)
AS_OWNER = ("setpriv", f"--reuid={dovecots.OWNER}", f"--regid={dovecots.OWNER}", "--clear-groups", "--reset-env")


def mail(subject: str, text: str = "meeting") -> bytes:
    head = (
        f"From: anna@example.org\r\nTo: you@example.net\r\nSubject: {subject}\r\nMessage-ID: <{subject}@example.org>"
    )
    return f"{head}\r\n\r\n{text}\r\n".encode()


class Client:
    """An IMAP client that speaks of messages by their subjects. Any answer but OK fails the test."""

    def __init__(self, imap: IMAP4) -> None:
        self.imap = imap
        for folder in ("Junk", "Trash", "Archive", "Junk.2024"):
            self._ok(imap.create(folder))

    def append(self, folder: str, raw: bytes, flags: str = "", date: float | None = None) -> None:
        self._ok(self.imap.append(folder, flags, Time2Internaldate(date) if date else None, raw))

    def move(self, subject: str, here: str, there: str) -> None:
        self._do("MOVE", subject, here, there)

    def copy(self, subject: str, here: str, there: str) -> None:
        self._do("COPY", subject, here, there)

    def keyword(self, subject: str, here: str, keyword: str) -> None:
        self._do("STORE", subject, here, "+FLAGS", f"({keyword})")

    def subjects(self, folder: str) -> list[str]:
        self._ok(self.imap.select(folder, readonly=True))
        parts = self._ok(self.imap.fetch("1:*", "BODY.PEEK[HEADER.FIELDS (SUBJECT)]")) if self._uids("ALL") else []
        return sorted(part[1].decode().strip().removeprefix("Subject: ") for part in parts if isinstance(part, tuple))

    def fetch(self, subject: str, folder: str, what: str) -> bytes:
        """The answer to FETCH, of one message."""
        self._ok(self.imap.select(folder, readonly=True))
        parts = self._ok(self.imap.uid("FETCH", self._uid(subject), what))
        return b"".join(b"".join(part) if isinstance(part, tuple) else part for part in parts)

    def _do(self, verb: str, subject: str, here: str, *arguments: str) -> None:
        self._ok(self.imap.select(here))
        self._ok(self.imap.uid(verb, self._uid(subject), *arguments))

    def _uid(self, subject: str) -> str:
        (uid,) = self._uids("SUBJECT", f'"{subject}"')
        return uid

    def _uids(self, *criteria: str) -> list[str]:
        return self._ok(self.imap.uid("SEARCH", *criteria))[0].decode().split()

    def _ok(self, answer: tuple[str, list[Any]]) -> list[Any]:
        assert answer[0] == "OK", answer
        return answer[1]


class Spamguard:
    """`spamguard` as the owner of the mail runs it, with a state folder of its own."""

    def __init__(self, folder: Path, program: Path, text: str) -> None:
        self.folder = folder
        folder.mkdir()
        owner = pwd.getpwnam(dovecots.OWNER)
        self.file = folder / "spamguard.toml"
        self.file.write_text(f'state_dir = "."\n{text}')
        self.python = program.with_name("python")
        packages = f"{ROOT}:{sysconfig.get_path('purelib')}"
        self._write(self.python, f"export PYTHONPATH={packages}\nexec {_python(packages)}")
        self.program = program
        self._write(program, f"exec {self.python} -m spamguard --config {self.file}")
        subprocess.run(["chown", f"{owner.pw_uid}:{owner.pw_gid}", folder], check=True)

    @staticmethod
    def _write(file: Path, command: str) -> None:
        file.write_text(f'#!/bin/sh\n{command} "$@"\n')
        file.chmod(0o755)

    def run(self, *arguments: str) -> str:
        command = [*AS_OWNER, str(self.program), *arguments]
        done = subprocess.run(command, capture_output=True, timeout=100)
        assert done.returncode == 0, done.stderr
        return done.stdout.decode()

    def labels(self) -> dict[str, tuple[str, str]]:
        """Content hash -> label and source, as `spamguard labels list` tells."""
        rows = [json.loads(line) for line in self.run("labels", "list", "--json").splitlines()]
        return {row["id"]: (row["label"], row["source"]) for row in rows}

    def score(self, mails: dict[str, bytes]) -> dict[str, float]:
        for name, raw in mails.items():
            (self.folder / name).write_bytes(raw)
        lines = self.run("score", "--json", *(str(self.folder / name) for name in mails)).splitlines()
        return {Path(row["path"]).name: row["score"] for row in map(json.loads, lines)}

    def wait_for(self, raw: bytes, label: str, source: str) -> None:
        until(lambda: self.labels().get(content_hash(raw)) == (label, source))


def _python(packages: str) -> str:
    """A Python that the owner of the mail may run; that of the tests may lie where only root can look."""
    for python in (sys.executable, f"/usr/bin/python3.{sys.version_info.minor}"):
        command = [*AS_OWNER, "env", f"PYTHONPATH={packages}", python, "-c", "import numpy, click, spamguard.config"]
        if subprocess.run(command, capture_output=True, timeout=60, cwd="/").returncode == 0:
            return python
    pytest.skip(f"user {dovecots.OWNER} may run no Python with our packages: the checkout is for root alone")


Login = Callable[[dovecots.Dovecot, str], Client]


@pytest.fixture
def login() -> Iterator[Login]:
    with ExitStack() as stack:
        yield lambda dovecot, user: Client(stack.enter_context(dovecot.client(user)))


@pytest.fixture(scope="module")
def reporting() -> Iterator[dovecots.Dovecot]:
    """A Dovecot with imapsieve."""
    with dovecots.private_dovecot(LMTP, IMAP, imapsieve=True) as instance:
        yield instance


@pytest.fixture
def spamguard(reporting: dovecots.Dovecot, request: pytest.FixtureRequest) -> Spamguard:
    """What imapsieve reports to. Nobody judges anything here."""
    return Spamguard(reporting.folder / request.node.name, reporting.bin / "spamguard", "")


def test_imapsieve_moves_are_labels(reporting, spamguard, login):
    client = login(reporting, "anna")
    names = ("in", "copied", "out", "thrown away", "deeper", "twice", "never moved", "elsewhere", "last")
    mails = {name: mail(name) for name in names}
    for name in names:
        # These three are in Junk because the filter put them there; that says nothing yet.
        client.append("Junk" if name in ("out", "thrown away", "deeper") else "INBOX", mails[name])
    client.move("in", "INBOX", "Junk")
    client.copy("copied", "INBOX", "Junk")
    client.move("out", "Junk", "Archive")
    client.move("thrown away", "Junk", "Trash")
    client.move("deeper", "Junk", "Junk.2024")
    client.move("deeper", "Junk.2024", "Junk")
    client.copy("deeper", "Junk", "Junk")
    client.move("twice", "INBOX", "Junk")
    client.move("twice", "Junk", "INBOX")
    client.move("elsewhere", "INBOX", "Archive")
    client.move("in", "Junk", "Trash")
    client.move("last", "INBOX", "Junk")  # reports are stored in order: with it all others are there
    spamguard.wait_for(mails["last"], "spam", "command")
    told = {"in": "spam", "copied": "spam", "out": "ham", "twice": "ham", "last": "spam"}
    assert spamguard.labels() == {content_hash(mails[name]): (label, "command") for name, label in told.items()}


def test_imapsieve_nobody_waits_for_spamguard(reporting, spamguard, login):
    """A spamguard that does not come back, in place of the one on the PATH."""
    real = spamguard.program.read_text()
    gate = spamguard.folder / "gate"
    spamguard.program.write_text(f"#!/bin/sh\nuntil [ -e {gate} ]; do sleep 0.1; done\n{real}")
    client = login(reporting, "ben")
    mails = [mail(f"slow {number}") for number in range(20)]
    for raw in mails:
        client.append("INBOX", raw)
    client.imap.select("INBOX")
    assert client.imap.uid("MOVE", "1:*", "Junk")[0] == "OK"
    assert client.subjects("Junk") == sorted(f"slow {number}" for number in range(20))
    assert not (spamguard.folder / "labels.sqlite3").exists()
    gate.touch()
    until(lambda: len(spamguard.labels()) == 20)
    assert set(spamguard.labels().values()) == {("spam", "command")}


def test_imapsieve_what_cannot_be_stored_is_logged(reporting, spamguard, login):
    logged = reporting.folder / "tmp/logged"
    logger = reporting.bin / "logger"
    logger.write_text(f'#!/bin/sh\necho "$@" >>{logged}\n')
    logger.chmod(0o755)
    spamguard.file.write_text("state_dir = 'spamguard.toml'\n")  # a file, so no folder
    client = login(reporting, "carl")
    client.append("INBOX", mail("lost"))
    client.move("lost", "INBOX", "Junk")
    until(logged.exists)
    assert "spamguard-report" in logged.read_text() and "spamguard.toml" in logged.read_text()
    assert client.subjects("Junk") == ["lost"]
    assert "Error" not in reporting.log


@pytest.fixture(scope="module")
def plain() -> Iterator[dovecots.Dovecot]:
    """A Dovecot that reports nothing."""
    with dovecots.private_dovecot(LMTP_2, IMAP_2) as instance:
        yield instance


Watch = Callable[..., tuple[Client, Spamguard, Any]]


@pytest.fixture
def watch(plain, daemon_process, login, request) -> Watch:
    """Start the daemon, as the owner of the mail, on a user's Maildir, and log in as that user."""

    def watch(user: str, more: str = "", real: bool = False) -> tuple[Client, Spamguard, Any]:
        client = login(plain, user)
        maildir = plain.folder / f"mail/{user}@example.net"
        text = f'[listen]\nprotocol = "off"\n[watch]\nmaildirs = ["{maildir}"]\nquiet_s = 0.5\n{more}\n'
        spamguard = Spamguard(plain.folder / request.node.name, plain.bin / f"spamguard-{user}", text)
        what = (spamguard.program, "serve") if real else (spamguard.python, ROOT / "tests/fakes.py", spamguard.file)
        process = daemon_process(spamguard.file, (*AS_OWNER, *map(str, what)))
        process.wait_for("ready")
        return client, spamguard, process

    return watch


def test_watcher_spam_goes_to_junk_as_it_is(watch):
    client, _, process = watch("anna")
    ham, spam, flagged = mail("friday"), mail("pills", "viagra"), mail("starred", "viagra")
    client.append("INBOX", ham)
    client.append("INBOX", spam)
    client.append("INBOX", flagged, "(\\Seen \\Flagged)", date=1_700_000_000)
    until(lambda: client.subjects("Junk") == ["pills", "starred"])
    assert client.subjects("INBOX") == ["friday"]
    about = client.fetch("starred", "Junk", "(FLAGS INTERNALDATE BODY.PEEK[])")
    assert b"\\Seen" in about and b"\\Flagged" in about and flagged in about
    assert time.mktime(Internaldate2tuple(about)) == 1_700_000_000
    assert b"\\Seen" not in client.fetch("pills", "Junk", "(FLAGS)")
    messages = [line for line in process.log if line["event"] == "message"]
    assert sorted(line["fate"] for line in messages) == ["left", "moved", "moved"]


def test_watcher_moves_of_a_client_are_labels(watch):
    client, spamguard, process = watch("ben")
    spam, ham = ("wrong", "thrown away", "deeper"), ("missed", "filed", "deleted")
    mails = {name: mail(name, "viagra" if name in spam else "meeting") for name in (*spam, *ham)}
    for raw in mails.values():
        client.append("INBOX", raw)
    until(lambda: client.subjects("Junk") == sorted(spam))
    client.move("thrown away", "Junk", "Trash")
    client.move("deeper", "Junk", "Junk.2024")
    client.move("filed", "INBOX", "Archive")
    client.move("deleted", "INBOX", "Trash")
    client.move("wrong", "Junk", "Archive")
    client.move("missed", "INBOX", "Junk")
    spamguard.wait_for(mails["wrong"], "ham", "moved")
    spamguard.wait_for(mails["missed"], "spam", "moved")
    client.move("missed", "Junk", "INBOX")  # the last word counts
    spamguard.wait_for(mails["missed"], "ham", "moved")
    assert set(spamguard.labels()) == {content_hash(mails["wrong"]), content_hash(mails["missed"])}
    # Nobody judges again what has been moved.
    assert client.subjects("Archive") == ["filed", "wrong"] and client.subjects("INBOX") == ["missed"]
    assert client.subjects("Trash") == ["deleted", "thrown away"] and client.subjects("Junk.2024") == ["deeper"]
    assert len([line for line in process.log if line["event"] == "message"]) == len(mails)


def test_watcher_keywords_of_a_client_are_labels(watch):
    client, spamguard, _ = watch("carl")
    missed, wrong, other = mail("missed"), mail("wrong", "viagra"), mail("other")
    for raw in (missed, wrong, other):
        client.append("INBOX", raw)
    until(lambda: client.subjects("Junk") == ["wrong"])
    client.keyword("other", "INBOX", "$Forwarded")  # a letter in the name, too
    client.keyword("missed", "INBOX", "$Junk")
    client.keyword("wrong", "Junk", "$NonJunk")
    spamguard.wait_for(missed, "spam", "keyword")
    spamguard.wait_for(wrong, "ham", "keyword")
    assert content_hash(other) not in spamguard.labels()


# What the head that ships takes for advertising, and this user has ordered; and what it is not sure of.
COFFEE = (
    "Fresh roasted coffee beans, delivered to your door each month. Our {} selection from {} is ready, and members "
    "get free shipping on every bag."
)
WANTED = [
    mail(f"coffee {number}", COFFEE.format(*words.split()))
    for number, words in enumerate(
        ("spring Peru", "summer Kenya", "autumn Brazil", "winter Colombia", "holiday Honduras", "early Rwanda")
    )
]
GUEST = (
    "I have read your article on {} with pleasure. Our writers would gladly send you a guest post on the same "
    "subject, with one link to a partner of ours. What would you ask for its publication?"
)
UNWANTED = [
    mail(f"guest post {number}", GUEST.format(subject))
    for number, subject in enumerate(("gardening", "bridges", "sailing", "bread", "clocks", "bicycles"))
]
SIMILAR = {
    "ham": mail("more coffee", COFFEE.format("new", "Ethiopia")),
    "spam": mail("offer", GUEST.format("trains")),
}


@pytest.mark.timeout(400)
def test_watcher_after_a_refit_similar_mail_is_judged_otherwise(watch):
    """The head that ships, real labels, a real retrain started by the daemon, and the head of it in service."""
    client, spamguard, process = watch("dora", '[learning]\nrefit = "on"\nafter = 12', real=True)
    before = spamguard.score(SIMILAR)
    assert before["ham"] > 0.05 and before["spam"] < 0.95  # there is something to learn
    for raw in WANTED:
        client.append("Junk", raw)
    for raw in UNWANTED:
        client.append("INBOX", raw)
    until(lambda: len([line for line in process.log if line["event"] == "message"]) == len(UNWANTED))
    for number in range(6):
        client.move(f"coffee {number}", "Junk", "INBOX")
        client.move(f"guest post {number}", "INBOX", "Junk")
    reloaded = process.wait_for("reloaded")
    assert reloaded["head"] != process.wait_for("ready")["head"]
    said = {content_hash(raw): ("ham", "moved") for raw in WANTED}
    assert spamguard.labels() == said | {content_hash(raw): ("spam", "moved") for raw in UNWANTED}
    after = spamguard.score(SIMILAR)
    assert after["ham"] < before["ham"] and after["spam"] > before["spam"]
    # And so does the daemon judge the next mail.
    client.append("INBOX", SIMILAR["spam"])
    until(lambda: len([line for line in process.log if line["event"] == "message"]) == len(UNWANTED) + 1)
    judged = [line for line in process.log if line["event"] == "message"][-1]
    assert judged["head"] == reloaded["head"] and judged["p"] == pytest.approx(after["spam"], abs=1e-3)
