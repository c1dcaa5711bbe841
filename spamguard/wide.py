"""The wide part: how often each WordPiece id occurs in the text of a message, and which words in its headers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .encoder import FloatArray, TokenIds

# Part of every cache key and bundle: raise it when the same tokens would give other columns.
WIDE_VERSION = 2
# Tokens of a message that are counted. The encoder reads fewer; counting costs next to nothing.
WIDE_TOKENS = 1024


@dataclass(frozen=True, slots=True)
class Counts:
    """Occurring columns, ascending, and how often each occurs; both of shape (u,).

    The columns below the size of the vocabulary are ids of tokens, those from there on words of headers.
    """

    columns: npt.NDArray[np.uint32]
    counts: npt.NDArray[np.uint16]

    def text(self, vocabulary: int) -> Counts:
        """The part that counts tokens."""
        end = int(np.searchsorted(self.columns, vocabulary))
        return Counts(self.columns[:end], self.counts[:end])

    def headers(self, vocabulary: int) -> Counts:
        """The part that counts words of headers, its columns counted from 0."""
        start = int(np.searchsorted(self.columns, vocabulary))
        return Counts(self.columns[start:] - np.uint32(vocabulary), self.counts[start:])


def count(tokens: TokenIds, headers: npt.NDArray[np.uint32], vocabulary: int) -> Counts:
    """Count the ids of a text's tokens; an id is its column. `headers`: columns of header words, ascending, from 0.

    Hashed pairs of neighbouring ids beside them were tried: AUC .99928 against .99919 in 3-fold cross-validation on
    the SpamAssassin training part, within the noise, for twice the time to fit and three times the size.
    """
    columns, counts = np.unique(tokens.astype(np.uint32), return_counts=True)
    counts = np.minimum(counts, np.iinfo(np.uint16).max).astype(np.uint16)
    return Counts(
        np.concatenate([columns, headers + np.uint32(vocabulary)]),
        np.concatenate([counts, np.ones(len(headers), np.uint16)]),
    )


def weigh(row: Counts, idf: FloatArray) -> FloatArray:
    """tf-idf of each occurring column, shape (u,): (1 + ln count) * idf, scaled to length 1."""
    values = (1.0 + np.log(row.counts.astype(np.float32))) * idf[row.columns]
    length = float(np.sqrt(values @ values))
    result: FloatArray = (values / length if length else values).astype(np.float32)
    return result
