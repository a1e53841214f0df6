"""Towers as timm or OpenCLIP build them, for the architectures that no native tower computes."""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from rclip_metric.encoder.architectures import OpenClipArchitecture, TimmArchitecture, embedding_dim
from rclip_metric.encoder.limits import require_size
from rclip_metric.encoder.open_clip_configs import open_clip_flag
from rclip_metric.errors import UnknownModelError, first_line


class LibraryTower(nn.Module):
    """A library's model (`trunk`) and a linear map without bias (`projection`; None if there is none)."""

    def __init__(self, architecture: TimmArchitecture | OpenClipArchitecture) -> None:
        """Build with random weights."""
        super().__init__()
        self.embedding_dim = embedding_dim(architecture)
        self.label = architecture.model
        self._checkpointing = False
        self.projection: nn.Linear | None = None
        if isinstance(architecture, TimmArchitecture):
            self.trunk = _timm_trunk(architecture)
            self.projection = linear_projection(architecture.features, architecture.projection)
        else:
            self.trunk = _open_clip_trunk(architecture)

    def forward(self, pixels: Tensor) -> Tensor:
        """Embed normalised pixels (N, 3, S, S) as (N, D)."""
        embedding = self.trunk(pixels)
        if isinstance(embedding, tuple):  # CoCa's tower also gives the tokens that its captions are made from
            embedding = embedding[0]
        return embedding if self.projection is None else self.projection(embedding)

    @property
    def checkpointing(self) -> bool:
        """See `Encoder.checkpointing`."""
        return self._checkpointing

    @checkpointing.setter
    def checkpointing(self, enable: bool) -> None:
        trunk: Any = getattr(self.trunk, "trunk", self.trunk)  # OpenCLIP wraps timm's models
        try:
            trunk.set_grad_checkpointing(enable)
        except (AssertionError, AttributeError) as error:  # timm asserts that it is supported
            if enable:
                raise ValueError(f"{self.label} cannot compute activations again: leave checkpointing off.") from error
        # OpenCLIP's ResNet has the method, and it does nothing.
        if enable and not any(getattr(module, "grad_checkpointing", False) for module in trunk.modules()):
            raise ValueError(f"{self.label} cannot compute activations again: leave checkpointing off.")
        self._checkpointing = enable


def linear_projection(width: int, size: int | None) -> nn.Linear | None:
    """Return the linear map to embeddings, initialised as OpenCLIP does; None for no size."""
    if size is None:
        return None
    projection = nn.Linear(width, size, bias=False)
    nn.init.normal_(projection.weight, std=width**-0.5)
    return projection


def require_known(library: str, name: str, known: Iterable[str]) -> None:
    """Raise UnknownModelError, with close matches, unless a library knows a model of this name."""
    known = list(known)
    if name in known:
        return
    by_case = {candidate.lower(): candidate for candidate in known}
    close = [by_case[match] for match in difflib.get_close_matches(name.lower(), by_case, n=3, cutoff=0.5)]
    hint = f"did you mean {' or '.join(close)}?" if close else f"it has {len(known)}, none with a name like it."
    raise UnknownModelError(f"{library} has no model {name!r}: {hint}")


def timm_architecture(
    model: str,
    *,
    image_size: int | None = None,
    options: Mapping[str, Any] | None = None,
    projection: int | None = None,
) -> TimmArchitecture:
    """Read the architecture of one of timm's models, which is built for that without its weights.

    Args:
        model: timm's name, with or without a tag.
        image_size: Side of the square input in pixels; None for the one that timm's configuration states.
        options: Further arguments of timm's constructor.
        projection: As in `TimmArchitecture`.

    Raises:
        UnknownModelError: timm has no such model.
        ValueError: The model takes no square RGB image, or cannot be built.

    Example:
        >>> found = timm_architecture("resnet18", image_size=64)
        >>> found.image_size, found.features
        (64, 512)
    """
    text = json.dumps(dict(options or {}))
    draft = TimmArchitecture(model=model, image_size=image_size or 1, features=1, options=text, projection=projection)
    channels, height, width = timm_config(model).input_size
    if image_size is None and (channels != 3 or height != width):
        raise ValueError(f"timm's {model} takes {channels} x {height} x {width} and no square RGB image.")
    draft = replace(draft, image_size=image_size or height)
    try:
        with torch.device("meta"):
            shape = _output_shape(draft)
    except (NotImplementedError, RuntimeError):  # some models read values back
        try:
            with torch.random.fork_rng(devices=[]), torch.device("cpu"):
                shape = _output_shape(draft)
        except RuntimeError as error:
            raise ValueError(_about_size(draft, error)) from error
    if len(shape) != 2:
        raise ValueError(f"timm's {model} gives features of shape {shape} for one image, and no pooled ones.")
    return replace(draft, features=shape[1])


