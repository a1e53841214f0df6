"""The paper's number for a result, where there is one that was obtained on the same data and in the same way."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from rclip_metric.train.metrics.reported import REPORTED
from rclip_metric.weights import get_spec, model_names
from rclip_metric.weights.packaged import PACKAGED, packaged_revision


@dataclass(frozen=True)
class PublishedSet:
    """How the data of a paper are told from others of the same format.

    Attributes:
        samples: the least and the largest number of them.
        digest: of ids and labels, as records have it (``data.digest``); None where nobody has run this on the data.
        split: of the set.
    """

    samples: tuple[int, int]
    digest: str | None = None
    split: str | None = None


# No machine that this was written on had any of them: whoever has can take the digest from a record of theirs.
PUBLISHED = {
    "nights": PublishedSet((1824, 1824), split="test"),  # those with 6 votes or more
    "bapps": PublishedSet((36_001, 36_999)),
    "things": PublishedSet((4_000_000, 5_000_000)),  # 4.7 million
    "imagenet": PublishedSet((50_000, 50_000)),  # the validation set
}
BAPPS_ATTACKED = 1000  # per split
BAPPS_SPLITS = frozenset({"cnn", "color", "deblur", "frameinterp", "superres", "traditional"})

_TWO_AFC = {("linf", 4 / 255): "linf", ("l2", 3.0): "l2"}
_ZERO_SHOT = {("linf", 2 / 255): "linf_2", ("linf", 4 / 255): "linf_4"}


def published_as(name: str, samples: int, digest: str, split: str | None = None, *, stated: bool = False) -> str | None:
    """The published set that data are: its name, or None.

    They are recognised by number and digest. Where the digest of the published set is not known, they are never taken
    for it unless the user states so, and the number fits.

    Args:
        name: of `PUBLISHED`, that which has the data's format.
        samples: how many there are.
        digest: of their ids and labels.
        split: that was read.
        stated: the user says that they are the published set.

    Raises:
        ValueError: they cannot be what the user states.
    """
    known, (least, most) = PUBLISHED[name], PUBLISHED[name].samples
    fits = least <= samples <= most and split == known.split
    same = fits and digest == known.digest
    if stated and not (same or (fits and known.digest is None)):
        counted = f"{least:,}" if least == most else f"{least:,} to {most:,}"
        which = f" of split {known.split}" if known.split else ""
        got = f"{samples:,}{f' of split {split}' if split else ''}"
        reason = f"their digest is {digest} and not {known.digest}" if fits else f"it has {counted} samples{which}"
        raise ValueError(f"these {got} samples are not the published set {name}: {reason}; leave --published out")
    return name if same or stated else None


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

    The data have to be the published ones (`published_as`), whatever their name and format. A part of them, or a part
    under attack, has no such number; nor has another attack, another number of steps or another way of resizing.
    """
    model, data = record["model"], record["data"]
    task = data.get("published") or ""
    if task == "imagenet":
        task = re.sub(r"\W+", "_", f"imagenet_{record['task']}")
    cut = data["unreadable"] or record["settings"].get("limit") is not None
    # BAPPS goes squashed through every metric.
    if cut or model.get("resize") not in (None, "published", *(("squash",) if task == "bapps" else ())):
        return None
    numbers = _reported(model).get(task)
    if numbers is None or not _same_protocol(record, task, column):
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


def _same_protocol(record: Mapping[str, Any], task: str, column: str) -> bool:
    """Whether published data were judged by the paper's protocol."""
    data, parts = record["data"], record["splits"]
    if task == "bapps":
        attacked = [part["robust"] and part["robust"]["samples"] for part in parts.values()]
        asked = column == "clean" or set(attacked) == {BAPPS_ATTACKED}
        return data.get("protocol") == "majority" and parts.keys() == BAPPS_SPLITS and asked
    return column == "clean" or not data.get("attacked")


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
