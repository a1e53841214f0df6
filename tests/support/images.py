"""Images that are drawn where a test needs them."""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor


def noise(*shape: int, seed: int = 0) -> Tensor:
    """White noise in [0, 1]."""
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def blotches(count: int, size: int | tuple[int, int], seed: int = 0, grain: float = 0.0, cells: int = 4) -> Tensor:
    """Smooth colours and a share of white noise, (count, 3, *size) in [0, 1]."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, cells, cells, generator=generator)
    smooth = F.interpolate(coarse, size, mode="bilinear")
    return (1 - grain) * smooth + grain * torch.rand(smooth.shape, generator=generator)


def save_noise(path: Path, seed: int, size: tuple[int, int] = (40, 50)) -> Path:
    """Write white noise of (height, width) `size`, in folders that are made where they are missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path
