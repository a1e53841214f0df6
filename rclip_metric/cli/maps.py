"""Difference maps of image files, all on one scale, to be laid over their pictures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rclip_metric.cli.gallery import SIDE, Group
from rclip_metric.cli.run import Run, number
from rclip_metric.errors import ImageError

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image
    from torch import Tensor

Source = str | bytes | None
"""A file, its bytes, or nothing that could be shown."""
MOST = 1000
"""Maps of one page."""
_KEPT = 160  # pixels of a map that are kept: its cells are larger


def with_maps(groups: Sequence[Group], run: Run) -> tuple[list[Group], tuple[str, str]]:
    """Give the tiles of groups, all but the first of each, the map of where they differ from the first.

    Args:
        groups: Of files.
        run: Its metric makes the maps.

    Returns:
        The groups, and the numbers at the two ends of the maps' colours.
    """
    pairs = [(tile.path, group.tiles[0].path) for group in groups for tile in group.tiles[1:]]
    maps = DifferenceMaps(run, pairs)
    told = [
        replace(
            group,
            tiles=[*group.tiles[:1], *(replace(t, map=maps.of(t.path, group.tiles[0].path)) for t in group.tiles[1:])],
        )
        for group in groups
    ]
    return told, ("0", number(maps.top))


class DifferenceMaps:
    """Where files differ from others, computed at once, so that the largest number of all is known.

    Args:
        run: Its metric is asked.
        pairs: An image, and the image that it is compared with; no more than `MOST` of them are.
    """

    def __init__(self, run: Run, pairs: Sequence[tuple[Source, Source]]) -> None:
        """Compute the maps, with a progress bar on a terminal."""
        # What is shown is small; what the metric sees is not smaller than what it wants to see.
        side = max(SIDE, 2 * run.metric.encoder.preprocessing.resize)
        read = lru_cache(maxsize=2)(lambda path: _reduced(path, side))
        self._found: dict[tuple[Source, Source], np.ndarray[Any, Any]] = {}
        wanted = list(dict.fromkeys(pairs))
        with run.working() as progress:
            progress.start(min(len(wanted), MOST))
            for pair in wanted[:MOST]:
                try:
                    self._found[pair] = _map(run, *map(read, pair))
                except ImageError:  # it is gone since it was indexed: its place on the page says so
                    continue
                finally:
                    progress.advance()
        if len(wanted) > MOST:
            run.remark(f"difference maps for {MOST} of {len(wanted)} pictures, the first ones: a page holds no more")
        self.top = max((float(values.max()) for values in self._found.values()), default=0.0)

    def of(self, image: Source, other: Source) -> Callable[[Image.Image], Image.Image] | None:
        """Return what lays the map of a pair over the image's picture, None if there is none."""
        from rclip_metric.images.heat import overlay

        values = self._found.get((image, other))
        return None if values is None else lambda picture: overlay(picture, values, self.top)


def _reduced(path: Source, side: int) -> Tensor:
    from rclip_metric.images.reading import load_image, open_image

    if path is None:
        raise ImageError("there is no file")
    picture = open_image(path if isinstance(path, bytes) else Path(path))
    picture.thumbnail((side, side))
    return load_image(picture)[None]


def _map(run: Run, x: Tensor, y: Tensor) -> np.ndarray[Any, Any]:
    import torch.nn.functional as F

    device = run.metric.device
    found = run.metric.difference_map(x.to(device), y.to(device))[None]  # (1, 1, H, W)
    height, width = (max(1, round(side * min(1, _KEPT / max(found.shape[2:])))) for side in found.shape[2:])
    kept: np.ndarray[Any, Any] = F.interpolate(found, (height, width), mode="area")[0, 0].half().cpu().numpy()
    return kept
