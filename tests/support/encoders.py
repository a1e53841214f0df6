"""Small encoders with seeded weights."""

import re
from typing import Any

import torch
from torch import nn

from rclip_metric.encoder import Architecture, ConvNeXtArchitecture, Encoder, ViTArchitecture
from rclip_metric.images import Preprocessing

CONVNEXT = ConvNeXtArchitecture(image_size=64, depths=(1, 1, 1, 1), widths=(8, 8, 16, 16), projection=16)
VIT = ViTArchitecture(image_size=32, patch_size=8, width=32, depth=2, heads=2, projection=16)
MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)


def small_encoder(
    architecture: Architecture = CONVNEXT,
    preprocessing: Preprocessing | None = None,
    *,
    name: str = "small",
    seed: int = 0,
    spread: bool = False,
    layer_scale: float | None = None,
    **settings: Any,
) -> Encoder:
    """An encoder with the initial weights of `seed`, in evaluation mode; the global generator is left as it was.

    With `spread`, matrices are drawn at a scale at which the embeddings of different images really differ.
    `layer_scale` is for ConvNeXts, whose own starts at 1e-6: the blocks would not be seen in the outputs.
    """
    side = architecture.image_size
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        squash = Preprocessing("squash", side, side, mean=MEAN, std=STD)
        encoder = Encoder(architecture, preprocessing or squash, name=name, **settings)
        with torch.no_grad():
            for key, parameter in encoder.named_parameters():
                if spread and parameter.ndim > 1:
                    parameter.normal_(std=parameter[0].numel() ** -0.5)
                elif layer_scale is not None and key.endswith("gamma"):
                    parameter.fill_(layer_scale)
    return encoder.eval()


def randomised(module: nn.Module, only: str = "", seed: int = 0) -> Any:
    """Give every parameter whose name has `only` in it a value that shows when it is lost, swapped or at its default.

    The module itself comes back, in evaluation mode. Activations keep a size of about 1.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if re.search(only, name):
                matrix = parameter.dim() > 1
                parameter.copy_(noise * parameter[0].numel() ** -0.5 if matrix else 0.5 + 0.3 * noise)
    return module.eval()


def same_weights(one: nn.Module, other: nn.Module) -> bool:
    """Whether both have the same state dict, bit by bit."""
    a, b = one.state_dict(), other.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)
