"""What the README and the pages of docs/ state is what the repository holds."""

import importlib.util
import json
import re
import sys
from pathlib import Path

import open_clip
import pytest
import torch
import yaml  # type: ignore[import-untyped]  # huggingface_hub's own requirement

from rclip_metric import __version__
from rclip_metric.encoder import build_tower
from rclip_metric.train.benchmark.tables import markdown as benchmark_table
from rclip_metric.train.evaluation.results.leaderboard import table
from rclip_metric.train.evaluation.results.record import load_results
from rclip_metric.train.evaluation.sanity import Check, markdown
from rclip_metric.train.metrics import REPORTED
from rclip_metric.weights import get_spec, load_manifest, model_names

from support.programs import load_example

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomli")

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
SHORT_TABLE = README[README.index("## Models") : README.index("## Results")]
ROBUSTNESS, BENCHMARK, COSTS, MODELS = (
    (ROOT / "docs" / name).read_text(encoding="utf-8")
    for name in ("robustness.md", "guides/benchmark.md", "costs.md", "models.md")
)


@pytest.fixture
def load_page():
    """Loads a script of docs/ as a module."""

    def load(name):
        spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / f"{name}.py")
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load


def cell(number):
    return "?" if number is None else f"{number:.1f}"


def rows(page, name):
    found = re.findall(rf"^\| `{re.escape(name)}` \|.*$", page, re.MULTILINE)
    return [[part.strip() for part in row.strip("|").split("|")] for row in found]


def test_the_model_tables_are_the_manifest():
    for name in model_names():
        spec = get_spec(name)
        task = next((task for task in ("nights", "scenes", "photos") if task in spec.reported), "")
        numbers = spec.reported.get(task, {})
        expected = [*(cell(numbers.get(column)) for column in ("clean", "linf", "l2")), spec.license or "?"]
        [row] = rows(MODELS, name)
        assert row[-4:] == expected, row
        for row in rows(SHORT_TABLE, name):
            assert row[-4:] == expected, row
    assert len(re.findall(r"^\| `.*\| (?:MIT|Apache-2.0) \|$", SHORT_TABLE, re.MULTILINE)) == 8
    assert f"[All {len(model_names())}](docs/models.md)" in README


def test_parameters_and_files_in_the_readme_are_those_of_the_towers():
    wholes = {"convnext_base_w": "r-clip-", "ViT-B-16": "r-clip-f-vit-b-16", "ViT-B-32": "r-clip-f-vit-b-32"}
    wholes["ViT-L-14"] = "r-clip-f-vit-l-14"
    for name in ("r-clip-f", "r-clip-f-vit-b-16", "r-clip-f-vit-b-32", "r-clip-f-vit-l-14", "r-dino-f"):
        with torch.device("meta"):
            parameters = sum(p.numel() for p in build_tower(get_spec(name).architecture).parameters())
            whole = parameters
            for config in [config for config, start in wholes.items() if name.startswith(start)][-1:]:
                whole = sum(p.numel() for p in open_clip.CLIP(**open_clip_arguments(config)).parameters())
        [row] = rows(SHORT_TABLE, name)
        assert row[2] == f"{parameters / 1e6:.0f} M"
        megabytes = float(row[3].removesuffix(" MB").replace(",", ""))
        assert abs(megabytes - 4 * whole / 1e6) < 4, (name, megabytes, 4 * whole / 1e6)
    for name in ("r-lite-f", "tiny"):
        [row] = rows(SHORT_TABLE, name)
        file = ROOT / "rclip_metric" / "models" / f"{name}.safetensors"
        assert row[3] == f"in the package, {file.stat().st_size / 1e6:.0f} MB"


def open_clip_arguments(name):
    config = open_clip.get_model_config(name)
    return {key: config[key] for key in ("embed_dim", "vision_cfg", "text_cfg")}


