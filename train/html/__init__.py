"""Pages of HTML: one file each that loads nothing, from templates that escape whatever they show."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

__all__ = ["render"]

_HERE = Path(__file__).parent


def render(template: str, folder: Path = _HERE, **values: Any) -> str:
    """Fill in a template, in which line breaks and indents between two tags are nothing.

    Args:
        template: its file, mostly one that extends `base.html`.
        folder: where it is; those beside this module are found from any folder.
        values: what it shows; all but `Markup` is escaped.
    """
    loader = FileSystemLoader([folder, _HERE])
    made = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    text = made.get_template(template).render(asset=_asset, **values)
    return re.sub(r">(\n|\s\s+)<", "><", text)


def _asset(name: str) -> Markup:
    """Read a style sheet or script, without what only its readers need."""
    lines = (_HERE / name).read_text(encoding="utf-8").splitlines()
    return Markup("\n".join(filter(None, map(str.strip, lines))))
