"""The published numbers of other metrics, against what spec.md and the splits of the paper's tables say."""

from __future__ import annotations

import re
from pathlib import Path
from statistics import fmean

import pytest

from rclip_metric.train.benchmark import settings
from rclip_metric.train.evaluation.tasks import zero_shot
from rclip_metric.train.metrics import paper
from rclip_metric.train.metrics.paper import REPORTED, reported_of
from rclip_metric.train.metrics.registry import BASELINES

# Table XIV: cnn, color, deblur, frameinterp, superres, traditional.
CLEAN = {
    "lipsim-pretrained": (86.4, 69.9, 65.6, 66.7, 76.8, 79.5),
    "lipsim-0.2": (85.2, 71.9, 64.7, 66.8, 77.2, 77.9),
    "lipsim-0.5": (83.6, 71.1, 64.1, 66.0, 76.8, 77.0),
    "r-lpips": (87.5, 67.4, 63.7, 66.5, 76.1, 75.7),
    "dreamsim": (86.7, 67.6, 62.4, 66.3, 74.3, 81.3),
    "dreamsim-open-clip-vitb32": (86.4, 67.0, 63.0, 65.6, 74.7, 81.7),
    "dreamsim-clip-vitb32": (83.9, 63.3, 58.2, 63.3, 70.0, 79.1),
    "dreamsim-dino-vitb16": (85.7, 67.5, 62.7, 67.3, 73.3, 80.1),
}
# Table XV, the rows that are legible: the same splits under l_inf, then under l_2.
ATTACKED = {
    "lipsim-0.2": ((9.7, 3.8, 0.1, 0.0, 1.7, 9.8), (25.6, 11.3, 2.2, 1.1, 7.3, 28.8)),
    "lipsim-0.5": ((14.0, 8.3, 0.2, 0.0, 1.7, 10.7), (28.8, 20.5, 2.2, 1.0, 6.0, 31.9)),
    "r-lpips": ((20.8, 8.8, 0.2, 1.2, 3.0, 8.3), (31.3, 13.9, 0.8, 2.3, 5.6, 20.0)),
}
ROUNDED = 0.1 + 1e-9  # each split is rounded to 0.1, and so is their mean


@pytest.mark.parametrize("name", CLEAN)
def test_clean_bapps_is_the_mean_of_its_splits(name: str) -> None:
    assert abs(fmean(CLEAN[name]) - reported_of(name)["bapps"]["clean"]) <= ROUNDED


@pytest.mark.parametrize("name", ATTACKED)
def test_attacked_bapps_is_the_mean_of_its_splits(name: str) -> None:
    for splits, column in zip(ATTACKED[name], ("linf", "l2"), strict=True):
        assert abs(fmean(splits) - reported_of(name)["bapps"][column]) <= ROUNDED


def test_cells_that_the_specification_states() -> None:
    def nights(name: str) -> tuple[float, ...]:
        return tuple(REPORTED[name]["nights"][column] for column in ("clean", "linf", "l2"))

    assert nights("dreamsim") == (96.2, 0.5, 0.9)
    assert nights("lipsim-pretrained") == (86.6, 8.6, 26.5)
    assert nights("lipsim-0.2") == (88.5, 23.1, 46.6)
    assert nights("lipsim-0.5") == (85.1, 32.8, 53.1)
    assert nights("r-lpips") == (71.6, 16.2, 26.9)
    assert REPORTED["lipsim-0.2"]["bapps"] == {"clean": 74.0, "linf": 4.2, "l2": 12.7}  # trap 6
    assert REPORTED["lipsim-0.5"]["bapps"] == {"clean": 73.1, "linf": 5.8, "l2": 15.1}


def test_only_known_names_and_percentages() -> None:
    assert set(REPORTED) <= set(BASELINES)
    for tasks in REPORTED.values():
        for numbers in tasks.values():
            assert set(numbers) <= {"clean", "linf", "l2"}
            assert all(0 <= number <= numbers["clean"] <= 100 for number in numbers.values())
    assert reported_of("lpips-alex") == {}


def test_the_papers_radii_are_written_once() -> None:
    """No other module names a ball of the paper as a number: defaults, tables and columns follow these."""
    root = Path(paper.__file__).parents[1]
    pattern = re.compile(r'\("(linf|l2)", (2 / 255|4 / 255|3\.0)\)|"(linf|l2)": (4 / 255|3\.0)')
    found = {
        path.name
        for path in root.rglob("*.py")
        for line in path.read_text().splitlines()
        if pattern.search(line) and ">>>" not in line and "... " not in line
    }
    assert found == {"paper.py"}
    assert {str(ball) for ball in settings.PAPER_BALLS} == {"linf 4/255", "l2 3"}
    assert [str(ball) for ball in zero_shot.PAPER_BALLS] == ["linf 2/255", "linf 4/255"]
    assert list(paper.ZERO_SHOT_COLUMNS.values()) == ["linf_2", "linf_4"]
