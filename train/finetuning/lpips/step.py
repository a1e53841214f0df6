"""One step of a tuning of LPIPS: the distances under dropout, the ranking loss, the attack, and weights from 0 on."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from rclip_metric.train.attacks.apgd import apgd
from rclip_metric.train.attacks.pgd import pgd
from rclip_metric.train.attacks.threat import LpBall
from rclip_metric.train.finetuning.lpips.config import LpipsConfig
from rclip_metric.train.metrics.lpips import Lpips
from rclip_metric.train.runs.seeds import temporary_seed

_ADDED = 0.1  # to the divisors of the two ratios
_SLOPE = 0.2  # of LeakyReLU below 0


class RankingNetwork(nn.Module):
    """LPIPS's small network G: two distances to the logit of the share of people who prefer the right image.

    Its inputs are d0, d1, d0 - d1, d0 / (d1 + 0.1) and d1 / (d0 + 0.1).

    Example:
        >>> network = RankingNetwork(hidden=8, seed=0)
        >>> network(torch.tensor([0.1, 0.4]), torch.tensor([0.2, 0.1])).shape
        torch.Size([2])
    """

    def __init__(self, hidden: int = 32, seed: int = 0) -> None:
        """Draw the weights as torch draws those of linear layers, from a seed of their own."""
        super().__init__()
        with temporary_seed(seed):
            self.layers = nn.Sequential(
                nn.Linear(5, hidden),
                nn.LeakyReLU(_SLOPE),
                nn.Linear(hidden, hidden),
                nn.LeakyReLU(_SLOPE),
                nn.Linear(hidden, 1),
            )

    def forward(self, d0: Tensor, d1: Tensor) -> Tensor:
        """Compute logits (N,) of distances (N,) to the left and to the right image."""
        inputs = torch.stack([d0, d1, d0 - d1, d0 / (d1 + _ADDED), d1 / (d0 + _ADDED)], 1)
        logits: Tensor = self.layers(inputs)
        return logits[:, 0]


def ranking_loss(network: RankingNetwork, d0: Tensor, d1: Tensor, share: Tensor) -> Tensor:
    """Compute the binary cross-entropy of triplets, (N,), between G(d0, d1) and the judged share.

    Args:
        network: G.
        d0: distances of the reference to the left image, (N,).
        d1: distances of the reference to the right image, (N,).
        share: of the people who prefer the right image, (N,) in [0, 1].

    Example:
        >>> network = RankingNetwork(hidden=8)
        >>> _ = [parameter.detach().zero_() for parameter in network.parameters()]  # G is 1/2 whatever it sees
        >>> ranking_loss(network, torch.tensor([0.1]), torch.tensor([0.2]), torch.tensor([1.0]))
        tensor([0.6931], grad_fn=<BinaryCrossEntropyWithLogitsBackward0>)
    """
    return functional.binary_cross_entropy_with_logits(network(d0, d1), share, reduction="none")


def draw_heads(network: Lpips, seed: int) -> dict[str, Tensor]:
    """Draw the first weights w as torch draws those of a convolution, uniform on +-1 / sqrt(C); those below 0 are 0."""
    generator, drawn = torch.Generator().manual_seed(seed), {}
    for key, tensor in network.state_dict().items():
        if key.startswith("lin"):
            bound = tensor.shape[1] ** -0.5
            drawn[key] = (torch.rand(tensor.shape, generator=generator) * 2 - 1).mul_(bound).clamp_(min=0)
    return drawn


def clamp_heads(network: Lpips) -> None:
    """Set the weights w below 0 to 0."""
    with torch.no_grad():
        for layer in range(len(network.trunk.channels)):
            network.linear(layer).clamp_(min=0)


def head_distance(network: Lpips, one: Iterable[Tensor], other: Iterable[Tensor], dropout: float = 0.0) -> Tensor:
    """Compute LPIPS (N,) from features y_l, with a gradient to the weights w that is finite at 0.

    Args:
        network: has w.
        one: `Lpips.directions` of N images.
        other: those of N others.
        dropout: probability that a squared difference of one channel at one place is zeroed; the others grow.

    Example:
        >>> from rclip_metric.train.metrics.lpips import random_trunk
        >>> network = Lpips("squeeze")
        >>> network = network.load(random_trunk(network) | draw_heads(network, seed=0))
        >>> black, white = torch.zeros(1, 3, 32, 32), torch.ones(1, 3, 32, 32)
        >>> distance = head_distance(network, network.directions(black), network.directions(white))
        >>> distance.allclose((network(black) - network(white)).square().sum(1))
        True
    """
    parts = []
    for layer, (a, b) in enumerate(zip(one, other, strict=True)):
        squared = functional.dropout((a - b).square(), dropout)
        parts.append(functional.conv2d(squared, network.linear(layer)).mean((1, 2, 3)))
    return torch.stack(parts).sum(0)


def attacked_references(
    network: Lpips, rank: RankingNetwork, triplets: Tensor, share: Tensor, ball: LpBall, config: LpipsConfig
) -> Tensor:
    """Move the references within the ball so that the ranking loss rises, as it stands and without dropout.

    Args:
        network: LPIPS.
        rank: G.
        triplets: reference, left and right (N, 3, 3, S, S) in [0, 1].
        share: of the people who prefer the right image, (N,).
        ball: what the references may not leave, nor the box.
        config: which attack.

    Returns:
        (N, 3, S, S), detached.
    """
    with torch.no_grad():
        left, right = network(triplets[:, 1]), network(triplets[:, 2])  # (N, F)

    def losses(points: Tensor, indices: Tensor | slice = slice(None)) -> Tensor:
        embedding = network(points)
        d0, d1 = ((embedding - fixed[indices]).square().sum(1) for fixed in (left, right))
        return ranking_loss(rank, d0, d1, share[indices])

    reference = triplets[:, 0]
    if config.attack == "apgd":
        return apgd(losses, reference, ball, config.attack_steps).images
    still = torch.zeros_like(reference)
    return pgd(losses, reference, ball, config.attack_steps, config.step_length, noise=still, momentum=0.0)


@dataclass(frozen=True)
class StepResult:
    """What a step found before it moved the weights: the mean loss, and the mean share of people it agrees with."""

    loss: float
    agreement: float


def update(
    network: Lpips,
    rank: RankingNetwork,
    triplets: Tensor,
    share: Tensor,
    optimizer: torch.optim.Optimizer,
    config: LpipsConfig,
) -> StepResult:
    """Take one step on a batch; where the loss is not finite the optimiser has not stepped.

    Args:
        network: LPIPS; what has a gradient is trained.
        rank: G.
        triplets: reference, left and right (N, 3, 3, S, S) in [0, 1].
        share: of the people who prefer the right image, (N,).
        optimizer: over what is trained.
        config: the recipe.
    """
    if config.ball is not None:
        moved = attacked_references(network, rank, triplets, share, config.ball, config)
        triplets = torch.cat([moved[:, None], triplets[:, 1:]], 1)
    with torch.set_grad_enabled(config.train_trunk):
        layers = [layer.unflatten(0, (-1, 3)) for layer in network.directions(triplets.flatten(0, 1))]
    reference, left, right = ([layer[:, place] for layer in layers] for place in range(3))
    optimizer.zero_grad(set_to_none=True)
    d0 = head_distance(network, reference, left, config.dropout)
    d1 = head_distance(network, reference, right, config.dropout)
    loss = ranking_loss(rank, d0, d1, share).mean()
    prefers_right = (d1 < d0).float()
    agreement = (prefers_right * share + (1 - prefers_right) * (1 - share)).mean()
    value = loss.item()
    if math.isfinite(value):
        loss.backward()
        optimizer.step()
        clamp_heads(network)
    return StepResult(value, agreement.item())


def trained_parameters(network: Lpips, rank: RankingNetwork, train_trunk: bool) -> Mapping[str, nn.Parameter]:
    """Name what is trained, and give it a gradient: the heads, the ranking network, and the trunk if it is to be."""
    network.net.requires_grad_(train_trunk)
    for layer in range(len(network.trunk.channels)):
        network.linear(layer).requires_grad_(True)
    named = {f"network.{name}": parameter for name, parameter in network.named_parameters()}
    named |= {f"rank.{name}": parameter for name, parameter in rank.named_parameters()}
    return {name: parameter for name, parameter in named.items() if parameter.requires_grad}
