"""Fine-tuning the encoder: its last N layers, or all of it, under a linear layer on the pooled states that heads see.

AdamW without decay on norms and biases (Loshchilov and Hutter 2019), linear warm-up and decay, clipped gradients, the
best epoch by validation loss. All is seeded, and a run that was killed ends as it would have without.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits

from spamguard.encoder import TorchEncoder, load_model
from spamguard.errors import CorpusError, EncoderError

from .checkpoint import Checkpoint

Array = npt.NDArray[np.float64]
Rows = Sequence[Sequence[int]]

BATCHES_A_POOL = 50  # so many batches are drawn together and sorted by length: little padding, and still at random
UNUSED = "pooler"  # makes one vector of [CLS] in its own way; nothing of ours reads it


@dataclass(frozen=True, slots=True)
class Settings:
    """`layers`: how many of the last are trained; None trains all, and the embeddings.

    `rate` is the encoder's greatest learning rate, `head_rate` that of the linear layer on top. A batch is passed in
    parts of at most `tokens_a_pass` padded tokens, whose gradients add up: memory hangs on that, the result does not.
    `patience`: so many epochs without a better validation loss end the training.
    """

    layers: int | None
    epochs: int = 4
    batch: int = 32
    rate: float = 5e-5
    head_rate: float = 1e-3
    decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.999)
    warm_up: float = 0.1
    clip: float = 1.0
    dropout: float = 0.1
    patience: int = 2
    tokens_a_pass: int = 2048
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Examples:
    """n messages: token ids with the special ones, labels (n,) with 1 for spam, and what each counts (n,)."""

    rows: Rows
    labels: npt.NDArray[np.int64]
    weights: Array


@dataclass(slots=True)
class Progress:
    """How far a run is: optimiser steps, losses of this epoch and of the whole ones before, the best of them."""

    step: int = 0
    train_loss: float = 0.0
    train: list[float] = field(default_factory=list)
    validation: list[float] = field(default_factory=list)
    best: int = -1


def strategy(tune: str) -> int | None:
    """Number of layers that `last-N` trains; None for `all`. Raises EncoderError for anything else."""
    if tune == "all":
        return None
    name, _, number = tune.partition("-")
    if name != "last" or not number.isdecimal() or not 1 <= int(number) <= 999:
        raise EncoderError(f"{tune!r} is none of head, last-N (N from 1) and all")
    return int(number)


class Network(nn.Module):
    """The encoder's model, trainable as far as asked, and a linear layer: rows -> logits of spam."""

    def __init__(self, encoder: TorchEncoder, layers: int | None, dropout: float) -> None:
        """Loads the encoder's folder once more. Raises EncoderError, as `check_depth` does."""
        super().__init__()
        self.model: nn.Module = load_model(encoder.folder)
        self.dropout, self.head = nn.Dropout(dropout), nn.Linear(encoder.dim, 1)
        self._encoder, self._device = encoder, torch.device(encoder.device)
        _freeze(self.model, layers, encoder)
        self.to(self._device)

    def forward(self, rows: Rows) -> torch.Tensor:
        """Logits (n,)."""
        pooled = self._encoder.pool(self.model, self._device, rows)
        logits: torch.Tensor = self.head(self.dropout(pooled)).squeeze(1)
        return logits

    def trained(self) -> dict[str, nn.Parameter]:
        return {name: parameter for name, parameter in self.named_parameters() if parameter.requires_grad}

    def judge(self, rows: Rows, tokens_a_pass: int) -> Array:
        """Logits (n,) in eval mode, in double precision."""
        given = np.empty(len(rows))
        self.eval()
        order = np.argsort([len(row) for row in rows], kind="stable")
        with torch.inference_mode():
            for part in passes([len(rows[i]) for i in order], tokens_a_pass):
                chosen = order[part]
                given[chosen] = self([rows[i] for i in chosen]).double().cpu().numpy()
        return given


def check_depth(encoder: TorchEncoder, layers: int | None) -> None:
    """Raises EncoderError where the encoder has fewer layers."""
    if layers is not None and layers > encoder.depth:
        raise EncoderError(f"last-{layers}: {encoder.folder} has {encoder.depth} layers only")


def _freeze(model: nn.Module, layers: int | None, encoder: TorchEncoder) -> None:
    check_depth(encoder, layers)
    stacks = [m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m) == encoder.depth]
    if layers is not None and len(stacks) != 1:
        raise EncoderError(f"{encoder.folder}: its layers cannot be told apart, only --tune all can train it")
    model.requires_grad_(layers is None)
    for layer in stacks[0][-layers:] if layers is not None else ():
        layer.requires_grad_(True)
    for name, part in model.named_children():
        if name == UNUSED:
            part.requires_grad_(False)


@dataclass(frozen=True, slots=True)
class Tuned:
    """The network of the best epoch, the losses of each, and the step it was taken up at (0: from the beginning)."""

    network: Network
    progress: Progress
    resumed: int
    seconds: float

    def about(self, settings: Settings) -> dict[str, Any]:
        return {**asdict(settings), "train_loss": self.progress.train, "validation_loss": self.progress.validation}


