"""What can be proved about a metric's decisions: by what it is made of; under noise, see `evaluation.smoothing`."""

from rclip_metric.train.evaluation.certificates.binomial import clopper_pearson_lower
from rclip_metric.train.evaluation.certificates.lipschitz import RADII, Certificate, certified_curve, certified_radii

__all__ = [
    "RADII",
    "Certificate",
    "certified_curve",
    "certified_radii",
    "clopper_pearson_lower",
]
