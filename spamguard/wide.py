"""The wide part's view of a text: how often each WordPiece id occurs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .encoder import FloatArray, TokenIds

# Part of every cache key and bundle: raise it when the same tokens would give other columns.
WIDE_VERSION = 1
# Tokens of a message that are counted. The encoder reads fewer; counting costs next to nothing.
WIDE_TOKENS = 1024


@dataclass(frozen=True, slots=True)
class Counts:
    """Occurring columns, ascending, and how often each occurs; both of shape (u,)."""

    columns: npt.NDArray[np.uint32]
    counts: npt.NDArray[np.uint16]


def count(tokens: TokenIds) -> Counts:
    """Count the ids of a text's tokens; an id is its column.

    Hashed pairs of neighbouring ids beside them were tried: AUC .99928 against .99919 in 3-fold cross-validation on
    the SpamAssassin training part, within the noise, for twice the time to fit and three times the size.
    """
    columns, counts = np.unique(tokens.astype(np.uint32), return_counts=True)
    return Counts(columns, np.minimum(counts, np.iinfo(np.uint16).max).astype(np.uint16))


def weigh(row: Counts, idf: FloatArray) -> FloatArray:
    """tf-idf of each occurring column, shape (u,): (1 + ln count) * idf, scaled to length 1."""
    values = (1.0 + np.log(row.counts.astype(np.float32))) * idf[row.columns]
    length = float(np.sqrt(values @ values))
    result: FloatArray = (values / length if length else values).astype(np.float32)
    return result
