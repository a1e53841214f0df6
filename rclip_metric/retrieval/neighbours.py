"""Exact nearest neighbours among unit embeddings: candidates by products, chosen so that none can be missed."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from functools import cache

import torch
from torch import Tensor

from rclip_metric.distance import distance_between, full_precision

# Rows that are multiplied at a time: in a processor's cache, or enough for a GPU.
_ROWS, _GPU_ROWS = 2**12, 2**17
_GROUP = 32
"""Rows of whose products only the largest is looked at, as long as it is not among the candidates."""
QUERIES = 256  # that are searched at a time
_COARSE_ROWS, _COARSE_QUERIES = 2**14, 4
"""From how many on it pays to multiply bfloat16 first."""
_TENSOR_FLOAT = 2**-10
"""By how much a float32 product of unit vectors is wrong where a GPU rounds them to TensorFloat-32."""

_BLOCK = 2**6
"""Rows whose differences from one query are made at a time: more than that would be shared out among threads."""
_NOT_FINITE = "a query or an embedding is not finite, so that it is at no distance from any other"

Products = Callable[[Tensor], Tensor]


def nearest(queries: Tensor, embeddings: Tensor, k: int, *, squared: bool = False) -> tuple[Tensor, Tensor]:
    """Find the nearest of many unit embeddings, exactly: candidates by products, in chunks, then by differences.

    Products are bfloat16's where the processor multiplies those faster. An embedding stays a candidate as long as the
    largest error that its product may have could bring it among the nearest, so that nothing is missed.

    Args:
        queries: (Q, D) of unit length, on the device of the embeddings.
        embeddings: (N, D) of unit length, float32, float16 or bfloat16. Queries are rounded as they are, so that an
            image is at distance 0 from itself.
        k: How many; all of them if there are fewer.
        squared: Return squared distances.

    Returns:
        Distances (Q, k), float32, in ascending order, and rows (Q, k), int64; of equal distances the first row first.

    Raises:
        ValueError: The shapes do not fit, k is below 1, or there are numbers that are not finite.

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
    rounded = queries.to(embeddings.dtype)
    with torch.inference_mode(), full_precision(queries.device):
        parts = [_nearest(part, embeddings, min(k, len(embeddings)), squared) for part in rounded.split(QUERIES)]
        return torch.cat([distances for distances, _ in parts]), torch.cat([rows for _, rows in parts])


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
    parts = list(near_pairs(embeddings, below, squared=squared))
    if not parts:
        return torch.empty(0, 2, dtype=torch.int64), torch.empty(0)
    return torch.cat([pairs for pairs, _ in parts]), torch.cat([distances for _, distances in parts])


def near_pairs(embeddings: Tensor, below: float, *, squared: bool = False) -> Iterator[tuple[Tensor, Tensor]]:
    """Find what `pairs_within` does, part by part, each with the pairs of a few hundred rows and those after them.

    Example:
        >>> alike = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.8, 0.6]])
        >>> [pairs.tolist() for pairs, _ in near_pairs(alike, 0.5)]
        [[[0, 2]]]
    """
    if not 0 < below < float("inf"):
        raise ValueError(f"the distance must be a positive number, got {below}")
    lowest = 1 - (below if squared else below**2) - _in_float32(embeddings[:1])[1]
    for start in range(0, len(embeddings), QUERIES):
        with torch.inference_mode():
            found = _near_pairs(embeddings, start, lowest, below, squared)
        if found is not None:
            yield found


