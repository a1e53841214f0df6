"""JSON that is read back: one strict reader with limits, and checks whose complaint names the file and the field."""

import json
import math
import re
import stat
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from rclip_metric.errors import ManifestError

MOST_BYTES, MOST_VALUES, MOST_LEVELS, MOST_DIGITS = 32 << 20, 4_000_000, 64, 40
"""Of a file or text; the largest that this package writes has a tenth of each."""

Kind = tuple[str, Callable[[Any], bool]]
_T = TypeVar("_T")


@dataclass(frozen=True)
class OrNull:
    """What a value must be that may also be null."""

    schema: "Schema"


Schema = Kind | OrNull | dict[str, Any] | list[Any]
"""What a value must be: of a kind; `[schema]`, a list of such; or a dict of schemas by key, an object with these keys.

A key that ends in "?" may be left out, and "*" stands for all keys that are not named: without it there are no others.
"""


def _printable(value: Any) -> bool:
    return isinstance(value, str) and value != "" and value.isprintable()


def is_number(value: Any) -> bool:
    """Return whether a value is a finite number, and no truth value."""
    return type(value) in (int, float) and math.isfinite(value)


_LIST: Kind = ("a list", lambda value: isinstance(value, list | tuple))  # libraries make tuples of lists
ANYTHING: Kind = ("anything", lambda value: True)
OBJECT: Schema = {"*": ANYTHING}
TEXT: Kind = ("a text", lambda value: isinstance(value, str) and value != "")
LINE: Kind = ("a text", _printable)
TRUTH: Kind = ("true or false", lambda value: type(value) is bool)
COUNT: Kind = ("a positive integer", lambda value: type(value) is int and value > 0)
NATURAL: Kind = ("an integer from 0", lambda value: type(value) is int and value >= 0)
NUMBER: Kind = ("a number", is_number)
PERCENT: Kind = ("percent", lambda value: is_number(value) and 0 <= value <= 100)


def at_most(kind: Kind, most: int) -> Kind:
    """Ask for a number of that kind that is not above a limit."""
    words, holds = kind
    return f"{words} up to {most}", lambda value: holds(value) and value <= most


def one_of(choices: Iterable[Any]) -> Kind:
    """Ask for one of some texts or numbers."""
    known = list(choices)
    words = f"one of {', '.join(map(str, known))}" if len(known) > 1 else str(known[0])
    return words, lambda value: any(type(value) is type(choice) and value == choice for choice in known)


def matching(words: str, pattern: str) -> Kind:
    """Ask for a text that a pattern matches as a whole."""
    compiled = re.compile(pattern)
    return words, lambda value: isinstance(value, str) and compiled.fullmatch(value) is not None


def or_null(kind: Kind) -> Kind:
    """Ask for a value of that kind, or null."""
    words, holds = kind
    return f"{words} or null", lambda value: value is None or holds(value)


def listed(kind: Kind) -> Kind:
    """Ask for a list of values of that kind, which is told as a whole: for long ones."""
    words, holds = kind
    return f"a list, each of which is {words}", lambda value: isinstance(value, list) and all(map(holds, value))


def shown(value: Any) -> str:
    """Quote a value in a sentence: on one line, and its beginning where it is long.

    Example:
        >>> shown(list(range(100)))
        '[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 2...'
    """
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


