"""A filter together with detectors: whoever says "unsafe" has the last word."""

import re
from pathlib import Path

import pytest
import torch
from torch import Tensor

from rclip_metric import ContentFilter, ImageIndex, RobustPerceptualDistance
from rclip_metric.errors import ImageIndexError
from rclip_metric.images import load_image
from rclip_metric.retrieval import AnyOf, Decision

from support.encoders import small_encoder
from support.images import save_noise


class Brightness:
    """Unsafe where an image is bright: the log-odds are 10 (mean - 0.5)."""

    threshold = 0.5
    device = torch.device("cpu")

    def __init__(self, name: str = "brightness") -> None:
        self.name = name

    def describe(self) -> dict[str, object]:
        return {"name": self.name}

    def preprocess(self, image: object) -> Tensor:
        return load_image(image)  # type: ignore[arg-type]

    def logits(self, images: Tensor) -> Tensor:
        return 10 * (images.mean((1, 2, 3)) - 0.5)


@pytest.fixture(scope="module")
def content_filter() -> ContentFilter:
    metric = RobustPerceptualDistance(small_encoder(spread=True))
    index = ImageIndex(metric)
    images = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    index.add(images, ids=list("abcd"), labels=["safe", "buffer", "unsafe", "unsafe"])
    return ContentFilter(index, metric)


def test_unsafe_if_either_says_so(content_filter):
    both = AnyOf(content_filter, [Brightness()])
    decisions = [Decision(label, "a", None, 0.9, 0.5) for label in ("safe", "buffer", "unsafe", None)]
    low = [both.combined(decision, {"brightness": 0.49}).label for decision in decisions]
    high = [both.combined(decision, {"brightness": 0.5}).label for decision in decisions]
    assert low == ["safe", "buffer", "unsafe", None]
    assert high == ["unsafe"] * 4
    assert both.combined(decisions[0], {"brightness": float("nan")}).label == "unsafe"


def test_images_and_files_are_scored_by_all(content_filter, tmp_path: Path):
    both = AnyOf(content_filter, [Brightness("one"), Brightness("two")])
    images = torch.stack([torch.full((3, 32, 32), level) for level in (0.2, 0.9)])
    dark, bright = both.decide(images)
    # sigmoid(10 (0.2 - 0.5)), sigmoid(10 (0.9 - 0.5))
    assert dark.scores == pytest.approx({"one": 0.0474259, "two": 0.0474259}, abs=1e-6)
    assert bright.scores == pytest.approx({"one": 0.9820138, "two": 0.9820138}, abs=1e-6)
    assert (dark.label, bright.label) == (dark.decision.label, "unsafe")
    [read] = both.decide([save_noise(tmp_path / "noise.png", 1)])
    assert read.scores["one"] == pytest.approx(
        torch.sigmoid(10 * (load_image(tmp_path / "noise.png").mean() - 0.5)).item(), abs=1e-6
    )


def test_what_does_not_go_together_is_refused(content_filter):
    for detectors, unsafe, message in (
        ([Brightness()], "weapons", "the filter has no class 'weapons', it has buffer, safe, unsafe."),
        ([], "unsafe", "one detector or more of different names are needed, got none."),
        (
            [Brightness()] * 2,
            "unsafe",
            "one detector or more of different names are needed, got brightness, brightness.",
        ),
    ):
        with pytest.raises(ImageIndexError, match=f"^{re.escape(message)}$"):
            AnyOf(content_filter, detectors, unsafe)
    with pytest.raises(ImageIndexError, match=r"^detectors need images \(N, 3, H, W\), got a tensor of shape \(2, 4\)"):
        AnyOf(content_filter, [Brightness()]).decide(torch.eye(4)[:2])
