"""2AFC accuracy, clean and under attack on the reference image (paper, section IV; LipSim's setting)."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, ClassVar, Literal

import torch
from PIL import Image
from torch import Tensor

from rclip_metric.images import Preprocessing, open_image, preprocess_pil
from rclip_metric.train.attacks.losses import two_afc_cross_entropy, two_afc_margin
from rclip_metric.train.data.triplets import TripletFiles
from rclip_metric.train.evaluation.attack import DecisionRule, Decisions
from rclip_metric.train.evaluation.records import Evaluation, SampleRow
from rclip_metric.train.evaluation.results.kinds import with_kinds
from rclip_metric.train.evaluation.results.labels import PEOPLE
from rclip_metric.train.evaluation.run import Aim, Task, evaluate
from rclip_metric.train.metrics.base import Metric

PROTOCOLS = ("majority", "soft", "lpips", "dreamsim")
Interpolation = Literal["bilinear", "bicubic"]


@dataclass(frozen=True)
class TwoAfcData(Task[TripletFiles]):
    """Triplets and the protocol that they are judged by; an attack moves the reference.

    Attributes:
        name: its own, e.g. the folder's.
        split: what was read.
        triplets: in a fixed order.
        protocol: "majority" (right is what most people chose), or a soft one, whose score is the share of people that
            the metric agrees with and in which a tie counts one half: "lpips", "dreamsim" (`BAPPS_PROTOCOLS`), "soft".
        macro: average over splits rather than over triplets.
        attacked: keys of the triplets that are attacked; None for all.
        load: path -> (3, S, S); None for the metric's own `preprocess`.
        limit: how many were asked for, None for all.
        published: the published set that these data are (`published_as`), whose numbers may stand beside the results.
        attack_limit: how many were asked to be attacked, None for as many as the set's protocol has.
        judges: who said which option is right, in words.
        interpolation: how images are squashed to the metric's own size, where `load` does not say; None for what the
            metric itself does.

    Example:
        >>> triplet = TripletFiles("1", Path("x.png"), Path("left.png"), Path("right.png"), share=1.0, split="test")
        >>> data = TwoAfcData("mine", "test", [triplet])
        >>> data.score(triplet, wrong=True, tie=False), data.describe()["images"]
        (0.0, 3)
    """

    task: ClassVar[str] = "2afc"
    name: str
    split: str | None
    triplets: Sequence[TripletFiles]
    protocol: str = "majority"
    macro: bool = False
    attacked: frozenset[str] | None = None
    load: Callable[[Path], Tensor] | None = None
    limit: int | None = None
    published: str | None = None
    attack_limit: int | None = None
    judges: str = PEOPLE
    interpolation: Interpolation | None = None

    def __post_init__(self) -> None:
        """Check the fields."""
        if self.protocol not in PROTOCOLS:
            raise ValueError(f"protocol must be one of {', '.join(PROTOCOLS)}, not {self.protocol!r}")
        if not self.triplets:
            raise ValueError(f"there is no triplet of {self.name} to evaluate")

    @property
    def samples(self) -> Sequence[TripletFiles]:
        """The triplets."""
        return self.triplets

    def files(self, sample: TripletFiles) -> tuple[Path, Path, Path]:
        """List reference, left and right."""
        return files_of(sample)

    def settings(self) -> dict[str, Any]:
        """Describe what the outcomes depend on, JSON: the names and labels of all triplets go in as a digest."""
        rows = "\n".join(f"{t.key} {t.share} {self.is_attacked(t)}" for t in self.triplets)
        digest = hashlib.sha256(rows.encode()).hexdigest()[:16]
        found = {"name": self.name, "split": self.split, "protocol": self.protocol, "triplets": digest}
        return found | self._asked() | ({"published": self.published} if self.published else {})

    def describe(self) -> dict[str, Any]:
        """Describe the data in the record, JSON: the digest is of ids and labels."""
        images = {path for triplet in self.triplets for path in files_of(triplet)}
        about = {"name": self.name, "split": self.split, "protocol": self.protocol, "images": len(images)}
        return {**about, **self._asked(), "digest": digest_of(self.triplets), "published": self.published}

    def _asked(self) -> dict[str, Any]:
        """Tell apart what another filter resized, and a part under attack, this in the results' names as well."""
        attacked = {} if self.attack_limit is None else {"attacked": self.attack_limit}
        return attacked | ({"interpolation": self.interpolation} if self.interpolation else {})

    def reader(self, metric: Metric) -> Callable[[Path], Tensor]:
        """Choose the set's own, or the metric's."""
        if self.load is None and self.interpolation is not None:
            return loader_at(_side_of(metric), self.interpolation)
        return self.load or metric.preprocess

    def part(self, sample: TripletFiles) -> str:
        """Name the triplet's split."""
        return sample.split

    def is_attacked(self, sample: TripletFiles) -> bool:
        """Say whether attacks are run on a triplet, if the metric is right about it."""
        return self.attacked is None or sample.key in self.attacked

    def compare(self, sample: TripletFiles) -> list[tuple[Path, Sequence[Path]]]:
        """Compare the reference with left and right."""
        return [(sample.reference, (sample.left, sample.right))]

    def aim(self, samples: Sequence[TripletFiles], similarities: Tensor) -> Aim:
        """Aim at the references, with the rule of `decision`."""
        label = torch.tensor([sample.label for sample in samples], dtype=torch.long, device=similarities.device)
        options = [(sample.left, sample.right) for sample in samples]
        return Aim([sample.reference for sample in samples], options, lambda loss: decision(label, loss))

    def score(self, sample: TripletFiles, wrong: bool, tie: bool) -> float:
        """Score 1 or 0 by majority; softly, the share of people who chose what the metric chose, one half for a tie."""
        if self.protocol == "majority":
            return float(not wrong)
        majority = max(sample.share, 1 - sample.share)
        return 0.5 if tie else 1 - majority if wrong else majority

    def human(self, rows: Sequence[SampleRow]) -> dict[str, Any] | None:
        """Score, softly, one more person, p^2 + (1 - p)^2 (LPIPS), and give the highest that any metric can reach."""
        if self.protocol == "majority":
            return None
        read, parts = {row["key"] for row in rows}, dict[str, list[float]]()
        for triplet in self.triplets:
            if triplet.key in read:
                parts.setdefault(triplet.split if self.macro else "", []).append(triplet.share)
        if not parts:
            return None
        person = fmean(fmean(p * p + (1 - p) ** 2 for p in shares) for shares in parts.values())
        best = fmean(fmean(max(p, 1 - p) for p in shares) for shares in parts.values())
        return {"accuracy": round(100 * person, 4), "ceiling": round(100 * best, 4)}

    def records(self, blocks: list[Any], on: Evaluation) -> list[dict[str, Any]]:
        """Make records as of any task, and kind by kind."""
        return with_kinds(super().records(blocks, on), {triplet.key: triplet.kind for triplet in self.triplets})


