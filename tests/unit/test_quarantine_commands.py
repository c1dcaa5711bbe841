"""`spamguard quarantine`: what each command prints, one line for each fault, and nothing of a mail that is obeyed."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from service.envelope import Envelope
from service.envelope import Path as Mailbox
from service.held import Source
from spamguard import released
from spamguard.cli import main
from spamguard.headers import content_hash
from spamguard.labels import Labels
from spamguard.verdict import Label, Reason
from tests.fakes import END_OF_DATA, verdict
from tests.held_mail import ID, RAW, Store, age

OTHER = "fedcba987654"
HOSTILE = "\x1b]0;pwned\x07\x1b[2J\u202e\u200f<script>alert(1)</script>"
Run = Callable[..., Result]


@pytest.fixture
def run(store: Store) -> Run:
    """Runs `spamguard quarantine` with the store's configuration."""

    def invoke(*arguments: str) -> Result:
        return CliRunner().invoke(main, ["--config", str(config_file(store)), "quarantine", *arguments])

    return invoke


def config_file(store: Store) -> Path:
    file = store.folder / "spamguard.toml"
    hop = store.config.next_hop
    where = f'socket = "{hop.socket}"' if hop.socket else f'host = "{hop.host}"\nport = {hop.port}'
    next_hop = f'[next_hop]\nprotocol = "{hop.protocol}"\n{where}\n' if hop.exists else ""
    file.write_text(f'state_dir = "{store.folder}"\n[listen]\nhostname = "filter.example"\n{next_hop}')
    return file


def hold(store: Store, message_id: str, raw: bytes = RAW, reasons: tuple[Reason, ...] = (), **more: object) -> Path:
    to = Mailbox(str(more.get("to", "<bob@example.net>")).encode("utf-8", "surrogateescape"))
    envelope = Envelope(sender=Mailbox(b"<ann@example.org>"), recipients=[to])
    store.quarantine.stage(message_id, envelope, [raw], verdict(0.97, reasons=reasons)).commit()
    return store.quarantine.path(message_id)


def assert_one_line(result: Result, words: str) -> None:
    assert result.exit_code == 2 and words in result.stderr, result.output
    assert result.stderr.startswith("spamguard: ") and result.stderr.count("\n") == 1 and result.stdout == ""


# --- list -----------------------------------------------------------------------------------------------------------


def test_list_shows_one_line_a_message_oldest_first(run, store):
    age(hold(store, OTHER), time.time() - 3600)
    old, new = run("list").stdout.splitlines()
    assert old.startswith(OTHER) and new.startswith(f"{ID}  {time.strftime('%Y-')}")
    assert "0.9700" in old and "0.9900" in new and "ann@example.org" in new
    assert "bob@example.net +2" in new and new.endswith("  café")


def test_list_json_is_all_that_is_known(run):
    (line,) = run("list", "--json").stdout.splitlines()
    said = json.loads(line)
    assert list(said) == [
        "id", "state", "received", "source", "sender", "recipients", "header_from", "subject", "label", "score",
        "size", "damaged",
    ]  # fmt: skip
    assert (said["id"], said["state"], said["label"], said["size"]) == (ID, "held", "spam", len(RAW))
    assert said["recipients"] == ["bob@example.net", '"a b"@example.net', "eve@x"]


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ([], [OTHER, ID]), (["--since", "30m"], [ID]), (["--since", "2h"], [OTHER, ID]),
        (["--since", "1w"], [OTHER, ID]), (["--since", "2020-01-01"], [OTHER, ID]),
        (["--since", "2999-01-01T08:00+02:00"], []), (["--score", "0.98"], [ID]), (["--from", "BOUNCE"], [ID]),
        (["--to", "eve@X"], [ID]), (["--to", "nobody"], []),
    ],
)  # fmt: skip
def test_list_filters(run, store, options, found):
    age(hold(store, OTHER), time.time() - 3600)
    assert [line.split()[0] for line in run("list", *options).stdout.splitlines()] == found


@pytest.mark.parametrize("wrong", ["soon", "2d3h", "99999999w9", "0000-00-00", "\x1b[2J", "-1d"])
def test_a_time_that_is_none_is_one_line(run, wrong):
    result = run("list", f"--since={wrong}")
    assert_one_line(result, "is neither a date nor a span such as 2d")
    assert "\x1b" not in result.stderr


