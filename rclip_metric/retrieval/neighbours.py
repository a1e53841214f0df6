"""Exact nearest neighbours among unit embeddings."""

from __future__ import annotations

import torch
from torch import Tensor

from rclip_metric.distance import distance_between

# Rows that are widened to float32 and multiplied at a time: in a processor's cache, or enough for a GPU.
_ROWS, _GPU_ROWS = 2**12, 2**17
# Products of float32 vectors are wrong in the seventh digit: a few candidates more than were asked for are compared
# by their differences, which are not.
_MORE = 8
_SURELY = 1e-3
"""By how much a product may be wrong, of float16 embeddings too."""
_QUERIES = 256


def nearest(queries: Tensor, embeddings: Tensor, k: int, *, squared: bool = False) -> tuple[Tensor, Tensor]:
    """Find the nearest of many unit embeddings, exactly: candidates by products, in chunks, then by differences.

    Args:
        queries: (Q, D) of unit length, on the device of the embeddings.
        embeddings: (N, D) of unit length, float32, float16 or bfloat16. Queries are rounded as they are, so that an
            image is at distance 0 from itself.
        k: How many; all of them if there are fewer.
        squared: Return squared distances.

    Returns:
        Distances (Q, k), float32, in ascending order, and rows (Q, k), int64; of equal distances the first row first.

    Raises:
        ValueError: The shapes do not fit, or k is below 1.

    Example:
        >>> distances, rows = nearest(torch.eye(3)[:1], torch.eye(3), 2)
        >>> distances.tolist(), rows.tolist()
        ([[0.0, 1.0]], [[0, 1]])
    """
    if queries.dim() != 2 or embeddings.dim() != 2 or queries.shape[1] != embeddings.shape[1]:
        raise ValueError(
            f"got queries {tuple(queries.shape)} and embeddings {tuple(embeddings.shape)}, expected (Q, D) and (N, D)"
        )
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    with torch.inference_mode():
        rounded = queries.to(embeddings.dtype)
        candidates = _candidates(rounded, embeddings, min(len(embeddings), k + _MORE))  # (Q, k + more)
        candidates = candidates.sort(dim=1).values  # equal distances stay in the order of their rows
        distances = torch.stack(
            [
                distance_between(query, embeddings[rows], squared)
                for query, rows in zip(rounded, candidates, strict=True)
            ]
        )
        distances, order = distances.sort(dim=1, stable=True)
        return distances[:, :k], candidates.gather(1, order)[:, :k]


def pairs_within(embeddings: Tensor, below: float, *, squared: bool = False) -> tuple[Tensor, Tensor]:
    """Find all pairs of unit embeddings that are nearer to each other than a distance.

    Args:
        embeddings: (N, D) of unit length.
        below: A distance; squared, if distances are.
        squared: Whether they are.

    Returns:
        Pairs (P, 2) of rows, the lower one first, in ascending order, and their distances (P,), float32.

    Raises:
        ValueError: `below` is not a positive number.

    Example:
        >>> alike = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.8, 0.6]])
        >>> pairs, distances = pairs_within(alike, 0.5)
        >>> pairs.tolist(), round(distances.item(), 4)
        ([[0, 2]], 0.4472)
    """
    if not 0 < below < float("inf"):
        raise ValueError(f"the distance must be a positive number, got {below}")
    lowest = 1 - (below if squared else below**2) - _SURELY
    found, apart = [], []
    step = _rows_at_a_time(embeddings)
    with torch.inference_mode():
        for start in range(0, len(embeddings), _QUERIES):
            wide = embeddings[start : start + _QUERIES].float()
            for first in range(start, len(embeddings), step):
                products = wide @ embeddings[first : first + step].float().T
                pairs = (products >= lowest).nonzero() + torch.tensor([start, first], device=products.device)
                pairs = pairs[pairs[:, 0] < pairs[:, 1]]
                for part in pairs.split(step):
                    distances = distance_between(embeddings[part[:, 0]], embeddings[part[:, 1]], squared)
                    near = distances < below
                    found.append(part[near])
                    apart.append(distances[near])
    if not found:
        return torch.empty(0, 2, dtype=torch.int64), torch.empty(0)
    pairs, distances = torch.cat(found), torch.cat(apart)
    order = (pairs[:, 0] * len(embeddings) + pairs[:, 1]).argsort()
    return pairs[order], distances[order]


def _candidates(queries: Tensor, embeddings: Tensor, count: int) -> Tensor:
    """Return the rows (Q, count) of the largest products, in no order."""
    wide = queries.float()
    scores = wide.new_full((len(queries), count), -torch.inf)
    rows = torch.zeros_like(scores, dtype=torch.int64)
    start = 0
    for chunk in embeddings.split(_rows_at_a_time(embeddings)):
        products = wide @ chunk.float().T  # (Q, chunk)
        found = products.topk(min(count, len(chunk)), dim=1)
        both = torch.cat([scores, found.values], dim=1)
        scores, places = both.topk(count, dim=1)
        rows = torch.cat([rows, found.indices + start], dim=1).gather(1, places)
        start += len(chunk)
    return rows


def _rows_at_a_time(embeddings: Tensor) -> int:
    return _ROWS if embeddings.device.type == "cpu" else _GPU_ROWS
