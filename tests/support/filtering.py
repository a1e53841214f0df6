"""Examples of classes, and images to filter, in each form that the command takes."""

import hashlib
import io
import tarfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.parquet as pq  # type: ignore[import-untyped]
from PIL import Image

CLASSES = {"safe": 3, "buffer": 2, "unsafe": 3}
_LEVELS = {"safe": (0, 150, 0), "buffer": (0, 0, 150), "unsafe": (150, 0, 0)}


def save_of_class(path: Path, label: str, seed: int, size: tuple[int, int] = (40, 50)) -> Path:
    """Write noise in a colour of the class."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 100, (*size, 3)) + np.array(_LEVELS[label])
    Image.fromarray(pixels.astype(np.uint8)).save(path)
    return path


def make_pools(folder: Path) -> Path:
    """A folder of each class."""
    for place, (label, count) in enumerate(CLASSES.items()):
        for number in range(count):
            save_of_class(folder / label / f"{number}.png", label, 1000 * (place + 1) + number)
    return folder


def make_images(folder: Path, count: int, size: tuple[int, int] = (40, 50)) -> Path:
    """Images of all classes in turn, in two folders, some of which have files of one name."""
    for number in range(count):
        label = list(CLASSES)[number % len(CLASSES)]
        save_of_class(folder / f"d{number % 2}" / f"{number // 2}.jpg", label, number, size)
    return folder


def contents(folder: Path) -> list[bytes]:
    """The files below a folder, in order."""
    return [path.read_bytes() for path in sorted(folder.rglob("*.jpg"))]


def write_tars(folder: Path, images: Sequence[bytes], per_shard: int, long_names: bool = False) -> Path:
    """WebDataset shards of images."""
    folder.mkdir(parents=True, exist_ok=True)
    for start in range(0, len(images), per_shard):
        with tarfile.open(folder / f"s-{start // per_shard:03d}.tar", "w") as archive:
            for number, content in enumerate(images[start : start + per_shard], start):
                digest = hashlib.sha256(bytes([number % 256])).hexdigest() if long_names else ""
                member = tarfile.TarInfo(f"{number:04d}{digest}.jpg")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    return folder


def write_parquet(folder: Path, images: Sequence[bytes], per_file: int) -> Path:
    """Parquet files of images, as records of bytes and a name."""
    folder.mkdir(parents=True, exist_ok=True)
    for start in range(0, len(images), per_file):
        column = [{"bytes": content, "path": None} for content in images[start : start + per_file]]
        kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
        table = pa.table({"id": range(len(column)), "image": pa.array(column, kind)})
        pq.write_table(table, folder / f"p-{start // per_file:03d}.parquet", row_group_size=4)
    return folder
