"""A table of labelled mail in three parts: to learn from, to choose by, and to judge on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt
import pandas as pd

Indices = npt.NDArray[np.int64]
Parts = tuple[float, float, float]


def split(
    table: pd.DataFrame,
    groups: Sequence[int],
    seed: int = 0,
    by: Literal["stratified", "time"] = "stratified",
    parts: Parts = (0.7, 0.15, 0.15),
) -> tuple[Indices, Indices, Indices]:
    """Row numbers of train, validation and test, ascending; each row stands in one of them, each group on one side.

    `stratified`: drawn by the seed, both labels in about the same shares everywhere. `time`: the oldest to learn
    from, the latest to judge on; a group is as old as its first message, mail of unknown time counts as the oldest.
    `table` has the columns label (1 is spam) and time (seconds). A part may be 0; where a group is larger than a
    part, the parts come out as near as they can. Raises ValueError for parts that are no shares of one whole.
    """
    if min(parts) < 0 or not np.isclose(sum(parts), 1):
        raise ValueError(f"parts {parts} do not sum to 1")
    labels = table["label"].to_numpy(dtype=np.int64)
    _, group = np.unique(np.asarray(groups), return_inverse=True)
    count = int(group.max(initial=-1)) + 1
    # (groups, 2): messages of each label in each group.
    sizes = np.stack([np.bincount(group[labels == label], minlength=count) for label in (0, 1)], axis=1)
    side = _in_time(table, group, sizes, parts) if by == "time" else _stratified(sizes, parts, seed)
    return tuple(np.flatnonzero(side[group] == part) for part in range(3))  # type: ignore[return-value]


def _stratified(sizes: Indices, parts: Parts, seed: int) -> Indices:
    """The part of each group. Large groups come first, each where most is lacking of what it brings."""
    shuffled = np.random.default_rng(seed).permutation(len(sizes))
    order = shuffled[np.argsort(-sizes[shuffled].sum(axis=1), kind="stable")]
    share = np.asarray(parts)[:, None]
    total = np.maximum(sizes.sum(axis=0), 1)
    lacking = share * sizes.sum(axis=0)  # (parts, 2)
    side = np.empty(len(sizes), np.int64)
    for number in order:
        need = (lacking / total) @ (sizes[number] / sizes[number].sum())
        part = int(np.argmax(np.where(share[:, 0] > 0, need, -np.inf)))
        lacking[part] -= sizes[number]
        side[number] = part
    return side


def _in_time(table: pd.DataFrame, group: Indices, sizes: Indices, parts: Parts) -> Indices:
    """The part of each group, by where its middle message would stand in time."""
    first = np.full(len(sizes), np.inf)
    np.minimum.at(first, group, table["time"].fillna(-np.inf).to_numpy(dtype=np.float64))
    order = np.argsort(first, kind="stable")
    size = sizes.sum(axis=1)[order]
    middle = (np.cumsum(size) - size / 2) / max(int(size.sum()), 1)
    side = np.empty(len(sizes), np.int64)
    side[order] = np.searchsorted(np.cumsum(parts)[:2], middle, side="right")
    return side
