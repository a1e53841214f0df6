"""Whose embeddings a student learns: run in every step, or once over all images where these do not vary."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from rclip_metric.images import Preprocessing, resize_images
from rclip_metric.train.data.stream import Batch
from rclip_metric.train.finetuning.lipsim.jitter import turned
from rclip_metric.train.metrics.base import Metric
from rclip_metric.train.runs import tensor_file

CACHE_NAME = "teacher.safetensors"
CACHE_BYTES = 2**31
"""Of the embeddings of all images: more of them are not kept, and the teacher runs in every step."""


class Teacher:
    """A metric as a teacher: any that embeds.

    Attributes:
        metric: the metric.
        size: side of its images, in pixels.
        dimensions: of its embeddings.

    Example:
        >>> from rclip_metric.train.metrics import load_metric
        >>> teacher = Teacher(load_metric("tiny-clean"))
        >>> teacher.size, teacher(torch.rand(2, 3, 32, 32)).shape
        (64, torch.Size([2, 128]))
        >>> Teacher(load_metric("ssim"))
        Traceback (most recent call last):
        ValueError: ssim compares pairs of images and embeds none, so there is nothing for a student to learn: pass ...
    """

    def __init__(self, metric: Metric) -> None:
        """Look at the sizes of its images and embeddings.

        Raises:
            ValueError: for a metric without embeddings.
        """
        if not hasattr(metric, "embed"):
            raise ValueError(
                f"{metric.name} compares pairs of images and embeds none, so there is nothing for a student to learn: "
                "pass a metric that embeds, such as tiny-clean, r-clip-f or dreamsim"
            )
        self.metric = metric
        sample = metric.preprocess(Image.new("RGB", (64, 64)))
        self.size = int(sample.shape[-1])
        self.dimensions = int(metric.fix(sample[None].to(metric.device)).shape[1])
        self._preprocessing = Preprocessing("squash", self.size, self.size)

    def __call__(self, images: Tensor) -> Tensor:
        """Embed images (N, 3, S, S) of any size: unit embeddings (N, D) on their device, without a graph."""
        with torch.no_grad():
            resized = resize_images(images.to(self.metric.device), self._preprocessing)
            return self.metric.fix(resized).float().to(images.device)

    def describe(self) -> dict[str, Any]:
        """Say which it is, for run.json."""
        return self.metric.describe()

    @property
    def digest(self) -> str:
        """Sum up what it says of itself: 16 hex digits."""
        return hashlib.sha256(json.dumps(self.describe(), sort_keys=True).encode()).hexdigest()[:16]


class Lesson:
    """What the teacher says of all images of a tree, and of their mirror images.

    Attributes:
        embeddings: (N, 1 or 2, D), N the places in the tree; where an image could not be read, NaN.

    Example:
        >>> lesson = Lesson(torch.tensor([[[1.0, 0.0], [0.0, 1.0]]]))  # one image, as it is and mirrored
        >>> lesson([0], torch.tensor([True]))
        tensor([[0., 1.]])
    """

    def __init__(self, embeddings: Tensor) -> None:
        """Keep embeddings."""
        self.embeddings = embeddings

    def __call__(self, keys: list[int], which: Tensor) -> Tensor:
        """Look up images by their places, mirrored where `which` (n,) says so: (n, D)."""
        return self.embeddings[torch.tensor(keys, dtype=torch.long), which.long()]

    def shortened(self, dimensions: int) -> Lesson:
        """Keep the part of every embedding along the leading directions of all, those that hold most of their squares.

        What two shortened embeddings are to each other is what their originals are, less what lies in the other
        directions.

        Raises:
            ValueError: if they have fewer dimensions.
        """
        if dimensions > self.embeddings.shape[2]:
            raise ValueError(
                f"the teacher's embeddings have {self.embeddings.shape[2]} dimensions, and {dimensions} were asked for"
            )
        rows = self.embeddings.flatten(0, 1)
        rows = rows[rows.isfinite().all(1)].double()
        _, directions = torch.linalg.eigh(rows.t() @ rows)  # by rising eigenvalue
        return Lesson(self.embeddings @ directions[:, -dimensions:].float())

    @classmethod
    def given(cls, teacher: Teacher, batches: Iterable[Batch], count: int, flip: bool) -> Lesson:
        """Have the teacher embed every image of a tree of `count` once, or twice where images are mirrored."""
        embeddings = torch.full((count, 2 if flip else 1, teacher.dimensions), torch.nan)
        for batch in batches:
            if not len(batch.images):
                continue
            keys = torch.tensor(batch.keys)
            embeddings[keys, 0] = teacher(batch.images)
            if flip:
                embeddings[keys, 1] = teacher(turned(batch.images, torch.ones(len(keys), dtype=torch.bool)))
        return cls(embeddings)

    def write(self, path: Path, about: str) -> None:
        """Keep them on disk, with a text that says what they are of.

        Raises:
            StorageError: if they cannot be written.
        """
        tensor_file.write(path, {"embeddings": self.embeddings}, {"about": about}, what="the teacher's embeddings")

    @classmethod
    def read(cls, path: Path, about: str) -> Lesson | None:
        """Read them, unless there are none or they are of something else.

        Raises:
            CheckpointError: if the file is damaged.
        """
        if not path.is_file():
            return None
        values, metadata = tensor_file.read(path)
        return cls(values["embeddings"]) if metadata.get("about") == about else None
