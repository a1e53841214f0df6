"""What can be proved about a metric's decisions."""

from rclip_metric.train.evaluation.certificates.lipschitz import RADII, Certificate, certified_curve, certified_radii

__all__ = ["RADII", "Certificate", "certified_curve", "certified_radii"]
