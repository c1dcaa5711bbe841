"""Who may import whom, each heavy package through its one door, and nothing that unpickles or runs foreign code."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("spamguard", "service", "training")
CLI = "spamguard/cli.py"
COMMANDS = (
    CLI,
    *(f"spamguard/cli_{part}.py" for part in ("base", "cache", "doctor", "heads", "labels")),
    *(f"spamguard/cli_{part}.py" for part in ("quarantine", "report", "score", "tune")),
)

# Package -> the files (or folders, ending in a slash) that may import it.
DOORS = {
    "torch": ("spamguard/encoder.py", "training/"),
    "transformers": ("spamguard/encoder.py", "training/"),
    "tokenizers": ("spamguard/encoder.py", "training/"),
    "huggingface_hub": ("spamguard/encoder.py",),
    "safetensors": ("spamguard/bundle.py", "training/checkpoint.py", "training/encoder_folder.py"),
    "aiosmtpd": ("service/smtp.py",),
    "watchdog": ("service/watch.py",),
    "pandas": ("training/",),
    "sklearn": ("training/",),
    "scipy": ("training/",),
    "matplotlib": ("training/pictures.py", "training/lengths.py"),
    "jinja2": ("training/page.py",),
    "click": COMMANDS,
    "structlog": ("service/",),
    "rich": (CLI, "training/"),
    "selectolax": ("spamguard/html_text.py",),
    "pydantic": ("spamguard/config.py", "spamguard/config_file.py", "spamguard/bundle.py"),
    "service": ("service/", CLI, "spamguard/cli_doctor.py", "spamguard/cli_quarantine.py"),
    "training": ("training/", CLI, "spamguard/cli_doctor.py", "spamguard/cli_tune.py"),
}
# Modules that run what they read.
FORBIDDEN_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
FORBIDDEN_CALLS = {"torch.load", "np.load", "numpy.load", "pd.read_pickle", "eval", "exec"}


def imported(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """(line, top-level package) of every absolute import, wherever it stands, `importlib.import_module` included."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name.partition(".")[0]) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.lineno, (node.module or "").partition(".")[0]
        elif isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in ("import_module", "__import__"):
            name = node.args[0] if node.args else None
            yield node.lineno, name.value.partition(".")[0] if isinstance(name, ast.Constant) else "(computed)"


def faults(path: str, source: str) -> list[str]:
    """What a file must not do, one line each."""
    tree = ast.parse(source)
    found = []
    for line, package in imported(tree):
        doors = DOORS.get(package)
        if doors is not None and not any(path == d or (d.endswith("/") and path.startswith(d)) for d in doors):
            found.append(f"{path}:{line}: imports {package}")
        if package in FORBIDDEN_MODULES or package == "(computed)":
            found.append(f"{path}:{line}: imports {package}")
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in FORBIDDEN_CALLS:
            found.append(f"{path}:{node.lineno}: calls {ast.unparse(node.func)}")
        if isinstance(node, ast.keyword) and _runs_foreign_code(node):
            found.append(f"{path}:{node.value.lineno}: passes {node.arg}={ast.unparse(node.value)}")
        if isinstance(node, ast.ImportFrom) and node.level > 1:
            found.append(f"{path}:{node.lineno}: imports from outside its package")
    return found


def _runs_foreign_code(node: ast.keyword) -> bool:
    value = node.value.value if isinstance(node.value, ast.Constant) else "computed"
    return (node.arg == "trust_remote_code" and value is not False) or (
        node.arg == "allow_pickle" and value is not False
    )


def modules() -> list[Path]:
    return sorted(file for package in PACKAGES for file in (ROOT / package).rglob("*.py"))


