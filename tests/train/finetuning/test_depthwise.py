"""Depthwise filters are differentiated as the library does it, only faster."""

import contextlib
import copy

import pytest
import torch
from torch import nn

from rclip_metric.train.finetuning.adversarial import AdversarialStep, FinetuneConfig, step
from rclip_metric.train.finetuning.adversarial.depthwise import fast_depthwise_gradients
from rclip_metric.train.runs.seeds import seeded

from support.encoders import small_encoder


def gradients(convolution, images, fast=False, half=False):
    """By images, filters and, if there is one, bias, of a loss that weighs every output differently."""
    images = images.clone().requires_grad_()
    with (
        fast_depthwise_gradients(convolution) if fast else contextlib.nullcontext(),
        torch.autocast("cpu", torch.bfloat16, enabled=half),
    ):
        outputs = convolution(images)
    weights = torch.randn(outputs.shape, generator=seeded(3), dtype=torch.float64).to(outputs.dtype)
    return outputs, torch.autograd.grad((outputs * weights).sum(), [images, *convolution.parameters()])


def relative(found, exact):
    return ((found.double() - exact).abs().max() / exact.abs().max()).item()


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["rows", "channels last"])
@pytest.mark.parametrize(
    ("shape", "kernel", "bias"), [((3, 16, 14, 14), 7, True), ((1, 6, 5, 9), (3, 5), False), ((2, 4, 3, 2), 7, True)]
)
def test_gradients_are_those_of_float64_to_rounding(shape, kernel, bias, layout):
    torch.manual_seed(0)
    padding = [size // 2 for size in (kernel if isinstance(kernel, tuple) else (kernel, kernel))]
    convolution = nn.Conv2d(shape[1], shape[1], kernel, padding=padding, groups=shape[1], bias=bias)
    images = torch.randn(shape, generator=seeded(1)).contiguous(memory_format=layout)
    _, exact = gradients(copy.deepcopy(convolution).double(), images.double())
    usual_outputs, usual = gradients(convolution, images)
    outputs, fast = gradients(convolution, images, fast=True)
    assert torch.equal(outputs, usual_outputs) and torch.equal(fast[0], usual[0])
    assert len(fast) == 2 + bias
    for found, wanted in zip(fast, exact, strict=True):
        assert found.dtype == torch.float32 and found.shape == wanted.shape
        assert relative(found, wanted) < 3e-6


def test_under_autocast_they_are_no_less_exact_than_the_library_s():
    torch.manual_seed(0)
    convolution = nn.Conv2d(16, 16, 7, padding=3, groups=16)
    with torch.no_grad():
        convolution.weight.copy_(convolution.weight.bfloat16())  # the rounding of what goes in is not at issue
    images = torch.randn(4, 16, 14, 14, generator=seeded(1)).bfloat16().float()
    outputs, usual = gradients(convolution, images, half=True)
    found, fast = gradients(convolution, images, fast=True, half=True)
    assert outputs.dtype == found.dtype == torch.bfloat16 and torch.equal(found, outputs)
    weights = torch.randn(outputs.shape, generator=seeded(3), dtype=torch.float64).bfloat16().double()
    exact = copy.deepcopy(convolution).double()
    wanted = torch.autograd.grad((exact(images.double()) * weights).sum(), list(exact.parameters()))
    for one, other, right in zip(fast[1:], usual[1:], wanted, strict=True):
        assert one.dtype == torch.float32
        assert relative(one, right) <= 1.1 * relative(other, right) < 0.01


def test_other_convolutions_and_frozen_ones_stay_as_they_are():
    others = nn.Sequential(
        nn.Conv2d(4, 4, 3, padding=1),
        nn.Conv2d(4, 4, 3, padding=1, groups=4, stride=2),
        nn.Conv2d(4, 4, 3, padding=2, groups=4, dilation=2),
        nn.Conv2d(4, 8, 3, padding=1, groups=4),
        nn.Conv2d(4, 4, 3, padding=1, groups=4).requires_grad_(False),
        nn.Conv2d(4, 4, 3, padding=1, groups=4, padding_mode="reflect"),
    )
    module = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1, groups=4), others)
    with fast_depthwise_gradients(module):
        assert ["forward" in vars(part) for part in (module[0], *others)] == [True, *6 * [False]]
        images = torch.rand(1, 4, 5, 5).requires_grad_()
        (first,) = torch.autograd.grad(module[0](images).square().sum(), images, create_graph=True)
        with pytest.raises(RuntimeError, match="once_differentiable"):
            first.sum().backward()
    assert "forward" not in vars(module[0])


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_step_moves_the_weights_as_it_does_without(checkpointing, monkeypatch):
    images, asked = torch.rand(3, 3, 64, 64, generator=seeded(1)), []

    def moved():
        encoder, original = small_encoder(), small_encoder()
        with torch.no_grad():
            for parameter in encoder.parameters():
                parameter.add_(0.05)
        encoder.checkpointing = checkpointing
        sgd = torch.optim.SGD(encoder.parameters(), lr=1e-2)
        config = FinetuneConfig(steps=2, inner_steps=2, batch_size=3)
        AdversarialStep(encoder, original, sgd, config)(images, range(3), None, 0)
        return dict(encoder.named_parameters())

    @contextlib.contextmanager
    def plainly(module):
        asked.append(module)
        yield

    fast = moved()
    monkeypatch.setattr(step, "fast_depthwise_gradients", plainly)
    before = {name: value + 0.05 for name, value in small_encoder().named_parameters()}
    for name, value in moved().items():
        torch.testing.assert_close(fast[name] - before[name], value - before[name], rtol=1e-3, atol=2e-7)
    assert len(asked) == 1
