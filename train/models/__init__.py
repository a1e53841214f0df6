"""Encoders from other libraries and files, their text towers, and adapters."""

from typing import TYPE_CHECKING

from rclip_metric.lazy import import_when_used

if TYPE_CHECKING:
    from rclip_metric.train.models.base import load_base, load_base_text, resized
    from rclip_metric.train.models.clip import TINY, build_clip
    from rclip_metric.train.models.clip_config import ClipConfig
    from rclip_metric.train.models.convert import Conversion, conversion, convert, save_conversion
    from rclip_metric.train.models.lora import LoRALinear, add_lora, merge_lora, train_dropout
    from rclip_metric.train.models.text import TextModel, class_embeddings
    from rclip_metric.train.models.text_weights import TEXT_NAME, export_text, load_text
    from rclip_metric.train.models.tokenizer import WordTokenizer
    from rclip_metric.train.models.weights_digest import weights_digest
    from rclip_metric.weights.loading import read_tensors

__all__ = [
    "TEXT_NAME",
    "TINY",
    "ClipConfig",
    "Conversion",
    "LoRALinear",
    "TextModel",
    "WordTokenizer",
    "add_lora",
    "build_clip",
    "class_embeddings",
    "conversion",
    "convert",
    "export_text",
    "load_base",
    "load_base_text",
    "load_text",
    "merge_lora",
    "read_tensors",
    "resized",
    "save_conversion",
    "train_dropout",
    "weights_digest",
]

import_when_used(
    __name__,
    {
        ".base": "load_base load_base_text resized",
        ".clip": "TINY build_clip",
        ".clip_config": "ClipConfig",
        ".convert": "Conversion conversion convert save_conversion",
        ".lora": "LoRALinear add_lora merge_lora train_dropout",
        ".text": "TextModel class_embeddings",
        ".text_weights": "TEXT_NAME export_text load_text",
        ".tokenizer": "WordTokenizer",
        ".weights_digest": "weights_digest",
        "rclip_metric.weights.loading": "read_tensors",
    },
)
