"""The metrics that ours is measured against: DreamSim, LipSim, LPIPS, R-LPIPS, SSIM, MS-SSIM, PSNR and l_p.

What builds one of them is imported when `load_metric` is asked for it.
"""

from typing import TYPE_CHECKING

from rclip_metric.lazy import import_when_used

if TYPE_CHECKING:
    from rclip_metric.train.metrics.base import (
        Certified,
        DistanceMetric,
        EmbeddingMetric,
        EncoderMetric,
        Facts,
        Metric,
        dissimilarity,
        metric_precision,
    )
    from rclip_metric.train.metrics.baselines import BASELINES
    from rclip_metric.train.metrics.paper import BAPPS_ATTACKED, REPORTED, is_published, published_as, reported
    from rclip_metric.train.metrics.registry import (
        RANDOM,
        convert_baseline,
        is_baseline,
        load_baseline,
        load_metric,
    )
    from rclip_metric.train.metrics.weight_files import Converted, weights_folder, write_stored

__all__ = [
    "BAPPS_ATTACKED",
    "BASELINES",
    "RANDOM",
    "REPORTED",
    "Certified",
    "Converted",
    "DistanceMetric",
    "EmbeddingMetric",
    "EncoderMetric",
    "Facts",
    "Metric",
    "convert_baseline",
    "dissimilarity",
    "is_baseline",
    "is_published",
    "load_baseline",
    "load_metric",
    "metric_precision",
    "published_as",
    "reported",
    "weights_folder",
    "write_stored",
]

import_when_used(
    __name__,
    {
        ".base": "Certified DistanceMetric EmbeddingMetric EncoderMetric Facts Metric dissimilarity metric_precision",
        ".baselines": "BASELINES",
        ".paper": "BAPPS_ATTACKED REPORTED is_published published_as reported",
        ".registry": "RANDOM convert_baseline is_baseline load_baseline load_metric",
        ".weight_files": "Converted weights_folder write_stored",
    },
)
