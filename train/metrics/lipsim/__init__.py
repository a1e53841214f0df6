"""LipSim, whose distance is certified: its published weights, and networks of its kind that are trained here."""

from rclip_metric.train.metrics.lipsim.constant import TOLERANCE, lipschitz_constant, lipsim_constant
from rclip_metric.train.metrics.lipsim.model import LipSim, LipSimMetric, build, load, rounded_constant
from rclip_metric.train.metrics.lipsim.published import POOL, LipSimArchitecture, convert, folded, random_tensors
from rclip_metric.train.metrics.lipsim.student import Student, embedded

__all__ = [
    "POOL",
    "TOLERANCE",
    "LipSim",
    "LipSimArchitecture",
    "LipSimMetric",
    "Student",
    "build",
    "convert",
    "embedded",
    "folded",
    "lipschitz_constant",
    "lipsim_constant",
    "load",
    "random_tensors",
    "rounded_constant",
]
