"""A perceptual image distance that holds up under adversarial perturbation."""

import importlib
from typing import TYPE_CHECKING, Any

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

# Nothing is imported before it is used: what needs no torch, such as --help, does not wait for it.
_MODULES = {
    "ContentFilter": "retrieval",
    "Encoder": "encoder",
    "ImageError": "errors",
    "ImageIndex": "retrieval",
    "RobustPerceptualDistance": "metric",
    "ScoredPair": "scoring",
    "TwoAFC": "metric",
    "WeightSpec": "weights",
    "WeightsError": "errors",
    "load_image": "images",
    "load_manifest": "weights",
    "model_names": "weights",
    "score": "compare",
    "score_all": "scoring",
    "score_folders": "scoring",
    "score_pairs": "scoring",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is asked for (PEP 562)."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
    globals()[name] = value  # so that this is not asked again
    return value


def __dir__() -> list[str]:
    """List the public names too that were not asked for yet."""
    return sorted({*globals(), *__all__})
