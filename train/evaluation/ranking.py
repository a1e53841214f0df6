"""How good rankings are: average precision and precision at k, as the revisited Oxford and Paris sets define them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from rclip_metric.train.data.ground_truth import checked_truth

# What counts as found, and what leaves the ranking first (Radenovic et al. 2018, section 3).
DIFFICULTIES: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "E": (("easy",), ("junk", "hard")),
    "M": (("easy", "hard"), ("junk",)),
    "H": (("hard",), ("junk", "easy")),
}
AT = (1, 5, 10)


class Places(NamedTuple):
    """Where the positives of a query stand, 0-based and ascending, and how many rows are ranked, both without junk."""

    positives: np.ndarray  # int64 (P,)
    ranked: int


def mean_average_precision(
    ranks: Tensor | np.ndarray, ground_truth: Sequence[Mapping[str, Any]]
) -> dict[str, dict[str, Any]]:
    """Compute the mean average precision of rankings: Easy, Medium and Hard.

    E finds the easy rows, and hard ones count as junk; M finds both; H finds the hard ones, and easy ones count as
    junk. Junk leaves the ranking before places are counted. The average precision is the area under precision and
    recall by the trapezoid rule: the mean over positives of (j / r + (j + 1) / (r + 1)) / 2, where r is the 0-based
    place of the j-th positive and j / r counts as 1 at r = 0.

    Args:
        ranks: (Q, N), integers: for each query all N rows of the database, best first.
        ground_truth: for each query the rows that are "easy", "hard" and "junk"; a list that is not there is empty,
            other keys (such as "bbx") are passed over.

    Returns:
        For each of "E", "M" and "H": "aps", a list with one average precision in [0, 1] per query, NaN for a query
        without positives; and "map", their mean without those, NaN where there is no other.

    Raises:
        ValueError: if a ranking is not a permutation of all rows, or the ground truth does not fit the rankings.

    Example:
        >>> found = mean_average_precision(np.array([[2, 0, 3, 1]]), [{"easy": [2], "hard": [1], "junk": [0]}])
        >>> {name: round(part["map"], 4) for name, part in found.items()}  # 1; (1 + (1/2 + 2/3) / 2) / 2; (0 + 1/2) / 2
        {'E': 1.0, 'M': 0.7917, 'H': 0.25}
    """
    found: dict[str, dict[str, Any]] = {name: {"map": np.nan, "aps": []} for name in DIFFICULTIES}
    for places in _places(ranks, ground_truth):
        for name, one in places.items():
            found[name]["aps"].append(_average_precision(one.positives))
    for part in found.values():
        part["map"] = _mean(part["aps"])
    return found


def precision_at(
    ranks: Tensor | np.ndarray, ground_truth: Sequence[Mapping[str, Any]], at: Sequence[int] = AT
) -> dict[str, dict[int, dict[str, Any]]]:
    """Compute the share of positives among the first k rows of rankings: Easy, Medium and Hard.

    Junk leaves the ranking first. k is at most the place of the query's last positive, so that a query with few of them
    can reach 1.

    Args:
        ranks: as for `mean_average_precision`.
        ground_truth: likewise.
        at: the values of k.

    Returns:
        For each of "E", "M" and "H", and for each k: "values", a list with one precision in [0, 1] per query, NaN for
        a query without positives; and "mean", without those.

    Raises:
        ValueError: as `mean_average_precision` raises it, or for a k below 1.

    Example:
        >>> found = precision_at(np.array([[2, 0, 3, 1]]), [{"easy": [2, 1], "hard": [], "junk": [0]}], at=(1, 2, 10))
        >>> {k: round(part["mean"], 4) for k, part in found["M"].items()}  # of 2, 3, 1 the last is a positive
        {1: 1.0, 2: 0.5, 10: 0.6667}
    """
    if not at or min(at) < 1:
        raise ValueError(f"precision is that of at least 1 row, and was asked for {', '.join(map(str, at)) or 'none'}")
    found: dict[str, dict[int, dict[str, Any]]] = {
        name: {k: {"mean": np.nan, "values": []} for k in at} for name in DIFFICULTIES
    }
    for places in _places(ranks, ground_truth):
        for name, one in places.items():
            for k in at:
                first = min(k, int(one.positives[-1]) + 1) if len(one.positives) else 0
                share = float((one.positives < first).sum()) / first if first else np.nan
                found[name][k]["values"].append(share)
    for parts in found.values():
        for part in parts.values():
            part["mean"] = _mean(part["values"])
    return found


def chance(ranked: int, positives: int) -> float:
    """Compute the average precision that a random order of the rows has on average, exactly.

    A positive at place r has r (P - 1) / (N - 1) others before it on average; summed over places, with q for that
    fraction and H_N for the harmonic number, this is (q N + (1 - q) H_N + P) / 2 N.

    Args:
        ranked: N, the rows without junk.
        positives: P of them, at least 1.

    Raises:
        ValueError: if there are no such rows.

    Example:
        >>> chance(2, 1)  # first or last: 1, or (0 + 1/2) / 2
        0.625
    """
    if not 1 <= positives <= ranked:
        raise ValueError(f"a ranking of {ranked} rows cannot have {positives} positives: expected 1 to {ranked}")
    if positives == ranked:
        return 1.0
    others = (positives - 1) / (ranked - 1)
    harmonic = float((1 / np.arange(1, ranked + 1)).sum())
    return (others * ranked + (1 - others) * harmonic + positives) / (2 * ranked)


def places_of(ranking: np.ndarray, truth: Mapping[str, np.ndarray], difficulty: str) -> Places:
    """Find the positives' places in one ranking (N,), a permutation, after junk has left it; see `Places`."""
    wanted, left_out = (np.concatenate([truth[name] for name in names]) for names in DIFFICULTIES[difficulty])
    place = np.empty(len(ranking), np.int64)
    place[ranking] = np.arange(len(ranking))
    positives, junk = np.sort(place[wanted]), np.sort(place[left_out])
    return Places(positives - np.searchsorted(junk, positives), len(ranking) - len(junk))


