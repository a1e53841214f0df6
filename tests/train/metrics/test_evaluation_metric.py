"""What evaluations ask of a metric: the adapters, and how --model finds one."""

import sys
import textwrap

import pytest
import torch

from rclip_metric import RobustPerceptualDistance
from rclip_metric.train.metrics.base import DistanceMetric, EmbeddingMetric, EncoderMetric
from rclip_metric.train.metrics.registry import load_metric
from rclip_metric.train.runs.seeds import seeded


@pytest.fixture(scope="module")
def images():
    return torch.rand(5, 3, 64, 64, generator=seeded(1))


def test_an_encoders_similarities_are_its_cosines(images):
    ours = RobustPerceptualDistance("tiny")
    metric = EncoderMetric(ours)
    fixed = torch.stack([metric.fix(images[1:3]), metric.fix(images[3:5])], 1)  # two references, two options each
    found = metric.similarities(images[:1].expand(2, -1, -1, -1), fixed)
    for option in range(4):
        expected = ours.similarity(images[:1], images[1 + option : 2 + option])
        torch.testing.assert_close(found[option % 2, option // 2], expected[0], rtol=0, atol=1e-6)
    half = metric.in_bfloat16()
    assert (
        half.metric.encoder.tower is not ours.encoder.tower and next(ours.encoder.parameters()).dtype == torch.float32
    )
    rough = half.similarities(images[:1].expand(2, -1, -1, -1), fixed)
    assert rough.dtype == torch.float32 and 0 < (rough - found).abs().max() < 0.02
    assert metric.describe()["revision"] == ours.encoder.revision and metric.image_size == 64


def test_gradients_reach_the_images_of_every_adapter(images):
    encoder = RobustPerceptualDistance("tiny").encoder
    metrics = [
        EncoderMetric(RobustPerceptualDistance("tiny")),
        EmbeddingMetric(encoder, 64, name="function"),
        DistanceMetric(lambda x, y: (x - y).square().flatten(1).mean(1), 64, name="mse"),
    ]
    for metric in metrics:
        fixed = metric.fix(images[2:4])[:, None]
        assert not fixed.requires_grad
        points = images[:2].clone().requires_grad_(True)
        similarities = metric.similarities(points, fixed)
        assert similarities.shape == (2, 1) and similarities.dtype == torch.float32
        similarities.sum().backward()
        assert points.grad is not None and points.grad.abs().sum() > 0


def test_a_distance_is_compared_pair_by_pair(images):
    metric = DistanceMetric(lambda x, y: (x - y).abs().flatten(1).mean(1), 64, name="l1")
    options = images[2:4][None].expand(2, -1, -1, -1, -1)
    found = metric.similarities(images[:2], options)
    for i in range(2):
        for k in range(2):
            torch.testing.assert_close(found[i, k], -(images[i] - images[2 + k]).abs().mean())
    with pytest.raises(ValueError, match="one distance per pair"):
        DistanceMetric(lambda x, y: (x - y).mean(), 64, name="scalar").similarities(images[:2], options)
    with pytest.raises(ValueError, match="does not run in bfloat16"):
        DistanceMetric(lambda x, y: x, 64, name="fixed", autocast=False).in_bfloat16()


def test_any_metric_is_found_by_module_and_function(tmp_path, monkeypatch, images):
    (tmp_path / "my_metrics.py").write_text(
        textwrap.dedent(
            """
            from rclip_metric.train.metrics.base import EmbeddingMetric

            def pixels(device):
                return EmbeddingMetric(lambda images: images.flatten(1), 64, name="pixels", device=device)

            def nothing(device):
                return object()
            """
        )
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    metric = load_metric("my_metrics:pixels")
    torch.testing.assert_close(metric.fix(images).norm(dim=1), torch.ones(5))
    with pytest.raises(ValueError, match="without 'name'"):
        load_metric("my_metrics:nothing")
    with pytest.raises(ValueError, match="names no function that can be imported: module 'my_metrics' has no"):
        load_metric("my_metrics:missing")
    with pytest.raises(ValueError, match="names no function that can be imported: No module named 'not_there'"):
        load_metric("not_there:pixels")
    sys.modules.pop("my_metrics")
    assert load_metric("tiny", resize="squash").describe()["resize"] == "squash"
