"""Embeddings of many image files, the distances between them, an index to search in, and a filter by examples."""

from rclip_metric.retrieval.any_of import AnyOf, Verdict
from rclip_metric.retrieval.content_filter import ContentFilter, Decision
from rclip_metric.retrieval.duplicates import DuplicateGroup, find_duplicates
from rclip_metric.retrieval.embeddings import (
    Embedder,
    FileEmbeddings,
    Pairing,
    Summary,
    decoders,
    digest_of,
    distances,
    embed_pixels,
    identity,
    images_of,
    pair_by_name,
    read_ahead,
    settings,
    significant,
)
from rclip_metric.retrieval.identity import identity_of, model_of, settings_of
from rclip_metric.retrieval.index import ImageIndex
from rclip_metric.retrieval.model_source import ModelSource
from rclip_metric.retrieval.neighbours import nearest, pairs_within
from rclip_metric.retrieval.pairs import all_pairs, chosen_pairs, nearest_others, pairs_below
from rclip_metric.retrieval.rows import Hits, Update
from rclip_metric.retrieval.second_look import BelievedPairs, Order, believed_order, believed_pairs, search_again
from rclip_metric.retrieval.storage import Approximation, Row, SearchableStorage, is_index, open_storage

__all__ = [
    "AnyOf",
    "Approximation",
    "BelievedPairs",
    "ContentFilter",
    "Decision",
    "DuplicateGroup",
    "Embedder",
    "FileEmbeddings",
    "Hits",
    "ImageIndex",
    "ModelSource",
    "Order",
    "Pairing",
    "Row",
    "SearchableStorage",
    "Summary",
    "Update",
    "Verdict",
    "all_pairs",
    "believed_order",
    "believed_pairs",
    "chosen_pairs",
    "decoders",
    "digest_of",
    "distances",
    "embed_pixels",
    "find_duplicates",
    "identity",
    "identity_of",
    "images_of",
    "is_index",
    "model_of",
    "nearest",
    "nearest_others",
    "open_storage",
    "pair_by_name",
    "pairs_below",
    "pairs_within",
    "read_ahead",
    "search_again",
    "settings",
    "settings_of",
    "significant",
]