def _places(ranks: Tensor | np.ndarray, ground_truth: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Places]]:
    """Check everything, and find the positives of query after query."""
    rankings = _rankings(ranks)
    if len(rankings) != len(ground_truth):
        raise ValueError(f"there are {len(rankings)} rankings and the ground truth of {len(ground_truth)} queries")
    for number, (ranking, truth) in enumerate(zip(rankings, ground_truth, strict=True)):
        rows = checked_truth(truth, rankings.shape[1], f"the ground truth of query {number}")
        yield {name: places_of(ranking, rows, name) for name in DIFFICULTIES}


def _rankings(ranks: Tensor | np.ndarray) -> np.ndarray:
    rankings = ranks.detach().cpu().numpy() if isinstance(ranks, Tensor) else np.asarray(ranks)
    if rankings.ndim != 2 or not np.issubdtype(rankings.dtype, np.integer):
        got = f"{rankings.dtype} {rankings.shape}"
        raise ValueError(f"ranks must be integers (Q, N), the rows of the database best first, and are {got}")
    everything = np.arange(rankings.shape[1])
    for number, ranking in enumerate(rankings):
        if not np.array_equal(np.sort(ranking), everything):
            raise ValueError(
                f"the ranking of query {number} is not a permutation of the {len(everything)} rows from 0 to "
                f"{len(everything) - 1}: pass all rows of the database, each once, best first"
            )
    return rankings.astype(np.int64)


def _average_precision(places: np.ndarray) -> float:
    """Compute the average precision from the 0-based places (P,) of all positives, ascending; NaN for none."""
    if not len(places):
        return float("nan")
    before, found = np.arange(len(places)), places + 1
    left = np.where(places == 0, 1.0, before / np.maximum(places, 1))
    return float((left + (before + 1) / found).mean() / 2)


def _mean(values: Sequence[float]) -> float:
    """Average what is not NaN."""
    known = [value for value in values if value == value]
    return sum(known) / len(known) if known else float("nan")
