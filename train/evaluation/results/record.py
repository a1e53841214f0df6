"""Result records: one JSON per model, data set and threat model, with the outcome of every sample inside."""

from __future__ import annotations

import hashlib
import json
import math
import platform
import re
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rclip_metric.json_files import shown
from rclip_metric.train.attacks.threat import LpBall
from rclip_metric.train.evaluation.results.bootstrap import summary
from rclip_metric.train.evaluation.results.outcome import Outcome, pack, unpack
from rclip_metric.train.evaluation.results.schema import check_record
from rclip_metric.train.metrics.paper import is_published
from rclip_metric.train.runs.files import read_sealed, write_sealed
from rclip_metric.train.runs.machine import device_record

SCHEMA = 1
PACKAGES = ("rclip-metric", "torch", "torchvision", "open_clip_torch", "timm", "pillow")
# What a file name leaves out because it is the paper's setting; None stands for "not said".
USUAL: dict[str, tuple[Any, ...]] = {
    "resize": (None, "published"),
    "reading": (None, "published"),
    "protocol": (None, "2afc", "majority"),
    "loss": (None, "ce", "cross-entropy", "embedding"),
    "steps": (None, 100),
    "restarts": (None, 1),
    "targets": (None, 9),
    "n0": (None, 100),  # of a smoothing, as are the next two
    "n": (None, 1000),
    "confidence": (None, 0.999),
    "seed": (None, 0),
    "precision": (None, "float32"),
    "resample": (None, "samples"),
}


@dataclass(frozen=True)
class Effort:
    """What an evaluation took, and what its attack met.

    Attributes:
        seconds: of the whole evaluation.
        passes: images that went through the model, each as often as it did; None where they were not counted.
        processes: how many ran it.
        device: where the model ran.
        largest_violation: by how much the worst point left the ball or the box; None without an attack.
        zero_gradients: samples that met an all-zero gradient.
        nonfinite_gradients: samples that met a gradient with NaN or infinity.

    Example:
        >>> Effort(seconds=2.0, passes=100).describe()["images_per_second"]
        50.0
    """

    seconds: float
    passes: int | None = None
    processes: int = 1
    device: torch.device | str = "cpu"
    largest_violation: float | None = None
    zero_gradients: int = 0
    nonfinite_gradients: int = 0

    def describe(self) -> dict[str, Any]:
        """Say it in the record's own words: JSON."""
        speed = None if self.passes is None or self.seconds <= 0 else round(self.passes / self.seconds, 2)
        return {
            "device": device_record(torch.device(self.device)),
            "processes": self.processes,
            "seconds": round(self.seconds, 3),
            "passes": self.passes,
            "images_per_second": speed,
        }


@dataclass(frozen=True)
class Averaging:
    """How the scores of samples become a mean with its interval.

    Attributes:
        macro: average over splits, not over samples (BAPPS).
        images_of: the images of the sample of a key, for intervals over images (`image_interval`); None for the
            bootstrap over samples.
        seed: of the bootstrap.
        resamples: of the bootstrap.

    Example:
        >>> right, wrong = (1.0, False, 0.1), (0.0, False, -0.1)
        >>> rows = [Outcome("1", "a", *right), Outcome("2", "a", *right), Outcome("3", "b", *wrong)]
        >>> [Averaging(macro).summaries(rows)["clean"]["accuracy"] for macro in (False, True)]
        [66.6667, 50.0]
    """

    macro: bool = False
    images_of: Callable[[str], Sequence[Hashable]] | None = None
    seed: int = 0
    resamples: int = 10_000

    def describe(self) -> dict[str, Any]:
        """Name the settings: JSON."""
        bootstrap = {"seed": self.seed, "resamples": self.resamples} if self.images_of is None else None
        return {"macro": self.macro, "bootstrap": bootstrap}

    def summaries(self, rows: Sequence[Outcome]) -> dict[str, Any]:
        """Average the clean scores of samples, and the robust ones of those that were attacked (None if none was)."""
        attacked = [row for row in rows if row.robust is not None]
        return {
            "clean": self._summary(rows, [row.clean for row in rows]),
            "robust": self._summary(attacked, [row.robust for row in attacked if row.robust is not None]),
        }

    def _summary(self, rows: Sequence[Outcome], scores: Sequence[float]) -> dict[str, Any] | None:
        if not rows:
            return None
        images = None if self.images_of is None else [self.images_of(row.key) for row in rows]
        splits = [row.split for row in rows]
        return summary(scores, splits, macro=self.macro, images=images, seed=self.seed, resamples=self.resamples)


