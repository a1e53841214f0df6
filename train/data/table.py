"""Tables of comma-separated values with a header, as sets of images come with."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path

from rclip_metric.files import regular_file


def read_table(table: Path, columns: Sequence[str]) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield rows with the line of the file on which they end; the header is line 1.

    Args:
        table: UTF-8, with or without a byte order mark.
        columns: that must be there; others are read as well.

    Raises:
        ValueError: a column is missing, or it is no such file.
        OSError: it cannot be opened.
    """
    try:
        with regular_file(table).open(newline="", encoding="utf-8-sig") as handle:
            reader = csv.DictReader(handle)
            header = reader.fieldnames or ()
            if missing := [column for column in columns if column not in header]:
                raise ValueError(f"{table} lacks the column {missing[0]!r}; it has {', '.join(header) or 'none'}")
            for row in reader:
                yield reader.line_num, row
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{table} is not a UTF-8 text file of comma-separated values ({error}): replace it") from error
