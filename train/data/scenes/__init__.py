"""Drawn scenes: their images, and their triplets in the formats of the field."""

from typing import TYPE_CHECKING

from rclip_metric.lazy import import_when_used

if TYPE_CHECKING:
    from rclip_metric.train.data.scenes.config import ScenesConfig
    from rclip_metric.train.data.scenes.draw import (
        SIZE,
        VOCABULARY,
        SceneTriplet,
        edits,
        generator,
        render,
        sample_scene,
        sample_triplet,
        write_scenes,
    )
    from rclip_metric.train.data.scenes.formats import write_bapps, write_grounds, write_jnd, write_pairs, write_things

__all__ = [
    "SIZE",
    "VOCABULARY",
    "SceneTriplet",
    "ScenesConfig",
    "edits",
    "generator",
    "render",
    "sample_scene",
    "sample_triplet",
    "write_bapps",
    "write_grounds",
    "write_jnd",
    "write_pairs",
    "write_scenes",
    "write_things",
]

import_when_used(
    __name__,
    {
        ".config": "ScenesConfig",
        ".draw": "SIZE VOCABULARY SceneTriplet edits generator render sample_scene sample_triplet write_scenes",
        ".formats": "write_bapps write_grounds write_jnd write_pairs write_things",
    },
)
