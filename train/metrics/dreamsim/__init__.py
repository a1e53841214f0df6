"""DreamSim and its published weights."""

from rclip_metric.train.metrics.dreamsim.model import build, convert

__all__ = ["build", "convert"]
