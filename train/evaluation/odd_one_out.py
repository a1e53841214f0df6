"""Odd-one-out accuracy in the THINGS format (paper, Table XII), clean and under attack on the odd image."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

import torch
from torch import Tensor

from rclip_metric.train.attacks.losses import odd_one_out, odd_one_out_choice
from rclip_metric.train.data.things import Things
from rclip_metric.train.evaluation.blocks import run_blocks
from rclip_metric.train.evaluation.collected import Block, Row, attack_cost, cost, empty_block, records_of, settings_of
from rclip_metric.train.evaluation.image_set import ImageSet, embeds
from rclip_metric.train.evaluation.labels import PEOPLE
from rclip_metric.train.evaluation.robustness import DEFAULTS, AttackSettings, Decided, RunSettings, attack_block
from rclip_metric.train.metrics.base import Metric
from rclip_metric.train.runs.distributed import ALONE, Team
from rclip_metric.train.runs.precision import full_float32, resolved_precision

PAIRS = ((0, 1), (0, 2), (1, 2))


@dataclass(frozen=True)
class OddOneOutData:
    """Triplets of images and the odd one of each.

    Attributes:
        name: its own, e.g. the folder's.
        things: images and triplets.
        limit: how many were asked for, None for all.
        published: the published set that these data are (`published_as`), whose numbers may stand beside the results.
        judges: who said which is the odd one, in words.
    """

    name: str
    things: Things
    limit: int | None = None
    published: str | None = None
    judges: str = PEOPLE

    def settings(self) -> dict[str, Any]:
        """What the outcomes depend on, JSON: the triplets go in as a digest."""
        names = "\n".join(path.name for path in self.things.images).encode()
        found = {"name": self.name, "triplets": hashlib.sha256(_table(self.things) + names).hexdigest()[:16]}
        return found | ({"published": self.published} if self.published else {})

    def describe(self) -> dict[str, Any]:
        """For the record: JSON; the digest is of the table."""
        about = {"name": self.name, "split": None, "protocol": "odd-one-out"}
        images = len(self.things.triplets.unique())
        return {**about, "images": images, "digest": digest_of(self.things), "published": self.published}


def digest_of(things: Things) -> str:
    """A short digest of the table: which triplets these are, and which image is the odd one."""
    return hashlib.sha256(_table(things)).hexdigest()[:16]


def _table(things: Things) -> bytes:
    return torch.cat([things.triplets, things.odd[:, None]], 1).numpy().tobytes()


class _Embedded(TypedDict):
    embeddings: list[list[float]]
    readable: list[bool]
    unreadable: list[str]
    seconds: float


def evaluate_odd_one_out(
    metric: Metric,
    data: OddOneOutData,
    attacks: Sequence[AttackSettings] = (),
    run: RunSettings = DEFAULTS,
    *,
    source: Metric | None = None,
    journal: Path | None = None,
    team: Team = ALONE,
    quiet: bool = False,
) -> list[dict[str, Any]]:
    """Share of triplets in which the image outside the most similar pair is the one that people singled out.

    The clean accuracy of a metric with embeddings embeds every image once. An attack moves the odd image, so that it
    comes nearer to one of the others than these are to each other; the published numbers are clean.

    Args:
        metric: judged.
        data: the triplets.
        attacks: none for the clean accuracy alone.
        run: seed, sizes and precision.
        source: the metric that transferred attacks are made on.
        journal: folder of the journal, see `run_blocks`.
        team: torchrun's processes.
        quiet: no progress bar.

    Returns:
        Records, as `two_afc.evaluate_two_afc` gives them.

    Raises:
        ValueError: if no triplet can be read.
    """
    count = len(data.things.triplets)
    settings = settings_of("odd-one-out", metric, data.settings(), attacks, run, source)
    describe = f"{data.name} {metric.name}"
    blocks: list[Block]
    if not attacks and embeds(metric):
        paths = data.things.images
        parts = [paths[i : i + run.batch_size] for i in range(0, len(paths), run.batch_size)]
        images = ImageSet(parts, metric.preprocess, metric.device, run)
        embedded: list[_Embedded] = run_blocks(
            parts, lambda part: _embed(metric, images, part), settings={**settings, "embeddings": True},
            journal=journal, team=team, describe=describe, sizes=[len(part) for part in parts], quiet=quiet,
        )  # fmt: skip
        blocks = [_from_embeddings(data.things, embedded)]
    else:
        half = metric.in_bfloat16() if resolved_precision(run.precision, metric.device) == "bfloat16" else None
        ranges = [range(i, min(i + run.batch_size, count)) for i in range(0, count, run.batch_size)]
        images = ImageSet((_shown(data.things, block) for block in ranges), metric.preprocess, metric.device, run)

        def evaluate(block: range) -> Block:
            with full_float32():
                return _evaluate_block(metric, block, data.things, images, attacks, run, half, source)

        blocks = run_blocks(
            ranges, evaluate, settings=settings, journal=journal, team=team, describe=describe,
            sizes=[len(block) for block in ranges], quiet=quiet,
        )  # fmt: skip
    return records_of(
        blocks,
        task="odd-one-out",
        metric=metric,
        data=data.describe(),
        attacks=attacks,
        run=run,
        source=source,
        team=team,
        limit=data.limit,
        images_of=lambda key: data.things.triplets[int(key)].tolist(),
    )


def _shown(things: Things, block: range) -> list[Path]:
    """The images of some triplets, in order."""
    return [things.images[i] for i in things.triplets[block.start : block.stop].flatten().tolist()]


def _embed(metric: Metric, images: ImageSet, paths: Sequence[Path]) -> _Embedded:
    begun = time.perf_counter()
    with full_float32():
        problems = images.problems(metric, paths)
        found = images.kept(metric, [[path] for path in paths if path not in problems])
    return {
        "embeddings": found[:, 0].tolist() if len(found) else [],
        "readable": [path not in problems for path in paths],
        "unreadable": [problems.get(path, "") for path in paths],
        "seconds": time.perf_counter() - begun,
    }


def _from_embeddings(things: Things, parts: Sequence[_Embedded]) -> Block:
    """All triplets at once."""
    begun = time.perf_counter()
    problems = [sentence for part in parts for sentence in part["unreadable"]]
    readable = torch.tensor([flag for part in parts for flag in part["readable"]])
    found = torch.tensor([row for part in parts for row in part["embeddings"]])  # (images read, D)
    if not len(found):
        raise ValueError(f"none of the {len(problems)} images could be read; the first problem: {problems[0]}")
    embeddings = torch.zeros(len(readable), found.shape[1])
    embeddings[readable] = found
    kept = readable[things.triplets].all(1)
    unreadable = [
        f"triplet {row}: {next(problems[i] for i in things.triplets[row].tolist() if problems[i])}"
        for row in (~kept).nonzero()[:, 0].tolist()
    ]
    numbers = kept.nonzero()[:, 0]
    columns = [
        (embeddings[things.triplets[numbers, a]] * embeddings[things.triplets[numbers, b]]).sum(1) for a, b in PAIRS
    ]
    rows = _rows(numbers.tolist(), torch.stack(columns, 1), things.odd[numbers])
    seconds = sum(part["seconds"] for part in parts) + time.perf_counter() - begun
    return {"rows": rows, "unreadable": unreadable, "costs": [cost(seconds, len(found))]}


def _rows(numbers: Sequence[int], similarities: Tensor, odd: Tensor) -> list[Row]:
    choice, margin = odd_one_out_choice(similarities), -odd_one_out(similarities, odd)
    top = similarities.topk(2, 1).values
    tied = (top[:, 0] == top[:, 1]).tolist()
    found = zip(numbers, (choice == odd).tolist(), tied, margin.tolist(), strict=True)
    return [Row(key=str(n), split="all", clean=float(r), tie=t, margin=m, attacks=[]) for n, r, t, m in found]


def _evaluate_block(
    metric: Metric,
    block: range,
    things: Things,
    images: ImageSet,
    attacks: Sequence[AttackSettings],
    run: RunSettings,
    half: Metric | None,
    source: Metric | None,
) -> Block:
    """The rows of one block of triplets, from the images."""
    begun, passes = time.perf_counter(), images.passes
    broken = images.broken(metric, {number: _shown(things, range(number, number + 1)) for number in block})
    unreadable, numbers = list(broken.values()), [number for number in block if number not in broken]
    if not numbers:
        return empty_block(unreadable, len(attacks))
    odd = things.odd[numbers]
    files = [[things.images[i] for i in triplet] for triplet in things.triplets[numbers].tolist()]
    columns = [images.similarities(metric, [three[a] for three in files], [[three[b]] for three in files])
               for a, b in PAIRS]  # fmt: skip
    similarities = torch.cat(columns, 1)  # (n, 3)
    rows = _rows(numbers, similarities.cpu(), odd)
    costs = [cost(time.perf_counter() - begun, images.passes - passes)]

    right = [i for i, row in enumerate(rows) if attacks and row["clean"] == 1.0]
    chosen = odd[right].tolist()
    moved = images.pixels([files[i][j] for i, j in zip(right, chosen, strict=True)])
    others = [[path for k, path in enumerate(files[i]) if k != j] for i, j in zip(right, chosen, strict=True)]
    apart = similarities[right].gather(1, 2 - odd[right].to(similarities.device)[:, None])  # of the other two

    for attack in attacks:

        def decide(found: Tensor, indices: Tensor, apart: Tensor = apart) -> Decided:
            three = torch.cat([found, apart[indices]], 1)  # (odd, a), (odd, b), (a, b)
            value = odd_one_out(three, torch.zeros_like(indices))
            return Decided(value, -value, odd_one_out_choice(three) != 0)

        passes = images.passes
        confirmed = attack_block(
            metric, moved, lambda judging: images.kept(judging, others), decide, attack, run,
            [rows[i]["key"] for i in right], half=half, source=source,
        )  # fmt: skip
        after = dict(zip(right, zip(confirmed.fooled.tolist(), confirmed.margin.tolist(), strict=True), strict=True))
        for i, row in enumerate(rows):
            fooled, margin = after.get(i, (True, row["margin"]))
            row["attacks"].append((float(not fooled), margin))
        costs.append(attack_cost(confirmed, images.passes - passes))
    return {"rows": rows, "unreadable": unreadable, "costs": costs}
