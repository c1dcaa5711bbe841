"""The wide part's view of a text: how often each WordPiece id, and each pair of neighbours, occurs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .encoder import FloatArray, TokenIds

# Part of every cache key and bundle: raise it when the same tokens would give other columns.
WIDE_VERSION = 1
# Tokens of a message that are counted. The encoder reads fewer; counting costs next to nothing.
WIDE_TOKENS = 1024
# Pairs of neighbouring ids are hashed into this many columns behind the single ids.
PAIR_COLUMNS = 1 << 16


@dataclass(frozen=True, slots=True)
class Counts:
    """Occurring columns, ascending, and how often each occurs; both of shape (u,)."""

    columns: npt.NDArray[np.uint32]
    counts: npt.NDArray[np.uint16]


def width(vocab_size: int) -> int:
    """Number of columns of the wide part."""
    return vocab_size + PAIR_COLUMNS


def pair_columns(tokens: TokenIds, vocab_size: int) -> npt.NDArray[np.uint32]:
    """The column of each pair of neighbours, shape (len(tokens) - 1,): Fibonacci hashing (Knuth, TAOCP 6.4)."""
    ids = tokens.astype(np.uint64)
    mixed = (ids[:-1] * np.uint64(0x9E3779B97F4A7C15)) ^ (ids[1:] * np.uint64(0xC2B2AE3D27D4EB4F))
    mixed *= np.uint64(0x9E3779B97F4A7C15)
    hashed = (mixed >> np.uint64(48)).astype(np.uint32) % np.uint32(PAIR_COLUMNS)
    return (hashed + np.uint32(vocab_size)).astype(np.uint32)


def count(tokens: TokenIds, vocab_size: int) -> Counts:
    """Count ids and pairs of a text's tokens."""
    singles = tokens.astype(np.uint32)
    columns, counts = np.unique(np.concatenate([singles, pair_columns(tokens, vocab_size)]), return_counts=True)
    return Counts(columns, np.minimum(counts, np.iinfo(np.uint16).max).astype(np.uint16))


def weigh(row: Counts, idf: FloatArray) -> FloatArray:
    """tf-idf of each occurring column, shape (u,): (1 + ln count) * idf, scaled to length 1."""
    values = (1.0 + np.log(row.counts.astype(np.float32))) * idf[row.columns]
    length = float(np.sqrt(values @ values))
    result: FloatArray = (values / length if length else values).astype(np.float32)
    return result
