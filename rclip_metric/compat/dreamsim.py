"""What DreamSim's users call, with a robust model behind it: `from rclip_metric.compat.dreamsim import dreamsim`."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from rclip_metric.metric import RobustPerceptualDistance

_TYPES = ("ensemble", "dino_vitb16", "dinov2_vitb14", "open_clip_vitb32", "clip_vitb32", "synclr_vitb16")


class PerceptualModel(nn.Module):
    """A robust distance that is called as DreamSim's model is; `dreamsim` makes it.

    Example:
        >>> model, _ = dreamsim(device="cpu", model="tiny")
        >>> images = torch.rand(2, 3, 64, 64)
        >>> model(images, images), model.embed(images).shape
        (tensor([0., 0.]), torch.Size([2, 128]))
    """

    def __init__(self, metric: RobustPerceptualDistance, normalize_embeds: bool = True) -> None:
        """Take a squared distance."""
        super().__init__()
        self.metric = metric
        self.normalize_embeds = normalize_embeds
        self.embed_size = metric.encoder.embedding_dim
        self.training = False

    def forward(self, img_a: Tensor, img_b: Tensor) -> Tensor:
        """Compute 1 - cos of each pair.

        Args:
            img_a: (N, 3, H, W) or (1, 3, H, W) in [0, 1], of any height and width.
            img_b: Likewise; sizes may differ.

        Returns:
            (N,), float32, from 0 to 2; higher is more different. Gradients reach the images that require them.

        Raises:
            ValueError: As `RobustPerceptualDistance.forward`.
        """
        distance: Tensor = self.metric(img_a, img_b)
        return distance

    def embed(self, img: Tensor) -> Tensor:
        """Embed (N, 3, H, W) in [0, 1] as (N, D), of unit length unless `normalize_embeds` is False."""
        if self.normalize_embeds:
            return self.metric.embed(img)
        embedding: Tensor = self.metric.encoder(self.metric._read(img))
        return embedding

    def train(self, mode: bool = True) -> PerceptualModel:
        """Do nothing: the metric is always in eval mode."""
        return self


def dreamsim(
    pretrained: bool = True,
    device: str | torch.device | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    normalize_embeds: bool = True,
    dreamsim_type: str = "ensemble",
    use_patch_model: bool = False,
    *,
    model: Any = "r-clip-f",
    **settings: Any,
) -> tuple[PerceptualModel, Callable[[Any], Tensor]]:
    """Load a robust model and its preprocessing, called as `dreamsim.dreamsim` is.

    Args:
        pretrained: True only.
        device: Where to compute; if None, CUDA where there is one, else the CPU.
        cache_dir: Hub cache folder; None for huggingface_hub's own (DreamSim's is ./models).
        normalize_embeds: Embeddings of unit length. Unlike DreamSim's their mean is not subtracted; distances do not
            depend on this.
        dreamsim_type: One of DreamSim's types; it changes nothing, the model is said by `model`.
        use_patch_model: False only; where images differ is what `RobustPerceptualDistance.difference_map` shows.
        model: As for `RobustPerceptualDistance`, the default being its default.
        settings: Further arguments of `RobustPerceptualDistance`. `resize` is "squash" if left out, as in DreamSim.

    Returns:
        The model, and a function that brings a Pillow image, path, bytes or array to a tensor (1, 3, S, S) in [0, 1], S
        being the model's size.

    Raises:
        ValueError: An argument asks for what a robust model cannot be.
        WeightsError: The model cannot be had.

    Example:
        >>> from PIL import Image
        >>> model, preprocess = dreamsim(pretrained=True, device="cpu", model="tiny")
        >>> img1, img2 = (preprocess(Image.new("RGB", (80, 60), color)) for color in ("red", "blue"))
        >>> img1.shape, model(img1, img2).shape
        (torch.Size([1, 3, 64, 64]), torch.Size([1]))
    """
    if not pretrained:
        raise ValueError("pretrained=False would give random weights, which no robust model has")
    if use_patch_model:
        raise ValueError(
            "use_patch_model: there is one embedding an image; see RobustPerceptualDistance.difference_map"
        )
    if dreamsim_type not in _TYPES:
        raise ValueError(f"dreamsim_type must be one of {', '.join(_TYPES)}, got {dreamsim_type!r}: see model=")
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    settings.setdefault("squared", True)
    settings.setdefault("resize", "squash")
    metric = RobustPerceptualDistance(model, cache_dir=cache_dir, **settings).to(device)

    def preprocess(pil_img: Any) -> Tensor:
        return metric.preprocess(pil_img)[None]

    return PerceptualModel(metric, normalize_embeds), preprocess
