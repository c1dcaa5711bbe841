"""The head: what the encoder, the words and the structure say, added up to one probability.

Every head turns `Features` into logits and tells how much of each logit is due to each part.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import ClassVar, Protocol

import numpy as np

from .encoder import FloatArray
from .header_words import HEADER_COLUMNS
from .wide import Counts, weigh

# Standardised structure features are cut here: one odd message must not outvote its text.
STRUCTURE_LIMIT = 4.0
# A calibrated head never claims more than this (probability 0.99995).
LOGIT_LIMIT = 10.0


@dataclass(frozen=True, slots=True)
class Features:
    """What a head sees of n messages: deep (n, dim), wide (n rows), structure (n, k)."""

    deep: FloatArray
    wide: Sequence[Counts]
    structure: FloatArray

    def __len__(self) -> int:
        return len(self.wide)


@dataclass(frozen=True, slots=True)
class Row:
    """What a head sees of one message: deep (dim,), wide, structure (k,)."""

    deep: FloatArray
    wide: Counts
    structure: FloatArray


def stack(rows: Sequence[Row]) -> Features:
    """Rows of n messages as the arrays that a head reads."""
    return Features(
        np.stack([row.deep for row in rows]),
        [row.wide for row in rows],
        np.stack([row.structure for row in rows]),
    )


class Head(Protocol):
    """Features -> logits. `parts` of each message sum to its logit."""

    kind: ClassVar[str]

    def parts(self, features: Features) -> dict[str, FloatArray]:
        """Each part's share of the logit, shape (n,) each; they sum to the logit."""
        ...

    def check(self, dim: int, columns: int, structure: int) -> str | None:
        """What does not fit an encoder of this width, in words; None if all fits."""
        ...


@dataclass(frozen=True, slots=True)
class AdditiveHead:
    """logit = bias + (deep - deep_center) . deep_weight + tfidf(text) . wide_weight + structure' . structure_weight
    + tfidf(headers) . header_weight

    where structure' = clip((structure - center) / scale). Scales and calibration are folded into the weights, so
    that each share is exact. Shapes: deep_* (dim,), wide_* (columns,), structure_* (k,), bias (1,), and header_*
    (HEADER_COLUMNS,), or (0,) in a head that does not read them.
    """

    kind: ClassVar[str] = "additive"

    bias: FloatArray
    deep_center: FloatArray
    deep_weight: FloatArray
    wide_idf: FloatArray
    wide_weight: FloatArray
    structure_center: FloatArray
    structure_scale: FloatArray
    structure_weight: FloatArray
    header_idf: FloatArray
    header_weight: FloatArray

    @property
    def reads_headers(self) -> bool:
        return self.header_weight.size > 0

    def parts(self, features: Features) -> dict[str, FloatArray]:
        n, vocabulary = len(features), len(self.wide_idf)
        wide = [float(self.word_shares(row.text(vocabulary)).sum()) for row in features.wide]
        parts = {
            "bias": np.full(n, self.bias[0], dtype=np.float32),
            "deep": ((features.deep - self.deep_center) @ self.deep_weight).astype(np.float32),
            "wide": np.asarray(wide, dtype=np.float32),
            "structure": self.structure_shares(features.structure).sum(1),
        }
        if self.reads_headers:
            shares = [float(self.header_shares(row.headers(vocabulary)).sum()) for row in features.wide]
            parts["headers"] = np.asarray(shares, dtype=np.float32)
        return parts

    def word_shares(self, row: Counts) -> FloatArray:
        """Share of each occurring column of one message's text, shape (u,)."""
        shares: FloatArray = weigh(row, self.wide_idf) * self.wide_weight[row.columns]
        return shares

    def header_shares(self, row: Counts) -> FloatArray:
        """Share of each occurring column of one message's headers, shape (u,)."""
        if not self.reads_headers:
            return np.zeros(len(row.columns), np.float32)
        shares: FloatArray = weigh(row, self.header_idf) * self.header_weight[row.columns]
        return shares

    def structure_shares(self, structure: FloatArray) -> FloatArray:
        """Share of each structure feature, shape (n, k)."""
        standard = standardise(structure, self.structure_center, self.structure_scale)
        return (standard * self.structure_weight).astype(np.float32)

    def check(self, dim: int, columns: int, structure: int) -> str | None:
        headers = HEADER_COLUMNS if self.reads_headers else 0
        wanted = {"bias": 1, "deep": dim, "wide": columns, "structure": structure, "header": headers}
        for field in fields(self):
            shape, size = getattr(self, field.name).shape, wanted[field.name.split("_")[0]]
            if shape != (size,):
                return f"{field.name} has shape {shape}, {(size,)} is needed"
        return None if (self.structure_scale > 0).all() else "structure_scale must be above zero"


@dataclass(frozen=True, slots=True)
class MlpHead:
    """The tutorial's head on the deep part alone: dense, ReLU, (dropout when fitting), dense, softmax.

    Shapes: hidden_weight (dim, h), hidden_bias (h,), output_weight (h, 2), output_bias (2,), and calibration
    (2,): logit = calibration[0] * (z_spam - z_ham) + calibration[1].
    """

    kind: ClassVar[str] = "mlp"

    hidden_weight: FloatArray
    hidden_bias: FloatArray
    output_weight: FloatArray
    output_bias: FloatArray
    calibration: FloatArray

    def parts(self, features: Features) -> dict[str, FloatArray]:
        hidden = np.maximum(features.deep @ self.hidden_weight + self.hidden_bias, 0.0)
        scores = hidden @ self.output_weight + self.output_bias
        margin = self.calibration[0] * (scores[:, 1] - scores[:, 0])
        return {
            "bias": np.full(len(features), self.calibration[1], dtype=np.float32),
            "deep": margin.astype(np.float32),
        }

    def check(self, dim: int, columns: int, structure: int) -> str | None:
        h = self.hidden_bias.size
        wanted = {
            "hidden_weight": (dim, h),
            "hidden_bias": (h,),
            "output_weight": (h, 2),
            "output_bias": (2,),
            "calibration": (2,),
        }
        for name, shape in wanted.items():
            if getattr(self, name).shape != shape:
                return f"{name} has shape {getattr(self, name).shape}, {shape} is needed"
        return None


HEADS: dict[str, type[AdditiveHead] | type[MlpHead]] = {h.kind: h for h in (AdditiveHead, MlpHead)}


def logits(head: Head, features: Features) -> FloatArray:
    """The sum of the parts, shape (n,)."""
    total: FloatArray = np.sum(list(head.parts(features).values()), axis=0)
    return total


def standardise(structure: FloatArray, center: FloatArray, scale: FloatArray) -> FloatArray:
    """Structure features in standard units, cut at STRUCTURE_LIMIT; shape (n, k)."""
    standard: FloatArray = np.clip((structure - center) / scale, -STRUCTURE_LIMIT, STRUCTURE_LIMIT).astype(np.float32)
    return standard


def probability(given: FloatArray) -> FloatArray:
    """The logistic function, never nearer to 0 or 1 than LOGIT_LIMIT allows."""
    bounded = np.clip(given.astype(np.float64), -LOGIT_LIMIT, LOGIT_LIMIT)
    result: FloatArray = (1.0 / (1.0 + np.exp(-bounded))).astype(np.float32)
    return result
