"""A perceptual image distance that holds up under adversarial perturbation."""

from rclip_metric.compare import score
from rclip_metric.encoder import Encoder
from rclip_metric.errors import WeightsError
from rclip_metric.images import ImageError, load_image
from rclip_metric.manifest import WeightSpec, load_manifest, model_names
from rclip_metric.metric import RobustPerceptualDistance, TwoAFC

__version__ = "0.1.0"

__all__ = [
    "Encoder",
    "ImageError",
    "RobustPerceptualDistance",
    "TwoAFC",
    "WeightSpec",
    "WeightsError",
    "__version__",
    "load_image",
    "load_manifest",
    "model_names",
    "score",
]
