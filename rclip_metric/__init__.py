"""A perceptual image distance that holds up under adversarial perturbation."""

from typing import TYPE_CHECKING

from rclip_metric.lazy import import_when_used

if TYPE_CHECKING:
    from rclip_metric.compare import score
    from rclip_metric.encoder import Encoder
    from rclip_metric.errors import ImageError, WeightsError
    from rclip_metric.images import load_image
    from rclip_metric.metric import RobustPerceptualDistance, TwoAFC
    from rclip_metric.retrieval import ContentFilter, ImageIndex
    from rclip_metric.scoring import ScoredPair, score_all, score_folders, score_pairs
    from rclip_metric.weights import WeightSpec, load_manifest, model_names

__version__ = "0.1.0"

__all__ = [
    "ContentFilter",
    "Encoder",
    "ImageError",
    "ImageIndex",
    "RobustPerceptualDistance",
    "ScoredPair",
    "TwoAFC",
    "WeightSpec",
    "WeightsError",
    "__version__",
    "load_image",
    "load_manifest",
    "model_names",
    "score",
    "score_all",
    "score_folders",
    "score_pairs",
]

import_when_used(
    __name__,
    {
        ".compare": "score",
        ".encoder": "Encoder",
        ".errors": "ImageError WeightsError",
        ".images": "load_image",
        ".metric": "RobustPerceptualDistance TwoAFC",
        ".retrieval": "ContentFilter ImageIndex",
        ".scoring": "ScoredPair score_all score_folders score_pairs",
        ".weights": "WeightSpec load_manifest model_names",
    },
)
