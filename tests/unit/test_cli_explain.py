"""`score --explain`: what it prints, in which order, on which terminal, and that it leaves nothing behind."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from datetime import date
from pathlib import Path
from unicodedata import east_asian_width

import pytest
from click.testing import CliRunner

from spamguard.cli import main
from spamguard.cli_score import _PHRASES, MESSAGES_A_BATCH
from spamguard.headers import content_hash
from tests import tiny_corpus
from tests.tiny_corpus import GTUBE, HAM, SPAM, message
from tests.unit.conftest import Run, Tiny, snapshot
from tests.unit.test_cli import PROGRAM, ROOT

MIXED = message(
    "see you tomorrow",
    "The meeting is at noon. Buy cheap pills now. Please see the report attached. Free money now! "
    "See you at the meeting. The report is free. Buy the report now. Money, money, money.",
)


@pytest.fixture
def taught(run: Run, tiny: Tiny) -> Run:
    """The same with the tiny corpus as labels of folders."""
    assert run("retrain", tiny.corpus).exit_code == 0
    return run


def block(shown: str, heading: str) -> list[str]:
    """The lines below a heading that are set in deeper than it."""
    lines = shown.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(f"  {heading}")) + 1
    return lines[start : next((i for i in range(start, len(lines)) if lines[i][:3] != "   "), len(lines))]


def test_sum_phrases_words_and_nearest_label_stand_in_this_order(taught: Run, tiny: Tiny) -> None:
    shown = taught("score", "--explain", "-", stdin=MIXED).stdout
    lines = shown.splitlines()
    assert lines[0].startswith("-: ") and lines[1].startswith("  logit = bias ")
    assert all(f"{part} " in lines[1] for part in ("deep", "wide", "structure"))
    phrases, reasons = block(shown, "phrases"), block(shown, "words and facts")
    assert lines[2].startswith("  phrases") and lines[3 + len(phrases)].startswith("  words and facts")
    for shares in (phrases, reasons):
        strengths = [abs(float(line.split()[0])) for line in shares]
        assert strengths and strengths == sorted(strengths, reverse=True)
    assert len(phrases) <= _PHRASES and all(re.search(r'"[^"]+"', line) for line in phrases)
    said = rf"  nearest labelled message, \d\d% alike: (ham|spam) \(folder, {date.today()}\), [0-9a-f]{{12}}, "
    assert re.match(said + re.escape(str(tiny.corpus)), lines[-1])
    assert len(lines) == 5 + len(phrases) + len(reasons)


def test_reasons_of_ham_are_shown_too(run: Run) -> None:
    assert run("score", "--explain", "-", stdin=HAM[0]).stdout.startswith("-: ham")
    found = json.loads(run("score", "--json", "--explain", "-", stdin=HAM[0]).stdout)
    assert found["reasons"] and found["phrases"]
    assert json.loads(run("score", "--json", "-", stdin=HAM[0]).stdout)["reasons"] == []


def test_json_has_all_of_it_and_without_explain_none(taught: Run, tiny: Tiny) -> None:
    found = json.loads(taught("score", "--json", "--explain", "-", stdin=MIXED).stdout)
    assert list(found)[-2:] == ["phrases", "nearest"]
    assert all(list(one) == ["text", "times", "logit"] for one in found["phrases"])
    near = found["nearest"]
    assert list(near) == ["id", "label", "source", "when", "where", "alike", "same"]
    assert near["source"] == "folder" and not near["same"] and 0.3 <= near["alike"] < 1
    assert near["id"] == content_hash(Path(near["where"]).read_bytes())
    plain = json.loads(taught("score", "--json", "-", stdin=MIXED).stdout)
    assert "phrases" not in plain and "nearest" not in plain and plain["parts"] == found["parts"]


def test_the_id_of_the_nearest_is_one_for_labels(taught: Run) -> None:
    line = taught("score", "--explain", "-", stdin=MIXED).stdout.splitlines()[-1]
    found = re.search(r"\), ([0-9a-f]{12})", line)
    assert found and taught("labels", "forget", found[1]).exit_code == 0
    assert found[1] not in taught("score", "--explain", "-", stdin=MIXED).stdout


def test_what_was_said_of_this_very_message_is_said_so(run: Run, tmp_path: Path) -> None:
    (tmp_path / "a.eml").write_bytes(SPAM[0])
    assert run("labels", "add", "--ham", tmp_path / "a.eml").exit_code == 0
    line = run("score", "--explain", tmp_path / "a.eml").stdout.splitlines()[-1]
    assert line == (
        f"  this message is labelled: ham (command, {date.today()}), {content_hash(SPAM[0])[:12]}, {tmp_path}/a.eml"
    )


def test_of_a_rule_and_of_nothing_there_is_little_to_say(run: Run) -> None:
    for raw in (message("hello", GTUBE), b""):
        shown = run("score", "--explain", "-", stdin=raw).stdout
        assert "  logit = " in shown and "phrases" not in shown and "labelled" not in shown


@pytest.mark.parametrize("columns", [60, 80])
def test_phrases_fit_the_terminal(run: Run, monkeypatch: pytest.MonkeyPatch, columns: int) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    long = "free tomorrow attached " * 12
    for body in (f"{long}. see you at noon. {long}.", "\u4f60\u597d" * 18 + "\u3002 see the report at noon"):
        shown = run("score", "--explain", "-", stdin=message("buy now", body)).stdout
        widths = [sum(1 + (east_asian_width(c) in "WF") for c in line) for line in block(shown, "phrases")]
        assert columns - 3 <= max(widths) <= columns and '..."' in shown
    assert "2 times" in run("score", "--explain", "-", stdin=message("", f"{long}. see you. {long}.")).stdout


def test_nothing_in_a_mail_or_a_label_reaches_the_terminal_raw(run: Run, tmp_path: Path) -> None:
    raw = message("buy \x1b[31mpills", "cheap\x1b]0;owned\x07 pills \x9b31m. free \u202enow \ue000 money. \x1b[2J")
    odd = tmp_path / "\x1b[31m.eml"
    odd.write_bytes(raw)
    run("labels", "add", "--spam", odd)
    shown = run("score", "--explain", "-", stdin=raw).stdout
    assert "phrases" in shown and "this message is labelled" in shown
    assert not any(c in shown for c in "\x1b\x07\x9b\u202e\ue000")


def test_scoring_leaves_no_trace(run: Run, taught: Run, tmp_path: Path, tiny: Tiny) -> None:
    other = tmp_path / "other.toml"
    other.write_text((tmp_path / "spamguard.toml").read_text().replace('"state"', '"nowhere"'))
    for options in ([], ["--explain"]):
        assert CliRunner().invoke(main, ["--config", str(other), "score", *options, str(tiny.corpus)]).exit_code == 0
        assert not (tmp_path / "nowhere").exists()
        before = snapshot(tmp_path / "state")
        taught("score", *options, tiny.corpus)
        assert before and snapshot(tmp_path / "state") == before


@pytest.mark.parametrize("fault", ["labels", "features", "row"])
def test_labels_that_cannot_be_read_are_one_line(taught: Run, tmp_path: Path, tiny: Tiny, fault: str) -> None:
    state = tmp_path / "state"
    if fault == "row":
        import sqlite3

        with sqlite3.connect(state / "labels.sqlite3") as database:
            database.execute("UPDATE label SET label = 'neither'")
        database.close()
    else:
        file = state / "labels.sqlite3" if fault == "labels" else next((state / "features").glob("*.sqlite3"))
        file.write_bytes(b"no database " * 1000)
    mail = tiny_corpus.write_files(tmp_path / "many", [MIXED] * (MESSAGES_A_BATCH + 3))
    result = taught("score", "--explain", mail)
    assert result.exit_code == 0 and result.stdout.count("  phrases") == MESSAGES_A_BATCH + 3
    assert result.stderr.startswith("spamguard: no nearest label: ") and result.stderr.count("\n") == 1


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_any_terminal_will_do(write_config: Callable[..., Path], tiny: Tiny, tmp_path: Path, encoding: str) -> None:
    """Through a real stream, as a terminal that knows ASCII alone has it; names of files need not be UTF-8 either."""
    odd = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.eml")
    Path(odd).write_bytes(message("\u4f60\u597d \u20ac", "ça coûte 49 \u20ac. buy \U0001f600 now"))
    file = write_config(head=tiny.head)
    command = [sys.executable, "-c", PROGRAM, "--config", str(file), "score", "--explain", odd]
    done = subprocess.run(command, capture_output=True, cwd=ROOT, env=os.environ | {"PYTHONIOENCODING": encoding})
    assert (done.returncode, done.stderr) == (0, b"")
    shown = done.stdout.decode(encoding)
    assert "caf\\udce9.eml: " in shown and ("\\u20ac" if encoding != "utf-8" else "\u20ac") in shown
