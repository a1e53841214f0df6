"""Data sets of drawn scenes, as small as a test allows."""

from pathlib import Path

from rclip_metric.train.data.scenes.draw import ScenesConfig, write_scenes


def small_scenes(folder: Path, triplets: tuple[int, int, int], *, images: int = 1, queries: int = 1) -> Path:
    """Draw training images, and NIGHTS triplets for train, val and test, below `folder`; the folder."""
    write_scenes(folder, ScenesConfig(images=images, triplets=triplets, pool=1, queries=queries), quiet=True)
    return folder
