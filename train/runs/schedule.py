"""The learning rate over the steps of a run."""

from __future__ import annotations

import math
from collections.abc import Callable


def cosine_schedule(steps: int, warmup: int) -> Callable[[int], float]:
    """The factor of the learning rate at a step: linear from 0 over ``warmup`` steps, then half a cosine to 0."""

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))

    return factor
