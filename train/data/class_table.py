"""Classes of images in a table: a CSV with the columns ``class`` and ``file``, for sets whose folders do not tell."""

from __future__ import annotations

import csv
from pathlib import Path

COLUMNS = ("class", "file")


def read_class_table(table: Path) -> dict[Path, str]:
    """The class of every file that a table names; other columns are passed over.

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
        with table.open(newline="", encoding="utf-8-sig") as handle:
            reader = csv.DictReader(handle)
            header = reader.fieldnames or ()
            if missing := [column for column in COLUMNS if column not in header]:
                raise ValueError(f"{table} lacks the column {missing[0]!r}; it has {', '.join(header) or 'none'}")
            for row in reader:
                name, file = ((row[column] or "").strip() for column in COLUMNS)
                if not name or not file:
                    raise ValueError(
                        f"{table}, line {reader.line_num}: class {name!r} and file {file!r}, expected both"
                    )
                path = folder / file
                if found.setdefault(path, name) != name:
                    raise ValueError(
                        f"{table}, line {reader.line_num}: {file} is {name!r} here and {found[path]!r} before"
                    )
    except OSError as error:
        raise ValueError(f"the table of classes {table} cannot be read: {error.strerror}") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{table} is not a UTF-8 text file of comma-separated values ({error}): replace it") from error
    return found
