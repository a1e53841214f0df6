"""What a filter, a detector or both say of queries that shall pass for another role: one block, rows and records.

Every query is attacked, also those that are wrong on the clean image: the paper's fractions are of all queries, and
`landed` of a record has them. "Robust" is right, which is landing in the own role, on the clean image and under attack.
"""

from __future__ import annotations

import hashlib
import time
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, partial
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from rclip_metric.detectors import Detector
from rclip_metric.train.attacks.base import AttackResult, ConfirmedResult
from rclip_metric.train.attacks.threat import LpBall
from rclip_metric.train.data.filter_pools import ROLES, FilterImage, FilterPools
from rclip_metric.train.evaluation.attack import RunSettings, chunk_size_of, refuse_nan
from rclip_metric.train.evaluation.image_set import ImageSet
from rclip_metric.train.evaluation.records import Block, Evaluation, SampleRow, attack_cost, cost, empty_block
from rclip_metric.train.evaluation.results.bootstrap import summary
from rclip_metric.train.evaluation.run import Task
from rclip_metric.train.evaluation.screens import DetectorScreen, Found, PoolFilter, Queries, Screen, Verdicts, embedded
from rclip_metric.train.evaluation.smoothing import Smoothed, Smoothing, smooth
from rclip_metric.train.metrics.base import Metric

PAPER_BALL = LpBall("linf", 8 / 255)
PAPER_STEPS = 200
_LETTERS = {role: role[0] for role in ROLES}
STAGED = ("adaptive", "joint")
"""Attacks that come on top of others; records say which of them fooled each query first."""
_STAGES = {
    "c": "wrong on the clean image",
    "g": "fooled by the grey box",
    "a": "fooled by the attack of one who knows the pool",
    "s": "fooled by an attack on filter or detector alone",
    "j": "fooled by the attack on both",
    "r": "right",
}
_STAGE_OF = {"clean": "c", "grey-box": "g", "adaptive": "a", "single": "s", "joint": "j", None: "r"}
_COUNTS = ("evaluations", "gradients", "zero_gradients", "nonfinite_gradients")

Kind = Literal["grey-box", "adaptive", "white-box", "separate", "joint"]


@dataclass(frozen=True)
class FilterAttack:
    """One threat model; the defaults are the paper's.

    Attributes:
        attack: "grey-box": towards images of the role aimed at, blind (eq. 5), on a filter or on a detector's encoder.
            "adaptive": by an attacker who knows the pool, on top of that. "white-box": on a detector's own score.
            "separate": filter and detector are attacked each by itself, on two images. "joint": one perturbation
            against both.
        ball: the feasible set.
        steps: of APGD.
        loss: what is raised: "targets", "pool", "logit", or two of them joined by a plus.

    Example:
        >>> FilterAttack("grey-box").describe()["steps"]
        200
    """

    attack: Kind
    ball: LpBall = PAPER_BALL
    steps: int = PAPER_STEPS
    loss: str = "targets"

    def __post_init__(self) -> None:
        """Check the fields."""
        if self.steps < 0:
            raise ValueError(f"an attack has at least 0 steps, and {self.steps} were asked for")

    def describe(self) -> dict[str, Any]:
        """Describe the attack in the record: JSON."""
        threat = {"attack": self.attack, "norm": self.ball.norm, "eps": self.ball.eps, "steps": self.steps}
        return {**threat, "restarts": 1, "loss": self.loss}


class ScreenRow(SampleRow, total=False):
    """A row of a block with the roles that the query landed in, on the clean image and under each attack."""

    landed: list[str]