def _near_pairs(
    embeddings: Tensor, start: int, lowest: float, below: float, squared: bool
) -> tuple[Tensor, Tensor] | None:
    """Find the pairs of `QUERIES` rows from `start` on; `lowest` is the least product that they may have."""
    found, apart = [], []
    step = _rows_at_a_time(embeddings)
    wide = embeddings[start : start + QUERIES].float()
    for first in range(start, len(embeddings), step):
        products = wide @ embeddings[first : first + step].float().T
        pairs = (products >= lowest).nonzero() + torch.tensor([start, first], device=products.device)
        pairs = pairs[pairs[:, 0] < pairs[:, 1]]
        for part in pairs.split(step):
            distances = distance_between(embeddings[part[:, 0]], embeddings[part[:, 1]], squared)
            near = distances < below
            found.append(part[near])
            apart.append(distances[near])
    pairs, distances = torch.cat(found), torch.cat(apart)
    if not len(pairs):
        return None
    order = (pairs[:, 0] * len(embeddings) + pairs[:, 1]).argsort()
    return pairs[order], distances[order]


def _nearest(queries: Tensor, embeddings: Tensor, k: int, squared: bool) -> tuple[Tensor, Tensor]:
    """Find distances and rows (Q, k) of queries of the embeddings' dtype."""
    if k == len(embeddings):
        return _all(queries, embeddings, squared)
    pairs = None
    if len(embeddings) >= _COARSE_ROWS and len(queries) >= _COARSE_QUERIES and _bfloat16_is_fast(queries.device.type):
        few = len(embeddings) * len(queries) // 16
        pairs = _candidates(embeddings, k, len(queries), *_in_bfloat16(queries), few)
    if pairs is None:
        pairs = _candidates(embeddings, k, len(queries), *_in_float32(queries))
    assert pairs is not None  # only with a limit are there none
    asked, rows = pairs
    step = _rows_at_a_time(embeddings)
    parts = zip(asked.split(step), rows.split(step), strict=True)
    distances = torch.cat([distance_between(queries[a], embeddings[r], squared) for a, r in parts])
    counts = asked.bincount(minlength=len(queries))
    if (counts < k).any() or not (queries.isfinite().all() and distances.isfinite().all()):
        raise ValueError(_NOT_FINITE)
    order = distances.sort(stable=True).indices  # equal distances stay in the order of their rows
    order = order[asked[order].sort(stable=True).indices]
    first = counts.cumsum(0) - counts
    chosen = order[first[:, None] + torch.arange(k, device=order.device)]  # (Q, k)
    return distances[chosen], rows[chosen]


def _all(queries: Tensor, embeddings: Tensor, squared: bool) -> tuple[Tensor, Tensor]:
    """Sort all rows by their distance: no candidates are needed."""
    blocks = embeddings.split(_BLOCK if embeddings.device.type == "cpu" else _GPU_ROWS)
    distances = torch.stack([torch.cat([distance_between(u, block, squared) for block in blocks]) for u in queries])
    if not (queries.isfinite().all() and distances.isfinite().all()):
        raise ValueError(_NOT_FINITE)
    distances, rows = distances.sort(dim=1, stable=True)
    return distances, rows