def test_list_all_shows_what_was_released_too(run, store):
    store.quarantine.settle(hold(store, OTHER))
    assert len(run("list").stdout.splitlines()) == 1
    lines = run("list", "--all").stdout.splitlines()
    assert [line.split()[3] for line in lines] == ["held", "released"]


def test_an_empty_quarantine_is_no_error(run, store):
    store.quarantine.delete(ID)
    assert (run("list").exit_code, run("list").output) == (0, "")


def test_a_damaged_message_is_listed_and_can_be_deleted(run, store):
    (store.quarantine.path(ID) / "envelope.json").write_bytes(b"{")
    assert "damaged" in run("list").stdout
    assert_one_line(run("show", ID), "damaged")
    assert_one_line(run("release", ID), "damaged")
    assert run("delete", ID).stdout == f"{ID}: deleted\n" and store.state is None


# --- show -----------------------------------------------------------------------------------------------------------


def test_show_tells_all_of_a_message(run, store):
    hold(store, OTHER, RAW, (Reason("wide", '"pills"', 1.25),))
    shown = run("show", OTHER).stdout
    for words in (
        f"{OTHER}: held, received {time.strftime('%Y-')}", f"{len(RAW)} bytes", "MAIL FROM:<ann@example.org>",
        "RCPT TO:<bob@example.net>", "label spam, probability 0.97, head head-1", "+1.25  \"pills\"",
        "X-Spam-Flag: YES", "Subject: café", "viagra",
    ):  # fmt: skip
        assert words in shown


def test_show_of_a_message_from_a_maildir(run, store):
    source = Source("/home/ann/Maildir", ".Lists", "1.M2.host", "S", 0, 0o600)
    store.quarantine.stage(OTHER, Envelope(), [RAW], None, source).commit()
    shown = run("show", OTHER).stdout
    assert "taken from /home/ann/Maildir, folder .Lists, 1.M2.host:2,S" in shown and "not scored" in shown


def test_show_raw_is_the_exact_bytes(run):
    assert run("show", "--raw", ID).stdout_bytes == RAW


def test_show_raw_does_not_go_to_a_terminal(store):
    near, far = pty.openpty()
    code = "from spamguard.cli import main; main()"
    command = [sys.executable, "-c", code, "--config", str(config_file(store)), "quarantine", "show", "--raw", ID]
    done = subprocess.run(command, stdout=far, stderr=subprocess.PIPE, timeout=60)
    os.close(far)
    os.close(near)
    assert done.returncode == 2 and b"a terminal may obey" in done.stderr


@pytest.mark.parametrize(
    "arguments", [["list"], ["list", "--json"], ["show", OTHER], ["release", OTHER], ["list", "--all"]]
)
def test_nothing_of_a_mail_reaches_the_terminal_raw(run, store, arguments):
    evil = HOSTILE.encode()
    raw = (
        b"Subject: " + evil + b"\r\nFrom: " + evil + b" <a@x>\r\nX-" + b"A" * 5000 + b": " + evil + b"\r\n\r\n" + evil
    )
    hold(store, OTHER, raw, (Reason("wide", HOSTILE, 1.0),), to=f'<"{HOSTILE}"@x>')
    result = run(*arguments)
    assert result.exit_code == 0
    for stream in (result.stdout, result.stderr):
        assert all(line.isprintable() for line in stream.split("\n")), stream
    assert max(map(len, result.stdout.splitlines())) < 1100


ODD = [
    b"",
    b"\xff\xfe\0\x82",
    b"Subject: \x82\xff\r\n\r\n\x82",
    b"Content-Type: text/plain; charset=cp-850\r\n\r\ncaf\x82",
    b"Content-Type: multipart/mixed; boundary=a\r\n\r\n--a\r\nContent-Type: message/rfc822\r\n\r\n--a\r\n\r\n--a--",
    b'From: "a" <"weird \\" quote"@x>\r\n\r\n',
    b"Subject: =?utf-16?b?//8=?=\r\n\r\n",
    b"\r\n\r\n",
    b"A" * 300_000,
]


@pytest.mark.parametrize("raw", ODD)
def test_odd_mail_is_listed_shown_digested_and_released(run, store, hop, raw):
    behind = hop()
    store.quarantine.delete(ID)
    odd = '"o\'b \\" \udce4 <x>"@example.net'
    hold(store, OTHER, raw, to=f"<{odd}>")
    assert run("list").stdout.startswith(OTHER) and run("show", OTHER).exit_code == 0
    assert run("show", "--raw", OTHER).stdout_bytes == raw
    assert run("digest", "--to", odd, "--print").exit_code == 0
    result = run("release", OTHER)
    assert (result.exit_code, store.quarantine.states()) == (0, {OTHER: "released"}), result.output
    assert released.is_ours(behind.messages[-1].data, store.key) == OTHER


