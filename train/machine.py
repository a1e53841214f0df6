"""What a run's record says of the machine that it ran on."""

from __future__ import annotations

import platform
import re
from importlib.metadata import version
from pathlib import Path

import torch


def versions() -> dict[str, str]:
    """The versions that a trained encoder depends on."""
    names = ("rclip-metric", "torch", "torchvision", "timm")
    return {"python": platform.python_version(), **{name: version(name) for name in names}}


def device_name(device: torch.device) -> str:
    """The name of the GPU, or "cpu"."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)


def device_record(device: torch.device) -> dict[str, str]:
    """The kind of a device and its name, of a CPU the processor's."""
    if device.type == "cuda":
        return {"type": "cuda", "name": torch.cuda.get_device_name(device)}
    name, table = platform.processor() or platform.machine(), Path("/proc/cpuinfo")
    if device.type == "cpu" and table.exists():
        stated = re.search(r"^model name\s*:\s*(.+)$", table.read_text(), re.MULTILINE)
        name = stated[1].strip() if stated else name
    return {"type": device.type, "name": name}
