"""LipSim as it is trained: the raw weights are the parameters, and every step folds the constraint into them once."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rclip_metric.train.metrics.lipsim import sll
from rclip_metric.train.metrics.lipsim.architecture import LipSimArchitecture
from rclip_metric.train.metrics.lipsim.published import folded, random_tensors


class Student(nn.Module):
    """The trainable form of `LipSim`: images (N, 3, S, S) in [0, 1] to embeddings (N, D), not normalised.

    The parameters are those of the published layout (`LipSimArchitecture.published_shapes`), which may take any value.
    What makes the network 1-Lipschitz, T in `sll`, follows from them: `folded` computes it, with a graph, once for all
    passes of a step; the published code does so in each pass.

    Example:
        >>> small = LipSimArchitecture(16, channels=4, depth=1, linear_depth=1, linear_inner=8, embedding=4)
        >>> student = Student(small, seed=0)
        >>> weights = student.folded()
        >>> student(torch.rand(2, 3, 16, 16), weights).shape, weights["kernels"].requires_grad
        (torch.Size([2, 4]), True)
    """

    def __init__(self, architecture: LipSimArchitecture, seed: int = 0) -> None:
        """Draw the weights as the authors do (`random_tensors`)."""
        super().__init__()
        self.architecture = architecture
        drawn = random_tensors(architecture, seed)
        self.raw = nn.ParameterDict({_attribute(key): tensor for key, tensor in drawn.items()})
        for key, parameter in self.raw.items():
            if key.startswith("base/1/") and key.endswith("/q"):
                parameter.requires_grad_(False)  # it cancels, see `sll.folded_kernel`

    def load_raw(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over raw tensors of the published layout."""
        with torch.no_grad():
            for key, parameter in self.raw.items():
                parameter.copy_(tensors[key.replace("/", ".")])

    def raw_tensors(self) -> dict[str, Tensor]:
        """Copy the raw tensors, by the names of `LipSimArchitecture.published_shapes`."""
        return {key.replace("/", "."): parameter.detach().clone() for key, parameter in self.raw.items()}

    def finish(self) -> dict[str, Tensor]:
        """Fold the constraint in for good, in float64: the tensors that `LipSim` takes."""
        return folded(self.architecture, self.raw_tensors())

    def folded(self) -> dict[str, Tensor]:
        """Fold the constraint in, with a graph, in the precision of the parameters: see `LipSimArchitecture.shapes`."""
        kernels, kernel_biases, weights, weight_biases = [], [], [], []
        for layer in range(self.architecture.depth):
            kernel, bias = (self.raw[f"base/1/{layer}/{part}"] for part in ("kernel", "bias"))
            scale = sll.kernel_scale(kernel)
            kernels.append(scale[:, None, None, None] * kernel)
            kernel_biases.append(scale * bias.flatten())
        for layer in range(1, self.architecture.linear_depth + 1):
            weight, bias, q = (self.raw[f"base/2/{layer}/{part}"] for part in ("weight", "bias", "q"))
            scale = sll.weight_scale(weight, q)
            weights.append(scale[:, None] * weight)
            weight_biases.append(scale * bias.flatten())
        return {
            "kernels": torch.stack(kernels),
            "kernel_biases": torch.stack(kernel_biases),
            "weights": torch.stack(weights),
            "weight_biases": torch.stack(weight_biases),
        }

    def forward(self, images: Tensor, weights: Mapping[str, Tensor]) -> Tensor:
        """Embed with the weights of this step: (N, 3, S, S) to (N, D).

        Args:
            images: in [0, 1].
            weights: what `folded` gave.
        """
        return embedded(self.architecture, images, weights)


def embedded(architecture: LipSimArchitecture, images: Tensor, weights: Mapping[str, Tensor]) -> Tensor:
    """Run the network with plain operations, which autograd takes apart in any way: (N, 3, S, S) to (N, D).

    Args:
        architecture: the sizes.
        images: in [0, 1].
        weights: folded, see `LipSimArchitecture.shapes`.

    Example:
        >>> small = LipSimArchitecture(16, channels=4, depth=1, linear_depth=1, linear_inner=8, embedding=4)
        >>> embedded(small, torch.rand(2, 3, 16, 16), Student(small).finish()).shape
        torch.Size([2, 4])
    """
    x = F.pixel_unshuffle(images, architecture.patch)  # (N, 3 patch^2, S / patch, S / patch)
    x = F.pad(x, (0, 0, 0, 0, 0, architecture.channels - x.shape[1])).contiguous(memory_format=torch.channels_last)
    for kernel, bias in zip(weights["kernels"], weights["kernel_biases"], strict=True):
        inner = F.conv2d(x, kernel, bias, padding=1).relu()
        x = x - F.conv2d(inner, kernel.flip(2, 3).transpose(0, 1), padding=1)
    x = F.avg_pool2d(x, architecture.pool, divisor_override=architecture.pool).flatten(1)  # (N, features)
    for weight, bias in zip(weights["weights"], weights["weight_biases"], strict=True):
        x = x - F.linear(F.linear(x, weight, bias).relu(), weight.t())
    return x[:, architecture.kept]


def _attribute(key: str) -> str:
    """Name a parameter: an nn.ParameterDict takes no dots in its keys."""
    return key.replace(".", "/")
