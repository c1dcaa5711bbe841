"""The daemon as a process: systemd's words, signals, and what is left after SIGKILL."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import spamguard

pytestmark = pytest.mark.integration

SHIPPED = Path(spamguard.__file__).parent / "heads/default"

MAIL = b"Subject: hi\r\n\r\nmeeting\r\n"


@pytest.fixture
def file(tmp_path) -> Path:
    file = tmp_path / "spamguard.toml"
    file.write_text('state_dir = "."\n[listen]\nport = 0\nhostname = "filter.example"\n')
    return file


def delivered(tmp_path: Path, folder: str = "new") -> list[bytes]:
    return [path.read_bytes() for path in (tmp_path / "Maildir" / folder).iterdir()]


def test_systemd_is_told_what_happens(file, tmp_path, daemon_process):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        systemd.settimeout(60)
        process = daemon_process(file, NOTIFY_SOCKET=str(tmp_path / "notify"))
        assert systemd.recv(1000) == b"STATUS=Loading the model"
        ready = systemd.recv(1000).split(b"\n")
        assert ready[0] == b"READY=1" and ready[1].startswith(b"STATUS=SMTP on 127.0.0.1:")
        with process.client() as client:
            assert client.reply().startswith(b"220"), "READY means that clients are let in"
        process.popen.send_signal(signal.SIGHUP)
        reloading = dict(line.split(b"=") for line in systemd.recv(1000).split(b"\n"))
        assert reloading[b"RELOADING"] == b"1" and int(reloading[b"MONOTONIC_USEC"]) > 0
        assert systemd.recv(1000).startswith(b"READY=1\n")
        assert process.stop() == 0
        assert systemd.recv(1000) == b"STOPPING=1"


def test_an_abstract_notify_socket_works_too(file, daemon_process):
    name = f"spamguard-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind("\0" + name)
        systemd.settimeout(60)
        daemon_process(file, NOTIFY_SOCKET="@" + name)
        assert systemd.recv(1000).startswith(b"STATUS=")


def test_sighup_swaps_the_head_under_an_open_connection(file, tmp_path, daemon_process):
    head = tmp_path / "head"
    head.write_text("head-1")
    file.write_text(file.read_text() + '[head]\npath = "head"\n')
    process = daemon_process(file)
    with process.client() as client:
        assert client.deliver(MAIL).startswith(b"250")
        for name, event in (("head-2", "reloaded"), ("broken", "reload failed, nothing has changed")):
            head.write_text(name)
            process.popen.send_signal(signal.SIGHUP)
            process.wait_for(event)
            assert client.ask(b"MAIL FROM:<a@b>").startswith(b"250")
            assert client.ask(b"RCPT TO:<a@b>").startswith(b"250")
            assert client.ask(b"DATA").startswith(b"354")
            assert client.ask(MAIL + b".").startswith(b"250")
    assert [line["head"] for line in process.log if line["event"] == "message"] == ["head-1", "head-2", "head-2"]
    assert len(delivered(tmp_path)) == 3
    assert process.stop() == 0


def test_sigterm_lets_a_message_end_and_the_sender_hear_of_it(file, tmp_path, daemon_process):
    process = daemon_process(file)
    with process.client() as client, process.client() as idle:
        idle.greet()
        client.begin()
        client.send(b"X-Fake: slow\r\n" + MAIL)
        process.popen.send_signal(signal.SIGTERM)
        assert idle.reply() == b"421 4.3.2 Shutting down, try again later"
        client.send(b".\r\n")
        assert client.reply().startswith(b"250 2.0.0 Ok: delivered as ")
        assert client.reply().startswith(b"421 4.3.2")
        assert process.popen.wait(60) == 0
    assert len(delivered(tmp_path)) == 1
    assert process.log[-1]["event"] == "stopped"
    assert process.log[-1]["broken_off"] == 0
    assert process.log[-1]["deliver.ham"] == 1


def test_sigint_while_idle_ends_the_process_at_once(file, daemon_process):
    process = daemon_process(file)
    process.wait_for("ready")
    process.popen.send_signal(signal.SIGINT)
    assert process.popen.wait(60) == 0


def test_a_port_in_use_is_one_line_and_found_before_the_model_is_loaded(file):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        file.write_text(f'state_dir = "."\n[listen]\nport = {port}\n[encoder]\nmodel = "no/such-model"\n')
        command = [sys.executable, "-c", "from spamguard.cli import main; main()", "--config", str(file), "serve"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=110)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.endswith(f"listen: cannot bind 127.0.0.1:{port}: Address already in use")


@pytest.mark.skipif(not (SHIPPED / "manifest.json").is_file(), reason="no head has been fitted yet: make head")
def test_the_command_itself_with_the_head_that_ships(file, tmp_path, daemon_process):
    """`spamguard serve`, the real encoder and all: GTUBE is spam, and a letter among friends is not."""
    file.write_text(file.read_text() + '[log]\nformat = "json"\n')
    command = (sys.executable, "-c", "from spamguard.cli import main; main()", "--config", str(file), "serve")
    process = daemon_process(file, command)
    gtube = b"XJS*C4JDBQADN1.NSBN3*2IDNEN*GTUBE-STANDARD-ANTI-UBE-TEST-EMAIL*C.34X"
    letter = (
        b"Hi Anna,\r\n\r\nshall we meet on Friday to go through the slides? I can be there at ten.\r\n\r\nPaul\r\n"
    )
    with process.client() as client:
        assert client.deliver(b"From: a@example.org\r\nSubject: test\r\n\r\n" + gtube + b"\r\n").startswith(b"250")
    with process.client() as client:
        assert client.deliver(b"From: paul@example.org\r\nSubject: Friday\r\n\r\n" + letter).startswith(b"250")
    assert process.stop() == 0
    (spam,) = delivered(tmp_path, ".Junk/new")
    assert b"\nX-Spam-Flag: YES\n" in spam and b"GTUBE" in spam.split(b"\n\n")[0]
    (ham,) = delivered(tmp_path)
    assert b"\nX-Spam-Status: No, " in ham and ham.endswith(letter.replace(b"\r\n", b"\n"))


def test_row_18_what_was_answered_250_is_there_after_sigkill(file, tmp_path, daemon_process):
    """Ten times: senders at work, SIGKILL at a random moment; a restart finds nothing torn and nothing missing."""
    accepted: set[bytes] = set()
    seed = random.Random(18)
    for kill in range(10):
        process = daemon_process(file)
        process.wait_for("ready")

        def send(sender: int, process=process, kill=kill) -> None:
            with contextlib.suppress(OSError, AssertionError), process.client() as client:
                client.greet()
                for number in range(100_000):
                    name = b"%d-%d-%d" % (kill, sender, number)
                    body = b"Subject: %s\r\n\r\n%s\r\nend of %s\r\n." % (name, b"x" * 20_000, name)
                    for line, code in ((b"MAIL FROM:<a@b>", b"250"), (b"RCPT TO:<a@b>", b"250"), (b"DATA", b"354")):
                        assert client.ask(line).startswith(code)
                    assert client.ask(body).startswith(b"250")
                    accepted.add(name)

        senders = [threading.Thread(target=send, args=(number,)) for number in range(4)]
        before = len(accepted)
        for thread in senders:
            thread.start()
        while len(accepted) < before + seed.randrange(1, 60):
            threading.Event().wait(0.001)
        process.popen.kill()
        for thread in senders:
            thread.join()
        assert process.popen.wait(60) == -signal.SIGKILL
    whole: list[bytes] = []
    for data in delivered(tmp_path):
        name = data.split(b"Subject: ")[1].split(b"\n")[0]
        assert data.endswith(b"x\nend of " + name + b"\n"), "torn"
        whole.append(name)
    assert accepted <= set(whole)
    assert len(whole) == len(set(whole))
    assert len(accepted) >= 10
