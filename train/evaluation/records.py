"""Who is judged under what, what a block of samples evaluated to, and what that says of outcomes and effort."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol, TypedDict, TypeVar

from rclip_metric.train.attacks.base import ConfirmedResult
from rclip_metric.train.attacks.threat import LpBall
from rclip_metric.train.evaluation.attack import DEFAULTS, RunSettings
from rclip_metric.train.evaluation.blocks import run_blocks
from rclip_metric.train.evaluation.results.outcome import Outcome
from rclip_metric.train.evaluation.results.record import Effort, library_versions
from rclip_metric.train.metrics.base import Metric
from rclip_metric.train.runs.distributed import ALONE, Team
from rclip_metric.train.runs.precision import full_float32, resolved_precision
from rclip_metric.train.runs.seeds import sample_seed

Part = TypeVar("Part")


class Keyed(Protocol):
    """A sample: its key is its own within the set, and makes its random start."""

    @property
    def key(self) -> str:
        """Its name."""


class Attack(Protocol):
    """The settings of an attack, as records and file names need them."""

    @property
    def attack(self) -> str:
        """Its name."""

    @property
    def ball(self) -> LpBall:
        """The feasible set."""

    def describe(self) -> dict[str, Any]:
        """Describe the attack in the record: JSON."""


@dataclass(frozen=True)
class Evaluation:
    """Who is judged under what, and where the work is done.

    Attributes:
        metric: judged, and attacked.
        attacks: none for the clean accuracy alone.
        run: seed, sizes and precision.
        source: the metric that transferred attacks are made on.
        half: the metric in bfloat16, if the attacks' own passes shall run there.
        journal: folder of the journal, see `run_blocks`.
        team: torchrun's processes.
        quiet: no progress bar.
        content: digest of what the images hold, for the record and the journal (`Task.content`).

    Example:
        >>> from rclip_metric.train.metrics import load_metric
        >>> on = Evaluation(load_metric("l2", image_size=16), run=RunSettings(batch_size=2))
        >>> on.blocks(["a", "b", "c"])
        [['a', 'b'], ['c']]
    """

    metric: Metric
    attacks: Sequence[Any] = ()
    run: RunSettings = DEFAULTS
    source: Metric | None = None
    half: Metric | None = None
    journal: Path | None = None
    team: Team = ALONE
    quiet: bool = False
    content: str | None = None

    def settings(self, task: str, data: dict[str, Any]) -> dict[str, Any]:
        """Gather everything that the outcomes depend on: what a journal must agree with to be taken up."""
        settings = {**asdict(self.run), "precision": resolved_precision(self.run.precision, self.metric.device)}
        if self.run.resample == "samples":
            del settings["resample"]  # results from before there was a choice stay those of the same settings
        return {
            "task": task,
            "model": self.metric.describe(),
            "data": data,
            "attacks": [attack.describe() for attack in self.attacks],
            "source": self.source.describe() if self.source else None,
            "run": settings,
        }

    def threat(self, attack: Attack | None) -> dict[str, Any]:
        """Describe an attack as a record has it; None stands for the clean accuracy."""
        threat: dict[str, Any] = attack.describe() if attack else {"attack": "none"}
        if attack and attack.attack == "transfer" and self.source:
            threat["source"] = self.source.describe()
        return threat

    def seeds(self, samples: Sequence[Keyed]) -> list[int]:
        """Derive the seeds of the samples' random starts."""
        return [sample_seed(self.run.seed, sample.key) for sample in samples]

    def blocks(self, parts: Sequence[Part]) -> list[Sequence[Part]]:
        """Divide into units of work, of as many parts as the run says."""
        size = self.run.batch_size
        return [parts[first : first + size] for first in range(0, len(parts), size)]

    def share(
        self, blocks: Sequence[Sequence[Part]], work: Callable[[Sequence[Part]], Any], settings: Any, label: str
    ) -> list[Any]:
        """Share out the blocks, in full float32, with this journal and these processes (`run_blocks`).

        A journal is taken up on the same contents and by the same libraries alone: a result is never made of two.
        """
        settings = {**settings, "content": self.content, "versions": library_versions()}

        def exactly(block: Sequence[Part]) -> Any:
            with full_float32():
                return work(block)

        return run_blocks(
            blocks,
            exactly,
            settings=settings,
            journal=self.journal,
            team=self.team,
            describe=label,
            sizes=[len(block) for block in blocks],
            quiet=self.quiet,
        )


class SampleRow(TypedDict, total=False):
    """One sample: as `Outcome`, with (robust score, margin) per attack, or (None, None) where it was not attacked.

    `fooled_by` is there for attacks of several stages, where any sample of the block was attacked: per attack the
    stage that fooled it, None, or "wrong" (on the clean image).
    """

    key: str
    split: str
    clean: float
    tie: bool
    margin: float
    attacks: list[tuple[float | None, float | None]]
    fooled_by: list[str | None]


class Block(TypedDict):
    """What a block evaluated to; `costs` is that of the clean pass, then one per attack."""

    rows: list[SampleRow]
    unreadable: list[str]
    costs: list[dict[str, float]]


def cost(seconds: float, evaluations: int) -> dict[str, float]:
    """State what the clean pass cost; an evaluation is an image that goes through the metric."""
    return {"seconds": seconds, "evaluations": evaluations}


def empty_block(unreadable: list[str], attacks: int) -> Block:
    """Make the block of which nothing could be read."""
    nothing = {"seconds": 0.0, "evaluations": 0, "violation": 0.0, "zero_gradients": 0, "nonfinite_gradients": 0}
    return {"rows": [], "unreadable": unreadable, "costs": [nothing] * (attacks + 1)}


def attack_cost(confirmed: ConfirmedResult, others: int) -> dict[str, float]:
    """State what an attack on a block cost, and what it met; `others` are evaluations beside those of its loop."""
    attacked = confirmed.attacked
    return {
        "seconds": confirmed.seconds,
        "evaluations": attacked.evaluations + others,
        "violation": confirmed.violation,
        "zero_gradients": attacked.zero_gradients,
        "nonfinite_gradients": attacked.nonfinite_gradients,
    }


def outcomes_of(rows: Sequence[SampleRow], attack: int | None) -> list[Outcome]:
    """Read the outcomes of all samples under one of the attacks, by its number; None for the clean accuracy alone."""
    outcomes = []
    for row in rows:
        robust, margin = (None, None) if attack is None else row["attacks"][attack]
        outcomes.append(Outcome(row["key"], row["split"], row["clean"], row["tie"], row["margin"], robust, margin))
    return outcomes


def effort_of(blocks: Sequence[Block], attack: int | None, on: Evaluation) -> Effort:
    """Add up what the clean pass and one of the attacks took; seconds are those of all processes together."""
    found = [] if attack is None else [block["costs"][attack + 1] for block in blocks]
    spent = [*(block["costs"][0] for block in blocks), *found]
    return Effort(
        seconds=sum(part["seconds"] for part in spent),
        passes=int(sum(part["evaluations"] for part in spent)),
        processes=on.team.count,
        device=on.metric.device,
        largest_violation=max((part["violation"] for part in found), default=None),
        zero_gradients=int(sum(part["zero_gradients"] for part in found)),
        nonfinite_gradients=int(sum(part["nonfinite_gradients"] for part in found)),
    )
