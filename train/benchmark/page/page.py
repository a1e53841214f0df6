"""The page of a benchmark: one HTML file that needs nothing else, whole without scripts."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from rclip_metric.train.benchmark.page import words
from rclip_metric.train.benchmark.page.examples import example_section, is_coarse
from rclip_metric.train.benchmark.page.panels import (
    CHANCE,
    distance_section,
    proof_section,
    radius_section,
    scatter_section,
)
from rclip_metric.train.benchmark.page.papers import paper_section
from rclip_metric.train.benchmark.page.picture import SHAPES
from rclip_metric.train.benchmark.page.reading import Board, JsonObject, compared, interval
from rclip_metric.train.benchmark.page.searches import search_tables
from rclip_metric.train.benchmark.page.summary import summary
from rclip_metric.train.benchmark.page.table import glance, table
from rclip_metric.train.html import render

__all__ = ["page"]


def page(board: JsonObject) -> str:
    """Lay out a benchmark: table, charts, examples, the papers' numbers and the settings.

    Args:
        board: as `rclip-metric benchmark` writes it to JSON. Whatever is missing, empty or null is left out, and said
            to be left out. Accuracies are percent.

    Raises:
        ValueError: for an image that is no data: URI, and would have to be loaded.
    """
    read = Board(board)
    sections = {
        "Table": read.per_set(partial(table, read)),
        "Clean and robust": scatter_section(read),
        "Radius": radius_section(read),
        "Proof": proof_section(read),
        "Distances": distance_section(read),
        "Examples": example_section(read),
        "Retrieval": search_tables(read, "retrieval"),
        "Filter": search_tables(read, "filter"),
        "Papers": paper_section(read),
        "Settings": True,
    }
    return render(
        "page.html",
        Path(__file__).parent / "templates",
        title=str(read.title or "Perceptual metrics under attack"),
        board=read,
        summary=summary(read),
        glance=glance(read) if len(read.sets()) > 1 else None,
        sections={name.split()[0].lower(): (name, found) for name, found in sections.items() if found},
        shapes=SHAPES,
        chance=CHANCE,
        interval=interval,
        compared=compared,
        is_coarse=is_coarse,
        words=words,
    )
