"""What pyproject.toml promises: train/ is rclip_metric.train; wheel and sdist carry manifest and small models."""

import json
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import rclip_metric

ROOT = Path(__file__).parents[1]
DATA = [
    "rclip_metric/models/README.md",
    "rclip_metric/models/lipsim-lite.safetensors",
    "rclip_metric/models/r-lite-f.safetensors",
    "rclip_metric/models/tiny-clean.safetensors",
    "rclip_metric/cli/templates/gallery.html",
    "rclip_metric/models/tiny-text.safetensors",
    "rclip_metric/models/tiny.safetensors",
    "rclip_metric/py.typed",
    *(
        f"rclip_metric/train/benchmark/page/templates/{p.name}"
        for p in (ROOT / "train/benchmark/page/templates").iterdir()
    ),
    *(f"rclip_metric/train/data/prompts/{path.name}" for path in (ROOT / "train/data/prompts").glob("*.json")),
    *(f"rclip_metric/train/recipes/{path.name}" for path in (ROOT / "train/recipes").glob("*.json")),
    *(
        f"rclip_metric/train/html/{name}"
        for name in ("base.html", "neighbours.html", "page.css", "page.js", "results.html")
    ),
    "rclip_metric/results/typical_distances.json",
    "rclip_metric/results/typical_distances_photographs.json",
    "rclip_metric/weights_manifest.json",
]


def python(code, cwd, *arguments):
    return subprocess.run([sys.executable, "-c", code, *map(str, arguments)], cwd=cwd, check=True)


def expected_files():
    package = {path.relative_to(ROOT) for path in (ROOT / "rclip_metric").rglob("*.py")}
    training = {Path("rclip_metric") / path.relative_to(ROOT) for path in (ROOT / "train").rglob("*.py")}
    return {path.as_posix() for path in package | training} | set(DATA)


def copy_of_the_source(folder):
    everywhere = shutil.ignore_patterns(".*", "*.egg-info", "__pycache__")

    def ignored(parent, names):
        made = {"build", "data", "dist", "runs"} if Path(parent) == ROOT else set()
        return everywhere(parent, names) | made.intersection(names)

    shutil.copytree(ROOT, folder, ignore=ignored)
    return folder


def build(hook, source, out):
    """Call the build backend, without isolation: the registry is not needed."""
    out.mkdir()
    python(f"import sys; from setuptools import build_meta; build_meta.{hook}(sys.argv[1])", source, out)
    [made] = out.iterdir()
    return made


def shipped(wheel):
    with zipfile.ZipFile(wheel) as archive:
        return {name for name in archive.namelist() if ".dist-info/" not in name}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    return build("build_wheel", copy_of_the_source(folder / "source"), folder / "dist")


def test_the_manifest_is_the_top_level_file():
    assert rclip_metric.load_manifest() == json.loads((ROOT / "weights_manifest.json").read_text())


def test_the_wheel_holds_exactly_the_source(wheel):
    assert shipped(wheel) == expected_files()


def test_the_wheel_of_the_sdist_is_the_same(wheel, tmp_path):
    sdist = build("build_sdist", copy_of_the_source(tmp_path / "source"), tmp_path / "sdist")
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path / "unpacked", filter="data")
    [unpacked] = (tmp_path / "unpacked").iterdir()
    assert shipped(build("build_wheel", unpacked, tmp_path / "dist")) == shipped(wheel)


def test_the_unpacked_wheel_scores_without_a_network(wheel, tmp_path):
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    code = """
import sys
sys.path.insert(0, sys.argv[1])
import rclip_metric
assert rclip_metric.__file__.startswith(sys.argv[1]), rclip_metric.__file__
pair = [f"{sys.argv[2]}/{name}.png" for name in ("reference", "closer")]
assert 0 < rclip_metric.score(*pair, model="tiny") < 1
import rclip_metric.train.attacks.apgd
"""
    python(code, tmp_path, tmp_path, ROOT / "examples" / "images")


def test_the_shipped_models_are_small():
    for name, most in (
        ("r-lite-f", 7_000_000),
        ("tiny", 5_000_000),
        ("tiny-clean", 5_000_000),
        ("lipsim-lite", 5_000_000),
    ):
        assert (ROOT / "rclip_metric" / "models" / f"{name}.safetensors").stat().st_size <= most


@pytest.mark.parametrize("name", ["train", "tests", "examples"])
def test_no_generic_name_is_installed(name, tmp_path):
    # Other packages may well install one: it has to be nowhere in this repository.
    code = """
import sys
from importlib.util import find_spec
from pathlib import Path
spec = find_spec(sys.argv[1])
places = [] if spec is None else spec.submodule_search_locations or [spec.origin]
assert not any(Path(sys.argv[2]) in Path(place).parents for place in places)
"""
    python(code, tmp_path, name, ROOT)
