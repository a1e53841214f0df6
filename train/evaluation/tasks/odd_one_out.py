"""Odd-one-out accuracy in the THINGS format (paper, Table XII), clean and under attack on the odd image."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, TypedDict

import torch
from torch import Tensor

from rclip_metric.train.attacks.base import ConfirmedResult
from rclip_metric.train.attacks.losses import odd_one_out, odd_one_out_choice
from rclip_metric.train.data.things import Things
from rclip_metric.train.evaluation.attack import Decisions, chunk_size_of, refuse_nan
from rclip_metric.train.evaluation.certificates.lipschitz import Certificate
from rclip_metric.train.evaluation.image_set import ImageSet, embeds
from rclip_metric.train.evaluation.records import Block, Evaluation, cost
from rclip_metric.train.evaluation.results.labels import PEOPLE
from rclip_metric.train.evaluation.run import Aim, Task, evaluate
from rclip_metric.train.evaluation.smoothing import Judge, Smoothed, Smoothing, smooth
from rclip_metric.train.metrics.base import Metric

PAIRS = ((0, 1), (0, 2), (1, 2))


class OddTriplet(NamedTuple):
    """Three images, and which of them is the odd one."""

    key: str
    files: list[Path]
    odd: int

    @property
    def others(self) -> list[Path]:
        """The two that are no odd one."""
        return [path for index, path in enumerate(self.files) if index != self.odd]


@dataclass(frozen=True)
class OddOneOutData(Task[OddTriplet]):
    """Triplets of images and the odd one of each: right is to leave it outside the most similar pair.

    The clean accuracy of a metric with embeddings embeds every image once. An attack moves the odd image, so that it
    comes nearer to one of the others than these are to each other; the published numbers are clean. A randomised
    smoothing has noise on all three images.

    Attributes:
        name: its own, e.g. the folder's.
        things: images and triplets.
        limit: how many were asked for, None for all.
        published: the published set that these data are (`published_as`), whose numbers may stand beside the results.
        judges: who said which is the odd one, in words.

    Example:
        >>> images = (Path("cat.png"), Path("dog.png"), Path("car.png"))
        >>> data = OddOneOutData("mine", Things(images, torch.tensor([[0, 1, 2]]), torch.tensor([2])))
        >>> [sample] = data.samples
        >>> [path.name for path in sample.others]
        ['cat.png', 'dog.png']
    """

    task: ClassVar[str] = "odd-one-out"
    noisy: ClassVar[str] = "all three images"
    name: str
    things: Things
    limit: int | None = None
    published: str | None = None
    judges: str = PEOPLE

    def settings(self) -> dict[str, Any]:
        """Describe what the outcomes depend on, JSON: the triplets go in as a digest."""
        names = "\n".join(path.name for path in self.things.images).encode()
        found = {"name": self.name, "triplets": hashlib.sha256(_table(self.things) + names).hexdigest()[:16]}
        return found | ({"published": self.published} if self.published else {})

    def describe(self) -> dict[str, Any]:
        """Describe the data in the record, JSON: the digest is of the table."""
        about = {"name": self.name, "split": None, "protocol": "odd-one-out"}
        images = len(self.things.triplets.unique())
        return {**about, "images": images, "digest": digest_of(self.things), "published": self.published}

    @cached_property
    def samples(self) -> Sequence[OddTriplet]:
        """The triplets; their keys are their numbers."""
        images, rows = self.things.images, zip(self.things.triplets.tolist(), self.things.odd.tolist(), strict=True)
        return [OddTriplet(str(n), [images[i] for i in row], odd) for n, (row, odd) in enumerate(rows)]

    def files(self, sample: OddTriplet) -> list[Path]:
        """List all three."""
        return sample.files

    def compare(self, sample: OddTriplet) -> list[tuple[Path, Sequence[Path]]]:
        """List the three pairs."""
        return [(sample.files[a], (sample.files[b],)) for a, b in PAIRS]

    def decide(self, samples: Sequence[OddTriplet], similarities: Tensor) -> Decisions:
        """Decide; wrong is a most similar pair that holds the odd image."""
        odd = torch.tensor([sample.odd for sample in samples], device=similarities.device)
        value = odd_one_out(similarities, odd)
        return Decisions(value, -value, odd_one_out_choice(similarities) != odd)

    def aim(self, samples: Sequence[OddTriplet], similarities: Tensor) -> Aim:
        """Aim at the odd images; what the others are to each other stays as it is."""
        odd = torch.tensor([sample.odd for sample in samples], dtype=torch.long, device=similarities.device)
        apart = similarities.gather(1, 2 - odd[:, None])  # of the other two

        def decide(found: Tensor, indices: Tensor) -> Decisions:
            three = torch.cat([found, apart[indices]], 1)  # (odd, a), (odd, b), (a, b)
            value = odd_one_out(three, torch.zeros_like(indices))
            return Decisions(value, -value, odd_one_out_choice(three) != 0)

        moved = [sample.files[sample.odd] for sample in samples]
        return Aim(moved, [sample.others for sample in samples], lambda loss: decide)

    def under_attack(
        self, samples: Sequence[OddTriplet], similarities: Tensor, images: ImageSet, on: Evaluation
    ) -> Iterator[ConfirmedResult]:
        """Run attacks; the certificates of metrics are about two options, of which there is a third pair here."""
        if any(isinstance(attack, Certificate) for attack in on.attacks):
            raise ValueError("a metric's own certificate is about two options, not three pairs: use smoothing")
        return super().under_attack(samples, similarities, images, on)

    def smoothed(
        self,
        smoothing: Smoothing,
        samples: Sequence[OddTriplet],
        similarities: Tensor,
        images: ImageSet,
        on: Evaluation,
    ) -> Smoothed:
        """Certify with noise on all three images, and so against what moves them all together by less than the radius.

        With noise on the odd image alone the smoothed decision would know the answer: noise makes an image unlike any
        other, and with it the odd one.
        """
        files = [path for sample in samples for path in sample.files]
        threes = images.pixels(files).unflatten(0, (-1, 3))  # (n, 3, 3, S, S)
        odd = torch.tensor([sample.odd for sample in samples], device=threes.device)

        def judge(metric: Metric) -> Judge:
            return lambda points, numbers: -odd_one_out(_pairs(metric, points), odd[numbers])

        keys, half = [sample.key for sample in samples], judge(on.half) if on.half else None
        chunk = on.run.chunk_size or chunk_size_of(on.metric)
        return smooth(judge(on.metric), threes, smoothing, on.run.seed, keys, chunk, half=half, name=on.metric.name)

    def blocks(self, on: Evaluation) -> list[Any]:
        """Evaluate in blocks under attack and for distances; else all at once, from images that are embedded once."""
        if on.attacks or not embeds(on.metric):
            return super().blocks(on)
        parts = on.blocks(self.things.images)
        images = ImageSet(parts, on.metric.preprocess, on.metric.device, on.run)
        settings = {**self.depends_on(on), "embeddings": True}
        embedded = on.share(parts, lambda part: _embed(on.metric, images, part), settings, self.label(on.metric))
        return [self._from_embeddings(embedded, on)]

    def _from_embeddings(self, parts: Sequence[_Embedded], on: Evaluation) -> Block:
        """Decide all triplets at once."""
        begun, triplets = time.perf_counter(), self.things.triplets
        problems = [sentence for part in parts for sentence in part["unreadable"]]
        readable = torch.tensor([flag for part in parts for flag in part["readable"]])
        found = torch.tensor([row for part in parts for row in part["embeddings"]])  # (images read, D)
        if not len(found):
            raise ValueError(f"none of the {len(problems)} images could be read; the first problem: {problems[0]}")
        embeddings = torch.zeros(len(readable), found.shape[1])
        embeddings[readable] = found
        kept = readable[triplets].all(1)
        unreadable = []
        for row in (~kept).nonzero()[:, 0].tolist():
            first, *_ = (problems[image] for image in triplets[row].tolist() if problems[image])
            unreadable.append(f"triplet {row}: {first}")
        samples = [self.samples[number] for number in kept.nonzero()[:, 0].tolist()]
        pairs = [(embeddings[triplets[kept, a]] * embeddings[triplets[kept, b]]).sum(1) for a, b in PAIRS]
        similarities = torch.stack(pairs, 1)
        refuse_nan(similarities, [sample.key for sample in samples], f"{on.metric.name}'s similarity")
        rows, _ = self.rows(samples, similarities)
        seconds = sum(part["seconds"] for part in parts) + time.perf_counter() - begun
        return {"rows": rows, "unreadable": unreadable, "costs": [cost(seconds, len(found))]}


evaluate_odd_one_out = evaluate
"""`evaluate` on `OddOneOutData`."""


def digest_of(things: Things) -> str:
    """Digest the table: which triplets these are, and which image is the odd one."""
    return hashlib.sha256(_table(things)).hexdigest()[:16]


def _table(things: Things) -> bytes:
    return torch.cat([things.triplets, things.odd[:, None]], 1).numpy().tobytes()


def _pairs(metric: Metric, threes: Tensor) -> Tensor:
    """Compare three images with each other, m times, (m, 3, 3, S, S): (m, 3), without a graph."""
    if embeds(metric):
        embedded = metric.fix(threes.flatten(0, 1)).unflatten(0, (-1, 3))  # (m, 3, D)
        return torch.stack([(embedded[:, a] * embedded[:, b]).sum(1) for a, b in PAIRS], 1)
    with torch.no_grad():
        return torch.cat([metric.similarities(threes[:, a], metric.fix(threes[:, b])[:, None]) for a, b in PAIRS], 1)


class _Embedded(TypedDict):
    embeddings: list[list[float]]
    readable: list[bool]
    unreadable: list[str]
    seconds: float


def _embed(metric: Metric, images: ImageSet, paths: Sequence[Path]) -> _Embedded:
    begun = time.perf_counter()
    problems = images.problems(metric, paths)
    found = images.kept(metric, [[path] for path in paths if path not in problems])
    return {
        "embeddings": found[:, 0].tolist() if len(found) else [],
        "readable": [path not in problems for path in paths],
        "unreadable": [problems.get(path, "") for path in paths],
        "seconds": time.perf_counter() - begun,
    }
