"""Random numbers that depend on what they are for, and on nothing that happened before."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator

import torch


def mixed_seed(*numbers: int) -> int:
    """Make a seed that depends on all of `numbers`, and on their order.

    Example:
        >>> mixed_seed(0, 1) == mixed_seed(0, 1), mixed_seed(0, 1) == mixed_seed(1, 0)
        (True, False)
    """
    # Distinct odd multipliers keep (1, 2) and (2, 1) apart; the modulus is what manual_seed accepts.
    mixed = 0x9E3779B97F4A7C15
    for number in numbers:
        mixed = ((mixed ^ (number + 1)) * 0xBF58476D1CE4E5B9) % 2**63
    return mixed


def seeded(*numbers: int) -> torch.Generator:
    """Make a CPU generator whose stream depends on all of `numbers`.

    Example:
        >>> torch.equal(torch.rand(4, generator=seeded(0, 1)), torch.rand(4, generator=seeded(0, 1)))
        True
    """
    return torch.Generator().manual_seed(mixed_seed(*numbers))


def sample_seed(seed: int, key: str) -> int:
    """Make the seed of one sample in a run from the run's seed and the sample's own name alone.

    Example:
        >>> sample_seed(0, "nights/000001") == sample_seed(1, "nights/000001")
        False
    """
    return int.from_bytes(hashlib.sha256(f"{seed}/{key}".encode()).digest()[:7], "big")


@contextlib.contextmanager
def temporary_seed(seed: int, device: torch.device | None = None) -> Iterator[None]:
    """Seed torch's own generators, of the CPU and, if it is one, of a CUDA device; afterwards they are as before.

    Example:
        >>> drawn = []
        >>> for _ in range(2):
        ...     with temporary_seed(3):
        ...         drawn.append(torch.rand(4))
        >>> torch.equal(*drawn)
        True
    """
    cuda = [device] if device is not None and device.type == "cuda" else []
    with torch.random.fork_rng(devices=cuda):
        torch.default_generator.manual_seed(seed)
        for one in cuda:
            with torch.cuda.device(one):
                torch.cuda.manual_seed(seed)
        yield
