"""The losses of adversarial fine-tuning as objects: what the attack raises, what the update lowers, what either needs.

    min over phi of  E_x  outer(phi(z), phi(x)),    z = argmax over ||z - x|| <= eps of  inner(phi(z))

A further one is a subclass of `Objective`, a line in `named.OBJECTIVES` and its name in `config.LOSSES`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from rclip_metric.train.attacks.losses import fare, sim_clip, tecoa

if TYPE_CHECKING:
    from rclip_metric.train.finetuning.adversarial.config import FinetuneConfig
    from rclip_metric.train.runs.distributed import Team

Inner = Callable[[Tensor, Tensor], Tensor]
"""Embeddings (B, D) of attacked images and the images' rows (B,) in their chunk of the batch -> losses (B,)."""


@dataclass(frozen=True)
class Embeddings:
    """The embeddings and labels of a batch, as an objective sees them.

    Attributes:
        original: phi_orig(x), (n, D), if the objective `needs_original`.
        label: y, (n,), if it `needs_labels`.
        clean: phi(x), (n, D), of the encoder under training: without a gradient when the attack begins, with one at
            the update. There if the objective asks for it (`clean_target`, `needs_clean`), or clean_weight is not 0.
        adversarial: phi(z), (n, D), at the update.

    Example:
        >>> seen = Embeddings(original=torch.zeros(2, 3), adversarial=torch.ones(2, 3))
        >>> Fare().loss(seen, clean_weight=0.0)
        tensor([3., 3.])
    """

    original: Tensor | None = None
    label: Tensor | None = None
    clean: Tensor | None = None
    adversarial: Tensor | None = None


class Objective(ABC):
    """One loss: an inner problem per image, a per-sample loss (n,) of the update, and a state if it has one.

    Attributes:
        title: as the literature writes it.
        needs_original: whether it looks at the original's embedding of the clean image.
        needs_labels: whether it looks at classes.
        needs_clean: whether the update looks at the encoder's own embedding of the clean image, whatever clean_weight.
        clean_target: whether the attack does.

    Example:
        >>> class Manhattan(Fare):
        ...     title = "the sum of absolute differences"
        ...     def outer(self, seen):
        ...         return (seen.adversarial - seen.original).abs().sum(1)
        >>> Manhattan().outer(Embeddings(original=torch.zeros(1, 3), adversarial=torch.full((1, 3), -2.0)))
        tensor([6.])
    """

    title: ClassVar[str]
    needs_original: ClassVar[bool] = True
    needs_labels: ClassVar[bool] = False
    needs_clean: ClassVar[bool] = False
    clean_target: ClassVar[bool] = False

    @classmethod  # noqa: B027 (most can have them all)
    def check(cls, config: FinetuneConfig) -> None:
        """Raise ValueError for settings that this loss cannot have."""

    @classmethod
    def build(cls, config: FinetuneConfig, dim: int, classes: Tensor | None, team: Team) -> Objective:
        """Build it for embeddings (N, dim) and, if it `needs_labels`, the prompts' unit embeddings (K, dim)."""
        return cls()

    @abstractmethod
    def inner(self, seen: Embeddings) -> Inner:
        """Give what the attack raises."""

    @abstractmethod
    def outer(self, seen: Embeddings) -> Tensor:
        """Compute what the update lowers at the attacked images, (n,)."""

    @abstractmethod
    def on_clean(self, seen: Embeddings) -> Tensor:
        """Compute the same at the clean images, (n,): what clean_weight weighs."""

    def loss(self, seen: Embeddings, clean_weight: float) -> Tensor:
        """Compute (1 - w) outer + w on_clean, (n,)."""
        attacked = self.outer(seen)
        return attacked if not clean_weight else (1 - clean_weight) * attacked + clean_weight * self.on_clean(seen)

    def finish(self, number: int) -> None:  # noqa: B027 (most have nothing to do)
        """Do what follows the update of step `number` (from 0)."""

    def state(self) -> dict[str, Any]:
        """Gather what a restart needs; all processes of a team ask together."""
        return {}

    def load_state(self, parts: Mapping[str, Any]) -> None:  # noqa: B027
        """Go on from what `state` gave."""


