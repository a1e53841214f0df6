"""What a record says of the machine that it was made on."""

from __future__ import annotations

import os
import platform
import re
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch


def versions() -> dict[str, str]:
    """State the versions that a trained encoder depends on.

    Example:
        >>> list(versions())
        ['python', 'rclip-metric', 'torch', 'torchvision', 'timm']
    """
    names = ("rclip-metric", "torch", "torchvision", "timm")
    return {"python": platform.python_version(), **{name: version(name) for name in names}}


def device_name(device: torch.device) -> str:
    """Name the GPU, or "cpu".

    Example:
        >>> device_name(torch.device("cpu"))
        'cpu'
    """
    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)


def device_record(device: torch.device) -> dict[str, Any]:
    """State the kind of a device: its type and name, and of a processor what decides how it rounds.

    Returns:
        JSON: `type`, `name` (of a CPU the processor's model, where the system states it), and for a CPU also
        `capability` (the instructions of torch's own kernels, e.g. "AVX2" or "AVX512"), `bfloat16` (its
        instructions that multiply bfloat16: "amx_bf16", "avx512_bf16", or none) and `onednn` ("on", "off", or the
        instructions that the environment confines it to). Records from before these were stated have the first two.

    Example:
        >>> list(device_record(torch.device("cpu")))
        ['type', 'name', 'capability', 'bfloat16', 'onednn']
    """
    if device.type == "cuda":
        return {"type": "cuda", "name": torch.cuda.get_device_name(device)}
    name = platform.processor() or platform.machine()
    if device.type != "cpu":
        return {"type": device.type, "name": name}
    stated = re.search(r"^model name\s*:\s*(.+)$", _processor_table(), re.MULTILINE)
    confined = os.environ.get("ONEDNN_MAX_CPU_ISA") or os.environ.get("DNNL_MAX_CPU_ISA")
    # The flag is what torch asks before it calls oneDNN.
    used = torch.backends.mkldnn.is_available() and torch.backends.mkldnn.enabled
    return {
        "type": "cpu",
        "name": stated[1].strip() if stated else name,
        "capability": torch.backends.cpu.get_cpu_capability(),
        "bfloat16": bfloat16_instructions(),
        "onednn": (confined or "on") if used else "off",
    }


def bfloat16_instructions() -> list[str]:
    """List the instructions of this processor that multiply bfloat16; none where the system does not state them.

    Example:
        >>> set(bfloat16_instructions()) <= {"amx_bf16", "avx512_bf16"}
        True
    """
    return sorted({"amx_bf16", "avx512_bf16"} & set(_processor_table().split()))


def _processor_table() -> str:
    """Read what Linux says of the processors; empty elsewhere."""
    table = Path("/proc/cpuinfo")
    return table.read_text() if table.exists() else ""