def finetune(
    encoder: TorchEncoder,
    train: Examples,
    validation: Examples,
    settings: Settings,
    *,
    checkpoint: Checkpoint | None = None,
    every_s: float = 300.0,
    told: Callable[[int, int], None] | None = None,
) -> Tuned:
    """Train on `train`, keep the epoch that judges `validation` best; go on from the checkpoint if it has one.

    A checkpoint is written after each epoch and every `every_s` seconds. `told` hears (steps done, steps at most).
    Raises EncoderError (too few layers, no memory, no checkpoint to be written) or CorpusError (no finite loss).
    """
    run = _Run(encoder, train, validation, settings)
    started = time.monotonic()
    resumed = run.resume(checkpoint) if checkpoint is not None else 0
    saved = time.monotonic()
    try:
        while not run.finished:
            run.advance()
            if checkpoint is not None and (run.at_end_of_epoch or time.monotonic() - saved >= every_s):
                checkpoint.save(run.tensors(), asdict(run.progress))
                saved = time.monotonic()
            if told:
                told(run.progress.step, run.steps)
    except torch.OutOfMemoryError as error:
        raise EncoderError(
            f"{encoder.device} has no memory left for training; encoder.max_tokens may help"
        ) from error
    run.take_best()
    return Tuned(run.network, run.progress, resumed, time.monotonic() - started)


class _Run:
    def __init__(self, encoder: TorchEncoder, train: Examples, validation: Examples, settings: Settings) -> None:
        self._train, self._validation, self._settings = train, validation, settings
        torch.manual_seed(settings.seed)  # of the new layer, and of dropout
        self.network = Network(encoder, settings.layers, settings.dropout)
        self._parameters = self.network.trained()
        self._optimiser = torch.optim.AdamW(_groups(self._parameters, settings), betas=settings.betas)
        self._rates = [group["lr"] for group in self._optimiser.param_groups]
        self._on_gpu = torch.device(encoder.device).type == "cuda"
        half = torch.bfloat16 if self._on_gpu and torch.cuda.is_bf16_supported() else torch.float16
        self._half = half
        # bf16 has float32's range; fp16 has not, and small gradients would vanish.
        self._scaler = torch.amp.GradScaler("cuda", enabled=self._on_gpu and half is torch.float16)
        self._best: dict[str, torch.Tensor] = {}
        self._order: tuple[int, list[list[int]]] = (-1, [])
        self._epoch_steps = math.ceil(len(train.rows) / settings.batch)
        self.steps = self._epoch_steps * settings.epochs
        self.progress = Progress()

    @property
    def at_end_of_epoch(self) -> bool:
        return self.progress.step % self._epoch_steps == 0

    @property
    def finished(self) -> bool:
        waited = len(self.progress.validation) - 1 - self.progress.best
        return self.progress.step >= self.steps or (self.progress.best >= 0 and waited >= self._settings.patience)

    def advance(self) -> None:
        """One optimiser step, and at the end of an epoch the validation."""
        epoch, number = divmod(self.progress.step, self._epoch_steps)
        if self._order[0] != epoch:
            lengths = [len(row) for row in self._train.rows]
            self._order = epoch, batches(lengths, self._settings.batch, [self._settings.seed, epoch])
        self.progress.train_loss += self._learn(self._order[1][number])
        self.progress.step += 1
        if self.at_end_of_epoch:
            self._end_epoch(epoch)

    def _learn(self, batch: Sequence[int]) -> float:
        """A step on these messages; returns their weighted mean loss."""
        share = rate_share(self.progress.step, self.steps, self._settings.warm_up)
        for group, rate in zip(self._optimiser.param_groups, self._rates, strict=True):
            group["lr"] = rate * share
        self.network.train()
        self._optimiser.zero_grad(set_to_none=True)
        total, seen = float(self._train.weights[batch].sum()), 0.0
        for part in passes([len(self._train.rows[i]) for i in batch], self._settings.tokens_a_pass):
            chosen = np.asarray(batch)[part]
            with self._precision():
                given = self.network([self._train.rows[i] for i in chosen])
            loss = weighted_loss(given, self._train.labels[chosen], self._train.weights[chosen]) / total
            self._scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
            seen += float(loss.detach())
        self._scaler.unscale_(self._optimiser)
        nn.utils.clip_grad_norm_(self._parameters.values(), self._settings.clip)
        self._scaler.step(self._optimiser)
        self._scaler.update()
        return seen

    def _precision(self) -> AbstractContextManager[Any]:
        return torch.autocast("cuda", self._half) if self._on_gpu else nullcontext()

    def _end_epoch(self, epoch: int) -> None:
        given = self.network.judge(self._validation.rows, self._settings.tokens_a_pass)
        weights = self._validation.weights
        logits = torch.from_numpy(given)
        loss = float(weighted_loss(logits, self._validation.labels, weights)) / float(weights.sum())
        if not math.isfinite(loss):
            raise CorpusError("the training went astray: its loss is not finite; another --seed may help")
        progress = self.progress
        progress.train.append(progress.train_loss / self._epoch_steps)
        progress.train_loss = 0.0
        if progress.best < 0 or loss < progress.validation[progress.best]:
            progress.best = epoch
            self._best = {name: value.detach().clone() for name, value in self._parameters.items()}
        progress.validation.append(loss)

    def take_best(self) -> None:
        with torch.no_grad():
            for name, value in self._best.items():
                self._parameters[name].copy_(value)
        self.network.eval()

    def tensors(self) -> dict[str, torch.Tensor]:
        """All that the next step hangs on; frozen weights are those of the encoder's folder."""
        found: dict[str, torch.Tensor] = {f"now.{name}": value for name, value in self._parameters.items()}
        found |= {f"best.{name}": value for name, value in self._best.items()}
        for name, parameter in self._parameters.items():
            found |= {f"adam.{key}.{name}": v for key, v in self._optimiser.state.get(parameter, {}).items()}
        found["rng.cpu"] = torch.get_rng_state()
        if self._on_gpu:
            found["rng.gpu"] = torch.cuda.get_rng_state()
            scaler = self._scaler.state_dict()
            found["scaler"] = torch.tensor([scaler.get("scale", 1.0), scaler.get("_growth_tracker", 0)])
        return found

    def resume(self, checkpoint: Checkpoint) -> int:
        """Take up the run where the checkpoint says; 0 if it says nothing of this one."""
        stored = checkpoint.load()
        if stored is None:
            return 0
        tensors, progress = stored
        device = next(iter(self._parameters.values())).device
        with torch.no_grad():
            for name, parameter in self._parameters.items():
                parameter.copy_(tensors[f"now.{name}"])
                if f"adam.step.{name}" in tensors:
                    self._optimiser.state[parameter] = {
                        "step": tensors[f"adam.step.{name}"],
                        "exp_avg": tensors[f"adam.exp_avg.{name}"].to(device),
                        "exp_avg_sq": tensors[f"adam.exp_avg_sq.{name}"].to(device),
                    }
        self._best = {name: tensors[f"best.{name}"] for name in self._parameters if f"best.{name}" in tensors}
        torch.set_rng_state(tensors["rng.cpu"])
        if self._on_gpu and "rng.gpu" in tensors:
            torch.cuda.set_rng_state(tensors["rng.gpu"])
            if self._scaler.is_enabled():
                scale, growth = tensors["scaler"].tolist()
                self._scaler.load_state_dict(
                    self._scaler.state_dict() | {"scale": scale, "_growth_tracker": int(growth)}
                )
        self.progress = Progress(**progress)
        return self.progress.step


