"""How images are found from embeddings: the paper's settings, and what they become at other sizes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from rclip_metric.train.attacks.threat import LpBall

Method = Literal["apgd", "multi-view"]
METHODS: tuple[Method, ...] = get_args(Method)
STEPS: Mapping[str, int] = {"apgd": 500, "multi-view": 1000}
SIDE = 224  # pixels, for which the paper states the radius


@dataclass(frozen=True)
class InversionSettings:
    """How an image is found whose embedding is near a given one (paper, section VI and appendix A-B).

    Args:
        method: "apgd" on the image itself (eq. 9), or "multi-view" synthesis (appendix B-C).
        steps: iterations; the paper has 500 of APGD and 1,000 of the multi-view variant.
        radius: of the l_2 ball around the start, at 224 pixels; APGD's first step is twice as long, 200.
        noise: half the width of the uniform noise on the grey image that it starts from.
        views: augmented views per step, of multi-view.
        learning_rate: of Adam, of multi-view.

    Raises:
        ValueError: a value makes no sense.

    Example:
        >>> settings = InversionSettings()
        >>> str(settings.ball(224)), str(settings.ball(112)), settings.steps
        ('l2 100', 'l2 50', 500)
    """

    method: Method = "apgd"
    steps: int = STEPS["apgd"]
    radius: float = 100.0
    noise: float = 8 / 255
    views: int = 32
    learning_rate: float = 0.1

    def __post_init__(self) -> None:
        """Check the fields."""
        if self.method not in METHODS:
            raise ValueError(f"method must be one of {', '.join(METHODS)}, not {self.method!r}")
        for name in ("steps", "views"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, and it is {getattr(self, name)}")
        for name in ("radius", "learning_rate"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be a finite number above 0, and it is {getattr(self, name)}")
        if not 0 <= self.noise <= 0.5:
            raise ValueError(f"noise must be between 0 and 0.5, and it is {self.noise}")

    def ball(self, side: int) -> LpBall:
        """Give the ball for images of `side` pixels: an l_2 norm over pixels grows like the side."""
        return LpBall("l2", self.radius * side / SIDE)

    def describe(self) -> dict[str, Any]:
        """State what the method uses, JSON."""
        unused = ("views", "learning_rate") if self.method == "apgd" else ("radius",)
        return {name: value for name, value in asdict(self).items() if name not in unused}
