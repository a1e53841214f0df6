"""`import rclip_metric` is cheap, and pulls in nothing that building a model needs."""

import subprocess
import sys
from pathlib import Path

import pytest

import rclip_metric

HEAVY = ["torchvision", "PIL", "timm", "open_clip", "huggingface_hub", "safetensors", "transformers", "torchmetrics"]
PROBE = "import sys, {module}; print(*[name for name in {heavy} if name in sys.modules])"


def loaded_by(module: str, folder: Path) -> list[str]:
    code = PROBE.format(module=module, heavy=[*HEAVY, "rclip_metric.train"])
    return subprocess.run(
        [sys.executable, "-c", code], cwd=folder, check=True, capture_output=True, text=True
    ).stdout.split()


def test_the_import_pulls_in_torch_and_nothing_else(tmp_path):
    assert loaded_by("rclip_metric", tmp_path) == []


def test_the_probe_would_notice(tmp_path):
    assert "PIL" in loaded_by("rclip_metric, PIL", tmp_path)
    assert "rclip_metric.train" in loaded_by("rclip_metric.train", tmp_path)


@pytest.mark.parametrize("name", rclip_metric.__all__)
def test_every_public_name_is_there_and_documented(name):
    value = getattr(rclip_metric, name)
    assert isinstance(value, str) or value.__doc__