@pytest.mark.parametrize("file", modules(), ids=lambda file: str(file.relative_to(ROOT)))
def test_imports_go_in_the_allowed_direction(file: Path) -> None:
    assert faults(str(file.relative_to(ROOT)), file.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("spamguard/scorer.py", "import torch"),
        ("spamguard/scorer.py", "import torch.nn as nn"),
        ("spamguard/scorer.py", "def f():\n    from torch import nn"),
        ("spamguard/scorer.py", "from transformers import AutoModel"),
        ("spamguard/scorer.py", "import importlib\nimportlib.import_module('torch')"),
        ("spamguard/scorer.py", "import importlib\nimportlib.import_module(name)"),
        ("spamguard/scorer.py", "from service.daemon import run"),
        ("spamguard/scorer.py", "from training import fit"),
        ("spamguard/config.py", "import click"),
        ("service/daemon.py", "from training.retrain import retrain"),
        ("service/daemon.py", "import torch"),
        ("service/pipeline.py", "from aiosmtpd.smtp import SMTP"),
        ("service/pipeline.py", "import watchdog"),
        ("service/smtp.py", "import pandas"),
        ("training/fit.py", "import service"),
        ("training/fit.py", "import click"),
        ("training/fit.py", "from .. import service"),
        ("training/fit.py", "import pickle"),
        ("training/fit.py", "import torch\ntorch.load('head.pt')"),
        ("training/fit.py", "import numpy as np\nnp.load('x.npy', allow_pickle=True)"),
        ("training/fit.py", "from joblib import dump"),
        ("spamguard/encoder.py", "AutoModel.from_pretrained(x, trust_remote_code=True)"),
        ("spamguard/encoder.py", "AutoModel.from_pretrained(x, trust_remote_code=asked)"),
        ("spamguard/features.py", "eval('1')"),
        ("spamguard/cli.py", "if TYPE_CHECKING:\n    import torch"),
    ],
)
def test_the_checker_sees_a_planted_fault(path: str, source: str) -> None:
    assert faults(path, source)


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("spamguard/encoder.py", "import torch\nAutoModel.from_pretrained(x, trust_remote_code=False)"),
        ("training/fit.py", "import torch\nimport pandas\nfrom sklearn import metrics\nfrom spamguard import head"),
        (
            "service/smtp.py",
            "from aiosmtpd.smtp import SMTP\nfrom spamguard.config_file import load\nfrom . import relay",
        ),
        ("spamguard/cli.py", "import click\nfrom service.daemon import run\nfrom training.retrain import retrain"),
        ("spamguard/head.py", "import numpy as np\nfrom .wide import weigh\nmodel.eval()"),
    ],
)
def test_the_checker_lets_good_code_pass(path: str, source: str) -> None:
    assert faults(path, source) == []


# What our own code opens, itself or through the standard library, while every module is imported. That Python reads
# the modules, and what other packages read for themselves, is not ours.
AUDIT = """
import importlib, sys
opened = []
def note(event, arguments):
    if event in ("socket.connect", "socket.bind", "subprocess.Popen"):
        opened.append((event, str(arguments)))
    if event != "open":
        return
    frame = sys._getframe(1)
    while frame and "site-packages" not in (file := frame.f_code.co_filename) and "importlib" not in file:
        if (name := frame.f_globals.get("__name__", "")).partition(".")[0] in ("spamguard", "service", "training"):
            opened.append((name, str(arguments[0])))
        frame = frame.f_back
sys.addaudithook(note)
for name in sys.argv[1:]:
    importlib.import_module(name)
assert not opened, opened
print("torch" in sys.modules, "transformers" in sys.modules)
"""


def module_names(*packages: str) -> list[str]:
    return [
        ".".join(file.relative_to(ROOT).with_suffix("").parts)
        for file in modules()
        if file.name not in ("__init__.py", "__main__.py") and file.relative_to(ROOT).parts[0] in packages
    ]


def test_the_audit_sees_what_is_opened(tmp_path: Path) -> None:
    (tmp_path / "training").mkdir()
    (tmp_path / "training" / "planted.py").write_text("from pathlib import Path\nPath(__file__).read_text()\n")
    done = subprocess.run(
        [sys.executable, "-c", AUDIT, "training.planted"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 1 and "AssertionError: [('training.planted'" in done.stderr


@pytest.mark.parametrize("packages", [("spamguard",), ("service",), ("training",)])
def test_nothing_is_opened_and_no_model_is_loaded_at_import(packages: tuple[str, ...]) -> None:
    command = [sys.executable, "-c", AUDIT, *module_names(*packages)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    if packages != ("training",):
        assert done.stdout.split() == ["False", "False"]
