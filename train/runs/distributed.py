"""The processes of a run that torchrun started, what passes between them, and the device of each."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from rclip_metric.errors import first_line


@dataclass(frozen=True)
class Team:
    """This process among those that torchrun started, and its device; one of one without torchrun.

    Example:
        >>> team = Team()
        >>> team.rank, team.count, team.sum(torch.tensor([2.0])), team.gather("mine")
        (0, 1, tensor([2.]), ['mine'])
    """

    rank: int = 0
    count: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """Sum up a small tensor over all processes, in every process."""
        if self.count > 1:
            dist.all_reduce(values)
        return values

    def first(self, value: Any) -> Any:
        """Hand what the first process holds to every process."""
        if self.count == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def gather(self, value: Any) -> list[Any]:
        """Gather the value of every process, in every process."""
        if self.count == 1:
            return [value]
        values: list[Any] = [None] * self.count
        dist.all_gather_object(values, value)
        return values

    def wait(self) -> None:
        """Wait for all processes."""
        if self.count > 1:
            dist.barrier()

    def leave(self) -> None:
        """End the group."""
        if self.count > 1 and dist.is_initialized():
            dist.destroy_process_group()


ALONE = Team()


def chosen_device(name: str) -> torch.device:
    """Find the device that `--device` means in this process.

    Args:
        name: "auto" (a GPU where there is one), "cpu", "cuda" (under torchrun the GPU of the local rank), "cuda:N" or
            another device of torch.

    Raises:
        ValueError: if the device is not there.

    Example:
        >>> chosen_device("cpu")
        device(type='cpu')
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and "LOCAL_RANK" in os.environ:
        name = f"cuda:{os.environ['LOCAL_RANK']}"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"there is no device {name!r}: pass auto, cpu or cuda") from None
    if device.type == "cpu" and device.index:
        raise ValueError(f"there is no device {name!r}: a CPU has no number")
    if device.type not in ("cpu", "cuda"):
        _try_out(device)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(
            f"device {name!r} was asked for and this machine has {torch.cuda.device_count()} GPUs: "
            "pass --device cpu, or start no more processes per machine than it has GPUs"
        )
    return device


def _try_out(device: torch.device) -> None:
    """Bring a number to a device and back; torch knows the names of many devices that it was not built for."""
    try:
        torch.zeros(1).to(device).cpu()
    except (RuntimeError, AssertionError, ImportError, AttributeError) as error:
        raise ValueError(f"device '{device}' is not there ({first_line(error)}): pass auto, cpu or cuda") from None


def join(device: str = "auto", *, tensors: bool = False) -> Team:
    """Join the others when started by torchrun.

    Args:
        device: of this process, as for `chosen_device`.
        tensors: whether tensors on the devices travel, between GPUs over NCCL. Else it is small Python objects, over
            gloo on any mixture of devices, and a process waits for the slowest for as long as it takes.

    Raises:
        ValueError: if the device is not there.

    Example:
        >>> join("cpu")
        Team(rank=0, count=1, device=device(type='cpu'))
    """
    chosen = chosen_device(device)
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return Team(device=chosen)
    if not dist.is_initialized():
        backend = "cpu:gloo,cuda:nccl" if tensors and chosen.type == "cuda" else "gloo"
        # In a training the others wait while the first process validates: two hours are more than that takes.
        dist.init_process_group(backend, timeout=timedelta(hours=2) if tensors else timedelta(days=30))
    return Team(dist.get_rank(), dist.get_world_size(), chosen)
