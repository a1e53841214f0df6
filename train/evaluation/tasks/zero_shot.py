"""Zero-shot classification with class prompts, clean and under APGD-CE, then APGD-T (paper, appendix D)."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from rclip_metric.train.attacks.base import AttackResult, ConfirmedResult
from rclip_metric.train.attacks.classifier import FEWEST_FOR_TARGETS, STAGES, attack_classes, margins, misclassified
from rclip_metric.train.attacks.classifier import similarities as class_similarities
from rclip_metric.train.attacks.threat import LpBall
from rclip_metric.train.data.classes import LabelledFolders, LabelledImage, Prompts
from rclip_metric.train.evaluation.attack import DEFAULTS, SLACK, Decisions, RunSettings, refuse_nan
from rclip_metric.train.evaluation.image_set import ImageSet, embeds
from rclip_metric.train.evaluation.records import Evaluation
from rclip_metric.train.evaluation.run import Task, evaluate
from rclip_metric.train.metrics.base import EmbeddingMetric, EncoderMetric
from rclip_metric.train.metrics.paper import ZERO_SHOT_RADII
from rclip_metric.train.models.text import TextModel, class_embeddings
from rclip_metric.train.runs.distributed import ALONE, Team
from rclip_metric.train.runs.precision import full_float32
from rclip_metric.weights import short_digest, tensors_digest

PAPER_BALLS = tuple(LpBall("linf", eps) for eps in ZERO_SHOT_RADII)
USUAL_PROMPTS = "imagenet"

_COUNTS = ("evaluations", "zero_gradients", "nonfinite_gradients")
_LETTERS = {"wrong": "w", "apgd-ce": "c", "apgd-t": "t", None: "r"}
_MEANINGS = {"w": "wrong on the clean image", "c": "fooled by APGD-CE", "t": "fooled by APGD-T", "r": "right"}


@dataclass(frozen=True)
class ZeroShotAttack:
    """One threat model; the defaults are the paper's.

    Attributes:
        ball: the feasible set.
        steps: APGD iterations, for the cross-entropy and for every target.
        targets: classes to aim at, the highest ones but the right one, 9 in AutoAttack; 0 for APGD-CE alone.

    Example:
        >>> ZeroShotAttack(LpBall("linf", 2 / 255)).attack
        'apgd-ce+apgd-t'
        >>> ZeroShotAttack(LpBall("linf", 2 / 255)).on(classes=2).attack  # there is no second stage for so few
        'apgd-ce'
    """

    ball: LpBall
    steps: int = 100
    targets: int = 9

    def __post_init__(self) -> None:
        """Check the fields."""
        if self.steps < 0 or self.targets < 0:
            raise ValueError(f"steps and targets must be at least 0, and they are {self.steps} and {self.targets}")

    def on(self, classes: int) -> ZeroShotAttack:
        """Leave out what is not possible with so many classes."""
        return replace(self, targets=min(self.targets, classes - 1) if classes >= FEWEST_FOR_TARGETS else 0)

    @property
    def attack(self) -> str:
        """The stages, as the record names them."""
        return "+".join(STAGES) if self.targets else STAGES[0]

    def describe(self) -> dict[str, Any]:
        """Describe the attack in the record: JSON."""
        threat = {"attack": self.attack, "norm": self.ball.norm, "eps": self.ball.eps, "steps": self.steps}
        return {**threat, "restarts": 1, **({"targets": self.targets} if self.targets else {})}


@dataclass(frozen=True)
class ZeroShotData:
    """A class-per-folder set and the words for its classes.

    Attributes:
        name: its own, e.g. the folder's.
        folders: classes and images.
        prompts: the words.
        split: for the record.
        limit: images per class that were read, None for all.
        published: "imagenet" for its validation set (`published_as`), whose numbers may stand beside the results.

    Example:
        >>> image = LabelledImage("cat/1.png", Path("cat/1.png"), label=0)
        >>> folders, prompts = LabelledFolders(("cat", "dog"), (image,)), Prompts("mine", ("a photo of a {}",), None)
        >>> ZeroShotData("pets", folders, prompts).words
        ('cat', 'dog')
    """

    name: str
    folders: LabelledFolders
    prompts: Prompts
    split: str | None = None
    limit: int | None = None
    published: str | None = None

    @property
    def words(self) -> tuple[str, ...]:
        """One for each class."""
        return self.prompts.words(self.folders.names)

    def describe(self) -> dict[str, Any]:
        """Describe the data in the record: prompts other than ImageNet's own are another protocol."""
        return {
            "name": self.name,
            "split": self.split,
            "protocol": None if self.prompts.name == USUAL_PROMPTS else self.prompts.name,
            **({"published": self.published} if self.published else {}),
        }

    def digest(self) -> str:
        """Digest the images and the words."""
        texts = (*self.words, *self.prompts.templates)
        return _digest([*texts, *(image.key for image in self.folders.images)])


