"""What a task says of itself, and the one way to evaluate it: read, share out, attack, journal and record."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from itertools import repeat
from pathlib import Path
from typing import Any, ClassVar, Generic, NamedTuple, TypeVar

import torch
from torch import Tensor

from rclip_metric.train.attacks.base import AttackResult, ConfirmedResult
from rclip_metric.train.attacks.threat import LpBall
from rclip_metric.train.data.contents import contents_digest
from rclip_metric.train.evaluation.attack import (
    DEFAULTS,
    DecisionRule,
    Decisions,
    RunSettings,
    attack_block,
    refuse_nan,
)
from rclip_metric.train.evaluation.certificates.lipschitz import Certificate, certify, radii, with_certificates
from rclip_metric.train.evaluation.image_set import ImageSet
from rclip_metric.train.evaluation.records import (
    Block,
    Evaluation,
    Keyed,
    SampleRow,
    attack_cost,
    cost,
    effort_of,
    empty_block,
    outcomes_of,
)
from rclip_metric.train.evaluation.results.outcome import Outcome
from rclip_metric.train.evaluation.results.record import Averaging, record
from rclip_metric.train.evaluation.smoothing import Smoothed, Smoothing, certify_smoothed, smoothed_radii
from rclip_metric.train.metrics.base import Metric
from rclip_metric.train.runs.distributed import ALONE, Team
from rclip_metric.train.runs.precision import resolved_precision

Sample = TypeVar("Sample", bound=Keyed)
NOTHING = ConfirmedResult(
    torch.zeros(0),
    torch.zeros(0),
    AttackResult(torch.zeros(0), torch.zeros(0), torch.zeros(0)),
    violation=0.0,
    seconds=0.0,
)  # what an attack does where there is nobody to attack


class Aim(NamedTuple):
    """An attack's business with n samples: the images that it moves, what they are compared with, and the decision.

    Example:
        >>> x, left, right = Path("x.png"), Path("left.png"), Path("right.png")
        >>> decide = lambda loss: lambda similarities, indices: Decisions(*3 * [similarities[:, 0]])
        >>> Aim([x], [[left, right]], decide).options[0][1].name
        'right.png'
    """

    moved: list[Path]
    options: Sequence[Sequence[Path]]
    decide: Callable[[str], DecisionRule]  # from the loss that is raised


class Task(ABC, Generic[Sample]):
    """Samples that a metric decides: which images are compared, what is right, and what an attack moves.

    A task of similarities says `samples`, `files`, `part`, `settings`, `describe`, `compare` and `aim` (or, if it is
    not attacked, `decide`), and `score`; the rest has defaults. One that measures something else replaces `judge` and
    `records`.

    Attributes:
        task: its name, in records.
        noun: what a sample is called.
        noisy: what has the noise of a randomised smoothing.
        macro: average over splits rather than over samples.

    Example:
        >>> sorted(Task.__abstractmethods__)  # what any task must say; the rest has defaults
        ['files', 'samples', 'settings']
    """

    task: ClassVar[str]
    noun: ClassVar[str] = "triplet"
    noisy: ClassVar[str] = "the reference"
    macro: bool = False

    @property
    def limit(self) -> int | None:
        """How many samples were asked for, None for all."""
        return None

    @property
    @abstractmethod
    def samples(self) -> Sequence[Sample]:
        """All of them, in a fixed order."""

    @abstractmethod
    def files(self, sample: Sample) -> Sequence[Path]:
        """List the images of a sample."""

    def paths(self) -> list[Path]:
        """List the images of all samples."""
        return [path for sample in self.samples for path in self.files(sample)]

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """Describe the data as far as outcomes depend on them, and what file names say of them: JSON."""

    def describe(self) -> dict[str, Any]:
        """Describe the data in the record: JSON."""
        return self.settings()

    def reader(self, metric: Metric) -> Callable[[Path], Tensor]:
        """Choose what reads an image, (3, S, S)."""
        return metric.preprocess

    def part(self, sample: Sample) -> str:
        """Name the part that a sample belongs to."""
        return "all"

    def is_attacked(self, sample: Sample) -> bool:
        """Say whether attacks are run on a sample, if the metric is right about it."""
        return True

    def compare(self, sample: Sample) -> list[tuple[Path, Sequence[Path]]]:
        """List what the clean decision rests on: images, each with others that it is compared with."""
        raise NotImplementedError

    def aim(self, samples: Sequence[Sample], similarities: Tensor) -> Aim:
        """Aim an attack on n samples; the similarities are those of the clean decision."""
        raise ValueError(f"{self.task} is judged without an attack")

    def decide(self, samples: Sequence[Sample], similarities: Tensor) -> Decisions:
        """Make the clean decisions, from all comparisons (n, K); by default those that an attack wants to change."""
        everyone = torch.arange(len(samples), device=similarities.device)
        return self.aim(samples, similarities).decide("ce")(similarities, everyone)

    def score(self, sample: Sample, wrong: bool, tie: bool) -> float:
        """Score a decision."""
        return float(not wrong)

    def human(self, rows: Sequence[SampleRow]) -> dict[str, Any] | None:
        """Compute what people reach on the samples that could be read."""
        return None

    def content(self) -> str:
        """Digest what the outcomes depend on besides `settings`: what the images hold; it is kept in notes."""
        return contents_digest(dict.fromkeys(self.paths()))

    def identity(self, on: Evaluation) -> dict[str, Any]:
        """Gather what results depend on: those that are there count as the same where it is equal; JSON."""
        return on.settings(self.task, self.settings())

    def depends_on(self, on: Evaluation) -> dict[str, Any]:
        """Gather what a block's part of the journal depends on: JSON."""
        return self.identity(on)

    def label(self, metric: Metric) -> str:
        """Label the progress bar."""
        return f"{self.settings()['name']} {metric.name}"

    def blocks(self, on: Evaluation) -> list[Any]:
        """Evaluate all samples, in blocks."""
        blocks = on.blocks(self.samples)
        shown = ([path for sample in block for path in self.files(sample)] for block in blocks)
        images = ImageSet(shown, self.reader(on.metric), on.metric.device, on.run)
        return on.share(blocks, lambda block: self.judge(block, images, on), self.depends_on(on), self.label(on.metric))

    def readable(
        self, block: Sequence[Sample], images: ImageSet, metric: Metric | None
    ) -> tuple[list[Sample], list[str]]:
        """Find the samples of which every image can be read, and a sentence for each of the others."""
        broken = images.broken(metric, {sample.key: self.files(sample) for sample in block})
        said = [f"{self.noun} {key}: {problem}" if self.noun else problem for key, problem in broken.items()]
        return [sample for sample in block if sample.key not in broken], said

    def judge(self, block: Sequence[Sample], images: ImageSet, on: Evaluation) -> Any:
        """Evaluate one block: clean, then every attack on what is right, and every `Smoothing` on wrong samples too."""
        begun, passes = time.perf_counter(), images.passes
        samples, unreadable = self.readable(block, images, on.metric)
        if not samples:
            return empty_block(unreadable, len(on.attacks))
        similarities = self.similarities(samples, images, on)
        refuse_nan(similarities, [sample.key for sample in samples], f"{on.metric.name}'s similarity")
        rows, wrong = self.rows(samples, similarities)
        costs = [cost(time.perf_counter() - begun, images.passes - passes)]

        chosen = [self.is_attacked(sample) for sample in samples]
        everyone = [i for i in range(len(rows)) if chosen[i]]
        right = [i for i in everyone if not wrong[i]]

        def begin(who: list[int], run: Callable[..., Iterator[ConfirmedResult]], noisy: bool) -> Iterator[Any]:
            attacks = [attack for attack in on.attacks if isinstance(attack, Smoothing) == noisy]
            if not (who and attacks):
                return repeat(NOTHING)
            return run([samples[i] for i in who], similarities[who], images, replace(on, attacks=attacks))

        attacked, smoothed = begin(right, self.under_attack, False), begin(everyone, self.under_noise, True)
        passes = images.passes
        for attack in on.attacks:
            noisy = isinstance(attack, Smoothing)
            who, confirmed = (everyone, next(smoothed)) if noisy else (right, next(attacked))
            pairs = zip(confirmed.fooled.tolist(), confirmed.margin.tolist(), strict=True)
            after = dict(zip(who, pairs, strict=True))
            stages = dict(zip(who, confirmed.stages or (), strict=False))
            for i, row in enumerate(rows):
                fooled, margin = after.get(i, (False, row["margin"]))
                score = self.score(samples[i], fooled, False) if fooled or noisy else row["clean"]
                row["attacks"].append((score, margin) if chosen[i] else (None, None))
                if stages:
                    row.setdefault("fooled_by", []).append(stages.get(i, "wrong"))
            spent = attack_cost(confirmed, images.passes - passes)
            costs.append(spent | {"draws": confirmed.attacked.evaluations} if noisy else spent)
            passes = images.passes
        return Block(rows=rows, unreadable=unreadable, costs=costs)

    def similarities(self, samples: Sequence[Sample], images: ImageSet, on: Evaluation) -> Tensor:
        """Make all comparisons of n samples: (n, K), float32, without a graph."""
        found = []
        for compared in zip(*map(self.compare, samples), strict=True):
            moved, options = zip(*compared, strict=True)
            found.append(images.similarities(on.metric, moved, options))
        return torch.cat(found, 1)

    def rows(self, samples: Sequence[Sample], similarities: Tensor) -> tuple[list[SampleRow], list[bool]]:
        """Decide n samples, and say which decisions are wrong; several highest similarities are a tie."""
        decided = self.decide(samples, similarities)
        ties = (similarities == similarities.amax(1, keepdim=True)).sum(1) > 1
        wrong: list[bool] = decided.wrong.tolist()
        rows = []
        for sample, no, tie, margin in zip(samples, wrong, ties.tolist(), decided.margin.tolist(), strict=True):
            part, score = self.part(sample), self.score(sample, no, tie)
            rows.append(SampleRow(key=sample.key, split=part, clean=score, tie=tie, margin=margin, attacks=[]))
        return rows, wrong

    def under_attack(
        self, samples: Sequence[Sample], similarities: Tensor, images: ImageSet, on: Evaluation
    ) -> Iterator[ConfirmedResult]:
        """Run every attack on n samples that are right; the similarities are those of the clean decision."""
        aim = self.aim(samples, similarities)
        moved = images.pixels(aim.moved)
        radius, spent = torch.zeros(0), 0.0
        if any(isinstance(attack, Certificate) for attack in on.attacks):  # once for all balls
            begun = time.perf_counter()
            radius = radii(on.metric, moved, images.kept(on.metric, aim.options), on.run.chunk_size)
            refuse_nan(radius, [sample.key for sample in samples], f"{on.metric.name}'s certified radius")
            spent = time.perf_counter() - begun
        for attack in on.attacks:
            if isinstance(attack, Certificate):
                yield certify(moved, radius, attack, spent)
            else:
                yield attack_block(
                    on.metric,
                    moved,
                    lambda judging: images.kept(judging, aim.options),
                    aim.decide(attack.loss),
                    attack,
                    on.run,
                    [sample.key for sample in samples],
                    half=on.half,
                    source=on.source,
                )

    def under_noise(
        self, samples: Sequence[Sample], similarities: Tensor, images: ImageSet, on: Evaluation
    ) -> Iterator[ConfirmedResult]:
        """Certify n samples by randomised smoothing, right or not; the similarities are those of the clean decision."""
        known: dict[Smoothing, tuple[Smoothed, float]] = {}  # one set of draws for all balls
        for smoothing in on.attacks:
            drawn = replace(smoothing, ball=LpBall("l2", 0.0))
            if drawn not in known:
                begun = time.perf_counter()
                found = self.smoothed(smoothing, samples, similarities, images, on)
                known[drawn] = found, time.perf_counter() - begun
            yield certify_smoothed(known[drawn][0], smoothing, known[drawn][1])

    def smoothed(
        self, smoothing: Smoothing, samples: Sequence[Sample], similarities: Tensor, images: ImageSet, on: Evaluation
    ) -> Smoothed:
        """Certify n smoothed decisions; the noise is on the image that an attack moves."""
        aim = self.aim(samples, similarities)
        return smoothed_radii(
            on.metric,
            images.pixels(aim.moved),
            lambda judging: images.kept(judging, aim.options),
            aim.decide("ce"),
            smoothing,
            on.run,
            [sample.key for sample in samples],
            half=on.half,
        )

    def _smoothed(
        self, smoothing: Smoothing, index: int, blocks: Sequence[Any], rows: Sequence[Outcome], averaging: Averaging
    ) -> tuple[dict[str, Any], list[str]]:
        """Say what the record of a smoothing has besides, and its warnings."""
        radius = {row.key: row.robust_margin + smoothing.ball.eps for row in rows if row.robust_margin is not None}
        asked = {sample.key: sample for sample in self.samples if sample.key in radius}
        right = [
            replace(row, robust=self.score(asked[row.key], radius[row.key] <= 0, False))
            for row in rows
            if row.key in asked
        ]
        abstained = sum(value == 0 for value in radius.values())
        found = {
            "abstained": abstained,
            "right": averaging.summaries(right)["robust"] if right else None,
            "noise_on": self.noisy,
            "draws": int(sum(block["costs"][index + 1].get("draws", 0) for block in blocks)),
        }
        return found, smoothing.remarks(abstained, len(radius), self.noisy)

    def records(self, blocks: list[Any], on: Evaluation) -> list[dict[str, Any]]:
        """Make a record per attack, or one of the clean accuracy alone (`results.record`).

        Raises:
            ValueError: if no sample could be read.
        """
        data, rows = self.describe(), [row for block in blocks for row in block["rows"]]
        unreadable = [sentence for block in blocks for sentence in block["unreadable"]]
        if not rows:
            raise ValueError(
                f"none of the {len(unreadable)} samples of {data['name']} could be read; the first problem: "
                f"{unreadable[0]}"
            )
        images = {sample.key: self.files(sample) for sample in self.samples}
        averaging = Averaging(self.macro, images.__getitem__ if on.run.resample == "images" else None)
        settings = asdict(on.run) | {"precision": resolved_precision(on.run.precision, on.metric.device)}
        records = []
        for number, attack in enumerate(on.attacks or (None,)):
            index = None if attack is None else number
            outcomes = outcomes_of(rows, index)
            made = record(
                outcomes,
                task=self.task,
                model=on.metric.describe(),
                data={**data, "content": on.content, "unreadable": unreadable},
                threat=on.threat(attack),
                effort=effort_of(blocks, index, on),
                averaging=averaging,
                human=self.human(rows),
                settings={**settings, "limit": self.limit},
            )
            if isinstance(attack, Smoothing):
                made["smoothing"], warnings = self._smoothed(attack, number, blocks, outcomes, averaging)
                made["warnings"] += warnings
            records.append(made)
        return records


