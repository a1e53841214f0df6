"""The tasks that metrics are judged by, one file each; and how each is read from a folder."""

from rclip_metric.train.evaluation.tasks.folders import bapps_data, cue_conflict_data, nights_data, things_data

__all__ = ["bapps_data", "cue_conflict_data", "nights_data", "things_data"]