class Fare(Objective):
    """FARE: the squared distance to the original's embedding of the clean image (paper, eq. 2).

    Example:
        >>> inner = Fare().inner(Embeddings(original=torch.eye(3)))
        >>> inner(torch.zeros(1, 3), torch.tensor([2]))  # an attacked version of the third image
        tensor([1.])
    """

    title = "FARE"

    def inner(self, seen: Embeddings) -> Inner:
        """Raise || phi(z) - phi_orig(x) ||_2^2."""
        original = needed(seen.original)
        return lambda embedding, rows: fare(embedding, original[rows])

    def outer(self, seen: Embeddings) -> Tensor:
        """Lower the same."""
        return fare(needed(seen.adversarial), needed(seen.original))

    def on_clean(self, seen: Embeddings) -> Tensor:
        """Lower || phi(x) - phi_orig(x) ||_2^2."""
        return fare(needed(seen.clean), needed(seen.original))


class TeCoA(Objective):
    """TeCoA: the cross-entropy of an image's class among the prompts of all (Mao et al. 2023).

    Example:
        >>> objective = TeCoA(classes=torch.eye(2), scale=10.0)
        >>> objective.outer(Embeddings(adversarial=torch.tensor([[1.0, 0.0]]), label=torch.tensor([1])))
        tensor([10.0000])
    """

    title = "TeCoA"
    needs_original = False
    needs_labels = True

    def __init__(self, classes: Tensor, scale: float) -> None:
        """Take the prompts' unit embeddings (K, D), and the factor that makes cosines logits."""
        self.classes, self.scale = classes, scale

    @classmethod
    def check(cls, config: FinetuneConfig) -> None:
        """Refuse mixtures: they have no class."""
        if config.mixup:
            raise ValueError("a mixture of two images has no class: leave mixup at 0 for tecoa")

    @classmethod
    def build(cls, config: FinetuneConfig, dim: int, classes: Tensor | None, team: Team) -> Objective:
        """Build it with the prompts' embeddings."""
        return cls(needed(classes), config.scale)

    def inner(self, seen: Embeddings) -> Inner:
        """Raise -log softmax_y(scale cos(phi(z), psi(t)))."""
        label = needed(seen.label)
        return lambda embedding, rows: tecoa(embedding, self.classes, label[rows], self.scale)

    def outer(self, seen: Embeddings) -> Tensor:
        """Lower the same."""
        return tecoa(needed(seen.adversarial), self.classes, needed(seen.label), self.scale)

    def on_clean(self, seen: Embeddings) -> Tensor:
        """Lower the same at phi(x)."""
        return tecoa(needed(seen.clean), self.classes, needed(seen.label), self.scale)


class SimClip(Objective):
    """Sim-CLIP: the angle between the encoder's own embeddings of the attacked and the clean image.

    Example:
        >>> inner = SimClip().inner(Embeddings(clean=torch.tensor([[1.0, 0.0]])))
        >>> inner(torch.tensor([[0.0, 2.0]]), torch.tensor([0]))  # at a right angle
        tensor([1.])
    """

    title = "Sim-CLIP"
    needs_clean = True
    clean_target = True

    def inner(self, seen: Embeddings) -> Inner:
        """Raise 1 - cos(phi(z), phi(x))."""
        clean = needed(seen.clean)
        return lambda embedding, rows: 1 - torch.cosine_similarity(embedding, clean[rows])

    def outer(self, seen: Embeddings) -> Tensor:
        """Lower the symmetric loss, each side held fixed for the other."""
        return sim_clip(needed(seen.adversarial), needed(seen.clean))

    def on_clean(self, seen: Embeddings) -> Tensor:
        """Lower 1 - cos(phi(x), phi_orig(x)): its own loss would be 0 here."""
        return 1 - torch.cosine_similarity(needed(seen.clean), needed(seen.original))


def needed(value: Tensor | None) -> Tensor:
    """Return what an objective asked for and so has."""
    if value is None:
        raise ValueError("an objective was called without an embedding or a label that it needs")
    return value
