"""The models on offer: what is published of each, and which are on this machine."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from rclip_metric.weights.loading import is_cached
from rclip_metric.weights.local import packaged_path
from rclip_metric.weights.manifest import PACKAGED, WeightSpec, get_spec, model_names

_HEADER = ("name", "clean", "l_inf", "l_2", "on", "size", "licence", "cached", "knows")
_NUMBERS = ("clean", "l_inf", "l_2", "size")
_NOTE = """\
clean, l_inf, l_2: percent of right choices on that 2AFC set, undisturbed and under attack, as reported
(on nights, l_inf 4/255 and l_2 3.0); ? is not known. cached: "shipped" comes with the package, "no" is
downloaded when first used, "installed" and "extra" are in another package (pip install "rclip-metric[NAME]"),
"by path" is published by its authors as a plain file to be converted first (`rclip-metric manifest` says where).
knows: the only images that it can judge; empty for photographs too."""


def list_models(cache_dir: str | os.PathLike[str] | None = None) -> list[dict[str, Any]]:
    """Make one record per model of the manifest, in its order, for JSON; None is not known. Needs no network."""
    return [_record(get_spec(name), cache_dir) for name in model_names()]


def _record(spec: WeightSpec, cache_dir: str | os.PathLike[str] | None) -> dict[str, Any]:
    task = next((task for task in ("nights", *spec.reported) if "clean" in spec.reported.get(task, {})), None)
    numbers = spec.reported.get(task, {}) if task else {}
    return {
        "name": spec.name,
        "task": task,
        **{column: numbers.get(column) for column in ("clean", "linf", "l2")},
        "size": _size(spec),
        "license": spec.license,
        "source": spec.source,
        "repo": spec.repo,
        "revision": spec.revision,
        "cached": is_cached(spec, cache_dir),
        "domain": spec.domain,
    }


def _size(spec: WeightSpec) -> int | None:
    """Return the size in bytes of the file that would be loaded."""
    if not spec.candidates:
        return None
    here = packaged_path(spec) if spec.source in PACKAGED else None
    return here.stat().st_size if here else spec.candidates[0].size


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
    size = "?" if record["size"] is None else f"{record['size'] / 1e6:,.{int(record['size'] < 1e7)}f} MB"
    here = {
        ("package", True): "shipped",
        ("package", False): "missing",
        ("pypi", True): "installed",
        ("pypi", False): "extra",
        ("hub", True): "yes",
        ("hub", False): "no",
    }
    cached = here.get((record["source"], record["cached"]), "by path")
    knows = f"{record['domain']} only" if record["domain"] else ""
    return (record["name"], *numbers, record["task"] or "?", size, record["license"] or "?", cached, knows)
