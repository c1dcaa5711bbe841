"""Fine-tuning a tiny BERT: what is trained and what is not, when it stops, and that a killed run ends the same."""

from __future__ import annotations

import signal
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch

from spamguard.encoder import TorchEncoder
from spamguard.errors import CorpusError, EncoderError
from tests.tiny_bert import save_tiny_bert
from training import encoder_folder
from training.checkpoint import Checkpoint
from training.finetune import (
    Examples,
    Network,
    Settings,
    Tuned,
    batches,
    finetune,
    passes,
    rate_share,
    strategy,
    weighted_loss,
)

HAM = ("the meeting is at noon", "please see the report attached", "see you tomorrow", "the report is attached")
SPAM = ("buy cheap pills now", "free money now", "buy now cheap free pills", "free cheap money")


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> TorchEncoder:
    return TorchEncoder(save_tiny_bert(tmp_path_factory.mktemp("bert")), device="cpu", max_tokens=24)


def examples(encoder: TorchEncoder, n: int, start: int = 0, flipped: bool = False) -> Examples:
    texts = [f"{(SPAM if i % 2 else HAM)[i // 2 % 4]} {i}" for i in range(start, start + n)]
    labels = np.asarray([(i % 2) ^ flipped for i in range(start, start + n)], dtype=np.int64)
    return Examples(encoder.rows(encoder.tokenize(texts, 100)), labels, np.ones(n))


def run(encoder: TorchEncoder, checkpoint: Checkpoint | None = None, **settings: object) -> Tuned:
    chosen = Settings(**{"layers": None, "batch": 8, "epochs": 3, "rate": 1e-3} | settings)  # type: ignore[arg-type]
    return finetune(encoder, examples(encoder, 40), examples(encoder, 16, 100), chosen, checkpoint=checkpoint)


def changed(encoder: TorchEncoder, done: Tuned) -> set[str]:
    """Names of the model's parameters that differ from the folder's, to the bit."""
    before = Network(encoder, None, 0.1).model.state_dict()
    return {name for name, value in done.network.model.state_dict().items() if not torch.equal(value, before[name])}


@pytest.mark.parametrize("layers", [1, 2, 4])
def test_last_n_changes_those_layers_and_leaves_all_else_to_the_bit(encoder: TorchEncoder, layers: int) -> None:
    trained = tuple(f"encoder.layer.{4 - i}." for i in range(1, layers + 1))
    names = Network(encoder, None, 0.1).model.state_dict().keys()
    assert changed(encoder, run(encoder, layers=layers)) == {name for name in names if name.startswith(trained)}


def test_all_changes_everything_that_is_used(encoder: TorchEncoder) -> None:
    names = Network(encoder, None, 0.1).model.state_dict().keys()
    assert changed(encoder, run(encoder)) == {name for name in names if not name.startswith("pooler.")}


def test_it_learns(encoder: TorchEncoder) -> None:
    done = run(encoder, epochs=8, patience=8)
    test = examples(encoder, 40, 1000)
    assert ((done.network.judge(test.rows, 64) > 0) == (test.labels == 1)).mean() > 0.95
    assert done.progress.train[-1] < done.progress.train[0] / 2


def test_what_serving_computes_is_what_was_trained(encoder: TorchEncoder, tmp_path: Path) -> None:
    done = run(encoder, layers=2)
    folder = encoder_folder.write(done.network.model, encoder.folder, tmp_path, "tiny-last-2", {"how": "last-2"})
    served = TorchEncoder(folder, device="cpu", max_tokens=24)
    assert folder.name.startswith("tiny-last-2-") and served.fingerprint != encoder.fingerprint
    tokens = served.tokenize(list(HAM + SPAM), 100)
    head = done.network.head
    logits = served.encode(tokens) @ head.weight.detach().numpy()[0] + head.bias.detach().numpy()
    np.testing.assert_allclose(logits, done.network.judge(encoder.rows(tokens), 64), atol=1e-5)
    # The same once more is the same folder; another one is another.
    assert encoder_folder.write(done.network.model, encoder.folder, tmp_path, "tiny-last-2", {}) == folder
    other = encoder_folder.write(run(encoder).network.model, encoder.folder, tmp_path, "tiny-all", {})
    prints = {TorchEncoder(path, device="cpu", max_tokens=24).fingerprint for path in (folder, other)}
    assert len(prints) == 2 and sorted(p.name for p in tmp_path.iterdir()) == sorted([folder.name, other.name])