@dataclass(frozen=True)
class ZeroShot(Task[LabelledImage]):
    """Images whose class is the one whose words they are most similar to; of equal similarities the first class.

    The attack moves the image: APGD on the cross-entropy, then on the targeted loss. Margins are of similarities.

    Attributes:
        data: the images and the words.
        text: the text tower; it is moved to the metric's device.
        classes: (K, D), a unit embedding per class; made when it is needed.
        own_text: whether the text tower is the one that goes with the metric (`load_text`); the results of any other
            one are told apart by its source.

    Example:
        >>> image = LabelledImage("cat/1.png", Path("cat/1.png"), label=0)
        >>> folders, prompts = LabelledFolders(("cat", "dog"), (image,)), Prompts("mine", ("a photo of a {}",), None)
        >>> from rclip_metric.train.models.text_weights import load_text
        >>> task = ZeroShot(ZeroShotData("pets", folders, prompts), load_text("tiny-clean"))
        >>> task.about()["classes"]
        2
    """

    task: ClassVar[str] = "zero-shot"
    noun: ClassVar[str] = ""
    data: ZeroShotData
    text: TextModel
    classes: Tensor = field(default_factory=lambda: torch.empty(0, 0), compare=False)
    own_text: bool = True

    @property
    def limit(self) -> int | None:
        """Images per class."""
        return self.data.limit

    @property
    def samples(self) -> Sequence[LabelledImage]:
        """The images."""
        return self.data.folders.images

    def files(self, sample: LabelledImage) -> list[Path]:
        """List the image."""
        return [sample.path]

    def part(self, sample: LabelledImage) -> str:
        """Name the set's split."""
        return self.data.split or self.data.name

    def settings(self) -> dict[str, Any]:
        """Add a digest of images and words, and the text tower where it is not the metric's own."""
        text = {} if self.own_text else {"text": self.text.source}
        return {**self.data.describe(), "samples": self.data.digest(), **text}

    def content(self) -> str:
        """Add the weights of the text tower."""
        return f"{Task.content(self)}, {short_digest(tensors_digest(self.text.tower.state_dict()))}"

    def describe(self) -> dict[str, Any]:
        """Describe the data as `ZeroShotData.describe` does."""
        return self.data.describe()

    def about(self) -> dict[str, Any]:
        """Describe the words and the text tower in the record."""
        return {
            "prompts": self.data.prompts.name,
            "templates": len(self.data.prompts.templates),
            "classes": len(self.data.words),
            "text": self.text.source,
            "logit_scale": round(self.text.scale, 4),
        }

    def depends_on(self, on: Evaluation) -> dict[str, Any]:
        """Add the words, the images and the text tower."""
        words = _digest([*self.data.words, *self.data.prompts.templates])
        digests = {"words": words, "images": _digest([image.key for image in self.samples])}
        return on.settings(self.task, {**self.data.describe(), **self.about(), **digests})

    def blocks(self, on: Evaluation) -> list[Any]:
        """Embed the words, then all images."""
        if not embeds(on.metric):
            raise ValueError(
                f"{on.metric.name} gives distances and no embeddings: zero-shot classification needs a CLIP"
            )
        words, templates = self.data.words, self.data.prompts.templates
        self.text.tower.to(on.metric.device)
        with full_float32():
            classes = class_embeddings(self.text, words, templates, quiet=on.quiet or on.team.rank > 0)
        return Task.blocks(replace(self, classes=classes), on)

    def similarities(self, samples: Sequence[LabelledImage], images: ImageSet, on: Evaluation) -> Tensor:
        """Compare n images with all classes: (n, K)."""
        if len(self.classes) < 2:
            raise ValueError(f"classification needs at least 2 classes, and there is {len(self.classes)}")
        embedded = images.kept(on.metric, [[sample.path] for sample in samples])[:, 0]
        return class_similarities(lambda points: points, self.classes, embedded)

    def decide(self, samples: Sequence[LabelledImage], similarities: Tensor) -> Decisions:
        """Choose the nearest class."""
        label = _labels(samples, similarities)
        margin = margins(similarities, label)
        return Decisions(-margin, margin, misclassified(similarities, label))

    def under_attack(
        self, samples: Sequence[LabelledImage], similarities: Tensor, images: ImageSet, on: Evaluation
    ) -> Iterator[ConfirmedResult]:
        """Run every attack in its two stages; the margin is that of the worst point."""
        centre, label = images.pixels([sample.path for sample in samples]), _labels(samples, similarities)
        judge: Any = on.metric
        attacked_by: Any = on.half or judge

        def exactly(points: Tensor) -> Tensor:
            with torch.no_grad():
                return class_similarities(judge.embed, self.classes, points, on.run.chunk_size)

        def confirm(points: Tensor, indices: Tensor) -> Tensor:
            return misclassified(exactly(points), label[indices])

        for attack in on.attacks:
            begun, worst, violation = time.perf_counter(), margins(similarities, label), 0.0
            attacked = attack_classes(
                attacked_by.embed,
                self.classes,
                centre,
                label,
                attack.ball,
                attack.steps,
                on.seeds(samples),
                scale=self.text.scale,
                targets=attack.targets,
                confirm=confirm if on.half else None,
                slack=SLACK if on.half else 0.0,
                chunk_size=on.run.chunk_size,
            )
            for part, found in zip((torch.arange(len(samples)), attacked.left), attacked.attacks, strict=False):
                worst[part] = torch.minimum(worst[part], margins(exactly(found.images), label[part]))
                violation = max(violation, attack.ball.violation(found.images, centre[part]))
            refuse_nan(worst, [sample.key for sample in samples], f"{on.metric.name}'s margin under {attack.attack}")
            fooled = torch.tensor([stage is not None for stage in attacked.stages])
            counts = {name: sum(getattr(found, name) for found in attacked.attacks) for name in _COUNTS}
            spent = AttackResult(centre, -worst, fooled, **counts)
            yield ConfirmedResult(fooled, worst, spent, violation, time.perf_counter() - begun, attacked.stages)

    def records(self, blocks: list[Any], on: Evaluation) -> list[dict[str, Any]]:
        """Add the words to the settings, and `stages`: a letter per sample for what became of it."""
        records = super().records(blocks, on)
        rows = [row for block in blocks for row in block["rows"]]
        for index, record in enumerate(records):
            record["settings"] |= self.about()
            fates = ["wrong" if not row["clean"] else row["fooled_by"][index] if on.attacks else None for row in rows]
            record["stages"] = {"letters": _MEANINGS, "samples": "".join(_LETTERS[fate] for fate in fates)}
        return records


