"""LMTP with real servers: Postfix's lmtp(8) and smtp(8) in front of us, Dovecot's lmtpd behind, as our page says."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests import dovecot as dovecots
from tests import postfix as postfixes
from tests.servers import Sink, documented, free_ports, needs, private_folder, smtp_source, swaks, until

pytestmark = needs(*postfixes.PROGRAMS, *dovecots.PROGRAMS)

FRONT, FRONT_SMTP, FILTER, MAILBOXES, IMAP, SINK = free_ports(6)
PAGE = ("docs/mail-servers.md", "LMTP between Postfix and Dovecot")

LONG = "meeting\n" * 1000  # over the quota of full@example.net


@pytest.fixture(scope="module")
def dovecot() -> Iterator[dovecots.Dovecot]:
    with dovecots.private_dovecot(MAILBOXES, IMAP) as instance:
        yield instance


@pytest.fixture(scope="module")
def sockets() -> Iterator[Path]:
    """A folder for our Unix socket, through whose parents Postfix may pass."""
    with private_folder("socket") as folder:
        yield folder


@pytest.fixture(scope="module", params=["port", "socket"])
def lmtp_in_front(request, sockets) -> Iterator[tuple[postfixes.Postfix, str]]:
    """A Postfix whose lmtp client comes to us, and the lines of our table `listen` for it."""
    main, toml, _ = documented(*PAGE, {"10025": FILTER})
    listen = toml.partition("\n\n")[0]
    if request.param == "socket":
        main = main.replace(f"inet:127.0.0.1:{FILTER}", f"unix:{sockets}/lmtp")
        listen = listen.replace(f"port = {FILTER}", f'socket = "{sockets}/lmtp"\nsocket_mode = "0666"')
        assert "unix:" in main and "socket" in listen
    with postfixes.private_postfix(FRONT, main) as instance:
        yield instance, listen


@pytest.fixture
def start(tmp_path, daemon_process) -> Callable[[str, str], object]:
    def start(listen: str, next_hop: str) -> object:
        file = tmp_path / "spamguard.toml"
        file.write_text(f'state_dir = "."\n{listen}\n[next_hop]\nprotocol = "lmtp"\n{next_hop}\n')
        process = daemon_process(file)
        process.wait_for("ready")
        return process

    return start


def fates(postfix: postfixes.Postfix, since: int) -> dict[str, str]:
    """What became of each recipient, from the log that Postfix has written since."""
    found = re.findall(r"to=<(\S+?)>, relay=\S+,.*? (dsn=\S+, status=\w+)", postfix.log[since:])
    return {to.split("@")[0]: what for to, what in found if to.endswith("@example.net")}


def next_hop(dovecot: dovecots.Dovecot, kind: str) -> str:
    return f'socket = "{dovecot.socket}"' if kind == "socket" else f'host = "127.0.0.1"\nport = {dovecot.port}'


@pytest.mark.parametrize("behind", ["socket", "port"])
def test_each_recipient_gets_its_own_reply(lmtp_in_front, dovecot, start, behind):
    postfix, listen = lmtp_in_front
    start(listen, next_hop(dovecot, behind))
    since = len(postfix.log)
    subject = f"own replies {behind} {'unix' if 'socket' in listen else 'inet'}"
    to = ",".join(f"{name}@example.net" for name in ("b", "nobody", "full", "c"))
    assert swaks(FRONT, "--to", to, "--header", f"Subject: {subject}", "--body", LONG).returncode == 0
    for name in ("b", "c"):
        mail = dovecot.box(name).one(subject)
        (verdict,) = mail.get_all("X-Spamguard")
        assert verdict.startswith("ham; p=0.01")
    until(lambda: not postfix.queued())
    assert fates(postfix, since) == {
        "b": "dsn=2.0.0, status=sent",
        "c": "dsn=2.0.0, status=sent",
        "full": "dsn=5.2.2, status=bounced",
        "nobody": "dsn=5.1.1, status=bounced",
    }


def test_without_dovecot_mail_waits_in_the_queue(lmtp_in_front, dovecot, start):
    postfix, listen = lmtp_in_front
    (nobody_there,) = free_ports(1)
    process = start(listen, f'host = "127.0.0.1"\nport = {nobody_there}')
    subject = f"waits {'unix' if 'socket' in listen else 'inet'}"
    done = swaks(FRONT, "--to", "b@example.net,c@example.net", "--header", f"Subject: {subject}", "--body", "viagra")
    assert done.returncode == 0
    until(postfix.deferred)
    assert "451 4.4.1" in postfix.log
    process.stop()
    start(listen, next_hop(dovecot, "socket"))
    postfix.flush()
    for name in ("b", "c"):
        assert dovecot.box(name).one(subject)["X-Spam-Flag"] == "YES"
    until(lambda: not postfix.queued())


def test_a_load_of_two_hundred(lmtp_in_front, dovecot, start):
    postfix, listen = lmtp_in_front
    start(listen, next_hop(dovecot, "socket"))
    before = len(dovecot.box("b").raw())
    smtp_source(FRONT, 200, "-l", "5000")
    until(lambda: len(dovecot.box("b").raw()) == before + 200)
    until(lambda: not postfix.queued())


def test_smtp_source_speaks_lmtp_to_us_and_we_to_smtp_sink(start, sockets):
    """Load without a queue: smtp-source -L takes no other answer than one 250 for each recipient."""
    with Sink(sockets / "sink", SINK, "-L") as sink:
        start(f'[listen]\nprotocol = "lmtp"\nport = {FILTER}', f'host = "127.0.0.1"\nport = {SINK}')
        smtp_source(FILTER, 100, "-L", "-r", "5", "-d", "-l", "5000")
        assert len(sink.dumps()) == 100
    assert all(dump.count(b"X-Rcpt-Args: ") == 5 and dump.count(b"\nX-Spamguard: ") == 1 for dump in sink.dumps())


SMTP = f'[listen]\nport = {FILTER}\nhostname = "front.example"'


def test_smtp_in_front_takes_one_recipient_a_transaction(dovecot, start):
    """Postfix keeps a recipient that was answered 452 for the next run of its queue."""
    with postfixes.private_postfix(FRONT_SMTP, f"virtual_transport = smtp:[127.0.0.1]:{FILTER}\n") as postfix:
        start(SMTP, next_hop(dovecot, "port"))
        to = "b@example.net,c@example.net"
        assert swaks(FRONT_SMTP, "--to", to, "--header", "Subject: in turn").returncode == 0
        dovecot.box("b").one("in turn")
        until(postfix.deferred)
        assert "452 4.5.3" in postfix.log
        assert not [mail for mail in dovecot.box("c").mails() if mail["Subject"] == "in turn"]
        postfix.flush()
        dovecot.box("c").one("in turn")
        until(lambda: not postfix.queued())
        dovecot.box("b").one("in turn")


def test_smtp_in_front_with_one_recipient_at_a_time_needs_no_second_run(dovecot, start):
    main = f"virtual_transport = smtp:[127.0.0.1]:{FILTER}\nsmtp_destination_recipient_limit = 1\n"
    with postfixes.private_postfix(FRONT_SMTP, main) as postfix:
        start(SMTP, next_hop(dovecot, "socket"))
        to = "b@example.net,full@example.net,nobody@example.net,c@example.net"
        assert swaks(FRONT_SMTP, "--to", to, "--header", "Subject: at once", "--body", LONG).returncode == 0
        for name in ("b", "c"):
            dovecot.box(name).one("at once")
        until(lambda: not postfix.queued())
        assert set(fates(postfix, 0).values()) == {
            "dsn=2.0.0, status=sent",
            "dsn=5.2.2, status=bounced",
            "dsn=5.1.1, status=bounced",
        }
