"""Metrics of pixels: SSIM (Wang et al. 2004), MS-SSIM (Wang et al. 2003), PSNR and the l_1, l_2 and l_inf distances.

Every one is a distance from 0 for identical images to 1 for black against white (SSIM can go to 2), so that its
similarity is minus that, and decides as the metric itself does:

    ssim, ms-ssim   1 - SSIM(x, y)
    psnr            mean (x - y)^2, of which the PSNR, -10 log10 in decibels, is a falling function
    l1, l2, linf    ||x - y||_p / ||1||_p: mean absolute difference, root of the mean square, largest difference

The norms are divided by that of an all-one image, and decibels left out, because an attack raises the cross-entropy of
similarities: where these differ by more than 17 it is 0 in float32, by more than 104 so is its gradient. The distances
||x - y||_1 to two options differ by thousands, and an attack on them would stand still.

For psnr and l2 a 2AFC decision changes on the plane half-way between the options, and the certified radius is exact.
For l1 and linf it is what the Lipschitz constant of the distance allows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from rclip_metric.train.metrics.base import DistanceMetric, Facts
from rclip_metric.train.metrics.registry import BASELINES, RANDOM
from rclip_metric.train.metrics.weight_files import Request

_WINDOW = 11  # pixels: a Gaussian of standard deviation 1.5, cut off at 3.5 of them
_SOURCES = {"ssim": "Wang et al. 2004", "ms-ssim": "Wang et al. 2003"}
_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # of MS-SSIM's scales, finest first

Distance = Callable[[Tensor, Tensor], Tensor]
"""Two batches (N, 3, S, S) to distances (N,)."""


class PixelMetric(DistanceMetric):
    """A distance of pixels as the evaluations see it."""

    def in_bfloat16(self) -> PixelMetric:
        """Return it as it is: there is no backbone to speed up, and rounding would cost windows their variances."""
        return self


class WindowedPixelMetric(PixelMetric):
    """SSIM and MS-SSIM."""

    @property
    def chunk_size(self) -> int:
        """Images per pass: windows make 15 maps of each pair, which are twice as fast while they stay in the cache."""
        return max(1, 16 * 64**2 // self.image_size**2)


class CertifiedPixelMetric(PixelMetric):
    """A distance of pixels whose 2AFC decisions have a certified radius."""

    def __init__(
        self, function: Distance, image_size: int, *, radius: Callable[[Tensor, Tensor, Tensor], Tensor], **about: Any
    ) -> None:
        """Judge with `radius`, of images and their two options, (N, D) each; `about` as for `DistanceMetric`."""
        super().__init__(function, image_size, **about)
        self._radius = radius

    def certified_radius(self, images: Tensor, fixed: Tensor) -> Tensor:
        """Certify decisions on images (N, 3, S, S), options (N, 2, 3, S, S): l_2 radii (N,), float32; 0 at a tie.

        Computed in float64 where the device has it, and rounded down. It is a statement about real numbers: within
        float32's rounding of the distances the metric itself may decide otherwise.
        """
        wide = torch.float64 if images.device.type != "mps" else torch.float32
        flat = images.to(wide).flatten(1), fixed[:, 0].to(wide).flatten(1), fixed[:, 1].to(wide).flatten(1)
        return (self._radius(*flat) * (1 - 1e-6)).float()


def build(name: str, request: Request) -> PixelMetric:
    """Build ssim, ms-ssim, psnr, l1, l2 or linf.

    Args:
        name: one of them.
        request: where and at which size; there are no weights, random or not.

    Raises:
        ValueError: torchmetrics is missing, or the images are too small for a window.
    """
    details: dict[str, Any] = {}
    about: dict[str, Any] = {
        "name": name + (RANDOM if request.random else ""),
        "device": request.device,
        "facts": Facts(label=BASELINES[name].label, parameters=0, source=_SOURCES.get(name)),
        "details": details,
    }
    if name in _CERTIFIED:
        function, radius, details["distance"] = _CERTIFIED[name]
        return CertifiedPixelMetric(function, request.image_size, radius=radius, **about)
    if request.image_size < _WINDOW:
        raise ValueError(
            f"{name} has windows of {_WINDOW} pixels, and images are squashed to {request.image_size}: choose a larger "
            "size"
        )
    if name == "ssim":
        details["distance"] = "1 - SSIM"
        return WindowedPixelMetric(_ssim(), request.image_size, **about)
    weights = scale_weights(request.image_size)
    details |= {"distance": "1 - MS-SSIM", "scales": len(weights), "weights": [round(weight, 4) for weight in weights]}
    return WindowedPixelMetric(_ms_ssim(weights), request.image_size, **about)


def scale_weights(image_size: int) -> tuple[float, ...]:
    """Choose the exponents of MS-SSIM's scales, finest first: five from 176 pixels on.

    Smaller images have as many scales as the window fits into (four from 99 pixels, as torchmetrics asks; three from
    44, two from 22), with the first exponents divided by their sum.
    """
    scales = next(n for n in range(len(_WEIGHTS), 0, -1) if _fits(image_size, n))
    total = sum(_WEIGHTS[:scales])
    return _WEIGHTS if scales == len(_WEIGHTS) else tuple(weight / total for weight in _WEIGHTS[:scales])


def _fits(image_size: int, scales: int) -> bool:
    return image_size // 2 ** (scales - 1) >= _WINDOW and image_size // max(1, scales - 1) ** 2 >= _WINDOW


def _ssim() -> Distance:
    functional = _torchmetrics()

    def distance(one: Tensor, other: Tensor) -> Tensor:
        similarity: Tensor = functional.structural_similarity_index_measure(
            one, other, reduction="none", data_range=1.0
        )
        return 1 - similarity

    return distance


def _ms_ssim(weights: tuple[float, ...]) -> Distance:
    """Build 1 - MS-SSIM, in which scales of negative structure count as 0, lest a root of them be NaN."""
    functional = _torchmetrics()

    def distance(one: Tensor, other: Tensor) -> Tensor:
        similarity: Tensor = functional.multiscale_structural_similarity_index_measure(
            one, other, reduction="none", data_range=1.0, betas=weights, normalize="relu"
        )
        return 1 - similarity

    return distance


def _torchmetrics() -> Any:
    try:
        from torchmetrics.functional import image
    except ImportError as error:
        raise ValueError('torchmetrics is an extra: pip install "rclip-metric[benchmark]"') from error
    return image


def _mean_square(one: Tensor, other: Tensor) -> Tensor:
    return (one - other).square().flatten(1).mean(1)


def _mean_absolute(one: Tensor, other: Tensor) -> Tensor:
    return (one - other).abs().flatten(1).mean(1)


def _root_mean_square(one: Tensor, other: Tensor) -> Tensor:
    """Pass on a gradient of 0 where the images are identical, where the slope of the root has no bound."""
    squared = _mean_square(one, other)
    return torch.where(squared > 0, torch.where(squared > 0, squared, 1.0).sqrt(), 0.0)


def _largest(one: Tensor, other: Tensor) -> Tensor:
    return (one - other).abs().flatten(1).amax(1)


def bisector_radius(images: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """Compute | ||x - y0||^2 - ||x - y1||^2 | / (2 ||y0 - y1||_2): how far x is from the plane half-way between them.

    Args:
        images: x, (N, D).
        left: y0, (N, D).
        right: y1, (N, D).

    Returns:
        (N,), 0 where the options are identical.
    """
    apart = right - left
    length = apart.norm(dim=1)
    across = ((2 * images - left - right) * apart).sum(1).abs() / 2
    return torch.where(length > 0, across / torch.where(length > 0, length, 1.0), 0.0)


def l1_radius(images: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """Compute | ||x - y0||_1 - ||x - y1||_1 | / (2 sqrt(D')), where D' counts the values in which the options differ.

    Only in these does ||x - y0||_1 - ||x - y1||_1 depend on x, each with a slope of at most 2, so that its gradient is
    at most 2 sqrt(D') long.
    """
    margin = ((images - left).abs() - (images - right).abs()).sum(1).abs()
    return margin / (2 * (left != right).sum(1).clamp(min=1).to(margin.dtype).sqrt())


def linf_radius(images: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """Compute | ||x - y0||_inf - ||x - y1||_inf | / 2: a distance changes by ||delta||_inf <= ||delta||_2 at most."""
    return ((images - left).abs().amax(1) - (images - right).abs().amax(1)).abs() / 2


_CERTIFIED: dict[str, tuple[Distance, Callable[[Tensor, Tensor, Tensor], Tensor], str]] = {
    "psnr": (_mean_square, bisector_radius, "mean (x - y)^2"),
    "l1": (_mean_absolute, l1_radius, "mean |x - y|"),
    "l2": (_root_mean_square, bisector_radius, "sqrt(mean (x - y)^2)"),
    "linf": (_largest, linf_radius, "max |x - y|"),
}