@dataclass(frozen=True)
class Screening(Task[FilterImage]):
    """Queries that a filter, a detector, or both put into roles.

    Attributes:
        pools: the images.
        name: of the set.
        published: the published set that they are, whose numbers may stand beside the results.
    """

    task: ClassVar[str] = "filter"
    noun: ClassVar[str] = "query"
    noisy: ClassVar[str] = "the query"
    macro: bool = field(default=True, init=False)
    pools: FilterPools
    name: str
    published: str | None = None
    made: Callable[[], Screen] | None = field(default=None, compare=False, repr=False)

    @property
    def samples(self) -> Sequence[FilterImage]:
        """The queries."""
        return self.pools.queries

    def files(self, sample: FilterImage) -> list[Path]:
        """List the query."""
        return [sample.path]

    def paths(self) -> list[Path]:
        """List pool, targets and queries."""
        return [image.path for image in (*self.pools.pool, *self.pools.targets, *self.pools.queries)]

    def part(self, sample: FilterImage) -> str:
        """Name the direction."""
        return f"{sample.role} to {self.pools.target(sample)}"

    def settings(self) -> dict[str, Any]:
        """Describe the data: names and roles go in as a digest."""
        pools = self.pools
        directions = [" to ".join(direction) for direction in pools.directions]
        each = (pools.pool, pools.targets, pools.queries)
        names = "\n\n".join("\n".join(f"{image.role} {image.key}" for image in images) for images in each)
        return {
            "name": self.name,
            "split": directions[0] if len(directions) == 1 else None,
            "protocol": None if "buffer" in pools.roles else "no buffer",
            **({"published": self.published} if self.published else {}),
            "roles": {role: list(names) for role, names in pools.classes.items()},
            "pool": {role: sum(image.role == role for image in pools.pool) for role in pools.roles},
            "targets": {target: sum(i.role == target for i in pools.targets) for _, target in pools.directions},
            "digest": hashlib.sha256(names.encode()).hexdigest()[:16],
        }

    @abstractmethod
    def screen(self, on: Evaluation) -> Screen:
        """Make what decides."""

    def smoothed(
        self, smoothing: Smoothing, samples: Sequence[FilterImage], similarities: Tensor, images: ImageSet, on: Any
    ) -> Smoothed:
        """Certify the smoothed verdicts on n queries, in float32; the similarities are not asked for."""
        assert self.made is not None
        screen, pixels = self.made(), images.pixels([sample.path for sample in samples])
        own = torch.tensor([ROLES.index(sample.role) for sample in samples], device=pixels.device)
        chunk = on.run.chunk_size or chunk_size_of(on.metric)

        def judge(points: Tensor, numbers: Tensor) -> Tensor:
            return screen.decide(points, own[numbers]).margin

        keys = [sample.key for sample in samples]
        return smooth(judge, pixels, smoothing, on.run.seed, keys, chunk, name=on.metric.name)

    @abstractmethod
    def attacked(
        self, screen: Any, attack: FilterAttack, queries: Queries, keys: Sequence[str], done: dict[FilterAttack, Found]
    ) -> Found:
        """Attack queries; `done` holds what attacks before found of the same queries."""

    def blocks(self, on: Evaluation) -> list[Any]:
        """Evaluate all queries; what is kept of the pool is made once, before the first block that is not there."""
        return Task.blocks(replace(self, made=cache(lambda: self.screen(on))), on)

    def judge(self, block: Sequence[FilterImage], images: ImageSet, on: Evaluation) -> Block:
        """Evaluate one block: clean, then every attack, on all queries."""
        begun = time.perf_counter()
        samples, unreadable = self.readable(block, images, None)
        if not samples:
            return empty_block(unreadable, len(on.attacks))
        assert self.made is not None
        screen, keys = self.made(), [sample.key for sample in samples]
        pixels = images.pixels([sample.path for sample in samples])
        own, target = (
            torch.tensor([ROLES.index(role) for role in roles], device=pixels.device)
            for roles in ([sample.role for sample in samples], map(self.pools.target, samples))
        )
        clean = screen.decide(pixels, own)
        refuse_nan(clean.margin, keys, f"{on.metric.name}'s margin")
        queries = Queries(pixels, own, target, on.seeds(samples), clean)
        right = (clean.landed == own).tolist()
        landed, margins = _named(clean), clean.margin.tolist()
        rows = [
            ScreenRow(
                key=sample.key, split=self.part(sample), clean=float(right[i]), tie=margins[i] == 0, margin=margins[i],
                attacks=[], landed=[landed[i]],
            )
            for i, sample in enumerate(samples)
        ]  # fmt: skip
        costs, done = [cost(time.perf_counter() - begun, len(samples))], dict[FilterAttack, Found]()
        noise = [attack for attack in on.attacks if isinstance(attack, Smoothing)]
        smoothed = self.under_noise(samples, clean.margin, images, replace(on, attacks=noise))
        for attack in on.attacks:
            begun = time.perf_counter()
            if isinstance(attack, Smoothing):
                proven = next(smoothed)
                self._proven(rows, samples, proven)
                costs.append(attack_cost(proven, 0) | {"draws": proven.attacked.evaluations})
                continue
            found = done[attack] = self.attacked(screen, attack, queries, keys, done)
            refuse_nan(found.verdicts.margin, keys, f"{on.metric.name}'s margin under {attack.attack}")
            held = (found.verdicts.landed == own).tolist()
            each = zip(rows, right, held, found.verdicts.margin.tolist(), _named(found.verdicts), strict=True)
            for row, before, after, margin, role in each:
                row["attacks"].append((float(before and after), margin))
                row["landed"].append(role)
            for row, stage in zip(rows, found.stages or [None] * len(rows), strict=True):
                row.setdefault("fooled_by", []).append(stage)
            costs.append(_cost(found, time.perf_counter() - begun))
        return Block(rows=list(rows), unreadable=unreadable, costs=costs)

    def _proven(self, rows: Sequence[ScreenRow], samples: Sequence[FilterImage], proven: ConfirmedResult) -> None:
        """Add to rows what a smoothing proves; a query of which it proves nothing may land where it is aimed at."""
        each = zip(rows, samples, proven.fooled.tolist(), proven.margin.tolist(), strict=True)
        for row, sample, unproven, margin in each:
            row["attacks"].append((float(not unproven), margin))
            row["landed"].append(self.pools.target(sample) if unproven else sample.role)
            row.setdefault("fooled_by", []).append(None)

    def records(self, blocks: list[Any], on: Evaluation) -> list[dict[str, Any]]:
        """Add `landed`, the share of the queries of each direction in each role, and `landings`, a letter for each."""
        records = super().records(blocks, on)
        rows = [row for block in blocks for row in block["rows"]]
        for index, record in enumerate(records):
            phases: dict[str, int | None] = {"clean": 0, "attacked": index + 1 if on.attacks else None}
            record["landed"] = {
                phase: None if place is None else _shares(rows, place, self.pools.roles)
                for phase, place in phases.items()
            }
            record["landings"] = {"letters": {letter: role for role, letter in _LETTERS.items()}} | {
                phase: None if place is None else "".join(_LETTERS[row["landed"][place]] for row in rows)
                for phase, place in phases.items()
            }
            record["warnings"] += self.pools.repeated()
            if on.attacks and on.attacks[index].attack in STAGED:
                stages = "".join(_STAGE_OF[row["fooled_by"][index]] for row in rows)
                record["stages"] = {"letters": _STAGES, "samples": stages}
        return records

    def kept(self, metric: Metric, images: Sequence[FilterImage], run: RunSettings, keep: Any = None) -> Tensor:
        """Give what a metric, or `keep` of pixels (n, 3, S, S), keeps of images that all have to be readable."""
        paths = [image.path for image in images]
        held = ImageSet([paths], self.reader(metric), metric.device, run)
        if problems := held.problems(None, paths):
            raise ValueError(f"{next(iter(problems.values()))}: the pool and the targets have to be whole, see --check")
        if keep is None:
            kept = held.kept(metric, [paths])[0]
        else:
            with torch.no_grad():
                pixels = held.pixels(paths)
                kept = torch.cat([keep(part) for part in pixels.split(run.chunk_size or len(pixels))])
        refuse_nan(kept.flatten(1), [image.key for image in images], f"what {metric.name} keeps")
        return kept

    def by_role(self, images: Sequence[FilterImage], metric: Metric, run: RunSettings, keep: Any = None) -> Any:
        """Give what is kept of the images of each role, by its place in `ROLES`."""
        parts = {role: [image for image in images if image.role == role] for role in ROLES}
        return {ROLES.index(role): self.kept(metric, part, run, keep) for role, part in parts.items() if part}

    def pool_filter(self, metric: Metric, on: Evaluation, half: Metric | None = None) -> PoolFilter:
        """Make the filter of a metric."""
        pool, targets = (self.by_role(images, metric, on.run) for images in (self.pools.pool, self.pools.targets))
        return PoolFilter(metric, pool, targets, on.run.chunk_size, half)

    def detector_screen(self, detector: Detector, metric: Metric, run: RunSettings) -> DetectorScreen:
        """Make the screen of a detector alone, with what it needs for the attack on its encoder."""
        wanted = hasattr(detector, "embed") and bool(self.pools.targets)
        keep = partial(embedded, detector)
        targets = self.by_role(self.pools.targets, metric, run, keep) if wanted else {}
        return DetectorScreen(detector, targets, run.chunk_size)


def _named(found: Verdicts) -> list[str]:
    return [ROLES[place] for place in found.landed.tolist()]


def _cost(found: Found, seconds: float) -> dict[str, float]:
    counts = {name: sum(getattr(attack, name) for attack in found.attacks) for name in _COUNTS}
    nothing = torch.zeros(0)
    spent = AttackResult(nothing, nothing, nothing, **counts)
    return attack_cost(ConfirmedResult(nothing, nothing, spent, found.violation, seconds), 0)


def _shares(rows: Sequence[ScreenRow], place: int, roles: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Find the share of each direction's queries in each role, with its interval."""
    found: dict[str, dict[str, Any]] = {}
    for part in dict.fromkeys(row["split"] for row in rows):
        landed = [row["landed"][place] for row in rows if row["split"] == part]
        parts = [part] * len(landed)
        found[part] = {role: summary([float(one == role) for one in landed], parts, macro=False) for role in roles}
    return found
