"""From files, Pillow images and arrays to tensors in [0, 1], and what a model does to them before it looks."""

from typing import TYPE_CHECKING

from rclip_metric.lazy import import_when_used

if TYPE_CHECKING:
    from rclip_metric.errors import ImageError
    from rclip_metric.images.pixels import read_pixels
    from rclip_metric.images.preprocessing import (
        CLIP_MEAN,
        CLIP_STD,
        IMAGENET_MEAN,
        IMAGENET_STD,
        READINGS,
        RESIZES,
        Preprocessing,
        Reading,
        Resize,
    )
    from rclip_metric.images.reading import (
        SUFFIXES,
        as_batch,
        list_images,
        load_image,
        open_image,
        states_exposure,
    )
    from rclip_metric.images.reading import ImageSource as ImageSource
    from rclip_metric.images.resizing import preprocess_pil, resize_images

__all__ = [
    "CLIP_MEAN",
    "CLIP_STD",
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "READINGS",
    "RESIZES",
    "SUFFIXES",
    "ImageError",
    "Preprocessing",
    "Reading",
    "Resize",
    "as_batch",
    "list_images",
    "load_image",
    "open_image",
    "preprocess_pil",
    "read_pixels",
    "resize_images",
    "states_exposure",
]

import_when_used(
    __name__,
    {
        "rclip_metric.errors": "ImageError",
        ".pixels": "read_pixels",
        ".preprocessing": "CLIP_MEAN CLIP_STD IMAGENET_MEAN IMAGENET_STD READINGS RESIZES Preprocessing Reading Resize",
        ".reading": "SUFFIXES as_batch list_images load_image open_image states_exposure",
        ".resizing": "preprocess_pil resize_images",
    },
)
