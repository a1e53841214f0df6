"""Images whose order half precision cannot tell, read and compared again in float32."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from rclip_metric.distance import distance_between
from rclip_metric.metric import RobustPerceptualDistance
from rclip_metric.retrieval.embeddings import FileEmbeddings, distances
from rclip_metric.retrieval.index import ImageIndex
from rclip_metric.retrieval.pairs import all_pairs, chosen_pairs, pairs_below
from rclip_metric.retrieval.rows import Hits
from rclip_metric.second_look import crowded, undecided

_ANOTHER_IMAGE = 16
"""By how many times the slack a distance moves only if the file is another image than the one that was compared."""


class Order(NamedTuple):
    """The nearest images by distances that can be believed.

    Example:
        >>> import torch
        >>> Order(torch.tensor([0.1, 0.2]), [1, 0], looked_again=2).places[0]
        1
    """

    distances: Tensor  # (k,), ascending
    places: list[int]  # where each was before
    looked_again: int  # how many were compared in float32


def believed_order(
    metric: RobustPerceptualDistance,
    query: Path,
    files: Sequence[Path | None],
    nearness: Tensor,
    k: int | None = None,
    *,
    batch_size: int,
    on_skip: Callable[[Path, str], None],
) -> Order:
    """Order images by their distance to a query, in float32 where half precision cannot tell two apart.

    A distance that is further than `metric.slack` from the next one on either side stays as it is. The order is then
    float32's as far as the slack holds; see `rclip_metric.second_look.slack_of`.

    Args:
        metric: Computed the distances; in float32, or with `second_look=False`, nothing changes.
        query: The image that all were compared with.
        files: The images, nearest first; None for one that is in no file, and keeps its distance.
        nearness: (n,) distances, ascending, squared if the metric's are. Of those behind the k-th, all that are within
            the slack from it have to be there.
        k: How many are wanted; all by default.
        batch_size: Images per call of the metric.
        on_skip: Called with a file that cannot be read, and why.

    Example:
        >>> import tempfile
        >>> import torch
        >>> from PIL import Image
        >>> metric = RobustPerceptualDistance("tiny").to(torch.bfloat16)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     files = [Path(folder, f"{blue}.png") for blue in (253, 255)]
        ...     for file in files:
        ...         Image.new("RGB", (64, 64), (0, 0, int(file.stem))).save(file)
        ...     wrong = torch.tensor([0.0011, 0.0012])  # says that another blue is nearer to this one than it is itself
        ...     found = believed_order(metric, files[1], files, wrong, batch_size=8, on_skip=print)
        >>> found.places, found.looked_again, found.distances[0].item()
        ([1, 0], 2, 0.0)
    """
    k = len(nearness) if k is None else k
    unchanged = Order(nearness[:k], list(range(k)), 0)
    if not (metric.second_look and metric.slack and k):
        return unchanged
    apart = nearness.sqrt() if metric.squared else nearness
    within = int((apart < apart[k - 1] + metric.slack).sum())
    close = [place for place in crowded(apart[:within], metric.slack).nonzero()[:, 0].tolist() if files[place]]
    if not close:
        return unchanged
    again = [file for place in close if (file := files[place]) is not None]
    exact, looked = nearness[:within].clone(), 0
    with FileEmbeddings(metric.in_float32(), [query, *again], batch_size=batch_size, on_skip=on_skip) as embeddings:
        u = embeddings[query]
        for place, file in zip(close, again, strict=True):
            if u is None or (v := embeddings[file]) is None:
                continue
            found = distances(u, v[None], metric.squared)[0]
            moved = (found**0.5 if metric.squared else found) - apart[place].item()
            if abs(moved) < _ANOTHER_IMAGE * metric.slack:
                exact[place] = found
                looked += 1
    order = exact.sort(stable=True)
    return Order(order.values[:k], order.indices[:k].tolist(), looked)


def search_again(
    index: ImageIndex,
    query: Path,
    unit: Tensor,
    hits: Hits,
    *,
    approximate: bool = False,
    batch_size: int,
    on_skip: Callable[[Path, str], None],
) -> tuple[Hits, int]:
    """Bring the hits of a query into the order that float32 gives them, and say how many were looked at again.

    Images behind the last hit that could be nearer than it are looked at as well. One that has no file, or whose file
    has gone or is another image by now, keeps its distance.

    Args:
        index: That was searched.
        query: The image.
        unit: (D,) its embedding.
        hits: What `index.search(unit, k)` found.
        approximate: As they were found.
        batch_size, on_skip: As for `believed_order`.

    Example:
        >>> import torch
        >>> index = ImageIndex(RobustPerceptualDistance("tiny"))
        >>> _ = index.add(torch.eye(128)[:2], ids=["a", "b"])
        >>> hits = index.search(torch.eye(128)[0], k=1)
        >>> search_again(index, Path("a.png"), torch.eye(128)[0], hits, batch_size=8, on_skip=print)[1]  # float32
        0
    """
    metric, k = index.metric, len(hits.ids)
    if not (isinstance(metric, RobustPerceptualDistance) and metric.second_look and metric.slack):
        return hits, 0

    def last(place: int) -> float:
        found = hits.distances[place].item()
        return found**0.5 if metric.squared else found

    count = len(index)
    while len(hits.ids) < count and last(-1) < last(k - 1) + metric.slack:
        hits = index.search(unit, min(2 * len(hits.ids), count), approximate=approximate)  # type: ignore[assignment]
    files = [Path(path) if path and Path(path).is_file() else None for path in hits.paths]
    order = believed_order(metric, query, files, hits.distances, k, batch_size=batch_size, on_skip=on_skip)
    squares = order.distances if metric.squared else order.distances.square()
    columns = {name: [getattr(hits, name)[place] for place in order.places] for name in ("ids", "labels", "paths")}
    return replace(hits, distances=order.distances, similarities=1 - squares, **columns), order.looked_again


@dataclass(frozen=True)
class BelievedPairs:
    """Pairs that were chosen by distances that can be believed: `chosen_pairs`, with float32 where it has to decide.

    Iterated, it yields for each image i the others that it is paired with, and their distances (P,).

    Attributes:
        looked_again: How many images were embedded in float32.

    Example:
        >>> units = torch.eye(2)
        >>> metric = RobustPerceptualDistance("tiny")
        >>> pairs = believed_pairs(metric, [Path("a.png"), Path("b.png")], units, batch_size=8, on_skip=print)
        >>> [list(others) for _, others, _ in pairs], pairs.looked_again
        ([[1], []], 0)
    """

    looked_again: int
    _pairs: Iterator[tuple[int, Sequence[int], np.ndarray[Any, np.dtype[np.float32]]]]

    def __iter__(self) -> Iterator[tuple[int, Sequence[int], np.ndarray[Any, np.dtype[np.float32]]]]:
        """Go through them, once."""
        return self._pairs


def believed_pairs(
    metric: RobustPerceptualDistance,
    files: Sequence[Path],
    units: Tensor,
    *,
    top: int | None = None,
    below: float | None = None,
    batch_size: int,
    on_skip: Callable[[Path, str], None],
) -> BelievedPairs:
    """Choose pairs of images, in float32 where half precision cannot tell which belong to the choice.

    With `below` those whose distance is within `metric.slack` of it are decided again, and with `top` those that are
    within the slack of another. Other distances stay as they are, and all do where nothing is chosen, in float32, or
    with `second_look=False`. Distances of a few times the slack and less, of images that are all but the same, can be
    further from float32's than it: half precision cannot measure them.

    Args:
        metric: Computed the embeddings.
        files: The images (N).
        units: (N, D) their embeddings.
        top, below: As for `chosen_pairs`; `below` squared, if the metric's distances are.
        batch_size: Images per call of the metric.
        on_skip: Called with a file that can no longer be read, and why; its distances stay as they are.

    Example:
        >>> import tempfile
        >>> from PIL import Image
        >>> metric = RobustPerceptualDistance("tiny").to(torch.bfloat16)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     files = [Path(folder, f"{blue}.png") for blue in (254, 255)]
        ...     for file in files:
        ...         Image.new("RGB", (64, 64), (0, 0, int(file.stem))).save(file)
        ...     wrong = torch.tensor([[1.0, 0.0], [0.9998, 0.02]])  # as if they were 0.014 apart
        ...     pairs = believed_pairs(metric, files, wrong, below=0.0145, batch_size=8, on_skip=print)
        ...     [round(nearness.item(), 3) for _, _, nearness in pairs], pairs.looked_again
        ([0.001], 2)
    """
    if not (metric.second_look and metric.slack and (top or below)):
        return BelievedPairs(0, chosen_pairs(units, metric.squared, top=top, below=below))
    asked: set[int] = set()
    for i, others, _, unsure in _candidates(metric, units, top, below):
        if bool(unsure.any()):
            asked |= {i, *others[unsure].tolist()}
    again = sorted(asked)
    exact: dict[int, Tensor] = {}
    if again:
        where = [files[place] for place in again]
        with FileEmbeddings(metric.in_float32(), where, batch_size=batch_size, on_skip=on_skip) as embeddings:
            found = {place: embeddings[file] for place, file in zip(again, where, strict=True)}
        exact = {place: unit.cpu() for place, unit in found.items() if unit is not None}
    return BelievedPairs(len(exact), _decided(metric, units, exact, top, below))


def _decided(
    metric: RobustPerceptualDistance, units: Tensor, exact: dict[int, Tensor], top: int | None, below: float | None
) -> Iterator[tuple[int, Sequence[int], np.ndarray[Any, np.dtype[np.float32]]]]:
    """Choose among the candidates, by distances of exact embeddings where there are any and they are asked for."""
    for i, others, nearness, unsure in _candidates(metric, units, top, below):
        known = [place for place in unsure.nonzero()[:, 0].tolist() if int(others[place]) in exact]
        if i in exact and known:
            nearness = nearness.clone()
            v = torch.stack([exact[int(others[place])] for place in known])
            nearness[known] = distance_between(exact[i], v, metric.squared)
        if top:
            order = nearness.sort(stable=True)
            others, nearness = others[order.indices[:top]], order.values[:top]
        chosen = nearness < below if below else slice(None)
        if top or len(nearness[chosen]):
            yield i, others[chosen].tolist(), nearness[chosen].numpy()


def _candidates(
    metric: RobustPerceptualDistance, units: Tensor, top: int | None, below: float | None
) -> Iterator[tuple[int, Tensor, Tensor, Tensor]]:
    """Yield for each i the others that may be chosen, their distances, and of which half precision cannot tell."""
    slack, squared = metric.slack, metric.squared
    limit = (below**0.5 if squared else below) if below else float("inf")
    if not top:
        wide = (limit + slack) ** 2 if squared else limit + slack
        for i, others, nearness in pairs_below(units, wide, squared):
            apart = nearness.sqrt() if squared else nearness
            yield i, others, nearness, undecided(apart - limit, slack)
        return
    for i, row in all_pairs(units, squared, whole=True):
        row[i] = torch.inf
        apart = row.sqrt() if squared else row
        last = apart.topk(min(top, len(row) - 1), largest=False).values[-1].item()
        near = (apart < min(last, limit) + slack).nonzero()[:, 0]
        order = apart[near].sort(stable=True)
        places = near[order.indices]
        yield i, places, row[places], crowded(order.values, slack) | undecided(order.values - limit, slack)
