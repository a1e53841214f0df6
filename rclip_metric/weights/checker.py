"""What a value parsed from JSON must be, and a complaint that names file or entry, and field, where it is not."""

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from rclip_metric.errors import ManifestError
from rclip_metric.files import regular_file

Kind = tuple[str, Callable[[Any], bool]]
_T = TypeVar("_T")

TEXT: Kind = ("a text", lambda value: isinstance(value, str) and value != "")
COUNT: Kind = ("a positive integer", lambda value: type(value) is int and value > 0)
PERCENT: Kind = ("percent", lambda value: type(value) in (int, float) and 0 <= value <= 100)


def one_of(choices: Iterable[str]) -> Kind:
    """Ask for one of some texts."""
    known = list(choices)
    return f"one of {', '.join(known)}", lambda value: value in known


def matching(words: str, pattern: str) -> Kind:
    """Ask for a text that a pattern matches as a whole."""
    compiled = re.compile(pattern)
    return words, lambda value: isinstance(value, str) and compiled.fullmatch(value) is not None


def or_null(kind: Kind) -> Kind:
    """Ask for a value of that kind, or null."""
    words, holds = kind
    return f"{words} or null", lambda value: value is None or holds(value)


class Checker:
    """Checks of the values in one file or entry, each of which raises ManifestError."""

    def __init__(self, where: str) -> None:
        """Begin every complaint with `where`."""
        self.where = where

    def fail(self, field: str, problem: str) -> ManifestError:
        """Return the complaint about a field, or about the whole where its name is empty."""
        return ManifestError(f"{self.where}{f', field {field!r}' if field else ''}: {problem}.")

    def value(self, field: str, value: Any, kind: Kind) -> Any:
        """Return the value if it is of that kind."""
        words, holds = kind
        if holds(value):
            return value
        raise self.fail(field, f"expected {words}, got {value!r}")

    def object(
        self, field: str, value: Any, keys: Sequence[str] | None = None, rare: Sequence[str] = ()
    ) -> Mapping[str, Any]:
        """Return a JSON object with exactly these keys, and perhaps the rare ones; any keys where none are given."""
        if not isinstance(value, Mapping):
            raise self.fail(field, f"expected an object, got {value!r}")
        prefix = f"{field}." if field else ""
        if keys is not None:
            for key in (*keys, *value):
                if key not in value:
                    raise self.fail(f"{prefix}{key}", "is missing")
                if key not in keys and key not in rare:
                    raise self.fail(f"{prefix}{key}", "is not known")
        return value

    def parsed(self, field: str, parse: Callable[[Any], _T], value: Any) -> _T:
        """Return what `parse` makes of the value; its TypeError or ValueError is the complaint."""
        try:
            return parse(value)
        except (TypeError, ValueError) as error:
            raise self.fail(field, str(error).rstrip(".")) from error


def read_json(path: Path) -> Mapping[str, Any]:
    """Read a JSON object from a file; ManifestError if it is none.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = Path(folder, "config.json").write_text('{"model_type": "vit"}')
        ...     read_json(Path(folder, "config.json"))
        {'model_type': 'vit'}
    """
    try:
        values = json.loads(regular_file(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ManifestError(f"{path} is not JSON: {error}.") from error
    if not isinstance(values, Mapping):
        raise ManifestError(f"{path} is not a JSON object.")
    return values
