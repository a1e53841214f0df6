"""Data sets: read (images, shards, triplets, classes) and made (triplets from photographs; `scenes` draws its own)."""

from typing import TYPE_CHECKING

from rclip_metric.lazy import import_when_used

if TYPE_CHECKING:
    from rclip_metric.train.data.augmentation import Augmentation
    from rclip_metric.train.data.check import check_images
    from rclip_metric.train.data.classes import LabelledFolders, LabelledImage, Prompts, read_classes, read_prompts
    from rclip_metric.train.data.cue_conflict import ConflictTriplet, conflict_triplets, read_conflicts
    from rclip_metric.train.data.filter_pools import FilterImage, FilterPools, Sizes, read_filter_pools
    from rclip_metric.train.data.images import ImageFiles, StepSampler, find_images, loader
    from rclip_metric.train.data.photo_recipes import PHOTO_KINDS
    from rclip_metric.train.data.photos import PHOTOS_RECORD, write_photos
    from rclip_metric.train.data.photos_config import PhotosConfig
    from rclip_metric.train.data.splits import BAPPS_SPLITS
    from rclip_metric.train.data.stream import Batch, Stream, open_stream
    from rclip_metric.train.data.things import Things, read_things
    from rclip_metric.train.data.triplet_images import TripletEmbeddings, TripletImages
    from rclip_metric.train.data.triplets import (
        TripletFiles,
        read_bapps,
        read_bapps_training,
        read_nights,
    )

__all__ = [
    "BAPPS_SPLITS",
    "PHOTOS_RECORD",
    "PHOTO_KINDS",
    "Augmentation",
    "Batch",
    "ConflictTriplet",
    "FilterImage",
    "FilterPools",
    "ImageFiles",
    "LabelledFolders",
    "LabelledImage",
    "PhotosConfig",
    "Prompts",
    "Sizes",
    "StepSampler",
    "Stream",
    "Things",
    "TripletEmbeddings",
    "TripletFiles",
    "TripletImages",
    "check_images",
    "conflict_triplets",
    "find_images",
    "loader",
    "open_stream",
    "read_bapps",
    "read_bapps_training",
    "read_classes",
    "read_conflicts",
    "read_filter_pools",
    "read_nights",
    "read_prompts",
    "read_things",
    "write_photos",
]

import_when_used(
    __name__,
    {
        ".augmentation": "Augmentation",
        ".check": "check_images",
        ".classes": "LabelledFolders LabelledImage Prompts read_classes read_prompts",
        ".cue_conflict": "ConflictTriplet conflict_triplets read_conflicts",
        ".filter_pools": "FilterImage FilterPools Sizes read_filter_pools",
        ".images": "ImageFiles StepSampler find_images loader",
        ".photo_recipes": "PHOTO_KINDS",
        ".photos": "PHOTOS_RECORD write_photos",
        ".photos_config": "PhotosConfig",
        ".splits": "BAPPS_SPLITS",
        ".stream": "Batch Stream open_stream",
        ".things": "Things read_things",
        ".triplet_images": "TripletEmbeddings TripletImages",
        ".triplets": "TripletFiles read_bapps read_bapps_training read_nights",
    },
)
