"""What a step of a student's training holds in memory, and what there is."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import torch

from rclip_metric.train.metrics.lipsim.architecture import LipSimArchitecture

_FLOAT = 4  # bytes
_WORKING = 4  # activations of a layer that are there at once in its backward pass, besides those that are kept
# The raw weights, their gradients, Adam's two averages; the folded ones as they are stacked and the gradients of both
# halves of the loss.
_COPIES = 9
_TOGETHER = {"cpu": 2**28}  # bytes of the images of one pass: more are no faster on a CPU
_ELSEWHERE = 2**33
_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
_USED = ("/sys/fs/cgroup/memory.current", "/sys/fs/cgroup/memory/memory.usage_in_bytes")


def image_bytes(architecture: LipSimArchitecture) -> int:
    """Count what one image takes in a step: the input and the open ReLUs of every layer, and work in progress.

    Example:
        >>> image_bytes(LipSimArchitecture()) // 10**6
        237
    """
    places = architecture.side**2
    convolutions = places * (
        architecture.depth * (architecture.channels + architecture.inner) + _WORKING * architecture.channels
    )
    linears = architecture.linear_depth * (architecture.features + architecture.linear_inner)
    return _FLOAT * (convolutions + linears)


def weight_bytes(architecture: LipSimArchitecture) -> int:
    """Count what the weights take in a step, in all the forms that they are there in.

    Example:
        >>> weight_bytes(LipSimArchitecture()) // 10**6
        2277
    """
    convolutions = architecture.depth * architecture.inner * architecture.channels * 9
    linears = architecture.linear_depth * architecture.linear_inner * architecture.features
    return _FLOAT * _COPIES * (convolutions + linears)


def together(architecture: LipSimArchitecture, device: torch.device) -> int:
    """Choose how many images go through a student in one pass: by its sizes and the kind of device alone.

    Example:
        >>> together(LipSimArchitecture(), torch.device("cpu"))
        1
    """
    return max(1, _TOGETHER.get(device.type, _ELSEWHERE) // image_bytes(architecture))


def free_bytes(device: torch.device) -> int | None:
    """Find how much memory a device, or the container that this process is confined to, has left; None if it says not.

    Example:
        >>> free = free_bytes(torch.device("cpu"))
        >>> free is None or free > 0
        True
    """
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    if device.type != "cpu":
        return None
    found = []
    with suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/meminfo").read_text().splitlines()
        found.append(1024 * int(next(line for line in lines if line.startswith("MemAvailable:")).split()[1]))
    for limit, used in zip(_LIMITS, _USED, strict=True):
        with suppress(OSError, ValueError):  # "max" is no number
            found.append(int(Path(limit).read_text()) - int(Path(used).read_text()))
    return max(0, min(found)) if found else None


def check_memory(architecture: LipSimArchitecture, images: int, device: torch.device) -> None:
    """Refuse a student that cannot be trained here, before anything is allocated.

    Args:
        architecture: the sizes.
        images: that go through it in one pass.
        device: where.

    Raises:
        ValueError: if weights and that many images take more memory than is free.

    Example:
        >>> deep = LipSimArchitecture(depth=10**9)
        >>> check_memory(deep, 1, torch.device("cpu"))
        Traceback (most recent call last):
        ValueError: a step of this student takes ... GB (weights ..., images of a pass 1 x ...) and ... are free: lower
        ...
    """
    free, weights, image = free_bytes(device), weight_bytes(architecture), image_bytes(architecture)
    needed = weights + images * image
    if free is None or needed <= free:
        return
    advice = "chunk_size" if weights + image <= free else "depth, channels, linear_inner, linear_depth or image_size"
    raise ValueError(
        f"a step of this student takes {needed / 1e9:.2f} GB (weights {weights / 1e9:.2f}, images of a pass {images} x "
        f"{image / 1e9:.2f}) and {free / 1e9:.2f} are free: lower {advice}, or train on a device with more memory"
    )
