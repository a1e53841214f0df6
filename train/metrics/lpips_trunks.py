"""The three networks whose features LPIPS compares: where their weights are, and which features those are."""

from __future__ import annotations

from dataclasses import dataclass


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
