"""Networks of convolutions without their BatchNorms: in eval mode each folds into the convolution before it.

    gamma (W * x + b - mean) / sqrt(var + eps) + beta = W' * x + b',    W' = gamma W / sqrt(var + eps),
                                                                        b' = beta + gamma (b - mean) / sqrt(var + eps)

What is saved for a forward and a backward pass is a pass over every activation, which is what small convolutional
networks spend their time on.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.func import functional_call

from rclip_metric.encoder.efficientnet_lite import NormAct, SameConv2d

_TOLERANCE = 1e-4
"""Of a folded network's output, relative to the largest value: above it, it does not compute the same."""


class FoldedTower(nn.Module):
    """What a tower computes, with weights into which its BatchNorms are folded, laid out in channels_last.

    The folded weights are copies, made anew as soon as one of the tower's tensors has changed. Gradients reach the
    tower's own weights where they are asked for, and the BatchNorms' weights among them; statistics stay as they are.
    """

    def __init__(self, tower: nn.Module, pairs: list[tuple[str, str]]) -> None:
        """Fold; `folded` builds it only where that can be done.

        Args:
            tower: In eval mode.
            pairs: Names of a convolution and of the BatchNorm to fold into it.
        """
        super().__init__()
        self.pairs = pairs
        with torch.inference_mode(False), torch.no_grad():
            self.twin = copy.deepcopy(tower).requires_grad_(False)
            for convolution, norm in self.pairs:
                module: nn.Module = self.twin.get_submodule(convolution)
                weight = module.get_parameter("weight")
                module.bias = nn.Parameter(weight.new_zeros(len(weight)), requires_grad=False)
                parent, _, child = norm.rpartition(".")
                activation = getattr(self.twin.get_submodule(norm), "act", None)
                setattr(self.twin.get_submodule(parent), child, activation or nn.Identity())
            self.twin.to(memory_format=torch.channels_last)
        self._made_of: list[tuple[int, int]] | None = None
        self._walk(tower)

    def embed(self, tower: nn.Module, pixels: Tensor) -> Tensor:
        """Compute `tower(pixels)`, (N, 3, S, S) -> (N, D), of the tower that this one was made of."""
        pixels = pixels.contiguous(memory_format=torch.channels_last)
        if not all(held.get(name) is part for held, name, part in self._parts):
            self._walk(tower)
        if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in self._tensors):
            embedding: Tensor = functional_call(self.twin, self._weights(tower), (pixels,))
            return embedding
        made_of = [(id(t), 0 if t.is_inference() else t._version) for t in self._tensors]
        if made_of != self._made_of:
            with torch.inference_mode(False), torch.no_grad():
                new = self._weights(tower)
                for name, parameter in self.twin.named_parameters():
                    parameter.copy_(new[name])
            self._made_of = made_of
        embedding = self.twin(pixels)
        return embedding

    def forget(self) -> None:
        """Fold anew at the next call: for tensors whose memory was written to in a way that they do not count."""
        self._made_of = None

    def _walk(self, tower: nn.Module) -> None:
        """Note where the tower holds its parts: to look there in every pass takes a fraction of walking through it."""
        self._parts: list[tuple[Mapping[str, object], str, object]] = [
            (held, name, part)
            for module in tower.modules()
            for held in (module._parameters, module._buffers, module._modules)
            for name, part in held.items()
        ]
        self._tensors = [part for _, _, part in self._parts if isinstance(part, Tensor)]

    def _weights(self, tower: nn.Module) -> dict[str, Tensor]:
        """Return the twin's parameters by name, as functions of the tower's."""
        own = dict(tower.named_parameters())
        folded: dict[str, Tensor] = {}
        for convolution, norm in self.pairs:
            module: nn.Module = tower.get_submodule(norm)
            weight, bias = own.pop(f"{convolution}.weight"), own.pop(f"{convolution}.bias", None)
            gamma, beta = own.pop(f"{norm}.weight", None), own.pop(f"{norm}.bias", None)
            wide = torch.promote_types(weight.dtype, torch.float32)
            mean, variance = module.get_buffer("running_mean").to(wide), module.get_buffer("running_var").to(wide)
            gain = (variance + module.eps).rsqrt()  # type: ignore[operator]
            if gamma is not None:
                gain = gain * gamma
            offset = -mean * gain if bias is None else (bias - mean) * gain
            folded[f"{convolution}.weight"] = (weight * gain.view(-1, 1, 1, 1)).to(weight.dtype)
            folded[f"{convolution}.bias"] = (offset if beta is None else offset + beta).to(weight.dtype)
        return folded | own


def folded(tower: nn.Module, image_size: int) -> FoldedTower | None:
    """Return a tower's `FoldedTower`; None where no BatchNorm follows a convolution, or the two differ.

    Args:
        tower: In eval mode, on any device but meta.
        image_size: Side of an input that it takes.
    """
    if not any(isinstance(module, nn.BatchNorm2d) for module in tower.modules()):
        return None
    weight = next(tower.parameters())
    with torch.inference_mode(False), torch.no_grad():
        seeded = torch.Generator().manual_seed(0)
        pixels = torch.randn(1, 3, image_size, image_size, generator=seeded, device="cpu").to(weight)
        pairs, wanted = _pairs(tower, pixels)
        if not pairs:
            return None
        found = FoldedTower(tower, pairs)
        wanted, got = wanted.float(), found.embed(tower, pixels).float()
    precise = weight.dtype == torch.float32
    near = (wanted - got).abs().max() <= (_TOLERANCE if precise else 0.1) * wanted.abs().max()
    return found if near else None


def _pairs(tower: nn.Module, pixels: Tensor) -> tuple[list[tuple[str, str]], Tensor]:
    """Find the names of (convolution, BatchNorm) where the second is run once, on what the first has just given.

    Returns:
        They, and what the tower gives for the pixels.
    """
    convolutions, norms = _foldable_types()
    made: dict[int, tuple[str, Tensor]] = {}  # the tensors are held, so that no other gets their number
    calls: dict[str, int] = {}
    found: list[tuple[str, str]] = []
    hooks = []
    for name, module in tower.named_modules():
        if type(module) in convolutions:

            def after(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor, name: str = name) -> None:
                calls[name] = calls.get(name, 0) + 1
                made[id(output)] = name, output

            hooks.append(module.register_forward_hook(after))
        elif type(module) in norms and module.running_mean is not None:

            def before(module: nn.Module, inputs: tuple[Tensor, ...], name: str = name) -> None:
                calls[name] = calls.get(name, 0) + 1
                if id(inputs[0]) in made:
                    found.append((made[id(inputs[0])][0], name))

            hooks.append(module.register_forward_pre_hook(before))
    try:
        embedding: Tensor = tower(pixels)
    finally:
        for hook in hooks:
            hook.remove()
    return [pair for pair in found if calls[pair[0]] == calls[pair[1]] == 1], embedding


def _foldable_types() -> tuple[set[type[nn.Module]], set[type[nn.Module]]]:
    """Return the types of convolutions and of BatchNorms whose meaning is known: torch's, ours, and timm's."""
    convolutions: set[type[nn.Module]] = {nn.Conv2d, SameConv2d}
    norms: set[type[nn.Module]] = {nn.BatchNorm2d, NormAct}
    if "timm" in sys.modules:  # else no module can be one of its own
        from timm.layers import BatchNormAct2d, Conv2dSame

        convolutions.add(Conv2dSame)
        norms.add(BatchNormAct2d)
    return convolutions, norms
