"""DreamSim (Fu et al. 2023, arXiv 2306.09344): ViT towers tuned on NIGHTS with LoRA, side by side.

The embedding is DINO's class token before the last norm and CLIP's projected class tokens, concatenated, minus its own
mean; the distance is 1 - cos. The squared distance of this package is the same number.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rclip_metric.encoder import NAMED, Encoder, ViTArchitecture
from rclip_metric.errors import CheckpointError
from rclip_metric.images import CLIP_MEAN, CLIP_STD, IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from rclip_metric.train.metrics.base import EmbeddingMetric, Facts
from rclip_metric.train.metrics.registry import BASELINES, RANDOM
from rclip_metric.train.metrics.weight_files import Converted, Request, read_stored, weights_path
from rclip_metric.train.runs.seeds import temporary_seed

SIDE = 224


@dataclass(frozen=True)
class Branch:
    """One tower of DreamSim.

    Attributes:
        architecture: what computes it.
        file: its file in the zip; of a DINO tower it need not hold the tower.
        clean: the manifest's model of a DINO tower; None for a CLIP tower, which is in the zip.
        hub_file: what torch.hub calls a DINO tower's file, in the folder `checkpoints`.
        grid: side of the grid of position embeddings in a DINO tower's file; None for the architecture's own.
    """

    architecture: ViTArchitecture
    file: str
    clean: str | None = None
    hub_file: str | None = None
    grid: int | None = None

    @property
    def preprocessing(self) -> Preprocessing:
        """Squashed; ImageNet's mean and deviation for DINO, CLIP's for CLIP."""
        mean, std = (CLIP_MEAN, CLIP_STD) if self.clean is None else (IMAGENET_MEAN, IMAGENET_STD)
        return Preprocessing("squash", SIDE, SIDE, "bicubic", mean, std)


@dataclass(frozen=True)
class Variant:
    """One published DreamSim: its towers, in the order of the embedding, and the adapter's folder in the zip."""

    branches: tuple[str, ...]
    adapter: str


def _vit(name: str, **changes: Any) -> ViTArchitecture:
    architecture = NAMED[name]
    assert isinstance(architecture, ViTArchitecture)
    return replace(architecture, **changes)


# The CLIP towers were rewritten as DINO-style ViTs, whose patch embedding has a bias.
BRANCHES: dict[str, Branch] = {
    "dino_vitb16": Branch(
        _vit("dino_vit_b_16"), "dino_vitb16_pretrain.pth", "dino-vit-b-16", "dino_vitbase16_pretrain.pth"
    ),
    "dinov2_vitb14": Branch(
        _vit("dinov2_vit_b_14"),
        "dinov2_vitb14_pretrain.pth",
        "dinov2-vit-b-14",
        "dinov2_vitb14_pretrain.pth",
        37,  # trained at 518 pixels, 37 patches of 14
    ),
    "clip_vitb16": Branch(_vit("vit_b_16", patch_bias=True, activation="quick_gelu"), "clip_vitb16_pretrain.pth.tar"),
    "clip_vitb32": Branch(_vit("vit_b_32", patch_bias=True, activation="quick_gelu"), "clip_vitb32_pretrain.pth.tar"),
    "open_clip_vitb16": Branch(_vit("vit_b_16", patch_bias=True), "open_clip_vitb16_pretrain.pth.tar"),
    "open_clip_vitb32": Branch(_vit("vit_b_32", patch_bias=True), "open_clip_vitb32_pretrain.pth.tar"),
}
VARIANTS: dict[str, Variant] = {
    "dreamsim": Variant(("dino_vitb16", "clip_vitb16", "open_clip_vitb16"), "ensemble_lora"),
    "dreamsim-dino-vitb16": Variant(("dino_vitb16",), "dino_vitb16_single_lora"),
    "dreamsim-open-clip-vitb32": Variant(("open_clip_vitb32",), "open_clip_vitb32_single_lora"),
    "dreamsim-clip-vitb32": Variant(("clip_vitb32",), "clip_vitb32_single_lora"),
    "dreamsim-dinov2-vitb14": Variant(("dinov2_vitb14",), "dinov2_vitb14_single_lora"),
}


