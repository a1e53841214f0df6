"""Zero-shot classification with class prompts, clean and under APGD-CE, then APGD-T (paper, appendix D)."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypedDict

import torch
from torch import Tensor

from rclip_metric.images import ImageError
from rclip_metric.train.attacks.classifier import (
    FEWEST_FOR_TARGETS,
    STAGES,
    Embed,
    attack_classes,
    margins,
    similarities,
)
from rclip_metric.train.attacks.threat import LpBall
from rclip_metric.train.data.classes import LabelledFolders, LabelledImage, Prompts
from rclip_metric.train.evaluation.blocks import run_blocks
from rclip_metric.train.evaluation.collected import Block, Row, cost, empty_block, records_of, settings_of
from rclip_metric.train.evaluation.robustness import DEFAULTS, SLACK, RunSettings
from rclip_metric.train.metrics.base import EmbeddingMetric, EncoderMetric
from rclip_metric.train.models.text import TextModel, class_embeddings
from rclip_metric.train.runs.distributed import ALONE, Team
from rclip_metric.train.runs.precision import full_float32, resolved_precision
from rclip_metric.train.runs.seeds import sample_seed

PAPER_BALLS = (LpBall("linf", 2 / 255), LpBall("linf", 4 / 255))
USUAL_PROMPTS = "imagenet"

_LETTERS = {"wrong": "w", "apgd-ce": "c", "apgd-t": "t", None: "r"}
_MEANINGS = {"w": "wrong on the clean image", "c": "fooled by APGD-CE", "t": "fooled by APGD-T", "r": "right"}


@dataclass(frozen=True)
class ZeroShotAttack:
    """One threat model; the defaults are the paper's.

    Attributes:
        ball: the feasible set.
        steps: APGD iterations, for the cross-entropy and for every target.
        targets: classes to aim at, the highest ones but the right one, 9 in AutoAttack; 0 for APGD-CE alone.
    """

    ball: LpBall
    steps: int = 100
    targets: int = 9

    def __post_init__(self) -> None:
        """Check the fields."""
        if self.steps < 0 or self.targets < 0:
            raise ValueError(f"steps and targets must be at least 0, and they are {self.steps} and {self.targets}")

    def on(self, classes: int) -> ZeroShotAttack:
        """What of it is possible with so many classes."""
        return replace(self, targets=min(self.targets, classes - 1) if classes >= FEWEST_FOR_TARGETS else 0)

    @property
    def attack(self) -> str:
        """The stages, as the record names them."""
        return "+".join(STAGES) if self.targets else STAGES[0]

    def describe(self) -> dict[str, Any]:
        """For the record: JSON."""
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
    """

    name: str
    folders: LabelledFolders
    prompts: Prompts
    split: str | None = None
    limit: int | None = None
    published: str | None = None

    def describe(self) -> dict[str, Any]:
        """For the record: prompts other than ImageNet's own are another protocol."""
        return {
            "name": self.name,
            "split": self.split,
            "protocol": None if self.prompts.name == USUAL_PROMPTS else self.prompts.name,
            **({"published": self.published} if self.published else {}),
        }

    def digest(self) -> str:
        """Of the images and the words."""
        texts = (*self.prompts.words(self.folders.names), *self.prompts.templates)
        return _digest([*texts, *(image.key for image in self.folders.images)])


class ZeroShotRow(Row):
    """One image: as `Row`, and by attack "wrong" (on the clean image), the stage that fooled it, or None."""

    fooled_by: list[str | None]


