"""How far chance could have moved a mean over samples that share images: other samples, and other images."""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Sequence
from statistics import NormalDist

import numpy as np


def image_interval(
    scores: np.ndarray, groups: Sequence[np.ndarray], images: Sequence[Sequence[Hashable]]
) -> tuple[float, float]:
    """Compute the 95 % interval of a mean (of groups' means) over samples of K images each, clipped to [0, 1].

    Samples that have an image in common rise and fall together: 1,840 triplets over 92 images say less than 1,840 would
    over 5,520. The variance of the mean is the sum of the covariances of all pairs of samples that share an image,

        V = sum over t, t' with a common image of e_t e_t',    e_t = (score_t - mean) / samples,

    the cluster-robust variance for dyadic data (Fafchamps and Gubert 2007; Aronow, Samii and Assenova 2015) for K
    images instead of two. Inclusion and exclusion (Cameron, Gelbach and Miller 2011) gives it without visiting pairs:
    with S_A the sum of e_t over the samples that hold all images of A,

        V = sum over sets A of 1 to K images of (-1)^(|A| + 1) S_A^2.

    It is divided by 1 - f, f the share of pairs that share an image, since e_t is taken from the mean that was found
    and not from the true one; it is not let below the variance of independent samples; and the quantile is that of
    Student's t with one degree of freedom less than there are images.

    This stands for resampling the images with replacement, a sample weighted by the product of its images' counts
    (Owen and Eckles 2012), which is right about the images' part, but counts the part of the single samples 2^K - 1
    times: for triplets 2.6 times too wide an interval where images do not matter. Resampling the references alone
    overlooks that the options are shared as well.

    Args:
        scores: (N,) in [0, 1].
        groups: the rows of each group; the mean is that of the groups' means.
        images: of each sample, equally many, anything that names them.

    Returns:
        Low and high; 0 and 1 where every two samples of a group share an image, which tells nothing of others.

    Raises:
        ValueError: for another number of samples, or of images in some of them.

    Example:
        >>> scores, images = np.array([1.0, 1.0, 0.0, 1.0]), [("a", "b"), ("c", "d"), ("e", "f"), ("g", "h")]
        >>> low, high = image_interval(scores, [np.arange(4)], images)
        >>> round(low, 2), round(high, 2)
        (0.16, 1.0)
    """
    if len(images) != len(scores) or len({len(names) for names in images}) != 1:
        raise ValueError(f"an interval over images needs equally many images for each of {len(scores)} samples")
    members, distinct = _numbered(images)
    deviations = np.zeros(len(scores))
    for rows in groups:
        shared = _shared(np.full(len(rows), 1 / len(rows)), members[rows])
        if shared > 1 - 1e-9:
            return 0.0, 1.0
        apart = scores[rows] - scores[rows].mean()
        deviations[rows] = apart / (len(rows) * len(groups) * np.sqrt(1 - shared))
    variance = max(_shared(deviations, members), float(deviations @ deviations))
    mean = float(np.mean([scores[rows].mean() for rows in groups]))
    half = _student(distinct - 1) * variance**0.5
    return max(0.0, mean - half), min(1.0, mean + half)


def _numbered(images: Sequence[Sequence[Hashable]]) -> tuple[np.ndarray, int]:
    """Number the images, sorted within a sample (N, K), and count them.

    An image that a sample holds twice is, the second time, one that nobody else has.
    """
    numbers: dict[Hashable, int] = {}
    members = np.array([[numbers.setdefault(name, len(numbers)) for name in names] for names in images])
    members.sort(1)
    again = np.zeros(members.shape, dtype=bool)
    again[:, 1:] = members[:, 1:] == members[:, :-1]
    members[again] = len(numbers) + np.arange(again.sum())
    members.sort(1)
    return members, len(numbers)


def _shared(values: np.ndarray, members: np.ndarray) -> float:
    """Sum the products of values (N,) over all ordered pairs of samples with a common image, themselves included."""
    total = 0.0
    for size in range(1, members.shape[1] + 1):
        chosen = np.concatenate(
            [members[:, columns] for columns in itertools.combinations(range(members.shape[1]), size)]
        )
        sets = chosen[:, 0]
        for column in chosen.T[1:]:  # numbered anew for each further image, so that the product stays small
            sets = np.unique(sets * (members.max() + 1) + column, return_inverse=True)[1]
        sums = np.bincount(sets, np.tile(values, len(chosen) // len(values)))
        total += (-1) ** (size + 1) * float(sums @ sums)
    return total


def _student(freedom: int) -> float:
    """Approximate the 97.5 % quantile of Student's t about the normal one: to 0.1 % from 5 degrees of freedom."""
    z = NormalDist().inv_cdf(0.975)
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
    )
    return z + sum(term / freedom**power for power, term in enumerate(terms, 1))