def evaluate(
    metric: Metric,
    task: Task[Any],
    attacks: Sequence[Any] = (),
    run: RunSettings = DEFAULTS,
    *,
    source: Metric | None = None,
    journal: Path | None = None,
    team: Team = ALONE,
    quiet: bool = False,
) -> list[dict[str, Any]]:
    """Evaluate a metric clean and under each attack; all of them share the images, the clean pass and what is fixed.

    "Robust" is right on the clean image and at every point that the attack visited.

    Args:
        metric: judged, and attacked.
        task: the samples, and what is asked of them.
        attacks: none for the clean accuracy alone; a `Certificate` or a `Smoothing` among them asks for certified
            accuracy.
        run: seed, sizes and precision.
        source: the metric that transferred attacks are made on.
        journal: folder of the journal, see `run_blocks`.
        team: torchrun's processes.
        quiet: no progress bar.

    Returns:
        One record per attack, or one of the clean accuracy alone (`results.record`), the same in every process.

    Raises:
        ValueError: if no sample can be read, or for a certificate that the metric does not have.

    Example:
        >>> from tempfile import mkdtemp
        >>> from rclip_metric.train.data.scenes.draw import ScenesConfig, write_scenes
        >>> from rclip_metric.train.evaluation.tasks import nights_data
        >>> from rclip_metric.train.metrics import load_metric
        >>> folder = Path(mkdtemp())
        >>> _ = write_scenes(folder, ScenesConfig(images=1, triplets=(0, 0, 4), pool=1, queries=1), quiet=True)
        >>> [record] = evaluate(load_metric("l2", image_size=16), nights_data(folder / "nights"), quiet=True)
        >>> record["clean"]["accuracy"]
        100.0
    """
    if any(isinstance(attack, Certificate) for attack in attacks):
        with_certificates(metric)  # else it is told where a decision is right, which may be nowhere
    in_half = attacks and resolved_precision(run.precision, metric.device) == "bfloat16"
    half = metric.in_bfloat16() if in_half else None
    on = Evaluation(metric, attacks, run, source, half, journal, team, quiet, task.content())
    return task.records(task.blocks(on), on)
