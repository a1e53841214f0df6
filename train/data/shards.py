"""Samples of WebDataset shards in the order in which a run takes them.

Only the headers of shards are read where samples are drawn; a loading process goes to a sample's place in the file and
reads that alone. So the order does not depend on the number of loading processes, and what a resumed run skips is never
decoded.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import torch
from torch.utils.data import Sampler

from rclip_metric.images.shards import DamagedShard, ShardImage, index_shard
from rclip_metric.train.runs.seeds import seeded

WINDOW = 4
"""Shards whose samples are shuffled together."""


class ShardSampler(Sampler[list[ShardImage | DamagedShard]]):
    """Shares of the steps `start` to `stop`: full batches of what this process draws from its own shards.

    The shards of an epoch are permuted by (seed, epoch), and process r of n takes those at the places r, r + n, ...
    `WINDOW` of its shards at a time are shuffled together. A process that is through with its shards goes on with its
    next epoch, though another may have a sample left.
    """

    def __init__(
        self,
        shards: Sequence[str],
        batch_size: int,
        seed: int,
        start: int,
        stop: int,
        *,
        rank: int = 0,
        world: int = 1,
        labels: bool = False,
    ) -> None:
        """Raise ValueError when there are fewer shards than processes."""
        if len(shards) < world:
            raise ValueError(
                f"there are {len(shards)} shards for {world} processes, and each needs one of its own: "
                "use fewer processes or smaller shards"
            )
        self.shards, self.labels = shards, labels
        self.share = len(range(rank, batch_size, world))
        self.seed, self.start, self.stop, self.rank, self.world = seed, start, stop, rank, world
        self._counts: dict[str, int] = {}  # samples per shard, of those that were indexed

    def __len__(self) -> int:
        """Number of steps."""
        return self.stop - self.start

    def __iter__(self) -> Iterator[list[ShardImage | DamagedShard]]:
        """Yield the samples of one step after another."""
        draws = self._draws(self.start * self.share)
        for _ in range(self.start, self.stop):
            batch: list[ShardImage | DamagedShard] = []
            left = self.share
            while left:
                batch.append(drawn := next(draws))
                left -= isinstance(drawn, ShardImage)
            yield batch

    def with_partners(self) -> Iterator[tuple[list[ShardImage | DamagedShard], list[ShardImage | DamagedShard]]]:
        """Yield the samples of a step, and for each the next one in this process's share (for the last: the first)."""
        for share in self:
            yield share, share[1:] + share[:1]

    def own(self, epoch: int) -> list[str]:
        """List the shards of this process in an epoch, in order."""
        order = torch.randperm(len(self.shards), generator=seeded(self.seed, epoch)).tolist()
        return [self.shards[index] for index in order[self.rank :: self.world]]

    def _draws(self, skip: int) -> Iterator[ShardImage | DamagedShard]:
        """Draw all after the first `skip` samples, epoch after epoch; a damaged shard comes before its window."""
        for epoch in itertools.count():
            total = 0
            own = self.own(epoch)
            for first in range(0, len(own), WINDOW):
                window = own[first : first + WINDOW]
                known = sum(self._counts.get(shard, skip + 1) for shard in window)
                if 0 < known <= skip:
                    skip, total = skip - known, total + known
                    continue
                samples, damaged = self._index(window)
                total += len(samples)
                if skip and skip >= len(samples):
                    skip -= len(samples)
                    continue
                order = torch.randperm(len(samples), generator=seeded(self.seed, epoch, self.rank, first)).tolist()
                if not skip:
                    yield from damaged
                yield from (samples[index] for index in order[skip:])
                skip = 0
            if not total:
                raise ValueError(
                    f"none of the {len(own)} shards of process {self.rank} holds a sample, "
                    f"the first is {own[0]}: look whether they are WebDataset shards"
                )

    def _index(self, window: list[str]) -> tuple[list[ShardImage], list[DamagedShard]]:
        samples: list[ShardImage] = []
        damaged = []
        for shard in window:
            found, whole = index_shard(shard, self.labels)
            self._counts[shard] = len(found)
            samples += found
            if not whole:
                damaged.append(DamagedShard(shard))
        return samples, damaged