def _output_shape(architecture: TimmArchitecture) -> tuple[int, ...]:
    trunk = timm_module(architecture).eval()
    size = architecture.image_size
    try:
        with torch.no_grad():
            return tuple(trunk(torch.zeros(1, 3, size, size)).shape)
    except AssertionError as error:  # timm asserts the size of its input
        raise ValueError(_about_size(architecture, error)) from error


def _about_size(architecture: TimmArchitecture, error: Exception) -> str:
    return f"timm's {architecture.model} does not take {architecture.image_size} pixels: {first_line(error)}."


def _timm_trunk(architecture: TimmArchitecture) -> nn.Module:
    trunk = timm_module(architecture)
    features = _pooled_features(trunk)
    if features != architecture.features:
        raise ValueError(f"features must be {features} for timm's {architecture.model}, got {architecture.features}.")
    return trunk


def timm_module(architecture: TimmArchitecture, name: str | None = None, **weights: Any) -> nn.Module:
    """Build timm's model without its classifier, for the size of the architecture.

    Args:
        architecture: What to build; its projection is not timm's.
        name: Under which timm finds it, where that is not the architecture's ("hf-hub:owner/repo").
        weights: Arguments of timm.create_model that say which; random ones without any.

    Raises:
        UnknownModelError: timm has no such model.
        ValueError: It cannot be built so.
    """
    timm_config(architecture.model)
    import timm

    name = name or architecture.model
    own = json.loads(architecture.options)
    options = {"pretrained": False, "num_classes": 0, **own}

    def create(name: str, **options: Any) -> nn.Module:
        try:
            trunk: nn.Module = timm.create_model(name, img_size=architecture.image_size, **options)
        except TypeError as error:  # a network of convolutions takes any size, and no such argument
            if "img_size" not in str(error):
                raise
            trunk = timm.create_model(name, **options)
        return trunk

    try:
        if own:  # what timm itself has under a name is no larger than timm's models are
            _require_size(f"timm's {architecture.model}", lambda: create(architecture.model, **options))
        return create(name, **{**options, **weights})
    except (AssertionError, TypeError) as error:
        raise ValueError(f"timm cannot build {architecture.model}: {first_line(error)}.") from error


def _require_size(what: str, build: Callable[[], nn.Module]) -> None:
    """Raise ValueError for a model that is too large; it is built on the meta device first, where it takes no room."""
    try:
        with torch.device("meta"):
            model = build()
    except (NotImplementedError, RuntimeError) as error:  # it reads values back while it is built
        raise ValueError(f"{what} takes no options of its own: its size cannot be told beforehand.") from error
    require_size(what, sum(tensor.numel() for tensor in (*model.parameters(), *model.buffers())))


def timm_config(model: str) -> Any:
    """Return what timm states about a model, with or without a tag; UnknownModelError if it has none of that name."""
    with torch.device("cpu"):  # importing computes tensors, which fails under the meta device
        import timm

    name = model.partition(".")[0]
    require_known("timm", name, timm.list_models())
    try:
        return timm.get_pretrained_cfg(model)
    except RuntimeError as error:
        tags = ", ".join(timm.list_pretrained(f"{name}.*")) or "none"
        raise UnknownModelError(f"timm has no {model}; with weights it has {tags}.") from error


def _pooled_features(trunk: Any) -> int:
    features: int = getattr(trunk, "head_hidden_size", None) or trunk.num_features
    return features


def _open_clip_trunk(architecture: OpenClipArchitecture) -> nn.Module:
    with torch.device("cpu"):
        import open_clip
        from open_clip.model import _build_vision_tower

    if architecture.config is None:
        require_known("OpenCLIP", architecture.model, open_clip.list_models())
        config = open_clip.get_model_config(architecture.model)
    else:
        config = json.loads(architecture.config)
    if config["embed_dim"] != architecture.projection:
        raise ValueError(
            f"projection must be {config['embed_dim']} for OpenCLIP's {architecture.model}, got "
            f"{architecture.projection}."
        )
    vision = {**config["vision_cfg"], "image_size": architecture.image_size}
    if vision.get("timm_model_name"):
        import timm

        require_known("timm", vision["timm_model_name"].partition(".")[0], timm.list_models())
        vision["timm_model_pretrained"] = False
    quick_gelu = open_clip_flag("quick_gelu", config.get("quick_gelu", False))

    def build() -> nn.Module:
        trunk: nn.Module = _build_vision_tower(config["embed_dim"], vision, quick_gelu)
        return trunk

    try:
        if architecture.config is not None and not vision.get("timm_model_name"):
            _require_size(f"OpenCLIP's {architecture.model}", build)
        return build()
    except (AssertionError, TypeError) as error:
        raise ValueError(f"OpenCLIP cannot build {architecture.model}: {first_line(error)}.") from error
