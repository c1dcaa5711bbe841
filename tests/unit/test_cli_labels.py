"""`spamguard labels` and a retrain on labels: what it prints and learns, and one line where it cannot."""

from __future__ import annotations

import fcntl
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

import pytest
from click.testing import CliRunner

from spamguard import bundle
from spamguard.cli import main
from spamguard.featurestore import FeatureStore
from spamguard.headers import content_hash
from spamguard.labels import Labels
from spamguard.verdict import Label
from tests import tiny_corpus
from tests.tiny_corpus import HAM, SPAM
from tests.unit.conftest import Run, Tiny, assert_one_line, run_with, snapshot
from tests.unit.test_cli import HEAVY, PROGRAM, ROOT


@pytest.fixture
def file(write_config: Callable[..., Path]) -> Path:
    return write_config("[limits]\nmessage_bytes = 65536\n")


@pytest.fixture
def run(file: Path) -> Run:
    return run_with(file)


@pytest.fixture
def state(tmp_path: Path) -> Path:
    return tmp_path / "state"


@contextmanager
def opened(state: Path) -> Iterator[Labels]:
    with Labels(state / "labels.sqlite3") as labels:
        yield labels


def teach(state: Path, ham: list[bytes], spam: list[bytes]) -> None:
    with opened(state) as labels:
        for raw in ham:
            labels.add(raw, Label.HAM, "moved")
        for raw in spam:
            labels.add(raw, Label.SPAM, "moved")


# --- add ------------------------------------------------------------------------------------------------------------


def test_add_notes_files_and_standard_input(run: Run, state: Path, tmp_path: Path) -> None:
    (tmp_path / "a.eml").write_bytes(SPAM[0])
    result = run("labels", "add", "--spam", tmp_path / "a.eml", "-", stdin=SPAM[1])
    ids = [content_hash(raw)[:12] for raw in SPAM[:2]]
    assert result.exit_code == 0 and result.stderr == ""
    assert result.stdout == f"{ids[0]} spam {tmp_path / 'a.eml'}\n{ids[1]} spam standard input\n"
    with opened(state) as labels:
        assert [(row.label, row.source, row.waits) for row in labels.rows()] == [(Label.SPAM, "command", True)] * 2
        assert labels.raw(content_hash(SPAM[1])) == SPAM[1]


@pytest.mark.parametrize("options", [[], ["--spam", "--ham"]])
def test_add_wants_to_be_told_which(run: Run, state: Path, options: list[str]) -> None:
    assert_one_line(run("labels", "add", *options, "-", stdin=HAM[0]), "say either --spam or --ham")
    assert not state.exists()


def test_add_names_what_is_no_message_and_takes_the_rest(run: Run, state: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "large").write_bytes(b"x" * 65_537)
    (tmp_path / "largest").write_bytes(b"x" * 65_536)
    result = run("labels", "add", "--ham", *(tmp_path / n for n in ("none", "empty", "large", ".", "largest")))
    assert result.exit_code == 2 and len(result.stdout.splitlines()) == 1
    faults = ["none: No such file or directory", "empty: is empty", "large: more than 65536 bytes", "Is a directory"]
    lines = result.stderr.splitlines()
    assert len(lines) == 4 and all(fault in line for fault, line in zip(faults, lines, strict=True))
    with opened(state) as labels:
        assert len(labels.rows()) == 1


def test_add_of_an_empty_standard_input_is_one_line(run: Run) -> None:
    assert_one_line(run("labels", "add", "--ham", "-", stdin=b""), "standard input: is empty")


