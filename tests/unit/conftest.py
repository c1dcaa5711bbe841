"""What several unit tests share: a tiny encoder, a head fitted with it on the tiny corpus, commands with both, a
bundle, a quarantine, a refit and a watched Maildir.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from threadpoolctl import threadpool_limits

from service import refit
from spamguard import bundle
from spamguard.cli import main
from spamguard.config import Config, EncoderTable
from spamguard.encoder import TorchEncoder, load
from tests import tiny_corpus
from tests.conftest import LoopThread, Running
from tests.fakes import FakeNextHop, load_fake_scorer
from tests.held_mail import Store
from tests.maildirs import Box
from tests.paper_bundle import a_bundle
from tests.refit_bench import Bench
from tests.tiny_bert import save_tiny_bert

# On a busy machine the threads of torch and BLAS wait for each other longer than our small arrays need.
os.environ.setdefault("OMP_NUM_THREADS", "1")

Run = Callable[..., Result]


@dataclass(frozen=True, slots=True)
class Tiny:
    """A tiny encoder in `bert`, a corpus in `corpus`, and a head fitted on it in `head`."""

    bert: Path
    encoder: TorchEncoder
    corpus: Path
    head: Path

    def table(self) -> EncoderTable:
        return EncoderTable(model=str(self.bert), device="cpu", max_tokens=32, threads=1)

    def config(self, state: Path) -> Config:
        return Config(state_dir=state, encoder=self.table())

    def bundle(self) -> bundle.Bundle:
        return bundle.load(self.head, self.encoder)


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """The same for a BLAS that was loaded before."""
    with threadpool_limits(1):
        yield


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    from training.fit import Penalties, fit
    from training.retrain import gather, labels_of

    root = tmp_path_factory.mktemp("tiny")
    bert = save_tiny_bert(root / "bert")
    encoder = load(EncoderTable(model=str(bert), device="cpu", max_tokens=32, threads=1))
    made = Tiny(bert, encoder, tiny_corpus.write_folders(root / "corpus"), root / "head")
    table, features, _ = gather([made.corpus], made.config(root / "state"), encoder)
    # Penalties of our own, so that no test hangs on what the benchmarks choose as default.
    penalties = Penalties(deep=3.0, wide=0.03, structure=1.0)
    fitted = fit(features, labels_of(table), columns=encoder.vocab_size, penalties=penalties)
    bundle.save(bundle.make(fitted.head, fitted.cutoffs, encoder, {}), made.head)
    return made


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many texts the encoder was given, each time."""
    sizes: list[int] = []
    encode = TorchEncoder.encode

    def counting(self: TorchEncoder, tokens: Any) -> Any:
        sizes.append(len(tokens))
        return encode(self, tokens)

    monkeypatch.setattr(TorchEncoder, "encode", counting)
    return sizes


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


def run_with(file: Path) -> Run:
    """Runs commands with this configuration."""

    def invoke(*arguments: object, stdin: bytes | None = None) -> Result:
        return CliRunner().invoke(main, ["--config", str(file), *map(str, arguments)], input=stdin)

    return invoke


@pytest.fixture
def run(write_config: Callable[..., Path], tiny: Tiny) -> Run:
    """Runs a command with a head of the tiny corpus in service; `config` is appended to the [head] table."""

    def invoke(*arguments: object, config: str = "", stdin: bytes | None = None) -> Result:
        return run_with(write_config(config, head=tiny.head))(*arguments, stdin=stdin)

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
def saved(tmp_path: Path) -> Path:
    """The folder of a bundle that stands alone in its heads folder."""
    return bundle.save(a_bundle(), tmp_path / "heads" / "one")


@pytest.fixture
def store(tmp_path: Path, loop_thread: LoopThread) -> Store:
    """A quarantine in which one message is held."""
    made = Store(tmp_path, loop_thread)
    made.hold()
    return made


@pytest.fixture
def hop(store: Store, loop_thread: LoopThread) -> Iterator[Callable[..., FakeNextHop]]:
    """Starts the next hop of that store: `hop(**script)`."""
    started: list[FakeNextHop] = []

    def start(keys: dict[str, object] | None = None, **script: Any) -> FakeNextHop:
        started.append(store.start(FakeNextHop(**script), **(keys or {})))
        return started[-1]

    yield start
    for one in started:
        loop_thread.loop.call_soon_threadsafe(one.release.set)
        loop_thread.run(one.stop())


@pytest.fixture
def quick_refit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refit, "EVERY_S", 0.02)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path, Config(state_dir=tmp_path / "state"))


@pytest.fixture
def box(tmp_path: Path) -> Box:
    return Box(tmp_path / "mail")


@pytest.fixture
def watch(running_daemon: Callable[..., Running], box: Box) -> Callable[..., Running]:
    """Start a daemon that watches `box`: `watch(junk=".Spam", other={"policy": {...}})`."""

    def start(other: dict[str, Any] | None = None, load_scorer: Any = load_fake_scorer, **keys: Any) -> Running:
        table = {"maildirs": [str(box.path)], "quiet_s": 0.2, "rescan_s": 60} | keys
        return running_daemon(None, load_scorer, **{"listen": {"protocol": "off"}, "watch": table} | (other or {}))

    return start
