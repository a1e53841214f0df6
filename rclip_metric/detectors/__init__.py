"""Detectors of unsafe images: classifiers that others trained, behind one protocol."""

from rclip_metric.detectors.base import Detector, unsafe_scores
from rclip_metric.detectors.laion import HeadOrigin, LaionDetector, LaionHead, load_head, load_laion, save_head
from rclip_metric.detectors.loading import load_detector
from rclip_metric.detectors.opennsfw import OpenNSFW, load_opennsfw

__all__ = [
    "Detector",
    "HeadOrigin",
    "LaionDetector",
    "LaionHead",
    "OpenNSFW",
    "load_detector",
    "load_head",
    "load_laion",
    "load_opennsfw",
    "save_head",
    "unsafe_scores",
]
