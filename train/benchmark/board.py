"""All that a benchmark found, as one JSON object: what the tables and the page are made from."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from typing import Any

import torch

from rclip_metric.train.attacks.threat import LpBall
from rclip_metric.train.benchmark.entry import Data, MetricEntry, first_triplets
from rclip_metric.train.benchmark.settings import BenchmarkSettings
from rclip_metric.train.evaluation.certificates.lipschitz import certified_curve
from rclip_metric.train.evaluation.results.bootstrap import summary
from rclip_metric.train.evaluation.results.labels import SCENES, Record, data_label, interval_label, named
from rclip_metric.train.evaluation.results.outcome import unpack
from rclip_metric.train.evaluation.results.record import short_revision
from rclip_metric.train.evaluation.tasks.cue_conflict import CueConflictData
from rclip_metric.train.evaluation.tasks.two_afc import TwoAfcData, files_of
from rclip_metric.train.metrics.base import Facts
from rclip_metric.train.metrics.paper import REPORTED, reported
from rclip_metric.train.metrics.registry import BASELINES
from rclip_metric.train.runs.machine import device_record, versions
from rclip_metric.weights import get_spec, model_names

PAPER_SETS = ("nights", "bapps")
_SCENES = (
    "Scenes are drawn by a program, flat and without noise, and an option often is the reference but for one thing: "
    "distances of pixels do well here, as they do not on photographs. What scenes show is what an attack does to a "
    "network before and after it was made robust."
)


def board(
    entries: Sequence[MetricEntry], sets: Mapping[str, Data], settings: BenchmarkSettings, command: str
) -> dict[str, Any]:
    """Gather what is there so far; whatever is missing is null or empty.

    Returns:
        JSON: title, made, command, settings, versions, device, cores; `data` and `threats` (the columns),
        `metrics` (the rows, each with results, sweep, direct and timing), `examples`, and `paper` (the numbers of
        the papers, whether or not the metric was run here). Where there are results of retrieval and filters, a
        benchmark adds them (`read_searches`).
    """
    records = (record for entry in entries for found in entry.records.values() for record in found)
    device = next((record["device"] for record in records), device_record(torch.device("cpu")))
    return {
        "title": settings.title,
        "made": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": command,
        "settings": settings.as_json(),
        "versions": versions(),
        "device": device,
        "cores": os.cpu_count(),
        "data": [_data(name, data, entries) for name, data in sets.items()],
        "threats": [_threat(ball, settings) for ball in settings.balls],
        "metrics": [_metric(entry, sets) for entry in entries],
        "examples": _examples(entries, sets, settings),
        "paper": _paper(entries),
    }


def _data(name: str, data: Data, entries: Sequence[MetricEntry]) -> dict[str, Any]:
    first = next((records[0] for entry in entries if (records := entry.records.get(name))), None)
    judges = None if isinstance(data, CueConflictData) else data.judges
    left_out = data.left_out if isinstance(data, CueConflictData) else ()
    note = _SCENES if judges == SCENES else None
    if left_out:
        note = f"{len(left_out)} images are no references; the first: {left_out[0]}."
    return {
        "id": name,
        "label": data_label(first) if first else name,
        "task": first["task"] if first else None,
        "samples": first["data"]["samples"] if first else None,
        "intervals": interval_label(first) if first else None,
        "comparable": bool(first and first["data"].get("published")),
        "judges": judges,
        "note": note,
    }


def _threat(ball: LpBall, settings: BenchmarkSettings) -> dict[str, Any]:
    restarts = f"{settings.restarts} restart{'s' * (settings.restarts > 1)}"
    words = f"APGD, {settings.steps} iterations, cross-entropy, {restarts}"
    eps_text = str(ball).split()[1]
    return {"id": str(ball), "norm": ball.norm, "eps": ball.eps, "eps_text": eps_text, "words": words}


def _metric(entry: MetricEntry, sets: Mapping[str, Data]) -> dict[str, Any]:
    facts, about = entry.facts or Facts(), entry.about
    label = named({**about, "revision": None}) if about else entry.name
    return {
        "id": entry.name,
        "label": facts.label or label,
        "revision": short_revision(about.get("revision")) or None,
        "kind": entry.kind,
        "similarity": about.get("similarity"),
        "image_size": entry.image_size,
        "parameters": facts.parameters,
        "licence": facts.licence,
        "source": facts.source,
        "failures": entry.failures,
        "timing": entry.timing,
        "results": {name: _result(records) for name, records in entry.records.items()},
        "sweep": _sweep(entry, sets),
        "direct": {_ball(found): {key: found[key] for key in ("distances", "others")} for found in entry.direct},
    }


def _ball(record: Mapping[str, Any]) -> str:
    return f"{record['threat']['norm']} {record['threat']['eps_text']}"


def _result(records: Sequence[Record]) -> dict[str, Any]:
    """Gather one metric on one data set: the clean summary, one per ball, what is certified, and that under noise."""
    first = records[0]
    robust = {_ball(record): record for record in records if _attacked(record)}
    proven = [record for record in records if record["threat"]["attack"] == "certified"]
    # What is to be said of noise is said once, of all metrics: `page.proof.confidence`.
    warnings = [record["warnings"] for record in records if record["threat"]["attack"] != "smoothing"]
    numbers = {"clean": reported(first, "clean")} | {ball: reported(r, "robust") for ball, r in robust.items()}
    return {
        "samples": first["data"]["samples"],
        "ties": first["clean"]["ties"],
        "clean": _summary(first["clean"]),
        "robust": {ball: _summary(record["robust"]) for ball, record in robust.items()},
        "paper": {name: number for name, number in numbers.items() if number is not None},
        "certified": _certified(proven) if proven else None,
        "smoothed": _smoothed([record for record in records if record["threat"]["attack"] == "smoothing"]),
        "warnings": list(dict.fromkeys(sentence for sentences in warnings for sentence in sentences)),
    }


def _attacked(record: Record) -> bool:
    return record["threat"]["attack"] not in ("none", "certified", "smoothing") and record["robust"] is not None


def _summary(found: Mapping[str, Any]) -> dict[str, Any]:
    return {key: found[key] for key in ("accuracy", "interval_95", "samples")}


def _certified(records: Sequence[Record]) -> dict[str, Any]:
    points = []
    for record in sorted(records, key=lambda record: record["threat"]["eps"]):
        points.append({key: record["threat"][key] for key in ("eps", "eps_text")} | _summary(record["robust"]))
    return {"points": points, **certified_curve(records[0])}


def _smoothed(records: Sequence[Record]) -> list[dict[str, Any]]:
    """Gather what is certified under noise, by rising sigma; the draws of one sigma serve all radii."""
    found = []
    for sigma in sorted({record["threat"]["sigma"] for record in records}):
        members = [record for record in records if record["threat"]["sigma"] == sigma]
        about = {key: members[0]["threat"][key] for key in ("sigma", "n0", "n", "confidence")}
        told = {key: members[0]["smoothing"][key] for key in ("abstained", "right", "draws")}
        found.append({**about, **told, "seconds": members[0]["seconds"], **_certified(members)})
    return found


def _sweep(entry: MetricEntry, sets: Mapping[str, Data]) -> dict[str, dict[str, list[list[float]]]]:
    """Collect accuracy against the radius on the swept samples: (eps, percent, low, high), the clean accuracy at 0."""
    name = next((name for name, records in entry.records.items() if any(map(_attacked, records))), None)
    if name is None:
        return {}
    data = sets[name]
    assert isinstance(data, TwoAfcData)  # no other is attacked
    files = {triplet.key: files_of(triplet) for triplet in data.triplets}
    keys = {row.key for row in unpack(entry.sweep[0])} if entry.sweep else None
    curves: dict[str, list[list[float]]] = {}
    for record in filter(_attacked, entry.records[name]):
        norm = record["threat"]["norm"]
        rows = [row for row in unpack(record) if row.robust is not None and (keys is None or row.key in keys)]
        images = [files[row.key] for row in rows] if record["settings"].get("resample") == "images" else None
        clean, robust = (
            summary([getattr(row, what) for row in rows], [""] * len(rows), macro=False, images=images)
            for what in ("clean", "robust")
        )
        points = curves.setdefault(norm, [_point(0.0, clean)])
        points.append(_point(record["threat"]["eps"], robust))
    for record in entry.sweep:
        curves[record["threat"]["norm"]].append(_point(record["threat"]["eps"], record["robust"]))
    return {name: {norm: sorted(points) for norm, points in curves.items()}}


def _point(eps: float, found: Mapping[str, Any]) -> list[float]:
    return [eps, found["accuracy"], *found["interval_95"]]


def _examples(
    entries: Sequence[MetricEntry], sets: Mapping[str, Data], settings: BenchmarkSettings
) -> list[dict[str, Any]]:
    """List triplets, each with what every metric made of it; the images are of the metric that has them largest."""
    shown: dict[str, dict[str, Any]] = {}
    first, own = first_triplets(sets), ("attacked", "perturbation", "before", "after")
    for entry in sorted(entries, key=lambda entry: -(entry.image_size or 0)):
        for found in entry.examples:
            if "failed" in found:
                continue  # told among the samples that could not be read
            other = (*own, "right_before", "right_after")
            about = {key: value for key, value in found.items() if key not in other}
            about |= {"data": first, "threat": str(settings.balls[0]), "metrics": {}}
            shown.setdefault(found["key"], about)["metrics"][entry.name] = {key: found[key] for key in own}
    return list(shown.values())


def _paper(entries: Sequence[MetricEntry]) -> list[dict[str, Any]]:
    """List the papers' numbers on NIGHTS and BAPPS, best under l_inf first; `metric` is the row here, if any."""
    asked = {entry.name for entry in entries}
    known = {name: get_spec(name).reported for name in model_names()} | dict(REPORTED)
    rows: list[dict[str, Any]] = []
    for name, numbers in known.items():
        if numbers.get("nights"):
            label = BASELINES[name].label if name in BASELINES else name
            sets = {task: dict(numbers[task]) if numbers.get(task) else None for task in PAPER_SETS}
            rows.append({"label": label, "metric": name if name in asked else None, **sets})
    return sorted(rows, key=lambda row: -(row["nights"].get("linf") or 0.0))