def test_a_folder_that_cannot_be_written_leaves_nothing(encoder: TorchEncoder, tmp_path: Path) -> None:
    (tmp_path / "encoders").write_text("in the way")
    with pytest.raises(EncoderError, match="encoders: the encoder cannot be written"):
        encoder_folder.write(Network(encoder, 1, 0.1).model, encoder.folder, tmp_path / "encoders", "x", {})
    assert [path.name for path in tmp_path.iterdir()] == ["encoders"]


def test_weights_count_in_the_loss_as_copies_would() -> None:
    logits, labels = torch.tensor([0.5, -1.0, 2.0]), np.asarray([1, 0, 0])
    weighed = weighted_loss(logits, labels, np.asarray([3.0, 1.0, 0.0]))
    copied = weighted_loss(logits[[0, 0, 0, 1]], labels[[0, 0, 0, 1]], np.ones(4))
    assert weighed.item() == pytest.approx(copied.item())
    expected = 3 * np.log1p(np.exp(-0.5)) + np.log1p(np.exp(-1.0))  # the log loss by its definition
    assert weighed.item() == pytest.approx(expected)


def test_class_weights_move_what_is_said(encoder: TorchEncoder) -> None:
    train, validation = examples(encoder, 40), examples(encoder, 16, 100)
    logits = {}
    for weight in (0.2, 5.0):
        weights = np.where(train.labels == 1, weight, 1.0)
        weighed = Examples(train.rows, train.labels, weights)
        done = finetune(encoder, weighed, validation, Settings(1, epochs=1, batch=8))
        logits[weight] = done.network.judge(validation.rows, 64).mean()
    assert logits[5.0] > logits[0.2] + 0.1


def test_early_stopping_stops_and_keeps_the_best_epoch(encoder: TorchEncoder) -> None:
    # What is validated on says the opposite of what is learnt: after the first epoch it only gets worse.
    settings = Settings(None, epochs=20, batch=8, rate=1e-3, patience=2)
    done = finetune(encoder, examples(encoder, 40), examples(encoder, 16, 100, flipped=True), settings)
    losses = done.progress.validation
    assert len(losses) < 20 and done.progress.best == int(np.argmin(losses)) == len(losses) - 3
    validation = examples(encoder, 16, 100, flipped=True)
    given = torch.from_numpy(done.network.judge(validation.rows, 64))
    assert weighted_loss(given, validation.labels, validation.weights).item() / 16 == pytest.approx(min(losses))


