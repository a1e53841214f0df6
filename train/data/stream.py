"""One stream of batches for fine-tuning: this process's share of every step, from a tree of images or from shards.

What a step holds is a function of the source, the seed and the step, so a run that starts at step k reads what
an uninterrupted one would have read, with any number of loading processes.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from rclip_metric.images import ImageError, open_image
from rclip_metric.train.data.classes import read_classes
from rclip_metric.train.data.contents import tree_digest
from rclip_metric.train.data.images import SUFFIXES, walk_images
from rclip_metric.train.runs.seeds import seeded

if TYPE_CHECKING:
    from rclip_metric.images import ImageSource
    from rclip_metric.train.data.augmentation import Augmentation
    from rclip_metric.train.data.shards import ShardSampler


class Batch(NamedTuple):
    """This process's share of one step.

    Attributes:
        keys: a number per image that is the same whenever the image is drawn, for the seed of its random start: its
            place in the sorted tree, or a hash of its shard's name and its key.
        images: (b, 3, S, S) in [0, 1]; b is smaller than asked for where files are broken or the epoch ends, even 0.
        labels: (b,) int64, or None where none were asked for.
        broken: names of the files that could not be read, in place of images.
        position: the step.

    Example:
        >>> batch = Batch([17], torch.zeros(1, 3, 8, 8), labels=None, broken=[], position=3)
        >>> len(batch.images), batch.position
        (1, 3)
    """

    keys: list[int]
    images: Tensor
    labels: Tensor | None
    broken: list[str]
    position: int


class Sample(Protocol):
    """What a sampler draws and a loading process opens: small, and sent from one to the other."""

    @property
    def key(self) -> int:
        """The number of the image, as `Batch` has it."""

    @property
    def name(self) -> str:
        """What to call the file where it cannot be read."""

    def load(self) -> tuple[ImageSource, int | None]:
        """Give the encoded image and its label; raises ImageError where either is not there."""


@dataclass(frozen=True)
class TreeImage:
    """An image of a tree: its place in the sorted tree, its path, and its class where classes are read."""

    key: int
    name: str
    label: int | None = None

    def load(self) -> tuple[ImageSource, int | None]:
        """Give the path, which is opened as it is decoded."""
        return Path(self.name), self.label


class TreeSampler(Sampler[list[TreeImage]]):
    """Shares of the steps `start` to `stop` of a tree: every epoch is a fresh permutation seeded by (seed, epoch).

    All images of an epoch are drawn, so its last batch may be smaller. Of a batch, process r of n takes the places r,
    r + n, r + 2n, ...: shares are disjoint, cover the batch, and differ by one image at most.
    """

    def __init__(
        self,
        paths: Sequence[str],
        batch_size: int,
        seed: int,
        start: int,
        stop: int,
        *,
        rank: int = 0,
        world: int = 1,
        labels: Sequence[int] | None = None,
    ) -> None:
        """Raise ValueError when one batch needs more images than there are."""
        if len(paths) < batch_size:
            raise ValueError(
                f"a batch of {batch_size} was asked for and there are {len(paths)} images: lower the batch size"
            )
        self.paths, self.labels, self.batch_size = paths, labels, batch_size
        self.seed, self.start, self.stop, self.rank, self.world = seed, start, stop, rank, world

    def __len__(self) -> int:
        """Number of steps."""
        return self.stop - self.start

    def __iter__(self) -> Iterator[list[TreeImage]]:
        """Yield the images of one step after another."""
        yield from (share for share, _ in self.with_partners())

    def with_partners(self) -> Iterator[tuple[list[TreeImage], list[TreeImage]]]:
        """Yield the images of a step, and for each the next one in the whole batch (for the last: the first)."""
        per_epoch = -(-len(self.paths) // self.batch_size)
        epoch, order = -1, torch.empty(0)
        for step in range(self.start, self.stop):
            if step // per_epoch != epoch:
                epoch = step // per_epoch
                order = torch.randperm(len(self.paths), generator=seeded(self.seed, epoch))
            first = step % per_epoch * self.batch_size
            batch = order[first : first + self.batch_size]
            yield self._share(batch), self._share(batch.roll(-1))

    def _share(self, batch: Tensor) -> list[TreeImage]:
        own = batch.tolist()[self.rank :: self.world]
        return [TreeImage(i, self.paths[i], None if self.labels is None else self.labels[i]) for i in own]


class _Drawn(NamedTuple):
    """A sample, the step that it is drawn for, and the one that it may be mixed with."""

    step: int
    sample: Sample
    partner: Sample


class _Decoded(Dataset[tuple[Sample, Tensor | None, int | None]]):
    """Samples of a step as (sample, image, label); the image is None where the file cannot be read."""

    def __init__(self, preprocess: Callable[[ImageSource], Tensor], augmentation: Augmentation | None) -> None:
        self.preprocess, self.augmentation = preprocess, augmentation

    def __getitem__(self, drawn: Any) -> tuple[Sample, Tensor | None, int | None]:
        step, sample, partner = drawn
        try:
            image, label = self._read(sample, step)
        except ImageError:
            return sample, None, None
        if self.augmentation is not None and self.augmentation.mixup:
            with contextlib.suppress(ImageError):  # the partner is named when its own turn comes
                image = self.augmentation.mixed(image, lambda: self._read(partner, step)[0], step, sample.key)
        return sample, image, label

    def _read(self, sample: Sample, step: int) -> tuple[Tensor, int | None]:
        source, label = sample.load()
        if self.augmentation is not None:
            source = self.augmentation(open_image(source), step, sample.key)
        return self.preprocess(source), label


@dataclass(frozen=True)
class _Collate:
    preprocess: Callable[[ImageSource], Tensor]
    labels: bool

    def __call__(self, items: list[tuple[Sample, Tensor | None, int | None]]) -> Batch:
        images = [image for _, image, _ in items if image is not None]
        read = [(sample.key, label) for sample, image, label in items if image is not None]
        return Batch(
            keys=[key for key, _ in read],
            images=torch.stack(images) if images else self._none(),
            labels=torch.tensor([label for _, label in read], dtype=torch.int64) if self.labels else None,
            broken=[sample.name for sample, image, _ in items if image is None],
            position=-1,  # the stream counts
        )

    def _none(self) -> Tensor:
        from PIL import Image

        return self.preprocess(Image.new("RGB", (64, 64)))[None][:0]  # (0, 3, S, S)


class _Steps(Sampler[list[_Drawn]]):
    """What a sampler draws, with the step that it is drawn for."""

    def __init__(self, sampler: TreeSampler | ShardSampler) -> None:
        self.sampler = sampler

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[list[_Drawn]]:
        batches: Iterable[tuple[Sequence[Sample], Sequence[Sample]]] = self.sampler.with_partners()
        for step, (share, partners) in enumerate(batches, start=self.sampler.start):
            yield [_Drawn(step, sample, partner) for sample, partner in zip(share, partners, strict=True)]


class Stream:
    """Batches of one step after another, as `open_stream` describes them.

    Attributes:
        classes: names of the classes, where the source has them and labels were asked for.
        count: number of images, None for shards, which are not counted beforehand.
        contents: digests the names and sizes of all files, and what they hold (`tree_digest`); empty where there are
            none.

    Example:
        >>> sampler = TreeSampler(["a.png", "b.png", "c.png"], batch_size=2, seed=0, start=0, stop=4)
        >>> stream = Stream(sampler, lambda path: torch.zeros(3, 8, 8), facts={})
        >>> [len(batch.images) for batch in stream]  # every other step ends an epoch
        [2, 1, 2, 1]
    """

    def __init__(
        self,
        sampler: TreeSampler | ShardSampler,
        preprocess: Callable[[ImageSource], Tensor],
        facts: dict[str, Any],
        *,
        classes: tuple[str, ...] | None = None,
        count: int | None = None,
        labels: bool = False,
        workers: int = 0,
        augmentation: Augmentation | None = None,
        contents: Callable[[], str] = str,
    ) -> None:
        """Read what `sampler` draws, in `workers` processes of its own or, with 0, in this one."""
        self.classes, self.count = classes, count
        self._facts, self._sampler = facts, sampler
        self.contents = contents
        self._loader = DataLoader(
            _Decoded(preprocess, augmentation),
            batch_sampler=_Steps(sampler),
            num_workers=workers,
            collate_fn=_Collate(preprocess, labels),
            pin_memory=torch.cuda.is_available(),
            worker_init_fn=_leave_signals_to_the_parent,
            generator=torch.Generator(),  # of its own: the global one is the run's to save and restore
        )

    def __len__(self) -> int:
        """Number of steps."""
        return len(self._sampler)

    def __iter__(self) -> Generator[Batch, None, None]:
        """Yield this process's share of one step after another; closing the generator ends the loading processes."""
        for position, batch in enumerate(self._loader, start=self._sampler.start):
            yield batch._replace(position=position)

    def describe(self) -> dict[str, Any]:
        """Say what was read, for run.json."""
        return dict(self._facts)