@pytest.mark.parametrize("encoding", ["ascii", "cp850", "latin-1"])
def test_a_terminal_of_another_character_set_is_no_fault(store, encoding):
    hold(store, OTHER, "Subject: 高い é\r\n\r\n高い".encode())
    code = "from spamguard.cli import main; main()"
    for arguments in (["list"], ["show", OTHER]):
        command = [sys.executable, "-c", code, "--config", str(config_file(store)), "quarantine", *arguments]
        environment = os.environ | {"PYTHONIOENCODING": encoding}
        done = subprocess.run(command, capture_output=True, env=environment, timeout=60)
        assert (done.returncode, done.stderr) == (0, b"") and b"?" in done.stdout


# --- IDs, row 20 ----------------------------------------------------------------------------------------------------


def test_the_beginning_of_an_id_will_do_if_it_is_the_only_one(run, store):
    hold(store, f"{ID[:10]}ff")
    assert run("show", ID).stdout.startswith(ID)
    assert_one_line(run("show", ID[:8]), f"{ID[:8]}: 2 messages have such an id")
    store.quarantine.delete(f"{ID[:10]}ff")
    assert run("show", ID[:8]).stdout.startswith(ID)


@pytest.mark.parametrize(
    "wrong",
    ["../held", "/etc/passwd", "%2f%2e%2e", "a" * 300, "0123", "", "ABCDEF0123", "0123456789ab/..", "\x1b[2J"],
)
@pytest.mark.parametrize("command", ["show", "release", "delete"])
def test_row_20_what_is_no_id_is_one_line(run, store, command, wrong):
    assert_one_line(run(command, "--", wrong), "is no id of a message")
    assert "\x1b" not in run(command, "--", wrong).stderr and store.state == "held"


@pytest.mark.parametrize("command", ["show", "release", "delete"])
def test_an_id_that_is_not_there_is_one_line(run, command):
    assert_one_line(run(command, OTHER), f"{OTHER}: no such message")


# --- release, delete, expire ----------------------------------------------------------------------------------------


def test_release_says_what_it_did_and_the_second_time_that_it_was_done(run, store, hop):
    behind = hop()
    assert run("release", ID).stdout == f'{ID}: released to bob@example.net, "a b"@example.net, eve@x\n'
    again = run("release", ID)
    assert (again.exit_code, again.stdout, len(behind.messages)) == (0, f"{ID}: was released already\n", 1)


def test_release_by_lmtp_names_who_refused_and_goes_on_with_the_next(run, store, hop):
    hold(store, OTHER)
    hop(lmtp=True, **{END_OF_DATA: [b"250 ok", b"550 5.7.1 \x1b[2Jno", b"250 ok", b"250 ok"]})
    result = run("release", ID, OTHER)
    assert result.exit_code == 2
    assert result.stderr == f'spamguard: {ID}: still held for "a b"@example.net: 550 5.7.1  [2Jno\n'
    assert result.stdout.splitlines() == [
        f"{ID}: released to bob@example.net, eve@x", f"{OTHER}: released to bob@example.net",
    ]  # fmt: skip


def test_release_to_others(run, store, hop):
    behind = hop()
    result = run("release", "--to", "carol@example.net", "--to", "dave@example.net", ID)
    assert result.stdout == f"{ID}: released to carol@example.net, dave@example.net\n"
    assert behind.messages[0].rcpt == [b"RCPT TO:<carol@example.net>", b"RCPT TO:<dave@example.net>"]


def test_release_while_nobody_is_there_is_one_line(run, store, hop, loop_thread):
    behind = hop()
    loop_thread.run(behind.stop())
    assert_one_line(run("release", ID), "connect")
    loop_thread.run(behind.start())
    assert store.state == "held"