def test_parts_of_a_batch_add_up_to_it(encoder: TorchEncoder) -> None:
    rows = examples(encoder, 8)
    network = Network(encoder, None, 0.0).eval()
    together = weighted_loss(network(rows.rows), rows.labels, rows.weights)
    together.backward()  # type: ignore[no-untyped-call]
    whole = [parameter.grad.clone() for parameter in network.trained().values() if parameter.grad is not None]
    network.zero_grad()
    for part in passes([len(row) for row in rows.rows], 20):
        weighted_loss(network(rows.rows[part]), rows.labels[part], rows.weights[part]).backward()  # type: ignore[no-untyped-call]
    parts = [parameter.grad for parameter in network.trained().values() if parameter.grad is not None]
    assert len(whole) == len(parts) > 50
    for one, other in zip(whole, parts, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


CHILD = """
import os, signal, sys
from pathlib import Path
from tests.unit.test_finetune import Checkpoint, Settings, TorchEncoder, examples, finetune
folder, file, kill_at = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
encoder = TorchEncoder(folder, device="cpu", max_tokens=24)
def told(step, steps):
    if step == kill_at:
        os.kill(os.getpid(), signal.SIGKILL)
settings = Settings(None, batch=8, epochs=3, rate=1e-3)
train, validation = examples(encoder, 40), examples(encoder, 16, 100)
done = finetune(encoder, train, validation, settings, checkpoint=Checkpoint(file, "run"), every_s=0, told=told)
"""


@pytest.mark.parametrize("kill_at", [3, 7])  # in the middle of the first epoch, and of the second
def test_a_killed_run_goes_on_and_ends_the_same_to_the_bit(
    encoder: TorchEncoder, tmp_path: Path, kill_at: int
) -> None:
    file = tmp_path / "checkpoint.safetensors"
    killed = subprocess.run([sys.executable, "-c", CHILD, str(encoder.folder), str(file), str(kill_at)], timeout=90)
    assert killed.returncode == -signal.SIGKILL
    resumed, straight = run(encoder, Checkpoint(file, "run")), run(encoder)
    assert (resumed.resumed, straight.resumed) == (kill_at, 0)
    assert asdict(resumed.progress) == asdict(straight.progress)
    for name, value in straight.network.state_dict().items():
        assert torch.equal(resumed.network.state_dict()[name], value), name


def test_a_finished_run_is_not_trained_again(encoder: TorchEncoder, tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path / "checkpoint.safetensors", "run")
    first = run(encoder, checkpoint)
    again = run(encoder, checkpoint)
    assert again.resumed == first.progress.step == 15
    assert all(torch.equal(a, b) for a, b in zip(first.network.parameters(), again.network.parameters(), strict=True))


def test_a_checkpoint_of_another_run_or_a_damaged_one_is_not_used(encoder: TorchEncoder, tmp_path: Path) -> None:
    file = tmp_path / "checkpoint.safetensors"
    assert Checkpoint(file, "run").load() is None
    run(encoder, Checkpoint(file, "run"), epochs=1)
    assert Checkpoint(file, "run").load() is not None and Checkpoint(file, "other").load() is None
    file.write_bytes(file.read_bytes()[:1000])
    assert Checkpoint(file, "run").load() is None
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.safetensors"]


def test_a_checkpoint_that_cannot_be_written_is_one_line(encoder: TorchEncoder, tmp_path: Path) -> None:
    (tmp_path / "tuning").write_text("in the way")
    with pytest.raises(EncoderError, match="checkpoint cannot be written"):
        run(encoder, Checkpoint(tmp_path / "tuning" / "checkpoint.safetensors", "run"))


def test_seeds_decide(encoder: TorchEncoder) -> None:
    one, same, other = (run(encoder, seed=seed, epochs=1).network.head.weight for seed in (0, 0, 1))
    assert torch.equal(one, same) and not torch.equal(one, other)


def test_a_loss_that_is_not_finite_is_one_line(encoder: TorchEncoder) -> None:
    with pytest.raises(CorpusError, match="not finite"):
        run(encoder, head_rate=float("nan"))


def test_an_encoder_has_only_so_many_layers(encoder: TorchEncoder) -> None:
    with pytest.raises(EncoderError, match=r"last-5: .* has 4 layers only"):
        run(encoder, layers=5)


@pytest.mark.parametrize("how", ["last", "last-", "last-0", "last-x", "last--1", "ALL", "", "last-²"])
def test_strategies_are_named_exactly(how: str) -> None:
    with pytest.raises(EncoderError, match="none of head, last-N"):
        strategy(how)


def test_batches_are_of_like_length_and_hold_each_row_once() -> None:
    lengths = np.random.default_rng(0).integers(5, 200, 1000).tolist()
    found = batches(lengths, 32, [0, 0])
    assert sorted(i for batch in found for i in batch) == list(range(1000))
    assert [len(batch) for batch in found].count(32) == 31 and len(found) == 32
    padded = sum(max(lengths[i] for i in batch) * len(batch) for batch in found)
    assert padded < 1.1 * sum(lengths)  # at random it is almost twice as much
    assert found != batches(lengths, 32, [0, 1]) and found == batches(lengths, 32, [0, 0])


def test_passes_keep_within_their_tokens() -> None:
    lengths = [5, 5, 5, 50, 3, 3]
    found = list(passes(lengths, 15))
    assert [lengths[part] for part in found] == [[5, 5, 5], [50], [3, 3]]
    assert list(passes([], 15)) == []


def test_the_rate_rises_and_falls_in_lines() -> None:
    shares = [rate_share(step, 100, 0.1) for step in range(100)]
    assert shares[:10] == pytest.approx(np.arange(1, 11) / 10) and shares[10] == 1
    assert np.diff(shares[10:]) == pytest.approx(-1 / 90) and shares[-1] == pytest.approx(1 / 90)
