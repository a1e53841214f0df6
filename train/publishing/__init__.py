"""What is made from a finished run to be shown: the exported model, its card and its results."""

from rclip_metric.train.publishing.export import (
    ENTRY_NAME,
    EXPORT_NAMES,
    Exported,
    check_repo_id,
    export_run,
    push_export,
)
from rclip_metric.train.publishing.finished_run import RECORD_NAME, FinishedRun, read_run
from rclip_metric.train.publishing.methods import METHODS, Method
from rclip_metric.train.publishing.own_results import Identity, reported_numbers

__all__ = [
    "ENTRY_NAME",
    "EXPORT_NAMES",
    "METHODS",
    "RECORD_NAME",
    "Exported",
    "FinishedRun",
    "Identity",
    "Method",
    "check_repo_id",
    "export_run",
    "push_export",
    "read_run",
    "reported_numbers",
]