def at_equal_steps(triplets: Sequence[TripletFiles], count: int) -> list[TripletFiles]:
    """Pick `count` triplets at equal steps through a set, from its first on: chosen by nobody.

    Example:
        >>> at_equal_steps(["a", "b", "c", "d", "e"], 2)
        ['a', 'c']
    """
    count = min(count, len(triplets))
    return [triplets[index * len(triplets) // count] for index in range(count)]


def first_of_each_split(triplets: Iterable[TripletFiles], count: int) -> list[TripletFiles]:
    """Pick the first `count` triplets of every split, in order: the paper attacks 1,000 of each split of BAPPS."""
    taken: dict[str, int] = {}
    kept = []
    for triplet in triplets:
        taken[triplet.split] = taken.get(triplet.split, 0) + 1
        if taken[triplet.split] <= count:
            kept.append(triplet)
    return kept


def digest_of(triplets: Iterable[TripletFiles]) -> str:
    """Digest ids and labels, in any order: which triplets these are, wherever their images lie."""
    return hashlib.sha256("\n".join(sorted(f"{t.key} {t.share}" for t in triplets)).encode()).hexdigest()[:16]


def files_of(triplet: TripletFiles) -> tuple[Path, Path, Path]:
    """List reference, left and right."""
    return triplet.reference, triplet.left, triplet.right


def loader_at(size: int, interpolation: Interpolation = "bicubic") -> Callable[[Path], Tensor]:
    """Make a reader that squashes images to a size of its own, by Pillow: LPIPS judges BAPPS at 64 pixels."""
    if interpolation == "bicubic":
        return lambda path: preprocess_pil(open_image(path), Preprocessing("squash", size, size), "squash")
    unchanged = Preprocessing("squash", size, size)

    def load(path: Path) -> Tensor:
        image = open_image(path).resize((size, size), Image.Resampling.BILINEAR)
        return preprocess_pil(image, unchanged, "squash")

    return load


def _side_of(metric: Metric) -> int:
    """Find the side of the images that a metric takes."""
    side = getattr(metric, "image_size", None)
    if type(side) is not int:
        raise ValueError(
            f"{metric.name} does not say which images it takes: give it an image_size in pixels, or choose a protocol "
            "that leaves the resizing to it (eval bapps --protocol majority-bicubic)"
        )
    return side


def decision(label: Tensor, loss: str = "ce") -> DecisionRule:
    """Make the rule of 2AFC for labels (N,) in {0, 1}: right is chosen only if its similarity is strictly greater."""

    def decide(similarities: Tensor, indices: Tensor) -> Decisions:
        wanted = label[indices]
        margin = two_afc_margin(similarities, wanted)
        raised = two_afc_cross_entropy(similarities, wanted) if loss == "ce" else -margin
        chosen = (similarities[:, 1] > similarities[:, 0]).long()
        return Decisions(raised, margin, chosen != wanted)

    return decide


evaluate_two_afc = evaluate
"""`evaluate` on `TwoAfcData`."""
