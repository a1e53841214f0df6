"""Vision towers: the modules that compute an architecture.

Attention is F.linear and scaled_dot_product_attention; nn.MultiheadAttention, on which OpenCLIP's own ViT is built,
takes a path that is 15 times slower on a CPU with AMX when its weights are frozen bfloat16, and ours always are frozen.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import checkpoint

from rclip_metric.encoder.architectures import (
    LIBRARY_KINDS,
    Architecture,
    ConvNeXtArchitecture,
    ModuleArchitecture,
    OpenClipArchitecture,
    TimmArchitecture,
    ViTArchitecture,
    embedding_dim,
    is_efficientnet_lite,
)
from rclip_metric.encoder.efficientnet_lite import EfficientNetLiteTrunk
from rclip_metric.encoder.library_towers import LibraryTower, linear_projection
from rclip_metric.encoder.module_tower import ModuleTower
from rclip_metric.encoder.trunks import ConvNeXtTrunk, ViTTrunk


def build_tower(architecture: Architecture) -> Tower:
    """Build the module: normalised pixels (N, 3, S, S) -> unnormalised embeddings (N, D).

    Weights are random; under `with torch.device("meta")` there are none, and nothing is spent on drawing
    them.

    Raises:
        UnknownModelError: The library has no such model.
        ValueError: The library's model is not what the architecture says; or nothing says how to build it.

    Example:
        >>> tiny = ConvNeXtArchitecture(image_size=32, depths=(1, 1, 1, 1), widths=(8, 16, 32, 64), projection=16)
        >>> build_tower(tiny)(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 16])
    """
    if isinstance(architecture, ModuleArchitecture):
        raise ValueError(f"{architecture.model} is a module that no configuration describes: it cannot be built again.")
    if isinstance(architecture, OpenClipArchitecture):
        return LibraryTower(architecture)
    if isinstance(architecture, TimmArchitecture) and not is_efficientnet_lite(architecture):
        return LibraryTower(architecture)
    skip = torch.empty(0).is_meta
    with _SkipMetaInitialisation() if skip else contextlib.nullcontext():
        if isinstance(architecture, ViTArchitecture):
            return ViTTower(architecture)
        if isinstance(architecture, TimmArchitecture):
            return EfficientNetLiteTower(architecture)
        return ConvNeXtTower(architecture)


@contextlib.contextmanager
def without_weights(architecture: Architecture) -> Iterator[None]:
    """Spare `build_tower` the random weights, since all that is in the state dict is about to be replaced.

    A native tower is built on the meta device. A library's may have tensors besides, computed when it is built (the
    tables of relative positions of a Swin): it is built on the CPU, random weights and all, and the caller's random
    numbers stay as they were.

    Example:
        >>> tiny = ConvNeXtArchitecture(image_size=32, depths=(1, 1, 1, 1), widths=(8, 16, 32, 64), projection=16)
        >>> with without_weights(tiny):
        ...     tower = build_tower(tiny)
        >>> tower.projection.weight.is_meta
        True
    """
    if not isinstance(architecture, LIBRARY_KINDS) or is_efficientnet_lite(architecture):
        with torch.device("meta"):
            yield
        return
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        yield


class ViTTower(nn.Module):
    """A ViT (`trunk`) and a linear map without bias (`projection`; None if there is none).

    The last block computes only the class token, the one token that is read: 7 % less work for a ViT-B/16.

    Attributes:
        checkpointing: See `Encoder.checkpointing`.
    """

    checkpointing: bool = False

    def __init__(self, architecture: ViTArchitecture) -> None:
        """Build with random weights."""
        super().__init__()
        self.embedding_dim = embedding_dim(architecture)
        self.trunk = ViTTrunk(architecture)
        self.projection = linear_projection(architecture.width, architecture.projection)

    def forward(self, pixels: Tensor) -> Tensor:
        """Embed normalised pixels (N, 3, S, S), S = image_size, as (N, D)."""
        trunk = self.trunk
        patches = trunk.patch_embed(pixels).transpose(1, 2)  # (N, T, width)
        tokens = torch.cat([trunk.cls_token.expand(patches.shape[0], -1, -1), patches], dim=1)  # (N, 1 + T, width)
        tokens = trunk.norm_pre(tokens + trunk.pos_embed)
        *blocks, last = trunk.blocks
        for block in blocks:
            tokens = _run(self, block, tokens)
        embedding = trunk.norm(_run(self, partial(_class_token, last), tokens))  # (N, width)
        return embedding if self.projection is None else self.projection(embedding)


class ConvNeXtTower(nn.Module):
    """A ConvNeXt (`trunk`) and a linear map without bias (`projection`; None if there is none).

    Attributes:
        checkpointing: See `Encoder.checkpointing`.
        branch_factors: (N, blocks), what each block adds is multiplied with this for each image of the batch, as
            stochastic depth does in training; None, the default, for 1. Not saved.
    """

    checkpointing: bool = False
    branch_factors: Tensor | None = None

    def __init__(self, architecture: ConvNeXtArchitecture) -> None:
        """Build with random weights."""
        super().__init__()
        self.embedding_dim = embedding_dim(architecture)
        self.trunk = ConvNeXtTrunk(architecture)
        self.projection = linear_projection(architecture.widths[-1], architecture.projection)

    def forward(self, pixels: Tensor) -> Tensor:
        """Embed normalised pixels (N, 3, S, S), S >= 32, as (N, D)."""
        features = self.trunk.stem(pixels)
        factors = None if self.branch_factors is None else iter(self.branch_factors.unbind(1))
        stages: Any = self.trunk.stages
        for stage in stages:
            features = stage.downsample(features)
            for block in stage.blocks:
                run = block if factors is None else partial(block, factor=next(factors))
                features = _run(self, run, features)
        embedding = self.trunk.head(features.mean((2, 3)))  # (N, widths[-1])
        return embedding if self.projection is None else self.projection(embedding)


class EfficientNetLiteTower(nn.Module):
    """An EfficientNet-Lite (`trunk`) and a linear map without bias (`projection`; None if there is none).

    Attributes:
        checkpointing: See `Encoder.checkpointing`.
    """

    checkpointing: bool = False

    def __init__(self, architecture: TimmArchitecture) -> None:
        """Build with random weights."""
        super().__init__()
        self.embedding_dim = embedding_dim(architecture)
        self.trunk = EfficientNetLiteTrunk(architecture)
        self.projection = linear_projection(architecture.features, architecture.projection)

    def forward(self, pixels: Tensor) -> Tensor:
        """Embed normalised pixels (N, 3, S, S) as (N, D): their average feature, or what the map makes of it."""
        features = self.trunk.bn1(self.trunk.conv_stem(pixels))
        stages: Any = self.trunk.blocks
        for stage in stages:
            for block in stage:
                features = _run(self, block, features)
        features = self.trunk.bn2(self.trunk.conv_head(features))
        embedding = F.adaptive_avg_pool2d(features, 1).flatten(1)
        return embedding if self.projection is None else self.projection(embedding)


NativeTower = ViTTower | ConvNeXtTower | EfficientNetLiteTower
Tower = NativeTower | LibraryTower | ModuleTower


def _run(tower: NativeTower, block: Callable[[Tensor], Tensor], features: Tensor) -> Tensor:
    """Run a block; with checkpointing its activations are computed again in the backward pass instead of kept."""
    if not (tower.checkpointing and torch.is_grad_enabled()):
        return block(features)
    # The dropout of an adapter must draw the same numbers again; a tower alone draws none.
    output: Tensor = checkpoint(block, features, use_reentrant=False, preserve_rng_state=tower.training)
    return output


class _SkipMetaInitialisation(TorchFunctionMode):
    """Leave out random initialisation on the meta device.

    There it writes nothing, yet in some versions of torch each call runs through Python reference kernels.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func.__name__ in ("kaiming_uniform_", "normal_", "uniform_"):
            target = args[0] if args else kwargs["tensor"]  # torch.nn.init passes it by name
            if target.is_meta:
                return target
        return func(*args, **kwargs)


def _class_token(block: Any, tokens: Tensor) -> Tensor:
    """Run a block for the first token alone: (N, T, width) -> (N, width)."""
    attention = block.attn
    normed = block.norm1(tokens)
    count, _, width = tokens.shape
    heads = attention.num_heads
    if type(attention.qkv) is nn.Linear:
        weight, bias = attention.qkv.weight, attention.qkv.bias
        query = F.linear(normed[:, :1], weight[:width], bias[:width])  # (N, 1, width)
        key, value = F.linear(normed, weight[width:], bias[width:]).chunk(2, dim=-1)  # (N, T, width) each
    else:  # an adapter in its place
        query, key, value = attention.qkv(normed).chunk(3, dim=-1)
        query = query[:, :1]
    query, key, value = (
        t.reshape(count, t.shape[1], heads, width // heads).transpose(1, 2) for t in (query, key, value)
    )  # (N, heads, 1 or T, width / heads)
    attended = F.scaled_dot_product_attention(query, key, value)  # (N, heads, 1, width / heads)
    token = tokens[:, 0] + block.ls1(attention.proj(attended.reshape(count, width)))
    return token + block.ls2(block.mlp(block.norm2(token)))