def open_stream(
    source: str | Path,
    preprocess: Callable[[ImageSource], Tensor],
    *,
    batch_size: int,
    seed: int,
    stop: int,
    start: int = 0,
    rank: int = 0,
    world: int = 1,
    labels: bool = False,
    workers: int = 0,
    augmentation: Augmentation | None = None,
) -> Stream:
    """Open this process's share of the global batches of steps `start` to `stop`.

    A tree's batches depend on neither the number of processes nor that of workers, its epochs end with a smaller batch,
    and its labels are the folders right below it, in sorted order. Shards are shared out over the processes anew in
    every epoch, their batches are always full, and resuming is exact for the same number of processes.

    Args:
        source: any folder of images; or WebDataset shards: a .tar file, a folder of them, or a pattern in braces such
            as `/data/shard-{000000..000999}.tar`.
        preprocess: path, bytes or Pillow image -> (3, S, S) in [0, 1], an encoder's `preprocess`; raises ImageError for
            what cannot be read.
        batch_size: images of all processes together in one step.
        seed: of the order.
        stop: the step after the last one.
        start: the first step.
        rank: number of this process.
        world: number of processes.
        labels: read labels as well.
        workers: loading processes of this process; 0 loads within this one.
        augmentation: random crops and flips, before `preprocess`, and mixtures after it; None for the images as they
            are.

    Raises:
        ValueError: if there are no images, or fewer than a batch; no classes; fewer shards than processes; or the
            extra for shards is not installed.

    Example:
        >>> import tempfile
        >>> from PIL import Image
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for name in ("a.png", "b.png"):
        ...         Image.new("RGB", (8, 8)).save(Path(folder, name))
        ...     stream = open_stream(folder, lambda path: torch.zeros(3, 8, 8), batch_size=2, seed=0, stop=3)
        ...     shapes = [tuple(batch.images.shape) for batch in stream]
        >>> shapes
        [(2, 3, 8, 8), (2, 3, 8, 8), (2, 3, 8, 8)]
    """
    if not 0 <= rank < world or not 0 <= start <= stop or workers < 0:
        raise ValueError(
            f"got process {rank} of {world}, steps {start} to {stop} and {workers} workers: "
            "numbers count from 0, and a range ends no earlier than it starts"
        )
    if batch_size < world:
        raise ValueError(f"a batch of {batch_size} leaves some of {world} processes without an image: raise it")
    if _is_shards(source):
        from rclip_metric.images.shards import find_shards
        from rclip_metric.train.data.shards import ShardSampler

        found = find_shards(source)
        shards = ShardSampler(found, batch_size, seed, start, stop, rank=rank, world=world, labels=labels)
        facts: dict[str, Any] = {"path": str(source), "shards": len(found)}
        contents = partial(tree_digest, Path(found[0]).parent, found)
        return Stream(
            shards, preprocess, facts, labels=labels, workers=workers, augmentation=augmentation, contents=contents
        )
    classes, paths, targets = _labelled(Path(source)) if labels else (None, _paths(Path(source)), None)
    tree = TreeSampler(paths, batch_size, seed, start, stop, rank=rank, world=world, labels=targets)
    facts = {"path": str(source), "images": len(paths), **({"classes": len(classes)} if classes else {})}
    return Stream(
        tree,
        preprocess,
        facts,
        classes=classes,
        count=len(paths),
        labels=labels,
        workers=workers,
        augmentation=augmentation,
        contents=partial(tree_digest, Path(source), paths),
    )


