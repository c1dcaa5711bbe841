"""`retrain` with a tiny encoder: the head that it puts in service, or one line and nothing changed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from spamguard import bundle
from tests import tiny_corpus
from tests.tiny_corpus import HAM, SPAM, message
from tests.unit.conftest import Run, Tiny, assert_one_line, run_with, snapshot


@pytest.fixture
def learn(write_config: Callable[..., Path]) -> Run:
    """Runs a command with no head configured: what retrain puts in service is what is served."""
    return run_with(write_config())


LAYOUTS: dict[str, Callable[[Path], Path]] = {
    "folders": lambda root: tiny_corpus.write_folders(root / "corpus"),
    "maildir": lambda root: tiny_corpus.write_maildir(root / "Maildir"),
    "mboxes": lambda root: tiny_corpus.write_mboxes(root / "boxes"),
    "csv": lambda root: tiny_corpus.write_csv(root / "messages.csv"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_retrain_puts_a_new_head_in_service(
    tmp_path: Path, learn: Run, encoded: list[int], layout: str, tiny: Tiny
) -> None:
    shipped = snapshot(bundle.SHIPPED.parent)
    path = LAYOUTS[layout](tmp_path)
    first = learn("retrain", path)
    assert first.exit_code == 0 and first.stderr == "", first.output
    assert "fitted on 20 ham and 20 spam" in first.stdout and "AUC" in first.stdout
    assert sum(encoded) == 40 + 80  # and the gate's reference set

    current = bundle.in_service(tmp_path / "state" / "heads")
    assert f"in service: {tmp_path / 'state' / 'heads' / current.name}" in first.stdout
    served = bundle.load(current, tiny.encoder)
    assert served.manifest.provenance["ham"] == served.manifest.provenance["spam"] == 20
    found = json.loads(learn("score", "--json", "-", stdin=SPAM[7]).stdout)
    assert found["head"] == served.id and found["score"] > 0.5

    encoded.clear()
    page = tmp_path / "state" / "reports" / current.name / "report.json"
    assert str(path) in page.read_text()
    second = learn("retrain", "--private", path)
    assert second.exit_code == 0 and sum(encoded) == 0
    assert str(path) not in page.read_text()
    assert bundle.in_service(tmp_path / "state" / "heads") == current  # the same mail, the same head
    assert snapshot(bundle.SHIPPED.parent) == shipped


def test_retrain_encodes_only_what_is_new(tmp_path: Path, learn: Run, encoded: list[int]) -> None:
    path = tiny_corpus.write_folders(tmp_path / "corpus")
    learn("retrain", path)
    encoded.clear()
    (path / "spam" / "new.eml").write_bytes(message("cheap money", "pills for free"))
    assert "20 ham and 21 spam" in learn("retrain", path).stdout
    assert sum(encoded) == 1


def test_retrain_takes_several_paths(tmp_path: Path, learn: Run) -> None:
    boxes, table = tiny_corpus.write_mboxes(tmp_path / "boxes"), tiny_corpus.write_csv(tmp_path / "messages.csv")
    assert "fitted on 40 ham and 40 spam" in learn("retrain", boxes, table).stdout


def test_retrain_mlp(tmp_path: Path, learn: Run, tiny: Tiny) -> None:
    result = learn("retrain", "--kind", "mlp", tiny.corpus)
    assert result.exit_code == 0, result.output
    assert bundle.load(bundle.in_service(tmp_path / "state" / "heads"), tiny.encoder).head.kind == "mlp"
    assert json.loads(learn("score", "--json", "-", stdin=SPAM[0]).stdout)["parts"].keys() == {"bias", "deep"}


def test_retrain_after_spamguard_has_stamped_the_mail_sees_no_new_mail(
    tmp_path: Path, learn: Run, encoded: list[int], tiny: Tiny
) -> None:
    path = tiny_corpus.write_folders(tmp_path / "corpus")
    learn("retrain", path)
    for file in [*path.glob("ham/000.eml"), *path.glob("spam/00[0-3].eml")]:
        file.write_bytes(learn("filter", stdin=file.read_bytes()).stdout_bytes)
    encoded.clear()
    learn("retrain", path)
    assert sum(encoded) == 0


@pytest.mark.parametrize(
    ("write", "words"),
    [
        (lambda root: tiny_corpus.write_files(root / "ham", HAM), "20 ham and 0 spam"),
        (lambda root: tiny_corpus.write_files(root / "spam", SPAM), "0 ham and 20 spam"),
        (lambda root: tiny_corpus.write_files(root / "letters", HAM), "no labelled mail"),
        (lambda root: root / "none", "no such file or folder"),
    ],
    ids=["ham only", "spam only", "no labels", "missing"],
)
def test_retrain_on_what_teaches_nothing_changes_nothing(
    tmp_path: Path, learn: Run, tiny: Tiny, write: Callable[[Path], Path], words: str
) -> None:
    assert learn("retrain", tiny.corpus).exit_code == 0
    heads = tmp_path / "state" / "heads"
    current, before = bundle.in_service(heads), snapshot(heads)
    assert_one_line(learn("retrain", write(tmp_path / "mail")), words)
    assert bundle.in_service(heads) == current and snapshot(heads) == before


def test_retrain_on_nothing_but_contradictions_is_one_line(tmp_path: Path, learn: Run) -> None:
    for name in ("ham", "spam"):
        tiny_corpus.write_files(tmp_path / "mail" / name, HAM)
    assert_one_line(learn("retrain", tmp_path / "mail"), "labelled both ham and spam")
    assert not (tmp_path / "state" / "heads").exists()


def test_retrain_names_what_it_left_out(tmp_path: Path, learn: Run) -> None:
    path = tiny_corpus.write_folders(tmp_path / "corpus")
    (path / "spam" / "again.eml").write_bytes(HAM[3])
    result = learn("retrain", path)
    assert result.exit_code == 0 and "fitted on 19 ham and 20 spam" in result.stdout
    lines = result.stderr.splitlines()
    assert len(lines) == 2 and all(line.endswith("labelled both ham and spam, left out") for line in lines)


def test_retrain_says_when_the_configuration_serves_another_head(run: Run, tiny: Tiny) -> None:
    result = run("retrain", tiny.corpus)
    assert result.exit_code == 0 and f"head.path = {tiny.head}" in result.stderr
