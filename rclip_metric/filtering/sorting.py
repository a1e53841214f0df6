"""Images in a folder for each class, as links or copies; what was decided on stays where it is."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath

from rclip_metric.errors import FilterError, ImageError
from rclip_metric.files import written_whole
from rclip_metric.filtering.shards import Item, ParquetShard, Shard, TarShard
from rclip_metric.filtering.table import Parts

_SUFFIXES = ((b"\xff\xd8\xff", ".jpg"), (b"\x89PNG", ".png"), (b"GIF8", ".gif"), (b"BM", ".bmp"), (b"II*\0", ".tif"))


def check_sorting(shards: Sequence[Shard], how: str) -> None:
    """Refuse links to what is no file of its own.

    Raises:
        FilterError: It is inside a shard.
    """
    packed = next((shard for shard in shards if isinstance(shard, TarShard | ParquetShard)), None)
    if packed is not None and how == "link":
        raise FilterError(f"there is no file to link to in {packed.name}: pass --copy, which writes the images out.")


def sort_images(
    folder: Path, shards: Sequence[Shard], parts: Parts, how: str, on_skip: Callable[[Path, str], None]
) -> int:
    """Make FOLDER/CLASS/NAME of every image that has a decision; names keep their folders, so that none meet.

    Args:
        folder: Where to.
        shards: What was decided on.
        parts: The decisions, all there.
        how: "link" or "copy". What is there already is left as it is.
        on_skip: Called with an image that cannot be, and why.

    Returns:
        How many are there.
    """
    for unfinished in list(folder.rglob(".*.partial")):  # by a process that was killed
        shutil.rmtree(unfinished, ignore_errors=True)
    count = 0
    for number, shard in enumerate(shards):
        seen: Counter[PurePosixPath] = Counter()  # a shard may have two samples of one name
        for item, row in zip(shard.items(), parts.rows(number), strict=True):
            if row["error"] is not None or not row["decision"]:
                continue
            name = item.name if item.path is not None else item.name.replace(":", "/")
            place = PurePosixPath(row["decision"], name)
            seen[place] += 1
            if seen[place] > 1:
                place = place.with_name(f"{place.stem}~{seen[place]}{place.suffix}")
            if place.is_absolute() or ".." in place.parts or "\0" in str(place):
                on_skip(Path(item.name), "its name leads out of the folder, so that it is not sorted")
                continue
            try:
                _put(item, folder / place, how)
            except ImageError as error:
                on_skip(Path(item.name), str(error))
            else:
                count += 1
    return count


def _put(item: Item, target: Path, how: str) -> None:
    if how == "link":
        if item.path is None:
            raise ImageError("there is no file to link to")
        target.parent.mkdir(parents=True, exist_ok=True)
        if not target.is_symlink():
            target.symlink_to(os.path.abspath(item.path))
        return
    if item.read is None:
        raise ImageError("there is no file to copy")
    content = item.read()
    if item.path is None:  # a row of a Parquet file does not say of what format it is
        suffix = item.suffix or next((suffix for start, suffix in _SUFFIXES if content.startswith(start)), ".image")
        target = target.with_name(target.name + suffix)
    if not target.exists():
        with written_whole(target) as partial:
            partial.write_bytes(content)
