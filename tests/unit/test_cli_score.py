"""`score`, `filter` and `evaluate` with a tiny encoder: what they print and answer, and that no mail is lost."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from spamguard import headers
from spamguard.cli import main
from spamguard.encoder import TorchEncoder
from spamguard.errors import ScoringError
from tests import tiny_corpus
from tests.tiny_corpus import GTUBE, HAM, SPAM, message
from tests.unit.conftest import Run, Tiny, assert_one_line
from tests.unit.test_cli import ROOT


@pytest.fixture
def ham_file(tmp_path: Path) -> Path:
    file = tmp_path / "ham.eml"
    file.write_bytes(HAM[0])
    return file


@pytest.fixture
def spam_file(tmp_path: Path) -> Path:
    file = tmp_path / "spam.eml"
    file.write_bytes(SPAM[0])
    return file


# --- score ----------------------------------------------------------------------------------------------------------


def test_score_prints_one_line_a_message(run: Run, ham_file: Path, spam_file: Path, tiny: Tiny) -> None:
    result = run("score", ham_file, spam_file)
    assert result.exit_code == 0 and result.stderr == ""
    ham, spam = result.stdout.splitlines()
    assert ham.startswith(f"{ham_file}: ham 0.0") and spam.startswith(f"{spam_file}: spam 0.9")
    for line in (ham, spam):
        assert "unsure 0.5, spam 0.9" in line and f"encoder {tiny.encoder.fingerprint}" in line
        assert f"head {tiny.bundle().id}" in line and " ms)" in line
    assert '"pills" +' in spam or '"cheap" +' in spam or '"shop" +' in spam


def test_score_reads_folders_recursively_and_in_order(run: Run, tiny: Tiny) -> None:
    lines = run("score", tiny.corpus).stdout.splitlines()
    assert len(lines) == 40
    assert [line.partition(":")[0] for line in lines] == sorted(str(f) for f in tiny.corpus.rglob("*.eml"))
    assert [line.split(": ")[1].split()[0] for line in lines] == ["ham"] * 20 + ["spam"] * 20


def test_score_reads_standard_input(run: Run) -> None:
    assert run("score", "-", stdin=SPAM[3]).stdout.startswith("-: spam ")


def test_score_json_has_the_documented_keys(run: Run, spam_file: Path, tiny: Tiny) -> None:
    found = json.loads(run("score", "--json", spam_file).stdout)
    assert list(found) == ["path", "score", "label", "cutoffs", "parts", "reasons", "encoder", "head", "ms"]
    assert found["path"] == str(spam_file) and found["label"] == "spam" and 0.9 < found["score"] <= 1
    assert found["cutoffs"] == {"unsure": 0.5, "spam": 0.9}
    assert set(found["parts"]) == {"bias", "deep", "wide", "structure"}
    assert found["reasons"] and all(list(reason) == ["part", "what", "logit"] for reason in found["reasons"])
    assert (found["encoder"], found["head"]) == (tiny.encoder.fingerprint, tiny.bundle().id)
    assert found["ms"] > 0


def test_score_json_is_one_object_a_line(run: Run, tiny: Tiny) -> None:
    lines = run("score", "--json", tiny.corpus).stdout.splitlines()
    assert len(lines) == 40 and all(json.loads(line)["path"] for line in lines)


def test_score_does_not_depend_on_company(run: Run, tiny: Tiny, spam_file: Path) -> None:
    alone = json.loads(run("score", "--json", spam_file).stdout)["score"]
    together = [json.loads(line) for line in run("score", "--json", tiny.corpus, spam_file).stdout.splitlines()]
    assert together[-1]["path"] == str(spam_file) and together[-1]["score"] == pytest.approx(alone, abs=1e-5)


def test_score_of_gtube_is_one(run: Run) -> None:
    found = json.loads(run("score", "--json", "-", stdin=message("hello", GTUBE)).stdout)
    assert (found["score"], found["label"]) == (1.0, "spam")
    assert found["reasons"] == [{"part": "rule", "what": "the GTUBE test string", "logit": 10.0}]


# Cut-offs that make the three labels out of ham (0.0..), spam (0.9..) and what stands between.
BETWEEN = "spam = 0.9999999\nunsure = 0.5\n"


@pytest.mark.parametrize(
    ("names", "config", "code"),
    [
        ("ham", "", 0),
        ("spam", "", 1),
        ("spam", BETWEEN, 3),
        ("ham spam", "", 1),
        ("spam ham", "", 1),
        ("spam ham", BETWEEN, 3),
    ],
)
def test_exit_code_is_the_worst_of_all(
    run: Run, ham_file: Path, spam_file: Path, names: str, config: str, code: int
) -> None:
    files = [{"ham": ham_file, "spam": spam_file}[name] for name in names.split()]
    assert run("score", "--exit-code", *files, config=config).exit_code == code
    assert run("score", *files, config=config).exit_code == 0


def test_spam_outweighs_unsure(run: Run, spam_file: Path, tmp_path: Path) -> None:
    (tmp_path / "gtube.eml").write_bytes(message("hello", GTUBE))
    for order in (spam_file, tmp_path / "gtube.eml"), (tmp_path / "gtube.eml", spam_file):
        assert run("score", "--exit-code", *order, config=BETWEEN).exit_code == 1


def test_the_worst_counts_over_more_than_one_batch(run: Run, tiny: Tiny, tmp_path: Path) -> None:
    folder = tiny_corpus.write_files(tmp_path / "many", [SPAM[0], *HAM, *HAM])
    assert run("score", "--exit-code", folder).exit_code == 1


def test_what_cannot_be_read_is_named_and_the_rest_is_judged(run: Run, ham_file: Path, tmp_path: Path) -> None:
    result = run("score", "--exit-code", tmp_path / "none.eml", ham_file)
    assert_one_line(result, f"{tmp_path / 'none.eml'}: No such file or directory")
    assert result.stdout.startswith(f"{ham_file}: ham")


def test_an_empty_folder_is_nothing(run: Run, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    result = run("score", tmp_path / "empty")
    assert (result.exit_code, result.output) == (0, "")


def test_nothing_in_a_mail_reaches_the_terminal_raw(run: Run) -> None:
    raw = message("buy \x1b[31mpills", "cheap\x1b]0;owned\x07 pills \x9b31m \u202enow money")
    for options in ([], ["--explain"]):
        shown = run("score", *options, "-", stdin=raw).stdout
        assert not any(c in shown for c in "\x1b\x07\x9b\u202e")


@pytest.mark.parametrize("raw", [b"", b"\n", b"\x00\xff" * 100, b"Subject: x", b"From x y\n\nbody", b"a" * 100_000])
def test_any_bytes_are_judged(run: Run, raw: bytes) -> None:
    assert run("score", "-", stdin=raw).exit_code == 0


def test_an_error_of_several_lines_is_folded_into_one(
    run: Run, monkeypatch: pytest.MonkeyPatch, ham_file: Path
) -> None:
    def broken(*_: object) -> None:
        raise ScoringError("first\n  second")

    monkeypatch.setattr(TorchEncoder, "encode", broken)
    assert_one_line(run("score", ham_file), "first second")


# --- filter ---------------------------------------------------------------------------------------------------------


def test_filter_puts_our_headers_on_top_and_changes_no_other_byte(run: Run) -> None:
    for raw, label in ((HAM[0], "ham"), (SPAM[0], "spam"), (SPAM[0].replace(b"\n", b"\r\n"), "spam")):
        result = run("filter", stdin=raw)
        out = result.stdout_bytes
        assert result.exit_code == 0 and out.endswith(raw) and headers.strip(out) == raw
        block = out[: -len(raw)].decode()
        assert f"X-Spamguard: {label}; p=" in block and ("X-Spam-Flag: YES" in block) == (label == "spam")
        assert (b"\r\n" in out) == (b"\r\n" in raw)


def test_filter_keeps_the_mbox_line_first(run: Run) -> None:
    raw = b"From ann@example.org Thu Jan  1 00:00:00 2026\n" + HAM[0]
    out = run("filter", stdin=raw).stdout_bytes
    assert out.startswith(b"From ann@example.org Thu Jan  1 00:00:00 2026\nX-Spam-Status: No")
    assert headers.strip(out) == raw


def test_filter_takes_forged_verdicts_out(run: Run) -> None:
    out = run("filter", stdin=b"X-Spam-Flag: NO\nX-Spamguard: ham; p=0\n" + SPAM[0]).stdout_bytes
    assert b"X-Spam-Flag: NO" not in out and b"p=0\n" not in out and out.count(b"X-Spamguard:") == 1
    assert headers.strip(out) == SPAM[0]


def test_filter_twice_is_filter_once(run: Run) -> None:
    once = run("filter", stdin=SPAM[0]).stdout_bytes
    assert headers.strip(run("filter", stdin=once).stdout_bytes) == headers.strip(once) == SPAM[0]


def fail_to_score(*_: object) -> None:
    raise ScoringError("the device is out of memory")


def test_filter_says_what_was_not_scored(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TorchEncoder, "encode", fail_to_score)
    result = run("filter", stdin=SPAM[0])
    assert result.exit_code == 0 and headers.strip(result.stdout_bytes) == SPAM[0]
    assert b"X-Spamguard: unscored" in result.stdout_bytes and b"X-Spam-Status" not in result.stdout_bytes


def test_filter_answers_75_and_writes_nothing_where_the_policy_says_so(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TorchEncoder, "encode", fail_to_score)
    result = run("filter", stdin=SPAM[0], config='[policy]\non_failure = "tempfail"\n')
    assert (result.exit_code, result.stdout_bytes) == (75, b"")
    assert result.stderr == "spamguard: the device is out of memory\n"


@pytest.mark.parametrize("config", ["colour = 1\n", "spam = 7\n", "[head\n", '[next_hop]\nport = "x"\n'])
def test_filter_with_a_wrong_configuration_loses_nothing(run: Run, config: str) -> None:
    raw = b"X-Spam-Flag: forged\n" + SPAM[0] + b"\x00\xff no newline"
    result = run("filter", stdin=raw, config=config)
    assert_one_line(result, "spamguard.toml: ")
    assert result.stdout_bytes == raw


def test_filter_without_encoder_or_head_loses_nothing(tmp_path: Path, tiny: Tiny) -> None:
    file = tmp_path / "c.toml"
    for model, words in ("/no/such/bert", "is no folder"), (tiny.bert, "no such file"):
        file.write_text(f'[encoder]\nmodel = "{model}"\ndevice = "cpu"\nmax_tokens = 32\n[head]\npath = "none"\n')
        result = CliRunner().invoke(main, ["--config", str(file), "filter"], input=SPAM[0])
        assert_one_line(result, words)
        assert result.stdout_bytes == SPAM[0]


def test_filter_of_a_fault_nobody_foresaw_loses_nothing(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(TorchEncoder, "encode", crash)
    result = run("filter", stdin=SPAM[0])
    assert result.exit_code != 0 and result.stdout_bytes == SPAM[0]


def test_filter_as_a_process(write_config: Callable[..., Path], tiny: Tiny) -> None:
    """Through real pipes, as a delivery agent runs it."""
    program = "from spamguard.cli import main; main()"
    command = [sys.executable, "-c", program, "--config", str(write_config(head=tiny.head)), "filter"]
    done = subprocess.run(command, input=SPAM[0], capture_output=True, cwd=ROOT)
    assert done.returncode == 0 and done.stderr == b"" and headers.strip(done.stdout) == SPAM[0]
    assert b"X-Spam-Flag: YES" in done.stdout


# --- evaluate -------------------------------------------------------------------------------------------------------


def test_evaluate_as_text(run: Run, tiny: Tiny) -> None:
    lines = run("evaluate", tiny.corpus).stdout.splitlines()
    assert lines[0].split() == ["ham", "unsure", "spam", "<-", "verdict"]
    assert lines[1].split() == ["ham", "20", "0", "0"] and lines[2].split() == ["spam", "0", "0", "20"]
    assert lines[3].startswith("n 40   precision 1.0000   recall 1.0000   F1 1.0000")
    assert "AUC 1.00000" in lines[4] and "0.1%: 0.00%" in lines[4] and "0.5%" in lines[4] and "1.0%" in lines[4]
    assert lines[5].startswith("expected calibration error 0.0")


def test_evaluate_as_json(run: Run, tiny: Tiny) -> None:
    found = json.loads(run("evaluate", "--json", tiny.corpus).stdout)
    assert set(found) == {
        "n", "confusion", "precision", "recall", "f1", "auc", "fnr_at_fpr", "calibration_error", "head"
    }  # fmt: skip
    assert (found["n"], found["auc"], found["head"]) == (40, 1.0, tiny.bundle().id)
    assert found["fnr_at_fpr"] == {"0.001": 0.0, "0.005": 0.0, "0.01": 0.0}


def test_evaluate_of_one_class_has_no_auc(run: Run, tiny: Tiny) -> None:
    assert json.loads(run("evaluate", "--json", tiny.corpus / "ham").stdout)["auc"] is None
    assert "AUC" not in run("evaluate", tiny.corpus / "ham").stdout


def test_evaluate_counts_mistakes_at_the_configured_cutoffs(run: Run, tiny: Tiny) -> None:
    found = json.loads(run("evaluate", "--json", tiny.corpus, config=BETWEEN).stdout)
    assert found["confusion"]["spam"] == {"ham": 0, "unsure": 20, "spam": 0} and found["recall"] == 0
