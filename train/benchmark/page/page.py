"""The page of a benchmark: one HTML file that needs nothing else, whole without scripts."""

from __future__ import annotations

from pathlib import Path

from rclip_metric.train.benchmark.page import charts
from rclip_metric.train.benchmark.page.examples import example_section
from rclip_metric.train.benchmark.page.panels import distance_section, radius_section, scatter_section
from rclip_metric.train.benchmark.page.papers import paper_section, settings_section
from rclip_metric.train.benchmark.page.reading import JsonObject, measured_sets, whole_board
from rclip_metric.train.benchmark.page.summary import facts, summary
from rclip_metric.train.benchmark.page.table import table_section
from rclip_metric.train.benchmark.page.words import joined, norm_name
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
    board = whole_board(board)
    sections = {
        "Table": table_section(board),
        "Clean and robust": scatter_section(board),
        "Radius": radius_section(board),
        "Distances": distance_section(board),
        "Examples": example_section(board),
        "Papers": paper_section(board),
        "Settings": settings_section(board),
    }
    return render(
        "page.html",
        Path(__file__).parent / "templates",
        title=str(board["title"] or "Perceptual metrics under attack"),
        summary=summary(board),
        facts=facts(board),
        sets=[data["id"] for data in measured_sets(board)],
        sections={name.split()[0].lower(): (name, found) for name, found in sections.items() if found},
        symbols=charts.symbols(),
        joined=joined,
        norm=norm_name,
        short=charts.short,
    )
