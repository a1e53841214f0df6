"""Detectors by name."""

import re
from pathlib import Path

import pytest
import torch

from rclip_metric.detectors import load_detector
from rclip_metric.errors import UnknownModelError

OWN = """
import torch
class Redness:
    name, threshold, device = "redness", 0.5, torch.device("cpu")
    def __init__(self, device): self.device = torch.device(device)
    def describe(self): return {"name": self.name}
    def preprocess(self, image): raise NotImplementedError
    def logits(self, images): return 4 * (images[:, 0] - images[:, 2]).mean((1, 2))
def number(device): return 3
def leave(device): raise SystemExit(0)
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_detectors.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)


def test_opennsfw_and_its_threshold():
    detector = load_detector("opennsfw", threshold=0.8)
    assert detector.name == "opennsfw" and detector.threshold == 0.8 and detector.device == torch.device("cpu")
    assert detector.describe()["threshold"] == 0.8


def test_a_detector_of_ones_own(own):
    detector = load_detector("own_detectors:Redness", "cpu")
    assert detector.logits(torch.ones(2, 3, 4, 4)).tolist() == [0, 0]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("own_detectors:number", "the detector own_detectors:number is an object without 'name': see rclip_metric.det"),
        ("own_detectors:leave", "the detector own_detectors:leave ended the program (exit 0) and returned no detector"),
        ("own_detectors:none", "the detector own_detectors:none names no function that can be imported: module 'own_"),
        ("not_there:none", "the detector not_there:none names no function that can be imported: No module named"),
    ],
)
def test_what_is_no_detector_is_refused(own, name, said):
    with pytest.raises(ValueError, match=re.escape(said)):
        load_detector(name)


def test_what_there_is_not_is_refused_with_what_there_is():
    with pytest.raises(UnknownModelError, match="'opennfsw' is no detector that is known here: there are opennsfw"):
        load_detector("opennfsw")


@pytest.mark.parametrize("threshold", [-0.1, 1.1, float("nan")])
def test_a_threshold_is_a_score(threshold):
    with pytest.raises(ValueError, match="a score from 0 to 1, got"):
        load_detector("opennsfw", threshold=threshold)
