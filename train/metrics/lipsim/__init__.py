"""LipSim, whose distance is certified, and its published weights."""

from rclip_metric.train.metrics.lipsim.model import LipSim, LipSimMetric, build
from rclip_metric.train.metrics.lipsim.published import POOL, LipSimArchitecture, convert, folded, random_tensors

__all__ = [
    "POOL",
    "LipSim",
    "LipSimArchitecture",
    "LipSimMetric",
    "build",
    "convert",
    "folded",
    "random_tensors",
]
