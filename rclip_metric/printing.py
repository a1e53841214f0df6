"""What is printed: one line per sentence, whatever the names in it hold, and nothing that moves a terminal's cursor."""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import sys
from typing import Any, NoReturn, TextIO

# Control characters, line separators, marks that turn the direction of what follows, and the halves of pairs that stand
# for the bytes of a name that is not UTF-8.
_UNSEEN = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: object) -> str:
    r"""Write out what a terminal would act on, as Python does: a text from outside, such as a path, stays on its line.

    Example:
        >>> print(printable("a\nb\x1b[31m\u202e.png"))
        a\nb\x1b[31m\u202e.png
    """
    return _UNSEEN.sub(lambda found: found[0].encode("unicode_escape").decode(), str(text))


def say(text: object) -> None:
    r"""Print one line on stdout.

    Raises:
        OSError: It cannot be written.

    Example:
        >>> say("a\nb")
        a\nb
    """
    show(f"{printable(text)}\n")


def show(text: str) -> None:
    """Print a text on stdout as it is: lines of it, whose names have been made printable.

    Raises:
        BrokenPipeError: Nobody reads any more.
        OSError: It cannot be written for another reason; says so.
    """
    try:
        sys.stdout.write(text)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OSError(error.errno, f"the output cannot be written: {error.strerror}") from error


def complain(text: object) -> None:
    """Say something on stderr, on one line; where nobody can be told, the exit code has to do."""
    try:
        sys.stderr.write(f"rclip-metric: {printable(str(text).strip())}\n")
    except OSError:
        give_up(sys.stderr)


def give_up(stream: TextIO) -> None:
    """Write no more to a stream that failed: Python would try again as it exits, and complain of that."""
    with contextlib.suppress(OSError):  # it has no descriptor, and nothing is tried again
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


class Parser(argparse.ArgumentParser):
    """An argument parser, and its parsers of commands, that quotes what was typed without obeying it."""

    def error(self, message: str) -> NoReturn:
        """Print the usage and what is wrong, and exit with 2."""
        super().error(printable(message))

    def _print_message(self, message: str, file: Any = None) -> None:
        """Write a message, and let nobody believe that it was written if it was not, as argparse does."""
        if file is sys.stdout:
            show(message)
        else:
            (file or sys.stderr).write(message)
