"""A content filter: an image gets the class of the examples that it is nearest to."""

from __future__ import annotations

import os
import warnings
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rclip_metric.errors import ImageIndexError
from rclip_metric.retrieval.embeddings import Embedder
from rclip_metric.retrieval.index import Hits, ImageIndex, Skip

_SAME = 1e-6
"""Distance of two passes of one image, at most."""

Pool = str | os.PathLike[str] | ImageIndex


@dataclass(frozen=True)
class Decision:
    """What a filter says of an image.

    Attributes:
        label: The class; None where no example is within the filter's threshold.
        neighbour: The nearest example of that class; where there is none, of all.
        path: Its file, where the pool knows it.
        similarity: Cosine of the image and that example.
        other: Cosine of the image and the nearest example of any other class.

    Example:
        >>> Decision("safe", "a.jpg", None, similarity=0.9, other=0.7).margin.__round__(4)
        0.2
    """

    label: str | None
    neighbour: str
    path: str | None
    similarity: float
    other: float

    @property
    def margin(self) -> float:
        """How much nearer the class is than any other."""
        return self.similarity - self.other


class ContentFilter:
    """Classes by example: each is a pool of images, and an image gets the class of its nearest neighbour.

    That is the content filter of the R-CLIP paper with its pools "safe", "buffer" and "unsafe", and k = 1: the
    buffer holds what looks like the unsafe class and is safe, so that the border runs between them.

    Args:
        pools: A folder of images (a tree) or an `ImageIndex` for each of two classes or more; or one index for all,
            whose labels are the classes.
        metric: Embeds images, see `Embedder`; that of the indexes.
        k: Neighbours that vote; of classes with as many votes that of the nearest neighbour wins.
        threshold: Distance within which the class's nearest example has to be; None for no limit.
        on_skip: Called with a file of a pool that cannot be read, and why; raises ImageError by default.

    Attributes:
        pools: The index of each class.

    Raises:
        ImageIndexError: There are fewer than two classes, one has no example, an example no class, k is larger than the
            pools, or the threshold is no distance.

    Example:
        >>> import torch
        >>> from rclip_metric import RobustPerceptualDistance
        >>> index = ImageIndex(RobustPerceptualDistance("tiny"))
        >>> _ = index.add(torch.eye(128)[:2], ids=["cat.jpg", "gun.jpg"], labels=["safe", "unsafe"])
        >>> [decision] = ContentFilter(index, index.metric).decide(torch.eye(128)[1:2] + 0.01)
        >>> decision.label, decision.neighbour
        ('unsafe', 'gun.jpg')
    """

    def __init__(
        self,
        pools: Mapping[str, Pool] | ImageIndex,
        metric: Embedder,
        *,
        k: int = 1,
        threshold: float | None = None,
        on_skip: Skip | None = None,
    ) -> None:
        """Embed the folders."""
        if isinstance(pools, ImageIndex):
            self.pools = _by_label(pools)
        else:
            self.pools = {
                label: pool if isinstance(pool, ImageIndex) else ImageIndex.build(pool, metric, on_skip=on_skip)
                for label, pool in pools.items()
            }
        if len(self.pools) < 2:
            raise ImageIndexError(f"a filter needs two classes or more, got {', '.join(self.pools) or 'none'}.")
        if empty := [label for label, pool in self.pools.items() if not pool]:
            raise ImageIndexError(f"the class {empty[0]} has no example.")
        examples = sum(map(len, self.pools.values()))
        if not 1 <= k <= examples:
            raise ImageIndexError(f"k must be between 1 and the {examples} examples, got {k}.")
        if threshold is not None and not threshold > 0:
            raise ImageIndexError(f"threshold must be a positive distance or None, got {threshold}.")
        self.metric, self.k, self.threshold = metric, k, threshold

    def decide(self, queries: Any, *, warn: bool = True) -> list[Decision]:
        """Decide on images.

        Args:
            queries: Files or Pillow images, images (N, 3, H, W), or embeddings (N, D).
            warn: Whether to warn of queries that are among the examples.

        Returns:
            A decision on each.

        Raises:
            ImageError: A query cannot be read.

        Warns:
            UserWarning: A query is among the examples, and says nothing about the filter.
        """
        units, _ = next(iter(self.pools.values())).unit_embeddings(queries)
        found: dict[str, Any] = {
            label: pool.search(units, k=min(self.k, len(pool))) for label, pool in self.pools.items()
        }
        decisions = []
        itself = []
        for number in range(len(units)):
            hits = {label: several[number] for label, several in found.items()}
            decisions.append(self._decision(hits))
            itself += [one.ids[0] for one in hits.values() if float(one.distances[0]) < _SAME]
        if itself and warn:
            more = f" and {len(itself) - 1} more" if len(itself) > 1 else ""
            warnings.warn(f"{itself[0]}{more} of the examples is a query itself", UserWarning, stacklevel=2)
        return decisions

    def _decision(self, hits: Mapping[str, Hits]) -> Decision:
        near = sorted((distance, label) for label, one in hits.items() for distance in one.distances.tolist())
        votes = Counter(label for _, label in near[: self.k])
        label = next(label for _, label in near if votes[label] == max(votes.values()))
        own = hits[label]
        others = [float(one.similarities[0]) for name, one in hits.items() if name != label]
        within = self.threshold is None or float(own.distances[0]) <= self.threshold
        return Decision(label if within else None, own.ids[0], own.paths[0], float(own.similarities[0]), max(others))


def _by_label(index: ImageIndex) -> dict[str, ImageIndex]:
    """Split an index into those of its classes."""
    if unlabelled := [row.id for row in index.rows if row.label is None]:
        raise ImageIndexError(f"{unlabelled[0]} has no label: a filter needs the class of every example.")
    return {label: index.labelled(label) for label in sorted({str(row.label) for row in index.rows})}
