"""The sizes of LipSim's network."""

from __future__ import annotations

from dataclasses import dataclass, fields

POOL = 16  # side of the squares that the two published poolings by 4 sum over


@dataclass(frozen=True)
class LipSimArchitecture:
    """Sizes of the network; the defaults are the published ones.

    Attributes:
        image_size: side of the images, a multiple of patch times pool.
        channels: of the convolutions; the image is in the first 3 patch^2.
        depth: convolutional layers.
        inner: ReLUs of each, per pixel.
        linear_depth: linear layers.
        linear_inner: ReLUs of each.
        embedding: dimensions of the last layer that are kept.
        patch: side of the squares of pixels that become channels before the first convolution, which moves numbers and
            changes none of their distances; 1 as published, where all convolutions work at full size.
        pool: side of the squares that are summed after the last convolution.
        from_end: keep the last dimensions of the last layer, where an untrained network has next to nothing that it
            would have to unlearn, and not the first as published, which the image itself begins in.

    Example:
        >>> LipSimArchitecture().features, LipSimArchitecture().shapes["kernels"]  # 45 * 14 * 14
        (8820, (20, 5, 45, 3, 3))
        >>> LipSimArchitecture(64, channels=64, patch=4, pool=4, embedding=512).features  # 64 * 4 * 4
        1024
    """

    image_size: int = 224
    channels: int = 45
    depth: int = 20
    inner: int = 5
    linear_depth: int = 7
    linear_inner: int = 1024
    embedding: int = 1792
    patch: int = 1
    pool: int = POOL
    from_end: bool = False

    def __post_init__(self) -> None:
        """Refuse what would be another network."""
        for field in fields(self):
            if field.name != "from_end" and getattr(self, field.name) < 1:
                raise ValueError(f"LipSim's {field.name} must be at least 1, and it is {getattr(self, field.name)}")
        if self.image_size % (self.patch * self.pool):
            raise ValueError(
                f"LipSim's images are a multiple of {self.patch * self.pool} pixels wide (patch times pool), and these "
                f"are {self.image_size}"
            )
        if self.channels < self.colours:
            raise ValueError(f"LipSim's image takes {self.colours} channels, and there are {self.channels}")
        if self.embedding > self.features:
            raise ValueError(f"LipSim's last layer has {self.features} dimensions, and {self.embedding} are to be kept")

    @property
    def colours(self) -> int:
        """Channels that the image fills."""
        return 3 * self.patch**2

    @property
    def kept(self) -> slice:
        """Which of the features are the embedding."""
        return slice(self.features - self.embedding, None) if self.from_end else slice(self.embedding)

    @property
    def side(self) -> int:
        """Side of what the convolutions work on."""
        return self.image_size // self.patch

    @property
    def features(self) -> int:
        """Dimensions of the linear layers."""
        return self.channels * (self.side // self.pool) ** 2

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of the folded tensors."""
        return {
            "kernels": (self.depth, self.inner, self.channels, 3, 3),
            "kernel_biases": (self.depth, self.inner),
            "weights": (self.linear_depth, self.linear_inner, self.features),
            "weight_biases": (self.linear_depth, self.linear_inner),
        }

    @property
    def published_shapes(self) -> dict[str, tuple[int, ...]]:
        """Of the published tensors: convolutions are base.1.0 to 19, linear layers base.2.1 to 7 (0 flattens)."""
        shapes: dict[str, tuple[int, ...]] = {}
        for layer in range(self.depth):
            shapes[f"base.1.{layer}.kernel"] = (self.inner, self.channels, 3, 3)
            shapes[f"base.1.{layer}.bias"] = (1, self.inner, 1, 1)
            shapes[f"base.1.{layer}.q"] = (self.inner,)
        for layer in range(1, self.linear_depth + 1):
            shapes[f"base.2.{layer}.weight"] = (self.linear_inner, self.features)
            shapes[f"base.2.{layer}.bias"] = (1, self.linear_inner)
            shapes[f"base.2.{layer}.q"] = (self.linear_inner,)
        return shapes
