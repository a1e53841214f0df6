"""The words and numbers that the parts of the page are made of."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

from markupsafe import Markup, escape

DASH, NO_BREAK = "\N{EN DASH}", "\N{NO-BREAK SPACE}"
NORMS = {"linf": Markup("\u2113<sub>\N{INFINITY}</sub>"), "l2": Markup("\u2113<sub>2</sub>")}
NORMS["l1"] = Markup("\u2113<sub>1</sub>")


def figure(value: float) -> str:
    """Write three digits, or two: 1,230, 123, 12.3, 1.23, 0.123, 0.0123, 0.0012, 1.2e-4."""
    if 0 < abs(value) < 1e-3:
        digits, _, exponent = f"{value:.1e}".partition("e")
        return f"{digits}e{int(exponent)}"
    power = math.floor(math.log10(abs(value))) if value else 0
    return f"{value:.{min(4, 2 - power)}f}" if power < 2 else f"{round(value, 2 - power):,.0f}"


def count(value: float) -> str:
    """Write a number of parameters: 0, 640, 12 k, 1.9 M, 198 M."""
    if value < 1e6:
        return f"{value:.0f}" if value < 1e3 else f"{value / 1e3:.0f}{NO_BREAK}k"
    return f"{value / 1e6:.{1 if value < 1e8 else 0}f}{NO_BREAK}M"


def short(value: float) -> str:
    """Write a coordinate with one decimal, in as few characters as possible."""
    text = f"{value:.1f}".removesuffix(".0")
    return "0" if text == "-0" else text


def percent(value: float) -> str:
    """Write e.g. 92.4 %, which no line ends within."""
    return f"{value:.1f}{NO_BREAK}%"


def norm_name(norm: str) -> Markup:
    """Write a norm as HTML."""
    return NORMS.get(norm) or escape(norm)


def ball_name(threat: Mapping[str, Any]) -> Markup:
    """Write e.g. l_inf 4/255, as HTML; the name of the threat where it does not say its norm."""
    if not threat["norm"]:
        return escape(threat["id"])
    eps = threat["eps"]
    return norm_name(threat["norm"]) + f" {threat['eps_text'] or ('' if eps is None else f'{eps:g}')}"


def joined(words: Iterable[str]) -> Markup:
    """Join A, B and C, each once, as HTML."""
    *most, last = dict.fromkeys(words)
    return Markup(", ").join(most) + Markup(" and ") + last if most else escape(last)


def setting(value: Any) -> str:
    """Put a setting into words."""
    if isinstance(value, list) and value and not any(isinstance(part, dict | list) for part in value):
        return ", ".join(map(setting, value))
    if value is None or isinstance(value, bool):
        return {None: "none", True: "yes", False: "no"}[value]
    return value if isinstance(value, str) else json.dumps(value)


def day(text: str) -> str:
    """Write a day in words; the text itself where it is none."""
    try:
        made = datetime.fromisoformat(text.replace("Z", "+00:00"))
    except ValueError:
        return text
    return Markup('<time datetime="{}">{}</time>').format(text, f"{made.day} {made:%B %Y}")
