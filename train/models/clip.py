"""The small CLIP that learns from captioned scenes: OpenCLIP's class with our image encoder as its visual tower."""

from __future__ import annotations

import torch
from torch import nn

from rclip_metric.encoder import NAMED, Architecture, Encoder
from rclip_metric.images import Preprocessing
from rclip_metric.train.data.scenes.draw import SIZE
from rclip_metric.train.models.clip_config import ClipConfig
from rclip_metric.train.models.tokenizer import CONTEXT, WordTokenizer

TINY = NAMED["tiny_convnext"]
TINY_PREPROCESSING = Preprocessing(
    mode="squash",
    resize=SIZE,
    crop=SIZE,
    interpolation="bicubic",
    mean=(0.5, 0.5, 0.5),
    std=(0.25, 0.25, 0.25),
)


def build_clip(config: ClipConfig, architecture: Architecture = TINY) -> nn.Module:
    """Build a small OpenCLIP CLIP with random weights (seeded by the config) and our encoder as its visual tower.

    Example:
        >>> model = build_clip(ClipConfig(text_width=64, text_layers=1))
        >>> with torch.no_grad():
        ...     images, texts, scale = model(torch.zeros(1, 3, SIZE, SIZE), WordTokenizer()(["a photo of a star"]))
        >>> images.shape == texts.shape
        True
    """
    from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg

    torch.manual_seed(config.seed)
    assert architecture.projection is not None
    text = CLIPTextCfg(
        context_length=CONTEXT,
        vocab_size=WordTokenizer().size,
        width=config.text_width,
        heads=config.text_width // 32,
        layers=config.text_layers,
    )
    # The smallest visual tower that the constructor takes: it is replaced in the next line.
    placeholder = CLIPVisionCfg(layers=1, width=64, patch_size=SIZE, image_size=SIZE)
    model: nn.Module = CLIP(embed_dim=architecture.projection, vision_cfg=placeholder, text_cfg=text)
    encoder = Encoder(architecture, TINY_PREPROCESSING, name="tiny-clean", domain="drawn scenes")
    for name, parameter in encoder.named_parameters():
        if name.endswith(".gamma"):
            # ConvNeXt starts its layer scale at 1e-6, for depth; this tower is shallow and trains for minutes.
            nn.init.constant_(parameter, 0.1)
    model.visual = encoder
    return model
