"""Embeddings of many image files, and the distances between them."""

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

__all__ = [
    "FileEmbeddings",
    "Pairing",
    "Summary",
    "all_pairs",
    "distances",
    "identity",
    "pair_by_name",
    "settings",
    "significant",
]
