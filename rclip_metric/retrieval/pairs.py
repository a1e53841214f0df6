"""The pairs of many embeddings, image by image, so that memory does not grow with their number."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rclip_metric.distance import distance_between
from rclip_metric.retrieval.neighbours import QUERIES, near_pairs, nearest

_COLUMNS = 2**12  # embeddings that are widened to float64 at a time
_MOST_ROWS, _ENTRIES = 256, 2**21  # distances in memory: 8 MB
_CANCELLED = 1e-8
"""Half a squared difference below this has lost digits in products of float64: it is computed from the difference."""


def all_pairs(units: Tensor, squared: bool = False, *, whole: bool = False) -> Iterator[tuple[int, Tensor]]:
    """Yield for each i the distances of embedding i to i + 1, i + 2, ...: each pair once.

    From products in float64, so that they are as exact as differences in float32, and many times faster; those of
    embeddings that are all but the same come from differences, and are 0 where they are the same.

    Args:
        units: (N, D) of unit length.
        squared: Yield squared distances.
        whole: Yield the distances to all of them, (N,), that to itself among them: the rows of a symmetric matrix.

    Example:
        >>> [(i, row.tolist()) for i, row in all_pairs(torch.eye(3), squared=True)]
        [(0, [1.0, 1.0]), (1, [1.0]), (2, [])]
        >>> torch.stack([row for _, row in all_pairs(torch.eye(2), squared=True, whole=True)])
        tensor([[0., 1.],
                [1., 0.]])
    """
    units = units.detach().cpu().float()
    count = len(units)
    step = min(_MOST_ROWS, max(16, _ENTRIES // max(1, count)))
    for start in range(0, count, step):
        first = 0 if whole else start
        for place, row in enumerate(_distances(units[start : start + step], units[first:], squared)):
            yield start + place, row if whole else row[place + 1 :]


def _distances(rows: Tensor, others: Tensor, squared: bool) -> Tensor:
    """Compute (R, N) distances."""
    found = torch.empty(len(rows), len(others))
    with torch.inference_mode():
        wide = rows.double()
        lengths = wide.square().sum(1)
        for part, out in zip(others.split(_COLUMNS), found.split(_COLUMNS, dim=1), strict=True):
            columns = part.double()
            half = (lengths[:, None] + columns.square().sum(1)).mul_(0.5).addmm_(wide, columns.T, alpha=-1)
            near = (half < _CANCELLED).nonzero(as_tuple=True)
            half.clamp_(0, 2)
            out.copy_(half if squared else half.sqrt_())
            out[near] = distance_between(rows[near[0]], part[near[1]], squared)
    return found


def pairs_below(units: Tensor, below: float, squared: bool = False) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Yield for each i that has any the later embeddings that are nearer to it than `below`, and their distances.

    Raises:
        ValueError: `below` is not a positive number.

    Example:
        >>> alike = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.8, 0.6]])
        >>> [(i, others.tolist(), round(near.item(), 4)) for i, others, near in pairs_below(alike, 0.5)]
        [(0, [2], 0.4472)]
    """
    for pairs, distances in near_pairs(units, below, squared=squared):
        firsts, counts = pairs[:, 0].unique_consecutive(return_counts=True)
        sizes = counts.tolist()
        parts = zip(firsts.tolist(), pairs[:, 1].split(sizes), distances.split(sizes), strict=True)
        yield from ((i, others.cpu(), near.cpu()) for i, others, near in parts)


def nearest_others(units: Tensor, k: int, squared: bool = False) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Yield for each i the k nearest of the others, nearest first, and their distances; all if they are fewer.

    Raises:
        ValueError: k is below 1.

    Example:
        >>> alike = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.8, 0.6]])
        >>> [(i, others.tolist()) for i, others, _ in nearest_others(alike, 1)]
        [(0, [2]), (1, [2]), (2, [0])]
    """
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    for start in range(0, len(units), QUERIES):
        # One more, for itself, which is not always the first: copies of it come in the order of their rows.
        found = nearest(units[start : start + QUERIES], units, k + 1, squared=squared)
        for i, (distances, rows) in enumerate(zip(*(part.cpu() for part in found), strict=True), start):
            others = rows != i
            yield i, rows[others][:k], distances[others][:k]


def chosen_pairs(
    units: Tensor, squared: bool = False, *, top: int | None = None, below: float | None = None
) -> Iterator[tuple[int, Sequence[int], np.ndarray[Any, np.dtype[np.float32]]]]:
    """Yield for each i the others (P,) that it is paired with, and their distances (P,).

    Args:
        units: (N, D) of unit length.
        squared: Yield squared distances.
        top: Of each the K nearest of all others, nearest first; else each pair once, as it comes.
        below: Only pairs that are nearer than that.

    Example:
        >>> alike = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.8, 0.6]])
        >>> [(i, list(others)) for i, others, _ in chosen_pairs(alike)]
        [(0, [1, 2]), (1, [2]), (2, [])]
        >>> [(i, list(others)) for i, others, _ in chosen_pairs(alike, top=1)]
        [(0, [2]), (1, [2]), (2, [0])]
    """
    if top:
        for i, others, distances in nearest_others(units, top, squared):
            near = distances < below if below else slice(None)  # nearest first
            yield i, others[near].tolist(), distances[near].numpy()
    elif below:
        for i, others, distances in pairs_below(units, below, squared):
            yield i, others.tolist(), distances.numpy()
    else:
        for i, row in all_pairs(units, squared):
            yield i, range(i + 1, len(units)), row.numpy()
