"""One optimiser step of a student: in parts as large as memory allows, the constraint folded in once for all."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from rclip_metric.train.finetuning.nights.step import hinge, sides, squared_distances
from rclip_metric.train.metrics.lipsim.student import Student


def distil_step(
    student: Student,
    optimizer: torch.optim.Optimizer,
    teacher: Tensor,
    views: tuple[Tensor, Tensor],
    chunk_size: int,
    clip_gradient: float = 0.0,
    *,
    bfloat16: bool = False,
) -> tuple[float, float]:
    """Take a step on (RMSE(student(original), teacher) + RMSE(student(copy), teacher)) / 2.

    RMSE is sqrt(mean over images and dimensions of (student - teacher)^2), so the gradient of a half is that of its
    mean square S over 2 sqrt(S): parts of a batch add up to the gradient of the whole.

    Args:
        student: its embeddings are not normalised here.
        optimizer: over what is trained.
        teacher: unit embeddings of the originals, (N, D).
        views: originals and jittered copies, (N, 3, S, S) each.
        chunk_size: images per pass.
        clip_gradient: longest gradient; 0 for no clipping.
        bfloat16: run the student's passes in it; the folding, the losses and the update stay float32.

    Returns:
        Both RMSEs. Where one is not finite the optimiser has not stepped.

    Example:
        >>> from rclip_metric.train.metrics.lipsim import LipSimArchitecture
        >>> small = LipSimArchitecture(16, channels=4, depth=1, linear_depth=1, linear_inner=8, embedding=4)
        >>> student, images = Student(small), torch.zeros(2, 3, 16, 16)
        >>> optimizer = torch.optim.Adam([p for p in student.parameters() if p.requires_grad])
        >>> half, other = distil_step(student, optimizer, torch.ones(2, 4), (images, images), chunk_size=1)
        >>> half == other
        True
    """
    folded = student.folded()
    leaves = {name: tensor.detach().requires_grad_() for name, tensor in folded.items()}
    total: list[Tensor] = [torch.zeros_like(leaf) for leaf in leaves.values()]
    halves = []
    for images in views:
        square = teacher.new_zeros(())
        sums: list[Tensor] = [torch.zeros_like(leaf) for leaf in leaves.values()]
        for part, target in zip(images.split(chunk_size), teacher.split(chunk_size), strict=True):
            with torch.autocast(part.device.type, torch.bfloat16, enabled=bfloat16):
                embedding = student(part, leaves)
            share = (embedding.float() - target).square().sum() / teacher.numel()
            for held, gradient in zip(sums, torch.autograd.grad(share, list(leaves.values())), strict=True):
                held += gradient
            square += share.detach()
        root = square.sqrt()
        for held, gradient in zip(total, sums, strict=True):
            held += gradient * torch.where(root > 0, 1 / (4 * root), 0.0)
        halves.append(root)
    first, second = torch.stack(halves).tolist()
    if math.isfinite(first) and math.isfinite(second):
        _descend(student, optimizer, folded, total, clip_gradient)
    return first, second


def tune_step(
    student: Student,
    optimizer: torch.optim.Optimizer,
    triplets: Tensor,
    label: Tensor,
    margin: float,
    chunk_size: int,
    *,
    bfloat16: bool = False,
) -> float:
    """Take a step on the sum of the hinge losses of triplets, with embeddings brought to unit length.

    Args:
        student: what is trained.
        optimizer: over it.
        triplets: reference, left and right, (N, 3, 3, S, S) in [0, 1].
        label: (N,), 1 where people chose the right image, else 0.
        margin: by how much the chosen one is to be nearer, in 1 - cos.
        chunk_size: images per pass, three per triplet.
        bfloat16: run the student's passes in it.

    Returns:
        The mean loss. Where it is not finite the optimiser has not stepped.

    Example:
        >>> from rclip_metric.train.metrics.lipsim import LipSimArchitecture
        >>> small = LipSimArchitecture(16, channels=4, depth=1, linear_depth=1, linear_inner=8, embedding=4)
        >>> student, images = Student(small), torch.rand(1, 3, 16, 16)
        >>> optimizer = torch.optim.Adam([p for p in student.parameters() if p.requires_grad])
        >>> tune_step(student, optimizer, torch.stack([images] * 3, 1), torch.ones(1), 0.5, chunk_size=3)
        0.5
    """
    folded = student.folded()
    leaves = {name: tensor.detach().requires_grad_() for name, tensor in folded.items()}
    total: list[Tensor] = [torch.zeros_like(leaf) for leaf in leaves.values()]
    loss = triplets.new_zeros(())
    several = max(1, chunk_size // 3)
    for some, chosen in zip(triplets.split(several), sides(label).split(several), strict=True):
        with torch.autocast(some.device.type, torch.bfloat16, enabled=bfloat16):
            embeddings = student(some.flatten(0, 1), leaves).unflatten(0, (-1, 3))
        share = hinge(*squared_distances(embeddings.float()), chosen.to(embeddings.device), margin).sum()
        for held, gradient in zip(total, torch.autograd.grad(share, list(leaves.values())), strict=True):
            held += gradient
        loss += share.detach()
    mean = loss.item() / len(triplets)
    if math.isfinite(mean):
        _descend(student, optimizer, folded, total, 0.0)
    return mean


def trained(student: Student) -> list[nn.Parameter]:
    """List the parameters that an optimiser changes: all but the q of convolutions, which cancel."""
    return [parameter for parameter in student.parameters() if parameter.requires_grad]


def _descend(
    student: Student,
    optimizer: torch.optim.Optimizer,
    folded: Mapping[str, Tensor],
    gradients: Iterable[Tensor],
    clip_gradient: float,
) -> None:
    """Take the gradients of the folded weights through the folding, and step."""
    optimizer.zero_grad(set_to_none=True)
    torch.autograd.backward(list(folded.values()), list(gradients))
    if clip_gradient:
        nn.utils.clip_grad_norm_(trained(student), clip_gradient)
    optimizer.step()