def test_add_imports_nothing_heavy(file: Path, state: Path, tmp_path: Path) -> None:
    """imapsieve waits for it, with the user's mail client behind."""
    (tmp_path / "a.eml").write_bytes(SPAM[0])
    command = [sys.executable, "-c", PROGRAM, "--config", file, "labels", "add", "--spam", tmp_path / "a.eml"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert not set(done.stdout.partition("imported: ")[2].split()) & HEAVY
    with opened(state) as labels:
        assert len(labels.rows()) == 1


def test_a_state_folder_that_cannot_be_used_is_one_line(run: Run, state: Path) -> None:
    state.write_text("a file")
    for command in (["add", "--spam", "-"], ["list"], ["forget", "a" * 8]):
        assert_one_line(run("labels", *command, stdin=SPAM[0]), str(state))
    assert_one_line(run("retrain"), str(state))


# --- list -----------------------------------------------------------------------------------------------------------


def test_list_shows_who_said_what_of_which_message(run: Run, state: Path) -> None:
    with opened(state) as labels:
        ham = labels.add(HAM[0], Label.HAM, "release", "/var/mail/ann/\x1b[31m.Lists")
        spam = labels.add(SPAM[0], Label.SPAM, "moved", "/var/mail/ann")
        labels.encoded([spam])
        labels.replace_folder({"c" * 64: (Label.SPAM, "corpus/spam/1.eml")})
    lines = run("labels", "list").stdout.splitlines()
    assert [line.split()[0] for line in lines] == [ham[:12], spam[:12], "c" * 12]
    assert re.fullmatch(r"\w{12}  \S{25}  ham   release  waiting  /var/mail/ann/ \[31m\.Lists", lines[0])
    assert lines[1].endswith("spam  moved    encoded  /var/mail/ann")

    found = [json.loads(line) for line in run("labels", "list", "--json").stdout.splitlines()]
    assert [set(one) for one in found] == [{"id", "label", "source", "when", "where", "waiting"}] * 3
    assert (found[0]["id"], found[0]["label"], found[0]["waiting"]) == (ham, "ham", True)
    assert abs(datetime.fromisoformat(found[0]["when"]).timestamp() - datetime.now().timestamp()) < 3600
    for options, count in ((["--spam"], 2), (["--ham"], 1), (["--source", "moved"], 1), (["--spam", "--ham"], 3)):
        assert len(run("labels", "list", *options).stdout.splitlines()) == count


def test_list_of_nothing_is_nothing(run: Run) -> None:
    result = run("labels", "list")
    assert (result.exit_code, result.output) == (0, "")


def test_labels_alone_shows_its_help(run: Run) -> None:
    result = run("labels")
    assert result.exit_code == 0 and "\n  forget " in result.stdout


# --- forget ---------------------------------------------------------------------------------------------------------


def test_forget_takes_label_features_and_mail(run: Run, state: Path, tiny: Tiny) -> None:
    teach(state, HAM, SPAM)
    assert run("retrain").exit_code == 0
    before = json.loads(run("score", "--json", "-", stdin=SPAM[3]).stdout)["head"]
    run("labels", "add", "--spam", "-", stdin=tiny_corpus.spam(77))
    gone = [content_hash(SPAM[3]), content_hash(tiny_corpus.spam(77))]
    result = run("labels", "forget", gone[0][:8], gone[1])
    assert result.exit_code == 0 and result.stdout.count("the next retrain unlearns it") == 2
    with opened(state) as labels, FeatureStore(state / "features", tiny.encoder.fingerprint) as store:
        assert len(labels.rows()) == 39 and labels.waiting() == [] and store.known(gone) == set()
        assert labels.changes()[1] == 3  # one said, two taken back
    assert "20 ham and 19 spam" in run("retrain").stdout
    assert json.loads(run("score", "--json", "-", stdin=SPAM[3]).stdout)["head"] != before


def test_forget_of_one_unknown_forgets_none(run: Run, state: Path) -> None:
    teach(state, HAM[:1], [])
    assert_one_line(run("labels", "forget", content_hash(HAM[0]), "0" * 8), "00000000: no such label")
    assert_one_line(run("labels", "forget", "../x"), "an ID is 8 to 64 of 0-9a-f")
    with opened(state) as labels:
        assert len(labels.rows()) == 1


# --- retrain --------------------------------------------------------------------------------------------------------


def served(state: Path, tiny: Tiny) -> bundle.Bundle:
    return bundle.load(bundle.in_service(state / "heads"), tiny.encoder)


def test_retrain_without_a_path_learns_the_labels(run: Run, state: Path, tiny: Tiny) -> None:
    teach(state, HAM, SPAM)
    result = run("retrain")
    assert result.exit_code == 0 and result.stderr == "" and "fitted on 20 ham and 20 spam" in result.stdout
    assert served(state, tiny).manifest.provenance["sources"] == {"moved": {"ham": 20, "spam": 20}}
    with opened(state) as labels:
        assert labels.waiting() == [] and labels.changes() == (40, 0)
    assert b"cheap pills" not in b"".join(f.read_bytes() for f in state.glob("labels*"))


def test_it_is_the_same_head_whoever_read_the_mail_and_in_whatever_order(run: Run, state: Path, tiny: Tiny) -> None:
    run("retrain", tiny.corpus)
    folders = served(state, tiny).id
    with opened(state) as labels:
        labels.forget([row.content for row in labels.rows()])
    teach(state, HAM[::-1], SPAM[::-1])
    run("retrain")
    assert served(state, tiny).id == folders


def test_what_a_path_taught_stays_until_the_next_path(run: Run, state: Path, tiny: Tiny, tmp_path: Path) -> None:
    run("retrain", tiny.corpus)
    teach(state, [], [tiny_corpus.spam(77)])
    assert "fitted on 20 ham and 21 spam" in run("retrain").stdout
    sources = served(state, tiny).manifest.provenance["sources"]
    assert sources == {"folder": {"ham": 20, "spam": 20}, "moved": {"ham": 0, "spam": 1}}
    tiny_corpus.write_files(tmp_path / "mail" / "ham", HAM[:7])
    tiny_corpus.write_files(tmp_path / "mail" / "spam", SPAM[:8])
    assert "fitted on 7 ham and 9 spam" in run("retrain", tmp_path / "mail").stdout
    with opened(state) as labels:
        assert labels.changes()[1] == 0
    assert "fitted on 7 ham and 9 spam" in run("retrain").stdout


def test_a_user_is_believed_more_than_the_folder(run: Run, state: Path, tiny: Tiny, tmp_path: Path) -> None:
    """What we moved into Junk and the user took out, and what lies in both folders but was settled by the user."""
    mail = tiny_corpus.write_folders(tmp_path / "mail")
    (mail / "ham" / "again.eml").write_bytes(SPAM[1])
    (mail / "ham" / "twice.eml").write_bytes(SPAM[2])
    teach(state, [SPAM[0]], [SPAM[1]])
    result = run("retrain", mail)
    assert "fitted on 21 ham and 18 spam" in result.stdout  # SPAM[0] is ham, SPAM[1] spam, SPAM[2] left out
    lines = result.stderr.splitlines()
    assert len(lines) == 2 and all(line.endswith("labelled both ham and spam, left out") for line in lines)
    with opened(state) as labels:
        rows = {row.content: (row.label, row.source) for row in labels.rows()}
    assert rows[content_hash(SPAM[0])] == (Label.HAM, "moved") and rows[content_hash(SPAM[1])] == (
        Label.SPAM,
        "moved",
    )


@pytest.mark.parametrize(
    ("ham", "spam", "words"),
    [
        (0, 0, "there are no labels yet"),
        (20, 0, "20 ham and 0 spam: a head needs at least 5 of each"),
        (20, 4, "20 ham and 4 spam"),
        (0, 20, "0 ham and 20 spam"),
    ],
)
def test_too_few_labels_are_one_line_and_change_nothing(
    run: Run, state: Path, tiny: Tiny, ham: int, spam: int, words: str
) -> None:
    teach(state, HAM[:ham], SPAM[:spam])
    assert_one_line(run("retrain"), words)
    assert not (state / "heads").exists()
    with opened(state) as labels:
        assert labels.changes() == (ham + spam, ham + spam)


def test_a_retrain_that_fails_leaves_the_labels(run: Run, state: Path, tiny: Tiny, tmp_path: Path) -> None:
    run("retrain", tiny.corpus)
    with opened(state) as labels:
        before = labels.rows(), labels.changes()
    heads = snapshot(state / "heads")
    assert_one_line(run("retrain", tiny_corpus.write_files(tmp_path / "ham", HAM)), "20 ham and 0 spam")
    with opened(state) as labels:
        assert (labels.rows(), labels.changes()) == before
    assert snapshot(state / "heads") == heads


def test_labels_of_mail_that_this_encoder_never_read_are_counted_and_left_out(
    run: Run, file: Path, state: Path, tiny: Tiny
) -> None:
    teach(state, HAM, SPAM)
    run("retrain")
    file.write_text(file.read_text().replace("max_tokens = 32", "max_tokens = 16"))
    teach(state, [tiny_corpus.ham(i) for i in range(90, 96)], [tiny_corpus.spam(i) for i in range(90, 96)])
    result = run("retrain")
    assert result.exit_code == 0 and "fitted on 6 ham and 6 spam" in result.stdout
    lacking = "labels name mail that is gone and that this encoder, in this version, never read: left out"
    assert result.stderr == f"spamguard: 40 {lacking}\n"
    again = run("retrain", tiny_corpus.write_files(file.parent / "ham", HAM[:7]))  # found, and read by this one
    assert "fitted on 13 ham and 6 spam" in again.stdout and again.stderr == f"spamguard: 33 {lacking}\n"


def test_one_retrain_at_a_time(run: Run, state: Path, tiny: Tiny) -> None:
    state.mkdir()
    with (state / "retrain.lock").open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)  # a retrain wants it alone, so this is enough to keep it out
        assert_one_line(run("retrain", tiny.corpus), "another retrain is running")
    assert not (state / "heads").exists()
    assert run("retrain", tiny.corpus).exit_code == 0


def test_the_module_is_the_command() -> None:
    done = subprocess.run([sys.executable, "-P", "-m", "spamguard", "--version"], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.startswith("spamguard, version ")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_what_root_says_is_the_owners(tmp_path: Path) -> None:
    """So that the daemon can write what its users say next; nothing that was linked here is given away."""
    state = tmp_path / "state"
    (state / "heads").mkdir(parents=True)
    (tmp_path / "secret").write_text("")
    (state / "heads" / "planted").hardlink_to(tmp_path / "secret")
    os.chown(state, 65534, 65534)
    (tmp_path / "mail").write_bytes(b"Subject: pills\n\nviagra\n")
    (tmp_path / "c.toml").write_text('state_dir = "state"\n')
    command = ["--config", str(tmp_path / "c.toml"), "labels", "add", "--spam", str(tmp_path / "mail")]
    assert CliRunner().invoke(main, command).exit_code == 0
    written = [path for path in state.rglob("*") if path.name != "planted"]
    assert written and {path.stat().st_uid for path in written} == {65534}
    assert (tmp_path / "secret").stat().st_uid == 0
