"""The folder of a finished training run, read: its encoder, and the record of how that was made."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from rclip_metric.encoder import Encoder
from rclip_metric.json_files import (
    ANYTHING,
    LINE,
    OBJECT,
    Checker,
    OrNull,
    Schema,
    or_null,
    parse_json,
    read_json,
)
from rclip_metric.train.runs.config import read_settings
from rclip_metric.train.runs.files import states
from rclip_metric.train.runs.log import LOG_NAME
from rclip_metric.weights import CONFIG_NAME, WEIGHTS_NAME, SavedConfig, load_encoder

RECORD_NAME = "run.json"
# What a record says besides its recipe.
_FACTS = (
    "method", "base", "data", "recipe", "run", "seed", "versions", "device", "seconds", "made", "epochs", "best_epoch",
)  # fmt: skip
_RECORD: Schema = {
    "method": or_null(LINE),
    "recipe?": OrNull(OBJECT),
    "base?": or_null(("a name, or an object", lambda value: isinstance(value, str | dict))),
    "source?": OrNull([{"file": LINE, "sha256": LINE, "*": ANYTHING}]),
    "*": ANYTHING,
}
# An absolute path inside a text, but neither a fraction (4/255) nor an address (scheme://host/path).
_POSIX_PATH = re.compile(r"(?<![\w.:/~])/(?:[^\s/]+/)*([^\s/]+)")
_WINDOWS_PATH = re.compile(r"(?<!\w)[A-Za-z]:\\(?:[^\s\\]+\\)*([^\s\\]+)")


@dataclass(frozen=True)
class FinishedRun:
    """A run that has reached its end.

    Attributes:
        folder: where it is.
        encoder: its result, on the CPU.
        saved: the configuration that was written with the encoder.
        record: run.json, with absolute paths cut down to their last part: it is to be published.
        last: the last line of the log that has a loss; None without a log.

    Example:
        >>> import tempfile
        >>> from rclip_metric.weights import save_encoder
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     run = save_encoder(load_encoder("tiny"), Path(folder))
        ...     size = (run / RECORD_NAME).write_text('{"method": "FARE", "eps": "2/255", "seed": 3}')
        ...     finished = read_run(run)
        >>> finished.method, finished.recipe
        ('FARE', {'eps': '2/255', 'seed': 3})
    """

    folder: Path
    encoder: Encoder
    saved: SavedConfig
    record: dict[str, Any]
    last: dict[str, Any] | None

    @property
    def method(self) -> str:
        """E.g. FARE; "unknown" for a converted checkpoint of which nobody has said it."""
        return str(self.record["method"] or "unknown")

    @property
    def base(self) -> str | None:
        """The name of the encoder that it started from."""
        stated = self.record.get("base")
        return stated.get("name") if isinstance(stated, dict) else stated

    @property
    def sources(self) -> list[dict[str, str]]:
        """For a converted checkpoint: each file that it was made from, with its sha256."""
        return self.record.get("source") or [] if self.record.get("command") == "convert" else []

    @property
    def recipe(self) -> dict[str, Any]:
        """The settings that say what was computed, the seed last."""
        recipe = self.record.get("recipe")
        if recipe is None and self.sources:
            recipe = {}
        elif recipe is None:  # records that keep their settings beside the facts
            recipe = {key: value for key, value in self.record.items() if key not in _FACTS}
        seed = {"seed": self.record["seed"]} if "seed" in self.record else {}
        return {**recipe, **seed}

    @property
    def training(self) -> dict[str, str | None]:
        """method, norm, eps, data and base, as the manifest has them."""
        if self.saved.spec.training is not None:
            return self.saved.spec.training
        path = facts(self.record, "data").get("path")
        name = PurePosixPath(path).name if isinstance(path, str) else None
        return {"method": self.method, "norm": None, "eps": None, "data": name or None, "base": self.base}


def facts(record: dict[str, Any], key: str) -> dict[str, Any]:
    """Take a part of the record that is an object, empty where it is not there."""
    value = record.get(key)
    return value if isinstance(value, dict) else {}


def read_run(folder: Path) -> FinishedRun:
    """Read what a training command left in its --out.

    Raises:
        ValueError: it is no run, has not reached its end, or its record or log is damaged.
        WeightsError: the encoder in it cannot be loaded.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     log = Path(folder, LOG_NAME).write_text('{"step": 1, "loss": 0.5}')
        ...     read_run(Path(folder))  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ValueError: the run in ... is not finished, model.safetensors and config.json and run.json are missing: ...
    """
    if not folder.is_dir():
        raise ValueError(f"there is no folder {folder}: pass the --out of a `rclip-metric train` command")
    if (folder / "lipsim.safetensors").is_file() and not (folder / WEIGHTS_NAME).exists():
        raise ValueError(
            f"{folder} is a run of `rclip-metric train lipsim`, whose metric is no encoder with a manifest entry: "
            "publish its lipsim.safetensors and README.md as they are, or `rclip-metric train pack` it"
        )
    missing = [name for name in (WEIGHTS_NAME, CONFIG_NAME, RECORD_NAME) if not (folder / name).is_file()]
    if missing:
        raise ValueError(_what_is_missing(folder, missing))
    record = read_settings(folder / RECORD_NAME)
    record = _portable(Checker(str(folder / RECORD_NAME)).matches("", record, _RECORD))
    saved = SavedConfig.read(read_json(folder / CONFIG_NAME), str(folder / CONFIG_NAME))
    return FinishedRun(folder, load_encoder(folder), saved, record, _last_line(folder / LOG_NAME))


def _what_is_missing(folder: Path, missing: list[str]) -> str:
    names = f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing"
    newest = [*folder.glob("state.safetensors"), *states(folder)][-1:]
    if not newest and not (folder / LOG_NAME).exists():
        return f"{folder} is no training run, {names}: pass the --out of a `rclip-metric train` command"
    where = f" from {newest[0].name}" if newest else ""
    return f"the run in {folder} is not finished, {names}: give its command again, it goes on{where}"


def _last_line(path: Path) -> dict[str, Any] | None:
    if not path.exists():
        return None
    found = None
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        values = parse_json(line, f"{path}, line {number},", finite=False)
        if isinstance(values, dict) and isinstance(values.get("loss"), float):
            found = values
    return found


def _portable(value: Any) -> Any:
    """Give the same JSON without the folders of this machine."""
    if isinstance(value, dict):
        return {key: _portable(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_portable(part) for part in value]
    if not isinstance(value, str):
        return value
    for path in (PurePosixPath(value), PureWindowsPath(value)):
        if path.is_absolute() and path.name:
            return path.name
    return _WINDOWS_PATH.sub(r"\1", _POSIX_PATH.sub(r"\1", value))
