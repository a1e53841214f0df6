"""SSIM, MS-SSIM, PSNR and l_p against formulas in numpy, and their certificates against attacks."""

from __future__ import annotations

import sys
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from rclip_metric.train.attacks.threat import LpBall
from rclip_metric.train.evaluation.attack import AttackSettings, RunSettings, attack_block
from rclip_metric.train.evaluation.tasks.two_afc import decision
from rclip_metric.train.metrics.base import Certified
from rclip_metric.train.metrics.pixel import CertifiedPixelMetric, PixelMetric, build, scale_weights
from rclip_metric.train.metrics.weight_files import Request

SIZE = 24
NAMES = ("ssim", "ms-ssim", "psnr", "l1", "l2", "linf")
CERTIFIED = ("psnr", "l1", "l2", "linf")


def metric(name: str, size: int = SIZE) -> PixelMetric:
    return build(name, Request(image_size=size))


def certified(name: str, size: int) -> CertifiedPixelMetric:
    built = metric(name, size)
    assert isinstance(built, CertifiedPixelMetric)
    return built


def pictures(count: int, seed: int = 0, size: int = SIZE) -> Tensor:
    """Smooth images with some noise in [0.2, 0.8], (count, 3, S, S)."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 4, 4, generator=generator)
    fine = torch.nn.functional.interpolate(coarse, (size, size), mode="bilinear")
    return (0.2 + 0.6 * fine + 0.05 * torch.randn(fine.shape, generator=generator)).clamp(0.2, 0.8)


def structure(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """SSIM and its contrast term of images (3, H, W), by windows; the latter without the reflected border."""
    offsets = np.arange(-5, 6)
    line = np.exp(-(offsets**2) / (2 * 1.5**2))
    window = np.outer(line, line) / line.sum() ** 2

    def local(image: np.ndarray) -> np.ndarray:
        padded = np.pad(image, ((0, 0), (5, 5), (5, 5)), mode="reflect")
        patches = np.lib.stride_tricks.sliding_window_view(padded, (11, 11), axis=(1, 2))
        return np.einsum("chwij,ij->chw", patches, window)

    mx, my = local(x), local(y)
    vx, vy, vxy = local(x * x) - mx**2, local(y * y) - my**2, local(x * y) - mx * my
    contrast = (2 * vxy + 0.03**2) / (vx + vy + 0.03**2)
    luminance = (2 * mx * my + 0.01**2) / (mx**2 + my**2 + 0.01**2)
    return float((luminance * contrast).mean()), float(contrast[:, 5:-5, 5:-5].mean())


def ms_ssim(x: np.ndarray, y: np.ndarray, weights: tuple[float, ...]) -> float:
    product = 1.0
    for scale, weight in enumerate(weights, 1):
        whole, contrast = structure(x, y)
        product *= max(0.0, whole if scale == len(weights) else contrast) ** weight
        side = x.shape[1] // 2 * 2
        x, y = (image[:, :side, :side].reshape(3, side // 2, 2, side // 2, 2).mean((2, 4)) for image in (x, y))
    return product


FORMULAS: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "ssim": lambda x, y: 1 - structure(x, y)[0],
    "psnr": lambda x, y: float(np.square(x - y).mean()),
    "l1": lambda x, y: float(np.abs(x - y).sum()) / x.size,
    "l2": lambda x, y: float(np.linalg.norm((x - y).ravel())) / x.size**0.5,
    "linf": lambda x, y: float(np.abs(x - y).max()),
}


@pytest.mark.parametrize("name", FORMULAS)
def test_values(name: str) -> None:
    x, y = pictures(3), pictures(3, 1)
    y[1] = (x[1] + 0.1 * y[1]).clamp(0, 1)
    y[2] = 1 - x[2]
    wanted = [FORMULAS[name](a.double().numpy(), b.double().numpy()) for a, b in zip(x, y, strict=True)]
    found = metric(name).similarities(x, y[:, None])
    assert found.shape == (3, 1) and found.dtype == torch.float32
    assert found[:, 0].tolist() == pytest.approx([-value for value in wanted], rel=1e-5, abs=1e-6)


@pytest.mark.parametrize(("size", "scales"), [(12, 1), (25, 2), (48, 3), (101, 4), (176, 5)])
def test_ms_ssim(size: int, scales: int) -> None:
    x = pictures(2, size=size)
    y = (x + 0.3 * pictures(2, 1, size)).clamp(0, 1)
    y[1] = 1 - x[1]  # negative structure: 0
    weights = np.array([0.0448, 0.2856, 0.3001, 0.2363, 0.1333])[:scales]
    weights = weights if scales == 5 else weights / weights.sum()
    assert scale_weights(size) == pytest.approx(tuple(weights))
    built = metric("ms-ssim", size)
    wanted = [1 - ms_ssim(a.double().numpy(), b.double().numpy(), tuple(weights)) for a, b in zip(x, y, strict=True)]
    assert (-built.similarities(x, y[:, None])[:, 0]).tolist() == pytest.approx(wanted, rel=1e-4, abs=1e-5)
    assert wanted[1] == 1 and 0.01 < wanted[0] < 0.9
    assert built.describe()["scales"] == scales


def test_sizes_at_which_the_scales_change() -> None:
    counts = [len(scale_weights(size)) for size in (11, 21, 22, 43, 44, 98, 99, 175, 176, 224)]
    assert counts == [1, 1, 2, 2, 3, 3, 4, 4, 5, 5]
    assert all(sum(scale_weights(size)) == pytest.approx(1, abs=2e-4) for size in (11, 30, 64, 128, 224))
    for size in (11, 22, 44, 99):
        assert metric("ms-ssim", size).similarities(pictures(1, size=size), pictures(1, 1, size)[:, None]).isfinite()
    for name in ("ssim", "ms-ssim"):
        with pytest.raises(ValueError, match="windows of 11 pixels, and images are squashed to 10"):
            metric(name, 10)


def test_psnr_decides_as_decibels_do() -> None:
    x, options = pictures(64, size=11), pictures(128, 1, 11).view(64, 2, 3, 11, 11)
    found = metric("psnr", 11).similarities(x, options)
    mse = (x.double()[:, None] - options.double()).square().mean((2, 3, 4))
    decibels = -10 * mse.log10()
    assert torch.equal(found[:, 1] > found[:, 0], decibels[:, 1] > decibels[:, 0])
    assert metric("psnr", 11).similarities(x[:1], x[:1, None]).item() == 0  # where decibels are infinite


@pytest.mark.parametrize("name", NAMES)
def test_gradients_are_finite(name: str) -> None:
    noise = torch.rand(1, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    black, white, grey = torch.zeros_like(noise), torch.ones_like(noise), torch.full_like(noise, 0.5)
    board = (torch.arange(SIZE)[:, None] + torch.arange(SIZE)) % 2 + 0.0 * noise
    images = torch.cat([noise, black, grey, black, noise, board])
    against = torch.cat([noise, black, grey, white, 1 - noise, 1 - board])
    for shift in (0.0, 1e-7):  # at identical images, and next to them
        x = (images + shift).requires_grad_()
        similarity = metric(name).similarities(x, against[:, None])
        (gradient,) = torch.autograd.grad(similarity.sum(), x)
        assert similarity.isfinite().all() and gradient.isfinite().all()
        assert shift or similarity[:3].abs().max() < 1e-6
        assert shift or gradient[:3].abs().max() < 1e-4


@pytest.mark.parametrize("name", NAMES)
def test_an_image_s_distance_does_not_depend_on_its_batch(name: str) -> None:
    built, x, y = metric(name), pictures(5), pictures(10, 1).view(5, 2, 3, SIZE, SIZE)
    together = built.similarities(x, built.fix(y))
    apart = torch.cat([built.similarities(x[i : i + 1], y[i : i + 1]) for i in range(5)])
    assert together.shape == (5, 2)
    torch.testing.assert_close(together, apart, rtol=1e-5, atol=1e-5)  # convolutions of another size round otherwise


def test_no_rounding_to_half_precision() -> None:
    built, x, y = metric("ssim"), pictures(2), pictures(2, 1)[:, None]
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(built.in_bfloat16().similarities(x, y), built.similarities(x, y))
    assert torch.equal(built.similarities(x, y), -built.function(x, y[:, 0])[:, None])


def attacked(built: PixelMetric, x: Tensor, options: Tensor, ball: LpBall, steps: int = 30) -> Tensor:
    """Whether APGD changes the decision of each image, bool (N,)."""
    similarities = built.similarities(x, options)
    settings, keys = AttackSettings(ball, steps=steps), [str(i) for i in range(len(x))]
    found = attack_block(
        built,
        x,
        lambda judged: options,
        decision((similarities[:, 1] > similarities[:, 0]).long()),
        settings,
        RunSettings(),
        keys,
    )
    assert found.attacked.nonfinite_gradients == 0 and found.violation == 0
    return found.fooled


@pytest.mark.parametrize("name", ["psnr", "l2"])
def test_the_certified_radius_of_a_plane_is_exact(name: str) -> None:
    built = certified(name, 12)
    assert isinstance(built, Certified)
    x, options = pictures(6, size=12), pictures(12, 1, 12).view(6, 2, 3, 12, 12)
    radius = built.certified_radius(x, built.fix(options))
    apart = (options[:, 1].double() - options[:, 0].double()).flatten(1)
    offset = (x.double().flatten(1) - options.double().flatten(2).mean(1)) * apart
    wanted = offset.sum(1).abs() / apart.norm(dim=1)
    assert radius.dtype == torch.float32 and (radius <= wanted).all()
    torch.testing.assert_close(radius.double(), wanted, rtol=1e-5, atol=0)

    similarities = built.similarities(x, options)
    right = similarities[:, 1] > similarities[:, 0]
    towards = torch.where(right, -1.0, 1.0)[:, None] * apart.float() / apart.norm(dim=1, keepdim=True).float()
    for factor, flips in ((0.99, False), (1.01, True)):
        moved = x + (factor * radius[:, None] * towards).view_as(x)
        assert moved.min() >= 0 and moved.max() <= 1  # else 1.01 would prove nothing
        after = built.similarities(moved, options)
        assert torch.equal((after[:, 1] > after[:, 0]) != right, torch.full((6,), flips))
    for i in range(6):
        one = slice(i, i + 1)
        assert not attacked(built, x[one], options[one], LpBall("l2", 0.99 * radius[i].item())).any()
        assert attacked(built, x[one], options[one], LpBall("l2", 1.01 * radius[i].item())).all()


@pytest.mark.parametrize("name", ["l1", "linf"])
def test_no_attack_within_a_lipschitz_certificate(name: str) -> None:
    built = certified(name, 12)
    x, options = pictures(6, size=12), pictures(12, 1, 12).view(6, 2, 3, 12, 12)
    radius = built.certified_radius(x, options)
    differing = (options[:, 0] != options[:, 1]).sum((1, 2, 3)).double()
    assert differing.max() <= 3 * 144
    constant = differing.sqrt() if name == "l1" else 1.0
    distances = (x[:, None] - options).double().flatten(2).norm(p={"l1": 1, "linf": torch.inf}[name], dim=2)
    wanted = (distances[:, 0] - distances[:, 1]).abs() / (2 * constant)
    assert (radius > 0).all()
    torch.testing.assert_close(radius.double(), wanted, rtol=1e-4, atol=1e-7)
    for i in range(6):
        one = slice(i, i + 1)
        assert not attacked(built, x[one], options[one], LpBall("l2", 0.99 * radius[i].item())).any()


@pytest.mark.parametrize("name", ["l1", "linf"])
def test_where_one_value_differs_the_certificate_is_exact(name: str) -> None:
    built = certified(name, 12)
    x = pictures(1, size=12)
    options = x.repeat(2, 1, 1, 1)[None].clone()
    options[0, 0, 1, 5, 5] = x[0, 1, 5, 5] - 0.15
    options[0, 1, 1, 5, 5] = x[0, 1, 5, 5] + 0.05
    radius = built.certified_radius(x, options).item()  # half-way is 0.05 below
    assert radius == pytest.approx(0.05, rel=1e-4)
    moved = x.clone()
    moved[0, 1, 5, 5] -= 1.01 * radius
    before, after = built.similarities(x, options)[0], built.similarities(moved, options)[0]
    assert before[1] > before[0] and after[0] > after[1]


@pytest.mark.parametrize("name", CERTIFIED)
def test_a_tie_has_no_radius(name: str) -> None:
    built, x = certified(name, 12), pictures(2, size=12)
    same = pictures(2, 1, 12)[:, None].expand(-1, 2, -1, -1, -1)
    mirrored = torch.stack([x + 0.125, x - 0.125], 1)
    assert built.certified_radius(x, same).tolist() == [0, 0]
    assert built.certified_radius(x, mirrored).abs().max() < 1e-6


@pytest.mark.parametrize("name", ["psnr", "l2"])
def test_apgd_reaches_the_exact_l_inf_robustness_of_a_plane(name: str) -> None:
    """|| x + delta - y_0 ||^2 - || x + delta - y_1 ||^2 is linear: it falls by at most 2 eps || y_1 - y_0 ||_1."""
    built = metric(name, 12)
    x, options = pictures(6, size=12), pictures(12, 1, 12).view(6, 2, 3, 12, 12)
    squares = (x[:, None] - options).double().square().sum((2, 3, 4))
    apart = (options[:, 1] - options[:, 0]).double().abs().sum((1, 2, 3))
    threshold = (squares[:, 0] - squares[:, 1]).abs() / (2 * apart)
    assert threshold.min() > 0 and threshold.max() < 0.15  # the box is 0.2 away
    for i in range(6):
        one, eps = slice(i, i + 1), threshold[i].item()
        assert not attacked(built, x[one], options[one], LpBall("linf", 0.99 * eps)).any()
        assert attacked(built, x[one], options[one], LpBall("linf", 1.01 * eps)).all()


def test_norms_as_they_are_would_stop_the_attack() -> None:
    """Why l1 is a mean: the cross-entropy of two sums has no gradient left where they differ by more than 104."""
    x, options = torch.full((1, 3, SIZE, SIZE), 0.5), pictures(2, 1)[None].clone()
    options[:, 1] = x + 0.01
    label = torch.tensor([1])
    gradients = []
    for scale in (1.0, float(x.numel())):
        point = x.clone().requires_grad_()
        similarities = scale * metric("l1").similarities(point, options)
        loss = decision(label)(similarities, torch.tensor([0])).loss
        gradients.append(torch.autograd.grad(loss.sum(), point)[0].abs().max().item())
    assert gradients[0] > 0 and gradients[1] == 0


def test_what_a_table_says() -> None:
    built = build("ms-ssim", Request(image_size=64, random=True))
    assert built.name == "ms-ssim@random" and built.facts.label == "MS-SSIM" and built.facts.parameters == 0
    assert built.describe()["weights"] == pytest.approx([448 / 6305, 2856 / 6305, 3001 / 6305], abs=5e-5)
    assert not isinstance(metric("ssim"), Certified)


def test_torchmetrics_is_asked_for_only_where_it_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("torchmetrics", "torchmetrics.functional"):
        monkeypatch.setitem(sys.modules, module, None)
    assert metric("l2").name == "l2"
    for name in ("ssim", "ms-ssim"):
        with pytest.raises(ValueError, match=r"torchmetrics is an extra: pip install \"rclip-metric\[benchmark\]\""):
            metric(name)
