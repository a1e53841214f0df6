"""The head of the page: what the benchmark found, in a sentence or two."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from markupsafe import Markup

from rclip_metric.train.benchmark.page.reading import Board, Found, JsonObject, interval, score
from rclip_metric.train.benchmark.page.words import joined, percent
from rclip_metric.train.evaluation.results.labels import PEOPLE


def summary(board: Board) -> dict[str, Any]:
    """Tell the most robust metric, how far the best clean one falls, and who sides with people; empty if nobody.

    Of a set that was attacked before others, and of one where something is right before those where nothing is.
    """
    names = {metric["id"]: Markup("<strong>{}</strong>").format(metric["label"]) for metric in board.metrics}

    def scores(data: Found, threat: JsonObject | None = None) -> dict[str, Found]:
        return {m["id"]: found for m in board.ranked(data) if (found := score(m, data, threat))}

    def leaders(found: dict[str, Found]) -> list[str]:
        """Find those with the highest accuracy as it is shown, with one decimal."""
        shown = {name: round(score["accuracy"], 1) for name, score in found.items()}
        return [name for name in shown if shown[name] == max(shown.values())]

    def told(found: dict[str, Found], members: Sequence[str]) -> tuple[Markup, str]:
        """Name metrics, and give the accuracy of the first of them."""
        return joined(names[name] for name in members), percent(found[members[0]]["accuracy"])

    sets = sorted(board.sets(), key=lambda one: (not one["judged"], not board.tried(one)))
    data = next((one for one in sets if board.tried(one) or scores(one)), None)
    if data is None:
        return {}
    clean, tried = scores(data), board.tried(data)
    best = max(clean, key=lambda name: clean[name]["accuracy"], default=None)
    people = []
    for other in board.sets():
        if other is not data and other["judged"] and other["judges"] == PEOPLE and (found := scores(other)):
            people.append((*told(found, leaders(found)), other["label"]))
    said = {"data": data, "clean": told(clean, [best]) if best else None, "people": people, "ball": None}
    if not tried:
        return said
    robust = scores(data, tried[0])
    equal, (first, *others) = leaders(robust), robust
    alone, near = len(equal) == 1, [interval(robust[name]) for name in (first, *others[:1])]
    overlap = len(near) == 2 and near[0] and near[1] and near[1][1] >= near[0][0]
    return said | {
        "ball": tried[0]["ball"],
        "robust": told(robust, equal),
        "alone": alone,
        "own": percent(clean[first]["accuracy"]) if alone and first in clean else None,
        "next": told(robust, others[:1]) if alone and overlap else None,
        "unbeaten": best in equal,
        "fall": percent(robust[best]["accuracy"]) if best in robust else None,
    }