def test_release_learn_makes_a_label_also_of_what_was_released_before(run, store, hop):
    hop(RCPT=[b"550 5.1.1 no"] * 3 + [b"250 ok"])
    labels = store.config.labels_file

    def kept() -> list[tuple[str, str, str, str]]:
        with Labels(labels) as all_of_them:
            return [(row.content, row.label, row.source, row.where) for row in all_of_them.rows()]

    assert run("release", "--learn", ID).exit_code == 2 and kept() == []
    assert run("release", ID).exit_code == 0 and kept() == []
    assert run("release", "--learn", ID).exit_code == 0
    assert kept() == [(content_hash(RAW), Label.HAM, "release", ID)]


def test_release_with_a_damaged_key_is_one_line_and_it_is_still_held(run, store, hop):
    hop()
    store.config.release_key.write_bytes(b"short")
    assert_one_line(run("release", ID), "is no key of 32 bytes")
    assert store.state == "held"


def test_row_31_release_on_a_full_disk_is_one_line_and_it_is_still_held(run, store, hop, monkeypatch):
    behind = hop()
    assert len(store.key) == 32
    rename = Path.rename

    def full(self: Path, target: Path) -> Path:
        if target.name == "release.json":
            raise OSError(28, "No space left on device")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", full)
    assert_one_line(run("release", ID), "No space left on device")
    assert store.state == "held" and behind.messages == []
    monkeypatch.undo()
    assert run("release", ID).exit_code == 0 and len(behind.messages) == 1


def test_released_mail_is_not_silently_kept_from_others(run, store, hop):
    behind = hop()
    assert run("release", ID).exit_code == 0
    assert_one_line(run("release", ID, "--to", "carol@example.net"), "was released already")
    assert len(behind.messages) == 1


def test_delete_several(run, store):
    hold(store, OTHER)
    result = run("delete", ID, "a" * 12, OTHER)
    assert result.stdout == f"{ID}: deleted\n{OTHER}: deleted\n" and result.exit_code == 2
    assert store.quarantine.states() == {}


def test_expire_says_what_went(run, store):
    age(hold(store, OTHER), time.time() - 31 * 86_400)
    assert run("expire").stdout == f"deleted 1 held and 0 released messages, {len(RAW)} bytes; 1 are left\n"
    assert run("expire").stdout == "deleted 0 held and 0 released messages, 0 bytes; 1 are left\n"


def test_a_folder_that_cannot_be_read_is_one_line(run, store):
    (store.quarantine.folder / "held").rename(store.folder / "aside")
    (store.quarantine.folder / "held").write_bytes(b"")
    for arguments in (["list"], ["show", ID], ["delete", ID], ["expire"], ["digest", "--to", "a@x"]):
        assert_one_line(
            run(*arguments), "Not a directory" if len(arguments) == 2 or arguments == ["list"] else "held"
        )


def test_root_acts_as_the_owner_of_the_state_folder(store, hop):
    if os.geteuid() != 0:
        pytest.skip("not root")
    hop()
    for path in [store.folder, *store.folder.rglob("*")]:
        os.chown(path, 12345, 23456)
    config = config_file(store)
    # All is imported before, as the Python of a developer may lie where root alone can read it.
    code = (
        "import encodings.cp1252, encodings.idna, spamguard.labels, service.item_text, service.release\n"
        "import service.retention; from spamguard.cli import main; main()"
    )
    for arguments in (["list"], ["release", "--learn", ID], ["expire"]):
        for path in store.folder.parents:  # each time: another session of pytest shuts them at its start
            if str(path).startswith("/tmp/pytest"):
                path.chmod(0o755)
        command = [sys.executable, "-c", code, "--config", str(config), "quarantine", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert (done.returncode, done.stderr) == (0, "")
    assert store.state == "released"
    store.folder.parent.chmod(0o700)  # as systemd shuts /var/lib/private
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and "its service only" in done.stderr and done.stderr.count("\n") == 1
    config.unlink()
    owners = {(path.stat().st_uid, path.stat().st_gid) for path in store.folder.rglob("*")}
    assert owners == {(12345, 23456)} and store.config.release_key.exists() and store.config.labels_file.exists()


def test_the_commands_need_no_torch(store):
    code = (
        "import sys; from spamguard.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "assert not {'torch', 'transformers', 'numpy'} & sys.modules.keys()"
    )
    for arguments in (
        ["list"],
        ["show", ID],
        ["digest", "--to", "bob@example.net", "--print"],
        ["release", "--learn", ID],
    ):
        command = [sys.executable, "-c", code, "--config", str(config_file(store)), "quarantine", *arguments]
        done = subprocess.run(command, capture_output=True, timeout=60)
        assert done.returncode == 0, done.stderr
