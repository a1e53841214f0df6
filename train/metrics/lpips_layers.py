"""The layers of the three networks whose features LPIPS compares, as torchvision builds them, without importing it.

Which takes as long again as torch: it brings its detection models, and they torch's compiler.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rclip_metric.train.metrics.lpips_trunks import TRUNKS


def classifier_features(net: str) -> nn.Sequential:
    """Build the layers of a classifier up to the last that is compared, under torchvision's keys, with random weights.

    Args:
        net: a name in `TRUNKS`.

    Example:
        >>> classifier_features("alex")(torch.zeros(2, 3, 64, 64)).shape
        torch.Size([2, 256, 3, 3])
    """
    layers = {"alex": _alexnet, "vgg": _vgg16, "squeeze": _squeezenet}[net]()
    return nn.Sequential(*layers[: TRUNKS[net].ends[-1]])


class Fire(nn.Module):
    """SqueezeNet's block: fewer channels, and of these half the new ones pixel by pixel, half by neighbourhood."""

    def __init__(self, channels: int, squeezed: int, expanded: int) -> None:
        """Build with random weights."""
        super().__init__()
        self.squeeze = nn.Conv2d(channels, squeezed, 1)
        self.expand1x1 = nn.Conv2d(squeezed, expanded, 1)
        self.expand3x3 = nn.Conv2d(squeezed, expanded, 3, padding=1)

    def forward(self, features: Tensor) -> Tensor:
        """Map (N, channels, H, W) to (N, 2 expanded, H, W)."""
        squeezed = self.squeeze(features).relu_()
        return torch.cat([self.expand1x1(squeezed).relu_(), self.expand3x3(squeezed).relu_()], 1)


def _alexnet() -> list[nn.Module]:
    layers: list[nn.Module] = [nn.Conv2d(3, 64, 11, stride=4, padding=2), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2)]
    layers += [nn.Conv2d(64, 192, 5, padding=2), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2)]
    for before, after in ((192, 384), (384, 256), (256, 256)):
        layers += [nn.Conv2d(before, after, 3, padding=1), nn.ReLU(inplace=True)]
    return layers


def _vgg16() -> list[nn.Module]:
    layers: list[nn.Module] = []
    channels = 3
    for depth, width in ((2, 64), (2, 128), (3, 256), (3, 512), (3, 512)):
        for _ in range(depth):
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU(inplace=True)]
            channels = width
        layers.append(nn.MaxPool2d(2, 2))
    return layers


def _squeezenet() -> list[nn.Module]:
    layers: list[nn.Module] = [nn.Conv2d(3, 64, 3, stride=2), nn.ReLU(inplace=True)]
    channels = 64
    for shapes in (((16, 64),) * 2, ((32, 128),) * 2, ((48, 192),) * 2 + ((64, 256),) * 2):
        layers.append(nn.MaxPool2d(3, 2, ceil_mode=True))
        for squeezed, expanded in shapes:
            layers.append(Fire(channels, squeezed, expanded))
            channels = 2 * expanded
    return layers
