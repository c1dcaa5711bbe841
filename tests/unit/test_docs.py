"""README and docs say what there is: links, make targets, commands, configuration, dependencies, shell lines."""

from __future__ import annotations

import re
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from spamguard import __version__, features, wide
from spamguard.cli import main
from spamguard.config import EncoderTable
from spamguard.config_file import load
from training.fit import DEFAULT_PENALTIES, LEAST_OF_A_CLASS
from training.ship import FITTED_ON, NOT_LICENSED, ONLY_MEASURED, PENALTIES

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]

_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_SPAN = re.compile(r"`([^`\n]+)`")
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
_COMMAND = re.compile(r"(?<![-\w.])spamguard(?: --config \S+)? ([a-z][a-z-]*)")
_MAKE = re.compile(r"(?:^|[;&|] *|[A-Z_]+=\S+ +)make ([a-z-]+)", re.MULTILINE)
_FILE = re.compile(r"\b(?:spamguard|service|training|tests|benchmarks|docs|systemd)/[\w./-]+\.\w+")


def text(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def blocks(page: Path, *kinds: str) -> list[str]:
    return [body for kind, body in _BLOCK.findall(text(page)) if kind in kinds]


def code(page: Path) -> Iterator[str]:
    """All that stands in code: blocks and spans."""
    yield from (body for _, body in _BLOCK.findall(text(page)))
    yield from _SPAN.findall(_BLOCK.sub("", text(page)))


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives the headings."""
    headings = _HEADING.findall(_BLOCK.sub("", text(page)))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_links_lead_to_files_and_headings_that_exist(page: Path) -> None:
    for link in _LINK.findall(_BLOCK.sub("", text(page))):
        if link.startswith("https://"):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.is_relative_to(ROOT) and target.exists(), link
        assert not anchor or anchor in anchors(target), link


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_files_named_exist(page: Path) -> None:
    for span in _SPAN.findall(_BLOCK.sub("", text(page))):
        for name in _FILE.findall(span) if not span.startswith(("/", "~", "$")) else ():
            assert (ROOT / name).exists(), name


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_make_targets_exist(page: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", text(ROOT / "Makefile"), re.MULTILINE))
    named = {name for piece in code(page) for name in _MAKE.findall(piece)}
    assert named <= targets


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_commands_exist(page: Path) -> None:
    prose = "\n".join(piece for piece in code(page) if "A mail filter: a frozen BERT encoder" not in piece)
    named = set(_COMMAND.findall(re.sub(r"systemctl .*|journalctl .*", "", prose)))
    assert named <= set(main.commands)


def test_the_readme_names_the_everyday_commands_and_both_targets() -> None:
    shell = "\n".join(blocks(ROOT / "README.md", "sh"))
    assert {"score", "filter", "retrain", "evaluate", "check-config"} <= set(_COMMAND.findall(shell))
    assert _MAKE.findall(shell)[:2] == ["run", "test"]


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_toml_is_valid_configuration(page: Path, tmp_path: Path) -> None:
    for number, body in enumerate(blocks(page, "toml")):
        file = tmp_path / f"{number}.toml"
        file.write_text(body, encoding="utf-8")
        load(file)


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_shell_blocks_parse(page: Path) -> None:
    for body in blocks(page, "sh"):
        done = subprocess.run(["bash", "-n"], input=body, capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, ""), body


def test_no_block_is_left_open_or_without_a_kind() -> None:
    for page in PAGES:
        assert text(page).count("```") == 2 * len(_BLOCK.findall(text(page))), page
        assert all(kind for kind, _ in _BLOCK.findall(text(page))), page


def test_each_dependency_is_explained_and_nothing_else() -> None:
    project = tomllib.loads(text(ROOT / "pyproject.toml"))["project"]
    page = text(ROOT / "docs/dependencies.md")
    explained = {
        heading: set(re.findall(r"^- \*\*([\w-]+)\*\*: ", body, re.MULTILINE))
        for heading, body in re.findall(r"^## ([^\n]+)\n(.*?)(?=^## |\Z)", page, re.MULTILINE | re.DOTALL)
    }

    def names(wanted: list[str]) -> set[str]:
        return {re.split(r"[<>=!~;\[ ]", one)[0] for one in wanted}

    assert explained["At run time"] == names(project["dependencies"])
    assert explained["For development"] == names(project["optional-dependencies"]["dev"])
    assert explained["For Parquet files"] == names(project["optional-dependencies"]["parquet"])
    assert explained["For fuzzing"] == names(project["optional-dependencies"]["fuzz"])
    assert explained["For the pictures of the benchmarks"] == names(project["optional-dependencies"]["bench"])


def test_the_page_of_the_head_says_what_the_code_does() -> None:
    page = text(ROOT / "docs/head-and-accuracy.md")
    folders = re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE)
    assert folders == list(FITTED_ON)
    assert all(f"`{name}`" in page for name in (*ONLY_MEASURED, *NOT_LICENSED))
    for penalties in (DEFAULT_PENALTIES, PENALTIES):
        said = f"{penalties.deep:g} / {penalties.wide:g} / {penalties.structure:g}"
        assert said in page and said in text(ROOT / "docs/lab-notes.md")
    assert f"{len(features.NAMES)} named measures" in page
    assert f"first {EncoderTable().max_tokens} tokens" in page
    assert f"first {wide.WIDE_TOKENS:,} tokens" in page


def test_the_page_of_the_head_holds_the_figures_of_the_head_that_ships() -> None:
    _, _, figures = text(ROOT / "spamguard/heads/default/CARD.md").partition("## Figures\n")
    table = "\n".join(line for line in figures.splitlines() if line.startswith("|"))
    assert table and table in text(ROOT / "docs/head-and-accuracy.md"), "paste the table of CARD.md"


def test_numbers_of_the_other_pages() -> None:
    assert LEAST_OF_A_CLASS == 5 and "five of each the least" in text(ROOT / "docs/quick-start.md")
    assert f"## {__version__}" in text(ROOT / "CHANGELOG.md")
    assert f"{len(features.NAMES)} named structure features" in text(ROOT / "CHANGELOG.md")


def test_no_page_names_a_place_outside_the_project() -> None:
    for page in PAGES:
        assert not re.search(r"\.\./\.\./|/(home|root|tmp|work)/", text(page)), page
