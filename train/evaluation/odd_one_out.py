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

from rclip_metric.images import ImageError
from rclip_metric.train.data.things import Things
from rclip_metric.train.evaluation.blocks import ALONE, Processes, run_blocks
from rclip_metric.train.evaluation.collected import Block, Row, attack_cost, cost, empty_block, records_of, settings_of
from rclip_metric.train.evaluation.metric import Metric
from rclip_metric.train.evaluation.robustness import (
    DEFAULTS,
    AttackSettings,
    Decided,
    RunSettings,
    attack_block,
    fixed_options,
    full_float32,
    resolved_precision,
)
from rclip_metric.train.objectives import odd_one_out, odd_one_out_choice

PAIRS = ((0, 1), (0, 2), (1, 2))


@dataclass(frozen=True)
class OddOneOutData:
    """Triplets of images and the odd one of each; ``name`` is "things" for the published set."""

    name: str
    things: Things
    limit: int | None = None

    def settings(self) -> dict[str, Any]:
        """What the outcomes depend on, JSON: the triplets go in as a digest."""
        table = torch.cat([self.things.triplets, self.things.odd[:, None]], 1).numpy().tobytes()
        names = "\n".join(path.name for path in self.things.images).encode()
        return {"name": self.name, "triplets": hashlib.sha256(table + names).hexdigest()[:16]}


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
    team: Processes = ALONE,
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
    if not attacks and hasattr(metric, "embed"):
        images = data.things.images
        parts = [images[i : i + run.batch_size] for i in range(0, len(images), run.batch_size)]
        embedded: list[_Embedded] = run_blocks(
            parts, lambda part: _embed(metric, part, run), settings={**settings, "embeddings": True},
            journal=journal, team=team, describe=describe, sizes=[len(part) for part in parts], quiet=quiet,
        )  # fmt: skip
        blocks = [_from_embeddings(data.things, embedded)]
    else:
        half = metric.in_bfloat16() if resolved_precision(run.precision, metric.device) == "bfloat16" else None
        ranges = [range(i, min(i + run.batch_size, count)) for i in range(0, count, run.batch_size)]

        def evaluate(block: range) -> Block:
            with full_float32():
                return _evaluate_block(metric, block, data.things, attacks, run, half, source)

        blocks = run_blocks(
            ranges, evaluate, settings=settings, journal=journal, team=team, describe=describe,
            sizes=[len(block) for block in ranges], quiet=quiet,
        )  # fmt: skip
    return records_of(
        blocks,
        task="odd-one-out",
        metric=metric,
        data={"name": data.name, "split": None, "protocol": "odd-one-out"},
        attacks=attacks,
        run=run,
        source=source,
        team=team,
        limit=data.limit,
    )


def _read(metric: Metric, paths: Sequence[Path]) -> tuple[Tensor, dict[int, str]]:
    """Images (n, 3, S, S) of those that can be read, and what is wrong with the others, by position."""
    images, wrong = [], {}
    for position, path in enumerate(paths):
        try:
            images.append(metric.preprocess(path))
        except ImageError as error:
            wrong[position] = str(error)
    return torch.stack(images).to(metric.device) if images else torch.empty(0), wrong


def _embed(metric: Metric, paths: Sequence[Path], run: RunSettings) -> _Embedded:
    begun = time.perf_counter()
    images, wrong = _read(metric, paths)
    with full_float32():
        found = fixed_options(metric, images[:, None], run.chunk_size)[:, 0].tolist() if len(images) else []
    return {
        "embeddings": found,
        "readable": [position not in wrong for position in range(len(paths))],
        "unreadable": [wrong.get(position, "") for position in range(len(paths))],
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
    attacks: Sequence[AttackSettings],
    run: RunSettings,
    half: Metric | None,
    source: Metric | None,
) -> Block:
    """The rows of one block of triplets, from the images."""
    begun = time.perf_counter()
    triplets, odd = things.triplets[block.start : block.stop], things.odd[block.start : block.stop]
    which = triplets.unique()
    images, wrong = _read(metric, [things.images[i] for i in which.tolist()])
    place = torch.full((int(triplets.max()) + 1,), -1)
    readable = torch.tensor([position not in wrong for position in range(len(which))])
    place[which[readable]] = torch.arange(int(readable.sum()))
    position = place[triplets]  # (n, 3), into images; -1 where unreadable
    problems = {int(which[p]): sentence for p, sentence in wrong.items()}
    kept = (position >= 0).all(1)
    unreadable = [
        f"triplet {block.start + row}: {next(problems[i] for i in triplets[row].tolist() if i in problems)}"
        for row in (~kept).nonzero()[:, 0].tolist()
    ]
    position, odd = position[kept], odd[kept]
    numbers = (torch.arange(len(kept))[kept] + block.start).tolist()
    if not numbers:
        return empty_block(unreadable, len(attacks))
    with torch.no_grad():
        columns = []
        for a, b in PAIRS:
            held = fixed_options(metric, images[position[:, b]][:, None], run.chunk_size)
            points = images[position[:, a]]
            size = run.chunk_size or len(points)
            parts = zip(points.split(size), held.split(size), strict=True)
            columns.append(torch.cat([metric.similarities(part, kept_part)[:, 0] for part, kept_part in parts]))
    similarities = torch.stack(columns, 1)  # (n, 3)
    rows = _rows(numbers, similarities.cpu(), odd)
    costs = [cost(time.perf_counter() - begun, len(images))]

    right = [i for i, row in enumerate(rows) if row["clean"] == 1.0]
    others = torch.tensor([[j for j in range(3) if j != chosen] for chosen in odd[right].tolist()]).view(-1, 2)
    chosen = position[right]
    moved = images[chosen.gather(1, odd[right][:, None])[:, 0]]
    options = images[chosen.gather(1, others)]  # (n, 2, 3, S, S)
    apart = similarities[right].gather(1, 2 - odd[right].to(similarities.device)[:, None])  # of the other two

    for attack in attacks:

        def decide(found: Tensor, indices: Tensor, apart: Tensor = apart) -> Decided:
            three = torch.cat([found, apart[indices]], 1)  # (odd, a), (odd, b), (a, b)
            value = odd_one_out(three, torch.zeros_like(indices))
            return Decided(value, -value, odd_one_out_choice(three) != 0)

        confirmed = attack_block(
            metric, moved, options, decide, attack, run, [rows[i]["key"] for i in right], half=half, source=source
        )
        after = dict(zip(right, zip(confirmed.fooled.tolist(), confirmed.margin.tolist(), strict=True), strict=True))
        for i, row in enumerate(rows):
            fooled, margin = after.get(i, (True, row["margin"]))
            row["attacks"].append((float(not fooled), margin))
        costs.append(attack_cost(confirmed))
    return {"rows": rows, "unreadable": unreadable, "costs": costs}
