"""The paper's number for a result, where there is one that was obtained in the same way."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal

from rclip_metric.manifest import get_spec, model_names
from rclip_metric.packaged import PACKAGED, packaged_revision
from rclip_metric.train.baselines.reported import REPORTED

NIGHTS_TEST = 1824  # triplets with 6 votes or more
IMAGENET_VALIDATION = 50_000
BAPPS_VALIDATION = 36_000  # and a few hundred more
BAPPS_ATTACKED = 1000  # per split
BAPPS_SPLITS = frozenset({"cnn", "color", "deblur", "frameinterp", "superres", "traditional"})

_TWO_AFC = {("linf", 4 / 255): "linf", ("l2", 3.0): "l2"}
_ZERO_SHOT = {("linf", 2 / 255): "linf_2", ("linf", 4 / 255): "linf_4"}


def is_published(model: Mapping[str, Any]) -> bool:
    """Whether a record's model is the manifest's of that name: it has its revision, where the manifest states one."""
    if model["name"] not in model_names():
        return False
    spec, revision = get_spec(model["name"]), model.get("revision") or ""
    if spec.source in PACKAGED:
        return revision == packaged_revision(spec)
    return revision.startswith(spec.revision or "")


def reported(record: Mapping[str, Any], column: Literal["clean", "robust"]) -> float | None:
    """The paper's number for the record's model, data, protocol and, under attack, threat: percent, or None.

    It is the manifest's, or that of `baselines.reported`.

    The data's name decides: results on scenes have no such number, whatever format the scenes come in. Nor has a part
    of a data set, another attack, another number of steps or another way of resizing.
    """
    model, data = record["model"], record["data"]
    task = data["name"].replace("-", "_")
    if task == "imagenet":
        task = re.sub(r"\W+", "_", f"imagenet_{record['task']}")
    cut = data["unreadable"] or record["settings"].get("limit") is not None
    # BAPPS goes squashed through every metric.
    if cut or model.get("resize") not in (None, "published", *(("squash",) if task == "bapps" else ())):
        return None
    numbers = _reported(model).get(task)
    if numbers is None or not _same_data(record, task, column):
        return None
    name = "clean" if column == "clean" else _threat_column(record["threat"], task)
    return None if name is None else numbers.get(name)


def _reported(model: Mapping[str, Any]) -> Mapping[str, Mapping[str, float | None]]:
    """All numbers that a paper states of a model, or of a metric of others at the size that it was evaluated at."""
    if is_published(model):
        return get_spec(model["name"]).reported
    converted = (model.get("revision") or "").startswith("sha256:")  # of its published weights
    same_size = (model.get("preprocessing") or {}).get("crop") == 224
    return REPORTED.get(model["name"], {}) if converted and same_size else {}


def _same_data(record: Mapping[str, Any], task: str, column: str) -> bool:
    """Whether the data are those of the paper: all of them, and with its protocol."""
    data, parts = record["data"], record["splits"]
    if task == "nights":
        return data.get("split") == "test" and data["samples"] == NIGHTS_TEST
    if task == "bapps":
        attacked = [part["robust"] and part["robust"]["samples"] for part in parts.values()]
        enough = data["samples"] > BAPPS_VALIDATION and parts.keys() == BAPPS_SPLITS
        asked = column == "clean" or set(attacked) == {BAPPS_ATTACKED}
        return data.get("protocol") == "majority" and enough and asked
    if task == "imagenet_zero_shot":
        return data["samples"] == IMAGENET_VALIDATION
    return task == "things"


def _threat_column(threat: Mapping[str, Any], task: str) -> str | None:
    """The manifest's name for a threat, None unless it is the paper's in every setting."""
    zero_shot = task == "imagenet_zero_shot"
    attacks = ("apgd-ce+apgd-t",) if zero_shot else ("apgd", "apgd-ce")
    losses = (None, "ce", "cross-entropy", *(("ce+dlr",) if zero_shot else ()))
    usual = threat["attack"] in attacks and threat.get("loss") in losses
    known = {"attack", "norm", "eps", "eps_text", "steps", "restarts", "loss", "targets"}
    usual = usual and threat.get("targets") in (None, 9) and not any(threat[key] for key in threat.keys() - known)
    if not usual or threat.get("steps") != 100 or threat.get("restarts") not in (None, 1):
        return None
    columns = _ZERO_SHOT if zero_shot else _TWO_AFC
    same = [name for (norm, eps), name in columns.items() if norm == threat["norm"] and abs(eps - threat["eps"]) < 1e-6]
    return same[0] if same else None