def evaluate_zero_shot(
    metric: EncoderMetric | EmbeddingMetric,
    text: TextModel,
    data: ZeroShotData,
    attacks: Sequence[ZeroShotAttack] = (),
    run: RunSettings = DEFAULTS,
    *,
    journal: Path | None = None,
    team: Team = ALONE,
    quiet: bool = False,
) -> list[dict[str, Any]]:
    """Evaluate `ZeroShot`, with a warning where an attack has no second stage for want of classes.

    Raises:
        ValueError: if the metric has no embeddings, the prompts do not fit the folders, or no image can be read.

    Example:
        >>> from tempfile import mkdtemp
        >>> from PIL import Image
        >>> from rclip_metric.train.data.classes import read_classes, read_prompts
        >>> from rclip_metric.train.metrics import load_metric
        >>> from rclip_metric.train.models.text_weights import load_text
        >>> folder = Path(mkdtemp())
        >>> for colour in ("red", "blue"):
        ...     (folder / colour).mkdir()
        ...     Image.new("RGB", (64, 64), colour).save(folder / colour / "1.png")
        >>> data = ZeroShotData("colours", read_classes(folder), read_prompts("scenes-grounds"))
        >>> [record] = evaluate_zero_shot(load_metric("tiny-clean"), load_text("tiny-clean"), data, quiet=True)
        >>> record["clean"]["accuracy"]
        100.0
    """
    possible = [attack.on(len(data.words)) for attack in attacks]
    records = evaluate(metric, ZeroShot(data, text), possible, run, journal=journal, team=team, quiet=quiet)
    for record, asked, attack in zip(records, attacks, possible, strict=False):
        if asked.targets and not attack.targets:
            record["warnings"].append(
                f"APGD-T was left out: its loss needs {FEWEST_FOR_TARGETS} classes, and there are {len(data.words)}."
            )
    return records


def _labels(samples: Sequence[LabelledImage], similarities: Tensor) -> Tensor:
    return torch.tensor([sample.label for sample in samples], device=similarities.device)


def _digest(texts: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()[:16]
