"""A tower that somebody else built: a module, taken as it is."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class ModuleTower(nn.Module):
    """A module of somebody else's that embeds normalised pixels (N, 3, S, S) as (N, D).

    Example:
        >>> ModuleTower(nn.Flatten(), image_size=2, label="pixels").embedding_dim
        12
    """

    def __init__(self, module: nn.Module, image_size: int, label: str) -> None:
        """Run the module once, on a gray image, for the size of its embeddings."""
        super().__init__()
        self.module = module
        self.label = label
        weight = next(module.parameters(), torch.zeros(0))
        pixels = torch.zeros(1, 3, image_size, image_size, dtype=weight.dtype, device=weight.device)
        with torch.no_grad():
            shape = tuple(self(pixels).shape)
        if len(shape) != 2 or shape[0] != 1:
            raise ValueError(f"{label} gives {shape} for an image of {image_size} pixels, expected an embedding (1, D)")
        self.embedding_dim = shape[1]

    def forward(self, pixels: Tensor) -> Tensor:
        """Embed normalised pixels."""
        embedding = self.module(pixels)
        if isinstance(embedding, tuple):  # CoCa's tower also gives the tokens that its captions are made from
            embedding = embedding[0]
        if not isinstance(embedding, Tensor):
            raise ValueError(f"{self.label} gives {type(embedding).__name__}, expected a tensor (N, D)")
        return embedding

    @property
    def checkpointing(self) -> bool:
        """Never: how is not known."""
        return False

    @checkpointing.setter
    def checkpointing(self, enable: bool) -> None:
        if enable:
            raise ValueError(f"{self.label} cannot compute activations again: leave checkpointing off.")
