"""What can be proved about a metric's decisions: by what it is made of, or by its answers under noise."""

from rclip_metric.train.evaluation.certificates.binomial import clopper_pearson_lower
from rclip_metric.train.evaluation.certificates.lipschitz import RADII, Certificate, certified_curve, certified_radii
from rclip_metric.train.evaluation.certificates.smoothing import (
    Smoothed,
    Smoothing,
    certify_smoothed,
    smooth,
    smoothed_radii,
)

__all__ = [
    "RADII",
    "Certificate",
    "Smoothed",
    "Smoothing",
    "certified_curve",
    "certified_radii",
    "certify_smoothed",
    "clopper_pearson_lower",
    "smooth",
    "smoothed_radii",
]
