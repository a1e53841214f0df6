"""Two images in, one number out."""

from __future__ import annotations

import functools
import inspect
import os
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from rclip_metric.files import stamp
from rclip_metric.images import Reading, Resize, load_image
from rclip_metric.images.ranges import OutOfRange
from rclip_metric.metric import RobustPerceptualDistance


def score(
    a: Any,
    b: Any,
    model: str | os.PathLike[str] | nn.Module = "r-clip-f",
    device: str | torch.device | None = None,
    *,
    squared: bool = False,
    resize: Resize | Literal["default"] = "default",
    out_of_range: OutOfRange = "raise",
    base: str | None = None,
    revision: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    token: str | bool | None = None,
    local_files_only: bool = False,
    reading: Reading | Literal["default"] = "default",
) -> float:
    """Compute the distance of two images, in one line.

    Files, bytes, Pillow images and integer arrays are resized by Pillow as the published numbers were, unless `reading`
    is "fast"; tensors and float arrays in float32, which differs by rounding. The model last used stays in memory for
    the next call.

    Args:
        a: Path, bytes, PIL image, ndarray (H, W, 3), or tensor (3, H, W) in [0, 1] or uint8.
        b: Likewise; it may have another size and be of another kind.
        model: As for `RobustPerceptualDistance`.
        device: Where to compute; if None, where a tensor among a and b is, else the CPU.
        squared, resize, reading, out_of_range: As for `RobustPerceptualDistance`.
        base, revision, cache_dir, token, local_files_only: Likewise.

    Returns:
        The distance in [0, sqrt(2)], or [0, 2] if squared; 0 for identical images, lower is more alike.

    Raises:
        ImageError: An image cannot be read.
        WeightsError: The model cannot be had.

    Example:
        >>> from PIL import Image
        >>> red, blue = Image.new("RGB", (80, 60), "red"), Image.new("RGB", (60, 80), "blue")
        >>> score(red, red, "tiny"), round(score(red, blue, "tiny"), 2)
        (0.0, 0.49)
    """
    if device is None:
        device = next((image.device for image in (a, b) if isinstance(image, Tensor)), torch.device("cpu"))
    if isinstance(model, nn.Module):
        settings: dict[str, Any] = {"squared": squared, "resize": resize, "out_of_range": out_of_range}
        metric = RobustPerceptualDistance(model, reading=reading, **settings).to(device)
    else:
        metric = metric_named(
            model,
            device,
            squared=squared,
            resize=resize,
            out_of_range=out_of_range,
            base=base,
            revision=revision,
            cache_dir=cache_dir,
            token=token,
            local_files_only=local_files_only,
            reading=reading,
        )
    with torch.inference_mode():
        x, y = (_pixels(image, metric).to(device) for image in (a, b))
        return float(metric(x, y))


def metric_named(
    model: str | os.PathLike[str], device: str | torch.device = "cpu", **settings: Any
) -> RobustPerceptualDistance:
    """Return a metric by its model, the one that was last asked for without loading it again.

    Args:
        model, settings: As for `RobustPerceptualDistance`.
        device: Where it is to compute.

    Example:
        >>> metric_named("tiny") is metric_named("tiny", squared=False)
        True
    """
    named = model if isinstance(model, str) else Path(model)
    own = {name: value for name, value in settings.items() if value is not _DEFAULTS[name]}
    return _last_metric(named, torch.device(device), tuple(sorted(own.items())), _stamp(named))


_DEFAULTS = {
    name: parameter.default for name, parameter in inspect.signature(RobustPerceptualDistance).parameters.items()
}


@functools.lru_cache(maxsize=1)
def _last_metric(
    model: str | Path, device: torch.device, settings: tuple[tuple[str, Any], ...], stamp: Any
) -> RobustPerceptualDistance:
    return RobustPerceptualDistance(model, **dict(settings)).to(device)


def _stamp(model: str | Path) -> tuple[tuple[str | int, ...], ...]:
    """Return what changes when a local model is saved again or written to; () for any other name."""
    path = Path(model).absolute()
    files = sorted(path.iterdir()) if path.is_dir() else [path] if path.exists() else []
    return tuple((str(file), *stamp(file).values()) for file in files)


def _pixels(image: Any, metric: RobustPerceptualDistance) -> Tensor:
    """Read (3, H, W) in [0, 1], at the encoder's size unless the image came as floats or as a tensor."""
    is_float_array = getattr(getattr(image, "dtype", None), "kind", None) == "f"
    if isinstance(image, Tensor) or is_float_array:
        return load_image(image, metric.out_of_range)
    return metric.encoder.preprocess(image)
