"""Random numbers that depend on what they are for, and on nothing that happened before."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator

import torch


def mixed_seed(*numbers: int) -> int:
    """A seed that depends on all of ``numbers``, and on their order."""
    # Distinct odd multipliers keep (1, 2) and (2, 1) apart; the modulus is what manual_seed accepts.
    mixed = 0x9E3779B97F4A7C15
    for number in numbers:
        mixed = ((mixed ^ (number + 1)) * 0xBF58476D1CE4E5B9) % 2**63
    return mixed


def seeded(*numbers: int) -> torch.Generator:
    """A CPU generator whose stream depends on all of ``numbers``."""
    return torch.Generator().manual_seed(mixed_seed(*numbers))


def sample_seed(seed: int, key: str) -> int:
    """The seed of one sample in a run: a function of the run's seed and the sample's own name alone."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{key}".encode()).digest()[:7], "big")


@contextlib.contextmanager
def temporary_seed(seed: int, device: torch.device | None = None) -> Iterator[None]:
    """Seed torch's own generators, of the CPU and, if it is one, of a CUDA device; afterwards they are as before."""
    cuda = [device] if device is not None and device.type == "cuda" else []
    with torch.random.fork_rng(devices=cuda):
        torch.default_generator.manual_seed(seed)
        for one in cuda:
            with torch.cuda.device(one):
                torch.cuda.manual_seed(seed)
        yield
