"""What cannot be read while a run reads: how much it may be."""

from __future__ import annotations

from dataclasses import dataclass

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
