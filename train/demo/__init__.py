"""Two images in a browser: their distance, what it means, where they differ, and what an attack makes of it."""

from rclip_metric.train.demo.attack import Attacked, attack_image
from rclip_metric.train.demo.typical import Typical, place, typical_distances

__all__ = ["Attacked", "Typical", "attack_image", "place", "typical_distances"]
