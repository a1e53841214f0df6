"""The ONNX file computes in onnxruntime what the metric does, for any number of images."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rclip_metric import RobustPerceptualDistance
from rclip_metric.encoder import ViTArchitecture
from rclip_metric.errors import MissingPackageError
from rclip_metric.onnx_export import export_onnx
from rclip_metric.weights import save_encoder

from support.encoders import small_encoder
from support.images import noise

# An export takes 8 s of processor time for two blocks.
VIT = ViTArchitecture(image_size=16, patch_size=8, width=32, depth=1, heads=2, projection=8)


def computed(path: Path, *images: torch.Tensor) -> np.ndarray[Any, Any]:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [one.name for one in session.get_inputs()]
    (found,) = session.run(None, dict(zip(names, (image.numpy() for image in images), strict=True)))
    return found  # type: ignore[no-any-return]


def test_the_distance_for_any_number_of_images(tmp_path: Path) -> None:
    metric = RobustPerceptualDistance(small_encoder(VIT, spread=True), value_range=(-1, 1))
    path = export_onnx(metric, tmp_path / "vit.onnx")
    assert [file.name for file in tmp_path.iterdir()] == ["vit.onnx"]  # the weights are in it
    for count in (1, 2, 5):
        x, y = 2 * noise(2, count, 3, 16, 16, seed=count) - 1
        expected = metric(x, y)
        assert expected.min() > 0.05
        np.testing.assert_allclose(computed(path, x, y), expected.numpy(), atol=1e-5)
        assert (computed(path, x, x) == 0).all()


def test_the_command_and_the_embedding(tmp_path: Path, run: Callable[..., tuple[int, str, str]]) -> None:
    encoder = small_encoder(VIT, spread=True)
    save_encoder(encoder, tmp_path / "model")
    code, out, err = run(
        "export-onnx", tmp_path / "model", tmp_path / "out" / "small.onnx", "--embedding", "--json", "--quiet"
    )
    assert (code, err) == (0, "")
    facts = json.loads(out)
    assert facts["output"] == "embedding" and facts["size"] == 16
    assert facts["bytes"] == (tmp_path / "out" / "small.onnx").stat().st_size
    x = noise(3, 3, 16, 16)
    expected = RobustPerceptualDistance(tmp_path / "model").embed(x)
    np.testing.assert_allclose(computed(Path(facts["path"]), x), expected.numpy(), atol=1e-5)


def test_without_the_extra_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(MissingPackageError, match=r'needs onnxscript, .* pip install "rclip-metric\[onnx\]"'):
        export_onnx(RobustPerceptualDistance(small_encoder(VIT)), tmp_path / "vit.onnx")


def test_half_precision_is_refused(tmp_path: Path) -> None:
    metric = RobustPerceptualDistance(small_encoder(VIT)).to(torch.bfloat16)
    with pytest.raises(ValueError, match=r"torch\.bfloat16 on cpu, expected float32 on the CPU"):
        export_onnx(metric, tmp_path / "vit.onnx")
