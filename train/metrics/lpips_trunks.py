"""The three networks whose features LPIPS compares, as torchvision builds them, without importing it.

Which takes as long again as torch: it brings its detection models, and they torch's compiler.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Trunk:
    """One of the three networks.

    Attributes:
        url: torchvision's file of the classifier's weights, of the entry IMAGENET1K_V1.
        ends: the features y_l are what comes out of the classifier's `features` before these places.
        channels: of y_l.
        least: the smallest side in pixels for which every y_l has at least one place.
        linear: sha256 of the package's weights/v0.1/NAME.pth.
    """

    url: str
    ends: tuple[int, ...]
    channels: tuple[int, ...]
    least: int
    linear: str


_FILES = "https://download.pytorch.org/models/"
TRUNKS = {
    "alex": Trunk(
        f"{_FILES}alexnet-owt-7be5be79.pth", (2, 5, 8, 10, 12), (64, 192, 384, 256, 256), 31,
        "df73285e35b22355a2df87cdb6b70b343713b667eddbda73e1977e0c860835c0",
    ),
    "vgg": Trunk(
        f"{_FILES}vgg16-397923af.pth", (4, 9, 16, 23, 30), (64, 128, 256, 512, 512), 16,
        "a78928a0af1e5f0fcb1f3b9e8f8c3a2a5a3de244d830ad5c1feddc79b8432868",
    ),
    "squeeze": Trunk(
        f"{_FILES}squeezenet1_1-b8a52dc0.pth", (2, 5, 8, 10, 11, 12, 13), (64, 128, 256, 384, 384, 512, 512), 17,
        "4a5350f23600cb79923ce65bb07cbf57dca461329894153e05a1346bd531cf76",
    ),
}  # fmt: skip


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
