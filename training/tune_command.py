"""`spamguard retrain --tune`: labelled mail -> a fine-tuned encoder, a head for it, and whether it was worth it."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd

from spamguard import bundle
from spamguard.alone import alone
from spamguard.config import Config
from spamguard.encoder import TorchEncoder
from spamguard.encoder import load as load_encoder
from spamguard.errors import CorpusError
from spamguard.featurestore import FeatureStore
from spamguard.head import AdditiveHead, Features, MlpHead, logits, probability, stack
from spamguard.labels import USERS, Labels
from spamguard.scorer import prepare
from spamguard.verdict import Cutoffs, Label

from . import encoder_folder
from .campaigns import campaigns, training_weights
from .checkpoint import Checkpoint
from .corpus import MESSAGES_A_STEP, Reading, encode, find, tabulate_items, text
from .cutoffs import Rates, choose_cutoffs, hits
from .finetune import Examples, Settings, Tuned, check_depth, finetune, strategy
from .fit import DEFAULT_PENALTIES, LEAST_OF_A_CLASS, calibrate, calibrated, fit, take
from .lengths import Choice, Lengths, choose
from .report import Figures, figures
from .retrain import Progress, labels_of, provenance
from .split import split

Indices = npt.NDArray[np.int64]
Array = npt.NDArray[np.float64]
Kind = Literal["additive", "mlp"]

SPECIAL = 2  # tokens around those of the text
# Of 15 % of the mail there must be enough to choose and to judge by.
LEAST_TO_TUNE = 40


@dataclass(frozen=True, slots=True)
class Retuned:
    """A new encoder's folder, a head for it, and figures on mail that neither has seen.

    `network` is the tuned network by itself, `head` the head on the new encoder, `frozen` one fitted alike on the
    encoder as it was. `sizes` are (ham, spam) of train, validation and test.
    """

    folder: Path
    fingerprint: str
    head_folder: Path
    lengths: Lengths
    choice: Choice
    tuned: Tuned
    network: Figures
    head: Figures
    frozen: Figures
    sizes: tuple[tuple[int, int], ...]
    complaints: tuple[str, ...]

    @property
    def configuration(self) -> str:
        """What the configuration must say for it to judge mail."""
        return (
            f"[encoder]\nmodel = {json.dumps(str(self.folder))}\nmax_tokens = {self.choice.tokens}\n\n"
            f"[head]\npath = {json.dumps(str(self.head_folder))}"
        )


def tune(
    paths: Sequence[Path],
    config: Config,
    encoder: TorchEncoder,
    how: str,
    *,
    kind: Kind = "additive",
    seed: int = 0,
    progress: Progress | None = None,
    reading: Reading | None = None,
) -> Retuned:
    """Train the encoder's last N layers (`last-N`) or all of it (`all`), and fit a head for it on the same mail.

    Nothing of it is put in service: the configuration names another encoder. A run that was killed goes on where it
    was. Raises CorpusError, EncoderError, BusyError, BundleError, LabelsError, FeatureStoreError or ScoringError.
    """
    check_depth(encoder, strategy(how))
    if not paths:
        raise CorpusError(f"--tune {how} needs a PATH: the text of the mail, of which labels alone keep nothing")
    tuning = config.state_dir / "tuning"
    with alone(tuning):
        mail = _read(paths, reading or Reading.configured(config), config, encoder, progress)
        labels = labels_of(mail.table)
        parts = _parts(mail, seed)
        lengths = np.asarray([len(ids) + SPECIAL for ids in mail.tokens])
        choice = choose(lengths[parts[0]], config.encoder.max_tokens)
        table = config.encoder.model_copy(update={"max_tokens": choice.tokens})
        cut = load_encoder(table)
        train, validation, test = (_examples(cut, mail, part) for part in parts)
        settings = Settings(strategy(how), seed=seed)
        checkpoint = Checkpoint(tuning / "checkpoint.safetensors", _run(cut, settings, mail.table, parts))
        told = _stage(progress, "training")
        done = finetune(cut, train, validation, settings, checkpoint=checkpoint, told=told)
        said = probability(done.network.judge(test.rows, settings.tokens_a_pass).astype(np.float32))
        network = figures(said, test.labels, Cutoffs(0.5, 0.5))
        about = provenance(mail.table.iloc[parts[0]], None, paths)
        made = {"from": encoder.description, "how": how, "settings": done.about(settings), "learnt": about}
        name = f"{_name(config.encoder.model)}-{how}"
        parent = config.state_dir / "encoders"
        folder = encoder_folder.write(done.network.model, cut.folder, parent, name, made)
        new = load_encoder(table.model_copy(update={"model": str(folder)}))
        features = _encoded(mail, new, config, _stage(progress, "encoding"))
        found, head_figures = _head(features, mail, parts, new, config, kind, seed)
        _, frozen_figures = _head(mail.features, mail, parts, encoder, config, kind, seed)
        about |= {"tuned": {"encoder": folder.name, "test": asdict(head_figures), "frozen": asdict(frozen_figures)}}
        ham = labels[parts[1]] == 0
        rates = hits(found.ham, found.cutoffs, found.rates)
        saved = bundle.make(found.head, found.cutoffs, new, about | {"validation_ham": int(ham.sum())}, rates)
        learnt = mail.table["content"].iloc[np.concatenate(parts[:2])]
        with alone(config.state_dir):  # a retrain would sweep a head half-made away
            head_folder = bundle.save(saved, config.heads_dir / saved.id, fitted_on=learnt)
        checkpoint.remove()
    return Retuned(
        folder=folder.absolute(),
        fingerprint=new.fingerprint,
        head_folder=head_folder.absolute(),
        lengths=lengths,
        choice=choice,
        tuned=done,
        network=network,
        head=head_figures,
        frozen=frozen_figures,
        sizes=tuple((int((labels[part] == 0).sum()), int((labels[part] == 1).sum())) for part in parts),
        complaints=tuple(mail.complaints),
    )


def measure(paths: Sequence[Path], reading: Reading, encoder: TorchEncoder) -> tuple[Lengths, list[str]]:
    """Tokens of each message below the paths, special ones included, as far as they are read, and complaints.

    Raises CorpusError.
    """
    found, heard = list[int](), list[str]()
    for item in find(paths, reading, heard.append):
        try:
            found.append(len(prepare(encoder, item.read()).token_ids) + SPECIAL)
        except OSError as error:
            heard.append(f"{item.where}: {error.strerror}")
    return np.asarray(found, dtype=np.int64), heard


@dataclass(frozen=True, slots=True)
class _Mail:
    """The table, row by row what the frozen encoder saw, the text's tokens, and the campaign of each message."""

    table: pd.DataFrame
    features: Features
    tokens: list[npt.NDArray[np.int32]]
    groups: list[int]
    read: Callable[[str], bytes | None]
    complaints: list[str]

    @property
    def weights(self) -> Array:
        """Both classes count the same, a campaign a bounded amount, Sent mail little."""
        return training_weights(self.table, self.groups)


