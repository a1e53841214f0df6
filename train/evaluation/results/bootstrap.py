"""The mean of per-sample scores and how far chance alone could have moved it."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np

from rclip_metric.train.evaluation.results.image_interval import image_interval

_DISTINCT = 64  # up to so many distinct values, counts are drawn instead of samples
_CHUNK = 1 << 18  # values that are drawn at a time: they stay in the processor's cache


def summary(
    values: Sequence[float],
    splits: Sequence[str],
    *,
    macro: bool,
    images: Sequence[Sequence[Hashable]] | None = None,
    seed: int = 0,
    resamples: int = 10_000,
) -> dict[str, Any]:
    """Average scores, with the 95 % interval of the mean, in percent.

    The bounds are the 2.5th and 97.5th percentile of the mean over samples drawn anew with replacement (Efron's
    percentile bootstrap). Where all samples agree they coincide. The order of the samples plays no part.

    Args:
        values: scores in [0, 1], one per sample.
        splits: the split of each sample.
        macro: the unweighted mean over splits, each of which is resampled by itself, instead of that over samples.
        images: those of each sample, equally many, for an interval that also covers which images were chosen:
            `image_interval`; None for the bootstrap.
        seed: of the resampling.
        resamples: how often.

    Returns:
        `{"accuracy": percent, "interval_95": [low, high], "samples": number}`, rounded to 4 decimals.

    Raises:
        ValueError: for no samples, a value outside [0, 1], or lists of different lengths.

    Example:
        >>> summary([1.0, 1.0, 0.0, 1.0], ["test"] * 4, macro=False)
        {'accuracy': 75.0, 'interval_95': [25.0, 100.0], 'samples': 4}
    """
    scores = np.asarray(values, dtype=np.float64)
    if len(scores) != len(splits):
        raise ValueError(f"every sample needs one split: got {len(scores)} values and {len(splits)} splits")
    if not len(scores):
        raise ValueError("there is no sample to average over: check that the data could be read")
    if not ((scores >= 0) & (scores <= 1)).all():
        raise ValueError("scores must lie in [0, 1], and one of them does not: pass 1.0 for right and 0.0 for wrong")
    names = np.asarray(splits)
    rows = [np.flatnonzero(names == name) for name in sorted(set(splits))] if macro else [np.arange(len(scores))]
    groups = [scores[row] for row in rows]
    accuracy = np.mean([group.mean() for group in groups])
    if images is None:
        generator = np.random.default_rng(seed)
        means = np.mean([_resampled_means(group, resamples, generator) for group in groups], 0)  # (resamples,)
        low, high = np.percentile(means, (2.5, 97.5))
    else:
        low, high = image_interval(scores, rows, images)
    return {
        "accuracy": round(100 * float(accuracy), 4),
        "interval_95": [round(100 * float(low), 4), round(100 * float(high), 4)],
        "samples": len(scores),
    }


def mean_interval(values: Sequence[float], seed: int = 0, resamples: int = 10_000) -> tuple[float, float]:
    """Compute the 95 % interval of a mean by Efron's percentile bootstrap, of values of any range.

    Example:
        >>> mean_interval([0.5, 0.5, 0.5])
        (0.5, 0.5)
    """
    means = _resampled_means(np.asarray(values, dtype=np.float64), resamples, np.random.default_rng(seed))
    low, high = np.percentile(means, (2.5, 97.5))
    return float(low), float(high)


def _resampled_means(values: np.ndarray, resamples: int, generator: np.random.Generator) -> np.ndarray:
    """Draw as many samples as there are values (n,), with replacement, time and again: their means (resamples,)."""
    distinct, counts = np.unique(values, return_counts=True)
    if len(distinct) <= _DISTINCT:  # how often each value is drawn is multinomial: binomial for right and wrong
        return generator.multinomial(len(values), counts / len(values), size=resamples) @ distinct / len(values)
    ordered = np.sort(values).astype(np.float32)
    means = np.empty(resamples)
    rows = max(1, _CHUNK // len(ordered))
    for first in range(0, resamples, rows):
        last = min(first + rows, resamples)
        means[first:last] = ordered.take(generator.integers(len(ordered), size=(last - first, len(ordered)))).mean(1)
    return means
