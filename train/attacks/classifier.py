"""Classifiers whose classes are embeddings, and the attack on them: APGD-CE, then APGD-T on the targeted DLR loss.

The two stages are the first two of AutoAttack (Croce & Hein 2020).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rclip_metric.train.attacks.apgd import apgd, apgd_targeted
from rclip_metric.train.attacks.base import AttackResult, Judge, LossAndSuccess, LossFunction
from rclip_metric.train.attacks.losses import cross_entropy, targeted_dlr
from rclip_metric.train.attacks.threat import LpBall
from rclip_metric.train.runs.seeds import sample_seed

Embed = Callable[[Tensor], Tensor]
"""Images (n, 3, S, S) in [0, 1] -> unit embeddings (n, D), differentiable."""

FEWEST_FOR_TARGETS = 4  # classes; the targeted DLR loss divides by what sets the first logit apart from the next three
STAGES = ("apgd-ce", "apgd-t")


@dataclass(frozen=True)
class ClassifierAttackResult:
    """What the two stages found, for N samples.

    Attributes:
        untargeted: APGD-CE on all.
        left: (M,), the samples that it did not fool.
        targeted: APGD-T on those; None where it was left out (nothing left, no targets, or fewer than 4 classes).

    Example:
        >>> images = torch.zeros(3, 3, 8, 8)
        >>> first = AttackResult(images, torch.zeros(3), success=torch.tensor([True, False, False]))
        >>> then = AttackResult(images[1:], torch.zeros(2), success=torch.tensor([True, False]))
        >>> ClassifierAttackResult(first, torch.tensor([1, 2]), then).stages
        ['apgd-ce', 'apgd-t', None]
    """

    untargeted: AttackResult
    left: Tensor
    targeted: AttackResult | None

    @property
    def stages(self) -> list[str | None]:
        """The stage that fooled each sample, None where neither did."""
        stages: list[str | None] = ["apgd-ce" if fooled else None for fooled in self.untargeted.success.tolist()]
        if self.targeted is not None:
            for sample, fooled in zip(self.left.tolist(), self.targeted.success.tolist(), strict=True):
                stages[sample] = "apgd-t" if fooled else None
        return stages

    @property
    def attacks(self) -> list[AttackResult]:
        """The stages that ran."""
        return [self.untargeted] if self.targeted is None else [self.untargeted, self.targeted]


def similarities(embed: Embed, classes: Tensor, images: Tensor, chunk_size: int | None = None) -> Tensor:
    """Compute the cosines (n, K) of images with the unit embeddings (K, D) of the classes.

    Raises:
        ValueError: if the embeddings of images and classes differ in size.

    Example:
        >>> colour = lambda images: torch.nn.functional.normalize(images.mean((2, 3)), dim=1)
        >>> similarities(colour, torch.eye(3), torch.tensor([0.6, 0.8, 0.0]).view(1, 3, 1, 1))
        tensor([[0.6000, 0.8000, 0.0000]])
    """
    embedding = torch.cat([embed(part) for part in images.split(chunk_size or len(images))])  # (n, D)
    if embedding.shape[1] != classes.shape[1]:
        raise ValueError(
            f"the image embeddings have {embedding.shape[1]} numbers and the classes' {classes.shape[1]}: "
            "take the text tower of the same CLIP"
        )
    return embedding @ classes.T


def margins(similarity: Tensor, label: Tensor) -> Tensor:
    """Subtract the highest other similarity from that with the right class: (n, K) -> (n,), positive where right.

    Example:
        >>> margins(torch.tensor([[0.5, 0.25, 0.0], [0.5, 0.25, 0.0]]), torch.tensor([0, 2]))
        tensor([ 0.2500, -0.5000])
    """
    own = similarity.gather(1, label[:, None])[:, 0]
    return own - similarity.scatter(1, label[:, None], -torch.inf).amax(1)


def misclassified(similarity: Tensor, label: Tensor) -> Tensor:
    """Say where the highest similarity, the first of equal ones, is not the label's: (n, K) -> bool (n,).

    Where one is NaN there is no decision, and so no wrong one.

    Example:
        >>> misclassified(torch.tensor([[0.5, 0.25], [0.25, 0.5], [0.0, torch.nan]]), torch.tensor([0, 0, 0]))
        tensor([False,  True, False])
    """
    return (similarity.argmax(1) != label) & ~similarity.isnan().any(1)


def attack_classes(
    embed: Embed,
    classes: Tensor,
    images: Tensor,
    label: Tensor,
    ball: LpBall,
    steps: int,
    seeds: Sequence[int],
    *,
    scale: float = 100.0,
    targets: int = 9,
    confirm: Judge | None = None,
    slack: float = 0.0,
    chunk_size: int | None = None,
) -> ClassifierAttackResult:
    """Run APGD on the cross-entropy, then on what is left on the targeted DLR loss, one target after another.

    A sample is fooled at the first point visited whose highest similarity is not the label's, the first of equal ones.
    A point with a similarity that is NaN fools nobody.

    Args:
        embed: the image encoder.
        classes: (K, D), a unit embedding per class.
        images: (N, 3, S, S), all classified rightly (others need no attack).
        label: (N,).
        ball: the threat.
        steps: of each APGD run.
        seeds: one per image; every stage and target has a random start of its own.
        scale: factor on the similarities that makes them logits; the DLR loss does not depend on it.
        targets: how many of the highest classes but the label on the clean image, at most K - 1; 0 for the first stage
            alone, which is also all there is with fewer than 4 classes, as the loss is not defined there.
        confirm: as for `apgd`, for an encoder of half precision.
        slack: margin of similarities under which `confirm` is asked.
        chunk_size: images per forward and backward pass.

    Example:
        >>> colour = lambda images: torch.nn.functional.normalize(images.mean((2, 3)), dim=1)
        >>> reddish = torch.tensor([0.50, 0.45, 0.10]).view(1, 3, 1, 1).expand(1, 3, 8, 8)
        >>> red = torch.tensor([0])  # of the classes red, green and blue
        >>> attack_classes(colour, torch.eye(3), reddish, red, LpBall("linf", 0.05), 10, seeds=[0]).stages
        ['apgd-ce']
    """

    def loss_on(rows: Tensor, objective: Callable[[Tensor, Tensor], Tensor]) -> LossFunction:
        """The loss of the samples `rows`; the objective takes logits and which of all samples they belong to."""

        def loss(points: Tensor, alive: Tensor) -> LossAndSuccess:
            similarity, samples = similarities(embed, classes, points), rows[alive]
            wrong = misclassified(similarity, label[samples])
            near = margins(similarity.detach(), label[samples]) < slack
            return LossAndSuccess(objective(scale * similarity, samples), wrong | near)

        return loss

    untargeted = apgd(
        loss_on(torch.arange(len(images), device=images.device), lambda z, samples: cross_entropy(z, label[samples])),
        images,
        ball,
        steps,
        seeds=seeds,
        confirm=confirm,
        chunk_size=chunk_size,
    )
    left = (~untargeted.success).nonzero()[:, 0]
    if not len(left) or not targets or len(classes) < FEWEST_FOR_TARGETS:
        return ClassifierAttackResult(untargeted, left, None)
    with torch.no_grad():
        clean = similarities(embed, classes, images, chunk_size)
    aims = _rivals(clean, label, targets)  # (N, targets)

    def loss_for(target: int) -> LossFunction:
        return loss_on(left, lambda z, samples: targeted_dlr(z, label[samples], aims[samples, target]))

    targeted = apgd_targeted(
        loss_for,
        images[left],
        ball,
        steps,
        aims.shape[1],
        seeds=[sample_seed(seeds[row], "apgd-t") for row in left.tolist()],
        confirm=None if confirm is None else lambda points, alive: confirm(points, left[alive]),
        chunk_size=chunk_size,
    )
    return ClassifierAttackResult(untargeted, left, targeted)


def _rivals(similarity: Tensor, label: Tensor, count: int) -> Tensor:
    """Find the highest classes but the label, at most `count` of them: (N, K) -> (N, count)."""
    others = similarity.scatter(1, label[:, None], -torch.inf)
    return others.topk(min(count, similarity.shape[1] - 1), dim=1).indices
