"""Encoders written so that OpenCLIP and timm load them with their own functions."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import Tensor

from rclip_metric.encoder.architectures import OpenClipArchitecture, TimmArchitecture
from rclip_metric.encoder.open_clip_configs import open_clip_config_of
from rclip_metric.encoder.state_dicts import published
from rclip_metric.errors import StorageError
from rclip_metric.files import written_whole
from rclip_metric.weights.saving import CONFIG_NAME, WEIGHTS_NAME, save_encoder

if TYPE_CHECKING:
    from rclip_metric.encoder.encoder import Encoder

Format = Literal["rclip-metric", "open_clip", "timm"]
FORMATS: tuple[Format, ...] = get_args(Format)
_OPEN_CLIP_NAMES = ("open_clip_config.json", "open_clip_model.safetensors")
# OpenCLIP builds no image tower alone. This text tower knows one word, and NaN is all that it says of it.
_NO_TEXT = {"context_length": 1, "vocab_size": 1, "width": 8, "heads": 1, "layers": 1}


def save_as(encoder: Encoder, folder: str | os.PathLike[str], format: Format = "rclip-metric") -> Path:
    """Write an encoder to a folder for another library, or in our own format.

    - "open_clip": `open_clip.create_model_from_pretrained("local-dir:FOLDER")` gives a transform, and a model whose
      `encode_image` embeds as the encoder does. OpenCLIP resizes straight to the encoder's size: of a resize to 256 and
      a crop of 224 the crop stays. There is no text tower: `encode_text` gives NaN or fails.
    - "timm": `timm.create_model(NAME, num_classes=0, checkpoint_path="FOLDER/model.safetensors")`, NAME being the
      "architecture" in the folder's config.json, or `timm.create_model("local-dir:FOLDER", pretrained=True)`.

    Args:
        encoder: On any device. It is not changed.
        folder: Made if it does not exist.
        format: "rclip-metric" (as `save_encoder`), "open_clip" or "timm".

    Returns:
        The folder.

    Raises:
        ValueError: The library has no such tower, or no place for the encoder's MLP head; or the format is unknown.
        StorageError: The disk is full or the folder cannot be written.

    Example:
        >>> import tempfile
        >>> from rclip_metric.encoder import Encoder, ViTArchitecture
        >>> from rclip_metric.images import Preprocessing
        >>> vit = ViTArchitecture(image_size=32, patch_size=8, width=64, depth=1, heads=1, projection=16)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     sorted(os.listdir(save_as(Encoder(vit, Preprocessing("crop", 32, 32)), folder, "open_clip")))
        ['open_clip_config.json', 'open_clip_model.safetensors']
    """
    if format not in FORMATS:
        raise ValueError(f"format must be one of {', '.join(FORMATS)}, got {format!r}")
    if format == "rclip-metric":
        return save_encoder(encoder, folder)
    if encoder.head is not None:
        raise ValueError(f"{encoder.name} has an MLP head, for which {format} has no place")
    config, state = _open_clip(encoder) if format == "open_clip" else _timm(encoder)
    names = _OPEN_CLIP_NAMES if format == "open_clip" else (CONFIG_NAME, WEIGHTS_NAME)
    return _written(Path(folder), names, config, state)


def _open_clip(encoder: Encoder) -> tuple[dict[str, Any], dict[str, Tensor]]:
    import open_clip

    model = {**open_clip_config_of(encoder.architecture), "text_cfg": _NO_TEXT}
    preprocessing = encoder.preprocessing
    stated = {
        "size": preprocessing.crop,
        "mean": list(preprocessing.mean),
        "std": list(preprocessing.std),
        "interpolation": preprocessing.interpolation,
        "resize_mode": "squash" if preprocessing.mode == "squash" else "shortest",
    }
    state = published(encoder.state_dict(), "open-clip", encoder.architecture)
    with torch.device("meta"):
        text = open_clip.CLIP(
            model["embed_dim"], {"layers": 1, "width": 8, "head_width": 8, "patch_size": 224}, _NO_TEXT
        ).state_dict()
    state |= {key: torch.full(value.shape, torch.nan) for key, value in text.items() if not key.startswith("visual.")}
    return {"model_cfg": model, "preprocess_cfg": stated}, state


def _timm(encoder: Encoder) -> tuple[dict[str, Any], dict[str, Tensor]]:
    architecture, preprocessing = encoder.architecture, encoder.preprocessing
    if not isinstance(architecture, TimmArchitecture) or architecture.projection is not None:
        what = "projection" if isinstance(architecture, TimmArchitecture) else f"{architecture.kind} tower"
        other = " (open_clip may)" if isinstance(architecture, OpenClipArchitecture) else ""
        raise ValueError(f"{encoder.name} has a {what}, which no model of timm's has{other}")
    name, _, tag = architecture.model.partition(".")
    about = {
        "tag": tag,
        "custom_load": False,
        "input_size": [3, preprocessing.crop, preprocessing.crop],
        "interpolation": preprocessing.interpolation,
        "crop_pct": preprocessing.crop / preprocessing.resize,
        "crop_mode": "squash" if preprocessing.mode == "squash" else "center",
        "mean": list(preprocessing.mean),
        "std": list(preprocessing.std),
        "num_classes": 0,
    }
    config = {
        "architecture": name,
        "num_classes": 0,
        "num_features": architecture.features,
        "pretrained_cfg": about,
        "model_args": json.loads(architecture.options),
    }
    return config, published(encoder.state_dict(), "timm", architecture)


def _written(folder: Path, names: tuple[str, str], config: dict[str, Any], state: dict[str, Tensor]) -> Path:
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    tensors = {key: value.detach().cpu().clone(memory_format=torch.contiguous_format) for key, value in state.items()}
    try:
        with written_whole(folder / names[1]) as partial:
            save_file(tensors, partial, metadata={"format": "pt"})
        with written_whole(folder / names[0]) as partial:
            partial.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    except (OSError, SafetensorError) as error:
        reason = (isinstance(error, OSError) and error.strerror) or str(error)
        raise StorageError(f"The encoder cannot be saved in {folder}: {reason.rstrip('.')}.") from error
    return folder