class ZeroShotBlock(TypedDict):
    """As `Block`, of such rows."""

    rows: list[ZeroShotRow]
    unreadable: list[str]
    costs: list[dict[str, float]]


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
    """Clean accuracy, and accuracy under each attack.

    "Robust" is right on the clean image and at every point that the attack visited. Of equal similarities the first
    class is the answer.

    Args:
        metric: the image encoder, judged and attacked.
        text: the text tower that goes with it; it is moved to the metric's device.
        data: the images and the words.
        attacks: none for the clean accuracy alone.
        run: seed, sizes and precision.
        journal: folder of the journal, see `run_blocks`.
        team: torchrun's processes.
        quiet: no progress bar.

    Returns:
        One record per attack, or one of the clean accuracy alone (`report.record`), with ``stages``: a letter per
        sample for what became of it.

    Raises:
        ValueError: if the metric has no embeddings, the prompts do not fit the folders, or no image can be read.
    """
    if not hasattr(metric, "embed"):
        raise ValueError(f"{metric.name} gives distances and no embeddings: zero-shot classification needs a CLIP")
    images, names = data.folders.images, data.folders.names
    words = data.prompts.words(names)
    text.tower.to(metric.device)
    with full_float32():
        classes = class_embeddings(text, words, data.prompts.templates, quiet=quiet or team.rank > 0)
    possible = [attack.on(len(words)) for attack in attacks]
    bfloat16 = resolved_precision(run.precision, metric.device) == "bfloat16" and attacks
    half = metric.in_bfloat16() if bfloat16 else None
    split = data.split or data.name
    about = {
        "prompts": data.prompts.name,
        "templates": len(data.prompts.templates),
        "classes": len(words),
        "text": text.source,
        "logit_scale": round(text.scale, 4),
    }

    def evaluate(block: Sequence[LabelledImage]) -> ZeroShotBlock:
        begun = time.perf_counter()
        read, pixels, unreadable = _read(block, metric)
        if not read:
            return {**empty_block(unreadable, len(possible)), "rows": []}
        pixels = pixels.to(metric.device)
        label = torch.tensor([image.label for image in read], device=metric.device)
        keys = [image.key for image in read]
        reading = time.perf_counter() - begun
        with full_float32():
            result = zero_shot_block(
                metric.embed, classes, pixels, label, keys, possible, run, split=split, scale=text.scale,
                half=None if half is None else half.embed,
            )  # fmt: skip
        result["costs"][0]["seconds"] += reading
        result["unreadable"] += unreadable
        return result

    blocks = [images[first : first + run.batch_size] for first in range(0, len(images), run.batch_size)]
    digests = {"words": _digest([*words, *data.prompts.templates]), "images": _digest([image.key for image in images])}
    results = run_blocks(
        blocks,
        evaluate,
        settings=settings_of("zero-shot", metric, {**data.describe(), **about, **digests}, possible, run, None),
        journal=journal,
        team=team,
        describe=f"{data.name} {metric.name}",
        sizes=[len(block) for block in blocks],
        quiet=quiet,
    )
    records = records_of(
        [Block(rows=[*found["rows"]], unreadable=found["unreadable"], costs=found["costs"]) for found in results],
        task="zero-shot",
        metric=metric,
        data=data.describe(),
        attacks=possible,
        run=run,
        team=team,
        limit=data.limit,
    )
    rows = [row for result in results for row in result["rows"]]
    for index, record in enumerate(records):
        record["settings"] |= about
        fates = [row["fooled_by"][index] if attacks else None if row["clean"] else "wrong" for row in rows]
        record["stages"] = {"letters": _MEANINGS, "samples": "".join(_LETTERS[fate] for fate in fates)}
        if attacks and attacks[index].targets and not possible[index].targets:
            record["warnings"].append(
                f"APGD-T was left out: its loss needs {FEWEST_FOR_TARGETS} classes, and there are {len(words)}."
            )
    return records


