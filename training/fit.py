"""Fitting a head on features: the additive head by L-BFGS, the tutorial's mlp by AdamW; calibration and cut-offs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy import sparse
from scipy.optimize import minimize
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

from spamguard.encoder import FloatArray
from spamguard.errors import CorpusError
from spamguard.head import AdditiveHead, Features, MlpHead, logits, standardise
from spamguard.header_words import HEADER_COLUMNS
from spamguard.verdict import Cutoffs
from spamguard.wide import Counts, weigh

from .cutoffs import SPAM_BOUNDS, Rates, choose_cutoffs

Array = npt.NDArray[np.float64]
Labels = npt.NDArray[np.int64]  # 1 is spam

# Fewer of either class and a split, a calibration or a cut-off would be an accident.
LEAST_OF_A_CLASS = 5
FOLDS = 3
# Few labels should move a head far, or they would change nothing; how far, cross-validation says. Many decide alone.
STRENGTHS, FEW = (1.0, 0.3, 0.1, 0.03, 0.01), 2000
# Fewer labels from nothing would learn headers by heart: of 20 the AUC is .946 with them and .960 without, of 50 .984
# and .987, of 200 .997 and .996 (docs/lab-notes.md).
HEADERS_FROM = 200
TOLERANCE, FLAT = 1e-5, 0.01
MLP_WIDTH, MLP_EPOCHS, MLP_BATCH = 512, 10, 32


@dataclass(frozen=True, slots=True)
class Penalties:
    """L2 penalty of each part: half of it times the squared weights is added to the summed log loss.

    None leaves the part out. The defaults were chosen by cross-validation (docs/lab-notes.md).
    """

    deep: float | None = 1000.0
    wide: float | None = 0.03
    structure: float | None = 30.0
    headers: float | None = 0.03

    def times(self, strength: float) -> Penalties:
        parts = {name: value if value is None else value * strength for name, value in asdict(self).items()}
        return Penalties(**parts)


DEFAULT_PENALTIES = Penalties()


@dataclass(frozen=True, slots=True)
class Fitted:
    """A calibrated head, and what it said of each message when that message was not in its training folds.

    `strength` is what the penalties were multiplied by.
    """

    head: AdditiveHead | MlpHead
    cutoffs: Cutoffs
    out_of_fold: Array
    strength: float


def fit(
    features: Features,
    labels: Labels,
    *,
    columns: int,
    kind: Literal["additive", "mlp"] = "additive",
    weights: Array | None = None,
    groups: Sequence[str] | None = None,
    penalties: Penalties = DEFAULT_PENALTIES,
    prior: AdditiveHead | None = None,
    rates: Rates = Rates(),  # noqa: B008 (frozen)
    careful: float = SPAM_BOUNDS[0],
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Fitted:
    """Fit, calibrate on out-of-fold logits, and choose cut-offs from them.

    `weights` (n,) default to equal weight of both classes; messages of one of `groups` never stand in a training
    fold and its test fold at once. `rates` and `careful` choose the cut-offs (cutoffs.py). Raises CorpusError if a
    class is missing or too small.
    """
    few = min(int((labels == 0).sum()), int((labels == 1).sum()))
    if few < LEAST_OF_A_CLASS:
        ham, spam = int((labels == 0).sum()), int((labels == 1).sum())
        raise CorpusError(f"{ham} ham and {spam} spam: a head needs at least {LEAST_OF_A_CLASS} of each")
    weights = balanced(labels) if weights is None else weights * len(weights) / weights.sum()

    def once(chosen: npt.NDArray[np.int64], strength: float) -> AdditiveHead | MlpHead:
        part = take(features, chosen)
        if kind == "mlp":
            return fit_mlp(part, labels[chosen], weights[chosen], seed=seed)
        return fit_additive(part, labels[chosen], weights[chosen], columns, penalties.times(strength), prior)

    if groups is not None and len(set(groups)) < 2:
        raise CorpusError("all mail is of one group: none can be held out")
    if groups is None:
        splitter = StratifiedKFold(min(FOLDS, few), shuffle=True, random_state=seed)
    else:
        splitter = StratifiedGroupKFold(min(FOLDS, few, len(set(groups))), shuffle=True, random_state=seed)
    folds = list(splitter.split(labels, labels, groups))
    strengths = STRENGTHS if kind == "additive" and len(labels) < FEW else STRENGTHS[:1]
    if len(labels) < HEADERS_FROM and prior is None:
        penalties = replace(penalties, headers=None)
    steps = len(strengths) * len(folds) + 1
    tried: list[tuple[float, float, Array]] = []
    for strength in strengths:
        given = np.empty(len(labels))
        for done, (train, test) in enumerate(folds):
            given[test] = logits(once(train, strength), take(features, test))
            if progress:
                progress(len(tried) * len(folds) + done + 1, steps)
        tried.append((log_loss(given, labels, weights), strength, given))
    _, strength, out_of_fold = min(tried, key=lambda one: one[0])
    slope, offset = calibrate(out_of_fold, labels, weights)
    head = calibrated(once(np.arange(len(labels)), strength), slope, offset)
    probabilities = 1 / (1 + np.exp(-(slope * out_of_fold + offset)))
    if progress:
        progress(steps, steps)
    ham = labels == 0
    return Fitted(head, choose_cutoffs(probabilities[ham], weights[ham], rates, careful), probabilities, strength)


def fit_additive(
    features: Features, labels: Labels, weights: Array, columns: int, penalties: Penalties, prior: AdditiveHead | None
) -> AdditiveHead:
    """Minimise the weighted log loss plus penalties over all parts at once; logits are not calibrated yet.

    With a prior, its scales and idf are kept and the distance from its weights is penalised instead of their size.
    """
    base = _scales(features, weights, columns) if prior is None else prior
    blocks: dict[str, _Block] = {}
    if penalties.deep is not None:
        spread = _spread(features.deep, weights)
        deep = ((features.deep - base.deep_center) / spread).astype(np.float32)
        blocks["deep"] = _dense_block(deep, weights, penalties.deep, unit=spread)
    if penalties.wide is not None:
        words = tfidf([row.text(columns) for row in features.wide], base.wide_idf)
        blocks["wide"] = _sparse_block(words, weights, penalties.wide)
    if penalties.structure is not None:
        structure = standardise(features.structure, base.structure_center, base.structure_scale)
        blocks["structure"] = _dense_block(structure, weights, penalties.structure, unit=np.ones(structure.shape[1]))
    if penalties.headers is not None:
        header_words = [row.headers(columns) for row in features.wide]
        if not base.reads_headers:
            unread = np.zeros(HEADER_COLUMNS, np.float32)
            base = replace(base, header_idf=_idf(header_words, HEADER_COLUMNS), header_weight=unread)
        blocks["header"] = _sparse_block(tfidf(header_words, base.header_idf), weights, penalties.headers)
    bias, steps = _minimise(list(blocks.values()), labels, weights, logits(base, features).astype(np.float64))
    fitted = {
        f"{name}_weight": (getattr(base, f"{name}_weight") + block.restore(step)).astype(np.float32)
        for (name, block), step in zip(blocks.items(), steps, strict=True)
    }
    return replace(base, bias=(base.bias + bias).astype(np.float32), **fitted)


@dataclass(frozen=True, slots=True)
class _Block:
    """One part's columns in coordinates in which the loss is round, so that few steps reach its minimum.

    `matrix` (n, r), `penalty` of each coordinate (r,), and `restore`: coordinates -> change of the part's weights.
    """

    matrix: FloatArray | sparse.csr_array
    penalty: Array
    restore: Callable[[Array], Array]


def _dense_block(values: FloatArray, weights: Array, penalty: float, unit: Array) -> _Block:
    """Coordinates along the eigenvectors of the (greatest) Hessian of the log loss, scaled by its eigenvalues."""
    scaled = values * np.sqrt(weights[:, None] / 4).astype(np.float32)
    if len(values) < values.shape[1]:
        _, singular, rows = np.linalg.svd(scaled, full_matrices=False)
        curvature, axes = singular**2, rows.T
    else:
        curvature, axes = np.linalg.eigh(scaled.T @ scaled)
    # Where the data are this much flatter than the penalty, a weight would be shrunk to nothing anyhow.
    seen = curvature > FLAT * penalty
    scale = 1 / np.sqrt(curvature[seen] + penalty)
    basis = axes[:, seen] * scale
    return _Block(values @ basis.astype(np.float32), penalty * scale**2, lambda step: (basis @ step) / unit)


def _sparse_block(values: sparse.csr_array, weights: Array, penalty: float) -> _Block:
    """Coordinates of the columns that occur, scaled by the diagonal of the Hessian."""
    values.eliminate_zeros()
    columns, occurring = values.shape[1], np.unique(values.indices)
    values = values[:, occurring]
    scale = 1 / np.sqrt((values**2).T @ weights / 4 + penalty)

    def restore(step: Array) -> Array:
        change = np.zeros(columns)
        change[occurring] = step * scale
        return change

    data = values.data * scale[values.indices].astype(np.float32)
    scaled = sparse.csr_array((data, values.indices, values.indptr), shape=values.shape)
    return _Block(scaled, penalty * scale**2, restore)


def _minimise(blocks: Sequence[_Block], labels: Labels, weights: Array, offset: Array) -> tuple[float, list[Array]]:
    """The bias's change and each block's coordinates at the minimum; `offset` (n,) are the logits at the start."""
    sign = 2.0 * labels - 1.0
    spans = [slice(a, b) for a, b in pairwise(np.cumsum([1] + [len(block.penalty) for block in blocks]))]
    sides = [
        (block.matrix, block.matrix.T.tocsr() if sparse.issparse(block.matrix) else block.matrix.T)
        for block in blocks
    ]

    def loss(x: Array) -> tuple[float, Array]:
        margin = offset + x[0]
        for (matrix, _), span in zip(sides, spans, strict=True):
            margin = margin + matrix @ x[span].astype(np.float32)
        margin *= sign
        value = float(weights @ np.logaddexp(0.0, -margin))
        slope = -weights * sign / (1.0 + np.exp(np.clip(margin, -500, 500)))
        gradient = np.empty_like(x)
        gradient[0] = slope.sum()
        for block, (_, transposed), span in zip(blocks, sides, spans, strict=True):
            value += 0.5 * float(block.penalty @ x[span] ** 2)
            gradient[span] = transposed @ slope.astype(np.float32) + block.penalty * x[span]
        return value, gradient

    # scipy's L-BFGS-B spends five times as long on its (absent) bounds as on this loss; torch's has none.
    import torch

    x = torch.zeros(spans[-1].stop if spans else 1, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS(
        [x], max_iter=300, history_size=10, tolerance_grad=TOLERANCE * weights.sum(), line_search_fn="strong_wolfe"
    )

    def step() -> float:
        with np.errstate(over="ignore", invalid="ignore"):  # the line search may look too far, and comes back
            value, gradient = loss(x.detach().numpy())
        x.grad = torch.from_numpy(gradient)
        return value

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # its vectors are too short to share: waiting for the other thread took a second
    try:
        optimiser.step(step)  # type: ignore[no-untyped-call]
    finally:
        torch.set_num_threads(threads)
    found = x.detach().numpy()
    if not np.isfinite(found).all():
        raise CorpusError("no head fits this mail: its features are not finite or too large")
    return float(found[0]), [found[span] for span in spans]


def tfidf(rows: Sequence[Counts], idf: FloatArray) -> sparse.csr_array:
    """The wide part as a sparse matrix, shape (n, columns)."""
    ends = np.cumsum([0] + [len(row.columns) for row in rows])
    values = np.concatenate([weigh(row, idf) for row in rows]) if rows else np.empty(0, np.float32)
    columns = np.concatenate([row.columns for row in rows]) if rows else np.empty(0, np.uint32)
    return sparse.csr_array((values, columns.astype(np.int32), ends), shape=(len(rows), len(idf)))


def _spread(values: FloatArray, weights: Array) -> Array:
    """Weighted standard deviation of each column; 1 where it does not vary."""
    mean = np.average(values, axis=0, weights=weights)
    deviation = np.sqrt(np.average((values - mean) ** 2, axis=0, weights=weights))
    return np.where(deviation > 1e-6, deviation, 1.0)


def _scales(features: Features, weights: Array, columns: int) -> AdditiveHead:
    """Centres, scales and idf of the training mail, with all weights zero."""
    return AdditiveHead(
        bias=np.zeros(1, np.float32),
        deep_center=np.average(features.deep, axis=0, weights=weights).astype(np.float32),
        deep_weight=np.zeros(features.deep.shape[1], np.float32),
        wide_idf=_idf([row.text(columns) for row in features.wide], columns),
        wide_weight=np.zeros(columns, np.float32),
        structure_center=np.average(features.structure, axis=0, weights=weights).astype(np.float32),
        # A rare feature would get a huge standard score: no scale below a tenth of a unit.
        structure_scale=np.maximum(_spread(features.structure, weights), 0.1).astype(np.float32),
        structure_weight=np.zeros(features.structure.shape[1], np.float32),
        header_idf=np.empty(0, np.float32),
        header_weight=np.empty(0, np.float32),
    )


def _idf(rows: Sequence[Counts], columns: int) -> FloatArray:
    """Inverse document frequency of each column, shape (columns,)."""
    frequency = np.bincount(np.concatenate([row.columns for row in rows]), minlength=columns)
    # A column seen once says nothing that travels: it gets no weight (idf 0 keeps it out of the norm too).
    idf: FloatArray = np.where(frequency > 1, np.log((1 + len(rows)) / (1 + frequency)) + 1, 0.0).astype(np.float32)
    return idf


def fit_mlp(features: Features, labels: Labels, weights: Array, *, seed: int = 0) -> MlpHead:
    """The tutorial's head: dense 512, ReLU, dropout 0.1, dense 2, softmax; AdamW 1e-3, 10 epochs of batches of 32."""
    import torch
    from torch import nn

    torch.manual_seed(seed)
    inputs, targets = torch.from_numpy(features.deep), torch.from_numpy(labels)
    cost = torch.from_numpy(weights.astype(np.float32))
    hidden, output = nn.Linear(inputs.shape[1], MLP_WIDTH), nn.Linear(MLP_WIDTH, 2)
    net = nn.Sequential(hidden, nn.ReLU(), nn.Dropout(0.1), output)
    optimiser = torch.optim.AdamW(net.parameters(), lr=1e-3)
    net.train()
    for _ in range(MLP_EPOCHS):
        for chosen in torch.split(torch.randperm(len(labels)), MLP_BATCH):
            optimiser.zero_grad()
            losses = nn.functional.cross_entropy(net(inputs[chosen]), targets[chosen], reduction="none")
            (losses @ cost[chosen] / cost[chosen].sum()).backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimiser.step()
    return MlpHead(
        hidden_weight=hidden.weight.detach().numpy().T.copy(),
        hidden_bias=hidden.bias.detach().numpy().copy(),
        output_weight=output.weight.detach().numpy().T.copy(),
        output_bias=output.bias.detach().numpy().copy(),
        calibration=np.asarray([1, 0], dtype=np.float32),
    )


