"""The network: what an architecture is, the towers that compute it, and the state dicts that fill them."""

from typing import TYPE_CHECKING

from rclip_metric.lazy import import_when_used

if TYPE_CHECKING:
    from rclip_metric.encoder.architectures import (
        NAMED,
        Architecture,
        ConvNeXtArchitecture,
        ModuleArchitecture,
        OpenClipArchitecture,
        TimmArchitecture,
        ViTArchitecture,
        architecture_from_dict,
        architecture_to_dict,
        embedding_dim,
    )
    from rclip_metric.encoder.encoder import Encoder, ResidualMLP
    from rclip_metric.encoder.library_towers import timm_architecture
    from rclip_metric.encoder.open_clip_configs import open_clip_architecture, open_clip_vision_architecture
    from rclip_metric.encoder.state_dicts import LAYOUTS, convert, detect, expected_shapes, key_report, vision_keys
    from rclip_metric.encoder.towers import build_tower, without_weights

__all__ = [
    "LAYOUTS",
    "NAMED",
    "Architecture",
    "ConvNeXtArchitecture",
    "Encoder",
    "ModuleArchitecture",
    "OpenClipArchitecture",
    "ResidualMLP",
    "TimmArchitecture",
    "ViTArchitecture",
    "architecture_from_dict",
    "architecture_to_dict",
    "build_tower",
    "convert",
    "detect",
    "embedding_dim",
    "expected_shapes",
    "key_report",
    "open_clip_architecture",
    "open_clip_vision_architecture",
    "timm_architecture",
    "vision_keys",
    "without_weights",
]

import_when_used(
    __name__,
    {
        ".architectures": "NAMED Architecture ConvNeXtArchitecture ModuleArchitecture OpenClipArchitecture "
        "TimmArchitecture ViTArchitecture architecture_from_dict architecture_to_dict embedding_dim",
        ".encoder": "Encoder ResidualMLP",
        ".library_towers": "timm_architecture",
        ".open_clip_configs": "open_clip_architecture open_clip_vision_architecture",
        ".state_dicts": "LAYOUTS convert detect expected_shapes key_report vision_keys",
        ".towers": "build_tower without_weights",
    },
)
