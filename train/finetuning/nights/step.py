"""One step of a tuning on triplets, and one validation, whatever turns their images into embeddings."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from rclip_metric.distance import distance_between, normalize
from rclip_metric.encoder import Encoder
from rclip_metric.train.runs.precision import full_float32

Forward = Callable[[Tensor], Tensor]
"""What a source yields of n triplets, (n, 3, ...), to the embeddings (n, 3, D) of reference, left and right."""
Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
"""d_left, d_right and y, all (n,), to a loss per triplet (n,)."""


class Source(Protocol):
    """Triplets that come as batches: `TripletImages` or `TripletEmbeddings`."""

    label: Tensor

    def __len__(self) -> int:
        """Count the triplets."""

    def batches(self, orders: Iterable[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield indices (n,) and values (n, 3, ...) for each order of indices."""


@dataclass(frozen=True)
class Passes:
    """The triplets of a run, and what turns them into embeddings.

    Attributes:
        sources: "train" and "val".
        forward: for each source; with a graph to what is trained.
        chunk_size: triplets per pass.
    """

    sources: Mapping[str, Source]
    forward: Mapping[str, Forward]
    chunk_size: int


@dataclass(frozen=True)
class ValidationScore:
    """A validation: 2AFC accuracy in percent, the mean loss, and the number of triplets that could be read."""

    accuracy: float
    loss: float
    count: int


def hinge(d_left: Tensor, d_right: Tensor, y: Tensor, margin: float = 0.05) -> Tensor:
    """Compute the hinge loss of triplets, max(0, margin - (d_left - d_right) y): (N,).

    Args:
        d_left: 1 - sim(reference, left), (N,).
        d_right: 1 - sim(reference, right), (N,).
        y: (N,), 1 where people chose the right image, which is then to be the nearer one, and -1 for the left.
        margin: the loss is 0 where the chosen image is nearer by so much.

    Example:
        >>> far, near = torch.tensor([0.3, 0.3]), torch.tensor([0.1, 0.28])
        >>> hinge(far, near, torch.ones(2))  # people chose the right image, and it is nearer by 0.2 and by 0.02
        tensor([0.0000, 0.0300])
    """
    return (margin - (d_left - d_right) * y).clamp(min=0)


def embed_triplets(encoder: Encoder, device: torch.device, bfloat16: bool, pixels: Tensor) -> Tensor:
    """Embed images of triplets in bytes, (n, 3, 3, S, S): (n, 3, D)."""
    with torch.autocast(device.type, torch.bfloat16, enabled=bfloat16):
        embedding: Tensor = encoder(pixels.flatten(0, 1).to(device).float() / 255)  # (3 n, D)
    return embedding.unflatten(0, (-1, 3))


def squared_distances(embeddings: Tensor) -> tuple[Tensor, Tensor]:
    """Compute d_left and d_right = 1 - sim(reference, .), (n,) each, of embeddings (n, 3, D)."""
    u = normalize(embeddings)
    return distance_between(u[:, 0], u[:, 1], squared=True), distance_between(u[:, 0], u[:, 2], squared=True)


def sides(label: Tensor) -> Tensor:
    """Turn labels {0, 1} into y = -1 (left) and 1 (right)."""
    return 2.0 * label - 1.0


def update(
    forward: Forward, values: Tensor, y: Tensor, loss: Loss, optimizer: torch.optim.Optimizer, chunk_size: int
) -> float:
    """Take one step on the mean loss of a batch, `chunk_size` triplets at a time.

    Args:
        forward: with a graph to what is trained.
        values: (n, 3, ...); with n = 0 nothing happens.
        y: (n,), -1 or 1.
        loss: per triplet.
        optimizer: over what is trained.
        chunk_size: triplets per pass; the gradient is that of the whole batch.

    Returns:
        The mean loss, 0 for n = 0. Where it is not finite the optimiser has not stepped.
    """
    if not len(values):
        return 0.0
    optimizer.zero_grad(set_to_none=True)
    shares = []
    for some, side in zip(values.split(chunk_size), y.split(chunk_size), strict=True):
        embeddings = forward(some)
        share = loss(*squared_distances(embeddings), side.to(embeddings.device)).sum() / len(values)
        share.backward()
        shares.append(share.detach())
    value = torch.stack(shares).sum().item()
    if math.isfinite(value):
        optimizer.step()
    return value


@torch.no_grad()
def validated(forward: Forward, source: Source, loss: Loss, chunk_size: int) -> ValidationScore:
    """Compute the mean loss, and the 2AFC accuracy as the evaluation does: right needs a strictly greater cosine."""
    right, total, count = 0, 0.0, 0
    with full_float32():
        for indices, values in source.batches(torch.arange(len(source)).split(chunk_size)):
            if not len(indices):
                continue
            embeddings = forward(values)
            u = normalize(embeddings)
            similarity = (u[:, :1] * u[:, 1:]).sum(2)  # (n, 2)
            label = source.label[indices].to(u.device)
            right += int(((similarity[:, 1] > similarity[:, 0]).long() == label).sum())
            total += loss(*squared_distances(embeddings), sides(label)).sum().item()
            count += len(indices)
    if not count:
        return ValidationScore(math.nan, math.nan, 0)
    return ValidationScore(100 * right / count, total / count, count)
