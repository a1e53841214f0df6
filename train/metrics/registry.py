"""Which metrics there are, by name: ours, those of others, yours; nothing of one is imported before it is asked for."""

from __future__ import annotations

import difflib
import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rclip_metric.errors import CheckpointError, UnknownModelError
from rclip_metric.images import Resize
from rclip_metric.metric import RobustPerceptualDistance
from rclip_metric.plugins import call_plugin, is_plugin
from rclip_metric.train.metrics.base import EncoderMetric, Metric
from rclip_metric.train.metrics.weight_files import METRIC_FILE, Converted, Request, find_stored, stored_family
from rclip_metric.weights import model_names

RANDOM = "@random"
# Families whose metrics have names of their own; a run's result is FAMILY.safetensors, or `METRIC_FILE`.
_TRAINED = ("lipsim",)
_STORED_NAMES = [METRIC_FILE, *(f"{family}.safetensors" for family in _TRAINED)]
_PARTS = ("name", "revision", "device", "describe", "preprocess", "fix", "similarities")
_DREAMSIM = "from the release page of ssundaram21/dreamsim on GitHub"
_LIPSIM = "from the page that SaraGhazanfari/lipsim on GitHub links to"


@dataclass(frozen=True)
class Baseline:
    """A metric of others.

    Attributes:
        family: module of `rclip_metric.train.metrics` that builds it.
        label: how people call it.
        published: which file holds its weights, and where; None where there is nothing to convert.
        free_size: images may be squashed to any size, not only to the one it was trained at.
    """

    family: str
    label: str
    published: str | None = None
    free_size: bool = False


def _dreamsim(label: str, zip_name: str) -> Baseline:
    return Baseline("dreamsim", label, f"dreamsim_{zip_name}_checkpoint.zip {_DREAMSIM}")


BASELINES: dict[str, Baseline] = {
    "dreamsim": _dreamsim("DreamSim (ensemble)", "ensemble"),
    "dreamsim-dino-vitb16": _dreamsim("DreamSim (DINO ViT-B/16)", "dino_vitb16"),
    "dreamsim-open-clip-vitb32": _dreamsim("DreamSim (OpenCLIP ViT-B/32)", "open_clip_vitb32"),
    "dreamsim-clip-vitb32": _dreamsim("DreamSim (CLIP ViT-B/32)", "clip_vitb32"),
    "dreamsim-dinov2-vitb14": _dreamsim("DreamSim (DINOv2 ViT-B/14)", "dinov2_vitb14"),
    "lipsim-pretrained": Baseline("lipsim", "LipSim (pretrained)", f"the pretrained checkpoint {_LIPSIM}"),
    "lipsim-0.2": Baseline("lipsim", "LipSim (margin 0.2)", f"the checkpoint of margin 0.2 {_LIPSIM}"),
    "lipsim-0.5": Baseline("lipsim", "LipSim (margin 0.5)", f"the checkpoint of margin 0.5 {_LIPSIM}"),
    "lipsim-lite": Baseline("lipsim", "LipSim lite (ours)"),
    "lpips-alex": Baseline("lpips", "LPIPS (AlexNet)", free_size=True),
    "lpips-vgg": Baseline("lpips", "LPIPS (VGG)", free_size=True),
    "lpips-squeeze": Baseline("lpips", "LPIPS (SqueezeNet)", free_size=True),
    "r-lpips": Baseline(
        "lpips", "R-LPIPS (AlexNet)", "checkpoints/latest_net_linf_ref.pth of SaraGhazanfari/R-LPIPS on GitHub", True
    ),
    "ssim": Baseline("pixel", "SSIM", free_size=True),
    "ms-ssim": Baseline("pixel", "MS-SSIM", free_size=True),
    "psnr": Baseline("pixel", "PSNR", free_size=True),
    "l1": Baseline("pixel", "l_1", free_size=True),
    "l2": Baseline("pixel", "l_2", free_size=True),
    "linf": Baseline("pixel", "l_inf", free_size=True),
}


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
