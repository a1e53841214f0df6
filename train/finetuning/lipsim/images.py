"""The photographs of step 1: squashed to a square, kept in memory where they are small, from one tree or several."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from rclip_metric.images import Preprocessing, open_image, preprocess_pil
from rclip_metric.train.data.augmentation import Augmentation
from rclip_metric.train.data.contents import tree_digest
from rclip_metric.train.data.images import find_images
from rclip_metric.train.data.stream import Stream, TreeSampler, open_stream

if TYPE_CHECKING:
    from rclip_metric.images import ImageSource

KEEP_BYTES = 2**30


class Squashed:
    """Reads images squashed to a square, as metrics of functions do; those of files stay in memory as grey levels.

    Example:
        >>> import tempfile
        >>> from PIL import Image
        >>> read = Squashed(8)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     Image.new("RGB", (30, 20), "white").save(Path(folder, "white.png"))
        ...     first = read(Path(folder, "white.png"))
        ...     Path(folder, "white.png").unlink()
        ...     torch.equal(first, read(Path(folder, "white.png")))  # from memory
        True
    """

    def __init__(self, size: int, keep_bytes: int = KEEP_BYTES) -> None:
        """Read to `size` x `size` pixels, and keep up to `keep_bytes` of them in this process."""
        self.preprocessing = Preprocessing("squash", size, size)
        self._left, self._kept = keep_bytes, dict[Path, Tensor]()

    def __call__(self, source: ImageSource) -> Tensor:
        """Read one: (3, S, S) in [0, 1], in whole grey levels; raises ImageError."""
        if not isinstance(source, Path):
            return preprocess_pil(open_image(source), self.preprocessing)
        if source in self._kept:
            return self._kept[source].float() / 255
        image = preprocess_pil(open_image(source), self.preprocessing)
        levels = image.mul(255).round_().to(torch.uint8)
        if levels.numel() <= self._left:
            self._left -= levels.numel()
            self._kept[source] = levels
        return levels.float() / 255


def photographs(
    sources: Sequence[str | Path],
    read: Squashed,
    *,
    batch_size: int,
    seed: int,
    stop: int,
    start: int = 0,
    workers: int = 0,
    augmentation: Augmentation | None = None,
) -> Stream:
    """Open the batches of steps `start` to `stop`, of one source as `open_stream` does or of several trees together.

    Raises:
        ValueError: as `open_stream` does; if there are several sources and one is no tree of images.

    Example:
        >>> photographs([], Squashed(8), batch_size=1, seed=0, stop=1)
        Traceback (most recent call last):
        ValueError: there are no images to learn from: pass a tree of them, or WebDataset shards
    """
    if not sources:
        raise ValueError("there are no images to learn from: pass a tree of them, or WebDataset shards")
    if len(sources) == 1:
        return open_stream(
            sources[0],
            read,
            batch_size=batch_size,
            seed=seed,
            start=start,
            stop=stop,
            workers=workers,
            augmentation=augmentation,
        )
    trees = [(Path(source), [str(path) for path in find_images(Path(source))]) for source in sources]
    paths = [path for _, found in trees for path in found]
    sampler = TreeSampler(paths, batch_size, seed, start, stop)
    facts: dict[str, Any] = {"path": ", ".join(str(root) for root, _ in trees), "images": len(paths)}

    def contents() -> str:
        digests = [tree_digest(root, found) for root, found in trees]
        return hashlib.sha256(" ".join(digests).encode()).hexdigest()[:16]

    return Stream(sampler, read, facts, count=len(paths), workers=workers, augmentation=augmentation, contents=contents)
