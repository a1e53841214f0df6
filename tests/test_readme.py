"""What the README states is what the repository holds."""

import json
import re
from pathlib import Path

from rclip_metric.train.benchmark.tables import markdown as benchmark_table
from rclip_metric.train.evaluation.results.leaderboard import table
from rclip_metric.train.evaluation.results.record import load_results
from rclip_metric.train.evaluation.sanity import Check, markdown
from rclip_metric.weights import get_spec, model_names

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def cell(number):
    return "?" if number is None else f"{number:.1f}"


def test_the_model_table_is_the_manifest():
    for name in model_names():
        spec = get_spec(name)
        task = next((task for task in ("nights", "scenes", "photos") if task in spec.reported), "")
        numbers = spec.reported.get(task, {})
        expected = [cell(numbers.get(column)) for column in ("clean", "linf", "l2")]
        [row] = re.findall(rf"^\| `{re.escape(name)}` \|.*$", README, re.MULTILINE)
        cells = [part.strip() for part in row.strip("|").split("|")]
        assert cells[2:5] == expected, row
        assert cells[-1] == (spec.license or "?"), row


def test_the_tables_are_those_of_the_saved_results():
    card = (ROOT / "rclip_metric" / "models" / "README.md").read_text()
    records = load_results([ROOT / "results" / "robustness"])
    assert table(records).strip() in README and table(records).strip() in card
    assert table(load_results([ROOT / "results" / "formats"])).strip() in README
    for record in records:
        reported = get_spec(record["model"]["name"]).reported["scenes"]
        assert reported["clean"] == round(record["clean"]["accuracy"], 1)
        assert reported[record["threat"]["norm"]] == round(record["robust"]["accuracy"], 1)
        digest = get_spec(record["model"]["name"]).files[0].sha256
        assert digest is not None and record["model"]["revision"] == f"sha256:{digest[:12]}"
        assert record["warnings"] == [] and record["settings"]["limit"] is None


def test_what_is_said_of_r_lite_f_on_photographs_is_the_saved_result():
    """On all 1,000 triplets, by the weights that are shipped."""
    spec = get_spec("r-lite-f")
    records = [record for record in load_results([ROOT / "results" / "photographs"]) if record["robust"]]
    records.sort(key=lambda record: (record["threat"]["norm"] != "linf", record["threat"]["eps"]))
    cells = [records[0]["clean"], *(record["robust"] for record in records)]
    [row] = re.findall(r"^\| r-lite-f \| (.*) \|$", README, re.MULTILINE)
    assert row.split(" | ") == [
        f"{c['accuracy']:.1f} ({c['interval_95'][0]:.1f} - {c['interval_95'][1]:.1f})" for c in cells
    ]
    reported = {record["threat"]["norm"]: round(record["robust"]["accuracy"], 1) for record in records}
    assert spec.reported["photos"] == {"clean": round(cells[0]["accuracy"], 1), **reported}  # linf: the larger radius
    for record in records:
        assert record["data"]["samples"] == 1000 and record["settings"]["limit"] is None
        assert record["model"]["revision"] == f"sha256:{str(spec.files[0].sha256)[:12]}"


def test_the_benchmark_is_the_saved_one():
    folder = ROOT / "results" / "benchmark"
    glance = (folder / "benchmark.md").read_text().split("\n\n")[0]
    assert glance.startswith("| metric | photos clean |") and glance in README
    saved = json.loads((folder / "benchmark.json").read_text())
    assert (folder / "benchmark.md").read_text() == benchmark_table(saved) + "\n"
    speed = ROOT / "results" / "benchmark_metrics.md"
    assert speed.read_text().strip() in README


def test_the_verdicts_are_those_of_the_saved_sanity_suite():
    saved = json.loads((ROOT / "results" / "sanity" / "sanity-tiny.json").read_text())
    assert markdown([Check(**check) for check in saved["checks"]]) in README


def test_every_file_the_readme_links_or_runs_exists():
    for path in re.findall(
        r"(?:examples|results|rclip_metric|tests|(?<!tests/)train|docs)/[\w./-]+\.(?:py|png|json|md)", README
    ):
        assert (ROOT / path).exists(), path
