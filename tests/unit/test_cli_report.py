"""`spamguard report`: the newest page, that of an ID or of its first digits, and one line when there is none."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from spamguard.cli import main
from spamguard.headers import content_hash
from spamguard.reports import FIGURES, PAGE, forget, remove
from tests.report_runs import made
from training.page import write


@pytest.fixture
def reports(tmp_path: Path) -> Path:
    """Three pages; that of aaaa22222222 is the newest."""
    for age, head in enumerate(("aaaa22222222", "bbbb33333333", "aaaa11111111")):
        page = tmp_path / "reports" / head / PAGE
        page.parent.mkdir(parents=True)
        page.write_text("")
        os.utime(page, (1_000_000 - age, 1_000_000 - age))
    (tmp_path / "reports" / "cccc").mkdir()  # a retrain was killed before it wrote the page
    return tmp_path / "reports"


def run(tmp_path: Path, *arguments: str) -> Result:
    (tmp_path / "config.toml").write_text(f'state_dir = "{tmp_path}"\n')
    return CliRunner().invoke(main, ["--config", str(tmp_path / "config.toml"), "report", *arguments])


@pytest.mark.parametrize(
    ("arguments", "head"),
    [
        ((), "aaaa22222222"),
        (("bbbb33333333",), "bbbb33333333"),
        (("b",), "bbbb33333333"),
        (("aaaa1",), "aaaa11111111"),
    ],
)
def test_it_prints_the_path(arguments: list[str], head: str, reports: Path, tmp_path: Path) -> None:
    done = run(tmp_path, *arguments)
    assert (done.exit_code, done.stdout) == (0, f"{reports / head / PAGE}\n")


@pytest.mark.parametrize(
    ("head", "message"),
    [
        ("aaaa", "aaaa may be any of aaaa11111111, aaaa22222222"),
        ("cccc", "no report of a head cccc"),
        ("../reports/b", "no report of a head ../reports/b"),
        ("*", "no report of a head *"),
    ],
)
def test_an_id_that_fits_none_or_several_is_one_line(head: str, message: str, reports: Path, tmp_path: Path) -> None:
    done = run(tmp_path, head)
    assert (done.exit_code, done.stdout, done.stderr) == (2, "", f"spamguard: {reports}: {message}\n")


def test_before_the_first_retrain_there_is_none(tmp_path: Path) -> None:
    done = run(tmp_path)
    assert (done.exit_code, done.stderr) == (2, f"spamguard: {tmp_path}/reports: no report yet\n")


def test_a_page_that_was_written_is_found(tmp_path: Path) -> None:
    page = write(made(20), tmp_path / "reports" / "0123", private=False)
    assert run(tmp_path).stdout == f"{page}\n" and (page.parent / FIGURES).exists()


def test_what_is_forgotten_is_in_no_page(reports: Path) -> None:
    content = "ab" * 32
    (reports / "bbbb33333333" / FIGURES).write_text(f'{{"mistakes": [{{"content": "{content}"}}]}}')
    (reports / "aaaa11111111" / FIGURES).write_text('{"mistakes": [{"content": "cd"}]}')
    assert forget(reports, [content]) == 1
    assert sorted(page.parent.name for page in reports.glob(f"*/{PAGE}")) == ["aaaa11111111", "aaaa22222222"]
    assert forget(reports / "none", [content]) == 0


def test_the_pages_of_pruned_heads_go(reports: Path) -> None:
    remove(reports, ["bbbb33333333", "dddd"])
    assert sorted(page.parent.name for page in reports.glob(f"*/{PAGE}")) == ["aaaa11111111", "aaaa22222222"]


def test_labels_forget_removes_the_page_that_lists_the_message(reports: Path, tmp_path: Path) -> None:
    raw = b"Subject: pills\n\nviagra\n"
    (tmp_path / "mail").write_bytes(raw)
    run(tmp_path)  # writes the configuration
    labels = ["--config", str(tmp_path / "config.toml"), "labels"]
    assert CliRunner().invoke(main, [*labels, "add", str(tmp_path / "mail"), "--spam"]).exit_code == 0
    content = content_hash(raw)
    (reports / "bbbb33333333" / FIGURES).write_text(f'{{"mistakes": [{{"content": "{content}"}}]}}')
    done = CliRunner().invoke(main, [*labels, "forget", content[:12]])
    assert done.exit_code == 0 and not (reports / "bbbb33333333").exists() and (reports / "aaaa11111111").exists()