class DreamSim(nn.Module):
    """Images (N, 3, 224, 224) in [0, 1] to embeddings (N, D) whose mean is zero, not normalised.

    Attributes:
        encoders: a tower with its mean and standard deviation each, in the order of the embedding.
    """

    def __init__(self, encoders: Mapping[str, Encoder]) -> None:
        """Take encoders of `BRANCHES`; those of DINO lose their last norm, which DreamSim does not apply."""
        super().__init__()
        self.encoders = nn.ModuleDict(encoders)
        for name, encoder in encoders.items():
            if BRANCHES[name].clean is not None:
                tower: Any = encoder.tower
                tower.trunk.norm = nn.Identity()

    def forward(self, images: Tensor) -> Tensor:
        """Embed; float32 whatever the towers are in, D is 1792 for the ensemble."""
        embedding = torch.cat([encoder(images) for encoder in self.encoders.values()], dim=1)  # (N, D)
        return embedding - embedding.mean(1, keepdim=True)


class DreamSimMetric(EmbeddingMetric):
    """DreamSim as the evaluations see it."""

    def in_bfloat16(self) -> DreamSimMetric:
        """Copy it with towers in bfloat16 (autocast casts frozen weights at every call); all else stays float32."""
        other = copy.copy(self)
        other.function = copy.deepcopy(self.function).to(torch.bfloat16)  # type: ignore[attr-defined]
        return other


def build(name: str, request: Request) -> DreamSimMetric:
    """Build a variant.

    Args:
        name: of `VARIANTS`.
        request: where and from which weights.

    Raises:
        UnknownModelError: its converted file is not there.
        CheckpointError: the file is damaged or another one: names the keys or shapes.

    Example:
        >>> build("dreamsim", Request(weights=Path("nowhere.safetensors"), published="the zip of its release page"))
        Traceback (most recent call last):
            ...
        rclip_metric.errors.UnknownModelError: dreamsim needs its published weights, and nowhere.safetensors is not
        there: get the zip of its release page, then run: rclip-metric train baseline dreamsim FILE
    """
    details: dict[str, object] = {"embedding": "class tokens of all towers, minus their mean"}
    if request.random:
        with temporary_seed(0):
            encoders = {branch: _random(branch) for branch in VARIANTS[name].branches}
        name_shown, revision = name + RANDOM, None
    else:
        path = weights_path(name, request)
        stored = read_stored(name, path)
        try:
            encoders = _loaded(name, stored.tensors, stored.revision)
        except CheckpointError as error:
            raise CheckpointError(f"{path}: {error}") from error
        name_shown, revision = name, stored.revision
        details["backbone"] = stored.config.get("backbone")
    model = DreamSim(encoders).eval().requires_grad_(False).to(request.device)
    return DreamSimMetric(
        model,
        SIDE,
        name=name_shown,
        revision=revision,
        device=request.device,
        facts=Facts(
            label=BASELINES[name].label,
            parameters=sum(parameter.numel() for parameter in model.parameters()),
            licence="MIT",
            source="Fu et al. 2023, arXiv 2306.09344",
        ),
        details=details,
    )


def convert(name: str, source: Path, *, backbone: str | None = None) -> Converted:
    """Read the published files of a variant, see `published.read_published`.

    Example:
        >>> convert("dreamsim", Path("nothing.zip"))
        Traceback (most recent call last):
            ...
        rclip_metric.errors.CheckpointError: nothing.zip is neither a folder nor a whole zip file: ...
    """
    from rclip_metric.train.metrics.dreamsim.published import read_published

    return read_published(name, source, backbone)


def _random(name: str) -> Encoder:
    branch = BRANCHES[name]
    return Encoder(branch.architecture, branch.preprocessing, resize=None, name=name)


def _loaded(name: str, tensors: Mapping[str, Tensor], revision: str) -> dict[str, Encoder]:
    """Build the towers around a converted file's tensors, every one of which must be used."""
    states: dict[str, dict[str, Tensor]] = {branch: {} for branch in VARIANTS[name].branches}
    for key, tensor in tensors.items():
        branch, _, inner = key.partition(".")
        if branch not in states:
            raise CheckpointError(f"The tensor {key} belongs to none of the towers of {name}, {', '.join(states)}.")
        states[branch][inner] = tensor
    return {
        branch: Encoder.from_weights(
            state,
            BRANCHES[branch].architecture,
            BRANCHES[branch].preprocessing,
            resize=None,
            name=branch,
            revision=revision,
        )
        for branch, state in states.items()
    }
