"""What a task needs to say: one in a few lines, read, shared out, attacked and recorded like all others."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, NamedTuple

import numpy as np
import pytest
from PIL import Image

from rclip_metric.train.attacks.threat import LpBall
from rclip_metric.train.evaluation.attack import AttackSettings, Decisions, RunSettings
from rclip_metric.train.evaluation.results.outcome import unpack
from rclip_metric.train.evaluation.run import Aim, Task, evaluate
from rclip_metric.train.evaluation.session import Session
from rclip_metric.train.metrics.base import DistanceMetric

SIDE = 4


class Pair(NamedTuple):
    key: str
    image: str
    other: str


@dataclass(frozen=True)
class Alike(Task[Pair]):
    """Whether two images are nearer to each other than 0.1 in every pixel; an attack moves the first."""

    task: ClassVar[str] = "alike"
    folder: Path
    pairs: tuple[Pair, ...]

    @property
    def samples(self):
        return self.pairs

    def files(self, sample):
        return [self.folder / sample.image, self.folder / sample.other]

    def settings(self):
        return {"name": "pairs", "samples": [pair.key for pair in self.samples]}

    def compare(self, sample):
        image, other = self.files(sample)
        return [(image, [other])]

    def aim(self, samples, similarities):
        def decide(found, indices):
            margin = 0.1 + found[:, 0]
            return Decisions(-margin, margin, margin <= 0)

        files = [self.files(sample) for sample in samples]
        return Aim([image for image, _ in files], [[other] for _, other in files], lambda loss: decide)


@pytest.fixture
def task(tmp_path):
    for level in (100, 110, 120, 150):
        Image.fromarray(np.full((SIDE, SIDE, 3), level, np.uint8)).save(tmp_path / f"{level}.png")
    (tmp_path / "broken.png").write_bytes(b"none")
    pairs = [("100.png", "110.png"), ("100.png", "120.png"), ("broken.png", "110.png"), ("110.png", "150.png")]
    return Alike(tmp_path, tuple(Pair(str(n), *pair) for n, pair in enumerate(pairs)))


METRIC = DistanceMetric(lambda x, y: (x - y).flatten(1).abs().amax(1), SIDE, name="linf")


@pytest.mark.parametrize("batch_size", [1, 2, 10])
def test_a_task_of_a_few_lines_is_evaluated_as_any_other(task, batch_size):
    """Margins are 0.1 less 10, 20 and 40 levels; a ball of 8 levels takes the second pair beyond."""
    attacks = [AttackSettings(LpBall("linf", 8 / 255), steps=20), AttackSettings(LpBall("linf", 1 / 255), "noise", 5)]
    strong, weak = evaluate(METRIC, task, attacks, RunSettings(batch_size=batch_size), quiet=True)
    rows = unpack(strong)
    assert [(row.key, row.clean, row.robust) for row in rows] == [("0", 1.0, 1.0), ("1", 1.0, 0.0), ("3", 0.0, 0.0)]
    margins = [0.1 - levels / 255 for levels in (10, 20, 40)]
    assert [row.margin for row in rows] == pytest.approx(margins, abs=1e-5)
    assert rows[0].robust_margin == pytest.approx(0.1 - 18 / 255, abs=1e-3) and rows[1].robust_margin < 0
    assert [row.robust for row in unpack(weak)] == [1.0, 1.0, 0.0]
    assert strong["data"]["unreadable"][0].startswith("triplet 2: ") and strong["task"] == "alike"


def test_its_results_are_kept_like_all_others(task, tmp_path):
    out, attack = tmp_path / "out", AttackSettings(LpBall("linf", 8 / 255), steps=5)
    first = Session(out, quiet=True).records(task, METRIC, [attack], RunSettings())
    assert [path.name for path in out.iterdir()] == [
        f"{name}__pairs__apgd-linf-8_255-5steps.json" for name in ("linf",)
    ]
    never = replace(task)
    object.__setattr__(never, "judge", None)  # nothing is computed again
    assert Session(out, quiet=True).records(never, METRIC, [attack], RunSettings()) == first
    with pytest.raises(ValueError, match="holds a result of other data or settings"):
        Session(out, quiet=True).records(task, METRIC, [attack], RunSettings(batch_size=2))


def test_a_task_without_an_aim_says_so(task):
    class Clean(Alike):
        aim = Task.aim

        def decide(self, samples, similarities):
            margin = similarities[:, 0] + 0.1
            return Decisions(-margin, margin, margin <= 0)

    clean = Clean(task.folder, task.pairs[:2])
    assert evaluate(METRIC, clean, quiet=True)[0]["clean"]["accuracy"] == 100
    with pytest.raises(ValueError, match="alike is judged without an attack"):
        evaluate(METRIC, clean, [AttackSettings(LpBall("linf", 8 / 255), steps=1)], quiet=True)
