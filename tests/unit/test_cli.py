"""The program as a whole: its configuration, one line instead of a traceback, its help, and what it imports."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from spamguard import bundle
from spamguard.bundle import WEIGHTS
from spamguard.cli import main
from tests import render_docs
from tests.unit.conftest import Run, Tiny, assert_one_line

ROOT = Path(__file__).parents[2]


# --- Configuration --------------------------------------------------------------------------------------------------


def test_check_config_says_what_would_be_served(run: Run, tiny: Tiny, tmp_path: Path) -> None:
    result = run("check-config", config="spam = 0.97\n")
    assert result.exit_code == 0
    assert result.stdout == (
        f"{tmp_path / 'spamguard.toml'}: ok; encoder {tiny.encoder.fingerprint}, head {tiny.bundle().id}, "
        "unsure from 0.5, spam from 0.97\n"
    )


def test_check_config_finds_a_head_that_does_not_fit(run: Run, tmp_path: Path, tiny: Tiny) -> None:
    result = run("check-config", config="[batch]\nqueue = 0\n")
    assert_one_line(result, "batch.queue")
    file = tmp_path / "c.toml"
    encoder = f'[encoder]\nmodel = "{tiny.bert}"\ndevice = "cpu"\nmax_tokens = 16\n'
    file.write_text(f'{encoder}[head]\npath = "{tiny.head}"\n')
    assert_one_line(CliRunner().invoke(main, ["--config", str(file), "check-config"]), "max_tokens was 32")


def test_show_config_lists_every_value_and_its_origin(run: Run, tmp_path: Path) -> None:
    lines = run("show-config", config="spam = 0.9\n").stdout.splitlines()
    file = tmp_path / "spamguard.toml"
    assert f"head.spam = 0.9  # {file}" in lines and "listen.port = 10025  # default" in lines
    assert f'state_dir = "{tmp_path / "state"}"  # {file}' in lines
    as_json = json.loads(run("show-config", "--json", config="spam = 0.9\n").stdout)
    assert as_json["head.spam"] == {"value": 0.9, "origin": str(file)}
    assert [line.partition(" = ")[0] for line in lines] == list(as_json)


# --- Errors and help ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--config", "/no/such.toml", "show-config"], "/no/such.toml: No such file or directory"),
        (["--config", "/no/such.toml", "score", "x"], "/no/such.toml: No such file or directory"),
        (["--config", "/no/such.toml", "serve"], "/no/such.toml: No such file or directory"),
        (["scroe"], "No such command 'scroe'"),
        (["score"], "Missing argument"),
        (["evaluate"], "Missing argument"),
        (["score", "--colour", "x"], "No such option"),
        (["--colour"], "No such option"),
        (["retrain", "--kind", "forest", "x"], "'forest' is not one of"),
    ],
)
def test_errors_are_one_line(arguments: list[str], words: str) -> None:
    assert_one_line(CliRunner().invoke(main, arguments), words)


def test_a_damaged_head_is_one_line(run: Run, tiny: Tiny, tmp_path: Path, write_config: Callable[..., Path]) -> None:
    copy = bundle.save(tiny.bundle(), tmp_path / "copy")
    (copy / WEIGHTS).write_bytes(b"")
    result = CliRunner().invoke(main, ["--config", str(write_config(head=copy)), "score", "-"], input=b"")
    assert_one_line(result, "damaged")


def test_without_a_command_the_help_is_shown_in_lines() -> None:
    result = CliRunner().invoke(main, [], prog_name="spamguard")
    assert result.exit_code == 0 and result.output.startswith("Usage: spamguard") and "\n  retrain" in result.output


def test_a_reader_that_leaves_is_no_verdict_and_no_traceback() -> None:
    command = [sys.executable, "-c", "from spamguard.cli import main; main()", "show-config"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout and process.stderr
        process.stdout.close()
        complaint = process.stderr.read()
    assert (process.returncode, complaint) == (2, b"")


@pytest.mark.parametrize("command", list(render_docs.command_names()), ids=" ".join)
def test_help_of_every_command(command: list[str]) -> None:
    for option in ("-h", "--help"):
        result = CliRunner().invoke(main, [*command, option], prog_name="spamguard")
        assert result.exit_code == 0 and result.output.startswith(" ".join(["Usage: spamguard", *command]))


def test_version() -> None:
    assert CliRunner().invoke(main, ["--version"]).output.startswith("spamguard, version ")


HEAVY = {"torch", "transformers", "tokenizers", "pandas", "sklearn", "scipy", "numpy", "safetensors", "rich"}
PROGRAM = """
import sys
from spamguard.cli import main
try:
    main(sys.argv[1:])
except SystemExit as leaving:
    assert not leaving.code, leaving.code
print("imported:", *sorted({name.partition(".")[0] for name in sys.modules}))
"""


@pytest.mark.parametrize("arguments", [["--help"], ["retrain", "--help"], ["serve", "--help"], ["--version"]])
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM, *arguments], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    imported = set(done.stdout.partition("imported: ")[2].split())
    assert "spamguard" in imported and not imported & (HEAVY | {"pydantic"})


def test_show_config_imports_no_torch(tmp_path: Path) -> None:
    command = [sys.executable, "-c", PROGRAM, "--config", str(ROOT / "docs" / "example.toml"), "show-config"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert not set(done.stdout.partition("imported: ")[2].split()) & HEAVY


def test_the_page_of_commands_is_fresh() -> None:
    page = (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")
    assert render_docs.generated(page) == render_docs.commands().strip(), render_docs.REFRESH
    for names in render_docs.command_names():
        assert "\n## " + " ".join(["spamguard", *names]) + "\n" in page
