"""The page of a report: whole, escaped, of itself alone; and never a reason for a retrain to fail."""

from __future__ import annotations

import json
import os
import re
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from selectolax.lexbor import LexborHTMLParser

from spamguard.errors import ReportError
from tests.report_runs import HOSTILE, made
from training import page as pages
from training import pictures
from training.page import Gate, Point, Run, count, percent, when, write

PICTURES = ["roc", "precision_recall", "scores", "reliability", "lengths", "learning_curve"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of an ordinary run."""
    return write(made(), tmp_path_factory.mktemp("report"), private=False).parent


@pytest.fixture
def source(folder: Path) -> str:
    return (folder / "report.html").read_text(encoding="utf-8")


def html(run: Run, folder: Path, *, private: bool = False) -> str:
    return write(run, folder, private=private).read_text(encoding="utf-8")


def test_every_picture_is_drawn_named_and_told_in_words(source: str) -> None:
    tree = LexborHTMLParser(source)
    figures = tree.css("figure")
    assert len(figures) == len(tree.css("figure svg")) == len(PICTURES) == len(pictures.PICTURES)
    for figure in figures:
        caption = figure.css("figcaption")[0].text()
        label = figure.css("[role=img]")[0].attributes["aria-label"] or ""
        assert len(caption) > 40 and caption in label
        assert figure.css("table") and figure.css("svg path")
    assert "Not drawn" not in tree.html


def test_the_page_shows_the_numbers_of_the_json(source: str, folder: Path) -> None:
    text = LexborHTMLParser(source).body.text(separator=" ")
    found = json.loads((folder / "report.json").read_text())
    spam = found["figures"]["confusion"]["spam"]
    assert f"{spam['spam']} of {sum(spam.values())}" in text
    assert percent(found["classes"]["spam"]["precision"], 2) in text
    assert f"{found['figures']['auc']:.5f}" in text
    assert f"{found['mistakes'][0]['probability']:.4f}" in text
    assert "It finds more spam." in text and "2 of 9" in text and "23 November 2026, 05:12 UTC" in text
    assert all(row["source"] in text for row in found["sources"])


def test_nothing_on_the_page_comes_from_elsewhere(source: str) -> None:
    tree = LexborHTMLParser(source)
    policy = tree.css("meta[http-equiv=Content-Security-Policy]")[0].attributes["content"] or ""
    assert policy.startswith("default-src 'none'; ") and "script" not in policy
    assert not re.search(r"https?:|//|@import|\bsrc=", source.replace(policy, ""))
    assert not re.findall(r"url\((?!#)", source) and not tree.css("script, link, img, iframe, object, base, form, a")
    assert not [name for node in tree.css("*") for name in node.attributes if name.startswith("on")]


def test_ids_are_unique_and_whatever_points_to_one_finds_it(source: str) -> None:
    ids = re.findall(r'\bid="([^"]*)"', source)
    pointed = re.findall(r'(?:url\(|href=")#([^")]*)', source)
    assert len(ids) == len(set(ids)) and pointed and set(pointed) <= set(ids)


def test_hostile_names_are_text(tmp_path: Path) -> None:
    gate = Gate("lost", "<b>so</b>", ("<i>x",), [("<u>y", 1)])
    run = made(40, where=HOSTILE + "{}", gate=gate, complaints=["<script>no"], head="<head>", seconds={"<s>": 1.0})
    run = replace(run, table=run.table.assign(source="<img src=x>"), provenance={"<p>": {"<q>": ["<r>"]}})
    source = html(run, tmp_path)
    tree = LexborHTMLParser(source)
    assert not tree.css("script, b, i, u, img, s, q, r") and not tree.css("section dd p")
    assert tree.body.text().count("<script>alert(1)</script>&\"'") > 10
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f]", source)
    assert not re.findall(r"<script|<img|\balert\(1\)<", source)


def test_a_private_page_names_no_file(tmp_path: Path) -> None:
    run = made(40)
    assert "/mail/" in html(run, tmp_path / "open")
    private = html(run, tmp_path / "private", private=True)
    assert "/mail" not in private and ".eml" not in private
    assert run.table["content"][0][:12] in private and "1 complaint about" in private
    assert "/mail" not in (tmp_path / "private/report.json").read_text()


@pytest.mark.parametrize("n", [0, 1, 2, 5])
@pytest.mark.parametrize("spam", [0.0, 0.4, 1.0])
def test_few_messages_and_one_class_alone_have_a_page(n: int, spam: float, tmp_path: Path) -> None:
    tree = LexborHTMLParser(html(made(n, spam=spam), tmp_path))
    assert tree.css("figure svg") and "Not drawn" not in tree.html and "nan" not in tree.body.text()


@pytest.mark.parametrize(
    "changed",
    [
        {"probabilities": np.full(20, np.nan)},
        {"probabilities": np.zeros(20)},
        {"probabilities": np.ones(20)},
        {"probabilities": np.full(20, 0.5, np.float32)},
        {"lengths": np.zeros(20, int), "max_tokens": None},
        {"lengths": np.full(20, 1024), "max_tokens": 8192},
        {"curve": [Point(7, 0.0, 0.0, 0.0)]},
        {"curve": []},
        {"before": None, "gate": None, "lengths": None, "max_tokens": None, "curve": None},
        {"complaints": [], "provenance": {}, "seconds": {}},
        {"complaints": [f"/mail/{i}" for i in range(1000)]},
    ],
    ids=lambda changed: "-".join(changed),
)
def test_odd_runs_have_a_page(changed: dict[str, object], tmp_path: Path) -> None:
    assert "Not drawn" not in html(made(20, **changed), tmp_path)


def test_a_picture_that_fails_costs_a_line_and_itself_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("no\nluck")

    monkeypatch.setitem(pictures.PICTURES, "roc", broken)
    with pytest.raises(ReportError) as error:
        write(made(), tmp_path, private=False)
    assert str(error.value) == f"{tmp_path}/report.html: picture roc not drawn: ZeroDivisionError: no luck"
    tree = LexborHTMLParser((tmp_path / "report.html").read_text())
    assert len(tree.css("figure svg")) == len(PICTURES) - 1 and "Not drawn" in tree.html


def test_without_matplotlib_there_are_the_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ReportError, match="no pictures") as error:
        write(made(), tmp_path, private=False)
    assert "\n" not in str(error.value)
    tree = LexborHTMLParser((tmp_path / "report.html").read_text())
    assert not tree.css("svg") and len(tree.css("figure table")) == len(PICTURES)


def test_whatever_goes_wrong_is_one_line_that_a_retrain_can_catch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ReportError, match=r"file: the report cannot be written: File exists|Not a directory"):
        write(made(), tmp_path / "file", private=False)
    with pytest.raises(ReportError, match="no report: "):
        write(made(20, probabilities=np.zeros(3)), tmp_path / "shape", private=False)
    assert not (tmp_path / "shape").exists()
    monkeypatch.setattr(pages, "summary", lambda *_, **__: {}["missing\nkey"])
    with pytest.raises(ReportError, match=r"no report: KeyError: \S.*key'$") as error:
        write(made(), tmp_path, private=False)
    assert "\n" not in str(error.value)


def test_a_page_is_replaced_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(made(), tmp_path, private=False)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    assert set(before) == {"report.html", "report.json"}

    def full(self: Path, text: str, **_: object) -> int:
        with self.open("w") as stream:
            stream.write(text[:100])
        raise OSError(28, "No space left on device", str(self))

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(ReportError, match="No space left on device"):
        write(made(50), tmp_path, private=False)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_the_folder_is_its_owners_alone(tmp_path: Path) -> None:
    umask = os.umask(0)
    try:
        write(made(20), tmp_path / "reports" / "ID", private=False)
    finally:
        os.umask(umask)
    assert (tmp_path / "reports/ID").stat().st_mode & 0o777 == 0o700


def test_the_same_run_gives_the_same_page(source: str, tmp_path: Path) -> None:
    assert html(made(), tmp_path) == source


@pytest.mark.parametrize(
    ("share", "digits", "text"),
    [
        (0.9987, 1, "99.9 %"), (0.99999, 1, "> 99.9 %"), (0.00001, 2, "< 0.01 %"), (0.0, 1, "0 %"), (1.0, 2, "100 %"),
        (0.5, 0, "50 %"), (0.004, 0, "< 1 %"), (None, 1, "–"),
    ],
)  # fmt: skip
def test_a_share_in_words(share: float | None, digits: int, text: str) -> None:
    assert percent(share, digits).replace("\N{NO-BREAK SPACE}", " ") == text


def test_other_words() -> None:
    assert (count(1234567), count(None)) == ("1,234,567", "–")
    assert when("2026-01-02T23:30:00-05:00") == "3 January 2026, 04:30 UTC" and when("<odd>") == "<odd>"
