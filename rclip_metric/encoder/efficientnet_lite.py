"""The trunk of EfficientNet-Lite 0 to 4: timm's tf_efficientnet_lite models, computed to the bit, without timm.

The same keys, the same operations in the same order, and random weights of the same distribution.
"""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor, nn

from rclip_metric.encoder.architectures import EFFICIENTNET_LITE, TimmArchitecture

FEATURES = 1280
"""Size of the pooled features, the same for every scale."""

# Blocks, kernel size, stride of the first block, expansion and channels of each stage (Tan and Le 2019, Table 1).
_STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
_STEM = 32


class EfficientNetLiteTrunk(nn.Module):
    """The parts of an EfficientNet-Lite, from the stem to the last activation; `EfficientNetLiteTower` runs them."""

    def __init__(self, architecture: TimmArchitecture) -> None:
        """Build with random weights.

        Raises:
            ValueError: `features` is not what the network gives.
        """
        super().__init__()
        if architecture.features != FEATURES:
            raise ValueError(
                f"features must be {FEATURES} for timm's {architecture.model}, got {architecture.features}."
            )
        wider, deeper = EFFICIENTNET_LITE[architecture.model.partition(".")[0]]
        self.conv_stem = SameConv2d(3, _STEM, 3, stride=2)
        self.bn1 = NormAct(_STEM)
        self.blocks = nn.Sequential()
        channels = _STEM
        for index, (repeats, kernel, stride, expansion, width) in enumerate(_STAGES):
            inner = 0 < index < len(_STAGES) - 1  # the first and the last stage are not repeated more often
            count, width = math.ceil(repeats * deeper) if inner else repeats, _rounded(width * wider)
            stage = nn.Sequential()
            for block in range(count):
                step = stride if block == 0 else 1
                if expansion == 1:
                    stage.append(SeparableBlock(channels, width, kernel, step))
                else:
                    stage.append(InvertedResidual(channels, width, kernel, step, _rounded(channels * expansion)))
                channels = width
            self.blocks.append(stage)
        self.conv_head = SameConv2d(channels, FEATURES, 1)
        self.bn2 = NormAct(FEATURES)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                outputs = module.kernel_size[0] * module.kernel_size[1] * module.out_channels // module.groups
                nn.init.normal_(module.weight, std=math.sqrt(2 / outputs))


class SeparableBlock(nn.Module):
    """A depthwise convolution, then one per pixel: (N, C, H, W) -> (N, D, H / stride, W / stride)."""

    def __init__(self, channels: int, width: int, kernel: int, stride: int) -> None:
        """Build with random weights."""
        super().__init__()
        self.conv_dw = SameConv2d(channels, channels, kernel, stride=stride, groups=channels)
        self.bn1 = NormAct(channels)
        self.conv_pw = SameConv2d(channels, width, 1)
        self.bn2 = NormAct(width, activate=False)
        self.has_skip = stride == 1 and channels == width

    def forward(self, features: Tensor) -> Tensor:
        """Mix the neighbours of a pixel, then its channels."""
        mixed: Tensor = self.bn2(self.conv_pw(self.bn1(self.conv_dw(features))))
        return mixed + features if self.has_skip else mixed


class InvertedResidual(nn.Module):
    """More channels, a depthwise convolution among them, and back: (N, C, H, W) -> (N, D, H / stride, W / stride)."""

    def __init__(self, channels: int, width: int, kernel: int, stride: int, hidden: int) -> None:
        """Build with random weights."""
        super().__init__()
        self.conv_pw = SameConv2d(channels, hidden, 1)
        self.bn1 = NormAct(hidden)
        self.conv_dw = SameConv2d(hidden, hidden, kernel, stride=stride, groups=hidden)
        self.bn2 = NormAct(hidden)
        self.conv_pwl = SameConv2d(hidden, width, 1)
        self.bn3 = NormAct(width, activate=False)
        self.has_skip = stride == 1 and channels == width

    def forward(self, features: Tensor) -> Tensor:
        """Expand, mix the neighbours of a pixel, and reduce."""
        mixed = self.bn2(self.conv_dw(self.bn1(self.conv_pw(features))))
        reduced: Tensor = self.bn3(self.conv_pwl(mixed))
        return reduced + features if self.has_skip else reduced


class SameConv2d(nn.Conv2d):
    """A convolution without bias, padded as TensorFlow pads "SAME": with a stride, by one more at the end."""

    def __init__(self, channels: int, width: int, kernel: int, *, stride: int = 1, groups: int = 1) -> None:
        """Build with random weights."""
        padding = kernel // 2 if stride == 1 else 0
        super().__init__(channels, width, kernel, stride=stride, padding=padding, groups=groups, bias=False)

    def forward(self, features: Tensor) -> Tensor:
        """Convolve (N, C, H, W) to (N, D, ceil(H / stride), ceil(W / stride))."""
        if self.stride[0] > 1:
            across, down = (self._missing(side) for side in (features.shape[-1], features.shape[-2]))
            features = F.pad(features, (across // 2, across - across // 2, down // 2, down - down // 2))
        return super().forward(features)

    def _missing(self, side: int) -> int:
        stride, kernel = self.stride[0], self.kernel_size[0]
        return max((math.ceil(side / stride) - 1) * stride + kernel - side, 0)


class NormAct(nn.BatchNorm2d):
    """BatchNorm with TensorFlow's eps, and ReLU6 unless told otherwise."""

    def __init__(self, width: int, *, activate: bool = True) -> None:
        """Begin with the identity."""
        super().__init__(width, eps=1e-3)
        self.act = nn.ReLU6(inplace=True) if activate else nn.Identity()

    def forward(self, features: Tensor) -> Tensor:
        """Norm and activate."""
        activated: Tensor = self.act(super().forward(features))
        return activated


def _rounded(channels: float) -> int:
    """Return the nearest multiple of eight, and never one that is more than a tenth too small."""
    nearest = max(8, int(channels + 4) // 8 * 8)
    return nearest + 8 if nearest < 0.9 * channels else nearest
