"""A head of random weights, of any shape that a test asks for."""

from __future__ import annotations

import numpy as np

from spamguard.head import AdditiveHead, MlpHead
from spamguard.header_words import HEADER_COLUMNS


def random_head(
    kind: str, seed: int = 0, *, dim: int, columns: int, structure: int, hidden: int = 8, headers: bool = True
) -> AdditiveHead | MlpHead:
    rng = np.random.default_rng(seed)

    def draw(*shape: int) -> np.ndarray:
        return rng.normal(size=shape).astype(np.float32)

    if kind == "mlp":
        return MlpHead(draw(dim, hidden), draw(hidden), draw(hidden, 2), draw(2), draw(2))
    return AdditiveHead(
        bias=draw(1),
        deep_center=draw(dim),
        deep_weight=draw(dim),
        wide_idf=np.abs(draw(columns)),
        wide_weight=draw(columns),
        structure_center=draw(structure),
        structure_scale=np.abs(draw(structure)) + 0.1,
        structure_weight=draw(structure),
        header_idf=np.abs(draw(HEADER_COLUMNS if headers else 0)),
        header_weight=draw(HEADER_COLUMNS if headers else 0),
    )
