"""Any metrics on the same data under the same attacks, on one page: `rclip-metric benchmark`.

The page (`page`) needs an extra, and is imported when it is asked for.
"""

from rclip_metric.train.benchmark.examples import example_triplets
from rclip_metric.train.benchmark.run import benchmark
from rclip_metric.train.benchmark.settings import BenchmarkSettings, DataFolder, balls_from, data_of, metrics_of
from rclip_metric.train.benchmark.tables import markdown
from rclip_metric.train.benchmark.timing import time_metrics
from rclip_metric.train.benchmark.timing_visit import TimingSettings

__all__ = [
    "BenchmarkSettings",
    "DataFolder",
    "TimingSettings",
    "balls_from",
    "benchmark",
    "data_of",
    "example_triplets",
    "markdown",
    "metrics_of",
    "time_metrics",
]