def _paths(root: Path) -> list[str]:
    """List the images of a tree as `find_images` does, in less memory."""
    paths = list(walk_images(root))
    if not paths:
        raise ValueError(f"no image files ({', '.join(SUFFIXES)}) below {root}: pass a folder that holds some")
    return paths


def _labelled(root: Path) -> tuple[tuple[str, ...], list[str], list[int]]:
    """List classes, paths and labels as `read_classes` does, without a record per image: ImageNet has 1.28 million."""
    names: list[str] = []
    if root.is_dir():
        with os.scandir(root) as entries:
            names = sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))
    paths: list[str] = []
    labels: list[int] = []
    for label, name in enumerate(names):
        paths += walk_images(root / name)
        labels += [label] * (len(paths) - len(labels))
    if len(names) < 2 or len(set(labels)) < len(names):
        read_classes(root)  # raises, and says what is wrong
    return tuple(names), paths, labels


def _is_shards(source: str | Path) -> bool:
    text, folder = str(source), Path(source)
    if folder.is_dir():
        with os.scandir(folder) as entries:
            if not any(entry.name.endswith(".tar") for entry in entries):
                return False
        if next(walk_images(folder), None) is not None:
            raise ValueError(
                f"{source} holds .tar files and images: pass the former by a pattern such as "
                f"{folder / 'shard-{000..127}.tar'}, or a folder with the latter alone"
            )
        return True
    return text.endswith(".tar") or "{" in text


def _leave_signals_to_the_parent(worker: int) -> None:
    """Survive what a scheduler or Ctrl-C sends to all: the parent saves first; workers end when it closes or dies."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
