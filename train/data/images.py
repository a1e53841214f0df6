"""Images for training: any tree of files, read in an order that is a function of the seed and the step."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from rclip_metric.images import ImageError
from rclip_metric.train.runs.seeds import seeded

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")


@dataclass(frozen=True)
class NamedImage:
    """An image, by a name: mostly its path below some folder.

    Example:
        >>> NamedImage("cats/1.jpg", Path("photos/cats/1.jpg")).key
        'cats/1.jpg'
    """

    key: str
    path: Path


def walk_images(root: str | Path) -> Iterator[str]:
    """Find all image files below `root`, sorted by path, part by part; none where there is no such folder.

    Links to folders are followed, unless they lead back to a folder that holds them. A link to nothing is an image that
    cannot be read: who reads it counts and names it.

    Raises:
        ValueError: if a folder below `root` cannot be listed.
    """
    if os.path.isdir(root):
        yield from _walk(os.fspath(root), (os.path.realpath(root),))


def _walk(folder: str, holders: tuple[str, ...]) -> Iterator[str]:
    """Walk as `walk_images`; `holders` are the real paths of the folders from the root to this one."""
    # The entries of a listing know what they are: a million files are not asked one by one, as Path.is_file would.
    try:
        with os.scandir(folder) as listing:
            entries = sorted(listing, key=lambda entry: entry.name)
    except OSError as error:
        raise ValueError(f"cannot list the folder {folder}: {error.strerror}") from error
    for entry in entries:
        named_so = os.path.splitext(entry.name)[1].lower() in SUFFIXES
        if named_so and (entry.is_file() or (entry.is_symlink() and not os.path.exists(entry.path))):
            yield entry.path
        elif entry.is_dir():
            real = os.path.realpath(entry.path) if entry.is_symlink() else os.path.join(holders[-1], entry.name)
            if real not in holders:
                yield from _walk(entry.path, (*holders, real))


def find_images(root: Path) -> list[Path]:
    """List all image files below `root`, sorted by path, as `walk_images` finds them.

    Raises:
        ValueError: if there is none, or a folder cannot be listed.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for name in ("b.png", "a.JPG", "notes.txt"):
        ...         Path(folder, name).touch()
        ...     found = find_images(Path(folder))
        >>> [path.name for path in found]
        ['a.JPG', 'b.png']
    """
    paths = [Path(path) for path in walk_images(root)]
    if not paths:
        raise ValueError(f"no image files ({', '.join(SUFFIXES)}) below {root}: pass a folder that holds some")
    return paths


class ImageFiles(Dataset[tuple[int, torch.Tensor | None]]):
    """Files as (index, image); the image is None where the file cannot be read, which the caller counts.

    Example:
        >>> files = ImageFiles([Path("a.png")], lambda path: torch.zeros(3, 8, 8))
        >>> index, image = files[0]
        >>> index, image.shape
        (0, torch.Size([3, 8, 8]))
    """

    def __init__(self, paths: list[Path], preprocess: Callable[[Path], torch.Tensor]) -> None:
        """Read `paths` with `preprocess`: path -> (3, S, S) in [0, 1]."""
        self.paths, self.preprocess = paths, preprocess

    def __len__(self) -> int:
        """Number of files, broken ones included."""
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[int, torch.Tensor | None]:
        """Read one file."""
        try:
            return index, self.preprocess(self.paths[index])
        except ImageError:
            return index, None


class StepSampler(Sampler[list[int]]):
    """Batches of indices for steps `start` to `stop`: every epoch is a fresh permutation seeded by (seed, epoch).

    The batch of a step depends on nothing but (count, batch size, seed, step), so a resumed run reads
    what the uninterrupted one would have read. The incomplete batch at the end of an epoch is left out.

    Example:
        >>> steps = list(StepSampler(count=10, batch_size=4, seed=0, start=0, stop=6))
        >>> steps[3:] == list(StepSampler(count=10, batch_size=4, seed=0, start=3, stop=6))  # resumed
        True
    """

    def __init__(self, count: int, batch_size: int, seed: int, start: int, stop: int) -> None:
        """Raise ValueError when one batch needs more images than there are."""
        if count < batch_size:
            raise ValueError(
                f"a batch of {batch_size} was asked for and there are {count} images: lower the batch size"
            )
        self.count, self.batch_size, self.seed, self.start, self.stop = count, batch_size, seed, start, stop

    def __len__(self) -> int:
        """Number of steps."""
        return self.stop - self.start

    def __iter__(self) -> Iterator[list[int]]:
        """Yield the indices of one step after another."""
        per_epoch = self.count // self.batch_size
        epoch, order = -1, torch.empty(0)
        for step in range(self.start, self.stop):
            if step // per_epoch != epoch:
                epoch = step // per_epoch
                order = torch.randperm(self.count, generator=seeded(self.seed, epoch))
            first = step % per_epoch * self.batch_size
            yield order[first : first + self.batch_size].tolist()


def _collate(items: list[tuple[int, torch.Tensor | None]]) -> tuple[list[int], torch.Tensor, list[int]]:
    indices = [index for index, image in items if image is not None]
    images = [image for _, image in items if image is not None]
    broken = [index for index, image in items if image is None]
    return indices, torch.stack(images) if images else torch.empty(0), broken


def loader(files: ImageFiles, sampler: StepSampler, workers: int = 0) -> DataLoader[tuple[int, torch.Tensor | None]]:
    """Load batches of (indices, images (B, 3, S, S), indices of files that could not be read), one per step.

    Example:
        >>> files = ImageFiles([Path("a.png"), Path("b.png")], lambda path: torch.zeros(3, 8, 8))
        >>> [(indices, images, broken)] = loader(files, StepSampler(2, 2, seed=0, start=0, stop=1))
        >>> sorted(indices), images.shape, broken
        ([0, 1], torch.Size([2, 3, 8, 8]), [])
    """
    return DataLoader(files, batch_sampler=sampler, num_workers=workers, collate_fn=_collate)
