"""The paper's number for a result, where there is one that was obtained on the same data and in the same way."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from rclip_metric.train.attacks.norms import Norm

# What the paper reports of other metrics, in percent: clean, and under APGD-CE with 100 steps and one restart.
#
# NIGHTS: all 1,824 test triplets; BAPPS: majority accuracy averaged over its six splits, 1,000 triplets of each under
# attack; l_inf 4/255 and l_2 3.0, all at 224 pixels. Cells that the scan of the paper garbles are left out. Neither the
# paper nor the talks state LPIPS, SSIM, PSNR or l_p on these sets, nor a certified accuracy of LipSim as a number.
REPORTED: Mapping[str, Mapping[str, Mapping[str, float]]] = {
    # NIGHTS: Table XIII, "all", and Table II where it has the row. BAPPS clean: Table XIV. BAPPS attacked: Table XV.
    # THINGS: Table XII.
    "dreamsim": {
        "nights": {"clean": 96.2, "linf": 0.5, "l2": 0.9},
        "bapps": {"clean": 73.1, "linf": 0.0, "l2": 0.0},
        "things": {"clean": 47.5},
    },
    # The paper's single towers. DreamSim's authors trained theirs anew in 2024-09 and state 94.8, 95.3 and 93.6 for
    # what they publish now (README of the package): look for differences of 0.3 on NIGHTS.
    "dreamsim-dino-vitb16": {  # THINGS is illegible
        "nights": {"clean": 94.5, "linf": 3.6, "l2": 6.2},
        "bapps": {"clean": 72.8, "linf": 0.0, "l2": 0.1},
    },
    "dreamsim-open-clip-vitb32": {
        "nights": {"clean": 95.4, "linf": 1.8, "l2": 3.3},
        "bapps": {"clean": 73.1, "linf": 0.0, "l2": 0.0},
        "things": {"clean": 47.9},
    },
    # Table II has 69.9 for BAPPS; the six splits of Table XIV have a mean of 69.6, as that table says.
    "dreamsim-clip-vitb32": {
        "nights": {"clean": 93.9, "linf": 0.1, "l2": 0.3},
        "bapps": {"clean": 69.6, "linf": 0.0, "l2": 0.0},
        "things": {"clean": 49.6},
    },
    # Not in the paper: the README of the package, on the same triplets.
    "dreamsim-dinov2-vitb14": {"nights": {"clean": 95.0}},
    # In Table II the attacked BAPPS cells of the two margins stand a row too low; those of Table XV are the means of
    # its splits, and right.
    "lipsim-pretrained": {
        "nights": {"clean": 86.6, "linf": 8.6, "l2": 26.5},
        "bapps": {"clean": 74.2, "linf": 1.1, "l2": 7.4},
        "things": {"clean": 43.6},
    },
    "lipsim-0.2": {
        "nights": {"clean": 88.5, "linf": 23.1, "l2": 46.6},
        "bapps": {"clean": 74.0, "linf": 4.2, "l2": 12.7},
        "things": {"clean": 41.3},
    },
    "lipsim-0.5": {
        "nights": {"clean": 85.1, "linf": 32.8, "l2": 53.1},
        "bapps": {"clean": 73.1, "linf": 5.8, "l2": 15.1},
        "things": {"clean": 38.5},
    },
    "r-lpips": {
        "nights": {"clean": 71.6, "linf": 16.2, "l2": 26.9},
        "bapps": {"clean": 72.8, "linf": 7.0, "l2": 12.3},
        "things": {"clean": 38.3},
    },
}

# mAP on Medium and Hard, clean and under l_inf 4/255, of Table IX: ROxford5k, then RParis6k. The scan has lost the
# decimal points; every number has one digit after it. One cell that it garbles is left out (None). Those of r-clip-f
# are in the manifest.
_TABLE_IX: Mapping[str, tuple[tuple[float | None, ...], tuple[float | None, ...]]] = {
    "lipsim-pretrained": ((14.7, 2.1, 6.4, 1.6), (30.6, 9.0, 19.2, 6.2)),
    "lipsim-0.5": ((13.9, 2.1, 7.7, 1.6), (21.2, 7.3, 15.6, 5.3)),
    "dreamsim-open-clip-vitb32": ((39.5, 12.2, 0.9, 0.4), (64.2, 37.6, 3.0, 1.6)),
    "dreamsim-dino-vitb16": ((None, 8.0, 1.2, 0.6), (59.0, 30.2, 5.4, 2.2)),
    "dreamsim": ((44.5, 15.1, 0.8, 0.4), (69.4, 43.3, 3.2, 1.4)),
    "r-lpips": ((7.5, 1.7, 2.4, 0.8), (10.3, 3.0, 7.2, 1.8)),
    "dino-vit-b-16": ((36.6, 9.6, 1.0, 0.5), (63.5, 36.4, 4.8, 2.0)),
    "r-dino-f": ((33.0, 7.8, 30.6, 7.2), (57.5, 29.2, 54.0, 26.0)),
    "clip-vit-b-16": ((47.2, 16.0, 1.0, 0.5), (74.3, 51.8, 2.8, 1.9)),
    "r-clip-f-vit-b-16": ((37.0, 10.0, 29.2, 9.2), (59.7, 33.2, 55.9, 28.2)),
    "r-clip-t-vit-b-16": ((31.6, 8.0, 27.9, 7.7), (53.1, 26.1, 49.8, 23.4)),
    "clip-convnext-b": ((44.7, 14.4, 0.9, 0.5), (74.6, 52.0, 2.4, 1.7)),
    "r-clip-t": ((34.1, 10.3, 32.1, 9.3), (58.8, 32.2, 57.4, 30.2)),
    "r-clip-f+lora": ((34.6, 10.5, 33.4, 10.4), (57.8, 28.6, 55.0, 26.0)),
    "r-clip-t+lora": ((36.1, 10.5, 32.9, 9.4), (59.0, 32.6, 58.0, 31.1)),
}
_RETRIEVAL_COLUMNS = ("medium", "hard", "medium_linf", "hard_linf")
LANDMARK_SETS: Mapping[str, int] = {"roxford5k": 4993, "rparis6k": 6322}
"""How many images the published databases have."""


def reported_of(name: str) -> Mapping[str, Mapping[str, float]]:
    """List a baseline's published numbers, {"nights": {"clean": ..., "linf": ..., "l2": ...}, ...}; {} for none."""
    return REPORTED.get(name, {})


