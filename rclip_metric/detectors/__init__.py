"""Detectors of unsafe images: classifiers that others trained, behind one protocol."""

from rclip_metric.detectors.base import Detector, unsafe_scores

__all__ = ["Detector", "unsafe_scores"]
