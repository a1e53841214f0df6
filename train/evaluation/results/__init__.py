"""Results: outcomes, intervals, records, tables and pictures."""

from rclip_metric.train.evaluation.results.bootstrap import summary
from rclip_metric.train.evaluation.results.breakdown import breakdown
from rclip_metric.train.evaluation.results.image_interval import image_interval
from rclip_metric.train.evaluation.results.leaderboard import table
from rclip_metric.train.evaluation.results.outcome import Outcome, unpack
from rclip_metric.train.evaluation.results.record import Averaging, Effort, load_results

__all__ = [
    "Averaging",
    "Effort",
    "Outcome",
    "breakdown",
    "image_interval",
    "load_results",
    "summary",
    "table",
    "unpack",
]
