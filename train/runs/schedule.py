"""The learning rate over the steps of a run."""

from __future__ import annotations

import math
from collections.abc import Callable


def cosine_schedule(steps: int, warmup: int, full_first_step: bool = False) -> Callable[[int], float]:
    """Make the factor of the learning rate at a step: linear from 0 over `warmup` steps, then half a cosine to 0.

    Args:
        steps: of the run.
        warmup: of them.
        full_first_step: give step 0 the factor 1, as where the optimiser's own learning rate holds until the schedule
            is asked for the first time, after the first step.

    Example:
        >>> factor = cosine_schedule(steps=10, warmup=2)
        >>> [round(factor(step), 2) for step in (0, 1, 2, 6, 10)]
        [0.5, 1.0, 1.0, 0.5, 0.0]
    """

    def factor(step: int) -> float:
        if step == 0 and full_first_step:
            return 1.0
        if step < warmup:
            return (step + 1) / warmup
        return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))

    return factor
