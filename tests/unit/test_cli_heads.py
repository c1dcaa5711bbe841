"""`spamguard heads`: what it lists and says, and that going back gives the same scores to the last bit."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from spamguard import bundle, heads_dir
from spamguard.cli import main
from spamguard.config import Config
from spamguard.recent import Judged, Recent
from spamguard.scorer import Scorer
from spamguard.verdict import Label
from tests.tiny_corpus import HAM, SPAM, message, write_files
from tests.unit.conftest import Tiny
from training.retrain import retrain

Run = Callable[..., Result]


@pytest.fixture
def config(tiny: Tiny, tmp_path: Path) -> Config:
    return tiny.config(tmp_path / "state")


@pytest.fixture
def run(tiny: Tiny, tmp_path: Path) -> Run:
    file = tmp_path / "spamguard.toml"
    file.write_text(
        f'state_dir = "state"\n[encoder]\nmodel = "{tiny.bert}"\ndevice = "cpu"\nmax_tokens = 32\nthreads = 1\n'
    )

    def invoke(*arguments: str) -> Result:
        return CliRunner().invoke(main, ["--config", str(file), *arguments])

    return invoke


@pytest.fixture
def two(tiny: Tiny, config: Config, tmp_path: Path) -> tuple[str, str]:
    """Two heads, the second one in service."""
    write_files(tmp_path / "less" / "ham", HAM[:6])
    write_files(tmp_path / "less" / "spam", SPAM[:6])
    first = retrain([tmp_path / "less"], config, tiny.encoder)
    second = retrain([tiny.corpus], config, tiny.encoder)
    assert first.word.passed and second.word.passed
    return first.bundle.id, second.bundle.id


def scores(config: Config) -> tuple[str, bytes]:
    """The ID of the head that judges, and its probabilities of the corpus, bit for bit."""
    scorer = Scorer.from_config(config)
    verdicts = scorer.score([scorer.prepare(raw) for raw in [*HAM, *SPAM]])
    return scorer.head_id, b"".join(verdict.probability.hex().encode() for verdict in verdicts)


def one_line(result: Result) -> str:
    assert result.exit_code == 2 and result.stdout == ""
    (line,) = result.stderr.splitlines()
    return line


def test_list_and_show(run: Run, two: tuple[str, str], config: Config) -> None:
    lines = run("heads", "list").stdout.splitlines()
    assert [line.split()[0] for line in lines[:2]] in ([*two[::-1]], [*two])
    assert len(lines) == 3 and "shipped" in lines[2]
    assert sum("current" in line for line in lines) == 1 and "20 ham, 20 spam  tied: " in "\n".join(lines)
    found = {row["id"]: row for row in map(json.loads, run("heads", "list", "--json").stdout.splitlines())}
    assert (found[two[0]]["state"], found[two[1]]["state"], found[two[1]]["ham"]) == ("earlier", "current", 20)
    assert sum(row["shipped"] for row in found.values()) == 1

    text = run("heads", "show", two[1][:6]).stdout
    for word in ("cut-offs", "encoder", "data sha256", "in service (retrain)", "out of fold", "spam hits", "corpus"):
        assert word in text, text
    shown = json.loads(run("heads", "show", "current", "--json").stdout)
    manifest = json.loads((config.heads_dir / two[1] / bundle.MANIFEST).read_text())
    assert shown["manifest"] == manifest and shown["id"] == two[1]
    assert [(e["id"], e["previous"]) for e in shown["history"]] == [(two[1], two[0])]
    assert {"figures", "gate", "spamguard", "data_sha256", "locked"} <= manifest["provenance"].keys()
    assert (
        "Traceback" not in run("heads", "show", "shipped").output and run("heads", "show", "shipped").exit_code == 0
    )


def test_rollback_and_promote_give_the_very_same_scores(run: Run, two: tuple[str, str], config: Config) -> None:
    second = scores(config)
    back = run("heads", "rollback")
    assert back.exit_code == 0 and f"head {two[0]} in service, in place of {two[1]}" in back.stdout
    first = scores(config)
    assert (first[0], second[0]) == two and first[1] != second[1]
    assert f"heads promote {two[1]}" in back.stdout
    assert run("heads", "promote", two[1][:5]).exit_code == 0
    assert scores(config) == second
    run("heads", "rollback")
    assert scores(config) == first
    assert f"{two[0]} is in service already" in run("heads", "promote", two[0]).stdout


def test_a_head_that_cannot_judge_is_not_put_in_service(run: Run, two: tuple[str, str], config: Config) -> None:
    """The shipped one is for another encoder; it was in service before all, and cannot be gone back to."""
    assert "fitted for another encoder" in one_line(run("heads", "promote", "shipped"))
    run("heads", "rollback")
    assert "fitted for another encoder" in one_line(run("heads", "rollback"))
    (config.heads_dir / two[1] / bundle.WEIGHTS).write_bytes(b"")
    assert "damaged" in one_line(run("heads", "promote", two[1]))
    assert heads_dir.serving(config.heads_dir) == two[0]


@pytest.mark.parametrize("name", ["ffffffff", "\x1b[2J", "../x"])
@pytest.mark.parametrize("command", [("show",), ("promote",), ("diff", "current")])
def test_what_is_no_head_is_one_line(run: Run, two: tuple[str, str], command: tuple[str, ...], name: str) -> None:
    line = one_line(run("heads", *command, name))
    assert "no such head" in line and "\x1b" not in line


def test_without_any_head_of_the_users_own(run: Run) -> None:
    assert "current, shipped" in run("heads", "list").stdout
    assert "nothing is known of a head before" in one_line(run("heads", "rollback"))
    assert run("heads", "prune").stdout == "0 removed\n"


def test_diff_lists_what_would_change(run: Run, two: tuple[str, str], tiny: Tiny, config: Config) -> None:
    """Of labelled mail and of mail that was judged of late: by id, place and label, without a word of it."""
    raw = message("see cheap report now", "free meeting")
    scorer = Scorer.from_config(config, tiny.encoder)
    verdict = scorer.score([scorer.prepare(raw)])[0]
    assert verdict.seen is not None
    with Recent(config.features_dir, tiny.encoder.fingerprint) as recent:
        at = time.time() - 3600
        recent.add([Judged("c" * 64, at, 0.5, Label.HAM, two[1], "smtp/\x1b[2Jabc", verdict.seen)])
    # The same head with another cut-off calls otherwise what lies between, and nothing else.
    old = bundle.load(config.heads_dir / two[1], tiny.encoder)
    p = verdict.probability
    cutoffs = (
        bundle.Cutoffs(min(old.cutoffs.unsure, p / 2), p) if p < old.cutoffs.spam else bundle.Cutoffs(p / 2, 1.0)
    )
    other = bundle.make(old.head, cutoffs, tiny.encoder, {})
    bundle.save(other, config.heads_dir / other.id)
    rows = [json.loads(line) for line in run("heads", "diff", "current", other.id, "--json").stdout.splitlines()]
    judged = next(row for row in rows if row["id"] == "c" * 64)
    assert (
        judged["before"]["label"] == old.cutoffs.label(p).value != judged["after"]["label"] == cutoffs.label(p).value
    )
    assert judged["before"]["score"] == judged["after"]["score"] == round(p, 6) and judged["label"] == ""
    text = run("heads", "diff", two[1], other.id[:6]).stdout
    assert (
        text.splitlines()[-1]
        == f"{len(rows)} of 41 messages would be called otherwise by {other.id} than by {two[1]}"
    )
    assert "\x1b" not in text and "smtp/" in text and "cheap" not in text
    assert "c" * 64 not in run("heads", "diff", "current", other.id, "--json", "--days", "0.01").stdout
    same = run("heads", "diff", "current", two[1])
    assert same.stdout == f"0 of 41 messages would be called otherwise by {two[1]} than by {two[1]}\n"


def test_prune(run: Run, two: tuple[str, str], config: Config, tiny: Tiny) -> None:
    stale = bundle.make(
        tiny.bundle().head, bundle.Cutoffs(0.2, 0.3), tiny.encoder, {"created": "2020-01-01T00:00:00Z"}
    )
    bundle.save(stale, config.heads_dir / stale.id)
    assert run("heads", "prune", "--keep", "0").stdout == f"{stale.id} removed\n1 removed\n"
    assert {head.name for head in heads_dir.heads(config.heads_dir)} == {*two, "shipped"}
