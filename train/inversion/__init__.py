"""Images from embeddings and from texts: what a metric keeps of an image, and what it takes a sentence to look like."""

from rclip_metric.train.inversion.folder import How, found_by, reconstruct
from rclip_metric.train.inversion.invert import Inversion, grey, invert
from rclip_metric.train.inversion.multi_view import synthesise
from rclip_metric.train.inversion.settings import METHODS, STEPS, InversionSettings
from rclip_metric.train.inversion.statistics import high_frequency, total_variation
from rclip_metric.train.inversion.targets import EmbeddingTarget, ImageTarget, TextTarget, read_targets

__all__ = [
    "METHODS",
    "STEPS",
    "EmbeddingTarget",
    "How",
    "ImageTarget",
    "Inversion",
    "InversionSettings",
    "TextTarget",
    "found_by",
    "grey",
    "high_frequency",
    "invert",
    "read_targets",
    "reconstruct",
    "synthesise",
    "total_variation",
]
