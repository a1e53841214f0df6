"""LipSim, whose distance is certified: its published weights, and networks of its kind that are trained here."""

from typing import TYPE_CHECKING

from rclip_metric.lazy import import_when_used

if TYPE_CHECKING:
    from rclip_metric.train.metrics.lipsim.architecture import POOL, LipSimArchitecture
    from rclip_metric.train.metrics.lipsim.constant import TOLERANCE, lipschitz_constant, lipsim_constant
    from rclip_metric.train.metrics.lipsim.model import LipSim, LipSimMetric, build, load, rounded_constant
    from rclip_metric.train.metrics.lipsim.published import convert, folded, random_tensors
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

import_when_used(
    __name__,
    {
        ".architecture": "POOL LipSimArchitecture",
        ".constant": "TOLERANCE lipschitz_constant lipsim_constant",
        ".model": "LipSim LipSimMetric build load rounded_constant",
        ".published": "convert folded random_tensors",
        ".student": "Student embedded",
    },
)
