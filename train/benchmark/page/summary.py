"""The head of the page: what the benchmark found, in a sentence or two, and what it was of."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from markupsafe import Markup, escape

from rclip_metric.train.benchmark.page.reading import (
    OWN,
    JsonObject,
    data_name,
    interval_of,
    is_judged,
    known,
    measured_sets,
    ranked,
    score_of,
    tried_threats,
)
from rclip_metric.train.benchmark.page.words import ball_name, joined, judges_of, percent
from rclip_metric.train.evaluation.results.labels import PEOPLE

SMALL, BREAK = Markup("<small>{}</small>"), Markup("<br>")


def summary(board: JsonObject) -> dict[str, Any]:
    """Tell the most robust metric, how far the best clean one falls, and who sides with people; empty if nobody.

    Of a set that was attacked before others, and of one where something is right before those where nothing is.
    """
    names = {metric["id"]: Markup("<strong>{}</strong>").format(metric["label"]) for metric in board["metrics"]}

    def scores(data: JsonObject, threat: JsonObject | None = None) -> dict[str, JsonObject]:
        return {m["id"]: found for m in ranked(board, data) if (found := score_of(m, data, threat))}

    def leaders(found: dict[str, JsonObject]) -> list[str]:
        """Find those with the highest accuracy as it is shown, with one decimal."""
        shown = {name: round(score["accuracy"], 1) for name, score in found.items()}
        return [name for name in shown if shown[name] == max(shown.values())]

    def told(found: dict[str, JsonObject], members: Sequence[str]) -> tuple[Markup, str]:
        """Name metrics, and give the accuracy of the first of them."""
        first, *_ = members
        return joined(names[name] for name in members), percent(found[first]["accuracy"])

    sets = sorted(measured_sets(board), key=lambda one: (not is_judged(one), not tried_threats(board, one)))
    data = next((one for one in sets if tried_threats(board, one) or scores(one)), None)
    if data is None:
        return {}
    clean, tried = scores(data), tried_threats(board, data)
    best = max(clean, key=lambda name: clean[name]["accuracy"], default=None)
    said = {
        "data": data_name(data),
        "note": data.get("note"),
        "judged": is_judged(data),
        "judges": judges_of(data),
        "clean": told(clean, [best]) if best else None,
        "people": [
            (*told(found, leaders(found)), data_name(other))
            for other in measured_sets(board)
            if other is not data and is_judged(other) and judges_of(other) == PEOPLE and (found := scores(other))
        ],
    }
    if tried:
        robust = scores(data, tried[0])
        equal, (first, *others) = leaders(robust), robust
        near = [interval_of(robust[name]) for name in (first, *others[:1])]
        alone = len(equal) == 1
        said |= {
            "ball": ball_name(tried[0]),
            "robust": told(robust, equal),
            "alone": alone,
            "own": percent(clean[first]["accuracy"]) if alone and first in clean else None,
            "next": told(robust, others[:1]) if alone and all(near[1:]) and _overlap(*near) else None,
            "unbeaten": best in equal,
            "fall": percent(robust[best]["accuracy"]) if best in robust else None,
        }
    return said


def _overlap(first: tuple[float, float] | None, second: tuple[float, float] | None = None) -> bool:
    return bool(first and second and second[1] >= first[0])


def facts(board: JsonObject) -> list[tuple[str, Markup]]:
    """List what was measured, with which attack, where and when."""
    found: list[tuple[str, list[str]]] = []
    sets: list[str] = []
    for data in board["data"]:
        samples = known(data.get("samples"))
        sets.append(escape(data_name(data)) + (" " + SMALL.format(f"{samples:,.0f} samples") if samples else ""))
    found.append(("Data", sets))
    attacks = {ball_name(threat): str(threat.get("words") or "") for threat in board["threats"]}
    if len(set(attacks.values())) == 1:
        found.append(("Attack", [joined(attacks), _small(next(iter(attacks.values())))]))
    else:
        found.append(("Attacks", [ball + " " + _small(words) for ball, words in attacks.items()]))
    kinds = [metric["kind"] if metric.get("kind") in OWN else "others" for metric in board["metrics"]]
    told = ", ".join(f"{kinds.count(kind)} {kind}" for kind in (*OWN, "others") if kind in kinds)
    found.append(("Metrics", [str(len(kinds)), _small(told)] if kinds else []))
    device, cores = board["device"], board["cores"]
    machine = [device.get("type"), f"{cores} core{'s' * (cores != 1)}" if cores else None]
    found.append(("Machine", [str(device.get("name") or ""), _small(", ".join(str(m) for m in machine if m))]))
    found.append(("Made", [_date(str(board["made"] or ""))]))
    shown = [(name, BREAK.join(filter(None, lines))) for name, lines in found]
    return [fact for fact in shown if fact[1]]


def _small(words: str) -> Markup:
    """Print words small; nothing stays nothing."""
    return SMALL.format(words) if words else Markup("")


def _date(text: str) -> str:
    """Write a day in words; the text itself where it is none."""
    try:
        made = datetime.fromisoformat(text.replace("Z", "+00:00"))
    except ValueError:
        return text
    return Markup('<time datetime="{}">{}</time>').format(text, f"{made.day} {made:%B %Y}")
