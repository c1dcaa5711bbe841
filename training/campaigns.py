"""Near-duplicates among messages of which only the token counts are kept, and how much of them a fit hears."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import sparse
from scipy.sparse.csgraph import connected_components

from spamguard.wide import Counts

Array = npt.NDArray[np.float64]
Columns = npt.NDArray[np.uint32]

# Candidates are found by MinHash (Broder 1997) of the set of tokens: two messages whose least values are equal in a
# whole band. With 60 % common tokens they share one with probability 0.96.
_BANDS, _ROWS = 24, 4
# Share of common tokens (Jaccard) from which two messages are alike: so the groups come nearest to those that word
# 3-shingles of the texts themselves give (docs/lab-notes.md).
ALIKE = 0.6
_PAIRS_A_STEP = 4096


def campaigns(rows: Sequence[Counts], vocabulary: int) -> list[int]:
    """The number of a group for each message; messages of which 60 % of the tokens are common are of one group.

    So are chains of them. A number is that of the group's first message; a message without tokens is alone. How
    often a token occurs, and words of headers, are not looked at. Time is linear: a message is compared with the
    first one of each band it falls in.
    """
    sets = [row.text(vocabulary).columns for row in rows]
    worded = np.flatnonzero([len(one) > 0 for one in sets])
    if not len(worded):
        return list(range(len(rows)))
    signatures = _signatures([sets[i] for i in worded], vocabulary)
    found = []
    for band in np.split(signatures, _BANDS, axis=1):
        keys = np.ascontiguousarray(band).view([("", band.dtype)] * _ROWS).ravel()
        _, first, same = np.unique(keys, return_index=True, return_inverse=True)
        found.append(np.stack([first[same.ravel()], np.arange(len(worded))], axis=1))
    pairs = worded[np.unique(np.concatenate(found), axis=0)]
    pairs = pairs[pairs[:, 0] != pairs[:, 1]]
    one, other = pairs[_alike(sets, pairs, vocabulary)].T
    links = sparse.coo_array((np.ones(len(one)), (one, other)), shape=(len(rows), len(rows)))
    _, group = connected_components(links, directed=False)
    _, first, member = np.unique(group, return_index=True, return_inverse=True)
    return [int(number) for number in first[member.ravel()]]


def bounded(weights: Array, groups: Sequence[int]) -> Array:
    """Weights (n,) in which a group that weighed w > 1 together weighs sqrt(w), shared out as before."""
    _, group = np.unique(np.asarray(groups), return_inverse=True)
    total = np.bincount(group, weights)
    return np.asarray(weights / np.sqrt(np.maximum(total, 1.0))[group])


def training_weights(table: pd.DataFrame, groups: Sequence[int]) -> Array:
    """What each row of the table weighs in a fit: its own weight, its campaign bounded, and both classes alike.

    Shape (n,), the sum is n. `table` has the columns label (1 is spam) and weight.
    """
    weights = bounded(table["weight"].to_numpy(dtype=np.float64), groups)
    label = table["label"].to_numpy(dtype=np.int64)
    classes = np.bincount(label, weights, minlength=2)
    present = np.count_nonzero(classes)
    return np.asarray(weights * len(weights) / (present * classes[label]))


def _signatures(sets: Sequence[Columns], vocabulary: int) -> npt.NDArray[np.uint32]:
    """The least value of each hash function over each set, none of them empty; shape (n, bands x rows)."""
    random = np.random.default_rng(1)
    found = np.empty((len(sets), _BANDS * _ROWS), np.uint32)
    columns, starts = np.concatenate(sets), np.cumsum([0] + [len(one) for one in sets[:-1]])
    for number in range(_BANDS * _ROWS):
        value = random.integers(0, 1 << 32, vocabulary, dtype=np.uint32)
        found[:, number] = np.minimum.reduceat(value[columns], starts)
    return found


def _alike(sets: Sequence[Columns], pairs: npt.NDArray[np.int64], vocabulary: int) -> npt.NDArray[np.bool_]:
    """Whether the sets of each pair (m, 2) have so much in common."""
    sizes = np.asarray([len(one) for one in sets])
    shape = (len(sets), vocabulary)
    table = sparse.csr_array((np.ones(sizes.sum(), np.int32), np.concatenate(sets), np.cumsum([0, *sizes])), shape)
    common = np.empty(len(pairs))
    for start in range(0, len(pairs), _PAIRS_A_STEP):
        one, other = pairs[start : start + _PAIRS_A_STEP].T
        common[start : start + _PAIRS_A_STEP] = table[one].multiply(table[other]).sum(axis=1)
    return np.asarray(common >= ALIKE * (sizes[pairs].sum(axis=1) - common))