def _candidates(
    embeddings: Tensor, k: int, queries: int, products: Products, wrong: float, few: int | None = None
) -> tuple[Tensor, Tensor] | None:
    """Return pairs of query and row, in ascending order, among which is every row that could be among the k nearest.

    The k-th largest of the products' maxima over groups of rows is not above the k-th largest product: what is below it
    by more than both may be wrong has k rows before it.

    Args:
        embeddings: (N, D)
        k: How many are wanted of each query.
        queries: How many there are, Q.
        products: Of the queries with rows (n, D), as (n, Q).
        wrong: By how much a product may be wrong.
        few: Give up, and return None, where there are more pairs than that.
    """
    group = max(1, min(_GROUP, len(embeddings) // (8 * k)))
    best = torch.full((queries, k), -torch.inf, device=embeddings.device)
    found: list[tuple[Tensor, Tensor, Tensor]] = []
    start = count = 0
    for chunk in embeddings.split(_rows_at_a_time(embeddings)):
        scores = products(chunk)  # (n, Q)
        if missing := -len(chunk) % group:
            scores = torch.cat([scores, scores.new_full((missing, queries), -torch.inf)])
        scores = scores.view(-1, group, queries)
        largest = scores.amax(1).float()  # (groups, Q)
        best = torch.cat([best, largest.T], dim=1).topk(k).values
        lowest = best[:, -1] - 2 * wrong
        groups, asked = (largest >= lowest).nonzero(as_tuple=True)
        inside = scores[groups, :, asked].float()  # (hits, group)
        hits, places = ((inside >= lowest[asked, None]) & (inside > -torch.inf)).nonzero(as_tuple=True)
        found.append((asked[hits], start + groups[hits] * group + places, inside[hits, places]))
        start += len(chunk)
        count += len(hits)
        if few is not None and count > few:
            return None
    asked, rows, values = (torch.cat(parts) for parts in zip(*found, strict=True))
    near = values >= lowest[asked]
    order = (asked[near] * len(embeddings) + rows[near]).argsort()
    return asked[near][order], rows[near][order]


def _in_float32(queries: Tensor) -> tuple[Products, float]:
    """Return the products of queries (Q, D) with embeddings of the same dtype, and how wrong they may be."""
    wide = queries.float().T
    medium = 2.0**-7 if torch.get_float32_matmul_precision() == "medium" else 0.0
    wrong = _TENSOR_FLOAT + medium + len(wide) * 2.0**-23 + _lengths(queries.dtype)
    return lambda chunk: chunk.float() @ wide, wrong


def _in_bfloat16(queries: Tensor) -> tuple[Products, float]:
    """Do as `_in_float32`, faster and worse.

    The bits of a float16 number without the last three, the exponent's moved by three places to the right, are those of
    a bfloat16 that is 2^112 times smaller and up to 7/1031 nearer to 0. A factor of the queries makes up for the first,
    and on average for the second. What float16 holds below 2^-14 a bfloat16 product may take for 0.
    """
    halves = queries.dtype == torch.float16
    factor = 2.0**112 * (1 + 3.5 / 1024) if halves else 1.0
    scaled = (queries.double() * factor).bfloat16()
    of_queries = (scaled.double() / factor - queries.double()).norm(dim=1).max().item()
    of_rows = 3.5 / 1024 + math.sqrt(queries.shape[1]) * 2.0**-14 if halves else 2.0**-8
    of_products = 2.0**-8 + queries.shape[1] * 2.0**-23
    # The factors are a little longer than 1: 1.01 covers what the errors do to each other.
    wrong = 1.01 * (of_queries + of_rows + of_products) + _lengths(queries.dtype)
    columns = scaled.T.contiguous()
    if not halves:
        return lambda chunk: chunk.bfloat16() @ columns, wrong

    memory = torch.empty(_ROWS, queries.shape[1], dtype=torch.int16)  # used again: new memory takes as long as all else

    def products(chunk: Tensor) -> Tensor:
        bits = torch.bitwise_right_shift(chunk.view(torch.int16), 3, out=memory[: len(chunk)])
        return bits.bitwise_and_(-0x7001).view(torch.bfloat16) @ columns  # the sign came along

    return products, wrong


def _lengths(dtype: torch.dtype) -> float:
    """Bound by how much rounding a unit vector to a dtype changes half its squared length: what products do not see."""
    return torch.finfo(dtype).eps / 2 + 1e-5


@cache
def _bfloat16_is_fast(device: str) -> bool:
    """Return whether products of bfloat16 take less than half the time of float32's: tried once, in a millisecond."""
    if device != "cpu":
        return False  # there float32's are not what takes the time

    def seconds(dtype: torch.dtype) -> float:
        rows, columns = torch.ones(1024, 512, dtype=dtype), torch.ones(512, 64, dtype=dtype)
        taken = []
        for _ in range(4):
            before = time.process_time()
            rows @ columns
            taken.append(time.process_time() - before)
        return min(taken)

    return 2 * seconds(torch.bfloat16) < seconds(torch.float32)


def _rows_at_a_time(embeddings: Tensor) -> int:
    return _ROWS if embeddings.device.type == "cpu" else _GPU_ROWS
