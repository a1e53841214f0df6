"""Which metrics there are, by name: ours, those of others, yours; nothing of one is imported before it is asked for."""

from __future__ import annotations

import difflib
import importlib
from pathlib import Path
from typing import Any, Literal

from rclip_metric.errors import CheckpointError, UnknownModelError
from rclip_metric.images import Resize
from rclip_metric.metric import RobustPerceptualDistance
from rclip_metric.plugins import call_plugin, is_plugin
from rclip_metric.train.metrics.base import EncoderMetric, Metric
from rclip_metric.train.metrics.baselines import BASELINES, Baseline
from rclip_metric.train.metrics.weight_files import METRIC_FILE, Converted, Request, find_stored, stored_family
from rclip_metric.weights import model_names

RANDOM = "@random"
# Families whose metrics have names of their own; a run's result is FAMILY.safetensors, or `METRIC_FILE`.
_TRAINED = ("lipsim",)
_STORED_NAMES = [METRIC_FILE, *(f"{family}.safetensors" for family in _TRAINED)]
_PARTS = ("name", "revision", "device", "describe", "preprocess", "fix", "similarities")


def is_baseline(name: str) -> bool:
    """Say whether a name, also one that ends in `@random`, is that of a baseline.

    Example:
        >>> is_baseline("lpips-alex"), is_baseline("dreamsim@random"), is_baseline("tiny")
        (True, True, False)
    """
    return name.removesuffix(RANDOM) in BASELINES


def load_baseline(name: str, *, device: str = "cpu", image_size: int = 224, weights: Path | None = None) -> Metric:
    """Build a metric of others.

    Args:
        name: of `BASELINES`, with `@random` for seeded random weights.
        device: cpu, cuda, cuda:1, ...
        image_size: side of the square that images are squashed to, in pixels, where the metric leaves it open.
        weights: its converted file; None for the usual place.

    Raises:
        UnknownModelError: no such name, or its weights are not on this machine: says where to get and how to convert
            them.
        CheckpointError: the file is another one.
        ValueError: an extra is missing, or the size is too small.

    Example:
        >>> import torch
        >>> metric = load_baseline("linf", image_size=8)
        >>> grey, white = torch.full((1, 3, 8, 8), 0.5), torch.ones(1, 3, 8, 8)
        >>> metric.similarities(grey, metric.fix(white)[:, None])
        tensor([[-0.5000]])
    """
    short = name.removesuffix(RANDOM)
    baseline = require_baseline(short)
    request = Request(
        device, image_size if baseline.free_size else 224, weights, name.endswith(RANDOM), baseline.published
    )
    metric: Metric = _family(baseline).build(short, request)
    return metric


def load_metric(
    name: str, *, device: str = "cpu", resize: Resize | Literal["default"] = "default", image_size: int = 224
) -> Metric:
    """Build the metric of a name.

    Args:
        name: a model in the manifest, a path (of an encoder, or of a metric that was converted or trained), a Hub id,
            a base as `rclip_metric.train.models.base.load_base` takes it
            (`open_clip:...`, `timm:...`), a metric of `rclip_metric.train.metrics`, or `module:function`, a
            function that is called with the device and returns a `Metric` (how any other metric is judged). With
            `@random`, any but the last with seeded random weights.
        device: cpu, cuda, cuda:1, ...
        resize: for our own encoders: how images of another size are brought to theirs; "default" as published.
        image_size: side that images are squashed to, for metrics that leave it open.

    Raises:
        ValueError: if the module, the function or the metric is not what it should be.
        WeightsError: as `RobustPerceptualDistance` and `load_baseline` raise it.

    Example:
        >>> load_metric("tiny").describe()["similarity"], load_metric("ssim").describe()["distance"]
        ('cosine', '1 - SSIM')
    """
    if is_baseline(name):
        return load_baseline(name, device=device, image_size=image_size)
    if name not in model_names() and (stored := find_stored(Path(name), _STORED_NAMES)):
        return _load_stored(stored, device, image_size)
    if name.startswith(("open_clip:", "timm:")) or name.endswith(RANDOM):
        from rclip_metric.train.models.base import load_base

        return EncoderMetric(RobustPerceptualDistance(load_base(name), resize=resize, reading="published").to(device))
    if is_plugin(name):
        metric: Metric = call_plugin(name, device, what="metric", parts=_PARTS, see="rclip_metric.train.metrics.base")
        return metric
    return EncoderMetric(RobustPerceptualDistance(name, resize=resize, reading="published").to(device))


def _load_stored(path: Path, device: str, image_size: int) -> Metric:
    """Build what a file of weights of its own says that it is."""
    name, family = stored_family(path)
    if family is None:
        return load_baseline(name, device=device, image_size=image_size, weights=path)
    if family not in _TRAINED:
        raise CheckpointError(f"{path} is a metric of the family {family!r}, which this rclip-metric does not know.")
    metric: Metric = importlib.import_module(f"rclip_metric.train.metrics.{family}").load(path, device)
    return metric


def convert_baseline(name: str, source: Path, *, backbone: str | None = None) -> Converted:
    """Read a metric's published files, strictly and without running code.

    Args:
        name: of `BASELINES`.
        source: the file, zip or folder as published.
        backbone: where DreamSim's DINO towers come from, see `rclip_metric.train.metrics.dreamsim.model`.

    Raises:
        UnknownModelError: no such name, or a metric that has nothing to convert.
        CheckpointError: it holds something else.

    Example:
        >>> convert_baseline("ssim", Path("ssim.pth"))
        Traceback (most recent call last):
            ...
        rclip_metric.errors.UnknownModelError: ssim has nothing to convert: it is ready, as --metrics ssim.
    """
    baseline = require_baseline(name)
    if baseline.published is None:
        raise UnknownModelError(f"{name} has nothing to convert: it is ready, as --metrics {name}.")
    if not source.exists():
        raise UnknownModelError(f"There is no {source}: pass {baseline.published}.")
    converted: Converted = _family(baseline).convert(name, source, backbone=backbone)
    return converted


def require_baseline(name: str) -> Baseline:
    """Find the baseline of that name; UnknownModelError, with the closest one, if there is none."""
    if name not in BASELINES:
        close = difflib.get_close_matches(name, BASELINES, n=1)
        hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(BASELINES)}."
        raise UnknownModelError(f"{name!r} is no metric that is known here: {hint}")
    return BASELINES[name]


def _family(baseline: Baseline) -> Any:
    return importlib.import_module(f"rclip_metric.train.metrics.{baseline.family}")
