"""The exact lower bound of a probability of which some draws are known (Clopper & Pearson 1934), without scipy."""

from __future__ import annotations

import math

_HALVINGS = 200  # of [0, 1]; float64 has no more numbers between two ends long before
_TINY = 1e-300  # keeps the continued fraction from dividing by zero


def clopper_pearson_lower(k: int, n: int, confidence: float) -> float:
    """Bound a probability from below, one-sidedly: of n independent draws k came up.

    It is the p at which k or more of n come up with probability 1 - confidence, which is the beta quantile
    B(1 - confidence; k, n - k + 1), and 0 for k = 0. It exceeds the true probability in at most 1 - confidence of all
    cases. Found by halving, to about 1e-12 for a million draws, and rounded down.

    Args:
        k: how many came up, 0 .. n.
        n: draws.
        confidence: between 0 and 1.

    Raises:
        ValueError: for numbers outside these ranges.

    Example:
        >>> round(clopper_pearson_lower(1000, 1000, 0.999), 6)  # 0.001 ** (1 / 1000)
        0.993116
    """
    if not 0 <= k <= n or n < 1:
        raise ValueError(f"{k} of {n} draws can not have come up: pass a number of draws, and 0 to as many of them")
    refuse_confidence(confidence)
    if k == 0:
        return 0.0
    low, high, rest = 0.0, 1.0, 1 - confidence
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        if not low < middle < high:
            break
        low, high = (middle, high) if at_least(k, n, middle) < rest else (low, middle)
    return low


def refuse_confidence(confidence: float) -> None:
    """Raise ValueError for a confidence that is not between 0 and 1.

    Example:
        >>> refuse_confidence(99.9)
        Traceback (most recent call last):
        ValueError: a confidence is a share between 0 and 1, such as 0.999, and not 99.9
    """
    if not 0 < confidence < 1:
        raise ValueError(f"a confidence is a share between 0 and 1, such as 0.999, and not {confidence:g}")


def at_least(k: int, n: int, p: float) -> float:
    """Compute the probability that k or more of n draws come up, each with probability p.

    For k > 0 it is the regularised incomplete beta function I_p(k, n - k + 1), by its continued fraction (Numerical
    Recipes 6.4, by Lentz's method) on the side of the mean where it converges fast.

    Example:
        >>> round(at_least(2, 3, 0.5), 12)  # 3 of 8, and 1 of 8
        0.5
    """
    if k <= 0 or p >= 1:
        return 1.0
    if k > n or p <= 0:
        return 0.0
    a, b = float(k), float(n - k + 1)
    logarithm = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(p) + b * math.log1p(-p)
    if p < (a + 1) / (a + b + 2):
        return math.exp(logarithm) * _fraction(a, b, p) / a
    return 1 - math.exp(logarithm) * _fraction(b, a, 1 - p) / b


def _fraction(a: float, b: float, x: float) -> float:
    """Evaluate the continued fraction of the incomplete beta function."""
    c, d = 1.0, 1 / _apart(1 - (a + b) * x / (a + 1))
    found = d
    # It takes of the order of sqrt(max(a, b)) terms.
    for m in range(1, 1000 + 20 * math.isqrt(int(max(a, b)))):
        for term in (
            m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1)),
        ):
            d = 1 / _apart(1 + term * d)
            c = _apart(1 + term / c)
            found *= c * d
        if abs(c * d - 1) < 1e-15:
            break
    return found


def _apart(value: float) -> float:
    return value if abs(value) > _TINY else _TINY
