"""One step of a tuning on triplets, and one validation, whatever turns their images into embeddings."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
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
        """Number of triplets."""

    def batches(self, orders: Iterable[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        """Indices (n,) and values (n, 3, ...) for each order of indices."""


@dataclass(frozen=True)
class Judged:
    """Triplets against people: 2AFC accuracy in percent, the mean loss, and the number that could be read."""

    accuracy: float
    loss: float
    count: int


def embed_triplets(encoder: Encoder, device: torch.device, bfloat16: bool, pixels: Tensor) -> Tensor:
    """Images of triplets in bytes, (n, 3, 3, S, S), to their embeddings (n, 3, D)."""
    with torch.autocast(device.type, torch.bfloat16, enabled=bfloat16):
        embedding: Tensor = encoder(pixels.flatten(0, 1).to(device).float() / 255)  # (3 n, D)
    return embedding.unflatten(0, (-1, 3))


def squared_distances(embeddings: Tensor) -> tuple[Tensor, Tensor]:
    """d_left and d_right = 1 - sim(reference, .), (n,) each, of embeddings (n, 3, D)."""
    u = normalize(embeddings)
    return distance_between(u[:, 0], u[:, 1], squared=True), distance_between(u[:, 0], u[:, 2], squared=True)


def sides(label: Tensor) -> Tensor:
    """Labels {0, 1} as y = -1 (left) and 1 (right)."""
    return 2.0 * label - 1.0


def update(
    forward: Forward, values: Tensor, y: Tensor, loss: Loss, optimizer: torch.optim.Optimizer, part: int
) -> float:
    """One step on the mean loss of a batch, ``part`` triplets at a time.

    Args:
        forward: with a graph to what is trained.
        values: (n, 3, ...); with n = 0 nothing happens.
        y: (n,), -1 or 1.
        loss: per triplet.
        optimizer: over what is trained.
        part: triplets per pass; the gradient is that of the whole batch.

    Returns:
        The mean loss, 0 for n = 0. Where it is not finite the optimiser has not stepped.
    """
    if not len(values):
        return 0.0
    optimizer.zero_grad(set_to_none=True)
    shares = []
    for some, side in zip(values.split(part), y.split(part), strict=True):
        embeddings = forward(some)
        share = loss(*squared_distances(embeddings), side.to(embeddings.device)).sum() / len(values)
        share.backward()
        shares.append(share.detach())
    value = torch.stack(shares).sum().item()
    if math.isfinite(value):
        optimizer.step()
    return value


@torch.no_grad()
def judge(forward: Forward, source: Source, loss: Loss, part: int) -> Judged:
    """2AFC accuracy as the evaluation counts it: right is chosen only if its cosine is strictly greater."""
    right, total, count = 0, 0.0, 0
    with full_float32():
        for indices, values in source.batches(torch.arange(len(source)).split(part)):
            if not len(indices):
                continue
            embeddings = forward(values)
            u = normalize(embeddings)
            similarity = (u[:, :1] * u[:, 1:]).sum(2)  # (n, 2)
            label = source.label[indices].to(u.device)
            right += int(((similarity[:, 1] > similarity[:, 0]).long() == label).sum())
            total += loss(*squared_distances(embeddings), sides(label)).sum().item()
            count += len(indices)
    return Judged(100 * right / count, total / count, count) if count else Judged(math.nan, math.nan, 0)