def zero_shot_block(
    embed: Embed,
    classes: Tensor,
    images: Tensor,
    label: Tensor,
    keys: Sequence[str],
    attacks: Sequence[ZeroShotAttack],
    run: RunSettings = DEFAULTS,
    *,
    split: str,
    scale: float = 100.0,
    half: Embed | None = None,
) -> ZeroShotBlock:
    """Classify a batch and attack what is right; margins are of similarities.

    Args:
        embed: the image encoder, in float32: judges.
        classes: (K, D), a unit embedding per class, K at least 2.
        images: (n, 3, S, S) in [0, 1].
        label: (n,).
        keys: the images' names, for their seeds.
        attacks: what is tried.
        run: seed and chunk size.
        split: for the rows.
        scale: factor on similarities that makes them logits.
        half: the encoder in bfloat16, if the attack's own passes shall run there.

    Returns:
        A `ZeroShotRow` per image, and the costs.

    Raises:
        ValueError: for a single class, or a text tower of another size.
    """
    begun = time.perf_counter()
    if len(classes) < 2:
        raise ValueError(f"classification needs at least 2 classes, and there is {len(classes)}")

    def exactly(points: Tensor) -> Tensor:
        with torch.no_grad():
            return similarities(embed, classes, points, run.chunk_size)

    clean = exactly(images)  # (n, K)
    right = clean.argmax(1) == label
    tie = (clean == clean.amax(1, keepdim=True)).sum(1) > 1
    margin = margins(clean, label)
    rows = [
        ZeroShotRow(key=key, split=split, clean=float(ok), tie=tied, margin=value, attacks=[], fooled_by=[])
        for key, ok, tied, value in zip(keys, right.tolist(), tie.tolist(), margin.tolist(), strict=True)
    ]
    costs = [cost(time.perf_counter() - begun, len(rows))]
    kept = right.nonzero()[:, 0]
    centre, own = images[kept], label[kept]

    def confirm(points: Tensor, indices: Tensor) -> Tensor:
        return exactly(points).argmax(1) != own[indices]

    for attack in attacks:
        begun = time.perf_counter()
        fates: list[str | None] = [None if ok else "wrong" for ok in right.tolist()]
        worst = margin.clone()
        spent = {"evaluations": 0.0, "violation": 0.0, "zero_gradients": 0.0, "nonfinite_gradients": 0.0}
        if len(kept):
            attacked = attack_classes(
                half or embed,
                classes,
                centre,
                own,
                attack.ball,
                attack.steps,
                [sample_seed(run.seed, keys[row]) for row in kept.tolist()],
                scale=scale,
                targets=attack.targets,
                confirm=None if half is None else confirm,
                slack=0.0 if half is None else SLACK,
                chunk_size=run.chunk_size,
            )
            for row, stage in zip(kept.tolist(), attacked.stages, strict=True):
                fates[row] = stage
            parts: tuple[slice | Tensor, ...] = (slice(None), attacked.left)
            for part, found in zip(parts, attacked.attacks, strict=False):
                worst[kept[part]] = torch.minimum(worst[kept[part]], margins(exactly(found.images), own[part]))
                spent["violation"] = max(spent["violation"], attack.ball.violation(found.images, centre[part]))
                for name in ("evaluations", "zero_gradients", "nonfinite_gradients"):
                    spent[name] += getattr(found, name)
        for row, fate, value in zip(rows, fates, worst.tolist(), strict=True):
            row["attacks"].append((float(fate is None), value))
            row["fooled_by"].append(fate)
        costs.append({"seconds": time.perf_counter() - begun, **spent})
    return {"rows": rows, "unreadable": [], "costs": costs}


def _read(
    block: Sequence[LabelledImage], metric: EncoderMetric | EmbeddingMetric
) -> tuple[list[LabelledImage], Tensor, list[str]]:
    """The images that could be read, their pixels (n, 3, S, S), and a sentence per image that could not."""

    def read(image: LabelledImage) -> Tensor | str:
        try:
            return metric.preprocess(image.path)
        except ImageError as error:
            return str(error)

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(read, block))
    kept = [image for image, pixels in zip(block, found, strict=True) if isinstance(pixels, Tensor)]
    pixels = [pixels for pixels in found if isinstance(pixels, Tensor)]
    return kept, torch.stack(pixels) if pixels else torch.empty(0), [text for text in found if isinstance(text, str)]


def _digest(texts: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()[:16]
