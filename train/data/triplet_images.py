"""The images of 2AFC triplets, for training: read by threads, kept in memory where they are small."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor

from rclip_metric.images import ImageError
from rclip_metric.progress import progress
from rclip_metric.train.data.triplets import TripletFiles

KEEP_BYTES = 2**30  # the 16,000 training triplets of NIGHTS take 7 GB at 224 pixels: they are read in every epoch
_AHEAD = 3  # batches that are read while one is worked on


class TripletImages:
    """Triplets as batches of grey levels, in the order that is asked for; those that cannot be read are left out.

    Attributes:
        triplets: as given.
        label: (N,) int64, 1 where people chose the right image.
        unreadable: key of a triplet -> the sentence that says which image cannot be read, as they are met.

    Example:
        >>> files = TripletFiles("0", Path("ref.png"), Path("left.png"), Path("right.png"), share=1.0, split="train")
        >>> triplets = TripletImages([files], lambda path: torch.ones(3, 4, 4), size=4)
        >>> [(indices, pixels)] = triplets.batches([torch.tensor([0])])
        >>> triplets.label, pixels.shape, pixels.dtype
        (tensor([1]), torch.Size([1, 3, 3, 4, 4]), torch.uint8)
    """

    def __init__(
        self,
        triplets: Sequence[TripletFiles],
        preprocess: Callable[[Path], Tensor],
        size: int,
        *,
        threads: int = 0,
        keep_bytes: int = KEEP_BYTES,
    ) -> None:
        """Read nothing yet.

        Args:
            triplets: what there is.
            preprocess: path -> (3, S, S) in [0, 1], in whole grey levels, as `Encoder.preprocess` returns it.
            size: S, in pixels.
            threads: that read while a batch is worked on; 0 reads in between.
            keep_bytes: the images stay in memory, as bytes, if all of them take no more than so much.
        """
        self.triplets, self.preprocess, self.threads = triplets, preprocess, threads
        self.label = torch.tensor([triplet.label for triplet in triplets])
        self.unreadable: dict[str, str] = {}
        self._kept: dict[int, Tensor] | None = {} if len(triplets) * 9 * size**2 <= keep_bytes else None

    def __len__(self) -> int:
        """Number of triplets, unreadable ones included."""
        return len(self.triplets)

    def batches(self, orders: Iterable[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        """Read, for each order (B,) of indices, those that can be read (n,) and their images.

        Yields:
            Indices (n,) and uint8 images (n, 3, 3, S, S) of reference, left and right; n may be 0.
        """
        if self.threads < 1:
            for order in orders:
                yield self._together([(index, self._read(index)) for index in order.tolist()])
            return
        pool = ThreadPoolExecutor(self.threads)
        pending: deque[list[tuple[int, Future[Tensor | str]]]] = deque()
        try:
            for order in orders:
                pending.append([(index, pool.submit(self._read, index)) for index in order.tolist()])
                if len(pending) > _AHEAD:
                    yield self._together([(index, read.result()) for index, read in pending.popleft()])
            while pending:
                yield self._together([(index, read.result()) for index, read in pending.popleft()])
        finally:
            pool.shutdown(cancel_futures=True)

    def _read(self, index: int) -> Tensor | str:
        """Read the images of one triplet (3, 3, S, S), or say why there are none."""
        if self._kept is not None and index in self._kept:
            return self._kept[index]
        triplet = self.triplets[index]
        if triplet.key in self.unreadable:
            return self.unreadable[triplet.key]
        try:
            images = torch.stack([self.preprocess(path) for path in (triplet.reference, triplet.left, triplet.right)])
        except ImageError as error:
            return f"triplet {triplet.key}: {error}"
        return images.mul_(255).round_().to(torch.uint8)

    def _together(self, read: Sequence[tuple[int, Tensor | str]]) -> tuple[Tensor, Tensor]:
        good: dict[int, Tensor] = {}
        for index, images in read:
            if isinstance(images, str):
                self.unreadable[self.triplets[index].key] = images
            else:
                good[index] = images
        if self._kept is not None:
            self._kept.update(good)
        indices = torch.tensor(list(good), dtype=torch.long)
        return indices, torch.stack(list(good.values())) if good else torch.empty(0, 3, 3, 0, 0, dtype=torch.uint8)


class TripletEmbeddings:
    """Triplets as batches of their embeddings, computed once: what a head on a frozen encoder is trained on.

    Attributes:
        label: as in `TripletImages`.
        embeddings: (N, 3, D) of reference, left and right, zero for what could not be read.
        readable: bool (N,).

    Example:
        >>> files = TripletFiles("0", Path("ref.png"), Path("left.png"), Path("right.png"), share=1.0, split="train")
        >>> images = TripletImages([files], lambda path: torch.ones(3, 4, 4), size=4)
        >>> mean_colour = lambda pixels: pixels.float().mean((3, 4))  # (n, 3, 3, S, S) -> (n, 3, D)
        >>> TripletEmbeddings(images, mean_colour, batch=1, quiet=True).embeddings.shape
        torch.Size([1, 3, 3])
    """

    def __init__(self, images: TripletImages, embed: Callable[[Tensor], Tensor], batch: int, quiet: bool) -> None:
        """Run `embed`, uint8 images (n, 3, 3, S, S) -> (n, 3, D) without a graph, over all triplets."""
        count = len(images)
        self.label = images.label
        self.readable = torch.zeros(count, dtype=torch.bool)
        self.embeddings = torch.empty(0)
        orders = torch.arange(count).split(batch)
        for indices, pixels in progress(
            images.batches(orders), label="embedding", total=len(orders), unit="batch", quiet=quiet
        ):
            if not len(indices):
                continue
            values = embed(pixels)  # (n, 3, D)
            if not self.readable.any():
                self.embeddings = values.new_zeros(count, *values.shape[1:])
            self.embeddings[indices.to(values.device)] = values
            self.readable[indices] = True

    def __len__(self) -> int:
        """Number of triplets, unreadable ones included."""
        return len(self.label)

    def batches(self, orders: Iterable[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield for each order (B,) of indices those that could be read (n,) and their embeddings (n, 3, D)."""
        for order in orders:
            indices = order[self.readable[order]]
            yield indices, self.embeddings[indices.to(self.embeddings.device)]
