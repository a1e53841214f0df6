"""The processes that train together under torchrun, and the device of each."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from rclip_metric.train.evaluation.blocks import own_device


@dataclass(frozen=True)
class Team:
    """This process among those that torchrun started; one of one without torchrun."""

    rank: int = 0
    count: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """The sum over all processes of a small tensor, in every process."""
        if self.count > 1:
            dist.all_reduce(values)
        return values

    def first(self, value: Any) -> Any:
        """What the first process holds, in every process."""
        if self.count == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def wait(self) -> None:
        """Wait for all processes."""
        if self.count > 1:
            dist.barrier()

    def leave(self) -> None:
        """End the group."""
        if self.count > 1 and dist.is_initialized():
            dist.destroy_process_group()


ALONE = Team()


def join(device: str = "auto") -> Team:
    """Join the others when started by torchrun: NCCL between GPUs, gloo between CPUs.

    Args:
        device: "auto" (a GPU where there is one), "cpu", "cuda" (under torchrun the GPU of the local rank) or "cuda:N".

    Raises:
        ValueError: if the device is not there.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        chosen = torch.device(own_device(device))
    except RuntimeError:
        raise ValueError(f"there is no device {device!r}: pass auto, cpu or cuda") from None
    if chosen.type == "cuda":
        if (chosen.index or 0) >= torch.cuda.device_count():
            raise ValueError(
                f"device {str(chosen)!r} was asked for and this machine has {torch.cuda.device_count()} GPUs: "
                "pass --device cpu, or start no more processes per machine than it has GPUs"
            )
        torch.cuda.set_device(chosen)
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return Team(device=chosen)
    if not dist.is_initialized():
        backend = "cpu:gloo,cuda:nccl" if chosen.type == "cuda" else "gloo"
        # The others wait while the first process validates: two hours are more than that takes.
        dist.init_process_group(backend, timeout=timedelta(hours=2))
    return Team(dist.get_rank(), dist.get_world_size(), chosen)
