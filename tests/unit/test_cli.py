"""Every command with a tiny encoder: what it prints, what it answers, and one line instead of a traceback."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from spamguard import bundle, headers
from spamguard.bundle import WEIGHTS
from spamguard.cli import main
from spamguard.encoder import TorchEncoder
from spamguard.errors import ScoringError
from tests import render_docs, tiny_corpus
from tests.tiny_corpus import GTUBE, HAM, SPAM, message
from tests.unit.conftest import Tiny

ROOT = Path(__file__).parents[2]
Run = Callable[..., Result]


@pytest.fixture
def write_config(tmp_path: Path, tiny: Tiny) -> Callable[..., Path]:
    """Writes a configuration with the tiny encoder, the state folder `state`, and what is given."""

    def write(more: str = "", head: Path | None = None) -> Path:
        file = tmp_path / "spamguard.toml"
        path = f'path = "{head}"\n' if head else ""
        encoder = f'model = "{tiny.bert}"\ndevice = "cpu"\nmax_tokens = 32\nthreads = 1\n'
        file.write_text(f'state_dir = "state"\n[encoder]\n{encoder}[head]\n{path}{more}')
        return file

    return write


@pytest.fixture
def run(write_config: Callable[..., Path], tiny: Tiny) -> Run:
    """Runs a command with a head of the tiny corpus in service; `config` is appended to the [head] table."""

    def invoke(*arguments: object, config: str = "", stdin: bytes | None = None) -> Result:
        file = write_config(config, head=tiny.head)
        return CliRunner().invoke(main, ["--config", str(file), *map(str, arguments)], input=stdin)

    return invoke


def assert_one_line(result: Result, words: str) -> None:
    assert result.exit_code == 2 and words in result.stderr, result.output
    assert result.stderr.startswith("spamguard: ") and result.stderr.count("\n") == 1


def snapshot(folder: Path) -> dict[str, str]:
    if not folder.exists():
        return {}
    files = (f for f in folder.rglob("*") if f.is_file())
    return {str(f): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


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


# --- retrain --------------------------------------------------------------------------------------------------------


@pytest.fixture
def learn(write_config: Callable[..., Path]) -> Run:
    """Runs a command with no head configured: what retrain puts in service is what is served."""

    def invoke(*arguments: object, stdin: bytes | None = None) -> Result:
        return CliRunner().invoke(main, ["--config", str(write_config()), *map(str, arguments)], input=stdin)

    return invoke


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The size of every batch that the encoder was given."""
    sizes: list[int] = []
    encode = TorchEncoder.encode

    def counting(self: TorchEncoder, tokens: Any) -> Any:
        sizes.append(len(tokens))
        return encode(self, tokens)

    monkeypatch.setattr(TorchEncoder, "encode", counting)
    return sizes


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
    second = learn("retrain", path)
    assert second.exit_code == 0 and sum(encoded) == 0
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


def test_an_error_of_several_lines_is_folded_into_one(
    run: Run, monkeypatch: pytest.MonkeyPatch, ham_file: Path
) -> None:
    def broken(*_: object) -> None:
        raise ScoringError("first\n  second")

    monkeypatch.setattr(TorchEncoder, "encode", broken)
    assert_one_line(run("score", ham_file), "first second")


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
