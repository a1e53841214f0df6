"""Settings as frozen dataclasses: their fields are a command's options, a JSON file's keys and a run's record."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from rclip_metric.json_files import LINE, OBJECT, Schema, is_number, or_null, read_json, shown

PRECISIONS = ("float32", "bfloat16", "auto")
"""What a command can be told to compute in; auto is bfloat16 where that is fast (`precision.resolved_precision`)."""

_RECIPES = Path(__file__).parents[1] / "recipes"
_FORMER_NAMES: dict[str, str] = {
    "part": "chunk_size",
    "micro_batch": "chunk_size",
}  # in files that earlier versions read
_RECIPE: Schema = {
    "command": LINE,
    "settings": OBJECT,
    **dict.fromkeys(("row?", "base?", "source?"), or_null(LINE)),
}

Config = TypeVar("Config")


def setting(
    default: Any,
    help: str,
    *,
    unit: str | None = None,
    choices: tuple[str, ...] | None = None,
    pixels: bool = False,
    least: int = 0,
) -> Any:
    """Make a field of a config.

    Args:
        default: its value where nobody says otherwise; its type is the field's.
        help: one clause, for `--help`.
        unit: of the value; shown after the clause.
        choices: the only values allowed.
        pixels: a length in [0, 1] images, which may be written as `4/255`.
        least: the smallest value allowed of a whole number (`check_counts`).

    Example:
        >>> @dataclasses.dataclass(frozen=True)
        ... class AttackConfig:
        ...     eps: float = setting(4 / 255, "radius of the ball", pixels=True)
        >>> configured(AttackConfig, None, {"eps": "51/255"})
        AttackConfig(eps=0.2)
    """
    return dataclasses.field(
        default=default, metadata={"help": help, "unit": unit, "choices": choices, "pixels": pixels, "least": least}
    )


def check_counts(config: Any) -> None:
    """Raise ValueError for the first whole number of a config, or of its tuples of them, that is below its `least`.

    Example:
        >>> @dataclasses.dataclass(frozen=True)
        ... class RunConfig:
        ...     steps: int = setting(1000, "optimiser steps", least=1)
        >>> check_counts(RunConfig(steps=0))
        Traceback (most recent call last):
        ValueError: steps must be at least 1, and it is 0
    """
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        least = field.metadata.get("least", 0)
        numbers = value if isinstance(value, tuple) else (value,)
        if any(type(number) is int and number < least for number in numbers):
            raise ValueError(f"{field.name} must be at least {least}, and it is {value}")


def add_options(
    parser: argparse.ArgumentParser,
    config: type,
    title: str | None = None,
    *,
    skip: Sequence[str] = (),
    prefix: str = "",
) -> None:
    """Add an option per field of a config; one that is not given leaves the field to the recipe or the default.

    A switch gets `--name` and `--no-name`. `configured` puts the values together.

    Args:
        parser: gets the options.
        config: the dataclass.
        title: heading of their part of the help.
        skip: fields that are no options of this command.
        prefix: before the names of the options, where another config of the command has the same; see `prefixed`.

    Example:
        >>> @dataclasses.dataclass(frozen=True)
        ... class RunConfig:
        ...     save_every: int = setting(500, "steps between states")
        >>> parser = argparse.ArgumentParser()
        >>> add_options(parser, RunConfig)
        >>> parser.parse_args(["--save-every", "20"])
        Namespace(save_every=20)
    """
    group = parser.add_argument_group(title) if title else parser
    for field in dataclasses.fields(config):
        if field.name in skip:
            continue
        about, flag = field.metadata, "--" + (prefix + field.name).replace("_", "-")
        unit = f", in {about['unit']}" if about.get("unit") else ""
        shown = _shown(field).replace("%", "%%")
        text = f"{about['help'].replace('%', '%%')}{unit} (default {shown})"
        if isinstance(field.default, bool):
            group.add_argument(flag, action=argparse.BooleanOptionalAction, default=None, help=text)
        elif about.get("choices"):
            group.add_argument(flag, choices=about["choices"], default=None, help=text)
        else:
            kind, name = _kind(field)
            group.add_argument(flag, type=kind, default=None, metavar=name, help=text)


def prefixed(options: argparse.Namespace, prefix: str) -> argparse.Namespace:
    """Pick the options that `add_options` gave a prefix, without it.

    Example:
        >>> prefixed(argparse.Namespace(epochs=40, tune_epochs=1), "tune_")
        Namespace(epochs=1)
    """
    values = vars(options).items()
    return argparse.Namespace(**{name.removeprefix(prefix): value for name, value in values if name.startswith(prefix)})


def _kind(field: dataclasses.Field[Any]) -> tuple[Callable[[str], Any], str]:
    if field.metadata.get("pixels"):
        return radius, "EPS"
    if isinstance(field.default, tuple):
        return _numbers, "X,Y"
    kinds: dict[type, tuple[Callable[[str], Any], str]] = {int: (int, "N"), float: (_number, "X"), str: (str, "TEXT")}
    return kinds[type(field.default)]


def _number(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"expected a finite number, got {text!r}")
    return value


def _numbers(text: str) -> tuple[float, ...]:
    try:
        return tuple(_number(part) for part in text.split(","))
    except (ValueError, argparse.ArgumentTypeError):
        raise argparse.ArgumentTypeError(f"{text!r} is no list of numbers: write them like 0.5,0.999") from None


def _shown(field: dataclasses.Field[Any]) -> str:
    if field.metadata.get("pixels") and isinstance(field.default, float):
        return f"{field.default * 255:g}/255"
    if isinstance(field.default, bool):
        return "yes" if field.default else "no"
    if isinstance(field.default, tuple):
        return ",".join(f"{value:g}" for value in field.default)
    return f"{field.default:g}" if isinstance(field.default, float) else str(field.default)


def configured(
    config: type[Config], options: argparse.Namespace | None = None, *layers: Mapping[str, Any] | None
) -> Config:
    """Build a config from its defaults, then `layers` in order (a recipe, a JSON file), then the options given.

    Raises:
        ValueError: if a layer has a key that is no field, or a value of another type, or one that the config refuses.

    Example:
        >>> @dataclasses.dataclass(frozen=True)
        ... class RunConfig:
        ...     steps: int = setting(1000, "optimiser steps")
        ...     seed: int = setting(0, "seed of everything")
        >>> configured(RunConfig, argparse.Namespace(seed=7), {"steps": 10, "seed": 1})
        RunConfig(steps=10, seed=7)
    """
    fields = {field.name: field for field in dataclasses.fields(config)}  # type: ignore[arg-type]
    values: dict[str, Any] = {}
    for layer in layers:
        for name, value in (layer or {}).items():
            values[name] = _checked(config, fields, name, value)
    for name in fields:
        given = getattr(options, name, None)
        if given is not None:
            values[name] = given
    return config(**values)


def _checked(config: type, fields: Mapping[str, dataclasses.Field[Any]], name: str, value: Any) -> Any:
    if name not in fields:
        raise _no_setting(name, list(fields))
    field = fields[name]
    if field.metadata.get("pixels") and isinstance(value, str):
        try:
            return radius(value)
        except argparse.ArgumentTypeError as error:
            raise ValueError(f"{name}: {error}") from None
    if isinstance(field.default, float) and type(value) is int:
        value = float(value)
    if isinstance(field.default, tuple) and isinstance(value, list) and all(map(is_number, value)):
        value = tuple(map(float, value))
    if type(value) is not type(field.default):
        raise ValueError(f"{name} must be like {field.default!r}, and it is {shown(value)}")
    if field.metadata.get("choices") and value not in field.metadata["choices"]:
        raise ValueError(f"{name} must be one of {', '.join(field.metadata['choices'])}, and it is {shown(value)}")
    return value


def _no_setting(name: str, known: Sequence[str]) -> ValueError:
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"the settings are {', '.join(known)}"
    return ValueError(f"there is no setting {shown(name)}: {hint}")


@dataclasses.dataclass(frozen=True)
class Recipe:
    """A file of settings.

    Attributes:
        name: of the file, without its ending.
        command: the task that it is for: fare, tecoa, nights or lpips.
        row: what it makes, as the paper's tables name it.
        base: the encoder to start from; None where that is up to the user.
        settings: values of the command's config, where they are not its defaults.
        source: where the numbers come from.

    Example:
        >>> recipe = read_recipe("r-clip-f")
        >>> recipe.command, recipe.base, recipe.settings["eps"]
        ('fare', 'clip-convnext-b', '4/255')
    """

    name: str
    command: str
    row: str | None
    base: str | None
    settings: Mapping[str, Any]
    source: str | None


def recipe_names(command: str | None = None) -> list[str]:
    """List the recipes that come with this package, or those of one command.

    Example:
        >>> "r-clip-f" in recipe_names("fare"), "r-clip-f" in recipe_names("tecoa")
        (True, False)
    """
    return [name for name, recipe in _shipped().items() if command in (None, recipe.command)]


@functools.cache
def _shipped() -> dict[str, Recipe]:
    return {path.stem: read_recipe(path) for path in sorted(_RECIPES.glob("*.json"))}


def read_recipe(name: str | Path, command: str | None = None) -> Recipe:
    """Read a recipe: one of `recipe_names`, or the path of a JSON file.

    The file is `{"command": "fare", "row": "R-CLIP_F ConvNeXt-B", "base": "clip-convnext-b", "settings": {"eps":
    "4/255"}, "source": "..."}`; all but `command` and `settings` may be left out.

    Raises:
        ValueError: if there is no such recipe, it is malformed, or it is for another command.

    Example:
        >>> read_recipe("r-clip-t").command
        'tecoa'
        >>> read_recipe("r-clip-t", "fare")
        Traceback (most recent call last):
        ValueError: the recipe r-clip-t is for `train tecoa`, and this is `train fare`
    """
    path = _RECIPES / f"{name}.json" if (_RECIPES / f"{name}.json").is_file() else Path(name)
    if not path.is_file():
        names = recipe_names(command)
        close = difflib.get_close_matches(str(name), names, n=2)
        known = f"did you mean {' or '.join(close)}?" if close else f"pass one of {', '.join(names)} or a JSON file"
        raise ValueError(f"there is no recipe {str(name)!r}: {known}")
    values = read_json(path, _RECIPE)
    if command is not None and values["command"] != command:
        raise ValueError(f"the recipe {path.stem} is for `train {values['command']}`, and this is `train {command}`")
    return Recipe(
        path.stem, values["command"], values.get("row"), values.get("base"), values["settings"], values.get("source")
    )


def shared_out(values: Mapping[str, Any], *configs: type) -> list[dict[str, Any]]:
    """Share out values to several configs, by the names of their fields.

    Raises:
        ValueError: for a value that none of them has.

    Example:
        >>> @dataclasses.dataclass(frozen=True)
        ... class What:
        ...     seed: int = setting(0, "seed of everything")
        >>> @dataclasses.dataclass(frozen=True)
        ... class How:
        ...     workers: int = setting(4, "threads")
        >>> shared_out({"workers": 2, "seed": 1}, What, How)
        [{'seed': 1}, {'workers': 2}]
    """
    parts: list[dict[str, Any]] = [{} for _ in configs]
    names = [[field.name for field in dataclasses.fields(config)] for config in configs]
    for name, value in values.items():
        place = next((index for index, own in enumerate(names) if name in own), None)
        if place is None:
            raise _no_setting(name, [field for own in names for field in own])
        parts[place][name] = value
    return parts


def read_settings(path: Path) -> dict[str, Any]:
    """Read a JSON file with one object of settings.

    Raises:
        ManifestError: if it cannot be read or is none.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     size = Path(folder, "settings.json").write_text('{"steps": 10}')
        ...     read_settings(Path(folder, "settings.json"))
        {'steps': 10}
    """
    return {_FORMER_NAMES.get(name) or name: value for name, value in read_json(path).items()}


def radius(text: str) -> float:
    """Parse a radius: `4/255` or `0.857`, in the scale of [0, 1] images.

    Example:
        >>> radius("51/255"), radius("0.857")
        (0.2, 0.857)
    """
    above, slash, below = text.partition("/")
    try:
        value = int(above) / int(below) if slash else float(above)  # both rounded once
    except (ValueError, ZeroDivisionError, OverflowError):
        raise argparse.ArgumentTypeError(f"{shown(text)} is not a radius: write it like 4/255 or 0.857") from None
    if not (value >= 0 and math.isfinite(value)):
        raise argparse.ArgumentTypeError(f"a radius must be finite and not negative, and {shown(text)} is not")
    return value


def positive(text: str) -> int:
    """Parse a whole number from 1.

    Example:
        >>> positive("4")
        4
    """
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a positive whole number, got {text!r}")
    return int(text)


def count(text: str) -> int:
    """Parse a whole number from 0.

    Example:
        >>> count("0")
        0
    """
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"expected a whole number from 0, got {text!r}")
    return int(text)


def add_size(parser: argparse.ArgumentParser) -> None:
    """Add `--image-size` and `--squash`: what `rclip_metric.train.models.base.load_base` does to a base.

    Example:
        >>> parser = argparse.ArgumentParser()
        >>> add_size(parser)
        >>> parser.parse_args(["--image-size", "112"])
        Namespace(image_size=112, squash=False)
    """
    parser.add_argument(
        "--image-size",
        type=positive,
        metavar="N",
        help="side of the square input in pixels, for towers of convolutions and bases timm:NAME (default: the base's)",
    )
    parser.add_argument(
        "--squash",
        action="store_true",
        help="bring whole images to the square, whatever their aspect ratio (default: as the base does)",
    )