def record(
    outcomes: Sequence[Outcome],
    *,
    task: str,
    model: Mapping[str, Any],
    data: Mapping[str, Any],
    threat: Mapping[str, Any],
    effort: Effort,
    averaging: Averaging = Averaging(),
    human: Mapping[str, Any] | None = None,
    settings: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Build the record of one model on one data set under one threat model.

    Args:
        outcomes: one per sample that could be read.
        task: e.g. "2afc".
        model: name, revision and resize, as the encoder states them.
        data: name, split, protocol and unreadable (a sentence per sample left out); the name decides which published
            numbers may stand beside the result.
        threat: attack ("none", "apgd", "square", ...) and, with an attack, norm, eps in the scale of [0, 1] images,
            steps, restarts and loss; whatever else tells the attack apart. `eps_text` is filled in.
        effort: what it took.
        averaging: how scores become means.
        human: what people reach on the same samples, a `summary` or at least `{"accuracy": percent}`.
        settings: everything else that the numbers depend on, e.g. seed, precision, batch_size, limit.

    Returns:
        What JSON can hold, and holds unchanged: `load_results` gives back an equal record.

    Raises:
        ValueError: for no outcomes, two of the same key, or a field that is missing or not a finite number.
    """
    _check_outcomes(outcomes)
    for what, fields, needed in (("model", model, "name"), ("data", data, "name"), ("threat", threat, "attack")):
        if not isinstance(fields.get(needed), str):
            raise ValueError(f"the {what} of a record needs a {needed!r}, and has {', '.join(fields) or 'nothing'}")
    if human is not None and "accuracy" not in human:
        raise ValueError(f"human needs 'accuracy' in percent, and has {', '.join(human) or 'nothing'}")
    whole, unreadable = averaging.summaries(outcomes), list(data.get("unreadable") or [])
    built = {
        "schema": SCHEMA,
        "task": task,
        "model": {"name": None, "revision": None, "resize": None, **model},
        "data": {"split": None, "protocol": None, **data, "samples": len(outcomes), "unreadable": unreadable},
        "threat": _whole_threat(threat),
        "clean": {**whole["clean"], "ties": sum(row.tie for row in outcomes)},
        "robust": whole["robust"],
        "splits": _splits(outcomes, averaging),
        "human": human,
        "largest_violation": effort.largest_violation,
        "masking": {"zero_gradients": effort.zero_gradients, "nonfinite_gradients": effort.nonfinite_gradients},
        "warnings": [],
        "settings": {**averaging.describe(), **(settings or {})},
        "versions": library_versions(),
        **effort.describe(),
        "samples": pack(outcomes),
    }
    built["warnings"] = _warnings(built)
    return json.loads(json.dumps(built, allow_nan=False))


def _whole_threat(threat: Mapping[str, Any]) -> dict[str, Any]:
    """Fill in the usual fields of a threat: what was not said is None, and the radius is also there in words."""
    filled = {key: threat.get(key) for key in ("attack", "norm", "eps", "eps_text", "steps", "restarts", "loss")}
    if filled["norm"] is not None and filled["eps"] is not None and filled["eps_text"] is None:
        filled["eps_text"] = str(LpBall(filled["norm"], filled["eps"])).split()[1]
    return {**threat, **filled}


def _splits(outcomes: Sequence[Outcome], averaging: Averaging) -> dict[str, dict[str, Any]]:
    """Average each split by itself."""
    alone = replace(averaging, macro=False)
    names = dict.fromkeys(row.split for row in outcomes)
    return {name: alone.summaries([row for row in outcomes if row.split == name]) for name in names}


def _check_outcomes(outcomes: Sequence[Outcome]) -> None:
    if not outcomes:
        raise ValueError("a record needs at least one sample: check that the data could be read")
    if len({row.key for row in outcomes}) < len(outcomes):
        raise ValueError("two samples of a record have the same key: give every sample a key of its own")
    for row in outcomes:
        numbers = (row.clean, row.margin, row.robust, row.robust_margin)
        if not all(math.isfinite(number) for number in numbers if number is not None):
            raise ValueError(f"sample {row.key!r} has a score or margin that is not finite: check the model's output")


def _warnings(built: Mapping[str, Any]) -> list[str]:
    """Say what a reader must know before quoting the numbers, in sentences."""
    threat, masking, unreadable = built["threat"], built["masking"], built["data"]["unreadable"]
    samples, sentences = built["data"]["samples"], []
    attacked = samples if built["robust"] is None else built["robust"]["samples"]
    advice = ", where a gradient attack stands still: compare with --attack square."
    sentences += masked(masking["zero_gradients"], masking["nonfinite_gradients"], f"{attacked} samples", advice)
    if built["clean"]["ties"]:
        count = built["clean"]["ties"]
        sentences.append(f"{count} of {samples} samples are ties: the metric preferred neither option.")
    if unreadable:
        count = len(unreadable)
        whole = samples + count
        sentences.append(f"{count} of {whole} samples could not be read and were left out, the first: {unreadable[0]}")
    shown = built["data"].get("images") or samples
    if built["settings"]["bootstrap"] and samples > shown:
        sentences.append(
            f"{samples} samples share {shown} images, and the interval takes them for independent: it is too narrow, "
            "ask for --resample images."
        )
    violation = built["largest_violation"]
    if violation is not None and threat["eps"] is not None:
        ulp = rounding(threat["eps"])
        if violation > ulp:
            sentences.append(
                f"An attacked image left the {threat['norm']} ball of {threat['eps_text']} or the range [0, 1] by "
                f"{violation:.2g}, and rounding explains {ulp:.2g}: do not quote the robust accuracy."
            )
    return sentences


def masked(zero: int, nonfinite: int, whole: str, advice: str) -> list[str]:
    """Write a sentence for each way in which so many of all gradients told an attack nothing."""
    met = ((zero, "an all-zero gradient"), (nonfinite, "a gradient with NaN or infinity"))
    return [f"{count} of {whole} met {what}{advice}" for count, what in met if count]


def rounding(eps: float) -> float:
    """Bound by how much a point may leave a ball of this radius because float32 rounds."""
    return float(np.spacing(np.float32(eps)))


def library_versions() -> dict[str, str | None]:
    """State the versions of what computes the numbers; None for what is not installed.

    Example:
        >>> library_versions()["torch"] == metadata.version("torch")
        True
    """
    versions: dict[str, str | None] = {}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = None
    return {**versions, "python": platform.python_version()}


def save(path: Path, record: Mapping[str, Any]) -> None:
    """Write a record as JSON with its checksum, atomically."""
    write_sealed(path, record)


def load_results(paths: Iterable[Path | str]) -> list[dict[str, Any]]:
    """Read records from files, and from the `*.json` of folders; a file met twice is read once.

    In a folder, JSON that is no result (it lacks "schema" or "task") is passed over. Accuracies are computed again from
    the outcomes in the record, and where it has no checksum, as those of earlier versions, their intervals as well.

    Raises:
        ValueError: naming the path that does not exist, is no JSON, is no result or one of another schema, is damaged
            or says other numbers than its outcomes, or the folder without results.

    Example:
        >>> from tempfile import mkdtemp
        >>> rows = [Outcome("1", "a", 1.0, False, 0.2), Outcome("2", "b", 0.0, False, -0.1)]
        >>> about = {"task": "2afc", "model": {"name": "m"}, "data": {"name": "d"}, "threat": {"attack": "none"}}
        >>> save(Path(mkdtemp()) / "one.json", made := record(rows, effort=Effort(1.0), **about))
        >>> made["clean"]["accuracy"]
        50.0
    """
    records: dict[Path, dict[str, Any]] = {}
    for path in map(Path, paths):
        if not path.exists():
            raise ValueError(f"there is no {path}: pass a file or a folder that rclip-metric eval wrote")
        found = {file: _read_result(file, required=False) for file in sorted(path.glob("*.json"))}
        if not path.is_dir():
            found = {path: _read_result(path, required=True)}
        results = {file.resolve(): value for file, value in found.items() if value is not None}
        if not results:
            raise ValueError(f"{path} holds no result: pass a folder that rclip-metric eval wrote to, or its files")
        records |= {file: value for file, value in results.items() if file not in records}
    return list(records.values())


def _read_result(path: Path, required: bool) -> dict[str, Any] | None:
    value, sealed = read_sealed(path)
    if not isinstance(value, dict) or not {"schema", "task"} <= value.keys():
        if required:
            raise ValueError(f"{path} is no result: pass a file that rclip-metric eval wrote")
        return None
    if value["schema"] != SCHEMA:
        raise ValueError(
            f"{path} is a result of schema {shown(value['schema'])} and this version reads {SCHEMA}: "
            "read it with the version that wrote it, or run the evaluation again"
        )
    check_record(value, str(path))
    check_result(path, value, sealed)
    return dict(value)


def check_result(path: Path, record: Mapping[str, Any], sealed: bool) -> None:
    """Compare the numbers of a record with its outcomes; with a right checksum, its accuracies alone.

    Raises:
        ValueError: it is damaged.
    """
    try:
        outcomes = unpack(record)
        interval = not sealed and bool(record["settings"].get("bootstrap"))
        stated = {"": record, **{f" of {name}": part for name, part in record["splits"].items()}}
        for where, numbers in stated.items():
            rows = [row for row in outcomes if not where or row.split == where.removeprefix(" of ")]
            averaging = _averaging(record, macro=not where, interval=interval)
            for column, found in averaging.summaries(rows).items():
                _compare(f"{column} accuracy{where}", numbers[column], found, interval)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is damaged: a field is missing or not what it should be ({error})") from error
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}") from error


def _averaging(record: Mapping[str, Any], macro: bool, interval: bool) -> Averaging:
    """Read how a record was averaged; without an interval to compare, as few resamples as can be drawn."""
    settings = record["settings"]
    drawn = settings["bootstrap"] if interval else {"resamples": 1}
    return Averaging(macro=macro and bool(settings.get("macro")), **drawn)


def _compare(what: str, stated: Mapping[str, Any] | None, found: Mapping[str, Any] | None, interval: bool) -> None:
    """Raise ValueError where a summary is not that of the outcomes, which are stored to 6 digits."""
    if stated is None or found is None:
        if stated is not found:
            raise ValueError(f"it says {what} {stated and stated['accuracy']}, and its outcomes {found}")
        return
    numbers = [("", stated["accuracy"], found["accuracy"]), (" over samples", stated["samples"], found["samples"])]
    if interval:
        pairs = zip(stated["interval_95"], found["interval_95"], strict=True)
        numbers += [(", as a bound of its interval,", one, other) for one, other in pairs]
    for kind, one, other in numbers:
        if abs(one - other) > 1e-3:
            raise ValueError(f"it says {what}{kind} {one}, and its outcomes give {other}")


def short_revision(revision: str | None) -> str:
    """Shorten a revision as people quote it: 7 digits of a commit, `sha256:` and 12 of a digest."""
    return re.sub(r"^([0-9a-f]{7})[0-9a-f]{0,33}$", r"\1", revision or "")


def result_name(record: Mapping[str, Any]) -> str:
    """Name the file of a record, e.g. `tiny__nights-test__apgd-linf-4_255.json`.

    Settings that are not the paper's are added, so that results that differ in them have different names; a model
    that is not the manifest's of that name is followed by its revision, or by a digest of its name if it has none.
    """
    model, data, threat, settings = (record.get(key) or {} for key in ("model", "data", "threat", "settings"))
    name = _safe(model["name"])
    if not is_published(model):
        digest = hashlib.sha256(model["name"].encode()).hexdigest()[:8]
        revision = short_revision(model.get("revision")) or (digest if name != model["name"] else "")
        name += f"@{_safe(revision)}" if revision else ""
    parts = [
        [name, *_unusual(model, "resize", "reading")],
        [data["name"], data.get("split"), *_unusual(data, "protocol", "attacked")],
        ["clean" if threat["attack"] == "none" else threat["attack"], threat.get("norm"), threat.get("eps_text")],
    ]
    if settings.get("limit") is not None:
        parts[1].append(f"first{settings['limit']}")
    steps = None if threat["attack"] == "square" and threat.get("steps") == 5000 else threat.get("steps")
    others = (key for key in threat if key not in ("attack", "norm", "eps", "eps_text"))
    parts[2] += _unusual({**threat, "steps": steps}, *others)
    parts[2] += _unusual(settings, "seed", "precision", "resample")
    return "__".join("-".join(_safe(str(word)) for word in words if word) for words in parts) + ".json"


def _unusual(fields: Mapping[str, Any], *keys: str) -> list[str]:
    """Find a word for each of the settings that are not the paper's: `50steps`, `soft`, `larger_eps`."""
    words = []
    for key in keys:
        value = fields.get(key)
        if value in USUAL.get(key, (None, False)):
            continue
        if isinstance(value, Mapping):  # the model that a transferred attack was made on
            words.append("-".join(filter(None, (key, value["name"], short_revision(value.get("revision"))))))
        else:
            words.append(key if value is True else f"{value}{key}" if isinstance(value, int | float) else str(value))
    return words


def _safe(text: str) -> str:
    """Keep only letters, digits and `. + @ - _`, no run of `_`, and at most 80 characters (the last ones)."""
    return re.sub(r"_+", "_", re.sub(r"[^A-Za-z0-9.+@_-]", "_", text))[-80:].strip("._-") or "model"
