"""Write docs/weights.md from the manifest: `python docs/weights_page.py > docs/weights.md`.

A test compares the two, so that the page cannot fall behind.
"""

import sys
from collections.abc import Mapping
from typing import Any

from rclip_metric.weights import load_manifest

HEAD = """\
# Weights

Which weights can be told from any others, and which not yet. A *revision* names a commit of a repository; a *digest*
is the sha256 of a file, compared before a tensor of it is read. Without a revision the newest is taken. Without a
digest nothing here can say that the file is the one that the paper's numbers are of: it is compared with what the Hub
states.

This page is `python docs/weights_page.py`, made from `weights_manifest.json`. Where there is a network,
`rclip-metric manifest --refresh --write` asks the Hub for what is missing.
"""


def page(models: Mapping[str, Mapping[str, Any]]) -> str:
    """The page as Markdown."""
    hub = {name: entry for name, entry in models.items() if entry["source"] == "hub"}
    with_digest = [name for name, entry in hub.items() if _digest(entry)]
    full = [name for name, entry in hub.items() if len(entry["revision"] or "") == 40]
    short = [name for name, entry in hub.items() if entry["revision"] and name not in full]
    lines = [
        HEAD,
        "## On the Hub\n",
        f"{len(hub)} models: {len(with_digest)} have a digest and {len(hub) - len(with_digest)} have none yet. "
        f"{len(full)} name a full commit, {len(short)} its first digits, {len(hub) - len(full) - len(short)} none.\n",
        "| name | repository | revision | digest | file |",
        "|---|---|---|---|---|",
    ]
    for name, entry in hub.items():
        files = entry["files"] or []
        chosen = next((file for file in files if file["sha256"]), files[0] if files else None)
        shown = f"`{chosen['name']}`" if chosen else "not seen yet: the usual names are tried"
        revision = f"`{entry['revision'][:12]}`" if entry["revision"] else "**none**"
        lines.append(f"| `{name}` | `{entry['repo']}` | {revision} | {_digest(entry) or '**none**'} | {shown} |")
    lines += ["\n## Elsewhere\n", "| name | where | digest |", "|---|---|---|"]
    places = {
        "package": "in this package",
        "pypi": "in the package `{repo}`",
        "local": "plain files of their authors, to be converted",
    }
    for name, entry in models.items():
        if entry["source"] != "hub":
            lines.append(f"| `{name}` | {places[entry['source']].format(**entry)} | {_digest(entry) or '**none**'} |")
    return "\n".join(lines) + "\n"


def _digest(entry: Mapping[str, Any]) -> str:
    digest = next((file["sha256"] for file in entry["files"] or [] if file["sha256"]), "")
    return f"`{digest[:12]}`" if digest else ""


if __name__ == "__main__":
    sys.stdout.write(page(load_manifest()["models"]))
