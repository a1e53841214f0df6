"""Encoders around modules that are there: OpenCLIP's, timm's and torchvision's models, and any that say a few facts."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from rclip_metric.encoder import Encoder, ModuleArchitecture
from rclip_metric.encoder.module_tower import ModuleTower
from rclip_metric.images.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from rclip_metric.weights.digest import tensors_digest
from rclip_metric.weights.identity import short_digest
from rclip_metric.weights.libraries import open_clip_preprocessing, timm_preprocessing

_TORCHVISION_SIDE, _TORCHVISION_RESIZE = 224, 256


class _BeforeClassifier(nn.Module):
    """timm's pooled features, before the classifier if there is one."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: Tensor) -> Tensor:
        model: Any = self.model
        features: Tensor = model.forward_head(model.forward_features(pixels), pre_logits=True)
        return features


def module_encoder(module: nn.Module) -> Encoder:
    """Put an encoder around a module: the same weights, in eval mode, and its own preprocessing before it.

    Images are resized by bicubic interpolation, also where the library's own transform does so by another.

    Args:
        module: Of these, told by their attributes. It is not changed, and its weights are shared.

            - an OpenCLIP model, or its `visual`: embeds as `encode_image` does.
            - a timm model: embeds as its pooled features, before the classifier; preprocessing as in `pretrained_cfg`.
            - a torchvision model: embeds as what its last linear layer sees; resize 256, crop 224, ImageNet's mean and
              std.
            - any other with `mean` and `std` (three numbers each) and `size` (pixels; or (S, S)), that maps normalised
              pixels (N, 3, S, S) to (N, D): images are squashed to S x S.

    Raises:
        TypeError: It is none of these.
        ValueError: It takes no square RGB images, or does not give (N, D).

    Example:
        >>> import torchvision
        >>> encoder = module_encoder(torchvision.models.resnet18())
        >>> encoder.embedding_dim, encoder.preprocessing.resize, encoder.name
        (512, 256, 'torchvision:ResNet')
    """
    kind = type(module).__name__
    visual: Any = getattr(module, "visual", module)
    tower: nn.Module
    if hasattr(visual, "preprocess_cfg") and hasattr(visual, "image_size"):
        label, tower = f"open_clip:{type(visual).__name__}", visual
        preprocessing = open_clip_preprocessing(label, visual.preprocess_cfg, _side(visual.image_size, label))
    elif hasattr(module, "forward_features") and isinstance(getattr(module, "pretrained_cfg", None), Mapping):
        config: Mapping[str, Any] = module.pretrained_cfg  # type: ignore[assignment]
        label, tower = f"timm:{config.get('architecture') or kind}", _BeforeClassifier(module)
        preprocessing = _timm_preprocessing(module, config, label)
    elif type(module).__module__.startswith("torchvision.models"):
        label, tower = f"torchvision:{kind}", _without_classifier(module)
        preprocessing = Preprocessing(
            "crop", _TORCHVISION_RESIZE, _TORCHVISION_SIDE, mean=IMAGENET_MEAN, std=IMAGENET_STD
        )
    elif all(hasattr(module, name) for name in ("mean", "std", "size")):
        label, tower = kind, module
        side = _side(module.size, label)
        preprocessing = Preprocessing("squash", side, side, **_statistics(module.mean, module.std, label))
    else:
        raise TypeError(
            f"got a {kind}, which does not say how its images are prepared: give it the attributes mean, std and size, "
            "or pass an OpenCLIP, timm or torchvision model"
        )
    return _around(tower, preprocessing, label)


def _around(module: nn.Module, preprocessing: Preprocessing, label: str) -> Encoder:
    # A copy that shares every tensor: neither eval() nor requires_grad_() reaches the caller's own.
    shared: dict[int, Any] = {id(one): nn.Parameter(one.detach(), requires_grad=False) for one in module.parameters()}
    shared |= {id(one): one.detach() for one in module.buffers()}
    tower = ModuleTower(copy.deepcopy(module, shared).eval(), preprocessing.crop, label)
    architecture = ModuleArchitecture(model=label, image_size=preprocessing.crop, projection=tower.embedding_dim)
    encoder = Encoder(architecture, preprocessing, tower=tower, name=label).eval()
    encoder.folding = False  # what the module computes, to the last bit
    encoder.to(next(module.parameters(), torch.zeros(0)).device)
    encoder.revision = short_digest(tensors_digest(encoder.state_dict()))
    return encoder


def _side(size: Any, label: str) -> int:
    sides = tuple(size) if isinstance(size, tuple | list | torch.Size) else (size, size)
    if len(set(sides)) != 1 or type(sides[0]) is not int:
        raise ValueError(f"{label} takes images of {size} pixels, expected a square")
    return int(sides[0])


def _statistics(mean: Any, std: Any, label: str) -> dict[str, Any]:
    found = {}
    for name, values in (("mean", mean), ("std", std)):
        numbers = torch.as_tensor(values, dtype=torch.float64).flatten().tolist()
        if len(numbers) != 3:
            raise ValueError(f"the {name} of {label} is {values}, expected three numbers")
        found[name] = tuple(numbers)
    return found


def _timm_preprocessing(module: nn.Module, config: Mapping[str, Any], label: str) -> Preprocessing:
    from timm.data import resolve_model_data_config

    stated = resolve_model_data_config(module)
    channels, height, width = stated["input_size"]
    if channels != 3 or height != width:
        raise ValueError(f"{label} takes {channels} x {height} x {width}, expected square RGB images")
    return timm_preprocessing(label, stated, height)


def _without_classifier(module: nn.Module) -> nn.Module:
    """Put nothing in the place of the last linear layer of a torchvision model; the model itself is not changed."""
    path = [name for name, part in module.named_modules() if isinstance(part, nn.Linear)][-1:]
    if not path:
        raise ValueError(f"torchvision's {type(module).__name__} has no linear layer whose input would be an embedding")
    whole = bare = copy.copy(module)
    *outer, last = path[0].split(".")
    for name in outer:
        inner = copy.copy(bare._modules[name])
        assert inner is not None
        bare._modules = {**bare._modules, name: inner}
        bare = inner
    bare._modules = {**bare._modules, last: nn.Identity()}
    return whole
