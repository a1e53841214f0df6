"""Embeddings of many image files, the distances between them, and an index to search in."""

from rclip_metric.retrieval.duplicates import DuplicateGroup, find_duplicates
from rclip_metric.retrieval.embeddings import (
    FileEmbeddings,
    Pairing,
    Summary,
    all_pairs,
    distances,
    identity,
    pair_by_name,
    settings,
    significant,
)
from rclip_metric.retrieval.index import Hits, ImageIndex, Update
from rclip_metric.retrieval.neighbours import nearest, pairs_within

__all__ = [
    "DuplicateGroup",
    "FileEmbeddings",
    "Hits",
    "ImageIndex",
    "Pairing",
    "Summary",
    "Update",
    "all_pairs",
    "distances",
    "find_duplicates",
    "identity",
    "nearest",
    "pair_by_name",
    "pairs_within",
    "settings",
    "significant",
]
