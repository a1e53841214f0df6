"""What the README states is what the repository holds."""

import json
import re
from pathlib import Path

from rclip_metric.manifest import get_spec, model_names

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def cell(number):
    return "?" if number is None else f"{number:.1f}"


def test_the_model_table_is_the_manifest():
    for name in model_names():
        spec = get_spec(name)
        task = "nights" if "nights" in spec.reported else "scenes"
        numbers = spec.reported.get(task, {})
        expected = [cell(numbers.get(column)) for column in ("clean", "linf", "l2")]
        [row] = re.findall(rf"^\| `{re.escape(name)}` \|.*$", README, re.MULTILINE)
        cells = [part.strip() for part in row.strip("|").split("|")]
        assert cells[2:5] == expected, row
        assert cells[-1] == (spec.license or "?"), row


def test_the_scene_numbers_are_those_of_the_saved_result():
    results = json.loads((ROOT / "results" / "tiny_2afc.json").read_text())["results"]
    card = (ROOT / "rclip_metric" / "models" / "README.md").read_text()
    for record in results:
        reported = get_spec(record["model"]).reported["scenes"]
        values = [record["clean"]["accuracy"], *(attack["accuracy"] for attack in record["attacks"])]
        assert [reported["clean"], reported["linf"], reported["l2"]] == [round(value, 1) for value in values]
        digest = get_spec(record["model"]).files[0].sha256
        assert digest is not None and record["revision"] == f"sha256:{digest[:12]}"
        low, high = record["clean"]["interval_95"]
        row = f"| {values[0]:.1f} ({low:.1f} - {high:.1f}) |"
        assert row in README and row in card


def test_every_file_the_readme_links_or_runs_exists():
    for path in re.findall(r"(?:examples|results|rclip_metric|train)/[\w./-]+\.(?:py|png|json|md)", README):
        if not path.startswith("results/tiny_2afc"):
            assert (ROOT / path).exists(), path
