"""Tables of comma-separated values with a header, as sets of images come with."""

from __future__ import annotations

import csv
import os
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


def place_in(folder: Path, name: str, allow_outside: bool = False) -> Path:
    """Find the file that a table calls `name`, in the folder that its names are relative to.

    A table is text that came with a set, and may name any file of this machine. Links are another matter: somebody laid
    them here, and they are followed wherever they lead.

    Raises:
        ValueError: it is an absolute path or has `..` in it, and leads out of the folder, which is not allowed.

    Example:
        >>> place_in(Path("set"), "ref/../left/1.png").as_posix()
        'set/left/1.png'
        >>> place_in(Path("set"), "../private.png")
        Traceback (most recent call last):
        ValueError: '../private.png' leads out of the folder set: correct it, or pass --allow-outside if you trust ...
    """
    if allow_outside or not (os.path.isabs(name) or ".." in Path(name).parts):
        return folder / name
    root = os.path.abspath(folder)
    place = os.path.normpath(os.path.join(root, name))
    if not Path(place).is_relative_to(root):
        raise ValueError(
            f"{name!r} leads out of the folder {folder}: correct it, or pass --allow-outside if you trust the table"
        )
    return folder / os.path.relpath(place, root)
