"""Decisions on many images by a filter of examples, shard by shard, in one process or on a cluster."""

from rclip_metric.filtering.local import run_local
from rclip_metric.filtering.pools import find_pools
from rclip_metric.filtering.ray_data import Cluster, run_ray
from rclip_metric.filtering.shards import find_work
from rclip_metric.filtering.table import Parts, columns
from rclip_metric.filtering.work import Work, Worker

__all__ = ["Cluster", "Parts", "Work", "Worker", "columns", "find_pools", "find_work", "run_local", "run_ray"]
