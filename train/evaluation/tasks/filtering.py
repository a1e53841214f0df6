"""Content filters by examples under attack, with detectors beside them (paper, V-A, B-E and B-G)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from rclip_metric.detectors import Detector
from rclip_metric.train.attacks.threat import LpBall
from rclip_metric.train.evaluation.attack import DEFAULTS, RunSettings
from rclip_metric.train.evaluation.records import Evaluation
from rclip_metric.train.evaluation.screening import PAPER_BALL, PAPER_STEPS, FilterAttack, Kind, Screening
from rclip_metric.train.evaluation.screens import (
    Found,
    PoolFilter,
    Queries,
    Verdicts,
    Worst,
    blind,
    first_fooled,
    visiting,
)
from rclip_metric.train.evaluation.session import Session
from rclip_metric.train.evaluation.tasks.detection import Detection, EitherOr, detector_model, either_model
from rclip_metric.train.metrics.base import Metric

_Kinds = list[tuple[Kind, str]]


@dataclass(frozen=True)
class Filtering(Screening):
    """A filter by examples: the role of the nearest neighbour in the pool, of any metric.

    The adaptive attack comes on top of the grey box of the same strength: a query counts as fooled if the clean image,
    the grey box's point or any point that it visits is.

    Example:
        >>> from pathlib import Path
        >>> from rclip_metric.train.data.filter_pools import FilterImage, FilterPools
        >>> image = FilterImage("gun/1.png", Path("gun/1.png"), "unsafe")
        >>> pools = FilterPools((image,), (), (), (("unsafe", "safe"),), {"unsafe": ("gun",)})
        >>> Filtering(pools, "mine").settings()["protocol"]
        'no buffer'
    """

    def screen(self, on: Evaluation) -> PoolFilter:
        """Make the filter."""
        return self.pool_filter(on.metric, on, on.half)

    def attacked(
        self,
        screen: PoolFilter,
        attack: FilterAttack,
        queries: Queries,
        keys: Sequence[str],
        done: dict[FilterAttack, Found],
    ) -> Found:
        """Attack in the grey box, or adaptively."""
        grey, chunk = replace(attack, attack="grey-box", loss="targets"), screen.attack_chunk

        def loss(points: Tensor, rows: Tensor) -> Tensor:
            return screen.blindly(points, queries.target[rows])

        def step(points: Tensor, rows: Tensor) -> tuple[Tensor, Verdicts]:
            return screen.adaptive(points, queries.own[rows], queries.target[rows])

        found = done.get(grey) or blind(loss, screen, queries, attack.ball, attack.steps, chunk)
        if attack.attack == "grey-box":
            return found
        worst = Worst(queries, queries.clean)
        worst.see(torch.arange(len(keys), device=queries.own.device), found.verdicts)
        more = visiting(step, worst.verdicts, queries, attack.ball, attack.steps, chunk)
        stages = {"clean": queries.clean, "grey-box": found.verdicts, "adaptive": more.verdicts}
        before = [] if grey in done else found.attacks
        violation = max(found.violation, more.violation)
        return Found(more.verdicts, [*before, *more.attacks], violation, first_fooled(queries.own, stages))


def evaluate_filter(
    metric: Metric,
    task: Filtering,
    balls: Sequence[LpBall] = (PAPER_BALL,),
    run: RunSettings = DEFAULTS,
    *,
    steps: int = PAPER_STEPS,
    adaptive: bool = False,
    detectors: Sequence[Detector] = (),
    session: Session | None = None,
) -> list[dict[str, Any]]:
    """Evaluate the filter of a metric, each detector alone, and each together with the filter.

    Args:
        metric: makes the filter, and reads the images for all.
        task: the images.
        balls: none for the clean decisions alone.
        run: seed, sizes and precision; what is judged at every point is attacked in float32.
        steps: of each attack.
        adaptive: attack the filter also as one who knows the pool; a joint attack knows it then, too.
        detectors: of unsafe images.
        session: where records go, and are found (default: nowhere).

    Returns:
        Of the filter, then of each detector, then of each pair, a record per attack.

    Raises:
        ValueError: if an image of the pool or the targets cannot be read, or a role is asked for of which a detector
            knows nothing.

    Example:
        >>> from pathlib import Path
        >>> from tempfile import mkdtemp
        >>> from PIL import Image
        >>> from rclip_metric.train.data.filter_pools import Sizes, read_filter_pools
        >>> from rclip_metric.train.metrics import load_metric
        >>> folder = Path(mkdtemp())
        >>> for name, first in (("safe", 0), ("unsafe", 200)):
        ...     (folder / name).mkdir()
        ...     for level in range(first, first + 3):
        ...         Image.new("L", (8, 8), level).save(folder / name / f"{level}.png")
        >>> task = Filtering(read_filter_pools(folder, sizes=Sizes(1, 1, 1)), "levels")
        >>> [record] = evaluate_filter(load_metric("l2", image_size=8), task, steps=5)
        >>> record["clean"]["accuracy"], record["robust"]["accuracy"]
        (100.0, 100.0)
    """
    session = session or Session(quiet=True)
    asked = {role for direction in task.pools.directions for role in direction}
    if detectors and "buffer" in asked:
        raise ValueError("a detector knows safe and unsafe alone: leave it out, or the buffer as query and target")
    for _, role in task.pools.directions if balls else ():
        if not any(image.role == role for image in task.pools.targets):
            raise ValueError(f"an attack towards {role} needs images of it, in DIR/targets/CLASS, and there are none")
    kinds: _Kinds = [("grey-box", "targets")]
    if adaptive:
        kinds.append(("adaptive", "pool"))
    records = session.records(task, metric, _attacks(kinds, balls, steps), run)
    exact = replace(run, precision="float32")
    whole = list(records)
    for detector in detectors:
        shared: dict[str, Any] = {"detector": detector, "published": task.published}
        encoder: _Kinds = [("grey-box", "targets")] if hasattr(detector, "embed") else []
        alone = session.records(
            Detection(task.pools, task.name, **shared),
            detector_model(detector, metric),
            _attacks([*encoder, ("white-box", "logit")], balls, steps),
            exact,
        )
        together: _Kinds = [("separate", f"targets+{'targets' if encoder else 'logit'}")]
        together.append(("joint", f"{'pool' if adaptive else 'targets'}+logit"))
        both = EitherOr(task.pools, task.name, others=(records, alone), **shared)
        whole += alone
        whole += session.records(both, either_model(detector, metric), _attacks(together, balls, steps), exact)
    return whole


def _attacks(kinds: _Kinds, balls: Sequence[LpBall], steps: int) -> list[FilterAttack]:
    return [FilterAttack(kind, ball, steps, loss) for ball in balls for kind, loss in kinds]
