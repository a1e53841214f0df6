"""Objectives as per-sample losses: functions of embeddings that return (N,)."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def fare(embedding: torch.Tensor, original: torch.Tensor) -> torch.Tensor:
    """FARE's loss, || phi(z) - phi_orig(x) ||_2^2 on unnormalised embeddings (N, D): summed over D (paper, eq. 2)."""
    return (embedding - original).square().sum(1)


def two_afc_cross_entropy(similarities: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of the logits [sim(ref, left), sim(ref, right)], (N, 2), against the human label (N,) in {0, 1}.

    No temperature (paper, eq. 4 and 5).
    """
    return F.cross_entropy(similarities, label, reduction="none")


def two_afc_margin(similarities: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
    """Similarity of the image that people chose, minus the other's: (N,), positive where metric and people agree."""
    chosen = similarities.gather(1, label[:, None])[:, 0]
    other = similarities.gather(1, 1 - label[:, None])[:, 0]
    return chosen - other
