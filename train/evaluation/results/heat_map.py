"""A matrix of verdicts as a picture: a row for each metric that made images, a column for each that judged them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rclip_metric.train.evaluation.results.curves import literal, new_figure, write_plot

CELL = 0.95  # inches


def heat_map(records: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw the mean verdicts of `eval inversion` into a .png, .svg or .pdf file.

    Args:
        records: of metrics that made images, on the same images and with the same judges.
        path: the file, written as a whole.

    Raises:
        ValueError: matplotlib is not installed, or the file has another suffix.
    """
    judges = list(records[0]["means"]["judged"])
    values = [[record["means"]["judged"][judge]["mean"] for judge in judges] for record in records]
    figure = new_figure(2.6 + CELL * len(judges), 1.5 + CELL * 0.7 * len(records), "constrained")
    axes = figure.subplots()
    drawn = axes.imshow(values, vmin=0, vmax=1, cmap="viridis", aspect="auto")
    axes.set_xticks(range(len(judges)), [literal(judge) for judge in judges], rotation=20, ha="right")
    axes.set_yticks(range(len(records)), [literal(record["model"]["name"]) for record in records])
    axes.set_xlabel("judged by")
    axes.set_ylabel("made by")
    for row, line in enumerate(values):
        for column, value in enumerate(line):
            axes.text(column, row, f"{value:.2f}", ha="center", va="center", color="black" if value > 0.6 else "white")
    figure.colorbar(drawn, ax=axes, label="similarity to the original")
    data = records[0]["data"]
    axes.set_title(literal(f"{data['images']} images of {data['name']}, from embeddings"), fontsize=10)
    write_plot(figure, path)