def _read(
    paths: Sequence[Path], reading: Reading, config: Config, encoder: TorchEncoder, progress: Progress | None
) -> _Mail:
    heard: list[str] = []
    items = list(find(paths, reading, heard.append))
    with FeatureStore(config.features_dir, encoder.fingerprint) as store:
        told = _stage(progress, "reading")
        table, complaints = tabulate_items(items, encoder, store, told, own=reading.own)
        rows = store.get(table["content"].tolist())
    with Labels(config.labels_file) as labels:  # a user's word beats the folder's
        said = {row.content: int(row.label is Label.SPAM) for row in labels.rows() if row.source in USERS}
    label = [said.get(content, label) for content, label in zip(table["content"], table["label"], strict=True)]
    table = table.assign(label=np.asarray(label, dtype=np.int64))
    ham, spam = np.bincount(labels_of(table), minlength=2)
    if min(ham, spam) < LEAST_TO_TUNE:
        raise CorpusError(f"{ham} ham and {spam} spam: training an encoder needs at least {LEAST_TO_TUNE} of each")
    readers = {text(item.where): item.read for item in items}
    where = dict(zip(table["content"], table["where"], strict=True))

    def read(content: str) -> bytes:
        try:
            return readers[where[content]]()
        except OSError as error:  # read a moment ago
            raise CorpusError(f"{where[content]}: {error.strerror}") from error

    tokens = [prepare(encoder, read(content)).token_ids for content in table["content"]]
    features = stack([rows[content] for content in table["content"]])
    return _Mail(table, features, tokens, campaigns(features.wide, encoder.vocab_size), read, heard + complaints)