class Checker:
    """Checks of the values in one file or entry, each of which raises ManifestError."""

    def __init__(self, where: str) -> None:
        """Begin every complaint with `where`."""
        self.where = where

    def fail(self, field: str, problem: str) -> ManifestError:
        """Return the complaint about a field, or about the whole where its name is empty."""
        return ManifestError(f"{self.where}{f', field {shown(field)}' if field else ''}: {problem}.")

    def value(self, field: str, value: Any, kind: Kind) -> Any:
        """Return the value if it is of that kind."""
        words, holds = kind
        if holds(value):
            return value
        raise self.fail(field, f"expected {words}, got {shown(value)}")

    def matches(self, field: str, value: Any, schema: Schema) -> Any:
        """Return the value if it is what a schema says, with all that is inside.

        Example:
            >>> schema = {"runs": [{"steps": COUNT, "seed?": NUMBER}]}
            >>> Checker("run.json").matches("", {"runs": [{"steps": -1}]}, schema)
            Traceback (most recent call last):
                ...
            rclip_metric.errors.ManifestError: run.json, field 'runs[0].steps': expected a positive integer, got -1.
        """
        if isinstance(schema, tuple):
            return self.value(field, value, schema)
        if isinstance(schema, OrNull):
            return None if value is None else self.matches(field, value, schema.schema)
        if isinstance(schema, list):
            for index, item in enumerate(self.value(field, value, _LIST)):
                self.matches(f"{field}[{index}]", item, schema[0])
            return value
        parts = {key.removesuffix("?"): part for key, part in schema.items()}
        needed = [key for key in schema if key != "*" and not key.endswith("?")]
        others = value if "*" in schema and isinstance(value, Mapping) else ()
        found = self.object(field, value, needed, {*parts, *others})
        for key, item in found.items():
            self.matches(f"{field}.{key}" if field else key, item, parts[key if key in parts else "*"])
        return value

    def object(
        self, field: str, value: Any, keys: Sequence[str] | None = None, rare: Collection[str] = ()
    ) -> Mapping[str, Any]:
        """Return a JSON object with exactly these keys, and perhaps the rare ones; any keys where none are given."""
        if not isinstance(value, Mapping):
            raise self.fail(field, f"expected an object, got {shown(value)}")
        prefix = f"{field}." if field else ""
        if keys is not None:
            for key in (*keys, *value):
                if key not in value:
                    raise self.fail(f"{prefix}{key}", "is missing")
                if key not in keys and key not in rare:
                    raise self.fail(f"{prefix}{key}", "is not known")
        return value

    def parsed(self, field: str, parse: Callable[[Any], _T], value: Any) -> _T:
        """Return what `parse` makes of the value; its ValueError is the complaint."""
        try:
            return parse(value)
        except ValueError as error:
            raise self.fail(field, str(error).rstrip(".")) from error


def parse_json(text: str | bytes, where: str, *, finite: bool = True) -> Any:
    """Parse a JSON text strictly.

    No key comes twice, no number is NaN, infinite or longer than an integer of 128 bits, all text can be written as
    UTF-8, and size and depth have limits.

    Args:
        text: bytes are UTF-8.
        where: what it is, as the subject of a sentence.
        finite: refuse NaN and infinite numbers, which the log of a run may hold.

    Raises:
        ManifestError: Says why it is none.

    Example:
        >>> parse_json('{"seed": 1, "seed": 2}', "run.json")
        Traceback (most recent call last):
            ...
        rclip_metric.errors.ManifestError: run.json is not JSON that can be read: the key 'seed' is there twice.
    """
    try:
        if len(text) > MOST_BYTES:
            raise ValueError(f"it has {len(text)} bytes, and {MOST_BYTES} are the most")
        text = text if isinstance(text, str) else text.decode("utf-8")
        if sum(map(text.count, ",[{")) > MOST_VALUES:
            raise ValueError(f"it has more than {MOST_VALUES} values")
        number = _finite if finite else float
        value = json.loads(
            text, object_pairs_hook=_object, parse_int=_integer, parse_float=number, parse_constant=number
        )
        _check_depth(value)
        if "\\u" in text:  # half of a pair of surrogates can be written so, and is no character
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except RecursionError as error:
        raise ManifestError(f"{where} is not JSON that can be read: {_TOO_DEEP}.") from error
    except ValueError as error:
        raise ManifestError(f"{where} is not JSON that can be read: {str(error).rstrip('.')}.") from error
    return value


_TOO_DEEP = f"it nests more than {MOST_LEVELS} levels deep"


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        name = Counter(name for name, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"the key {shown(name)} is there twice")
    return found


def _integer(digits: str) -> int:
    if len(digits) > MOST_DIGITS:
        raise ValueError(f"the integer {digits[:MOST_DIGITS]}... has {len(digits)} digits")
    return int(digits)


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{shown(text)} is not a finite number")
    return value


def _check_depth(value: Any) -> None:
    level = [value]
    for _ in range(MOST_LEVELS):
        inner = [item.values() if isinstance(item, dict) else item for item in level if isinstance(item, dict | list)]
        level = [item for items in inner for item in items]
        if not level:
            return
    raise ValueError(_TOO_DEEP)


def read_json(path: Path, schema: Schema = OBJECT) -> Any:
    """Read a JSON file as `parse_json` does, and check what is in it: an object, where no schema says more.

    Raises:
        ManifestError: It cannot be read, is no JSON, or says something else than it should.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = Path(folder, "config.json").write_text('{"model_type": "vit"}')
        ...     read_json(Path(folder, "config.json"))
        {'model_type': 'vit'}
    """
    try:
        if path.exists() and not stat.S_ISREG(path.stat().st_mode):
            raise ManifestError(f"{path} is no file with JSON in it.")
        with path.open("rb") as file:
            text = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise ManifestError(f"{path} cannot be read: {error.strerror or error}.") from error
    return Checker(str(path)).matches("", parse_json(text, str(path)), schema)
