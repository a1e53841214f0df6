"""The trunks of the native towers: timm's VisionTransformer and ConvNeXt, computed to the bit, without timm.

Importing timm takes longer than scoring an image, for everything else that it brings. Here are the same keys, the same
operations in the same order and, with the same seed, the same random weights.
"""

from __future__ import annotations

import math
from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rclip_metric.encoder.architectures import ConvNeXtArchitecture, ViTArchitecture


class ViTTrunk(nn.Module):
    """The parts of a ViT, from patches to the last norm; `ViTTower` runs them."""

    def __init__(self, architecture: ViTArchitecture) -> None:
        """Build with random weights."""
        super().__init__()
        width, patch = architecture.width, architecture.patch_size
        convolution = nn.Conv2d(3, width, patch, stride=patch, bias=architecture.patch_bias)
        self.patch_embed = nn.Sequential(OrderedDict(proj=convolution, flatten=nn.Flatten(2)))
        self.cls_token = nn.Parameter(torch.empty(1, 1, width))
        self.pos_embed = nn.Parameter(torch.empty(1, 1 + (architecture.image_size // patch) ** 2, width))
        first_eps = architecture.pre_norm_eps or architecture.norm_eps
        self.norm_pre = nn.LayerNorm(width, eps=first_eps) if architecture.pre_norm else nn.Identity()
        self.blocks = nn.Sequential(*(ViTBlock(architecture) for _ in range(architecture.depth)))
        self.norm = nn.LayerNorm(width, eps=architecture.norm_eps)
        _draw(self.pos_embed)
        nn.init.normal_(self.cls_token, std=1e-6)
        self.apply(lambda module: _initialise(module, nn.Linear))


class ViTBlock(nn.Module):
    """Attention and an MLP, each behind a norm and added to what came in: (N, T, width) -> (N, T, width)."""

    def __init__(self, architecture: ViTArchitecture) -> None:
        """Build with random weights."""
        super().__init__()
        width = architecture.width
        activation = QuickGELU() if architecture.activation == "quick_gelu" else nn.GELU()
        self.norm1 = nn.LayerNorm(width, eps=architecture.norm_eps)
        self.attn = Attention(width, architecture.heads)
        self.ls1 = LayerScale(width) if architecture.layer_scale else nn.Identity()
        self.norm2 = nn.LayerNorm(width, eps=architecture.norm_eps)
        self.mlp = _mlp(width, int(width * architecture.mlp_ratio), activation)
        self.ls2 = LayerScale(width) if architecture.layer_scale else nn.Identity()

    def forward(self, tokens: Tensor) -> Tensor:
        """Mix the tokens, then map each."""
        tokens = tokens + self.ls1(self.attn(self.norm1(tokens)))
        return tokens + self.ls2(self.mlp(self.norm2(tokens)))


class Attention(nn.Module):
    """Self-attention with one linear map for query, key and value."""

    def __init__(self, width: int, heads: int) -> None:
        """Build with random weights."""
        super().__init__()
        self.num_heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """Let every token look at all: (N, T, width) -> (N, T, width)."""
        count, length, width = tokens.shape
        heads = self.qkv(tokens).reshape(count, length, 3, self.num_heads, width // self.num_heads)
        query, key, value = heads.permute(2, 0, 3, 1, 4).unbind(0)  # (N, heads, T, width / heads) each
        attended = F.scaled_dot_product_attention(query, key, value)
        return self.proj(attended.transpose(1, 2).reshape(count, length, width))


class LayerScale(nn.Module):
    """A factor per channel."""

    def __init__(self, width: int) -> None:
        """Begin near zero."""
        super().__init__()
        self.gamma = nn.Parameter(torch.full((width,), 1e-5))

    def forward(self, tokens: Tensor) -> Tensor:
        """Scale the last dimension."""
        return tokens * self.gamma


class QuickGELU(nn.Module):
    """The activation that OpenAI's weights were trained with: x * sigmoid(1.702 x)."""

    def forward(self, x: Tensor) -> Tensor:
        """Apply it to every element."""
        return x * torch.sigmoid(1.702 * x)


class ConvNeXtTrunk(nn.Module):
    """The parts of a ConvNeXt, from the stem to the norm of the average feature; `ConvNeXtTower` runs them."""

    def __init__(self, architecture: ConvNeXtArchitecture) -> None:
        """Build with random weights."""
        super().__init__()
        widths, eps = architecture.widths, architecture.norm_eps
        self.stem = nn.Sequential(nn.Conv2d(3, widths[0], 4, stride=4), ChannelNorm(widths[0], eps=eps))
        self.stages = nn.Sequential()
        for index, (depth, width) in enumerate(zip(architecture.depths, widths, strict=True)):
            halve: nn.Module = nn.Identity()
            if index > 0:
                before = widths[index - 1]
                halve = nn.Sequential(ChannelNorm(before, eps=eps), nn.Conv2d(before, width, 2, stride=2))
            blocks = nn.Sequential(*(ConvNeXtBlock(width, eps) for _ in range(depth)))
            self.stages.append(nn.Sequential(OrderedDict(downsample=halve, blocks=blocks)))
        self.head = nn.Sequential(OrderedDict(norm=nn.LayerNorm(widths[-1], eps=eps)))
        self.apply(lambda module: _initialise(module, (nn.Linear, nn.Conv2d)))


class ConvNeXtBlock(nn.Module):
    """A depthwise convolution and an MLP per pixel, scaled and added to what came in."""

    def __init__(self, width: int, eps: float) -> None:
        """Build with random weights."""
        super().__init__()
        self.conv_dw = nn.Conv2d(width, width, 7, padding=3, groups=width)
        self.norm = nn.LayerNorm(width, eps=eps)
        self.mlp = _mlp(width, 4 * width, nn.GELU())
        self.gamma = nn.Parameter(torch.full((width,), 1e-6))

    def forward(self, features: Tensor, factor: Tensor | None = None) -> Tensor:
        """Map (N, C, H, W) to the same shape; what is added is multiplied with `factor` (N,)."""
        pixels = self.conv_dw(features).permute(0, 2, 3, 1)  # (N, H, W, C)
        mapped = self.mlp(self.norm(pixels)).permute(0, 3, 1, 2)
        branch = mapped.mul(self.gamma.reshape(1, -1, 1, 1))
        if factor is not None:
            branch = branch * factor.view(-1, 1, 1, 1)
        return branch + features


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of (N, C, H, W)."""

    def forward(self, features: Tensor) -> Tensor:
        """Norm every pixel."""
        return super().forward(features.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def _mlp(width: int, hidden: int, activation: nn.Module) -> nn.Sequential:
    layers = OrderedDict(fc1=nn.Linear(width, hidden), act=activation, fc2=nn.Linear(hidden, width))
    return nn.Sequential(layers)


def _initialise(module: nn.Module, kinds: type[nn.Module] | tuple[type[nn.Module], ...]) -> None:
    if isinstance(module, kinds):
        _draw(module.weight)  # type: ignore[arg-type]
        if module.bias is not None:
            nn.init.zeros_(module.bias)  # type: ignore[arg-type]


@torch.no_grad()
def _draw(weight: Tensor) -> None:
    """Draw from N(0, 0.02) as timm does; torch's trunc_normal_ draws other numbers in each version."""
    if not weight.is_meta:
        weight.uniform_(-1, 1).erfinv_().mul_(0.02 * math.sqrt(2)).clamp_(-2, 2)
