"""The direct attack: how different from itself an image can be made to look to a metric.

LipSim's authors show a histogram of d(x, x + delta), delta from PGD on the MSE between f(x + delta) and f(x). Here APGD
raises the metric's own dissimilarity; of unit embeddings it is half their squared distance, and has the same maximum.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor

from rclip_metric.train.attacks.apgd import apgd
from rclip_metric.train.attacks.base import AttackResult
from rclip_metric.train.attacks.threat import LpBall
from rclip_metric.train.data.triplets import TripletFiles
from rclip_metric.train.evaluation.attack import DEFAULTS, fixed_options
from rclip_metric.train.evaluation.image_set import ImageSet
from rclip_metric.train.evaluation.records import Evaluation
from rclip_metric.train.evaluation.results.record import masked, rounding
from rclip_metric.train.evaluation.run import Task, evaluate
from rclip_metric.train.evaluation.session import Session
from rclip_metric.train.evaluation.tasks.two_afc import TwoAfcData
from rclip_metric.train.metrics.base import Metric, dissimilarity
from rclip_metric.train.runs.machine import device_record, versions

COLUMNS = ("keys", "distances", "others", "unreadable")
COSTS = ("evaluations", "zero_gradients", "nonfinite_gradients", "seconds", "violation")


@dataclass(frozen=True)
class SelfDistance(Task[TripletFiles]):
    """The first reference images of a set, made as different from themselves as the metric can be made to find them.

    Beside each distance d(x, x + delta) stands d(x, y) to another image of the set, the next one that can be read (the
    last has the first): the scale on which to read it. The metric is always attacked in float32.

    Attributes:
        data: its triplets' reference images, each file once.
        ball: the feasible set.
        images: how many of them; those that cannot be read are left out and named.
        steps: of APGD, from one random start per image, seeded by the run's seed and the first triplet's key.

    Example:
        >>> triplet = TripletFiles("1", Path("x.png"), Path("left.png"), Path("right.png"), share=1.0, split="test")
        >>> task = SelfDistance(TwoAfcData("mine", "test", [triplet]), LpBall("linf", 4 / 255), images=1)
        >>> task.files(triplet)[0].name
        'x.png'
    """

    task: ClassVar[str] = "direct"
    data: TwoAfcData
    ball: LpBall
    images: int = 64
    steps: int = 100

    def __post_init__(self) -> None:
        """Check the fields."""
        if self.images < 1 or self.steps < 0:
            has = f"{self.images} and {self.steps}"
            raise ValueError(f"a direct attack needs at least 1 image and 0 steps, and has {has}")

    @cached_property
    def samples(self) -> Sequence[TripletFiles]:
        """The first triplet of each reference image."""
        first = {triplet.reference: triplet for triplet in reversed(self.data.triplets)}
        return [first[path] for path in dict.fromkeys(t.reference for t in self.data.triplets)][: self.images]

    def files(self, sample: TripletFiles) -> list[Path]:
        """List the reference image."""
        return [sample.reference]

    def reader(self, metric: Metric) -> Callable[[Path], Tensor]:
        """Choose the set's own."""
        return self.data.reader(metric)

    def settings(self) -> dict[str, Any]:
        """Describe what is asked, JSON."""
        threat: dict[str, Any] = {"attack": "apgd", "norm": self.ball.norm, "eps": self.ball.eps}
        threat |= {"eps_text": str(self.ball).split()[1], "steps": self.steps, "restarts": 1, "loss": "dissimilarity"}
        return {"data": self.data.settings(), "images": self.images, "threat": threat}

    def identity(self, on: Evaluation) -> dict[str, Any]:
        """Gather metric, seed and sizes, but not the precision."""
        about = {"task": self.task, "model": on.metric.describe(), "seed": on.run.seed, **self.settings()}
        return {**about, "sizes": [on.run.batch_size, on.run.chunk_size]}

    def label(self, metric: Metric) -> str:
        """Label the progress bar."""
        return f"{self.data.name} {metric.name} direct {self.ball}"

    def judge(self, block: Sequence[TripletFiles], images: ImageSet, on: Evaluation) -> dict[str, Any]:
        """Attack a block: `COLUMNS`, of which "others" is empty where there is no other image, and `COSTS`."""
        begun, metric, chunk = time.perf_counter(), on.metric, on.run.chunk_size
        read, unreadable = self.readable(block, images, None)
        if not read:
            return {**{name: [] for name in COLUMNS}, "unreadable": unreadable, **dict.fromkeys(COSTS, 0)}
        paths = [triplet.reference for triplet in read]
        clean = images.pixels(paths)
        found, fixed = moved_away(metric, clean, self.ball, self.steps, on.seeds(read), chunk)
        last = self.samples.index(read[-1])
        others = (triplet.reference for triplet in (*self.samples[last + 1 :], *self.samples[:last]))  # round the end
        after = next(([path] for path in others if not images.problems(None, [path])), [])
        later = paths[1:] + after  # one less than n where there is no other image than the last one
        following = images.pixels(later) if later else clean[:0]
        moved = dissimilarity(metric, found.images, fixed, clean, chunk)
        apart = dissimilarity(metric, following, fixed[: len(later)], clean[: len(later)], chunk)
        short = ([float(f"{value:.7g}") for value in part[:, 0].tolist()] for part in (moved, apart))  # as float32 is
        violation, seconds = self.ball.violation(found.images, clean), time.perf_counter() - begun
        costs = (found.evaluations + 4 * len(read), found.zero_gradients, found.nonfinite_gradients, seconds, violation)
        return dict(zip(COLUMNS + COSTS, ([image.key for image in read], *short, unreadable, *costs), strict=True))

    def records(self, blocks: list[Any], on: Evaluation) -> list[dict[str, Any]]:
        """Make one record, of columns; the tables of results have no row for it."""
        keys, distances, others, unreadable = ([v for block in blocks for v in block[name]] for name in COLUMNS)
        evaluations, zero, nonfinite, seconds, _ = (sum(block[name] for block in blocks) for name in COSTS)
        violation, count, lost = max(block["violation"] for block in blocks), len(keys), len(unreadable)
        if not keys:
            raise ValueError(f"none of the {lost} reference images of {self.data.name} could be read: {unreadable[0]}")
        warnings = masked(zero, nonfinite, f"{count} images", ": the metric may be less robust than it looks.")
        if unreadable:
            warnings.append(f"{lost} of {count + lost} images could not be read, the first: {unreadable[0]}")
        if violation > rounding(self.ball.eps):
            warnings.append(f"An attacked image left the ball of {self.ball} or the range [0, 1] by {violation:.2g}.")
        data = {"name": self.data.name, "split": self.data.split, "images": count, "unreadable": unreadable}
        made = {"task": self.task, "model": on.metric.describe(), "data": data, "threat": self.settings()["threat"]}
        made |= {"keys": keys, "distances": distances, "others": others, "largest_violation": violation}
        made |= {"masking": {"zero_gradients": zero, "nonfinite_gradients": nonfinite}, "warnings": warnings}
        made |= {"settings": {**asdict(on.run), "precision": "float32", "images": self.images}, "versions": versions()}
        made |= {"device": device_record(on.metric.device), "processes": on.team.count, "seconds": round(seconds, 3)}
        return [{**made, "images_per_second": round(evaluations / seconds, 2) if seconds else None}]


