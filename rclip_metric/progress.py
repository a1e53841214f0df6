"""How far a job has come: a bar on a terminal, a line a minute in a log file, and nothing where stderr is a pipe."""

from __future__ import annotations

import os
import stat
import sys
import time
from collections.abc import Iterable
from typing import Any, TextIO

from tqdm import tqdm

from rclip_metric.printing import complain, printable

EVERY = 60.0
"""Seconds between two lines of a log file; a job that takes less writes none."""


def progress(
    items: Iterable[Any] | None = None,
    *,
    total: float | None = None,
    initial: float = 0,
    label: str = "",
    unit: str = "it",
    quiet: bool = False,
    leave: bool = True,
    bar_format: str | None = None,
) -> tqdm[Any]:
    """Show on stderr how far a job has come, how fast it is, and how long it will still take.

    Args:
        items: What to go through; None where the job calls `update` itself.
        total: How many there are, if `items` has no length.
        initial: How many were done before; they count in no rate.
        label: What the job is.
        unit: Of what is counted.
        quiet: Show nothing.
        leave: Leave the bar on the terminal when the job is done.
        bar_format: As tqdm takes it; a log file gets it without the bar.

    Returns:
        A tqdm, whatever is shown: it counts in a `for` or by `update`, and closes in a `with` or by `close`.

    Example:
        >>> with progress(range(3), label="squares", quiet=True) as bar:
        ...     [item**2 for item in bar]
        [0, 1, 4]
    """
    terminal, kind = sys.stderr.isatty(), tqdm
    if not terminal and is_log_file(sys.stderr):
        kind = _Lines
    return kind(
        items,
        total=total,
        initial=initial,
        desc=printable(label),
        unit=unit,
        disable=quiet or not (terminal or kind is _Lines),
        leave=leave,
        bar_format=bar_format,
        dynamic_ncols=True,
        file=sys.stderr,
    )


def is_log_file(stream: TextIO) -> bool:
    """Tell whether what is written there ends in a file on disk.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryFile("w") as file, open(os.devnull, "w") as nowhere:
        ...     is_log_file(file), is_log_file(nowhere)
        (True, False)
    """
    try:
        return stat.S_ISREG(os.fstat(stream.fileno()).st_mode)
    except (OSError, ValueError):  # it is closed, or only in memory
        return False


class _Lines(tqdm):  # type: ignore[misc]
    """A tqdm that says so in a whole line now and then: a bar is drawn over itself, which a file cannot show."""

    disable: bool  # which tqdm sets

    def __init__(self, *args: Any, **options: Any) -> None:
        self._last = time.monotonic()
        self._any = False
        super().__init__(*args, **options, mininterval=EVERY, miniters=1, delay=EVERY)

    def display(self, msg: str | None = None, pos: int | None = None) -> bool:
        """Write a line, if the last one is long enough ago."""
        due = msg is None and time.monotonic() - self._last >= EVERY
        if due:
            self._tell()
        return due

    def clear(self, nolock: bool = False) -> None:
        """Leave in the file what is in it."""

    def close(self) -> None:
        """Say how it ended, if it took long enough for a line."""
        if self.disable:
            return
        self.disable = True
        self._decr_instances(self)
        if self._any:
            self._tell()

    def _tell(self) -> None:
        self._last, self._any = time.monotonic(), True
        shown = self.bar_format
        if shown is None:
            counted = "{n_fmt}" if self.total is None else "{percentage:.0f}%, {n_fmt} of {total_fmt}"
            left = "" if self.total is None else ", {remaining} left"
            shown = ("{desc}: " if self.desc else "") + counted + " in {elapsed}" + left + ", {rate_fmt}{postfix}"
        complain(self.format_meter(**{**self.format_dict, "bar_format": shown.replace("|{bar}|", "")}))
