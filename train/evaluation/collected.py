"""From the blocks of an evaluation to its records: what all tasks that attack per sample have in common."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import asdict
from typing import Any, Protocol, TypedDict

from rclip_metric.train.attacks.threat import LpBall
from rclip_metric.train.evaluation.outcome import Outcome
from rclip_metric.train.evaluation.report import record
from rclip_metric.train.evaluation.robustness import Confirmed, RunSettings
from rclip_metric.train.metrics.base import Metric
from rclip_metric.train.runs.distributed import ALONE, Team
from rclip_metric.train.runs.precision import resolved_precision


class Attack(Protocol):
    """The settings of an attack, as records and file names need them."""

    @property
    def attack(self) -> str:
        """Its name."""

    @property
    def ball(self) -> LpBall:
        """The feasible set."""

    def describe(self) -> dict[str, Any]:
        """For the record: JSON."""


class Row(TypedDict):
    """One sample: as `Outcome`, with (robust score, margin) per attack, or (None, None) where it was not attacked."""

    key: str
    split: str
    clean: float
    tie: bool
    margin: float
    attacks: list[tuple[float | None, float | None]]


class Block(TypedDict):
    """What a block evaluated to; ``costs`` is that of the clean pass, then one per attack."""

    rows: list[Row]
    unreadable: list[str]
    costs: list[dict[str, float]]


def cost(seconds: float, evaluations: int) -> dict[str, float]:
    """What the clean pass cost; an evaluation is an image that goes through the metric."""
    return {"seconds": seconds, "evaluations": evaluations}


def empty_block(unreadable: list[str], attacks: int) -> Block:
    """A block of which nothing could be read."""
    nothing = {"seconds": 0.0, "evaluations": 0, "violation": 0.0, "zero_gradients": 0, "nonfinite_gradients": 0}
    return {"rows": [], "unreadable": unreadable, "costs": [nothing] * (attacks + 1)}


def attack_cost(confirmed: Confirmed, others: int = 0) -> dict[str, float]:
    """What an attack on a block cost, and what it met; ``others`` are evaluations beside those of the attack's loop."""
    attacked = confirmed.attacked
    return {
        "seconds": confirmed.seconds,
        "evaluations": attacked.evaluations + others,
        "violation": confirmed.violation,
        "zero_gradients": attacked.zero_gradients,
        "nonfinite_gradients": attacked.nonfinite_gradients,
    }


def settings_of(
    task: str,
    metric: Metric,
    data: dict[str, Any],
    attacks: Sequence[Attack],
    run: RunSettings,
    source: Metric | None,
) -> dict[str, Any]:
    """Everything that the outcomes depend on: what a journal must agree with to be taken up."""
    settings = {**asdict(run), "precision": resolved_precision(run.precision, metric.device)}
    if run.resample == "samples":
        del settings["resample"]  # results from before there was a choice stay those of the same settings
    return {
        "task": task,
        "model": metric.describe(),
        "data": data,
        "attacks": [attack.describe() for attack in attacks],
        "source": source.describe() if source else None,
        "run": settings,
    }


def records_of(
    blocks: Sequence[Block],
    *,
    task: str,
    metric: Metric,
    data: dict[str, Any],
    attacks: Sequence[Attack],
    run: RunSettings,
    source: Metric | None = None,
    team: Team = ALONE,
    limit: int | None = None,
    macro: bool = False,
    human: dict[str, Any] | None = None,
    images_of: Callable[[str], Sequence[Hashable]] | None = None,
) -> list[dict[str, Any]]:
    """One record per attack, or one of the clean accuracy alone; its seconds are those of all processes together.

    ``images_of`` gives the images of the sample of a key, for a run that asks for intervals over images.

    Raises:
        ValueError: if no sample could be read.
    """
    rows = [row for block in blocks for row in block["rows"]]
    unreadable = [sentence for block in blocks for sentence in block["unreadable"]]
    if not rows:
        raise ValueError(
            f"none of the {len(unreadable)} samples of {data['name']} could be read; the first problem: {unreadable[0]}"
        )
    records = []
    for index, attack in enumerate(attacks or (None,)):
        outcomes = []
        for row in rows:
            robust, margin = row["attacks"][index] if attack else (None, None)
            outcomes.append(Outcome(row["key"], row["split"], row["clean"], row["tie"], row["margin"], robust, margin))
        spent = [block["costs"][0] for block in blocks]
        found = [block["costs"][index + 1] for block in blocks] if attack else []
        threat: dict[str, Any] = attack.describe() if attack else {"attack": "none"}
        if attack and attack.attack == "transfer" and source:
            threat["source"] = source.describe()
        records.append(
            record(
                outcomes,
                task=task,
                model=metric.describe(),
                data={**data, "unreadable": unreadable},
                threat=threat,
                seconds=sum(part["seconds"] for part in (*spent, *found)),
                macro=macro,
                human=human,
                largest_violation=max((part["violation"] for part in found), default=None),
                zero_gradients=int(sum(part["zero_gradients"] for part in found)),
                nonfinite_gradients=int(sum(part["nonfinite_gradients"] for part in found)),
                settings={
                    **asdict(run),
                    "precision": resolved_precision(run.precision, metric.device),
                    "limit": limit,
                },
                device=metric.device,
                processes=team.count,
                passes=int(sum(part["evaluations"] for part in (*spent, *found))),
                images_of=images_of if run.resample == "images" else None,
            )
        )
    return records
