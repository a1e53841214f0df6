"""Classes of images in a table: a CSV with the columns `class` and `file`, for sets whose folders do not tell."""

from __future__ import annotations

from pathlib import Path

from rclip_metric.train.data.table import read_table

COLUMNS = ("class", "file")


def read_class_table(table: Path) -> dict[Path, str]:
    """Read the class of every file that a table names; other columns are passed over.

    Args:
        table: comma-separated, UTF-8, with a header; files are relative to the folder that it is in.

    Returns:
        Resolved path -> class, in the order of the table. Whether the files are there is not looked at.

    Raises:
        ValueError: naming the table and the column or the line that is missing, malformed or there twice.
    """
    found: dict[Path, str] = {}
    folder = table.resolve().parent
    try:
        for line, row in read_table(table, COLUMNS):
            name, file = ((row[column] or "").strip() for column in COLUMNS)
            if not name or not file:
                raise ValueError(f"{table}, line {line}: class {name!r} and file {file!r}, expected both")
            path = folder / file
            if found.setdefault(path, name) != name:
                raise ValueError(f"{table}, line {line}: {file} is {name!r} here and {found[path]!r} before")
    except OSError as error:
        raise ValueError(f"the table of classes {table} cannot be read: {error.strerror}") from None
    return found
