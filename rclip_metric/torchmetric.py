"""The distance as a torchmetrics `Metric`, averaged over batches and processes (extra "torchmetrics")."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import Module

from rclip_metric.metric import RobustPerceptualDistance

try:
    from torchmetrics import Metric
    from torchmetrics.utilities import dim_zero_cat
except ImportError as error:
    raise ImportError(
        'this metric needs torchmetrics, which is an extra: pip install "rclip-metric[torchmetrics]"'
    ) from error


class RobustPerceptualDistanceMetric(Metric):
    """`RobustPerceptualDistance` over a data set, in one process or many.

    Args:
        model: Name, path, Hub id or `Encoder`, or a `RobustPerceptualDistance` that is already there; then no other
            setting of it may be given.
        reduction: "mean" or "sum" of all pairs, a scalar; or "none": all distances (N,), in the order of `update`,
            one process after the other.
        settings: Arguments of `RobustPerceptualDistance` and of `torchmetrics.Metric` (`dist_sync_on_step`,
            `process_group`, `sync_on_compute`, `compute_on_cpu`, `dist_sync_fn`, `distributed_available_fn`,
            `compute_with_cache`), each handed to its own.

    Raises:
        ValueError: `reduction` is none of the three, or a ready metric came with settings.

    Example:
        >>> metric = RobustPerceptualDistanceMetric("tiny")
        >>> images = torch.zeros(2, 3, 64, 64)
        >>> metric.update(images, images)
        >>> metric.update(images[:1], images[:1])
        >>> metric.compute(), metric.count
        (tensor(0.), tensor(3))
    """

    higher_is_better = False
    is_differentiable = True
    full_state_update = False
    plot_lower_bound = 0.0

    total: Tensor
    rounding: Tensor
    count: Tensor
    distances: list[Tensor]

    def __init__(
        self,
        model: Any = "r-clip-f",
        *,
        reduction: Literal["mean", "sum", "none"] = "mean",
        **settings: Any,
    ) -> None:
        """Build the distance, or take the one given."""
        if reduction not in ("mean", "sum", "none"):
            raise ValueError(f'reduction must be "mean", "sum" or "none", got {reduction!r}')
        own = {name: settings.pop(name) for name in _METRIC_SETTINGS & settings.keys()}
        super().__init__(**own)
        if isinstance(model, RobustPerceptualDistance):
            if settings:
                raise ValueError(f"{', '.join(sorted(settings))}: set this on the metric that was given")
            self.distance = model
        else:
            self.distance = RobustPerceptualDistance(model, **settings)
        self.reduction = reduction
        if reduction == "none":
            self.add_state("distances", default=[], dist_reduce_fx="cat")
        else:
            self.add_state("total", default=torch.tensor(0.0), dist_reduce_fx="sum")
            self.add_state("rounding", default=torch.tensor(0.0), dist_reduce_fx="sum")
            self.add_state("count", default=torch.tensor(0), dist_reduce_fx="sum")

    def update(self, x: Tensor, y: Tensor) -> None:
        """Add the pairs of x and y, images as `RobustPerceptualDistance.forward` takes them."""
        distances = self.distance(x, y)  # (N,)
        if self.reduction == "none":
            self.distances.append(distances)
            return
        # Two float32 hold the sum (Kahan): one alone loses the small terms of a large data set, and float64 is not to
        # be had on every device.
        added = distances.sum() + self.rounding
        total = self.total + added
        self.rounding = added - (total - self.total)
        self.total = total
        self.count = self.count + len(distances)

    def compute(self) -> Tensor:
        """Reduce the distances of all pairs so far; the mean of no pair is NaN."""
        if self.reduction == "none":
            return dim_zero_cat(self.distances) if len(self.distances) else torch.zeros(0, device=self.device)
        total = self.total + self.rounding
        return total if self.reduction == "sum" else total / self.count

    def _apply(self, fn: Callable[[Tensor], Tensor], exclude_state: Sequence[str] = "") -> Module:
        """Move the states, and do not cast them: distances are float32 whatever the encoder computes in."""
        distance = self._modules.pop("distance")
        super()._apply(lambda state: state.to(fn(torch.empty_like(state)).device), exclude_state)
        self._modules["distance"] = distance
        self.distance._apply(fn)
        return self


_METRIC_SETTINGS = {
    "compute_on_cpu",
    "dist_sync_on_step",
    "process_group",
    "dist_sync_fn",
    "distributed_available_fn",
    "sync_on_compute",
    "compute_with_cache",
}
