"""LORE: FARE under a bound on how far clean embeddings move, kept by multipliers that a small network learns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rclip_metric.train.attacks.losses import excess, lore
from rclip_metric.train.finetuning.adversarial.objectives import Embeddings, Fare, Objective, needed
from rclip_metric.train.runs.distributed import Team
from rclip_metric.train.runs.seeds import seeded

if TYPE_CHECKING:
    from rclip_metric.train.finetuning.adversarial.config import FinetuneConfig


class DualNetwork(nn.Module):
    """lambda(x) = softplus(fc2(relu(fc1(phi_orig(x))))): embeddings (N, D) -> multipliers (N,) >= 0.

    Two layers on the original's embedding, as in LORE (Khodabandeh et al. 2025, section 5). The embedding is scaled to
    unit length times sqrt(D) first, so that one learning rate serves encoders whose embeddings differ in length.

    Example:
        >>> DualNetwork(16)(torch.zeros(2, 16)).detach()  # softplus(0)
        tensor([0.6931, 0.6931])
    """

    def __init__(self, dim: int, hidden: int = 128, seed: int = 0) -> None:
        """Draw the weights from `seed`; the multipliers start at about softplus(0) = 0.69."""
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


class Lore(Fare):
    """LORE: FARE under a bound on how far clean embeddings move, kept by multipliers that a network learns.

    The constraint is divided by ||phi_orig(x)||^2, so that one learning rate serves all encoders.

    Example:
        >>> objective = Lore(DualNetwork(4), rho=0.0, learning_rate=1e-3, every=1, images=2, team=Team())
        >>> kept = torch.ones(2, 4)  # clean embeddings that have not moved cost nothing
        >>> objective.outer(Embeddings(original=kept, clean=kept, adversarial=torch.zeros(2, 4)))
        tensor([4., 4.])
    """

    title = "LORE"
    needs_clean = True

    def __init__(self, network: DualNetwork, rho: float, learning_rate: float, every: int, images: int, team: Team):
        """Take the multipliers' network, the bound, and Adam's settings: a step per `every` steps of the encoder.

        Args:
            network: phi_orig(x) -> lambda(x).
            rho: share of ||phi_orig(x)||^2 by which the clean embedding may move, squared.
            learning_rate: of Adam.
            every: steps of the encoder per step of the network.
            images: per step of the encoder, over all processes.
            team: the processes that share the batch.
        """
        self.network, self.rho, self.every, self.images, self.team = network, rho, every, images, team
        self.optimizer = torch.optim.Adam(network.parameters(), learning_rate)

    @classmethod
    def check(cls, config: FinetuneConfig) -> None:
        """Refuse a clean weight: the constraint does what it is for."""
        if config.clean_weight:
            raise ValueError("lore keeps the clean embeddings by its constraint: leave clean_weight at 0 and set rho")

    @classmethod
    def build(cls, config: FinetuneConfig, dim: int, classes: Tensor | None, team: Team) -> Objective:
        """Build it with a network drawn from the run's seed."""
        network = DualNetwork(dim, seed=config.seed).to(team.device)
        return cls(network, config.rho, config.dual_learning_rate, config.dual_every, config.batch_size, team)

    def outer(self, seen: Embeddings) -> Tensor:
        """Compute the Lagrangian; on the way the gradient of what the multipliers raise is gathered.

        That is E lambda(x) (d(x) - rho m(x)) / m(x), m(x) = ||phi_orig(x)||^2.
        """
        clean, original = needed(seen.clean), needed(seen.original)
        with torch.no_grad():
            multiplier = self.network(original)
        relative = excess(clean.detach(), original, self.rho) / original.square().sum(1).clamp(min=1e-12)
        with torch.enable_grad():
            (-(self.network(original) * relative).sum()).backward()
        return lore(needed(seen.adversarial), clean, original, multiplier, self.rho)

    def finish(self, number: int) -> None:
        """Move the multipliers, where it is their turn."""
        if (number + 1) % self.every:
            return
        for parameter, gradient in zip(self.network.parameters(), self._gathered(), strict=True):
            parameter.grad = gradient / (self.images * self.every)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def _gathered(self) -> list[Tensor]:
        """Sum up the gradients so far, over all processes."""
        own = [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in self.network.parameters()]
        return [self.team.sum(gradient) for gradient in own]

    def state(self) -> dict[str, Any]:
        """Gather network, optimiser and the gradient since the last step."""
        parts = {"model": self.network.state_dict(), "optimizer": self.optimizer.state_dict()}
        return {"dual": {**parts, "gradient": self._gathered()}}

    def load_state(self, parts: Mapping[str, Any]) -> None:
        """Go on from a state; its gradient is the sum over all processes, and the first one gets it."""
        self.network.load_state_dict(parts["dual"]["model"])
        self.optimizer.load_state_dict(parts["dual"]["optimizer"])
        for parameter, gradient in zip(self.network.parameters(), parts["dual"]["gradient"], strict=True):
            parameter.grad = gradient.to(parameter) * float(self.team.rank == 0)
