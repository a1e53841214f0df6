"""LORE's multipliers: a small network that learns how strictly every image's clean embedding must be kept."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rclip_metric.train.data.images import seeded


class DualNetwork(nn.Module):
    """lambda(x) = softplus(fc2(relu(fc1(phi_orig(x))))): embeddings (N, D) -> multipliers (N,) >= 0.

    Two layers on the original's embedding, as in LORE (Khodabandeh et al. 2025, section 5). The embedding is scaled to
    unit length times sqrt(D) first, so that one learning rate serves encoders whose embeddings differ in length.
    """

    def __init__(self, dim: int, hidden: int = 128, seed: int = 0) -> None:
        """Draw the weights from ``seed``; the multipliers start at about softplus(0) = 0.69."""
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(dim, hidden), nn.Linear(hidden, 1)
        generator = seeded(seed, 3)
        with torch.no_grad():
            for layer in (self.fc1, self.fc2):
                bound = layer.in_features**-0.5
                layer.weight.uniform_(-bound, bound, generator=generator)
                layer.bias.zero_()

    def forward(self, original: Tensor) -> Tensor:
        """Map phi_orig(x), (N, D), to lambda(x), (N,)."""
        scaled = F.normalize(original, dim=1) * original.shape[1] ** 0.5
        return F.softplus(self.fc2(F.relu(self.fc1(scaled)))[:, 0])