def moved_away(
    metric: Metric, clean: Tensor, ball: LpBall, steps: int, seeds: Sequence[int], chunk_size: int | None
) -> tuple[AttackResult, Tensor]:
    """Attack images (n, 3, S, S) so that the metric finds them as unlike themselves as it can (the paper's eq. 6).

    At the image itself the gradient is zero; APGD begins at a random point of the ball.

    Returns:
        What the attack found; its loss is minus the similarity to the clean image. And what the metric keeps of the
        clean images, (n, 1, ...).

    Example:
        >>> import torch
        >>> from rclip_metric.train.metrics import load_metric
        >>> clean = torch.full((1, 3, 16, 16), 0.5)
        >>> found, _ = moved_away(load_metric("linf", image_size=16), clean, LpBall("linf", 8 / 255), 3, [0], None)
        >>> round(255 * (found.images - clean).abs().max().item(), 2)
        8.0
    """
    fixed = fixed_options(metric, clean[:, None], chunk_size)  # (n, 1, ...)
    found = apgd(
        lambda points, indices: -metric.similarities(points, fixed[indices])[:, 0],
        clean,
        ball,
        steps,
        seeds=seeds,
        chunk_size=chunk_size,
    )
    return found, fixed


def direct_attack(
    metric: Metric, data: TwoAfcData, ball: LpBall, *, images: int = 64, steps: int = 100, **to: Any
) -> dict[str, Any]:
    """Make the record of `SelfDistance`; `to` are run, journal, team and quiet of `evaluate`.

    Example:
        >>> from tempfile import mkdtemp
        >>> from PIL import Image
        >>> from rclip_metric.train.metrics import load_metric
        >>> folder = Path(mkdtemp())
        >>> for level in (100, 110, 120):
        ...     Image.new("RGB", (16, 16), (level, level, level)).save(folder / f"{level}.png")
        >>> files = [folder / f"{level}.png" for level in (100, 110, 120)]
        >>> data = TwoAfcData("mine", "test", [TripletFiles("1", *files, share=0.0, split="test")])
        >>> linf, ball = load_metric("linf", image_size=16), LpBall("linf", 8 / 255)
        >>> [distance] = direct_attack(linf, data, ball, steps=3, quiet=True)["distances"]
        >>> round(255 * distance, 2)
        8.0
    """
    return evaluate(metric, SelfDistance(data, ball, images, steps), **to)[0]


def direct_record(
    path: Path, metric: Metric, data: TwoAfcData, ball: LpBall, *, images: int = 64, steps: int = 100, **to: Any
) -> dict[str, Any]:
    """Make the same record, or read it if it is there; `to` are its run, and team, overwrite and quiet of `Session`.

    Example:
        >>> from tempfile import mkdtemp
        >>> from PIL import Image
        >>> from rclip_metric.train.metrics import load_metric
        >>> folder = Path(mkdtemp())
        >>> for level in (100, 110, 120):
        ...     Image.new("RGB", (16, 16), (level, level, level)).save(folder / f"{level}.png")
        >>> files = [folder / f"{level}.png" for level in (100, 110, 120)]
        >>> data = TwoAfcData("mine", "test", [TripletFiles("1", *files, share=0.0, split="test")])
        >>> linf, ball = load_metric("linf", image_size=16), LpBall("linf", 8 / 255)
        >>> direct_record(folder / "one.json", linf, data, ball, steps=3, quiet=True)["keys"]
        ['1']
    """
    run = to.pop("run", DEFAULTS)
    return Session(**to).single(path, SelfDistance(data, ball, images, steps), metric, run)
