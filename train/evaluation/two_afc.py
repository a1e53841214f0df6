"""2AFC accuracy, clean and under APGD on the reference image (paper, section IV; LipSim's setting)."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from rclip_metric import RobustPerceptualDistance, __version__
from rclip_metric.images import ImageError
from rclip_metric.train.apgd import Attacked, apgd
from rclip_metric.train.checkpoint import write_json
from rclip_metric.train.data.two_afc import TripletFiles
from rclip_metric.train.objectives import two_afc_cross_entropy
from rclip_metric.train.threat import LpBall


@dataclass(frozen=True)
class EvaluationConfig:
    """Settings of an evaluation; the defaults are the paper's (100 APGD iterations, one start, seed 0)."""

    balls: tuple[LpBall, ...] = (LpBall("linf", 4 / 255), LpBall("l2", 3.0))
    steps: int = 100
    seed: int = 0
    batch_size: int = 64


@dataclass(frozen=True)
class TwoAfcBatch:
    """Triplets in memory: images (n, 3, S, S) in [0, 1], labels (n,) in {0, 1}."""

    reference: torch.Tensor
    left: torch.Tensor
    right: torch.Tensor
    label: torch.Tensor


def correct(similarities: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
    """Whether the metric picks what people picked: right only if its similarity (column 1) is strictly greater."""
    return (similarities[:, 1] > similarities[:, 0]).long() == label


def attack_two_afc(
    metric: RobustPerceptualDistance, batch: TwoAfcBatch, ball: LpBall, steps: int, seeds: list[int]
) -> Attacked:
    """APGD on the cross-entropy of the two similarities; left and right are embedded once.

    Args:
        metric: any metric with ``embed``.
        batch: the triplets, all of which the metric decides correctly (others need no attack).
        ball: around the reference.
        steps: gradient steps; "robust" means correct at all ``steps + 1`` points visited, and on the clean image.
        seeds: one per triplet, for the random start.
    """
    with torch.no_grad():
        options = torch.stack([metric.embed(batch.left), metric.embed(batch.right)], 1)  # (n, 2, D)

    def similarities(images: torch.Tensor, alive: torch.Tensor) -> torch.Tensor:
        return (metric.embed(images)[:, None] * options[alive]).sum(2)  # (n, 2)

    outcome: dict[str, torch.Tensor] = {}  # similarities of the last evaluation, judged by `succeeded`

    def loss(images: torch.Tensor, alive: torch.Tensor) -> torch.Tensor:
        logits = similarities(images, alive)
        outcome["last"] = logits.detach()
        return two_afc_cross_entropy(logits, batch.label[alive])

    def succeeded(_: torch.Tensor, alive: torch.Tensor) -> torch.Tensor:
        return ~correct(outcome["last"], batch.label[alive])

    start = ball.start(batch.reference, seeds)
    return apgd(loss, batch.reference, ball, steps, start=start, succeeded=succeeded)


def _load(metric: RobustPerceptualDistance, triplet: TripletFiles) -> list[torch.Tensor]:
    return [metric.preprocess(path) for path in (triplet.reference, triplet.left, triplet.right)]


def interval(successes: int, total: int) -> tuple[float, float]:
    """95 % Wilson interval of a share, in percent."""
    z, share = 1.959964, successes / total
    middle = share + z * z / (2 * total)
    spread = z * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    low, high = (middle - spread) / (1 + z * z / total), (middle + spread) / (1 + z * z / total)
    return round(100 * max(0.0, low), 2), round(100 * min(1.0, high), 2)


def evaluate_two_afc(
    metric: RobustPerceptualDistance,
    triplets: Sequence[TripletFiles],
    config: EvaluationConfig = EvaluationConfig(),
    *,
    quiet: bool = False,
) -> dict[str, Any]:
    """Clean and robust 2AFC accuracy over triplets on disk.

    Returns:
        A record that JSON can hold: model and revision, settings, versions, accuracies in percent with 95 %
        intervals, ties, the largest violation of each ball, stalled samples, seconds, and the outcome per triplet.
    """
    device = metric.encoder.mean.device
    begun = time.perf_counter()
    unreadable: list[str] = []
    outcomes: list[dict[str, Any]] = []
    violations = [0.0] * len(config.balls)
    stalled = [0] * len(config.balls)
    bar = tqdm(total=len(triplets), desc=f"2AFC {metric.encoder.name}", disable=True if quiet else None)
    for first in range(0, len(triplets), config.batch_size):
        rows, images = [], []
        for triplet in triplets[first : first + config.batch_size]:
            try:
                images.append(torch.stack(_load(metric, triplet)))
                rows.append(triplet)
            except ImageError as error:
                unreadable.append(str(error))
        bar.update(len(triplets[first : first + config.batch_size]))
        if not rows:
            continue
        reference, left, right = torch.stack(images, 1).to(device)  # each (n, 3, S, S)
        batch = TwoAfcBatch(reference, left, right, torch.tensor([row.label for row in rows], device=device))
        result = metric.two_afc(reference, left, right)
        clean = correct(torch.stack([result.left_similarity, result.right_similarity], 1), batch.label)
        robust = [clean.clone() for _ in config.balls]
        kept = clean.nonzero()[:, 0]
        if len(kept):
            chosen = TwoAfcBatch(*(tensor[kept] for tensor in (reference, left, right, batch.label)))
            for index, ball in enumerate(config.balls):
                seeds = [config.seed * 1_000_003 + rows[i].id for i in kept.tolist()]
                attacked = attack_two_afc(metric, chosen, ball, config.steps, seeds)
                robust[index][kept] = ~attacked.success
                violations[index] = max(violations[index], ball.violation(attacked.images, chosen.reference))
                stalled[index] += attacked.stalled
        for i, row in enumerate(rows):
            outcomes.append(
                {
                    "id": row.id,
                    "margin": round((result.right_similarity[i] - result.left_similarity[i]).item(), 6),
                    "label": row.label,
                    "tie": bool(result.tie[i]),
                    "clean": bool(clean[i]),
                    "robust": [bool(flags[i]) for flags in robust],
                    "is_imagenet": row.is_imagenet,
                }
            )
    bar.close()
    if not outcomes:
        raise ValueError(f"none of the {len(triplets)} triplets could be read; the first problem: {unreadable[0]}")

    def accuracy(flags: list[bool]) -> dict[str, Any]:
        count = sum(flags)
        return {"accuracy": round(100 * count / len(flags), 2), "interval_95": interval(count, len(flags))}

    return {
        "task": "2afc",
        "model": metric.encoder.name,
        "revision": metric.encoder.revision,
        "resize": metric.encoder.resize,
        "triplets": len(outcomes),
        "unreadable": unreadable,
        "ties": sum(row["tie"] for row in outcomes),
        "clean": accuracy([row["clean"] for row in outcomes]),
        "attacks": [
            {
                "attack": "apgd-ce",
                "norm": ball.norm,
                "eps": ball.eps,
                "name": str(ball),
                **accuracy([row["robust"][index] for row in outcomes]),
                "largest_violation": violations[index],
                "stalled": stalled[index],
            }
            for index, ball in enumerate(config.balls)
        ],
        "settings": {"steps": config.steps, "seed": config.seed, "restarts": 1, "precision": "float32"},
        "versions": {"rclip-metric": __version__, "torch": torch.__version__},
        "device": device.type,
        "seconds": round(time.perf_counter() - begun, 1),
        "outcomes": outcomes,
    }


def save_result(path: Path, record: dict[str, Any]) -> None:
    """Write a record, atomically."""
    write_json(path, json.loads(json.dumps(record)))


def markdown_table(records: Sequence[dict[str, Any]]) -> str:
    """The results as a Markdown table: a row per model, clean and robust accuracy in percent with 95 % intervals."""
    names = [attack["name"] for attack in records[0]["attacks"]]
    lines = ["| model | triplets | clean | " + "".join(f"{name} | " for name in names)]
    lines.append("|---|---|---|" + "---|" * len(names))
    for record in records:
        cells = []
        for part in (record["clean"], *record["attacks"]):
            low, high = part["interval_95"]
            cells.append(f"{part['accuracy']:.1f} ({low:.1f} - {high:.1f})")
        model = record["model"] + (f" @ {record['revision']}" if record["revision"] else "")
        lines.append(f"| {model} | {record['triplets']} | {' | '.join(cells)} |")
    return "\n".join(line.rstrip() for line in lines)
