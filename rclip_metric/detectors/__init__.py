"""Detectors of unsafe images: classifiers that others trained, behind one protocol."""

from rclip_metric.detectors.base import Detector, unsafe_scores
from rclip_metric.detectors.loading import load_detector
from rclip_metric.detectors.opennsfw import OpenNSFW, load_opennsfw

__all__ = ["Detector", "OpenNSFW", "load_detector", "load_opennsfw", "unsafe_scores"]
