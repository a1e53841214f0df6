"""Where fine-tuning starts: any encoder of ours, any OpenCLIP or timm model by name, and the text tower of a CLIP.

Names: one of the manifest, a path, a Hub id, or a library's model, as `rclip_metric.weights.load_encoder` takes them;
and those of the manifest with "@random", for random weights, in tests and benchmarks.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from rclip_metric.encoder import Architecture, Encoder, TimmArchitecture, ViTArchitecture, expected_shapes
from rclip_metric.encoder.library_towers import timm_architecture
from rclip_metric.errors import CheckpointError
from rclip_metric.images import Preprocessing
from rclip_metric.train.models.text import TextModel, build_text
from rclip_metric.train.models.text_weights import load_text
from rclip_metric.weights import get_spec, load_encoder
from rclip_metric.weights.libraries import (
    OPEN_CLIP,
    RANDOM,
    TIMM,
    load_library,
    open_clip_config,
    open_clip_model,
    random_encoder,
    split_name,
)


def load_base(name: str, *, seed: int = 0, image_size: int | None = None, squash: bool = False) -> Encoder:
    """Load the encoder that fine-tuning starts from, float32 on the CPU and in eval mode.

    Of a CLIP only the image tower is kept, in a native architecture where one computes the same. The preprocessing is
    the one that the library states for these weights.

    Args:
        name: See the head of this file and `rclip_metric.weights.libraries`.
        seed: Of random weights.
        image_size: Side of the square input in pixels instead of the model's own, as for `resized`; timm's own models
            take it where timm builds them for that size, which resamples the position embeddings of a ViT.
        squash: Bring images to the square whatever their aspect ratio, instead of cropping.

    Raises:
        UnknownModelError: No such name, model or tag; with those that there are.
        WeightsError: As for `load_encoder`.
        ValueError: The preprocessing, or the model itself, is none that an `Encoder` can have, or the model does not
            take images of that size.

    Example:
        >>> encoder = load_base("tiny-clean@random", seed=3)
        >>> encoder.image_size, encoder.revision, encoder.training
        (64, 'seed 3', False)
    """
    if name.startswith(TIMM):
        return load_library(name, seed=seed, image_size=image_size, squash=squash)
    known, _, tag = name.rpartition("@")
    if name.startswith(OPEN_CLIP):
        encoder = load_library(name, seed=seed)
    elif known and tag == RANDOM:
        spec = get_spec(known)
        encoder = random_encoder(name, spec.architecture, spec.preprocessing, seed, spec.mlp_hidden)
    else:
        encoder = load_encoder(name)
    return resized(encoder, image_size, squash).eval()


def resized(encoder: Encoder, image_size: int | None = None, squash: bool = False) -> Encoder:
    """Build an encoder with the same weights for images of another size, or squashed ones.

    Args:
        encoder: Left as it is. The result shares the memory of its weights, and is it where nothing changes.
        image_size: Side of the square input in pixels; None for the encoder's own. A crop keeps its share.
        squash: As for `load_base`.

    Raises:
        ValueError: As for `at_size`.

    Example:
        >>> encoder = load_base("tiny-clean@random")
        >>> resized(encoder, image_size=96).image_size, resized(encoder) is encoder
        (96, True)
    """
    architecture, preprocessing = at_size(encoder.architecture, encoder.preprocessing, image_size, squash)
    if (architecture, preprocessing) == (encoder.architecture, encoder.preprocessing):
        return encoder
    result = Encoder.from_weights(
        {key: tensor.detach() for key, tensor in encoder.state_dict().items()},
        architecture,
        preprocessing,
        mlp_hidden=encoder.mlp_hidden,
        resize=encoder.resize,
        name=encoder.name,
        revision=encoder.revision,
        domain=encoder.domain,
        reading=encoder.reading,
    )
    result.origin = encoder.origin
    return result.train(encoder.training)


def at_size(
    architecture: Architecture, preprocessing: Preprocessing, image_size: int | None, squash: bool
) -> tuple[Architecture, Preprocessing]:
    """Return what an encoder becomes when its images get another size, or are squashed.

    Args:
        architecture: Of the encoder.
        preprocessing: Of the encoder.
        image_size: As for `resized`.
        squash: As for `load_base`.

    Raises:
        ValueError: The tower's weights depend on the size of its images, as position embeddings do, or it does not take
            so small ones.
    """
    side = preprocessing.crop
    if image_size is not None and image_size != side:
        architecture = _architecture_at(architecture, image_size)
        preprocessing = preprocessing.at(image_size)
    if squash:
        preprocessing = replace(preprocessing, mode="squash", resize=preprocessing.crop)
    return architecture, preprocessing


def _architecture_at(architecture: Architecture, side: int) -> Architecture:
    fixed = (
        f"The weights of this {architecture.kind} tower are for images of {architecture.image_size} pixels, not of "
        f"{side}: another size takes a tower of convolutions, or a base timm:NAME."
    )
    if isinstance(architecture, ViTArchitecture):
        raise ValueError(fixed)
    if isinstance(architecture, TimmArchitecture):
        options, projection = json.loads(architecture.options), architecture.projection
        other: Architecture = timm_architecture(
            architecture.model, image_size=side, options=options, projection=projection
        )
    else:
        other = replace(architecture, image_size=side)
    if expected_shapes(other) != expected_shapes(architecture):
        raise ValueError(fixed)
    return other


def load_base_text(name: str, *, seed: int = 0) -> TextModel:
    """Load the text tower that goes with the encoder of that name.

    Args:
        name: As for `load_base`.
        seed: Of random weights.

    Raises:
        CheckpointError: It has none, or one that is not built as CLIP's own.
        WeightsError: As for `load_base`.

    Example:
        >>> load_base_text("timm:resnet18")
        Traceback (most recent call last):
            ...
        rclip_metric.errors.CheckpointError: timm:resnet18 has no text tower: TeCoA needs a CLIP.
    """
    if name.startswith(TIMM):
        raise CheckpointError(f"{name} has no text tower: TeCoA needs a CLIP.")
    if not name.startswith(OPEN_CLIP):
        return load_text(name)
    model, tag = split_name(name, OPEN_CLIP)
    config = open_clip_config(model)
    heads = _clip_text_heads(name, config["text_cfg"])
    whole, quick_gelu = open_clip_model(name, model, tag, config, seed)
    state = {key: value for key, value in whole.state_dict().items() if key != "logit_bias"}
    try:
        tower = build_text(state, heads=heads, quick_gelu=quick_gelu)
    except CheckpointError as error:
        raise CheckpointError(f"{name}: {error}") from error
    import open_clip

    return TextModel(tower, open_clip.get_tokenizer(model), name)


def _clip_text_heads(name: str, stated: Mapping[str, Any]) -> int:
    """Count the attention heads of a text tower that is built as CLIP's own; else raise CheckpointError."""
    from open_clip.model import CLIPTextCfg

    sizes = ("context_length", "vocab_size", "width", "heads", "layers")
    default = CLIPTextCfg()
    others = [
        key
        for key, value in stated.items()
        if key not in sizes and key != "tokenizer_kwargs" and value != getattr(default, key, None)
    ]
    if others:
        raise CheckpointError(
            f"The text tower of {name} is not built as CLIP's own ({', '.join(others)}): TeCoA cannot use it; FARE "
            "needs none."
        )
    heads: int = stated.get("heads", default.heads)
    return heads