def test_the_readme_is_short_and_has_its_parts_in_order():
    lines = README.splitlines()
    assert len(lines) <= 150
    parts = [
        "rclip-metric",
        "Install",
        "Two commands",
        "Six lines of Python",
        "As a loss",
        "Coming from another metric",
    ]
    parts += ["Models", "Results", "Offline", "What was verified here, and what could not be", "More", "Citation"]
    assert [line.lstrip("# ") for line in lines if re.match("#+ ", line)] == parts


def test_what_the_readme_quotes_of_the_paper_is_the_paper_s():
    r_clip_f, dreamsim = get_spec("r-clip-f").reported["nights"], REPORTED["dreamsim"]["nights"]
    said = re.search(
        r"DreamSim is right in ([\d.]+) % .*?([\d.]+) % once .*?has ([\d.]+) % and keeps ([\d.]+) %", README, re.S
    )
    assert said is not None
    quoted = [dreamsim["clean"], dreamsim["linf"], r_clip_f["clean"], r_clip_f["linf"]]
    assert [float(number) for number in said.groups()] == quoted


def test_the_page_of_weights_is_the_manifest(load_page):
    weights_page = load_page("weights_page")
    models = load_manifest()["models"]
    assert (ROOT / "docs" / "weights.md").read_text(encoding="utf-8") == weights_page.page(models)
    hub = [entry for entry in models.values() if entry["source"] == "hub"]
    without = [entry for entry in hub if not any(file["sha256"] for file in entry["files"] or [])]
    assert f"{len(without)} of {len(hub)} models on the Hub" in README
    assert f"{len(hub)} models: {len(hub) - len(without)} have a digest and {len(without)} have none yet" in (
        weights_page.page(models)
    )


def test_the_version_stands_in_one_place():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert "version" not in project["project"] and project["project"]["dynamic"] == ["version"]
    assert project["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "rclip_metric.__version__"}
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert cited["version"] == __version__ and cited["title"] == project["project"]["name"]
    assert f"version = {{{__version__}}}" in README
    for extra in project["project"]["optional-dependencies"]["docs"]:
        assert extra in project["project"]["optional-dependencies"]["test"]


def test_the_figure_of_results_is_drawn_from_the_records(tmp_path):
    module = load_example("results_figure")
    found = module.main(["--out", str(tmp_path / "results.png")])
    assert (tmp_path / "results.png").stat().st_size > 10_000
    board = json.loads((ROOT / "results" / "benchmark" / "benchmark.json").read_text(encoding="utf-8"))
    table_row = next(line for line in benchmark_table(board).splitlines() if line.startswith("| r-lite-f"))
    assert [f"{found['photos']['r-lite-f'][eps]:.1f}" for eps in (2.0, 4.0)] == table_row.split(" | ")[2:4]
    assert found["photos"]["lite"][4.0] == 0.0 and len(found) == 3


def test_the_tables_are_those_of_the_saved_results():
    card = (ROOT / "rclip_metric" / "models" / "README.md").read_text()
    records = load_results([ROOT / "results" / "robustness"])
    assert table(records).strip() in ROBUSTNESS and table(records).strip() in card
    assert table(load_results([ROOT / "results" / "formats"])).strip() in ROBUSTNESS
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
    [row] = re.findall(r"^\| r-lite-f \| (.*) \|$", ROBUSTNESS, re.MULTILINE)
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
    assert glance.startswith("| metric | photos clean |") and glance in BENCHMARK
    saved = json.loads((folder / "benchmark.json").read_text())
    assert (folder / "benchmark.md").read_text() == benchmark_table(saved) + "\n"
    speed = ROOT / "results" / "benchmark_metrics_avx2.md"
    assert speed.read_text().strip() in COSTS


def test_the_verdicts_are_those_of_the_saved_sanity_suite():
    saved = json.loads((ROOT / "results" / "sanity" / "sanity-tiny.json").read_text())
    assert markdown([Check(**check) for check in saved["checks"]]) in ROBUSTNESS