def log_loss(given: Array, labels: Labels, weights: Array) -> float:
    """Weighted mean of the log loss of logits (n,)."""
    return float(weights @ np.logaddexp(0, -(2 * labels - 1) * given) / weights.sum())


def calibrate(given: Array, labels: Labels, weights: Array) -> tuple[float, float]:
    """Slope and offset that turn out-of-fold logits into calibrated ones (Platt 1999), drawn towards (1, 0)."""

    def loss(x: Array) -> float:
        margin = (2 * labels - 1) * (x[0] * given + x[1])
        return float(weights @ np.logaddexp(0, -margin)) + 0.5 * float((x[0] - 1) ** 2 + x[1] ** 2)

    slope, offset = minimize(loss, np.asarray([1.0, 0.0]), method="L-BFGS-B", bounds=[(0.05, 5), (-5, 5)]).x
    return float(slope), float(offset)


def calibrated(head: AdditiveHead | MlpHead, slope: float, offset: float) -> AdditiveHead | MlpHead:
    """The head with calibration folded into its weights, so that its parts still sum to its logit."""
    if isinstance(head, MlpHead):
        before, shift = head.calibration.astype(np.float64)
        return replace(head, calibration=np.asarray([slope * before, slope * shift + offset], dtype=np.float32))
    scaled = {
        name: getattr(head, name) * np.float32(slope)
        for name in ("deep_weight", "wide_weight", "structure_weight", "header_weight")
    }
    return replace(head, bias=(head.bias * slope + offset).astype(np.float32), **scaled)


def balanced(labels: Labels) -> Array:
    """Weights (n,) that sum to n and give both classes the same sum."""
    counts = np.bincount(labels, minlength=2)
    return np.asarray(len(labels) / (2.0 * counts))[labels]


def take(features: Features, chosen: npt.NDArray[np.int64]) -> Features:
    """The chosen messages' features."""
    return Features(features.deep[chosen], [features.wide[i] for i in chosen], features.structure[chosen])
