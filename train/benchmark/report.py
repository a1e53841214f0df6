"""The file of a benchmark: one for each kind of machine, whole after every part, and never another machine's."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from rclip_metric.train.benchmark.turns import Waiting, kind_of, machine_record
from rclip_metric.train.runs.files import write_json


def result_path(out: Path, name: str, kind: str) -> Path:
    """Name the file that a benchmark writes on a kind of machine: in a folder its own, a `.json` as it is.

    Args:
        out: A folder, or a file that ends in .json.
        name: Of the benchmark.
        kind: Of the machine, as `machine_record` says it.

    Example:
        >>> result_path(Path("results"), "benchmark_attack", "AVX-512").name
        'benchmark_attack_avx512.json'
        >>> result_path(Path("mine.json"), "benchmark_attack", "GPU").name
        'mine.json'
    """
    suffix = "".join(letter for letter in kind.lower() if letter.isalnum())
    return out if out.suffix == ".json" else out / f"{name}_{suffix}.json"


class Report:
    """What a benchmark found on this machine: kept after every part, beside the parts that were measured before.

    Attributes:
        path: Of its JSON; None for a report that is not written.
        record: JSON: `machine` (with `pressure`, the share of the time in which some task waited for a core),
            `settings`, `results` by part; `earlier`, if any part is of another call: that one's machine and settings.

    Example:
        >>> from tempfile import mkdtemp
        >>> folder = Path(mkdtemp())
        >>> for part in ("first", "second"):
        ...     report = Report("sums", folder, {"repeats": 3})
        ...     report.add(part, {"ratio": 2.0})
        >>> list(report.record["results"]), list(report.record["earlier"])
        (['first', 'second'], ['first'])
        >>> report.path == result_path(folder, "sums", report.record["machine"]["kind"])
        True
    """

    def __init__(
        self, name: str, out: Path | None, settings: Mapping[str, Any], *, device: torch.device | str = "cpu"
    ) -> None:
        """Begin, with what the file holds already.

        Raises:
            ValueError: it is of another kind of machine, or no report.
        """
        machine, self._waiting = machine_record(device), Waiting()
        self.path = None if out is None else result_path(out, name, machine["kind"])
        self.record: dict[str, Any] = {"machine": machine, "settings": dict(settings), "results": {}}
        if self.path is not None and self.path.exists():
            self._go_on_from(self.path)

    def _go_on_from(self, path: Path) -> None:
        before = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(before, dict) or not isinstance(before.get("results"), dict):
            raise ValueError(f"{path} is no report of a benchmark: write to another file, or to a folder")
        theirs, own = before.get("machine", {}), self.record["machine"]["kind"]
        kind = theirs.get("kind") or kind_of(theirs)
        if kind != own:
            raise ValueError(
                f"{path} is of a machine of another kind ({kind or 'not stated'}; this one is {own}): give --out a "
                "folder, where each kind has a file of its own"
            )
        about = {"machine": theirs, "settings": before.get("settings")}
        self.record["results"] = before["results"]
        self.record["earlier"] = {part: about for part in before["results"]} | before.get("earlier", {})

    def add(self, part: str, found: Any) -> None:
        """Keep a part, in place of one of its name, and write what there is so far."""
        self.record["results"][part] = found
        self.record["machine"]["pressure"] = self._waiting.share()
        self.record.get("earlier", {}).pop(part, None)
        if not self.record.get("earlier", True):
            del self.record["earlier"]
        self.write()

    def write(self) -> None:
        """Write the record, if it is to be written."""
        if self.path is not None:
            write_json(self.path, self.record)


def outlined(name: str, value: Any, without: str = "") -> str:
    """Write a nested result as lines of text, a line for each record of plain figures; keys `without` are left out.

    Example:
        >>> print(outlined("loss", {"naive": {"seconds": 2.0, "ratio": 1.0}, "ours": {"seconds": 0.51234}}))
        loss
          naive                                  seconds 2  ratio 1
          ours                                   seconds 0.5123
        >>> print(outlined("top", [{"operation": "conv", "share": 0.5}]))
        top
          conv                                0.5
    """
    return "\n".join(_lines(name, value, "", without))


def _lines(name: str, value: Any, indent: str, without: str) -> list[str]:
    if isinstance(value, list) and value and isinstance(value[0], dict):
        rows = ["  ".join(f"{_figure(entry):<34}" for entry in row.values()).rstrip() for row in value]
        return [f"{indent}{name}", *(f"{indent}  {row}" for row in rows)]
    if not isinstance(value, dict):
        return [f"{indent}{name:<38} {_figure(value)}"]
    value = {key: entry for key, entry in value.items() if key != without}
    if indent and value and not any(isinstance(entry, dict | list) for entry in value.values()):
        return [f"{indent}{name:<38} " + "  ".join(f"{key} {_figure(entry)}" for key, entry in value.items())]
    return [
        f"{indent}{name}",
        *(line for key, entry in value.items() for line in _lines(key, entry, indent + "  ", without)),
    ]


def _figure(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
