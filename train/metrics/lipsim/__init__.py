"""LipSim, whose distance is certified, and its published weights."""

from rclip_metric.train.metrics.lipsim.model import build, convert

__all__ = ["build", "convert"]
