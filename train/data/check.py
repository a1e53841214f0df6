"""What is missing, truncated or not an image: before the first hour of GPU time, and while a run reads."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from rclip_metric.images import ImageError, open_image
from rclip_metric.progress import progress

MOST_UNREADABLE = 0.05
"""Share of its images that a run may lose unless it is told otherwise."""


@dataclass
class Losses:
    """How many images (or triplets) a run has read and lost so far, against the share that it may lose.

    Attributes:
        allowed: that share.
        read: how many could be read, each as often as it was drawn.
        lost: how many could not.
        first: a sentence or a name that says which was the first.

    Example:
        >>> losses = Losses(allowed=0.05, read=90, lost=10, first="a.png")
        >>> losses.check(expected=1000)  # may still turn out to be 1 %
        >>> losses.check()
        Traceback (most recent call last):
        ValueError: 10 of 100 images could not be read and at most 5 % may be, the first: a.png; mend or remove them,
        or allow a larger share with --max-unreadable
    """

    allowed: float = MOST_UNREADABLE
    read: int = 0
    lost: int = 0
    first: str | None = None

    def add(self, read: int, lost: int, first: str | None = None) -> None:
        """Count more of them."""
        self.read, self.lost, self.first = self.read + read, self.lost + lost, self.first or first

    def check(self, expected: int = 0, noun: str = "images") -> None:
        """Raise ValueError where too many are lost already, of `expected` if fewer have been tried, or all are."""
        tried = self.read + self.lost
        all_lost = tried >= expected and self.lost > 0 and not self.read
        if self.lost > self.allowed * max(tried, expected) or all_lost:
            told = f", the first: {self.first}" if self.first else ""
            raise ValueError(
                f"{self.lost} of {tried} {noun} could not be read and at most {100 * self.allowed:g} % may be{told}; "
                "mend or remove them, or allow a larger share with --max-unreadable"
            )


def check_images(paths: Iterable[Path], *, workers: int = 8, quiet: bool = False) -> list[str]:
    """Decode every distinct file completely, as an evaluation would.

    A file that was cut off is found wherever its format can tell. What decoders let pass cannot be found
    here: other bytes in the middle of a JPEG, for instance.

    Args:
        paths: image files; repeated ones are read once.
        workers: threads; Pillow decodes outside Python's lock.
        quiet: no progress bar, which is shown on a terminal only.

    Returns:
        One sentence for each file that cannot be read, sorted by path; empty when all is well.

    Raises:
        ValueError: for fewer than one worker.

    Example:
        >>> [problem] = check_images([Path("nowhere.png")], quiet=True)
        >>> "nowhere.png" in problem
        True
    """
    if workers < 1:
        raise ValueError(f"got {workers} workers, expected 1 or more")
    distinct = sorted(set(paths))
    with ThreadPoolExecutor(workers) as pool:
        bar = progress(total=len(distinct), label="check", unit="image", quiet=quiet)
        problems = []
        for problem in pool.map(_problem, distinct):
            bar.update()
            if problem:
                problems.append(problem)
        bar.close()
    return problems


def _problem(path: Path) -> str:
    try:
        open_image(path)
    except ImageError as error:
        return str(error)
    return ""
