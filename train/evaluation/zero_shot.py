"""Zero-shot classification with class prompts, clean and under APGD-CE, then APGD-T (paper, appendix D)."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from rclip_metric.images import ImageError
from rclip_metric.train.attack import sample_seed
from rclip_metric.train.classifier import FEWEST_FOR_TARGETS, STAGES, Embed, attack_classes, margins, similarities
from rclip_metric.train.data.classes import LabelledFolders, LabelledImage, Prompts
from rclip_metric.train.evaluation.blocks import Processes, run_blocks
from rclip_metric.train.evaluation.metric import EmbeddingMetric, EncoderMetric
from rclip_metric.train.evaluation.outcome import Outcome
from rclip_metric.train.evaluation.report import record
from rclip_metric.train.text import TextModel, class_embeddings
from rclip_metric.train.threat import LpBall

PAPER_BALLS = (LpBall("linf", 2 / 255), LpBall("linf", 4 / 255))

_ALONE = Processes()
_COUNTS = ("zero_gradients", "nonfinite_gradients", "evaluations", "gradients")
_LETTERS = {"wrong": "w", "apgd-ce": "c", "apgd-t": "t", None: "r"}


@dataclass(frozen=True)
class ZeroShotConfig:
    """Settings of an evaluation; the defaults are the paper's (the larger of its two balls).

    Attributes:
        ball: the threat; None for clean accuracy alone.
        steps: APGD iterations, for the cross-entropy and for every target.
        targets: classes to aim at, the highest ones but the right one; 9 in AutoAttack.
        seed: of the random starts.
        batch_size: images at a time.
        precision: of the attack's own passes; what bfloat16 finds is confirmed in float32.
    """

    ball: LpBall | None = PAPER_BALLS[1]
    steps: int = 100
    targets: int = 9
    seed: int = 0
    batch_size: int = 64
    precision: Literal["float32", "bfloat16"] = "float32"


def zero_shot_block(
    embed: Embed,
    classes: Tensor,
    images: Tensor,
    label: Tensor,
    ball: LpBall | None,
    steps: int,
    seeds: Sequence[int],
    *,
    scale: float = 100.0,
    targets: int = 9,
    attack_embed: Embed | None = None,
) -> dict[str, Any]:
    """Classify a batch, attack what is right, and say what became of every image.

    Args:
        embed: the image encoder, in float32.
        classes: (K, D), a unit embedding per class, K at least 2.
        images: (n, 3, S, S) in [0, 1].
        label: (n,).
        ball: the threat; None for clean accuracy alone.
        steps: of each APGD run.
        seeds: one per image.
        scale: as for `attack_classes`.
        targets: as for `attack_classes`.
        attack_embed: a cheaper encoder for the attack's own passes, whose successes ``embed`` confirms.

    Returns:
        What JSON can hold: ``rows``, one per image with ``clean`` and ``robust`` (1.0 or 0.0; None without an attack),
        ``tie`` (the highest similarity belongs to several classes), ``margin`` and ``robust_margin`` (in similarity)
        and ``fooled_by`` ("wrong" on the clean image, a stage, or None); ``largest_violation``, ``zero_gradients``,
        ``nonfinite_gradients``, ``evaluations`` and ``gradients`` (both counted over images).

    Raises:
        ValueError: for a single class, or a text tower of another size.
    """
    if len(classes) < 2:
        raise ValueError(f"classification needs at least 2 classes, and there is {len(classes)}")
    with torch.no_grad():
        clean = similarities(embed, classes, images)  # (n, K)
    right = clean.argmax(1) == label
    ties = (clean == clean.amax(1, keepdim=True)).sum(1) > 1
    margin = margins(clean, label)
    fooled_by: list[str | None] = [None if ok else "wrong" for ok in right.tolist()]
    worst, totals, violation = margin.clone(), dict.fromkeys(_COUNTS, 0), 0.0
    kept = right.nonzero()[:, 0]
    if ball is not None and len(kept):
        centre, own = images[kept], label[kept]

        def confirm(points: Tensor, alive: Tensor) -> Tensor:
            with torch.no_grad():
                return similarities(embed, classes, points).argmax(1) != own[alive]

        attacked = attack_classes(
            attack_embed or embed,
            classes,
            centre,
            own,
            ball,
            steps,
            [seeds[row] for row in kept.tolist()],
            scale=scale,
            targets=targets,
            confirm=None if attack_embed is None else confirm,
        )
        for row, stage in zip(kept.tolist(), attacked.stages, strict=True):
            fooled_by[row] = stage
        for part, found in zip((slice(None), attacked.left), attacked.attacks, strict=False):
            with torch.no_grad():
                there = margins(similarities(embed, classes, found.images), own[part])
            rows = kept[part]
            worst[rows] = torch.minimum(worst[rows], there)
            violation = max(violation, ball.violation(found.images, centre[part]))
            totals = {name: count + getattr(found, name) for name, count in totals.items()}
    rows_out = [
        {
            "clean": float(right[i]),
            "tie": bool(ties[i]),
            "margin": margin[i].item(),
            "robust": None if ball is None else float(fooled_by[i] is None),
            "robust_margin": None if ball is None else worst[i].item(),
            "fooled_by": fooled_by[i],
        }
        for i in range(len(images))
    ]
    return {"rows": rows_out, "largest_violation": violation, **totals}


def evaluate_zero_shot(
    metric: EncoderMetric | EmbeddingMetric,
    text: TextModel,
    prompts: Prompts,
    folders: LabelledFolders,
    config: ZeroShotConfig = ZeroShotConfig(),
    *,
    data: dict[str, Any],
    journal: Path | None = None,
    team: Processes = _ALONE,
    quiet: bool = False,
) -> dict[str, Any]:
    """Clean and robust accuracy over a class-per-folder set on disk.

    Args:
        metric: the image encoder.
        text: the text tower that goes with it, on any device.
        prompts: templates and what to call the classes.
        folders: the set.
        config: settings.
        data: ``name`` and, where there is one, ``split`` of the set, for the record.
        journal: as for `run_blocks`.
        team: as for `run_blocks`.
        quiet: no progress bar.

    Returns:
        A `report.record`, with ``stages``: a letter per sample for what became of it.

    Raises:
        ValueError: if the metric has no embeddings, the prompts do not fit the folders, or no image can be read.
    """
    if not hasattr(metric, "embed"):
        raise ValueError(f"{metric.name} gives distances and no embeddings: zero-shot classification needs a CLIP")
    words = prompts.words(folders.names)
    text.tower.to(metric.device)
    classes = class_embeddings(text, words, prompts.templates, quiet=quiet or team.rank > 0)
    attack_embed = metric.in_bfloat16().embed if config.precision == "bfloat16" and config.ball is not None else None
    begun = time.perf_counter()

    def evaluate(block: Sequence[LabelledImage]) -> dict[str, Any]:
        loaded, read, unreadable = [], [], []
        for item in block:
            try:
                loaded.append(metric.preprocess(item.path))
                read.append(item)
            except ImageError as error:
                unreadable.append(str(error))
        result: dict[str, Any] = {"rows": [], "largest_violation": 0.0, **dict.fromkeys(_COUNTS, 0)}
        if read:
            result = zero_shot_block(
                metric.embed,
                classes,
                torch.stack(loaded).to(metric.device),
                torch.tensor([item.label for item in read], device=metric.device),
                config.ball,
                config.steps,
                [sample_seed(config.seed, item.key) for item in read],
                scale=text.scale,
                targets=config.targets,
                attack_embed=attack_embed,
            )
        rows = [{"key": item.key, **row} for item, row in zip(read, result["rows"], strict=True)]
        return {**result, "rows": rows, "unreadable": unreadable}

    settings = {
        **asdict(config),
        "prompts": prompts.name,
        "templates": len(prompts.templates),
        "classes": len(words),
        "text": text.source,
        "logit_scale": round(text.scale, 4),
    }
    depends = {
        "task": "zero-shot",
        "model": metric.describe(),
        **settings,
        "words": _digest([*words, *prompts.templates]),
        "samples": _digest([item.key for item in folders.images]),
    }
    size = config.batch_size
    blocks = [folders.images[first : first + size] for first in range(0, len(folders.images), size)]
    results = run_blocks(
        blocks,
        evaluate,
        settings=depends,
        journal=journal,
        team=team,
        describe=f"zero-shot {metric.name}",
        sizes=[len(block) for block in blocks],
        quiet=quiet,
    )
    rows = [row for result in results for row in result["rows"]]
    unreadable = [problem for result in results for problem in result["unreadable"]]
    if not rows:
        raise ValueError(f"none of the {len(folders.images)} images could be read; the first problem: {unreadable[0]}")
    split = data.get("split") or data["name"]
    fates = [row.pop("fooled_by") for row in rows]
    outcomes = [Outcome(split=split, **row) for row in rows]
    total = {name: sum(result[name] for result in results) for name in _COUNTS}
    built = record(
        outcomes,
        task="zero-shot",
        model=metric.describe(),
        data={**data, "protocol": None, "unreadable": unreadable},
        threat=_threat(config, len(words)),
        seconds=time.perf_counter() - begun,
        largest_violation=None if config.ball is None else max(result["largest_violation"] for result in results),
        zero_gradients=total["zero_gradients"],
        nonfinite_gradients=total["nonfinite_gradients"],
        settings={name: value for name, value in settings.items() if name not in ("ball", "steps", "targets")},
        device=metric.device,
        processes=team.count,
        images=len(rows) + total["evaluations"],
    )
    built["stages"] = {
        "letters": {"w": "wrong on the clean image", "c": "fooled by APGD-CE", "t": "fooled by APGD-T", "r": "right"},
        "samples": "".join(_LETTERS[fate] for fate in fates),
    }
    if config.ball is not None and len(words) < FEWEST_FOR_TARGETS:
        built["warnings"].append(
            f"APGD-T was left out: the targeted DLR loss needs {FEWEST_FOR_TARGETS} classes and there are {len(words)}."
        )
    return built


def _threat(config: ZeroShotConfig, classes: int) -> dict[str, Any]:
    if config.ball is None:
        return {"attack": "none"}
    threat = {"norm": config.ball.norm, "eps": config.ball.eps, "steps": config.steps, "restarts": 1}
    if classes < FEWEST_FOR_TARGETS:
        return {"attack": "apgd-ce", **threat}
    return {"attack": "+".join(STAGES), **threat, "targets": min(config.targets, classes - 1)}


def _digest(texts: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()[:16]
