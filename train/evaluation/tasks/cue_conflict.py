"""Shape or texture: the share of decisions for shape where the two cues disagree (Geirhos et al. 2019)."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor

from rclip_metric.train.data.cue_conflict import ConflictTriplet
from rclip_metric.train.evaluation.attack import DEFAULTS, Decisions, RunSettings
from rclip_metric.train.evaluation.run import Task, evaluate
from rclip_metric.train.metrics.base import Metric
from rclip_metric.train.runs.distributed import ALONE, Team


@dataclass(frozen=True)
class CueConflictData(Task[ConflictTriplet]):
    """Triplets of conflict images, as `conflict_triplets` draws them.

    A triplet scores 1 where the option that shares the reference's shape is nearer than the one that shares its
    texture, 0 where it is farther, a tie one half; "accuracy" is the share for shape. Splits are the classes of the
    references' shapes. A few images stand behind many triplets, so the interval to quote is that of a run that
    resamples images.

    Attributes:
        name: its own, e.g. the folder's.
        triplets: in a fixed order.
        limit: how many were asked for, None for all.
        left_out: a sentence for each image that is no reference.

    Example:
        >>> data = CueConflictData("mine", triplets=[], left_out=["car1-car2.png shows no conflict"])
        >>> data.describe()["protocol"]
        'share for shape'
    """

    task: ClassVar[str] = "cue-conflict"
    name: str
    triplets: Sequence[ConflictTriplet]
    limit: int | None = None
    left_out: Sequence[str] = ()

    @property
    def samples(self) -> Sequence[ConflictTriplet]:
        """The triplets."""
        return self.triplets

    def files(self, sample: ConflictTriplet) -> tuple[Path, Path, Path]:
        """List reference, shape and texture."""
        return sample.files

    def settings(self) -> dict[str, Any]:
        """Describe what the outcomes depend on, JSON: names, cues and draws go in as a digest."""
        return {"name": self.name, "split": None, "protocol": "share for shape", "triplets": self._digest()}

    def describe(self) -> dict[str, Any]:
        """Describe the data in the record: JSON."""
        images = len({path for triplet in self.triplets for path in triplet.files})
        about = {"name": self.name, "split": None, "protocol": "share for shape"}
        return {**about, "images": images, "digest": self._digest()}

    def part(self, sample: ConflictTriplet) -> str:
        """Name the class of the reference's shape."""
        return sample.reference.shape.name

    def compare(self, sample: ConflictTriplet) -> list[tuple[Path, Sequence[Path]]]:
        """Compare the reference with the one of its shape and the one of its texture."""
        return [(sample.reference.path, (sample.shape.path, sample.texture.path))]

    def decide(self, samples: Sequence[ConflictTriplet], similarities: Tensor) -> Decisions:
        """Decide; right is a decision for shape."""
        margin = similarities[:, 0].double() - similarities[:, 1].double()
        return Decisions(-margin, margin, margin <= 0)

    def score(self, sample: ConflictTriplet, wrong: bool, tie: bool) -> float:
        """Give one half for a tie."""
        return 0.5 if tie else float(not wrong)

    def _digest(self) -> str:
        lines = []
        for triplet in self.triplets:
            images = (triplet.reference, triplet.shape, triplet.texture)
            lines.append(str((triplet.key, *((image.key, image.shape, image.texture) for image in images))))
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def evaluate_cue_conflict(
    metric: Metric,
    data: CueConflictData,
    run: RunSettings = DEFAULTS,
    *,
    journal: Path | None = None,
    team: Team = ALONE,
    quiet: bool = False,
) -> list[dict[str, Any]]:
    """Measure the share of decisions for shape: one record, as `evaluate` gives it.

    Example:
        >>> from itertools import permutations
        >>> from tempfile import mkdtemp
        >>> from PIL import Image
        >>> folder = Path(mkdtemp())
        >>> for shape, texture in permutations(("car1", "car2", "bus1", "bus2", "dog1", "dog2"), 2):
        ...     Image.new("L", (8, 8), ord(shape[1])).save(folder / f"{shape}-{texture}.png")
        >>> from rclip_metric.train.evaluation.tasks import cue_conflict_data
        >>> from rclip_metric.train.metrics import load_metric
        >>> data = cue_conflict_data(folder, draws=1)
        >>> [record] = evaluate_cue_conflict(load_metric("l2", image_size=8), data, quiet=True)
        >>> record["clean"]["accuracy"]  # levels follow the shapes
        100.0
    """
    return evaluate(metric, data, (), run, journal=journal, team=team, quiet=quiet)