@dataclass(frozen=True)
class PublishedSet:
    """How the data of a paper are told from others of the same format.

    Attributes:
        samples: the least and the largest number of them.
        digest: of ids and labels, as records have it (`data.digest`); None where nobody has run this on the data.
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
    "nsfw": PublishedSet((1000, 2000)),  # queries of a content filter, 1000 of each of two classes
    "guns": PublishedSet((1000, 14_000)),  # 1000 unsafe ones under attack; 10,000 safe and 4000 unsafe clean
    **{name: PublishedSet((70, 70)) for name in LANDMARK_SETS},  # queries
}
BAPPS_ATTACKED = 1000  # per split
BAPPS_SPLITS = frozenset({"cnn", "color", "deblur", "frameinterp", "superres", "traditional"})

TWO_AFC_RADII: dict[Norm, float] = {"linf": 4 / 255, "l2": 3.0}
"""The paper's ball of each norm, for 2AFC, in the scale of [0, 1] images of 224 pixels."""
ZERO_SHOT_RADII = (2 / 255, 4 / 255)
"""The paper's l_inf balls for zero-shot classification."""
TWO_AFC_COLUMNS = {(norm, eps): norm for norm, eps in TWO_AFC_RADII.items()}
ZERO_SHOT_COLUMNS = {("linf", eps): f"linf_{255 * eps:g}" for eps in ZERO_SHOT_RADII}
"""What a manifest's numbers are called, by norm and radius."""


