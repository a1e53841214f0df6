"""The results that belong to one encoder: told from those of others, and as the numbers of a manifest entry."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rclip_metric.images import Preprocessing
from rclip_metric.train.evaluation.results.labels import Record, data_label, model_label
from rclip_metric.train.evaluation.results.record import USUAL, load_results
from rclip_metric.train.metrics.paper import BAPPS_ATTACKED, TWO_AFC_COLUMNS, ZERO_SHOT_COLUMNS

_PAPER_SIDE = 224  # pixels; the paper's l_2 radius is that of images of this size
_COLUMNS = ("clean", *TWO_AFC_COLUMNS.values(), *ZERO_SHOT_COLUMNS.values())


@dataclass(frozen=True)
class Identity:
    """The names that the records of an encoder have for it.

    Attributes:
        names: its names: as it was trained, and as it is exported.
        revisions: which weights of these names they are; None where the saved encoder states no revision, and then the
            name alone decides.
        preprocessing: of its images.

    Example:
        >>> identity = Identity(("robust",), (None,), Preprocessing("squash", 64, 64))
        >>> identity.objection({"model": {"name": "other", "revision": "abc"}})
        'is a result of other @ abc, not of robust'
    """

    names: tuple[str, ...]
    revisions: tuple[str | None, ...]
    preprocessing: Preprocessing

    def objection(self, record: Record) -> str | None:
        """Say why a record is not of this encoder, as the end of a sentence; None if it is."""
        model = record["model"]
        if model["name"] not in self.names:
            return f"is a result of {model_label(record)}, not of {self.names[0]}"
        if model.get("revision") not in self.revisions:
            ours = " or ".join(str(revision or "without a revision") for revision in self.revisions)
            return f"is a result of {model_label(record)}, and these weights of {self.names[0]} are {ours}"
        stated, own = model.get("preprocessing") or {}, self.preprocessing.to_dict()
        differing = sorted(key for key in stated if stated[key] != own.get(key))
        if differing:
            return f"is a result of a {model['name']} whose preprocessing has another {' and '.join(differing)}"
        return None


def read_own(paths: Iterable[Path | str], identity: Identity) -> tuple[list[dict[str, Any]], list[str]]:
    """Read the records of one encoder.

    Args:
        paths: result files, each of which must be of this encoder, and folders, which may hold others as well.
        identity: of the encoder.

    Returns:
        The records, and a sentence for each one in a folder that was passed over.

    Raises:
        ValueError: a file is of another encoder, a folder has nothing of this one, or as `load_results` raises it.
    """
    own: list[dict[str, Any]] = []
    passed_over: list[str] = []
    for path in map(Path, paths):
        records = load_results([path])
        objections = [identity.objection(record) for record in records]
        wrong = [objection for objection in objections if objection is not None]
        if len(wrong) == len(records):
            where = f"{path}" if path.is_file() else f"no result in {path} is of this encoder: the first one"
            raise ValueError(f"{where} {wrong[0]}: evaluate this run and pass what that wrote")
        own += [record for record, no in zip(records, objections, strict=True) if no is None and record not in own]
        passed_over += [
            f"{path}: passed over {data_label(record)}: it {no}"
            for record, no in zip(records, objections, strict=True)
            if no is not None
        ]
    return own, passed_over


def reported_numbers(records: Sequence[Record], image_size: int) -> dict[str, dict[str, float]]:
    """Collect what a manifest entry reports: {task: {"clean": percent, "linf": percent, ...}}, to one decimal.

    Only results in the paper's setting count: whole data sets, 100 steps of APGD with cross-entropy, l_inf 4/255
    and l_2 3.0 (on the procedural scenes, 3.0 scaled from 224 pixels to the encoder's size).

    Args:
        records: of one encoder.
        image_size: its side in pixels.

    Raises:
        ValueError: two results give one number differently.

    Example:
        >>> reported_numbers([], image_size=224)
        {}
    """
    numbers: dict[str, dict[str, float]] = {}
    for record in records:
        if not _whole(record):
            continue
        task = _task(record)
        found = {"clean": record["clean"]["accuracy"]}
        column = _column(record, image_size)
        if column is not None:
            found[column] = record["robust"]["accuracy"]
        for name, accuracy in found.items():
            value = round(accuracy, 1)
            before = numbers.setdefault(task, {}).setdefault(name, value)
            if before != value:
                raise ValueError(f"two results give {task} {name} as {before} and as {value} %: pass only one of them")
    for task, found in numbers.items():
        numbers[task] = {name: found[name] for name in _COLUMNS if name in found}
    return numbers


def _task(record: Record) -> str:
    name = (record["data"].get("published") or record["data"]["name"]).replace("-", "_")
    return f"{name}_zero_shot" if record["task"] == "zero-shot" else name


def _whole(record: Record) -> bool:
    """Tell whether the data are a whole test set, read and prepared as published."""
    data, settings = record["data"], record["settings"]
    whole = not data["unreadable"] and settings.get("limit") is None and data.get("split") in (None, "test")
    usual = _usual(data, "protocol") and _usual(settings, "precision") and _usual(record["model"], "reading")
    if _task(record) == "bapps":
        usual = usual and data.get("interpolation") == "bilinear"
    # BAPPS is squashed in the paper, whatever the encoder's own preprocessing.
    return whole and usual and (_usual(record["model"], "resize") or _task(record).endswith("bapps"))


def _column(record: Record, image_size: int) -> str | None:
    """Give the manifest's name for the threat, None unless all its settings are the paper's."""
    threat, zero_shot = record["threat"], record["task"] == "zero-shot"
    attack, losses = ("apgd-ce+apgd-t", ("ce+dlr",)) if zero_shot else ("apgd", ())
    others = {key: value for key, value in threat.items() if key not in ("attack", "norm", "eps", "eps_text")}
    if others.get("loss") in losses:
        del others["loss"]
    if record["robust"] is None or threat["attack"] != attack or not _usual(others, *others):
        return None
    parts = record["splits"].values() if _task(record) == "bapps" else ()
    if any(part["robust"] is None or part["robust"]["samples"] < BAPPS_ATTACKED for part in parts):
        return None
    scenes = record["data"]["name"].startswith("scenes")
    for (norm, eps), name in (ZERO_SHOT_COLUMNS if zero_shot else TWO_AFC_COLUMNS).items():
        scale = image_size / _PAPER_SIDE if norm == "l2" and scenes else 1.0
        if threat["norm"] == norm and abs(threat["eps"] / (eps * scale) - 1) < 1e-3:
            return name
    return None


def _usual(fields: Mapping[str, Any], *keys: str) -> bool:
    return all(fields.get(key) in USUAL.get(key, (None, False)) for key in keys)