def _groups(parameters: dict[str, nn.Parameter], settings: Settings) -> list[dict[str, Any]]:
    """Parameters by learning rate and decay. Norms and biases have one dimension, and no decay."""
    found = []
    for rate, on_top in ((settings.rate, False), (settings.head_rate, True)):
        here = [value for name, value in parameters.items() if name.startswith("head.") is on_top]
        for decay, flat in ((settings.decay, False), (0.0, True)):
            if chosen := [value for value in here if (value.ndim < 2) is flat]:
                found.append({"params": chosen, "lr": rate, "weight_decay": decay})
    return found


def weighted_loss(given: torch.Tensor, labels: npt.NDArray[np.int64], weights: Array) -> torch.Tensor:
    """Weighted sum of the log loss of logits (n,); two softmax outputs would give the same."""
    targets = torch.from_numpy(labels).to(given.device, torch.float32)
    cost = torch.from_numpy(weights).to(given.device, torch.float32)
    return binary_cross_entropy_with_logits(given.float(), targets, weight=cost, reduction="sum")


def rate_share(step: int, steps: int, warm_up: float) -> float:
    """Of the learning rate at this step: up in a line, then down in a line to nothing."""
    rising = max(1, round(warm_up * steps))
    return (step + 1) / rising if step < rising else (steps - step) / max(1, steps - rising)


def batches(lengths: Sequence[int], size: int, seed: Sequence[int]) -> list[list[int]]:
    """Row numbers in batches of like lengths, all of `size` but one. The seed alone decides."""
    rng = np.random.default_rng(seed)
    order, of = rng.permutation(len(lengths)), np.asarray(lengths)
    found: list[list[int]] = []
    for start in range(0, len(order), size * BATCHES_A_POOL):
        pool = order[start : start + size * BATCHES_A_POOL]
        pool = pool[np.argsort(of[pool], kind="stable")]
        found += [pool[i : i + size].tolist() for i in range(0, len(pool), size)]
    return [found[i] for i in rng.permutation(len(found))]


def passes(lengths: Sequence[int], tokens: int) -> Iterator[slice]:
    """Consecutive slices whose padded size stays within `tokens`, or that are of one row."""
    start, widest = 0, 0
    for i, length in enumerate(lengths):
        widest = max(widest, length)
        if i > start and widest * (i + 1 - start) > tokens:
            yield slice(start, i)
            start, widest = i, length
    if start < len(lengths):
        yield slice(start, len(lengths))