def published_as(name: str, samples: int, digest: str, split: str | None = None, *, stated: bool = False) -> str | None:
    """Recognise a published set: its name, or None.

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

    Example:
        >>> published_as("nights", 1824, "sha256:0", "test", stated=True)
        'nights'
        >>> published_as("nights", 300, "sha256:0", "test") is None  # a part of it, or another set
        True
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
    """Say whether a record's model is the manifest's of that name: with its revision, and its weights if both say them.

    An entry that is only read in some way ("local") says nothing of the weights: no file is known to be its.

    Example:
        >>> is_published({"name": "tiny", "revision": "another"}), is_published({"name": "my own"})
        (False, False)
    """
    from rclip_metric.weights.local import packaged_revision
    from rclip_metric.weights.manifest import PACKAGED, get_spec, model_names

    if model["name"] not in model_names():
        return False
    spec, revision = get_spec(model["name"]), model.get("revision") or ""
    if spec.source == "local" or (spec.tensors and model.get("weights", spec.tensors) != spec.tensors):
        return False
    if spec.source in PACKAGED:
        return revision == packaged_revision(spec)
    return revision.startswith(spec.revision or "")


def reported(record: Mapping[str, Any], column: Literal["clean", "robust"]) -> float | None:
    """Find the paper's number for the record's model, data, protocol and, under attack, threat: percent, or None.

    It is the manifest's, or that of `REPORTED`.

    The data have to be the published ones (`published_as`), whatever their name and format. A part of them, or a part
    under attack, has no such number; nor has another attack, another number of steps or another way of resizing.

    Example:
        >>> record = {
        ...     "model": {"name": "r-lpips", "revision": "sha256:0", "preprocessing": {"crop": 224}},
        ...     "data": {"published": "nights", "unreadable": []},
        ...     "settings": {},
        ...     "splits": {},
        ... }
        >>> reported(record, "clean")
        71.6
    """
    model, data = record["model"], record["data"]
    task = data.get("published") or ""
    if task == "imagenet":
        task = re.sub(r"\W+", "_", f"imagenet_{record['task']}")
    cut = data["unreadable"] or record["settings"].get("limit") is not None or model.get("reading")
    # BAPPS goes squashed through every metric.
    if cut or model.get("resize") not in (None, "published", *(("squash",) if task == "bapps" else ())):
        return None
    numbers = _reported(model).get(task)
    if numbers is None or not _same_protocol(record, task, column):
        return None
    name = "clean" if column == "clean" else _threat_column(record["threat"], task)
    return None if name is None else numbers.get(name)


def reported_retrieval(record: Mapping[str, Any]) -> dict[str, float]:
    """Find the paper's mAP for a record of retrieval: "medium", "hard", "medium_linf" and "hard_linf", in percent.

    As for `reported`, the data have to be the published ones and whole, and the threat the paper's; else it is empty.

    Example:
        >>> record = {
        ...     "model": {"name": "r-lpips", "revision": "sha256:0", "preprocessing": {"crop": 224}},
        ...     "data": {"published": "rparis6k", "unreadable": []},
        ...     "threat": {"attack": "none"},
        ...     "settings": {},
        ... }
        >>> reported_retrieval(record)
        {'medium': 10.3, 'hard': 3.0}
    """
    model, data, threat = record["model"], record["data"], record["threat"]
    name = data.get("published")
    cut = data["unreadable"] or data.get("unreadable_images") or record["settings"].get("limit") is not None
    cut = cut or model.get("reading")
    if name not in LANDMARK_SETS or cut or model.get("resize") not in (None, "published"):
        return {}
    numbers: Mapping[str, float | None] = _reported(model).get(name) or {}
    converted = (model.get("revision") or "").startswith("sha256:") and (model.get("preprocessing") or {})
    if model["name"] in _TABLE_IX and (is_published(model) or (converted and converted.get("crop") == 224)):
        row = _TABLE_IX[model["name"]][list(LANDMARK_SETS).index(name)]
        numbers = dict(zip(_RETRIEVAL_COLUMNS, row, strict=True))
    usual = {"attack": "apgd", "norm": "linf", "steps": 100, "restarts": 1, "loss": "embedding"}
    same = all(threat.get(key) == value for key, value in usual.items()) and abs(threat["eps"] - 4 / 255) < 1e-6
    return {key: value for key, value in numbers.items() if value is not None and (same or not key.endswith("_linf"))}


def _reported(model: Mapping[str, Any]) -> Mapping[str, Mapping[str, float | None]]:
    """Find all numbers that a paper states of a model, or of another metric at the size that it was evaluated at."""
    from rclip_metric.weights.manifest import get_spec

    if is_published(model):
        return get_spec(model["name"]).reported
    converted = (model.get("revision") or "").startswith("sha256:")  # of its published weights
    same_size = (model.get("preprocessing") or {}).get("crop") == 224
    return REPORTED.get(model["name"], {}) if converted and same_size else {}


def _same_protocol(record: Mapping[str, Any], task: str, column: str) -> bool:
    """Say whether published data were judged by the paper's protocol."""
    data, parts = record["data"], record["splits"]
    if task == "bapps":
        attacked = [part["robust"] and part["robust"]["samples"] for part in parts.values()]
        asked = column == "clean" or set(attacked) == {BAPPS_ATTACKED}
        resized = data.get("protocol") == "majority" and data.get("interpolation") == "bilinear"
        return resized and parts.keys() == BAPPS_SPLITS and asked
    return column == "clean" or not data.get("attacked")


def _threat_column(threat: Mapping[str, Any], task: str) -> str | None:
    """Find the manifest's name for a threat, None unless it is the paper's in every setting."""
    zero_shot = task == "imagenet_zero_shot"
    attacks = ("apgd-ce+apgd-t",) if zero_shot else ("apgd", "apgd-ce")
    losses = (None, "ce", "cross-entropy", *(("ce+dlr",) if zero_shot else ()))
    usual = threat["attack"] in attacks and threat.get("loss") in losses
    known = {"attack", "norm", "eps", "eps_text", "steps", "restarts", "loss", "targets"}
    usual = usual and threat.get("targets") in (None, 9) and not any(threat[key] for key in threat.keys() - known)
    if not usual or threat.get("steps") != 100 or threat.get("restarts") not in (None, 1):
        return None
    columns = ZERO_SHOT_COLUMNS if zero_shot else TWO_AFC_COLUMNS
    same = [name for (norm, eps), name in columns.items() if norm == threat["norm"] and abs(eps - threat["eps"]) < 1e-6]
    return same[0] if same else None
