"""The norms that a perturbation is measured in."""

from typing import Literal, get_args

Norm = Literal["linf", "l2", "l1"]
NORMS: tuple[str, ...] = get_args(Norm)
