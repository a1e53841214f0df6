"""The page of a benchmark: one HTML file that needs nothing else, whole without scripts."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from html import escape
from pathlib import Path

from rclip_metric.train.benchmark import charts
from rclip_metric.train.benchmark.markup import (
    ball_name,
    data_name,
    element,
    joined,
    judges_of,
    pair_list,
    percent,
    small,
)
from rclip_metric.train.benchmark.page_charts import distance_section, radius_section, scatter_section
from rclip_metric.train.benchmark.page_examples import example_section
from rclip_metric.train.benchmark.page_papers import paper_section, settings_section
from rclip_metric.train.benchmark.page_table import table_section
from rclip_metric.train.benchmark.reading import (
    OWN,
    Entry,
    interval_of,
    is_judged,
    known,
    measured_sets,
    ranked,
    score_of,
    tried_threats,
    whole_board,
)
from rclip_metric.train.evaluation.labels import PEOPLE

_FILES = Path(__file__).parent / "assets"
# Nothing can be loaded, whatever a label says.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"


def page(board: Entry) -> str:
    """Lay out a benchmark: table, charts, examples, the papers' numbers and the settings.

    Args:
        board: as `rclip-metric benchmark` writes it to JSON. Whatever is missing, empty or null is left out, and said
            to be left out. Accuracies are percent.

    Raises:
        ValueError: for an image that is no data: URI, and would have to be loaded.
    """
    board = whole_board(board)
    sections = {
        "Table": table_section(board),
        "Clean and robust": scatter_section(board),
        "Radius": radius_section(board),
        "Distances": distance_section(board),
        "Examples": example_section(board),
        "Papers": paper_section(board),
        "Settings": settings_section(board),
    }
    there = {name.split()[0].lower(): (name, body) for name, body in sections.items() if body}
    links = "".join(element("a", name, href=f"#{anchor}") for anchor, (name, _) in there.items())
    title = escape(str(board["title"] or "Perceptual metrics under attack"))
    head = [
        '<meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">',
        '<link rel="icon" href="data:,">',
        element("title", title),
        element("style", _file("page.css")),
    ]
    body = [
        charts.symbols(),
        element("header", element("h1", title) + _summary(board) + _facts(board)),
        element("nav", element("div", links, class_="links") + _switches(board), aria_label="on this page"),
        element("main", "\n".join(element("section", part, id=anchor) for anchor, (_, part) in there.items())),
        element("script", _file("page.js")),
    ]
    inner = "\n".join([element("head", "\n".join(head)), element("body", "\n".join(body))])
    return f"<!DOCTYPE html>\n{element('html', inner, lang='en')}\n"


def _file(name: str) -> str:
    """A style sheet or script, without what only its readers need."""
    lines = (_FILES / name).read_text(encoding="utf-8").splitlines()
    return "\n".join(filter(None, map(str.strip, lines)))


def _summary(board: Entry) -> str:
    """The most robust metric, how far the best clean one falls, and who sides with people elsewhere."""
    names = {metric["id"]: element("strong", escape(metric["label"])) for metric in board["metrics"]}

    def scores(data: Entry, threat: Entry | None) -> dict[str, Entry]:
        return {m["id"]: found for m in ranked(board, data) if (found := score_of(m, data, threat))}

    # An attacked set before others, and one where something is right before those where nothing is.
    for data in sorted(measured_sets(board), key=lambda one: (not is_judged(one), not tried_threats(board, one))):
        clean, tried = scores(data, None), tried_threats(board, data)
        best = max(clean, key=lambda name: clean[name]["accuracy"], default=None)
        before = percent(clean[best]["accuracy"]) if best else ""
        if tried:
            robust = scores(data, tried[0])
            first, *others = robust
            score = robust[first]["accuracy"]
            equal = _leaders(robust)
            words = f"{joined(names[name] for name in equal)} {'is' if len(equal) == 1 else 'are'} the most robust: "
            words += f"{'it still sides' if len(equal) == 1 else 'they still side'} with {judges_of(data)} "
            words += f"{percent(score)} of the time under {ball_name(tried[0])}"
            words += f" ({percent(clean[first]['accuracy'])} clean)" if first in clean and len(equal) == 1 else ""
            bounds = [interval_of(robust[name]) for name in (first, *others[:1])]
            if len(equal) == 1 and len(bounds) == 2 and bounds[0] and bounds[1] and bounds[1][1] >= bounds[0][0]:
                words += f", closely followed by {names[others[0]]} ({percent(robust[others[0]]['accuracy'])})"
            if best in equal:
                words += f". None is better on clean images either{'' if len(equal) == 1 else f' ({before})'}."
            elif best in robust:
                words += f". The best on clean images, {names[best]}, falls from {before} to "
                words += f"{percent(robust[best]['accuracy'])}."
            else:
                words += f". The best on clean images, {names[best]} ({before}), was not attacked." if best else "."
        elif best:
            sides = f"sides with {judges_of(data)}" if is_judged(data) else "goes by shape"
            words = f"{names[best]} {sides} most often, {before} of the time; nothing was attacked."
        else:
            continue
        note = element("p", escape(str(data["note"])), class_="lede") if data.get("note") else ""
        elsewhere = [other for other in measured_sets(board) if other is not data]
        words += _people([(other, scores(other, None)) for other in elsewhere], names)
        return element("p", f"On {data_name(data)}, {words}", class_="summary") + note
    return element("p", "No metric has been measured yet.", class_="summary")


def _leaders(scores: dict[str, Entry]) -> list[str]:
    """The metrics with the highest accuracy as it is shown, with one decimal."""
    shown = {name: round(score["accuracy"], 1) for name, score in scores.items()}
    return [name for name in shown if shown[name] == max(shown.values())]


def _people(found: Sequence[tuple[Entry, dict[str, Entry]]], names: dict[str, str]) -> str:
    """Who agrees best with people, of each set that people judged; ``found`` are sets and the clean scores on them."""
    told = []
    for data, scores in found:
        if is_judged(data) and judges_of(data) == PEOPLE and scores:
            first = _leaders(scores)
            top = percent(scores[first[0]]["accuracy"])
            told.append(f"by {joined(names[name] for name in first)} on {data_name(data)} ({top})")
    return f" On clean images people are sided with most often {joined(told)}." if told else ""


def _facts(board: Entry) -> str:
    """What was measured, with which attack, where and when."""
    facts: list[tuple[str, list[str]]] = []
    sets = []
    for data in board["data"]:
        samples = known(data.get("samples"))
        sets.append(data_name(data) + (f" {small(f'{samples:,.0f} samples')}" if samples else ""))
    facts.append(("Data", sets))
    attacks = {ball_name(threat): escape(str(threat.get("words") or "")) for threat in board["threats"]}
    if len(set(attacks.values())) == 1:
        facts.append(("Attack", [joined(attacks), small(next(iter(attacks.values())))]))
    else:
        facts.append(("Attacks", [f"{ball} {small(words)}" for ball, words in attacks.items()]))
    kinds = [metric["kind"] if metric.get("kind") in OWN else "others" for metric in board["metrics"]]
    told = ", ".join(f"{kinds.count(kind)} {kind}" for kind in (*OWN, "others") if kind in kinds)
    facts.append(("Metrics", [str(len(kinds)), small(told)] if kinds else []))
    device, cores = board["device"], board["cores"]
    machine = [device.get("type"), f"{cores} core{'s' * (cores != 1)}" if cores else None]
    name = escape(str(device.get("name") or ""))
    facts.append(("Machine", [name, small(escape(", ".join(str(part) for part in machine if part)))]))
    if board["made"]:
        facts.append(("Made", [_date(str(board["made"]))]))
    shown = [(name, "<br>".join(filter(None, lines))) for name, lines in facts]
    return pair_list([fact for fact in shown if fact[1]], "facts")


def _date(text: str) -> str:
    """A day in words; the text itself where it is none."""
    try:
        made = datetime.fromisoformat(text.replace("Z", "+00:00"))
    except ValueError:
        return escape(text)
    return element("time", f"{made.day} {made:%B %Y}", datetime=text)


def _switches(board: Entry) -> str:
    """Buttons that only scripts need: the data set, where there are several, and the theme."""
    sets = [
        element("button", escape(str(data["id"])), type="button", data_choose=n, aria_pressed="false" if n else "true")
        for n, data in enumerate(measured_sets(board))
    ]
    group = element("div", "".join(sets), class_="sets", role="group", aria_label="data set") if len(sets) > 1 else ""
    theme = element(
        "button", "\N{CIRCLE WITH LEFT HALF BLACK}", type="button", class_="theme", aria_label="light or dark"
    )
    return element("div", group + theme, class_="switches")
