"""Which precision "auto" means for one encoder: said by the processor, or measured."""

import pytest
import torch

from rclip_metric import RobustPerceptualDistance
from rclip_metric.encoder import Encoder, ViTArchitecture, timm_architecture
from rclip_metric.images import Preprocessing
from rclip_metric.train.metrics.base import EmbeddingMetric, EncoderMetric, metric_precision
from rclip_metric.train.runs import precision
from rclip_metric.train.runs.precision import encoder_precision

VIT = ViTArchitecture(image_size=32, patch_size=16, width=64, depth=1, heads=1, projection=16)


def convolutions():
    return Encoder(timm_architecture("tf_efficientnet_lite0", image_size=32), Preprocessing("squash", 32, 32)).eval()


@pytest.fixture
def fast_flag(monkeypatch):
    """A processor that says it multiplies bfloat16, whatever this one says."""
    monkeypatch.setattr(precision, "bfloat16_is_fast", lambda device: True)
    monkeypatch.setattr(precision, "_measured", {})


def test_what_is_asked_for_is_not_measured(monkeypatch):
    monkeypatch.setattr(precision, "_seconds", None)
    encoder = convolutions()
    assert [encoder_precision(name, encoder) for name in ("float32", "bfloat16")] == ["float32", "bfloat16"]
    with pytest.raises(ValueError, match="half"):
        encoder_precision("half", encoder)


def test_a_transformer_goes_by_the_processor(monkeypatch, fast_flag):
    monkeypatch.setattr(precision, "_seconds", None)
    assert encoder_precision("auto", Encoder(VIT, Preprocessing("squash", 32, 32))) == "bfloat16"


@pytest.mark.parametrize(("half", "chosen"), [(0.5, "bfloat16"), (0.9, "float32"), (1.0, "float32"), (3.0, "float32")])
def test_convolutions_take_what_is_clearly_faster(monkeypatch, fast_flag, half, chosen):
    def seconds(encoder):
        return half if next(encoder.parameters()).dtype == torch.bfloat16 else 1.0

    monkeypatch.setattr(precision, "_seconds", seconds)
    assert encoder_precision("auto", convolutions()) == chosen


def test_measuring_leaves_the_encoder_and_the_random_numbers_alone(fast_flag):
    encoder = convolutions()
    before = {key: tensor.clone() for key, tensor in encoder.state_dict().items()}
    torch.manual_seed(5)
    assert encoder_precision("auto", encoder) in ("float32", "bfloat16")
    drawn = torch.rand(3)
    torch.manual_seed(5)
    assert torch.equal(drawn, torch.rand(3))
    assert all(torch.equal(before[key], tensor) for key, tensor in encoder.state_dict().items())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in encoder.parameters())


def test_a_metric_is_measured_once_per_architecture_and_size(monkeypatch, fast_flag):
    asked = []

    def seconds(encoder):
        asked.append(next(encoder.parameters()).dtype)
        return 1.0 if asked[-1] == torch.float32 else 0.5

    monkeypatch.setattr(precision, "_seconds", seconds)
    metric = EncoderMetric(RobustPerceptualDistance(convolutions()))
    assert [metric_precision("auto", metric) for _ in range(3)] == ["bfloat16"] * 3 and len(asked) == 2
    other = EmbeddingMetric(lambda images: images.flatten(1), 8, name="pixels")
    assert metric_precision("auto", other) == "bfloat16" and metric_precision("float32", other) == "float32"