def _parts(mail: _Mail, seed: int) -> tuple[Indices, Indices, Indices]:
    """Rows of train, validation and test; each campaign stands on one side.

    Raises CorpusError where a side lacks a class, as one campaign makes up most of it.
    """
    parts = split(mail.table, mail.groups, seed)
    for name, part in zip(("learn from", "choose by", "judge on"), parts, strict=True):
        ham, spam = np.bincount(labels_of(mail.table)[part], minlength=2)
        if min(ham, spam) < LEAST_OF_A_CLASS:
            raise CorpusError(f"{ham} ham and {spam} spam are left to {name}: too much of this mail is alike")
    return parts


def _examples(encoder: TorchEncoder, mail: _Mail, part: Indices) -> Examples:
    rows = encoder.rows([mail.tokens[i] for i in part])
    return Examples(rows, labels_of(mail.table)[part], mail.weights[part])


def _encoded(mail: _Mail, encoder: TorchEncoder, config: Config, told: Callable[[int, int], None] | None) -> Features:
    contents = mail.table["content"].tolist()
    with FeatureStore(config.features_dir, encoder.fingerprint) as store:
        for start in range(0, len(contents), MESSAGES_A_STEP):
            encode(contents[start : start + MESSAGES_A_STEP], mail.read, encoder, store)
            if told:
                told(min(start + MESSAGES_A_STEP, len(contents)), len(contents))
        rows = store.get(contents)
    return stack([rows[content] for content in contents])


@dataclass(frozen=True, slots=True)
class _Head:
    head: AdditiveHead | MlpHead
    cutoffs: Cutoffs
    ham: Array  # probabilities of the ham that the cut-offs were chosen on
    rates: Rates


def _head(
    features: Features,
    mail: _Mail,
    parts: tuple[Indices, Indices, Indices],
    encoder: TorchEncoder,
    config: Config,
    kind: Kind,
    seed: int,
) -> tuple[_Head, Figures]:
    """A head fitted on the train part, calibrated and with cut-offs chosen on the validation part, and its figures.

    Not on mail held out in turn, as `fit` does: the encoder has learnt the train part's labels, and would flatter.
    """
    train, validation, test = parts
    labels, weights = labels_of(mail.table), mail.weights
    fitted = fit(
        take(features, train),
        labels[train],
        columns=encoder.vocab_size,
        kind=kind,
        weights=weights[train],
        groups=[str(mail.groups[i]) for i in train],
        penalties=DEFAULT_PENALTIES if config.learning.headers else replace(DEFAULT_PENALTIES, headers=None),
        seed=seed,
    )
    given = logits(fitted.head, take(features, validation)).astype(np.float64)
    head = calibrated(fitted.head, *calibrate(given, labels[validation], weights[validation]))
    ham = validation[labels[validation] == 0]
    said = probability(logits(head, take(features, ham))).astype(np.float64)
    rates = Rates(config.learning.spam_rate, config.learning.unsure_rate)
    cutoffs = choose_cutoffs(said, weights[ham], rates)
    found = figures(probability(logits(head, take(features, test))), labels[test], cutoffs)
    return _Head(head, cutoffs, said, rates), found


def _run(encoder: TorchEncoder, settings: Settings, table: pd.DataFrame, parts: Sequence[Indices]) -> str:
    """A name of all that the result hangs on."""
    mail = list(zip(table["content"], table["label"].tolist(), strict=True))
    named: list[Any] = [encoder.fingerprint, asdict(settings), mail, [part.tolist() for part in parts]]
    return hashlib.sha256(json.dumps(named).encode()).hexdigest()[:16]


def _name(model: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", Path(model).name)[:60]


def _stage(progress: Progress | None, name: str) -> Callable[[int, int], None] | None:
    return None if progress is None else lambda done, total: progress(name, done, total)
