"""Images of an index that are nearly the same, and which of them to keep."""

from __future__ import annotations

from dataclasses import dataclass

from rclip_metric.errors import ImageIndexError
from rclip_metric.retrieval.index import ImageIndex
from rclip_metric.retrieval.neighbours import pairs_within
from rclip_metric.retrieval.storage import Row


@dataclass(frozen=True)
class DuplicateGroup:
    """An image to keep and those that are nearly the same.

    Attributes:
        keep: The one with the largest file.
        others: The others, each with its distance to the one to keep, nearest first.
        identical: Whether all of them are copies of one file, byte by byte.

    Example:
        >>> DuplicateGroup(Row("a.jpg"), [(Row("b.jpg"), 0.01)], identical=False).others[0][0].id
        'b.jpg'
    """

    keep: Row
    others: list[tuple[Row, float]]
    identical: bool


def find_duplicates(index: ImageIndex, below: float) -> list[DuplicateGroup]:
    """Group the images of an index that are nearly the same; nothing is removed.

    The largest file becomes the one to keep of all that are nearer to it than `below`, then the largest of the rest,
    and so on: whatever is proposed to go is that near to what stays, not only to another that goes.

    Args:
        index: Images; the sizes of their files decide which to keep.
        below: Distance under which two images are nearly the same, as the index's metric measures it.

    Returns:
        Groups of two images and more: those of identical files first, then the nearest first.

    Raises:
        ImageIndexError: The index is empty.
        ValueError: `below` is not a positive number.

    Example:
        >>> import torch
        >>> from rclip_metric import RobustPerceptualDistance
        >>> index = ImageIndex(RobustPerceptualDistance("tiny"))
        >>> _ = index.add(torch.tensor([[1.0, 0], [0, 1], [1, 0.01]]), ids=["a", "b", "c"])
        >>> [(group.keep.id, [row.id for row, _ in group.others]) for group in find_duplicates(index, 0.1)]
        [('a', ['c'])]
    """
    if index.embeddings is None:
        raise ImageIndexError("the index is empty: add images before looking for duplicates.")
    pairs, distances = pairs_within(index.embeddings, below, squared=index.squared)
    near: dict[int, dict[int, float]] = {}
    for (one, other), distance in zip(pairs.tolist(), distances.tolist(), strict=True):
        near.setdefault(one, {})[other] = distance
        near.setdefault(other, {})[one] = distance
    groups: list[DuplicateGroup] = []
    taken: set[int] = set()
    for place in sorted(near, key=lambda place: (-(index.rows[place].size or 0), place)):
        if place in taken:
            continue
        free = {other: distance for other, distance in near[place].items() if other not in taken}
        if not free:
            continue
        taken |= {place, *free}
        keep = index.rows[place]
        others = [(index.rows[other], free[other]) for other in sorted(free, key=lambda other: (free[other], other))]
        identical = keep.digest is not None and all(row.digest == keep.digest for row, _ in others)
        groups.append(DuplicateGroup(keep, others, identical))
    return sorted(groups, key=lambda group: (not group.identical, group.others[0][1]))
