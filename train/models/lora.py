"""LoRA (Hu et al. 2022): a frozen linear map and a trained update of low rank beside it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rclip_metric.encoder import Encoder

# What a tower's maps are called: the attention's q, k, v in every ViT; the MLPs' two maps where there is no attention
# (ConvNeXt). A ViT has fc1 and fc2 as well, so the order counts.
TARGETS = (("qkv",), ("fc1", "fc2"))


@dataclass(frozen=True)
class Adapted:
    """What `add_lora` did: the number of maps that got an update, and of parameters that are now trained."""

    layers: int
    parameters: int


class LoRALinear(nn.Module):
    """y = W x + b + (alpha / rank) B A dropout(x), with W and b frozen.

    B starts at zero, so that the module starts as the linear map it replaces. A is drawn as `nn.Linear` draws its
    weights, uniform on +-1 / sqrt(inputs).

    Attributes:
        linear: the map that was there.
        lora_a: A, (rank, inputs).
        lora_b: B, (outputs, rank).
        scale: alpha / rank.
        dropout: acts in training mode only.

    Example:
        >>> linear = nn.Linear(6, 4)
        >>> x = torch.ones(2, 6)
        >>> expected = linear(x)
        >>> torch.equal(LoRALinear(linear, rank=2, alpha=0.5, dropout=0.0)(x), expected)  # B starts at zero
        True
    """

    def __init__(
        self, linear: nn.Linear, rank: int, alpha: float, dropout: float, generator: torch.Generator | None = None
    ) -> None:
        """Wrap `linear` and freeze it, in its mode; A is drawn from a CPU `generator`."""
        super().__init__()
        self.linear = linear.requires_grad_(False)
        self.scale = alpha / rank
        self.dropout = nn.Dropout(dropout)
        weight = linear.weight
        drawn = nn.init.kaiming_uniform_(torch.empty(rank, linear.in_features), a=math.sqrt(5), generator=generator)
        self.lora_a = nn.Parameter(drawn.to(weight))
        self.lora_b = nn.Parameter(weight.new_zeros(linear.out_features, rank))
        self.train(linear.training)

    def forward(self, inputs: Tensor) -> Tensor:
        """Map (..., inputs) to (..., outputs)."""
        low = F.linear(self.dropout(inputs), self.lora_a)  # (..., rank)
        return self.linear(inputs) + self.scale * F.linear(low, self.lora_b)

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        """Fold the update in: a plain map with the weights W + scale B A, added in float32.

        This module is of no use afterwards.
        """
        update = self.scale * (self.lora_b.float() @ self.lora_a.float())  # (outputs, inputs)
        weight = self.linear.weight
        self.linear.weight = nn.Parameter((weight.float() + update).to(weight.dtype), requires_grad=False)
        return self.linear


def add_lora(
    encoder: Encoder,
    rank: int = 16,
    alpha: float = 0.5,
    dropout: float = 0.3,
    seed: int = 0,
    targets: Sequence[str] | None = None,
) -> Adapted:
    """Put an update beside every target of the encoder's tower, in place, and freeze everything else.

    Args:
        encoder: of any tower; an MLP head is frozen, not adapted.
        rank: r; the defaults are those of the published adapters.
        alpha: the update is scaled by alpha / rank.
        dropout: probability that an input of the update is zeroed in training mode.
        seed: of A's first values.
        targets: last parts of the names of linear maps in the tower; None for the first group of `TARGETS` that the
            tower has: qkv in a ViT, fc1 and fc2 in a ConvNeXt.

    Raises:
        ValueError: for a tower without such a map, one that is adapted already, or settings out of their range.

    Example:
        >>> from rclip_metric.train.models import load_base
        >>> encoder = load_base("tiny-clean@random")
        >>> added = add_lora(encoder, rank=2)
        >>> added.parameters == sum(part.numel() for part in encoder.parameters() if part.requires_grad)
        True
    """
    if type(rank) is not int or rank < 1 or not alpha > 0 or not 0 <= dropout < 1:
        raise ValueError(
            f"LoRA takes a rank from 1, an alpha above 0 and a dropout in [0, 1), got {rank!r}, {alpha!r}, {dropout!r}"
        )
    if _adapters(encoder):
        raise ValueError(f"{encoder.name} has LoRA updates already: merge them first")
    groups = TARGETS if targets is None else (tuple(targets),)
    found: dict[str, nn.Linear] = {}
    for group in groups:
        found = found or _linears(encoder.tower, group)
    if not found:
        wanted = " or ".join(", ".join(group) for group in groups)
        raise ValueError(
            f"the tower of {encoder.name} has no nn.Linear named {wanted}: name some of its linear maps as targets"
        )
    encoder.requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    for name, linear in found.items():
        _replace(encoder.tower, name, LoRALinear(linear, rank, alpha, dropout, generator))
    trained = sum(parameter.numel() for parameter in encoder.parameters() if parameter.requires_grad)
    return Adapted(len(found), trained)


def merge_lora(encoder: Encoder) -> Encoder:
    """Fold every update into the weights beside it, in place: a plain encoder with the outputs of eval mode.

    Raises:
        ValueError: if there is nothing to merge.

    Example:
        >>> from rclip_metric.train.models import load_base
        >>> encoder = load_base("tiny-clean@random")
        >>> names = list(encoder.state_dict())
        >>> _ = add_lora(encoder, rank=2)
        >>> list(merge_lora(encoder).state_dict()) == names
        True
    """
    adapters = _adapters(encoder)
    if not adapters:
        raise ValueError(f"{encoder.name} has no LoRA updates to merge")
    for name, adapter in adapters.items():
        _replace(encoder, name, adapter.merged())
    return encoder


def train_dropout(encoder: Encoder) -> None:
    """Set the updates' dropout to training mode and everything else to eval mode.

    Example:
        >>> from rclip_metric.train.models import load_base
        >>> encoder = load_base("tiny-clean@random")
        >>> _ = add_lora(encoder, rank=2)
        >>> train_dropout(encoder)
        >>> sorted({type(part).__name__ for part in encoder.modules() if part.training})
        ['Dropout', 'Linear', 'LoRALinear']
    """
    encoder.eval()
    for adapter in _adapters(encoder).values():
        adapter.train()


def _adapters(encoder: Encoder) -> dict[str, LoRALinear]:
    return {name: module for name, module in encoder.named_modules() if isinstance(module, LoRALinear)}


def _linears(tower: nn.Module, names: Sequence[str]) -> dict[str, nn.Linear]:
    """Find the linear maps of a tower whose qualified names end in one of `names`, part by part."""
    ends = tuple(f".{name}" for name in names)
    return {
        name: module
        for name, module in tower.named_modules()
        if isinstance(module, nn.Linear) and f".{name}".endswith(ends)
    }


def _replace(root: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(root.get_submodule(parent), child, module)
