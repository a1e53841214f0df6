"""The examples that are about photographs, on pictures drawn here and a small random model."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from rclip_metric import Encoder, RobustPerceptualDistance
from rclip_metric.encoder import ConvNeXtArchitecture
from rclip_metric.images import Preprocessing
from rclip_metric.weights import save_encoder

from support.encoders import VIT, small_encoder
from support.programs import load_example

CLASSES = ("ring", "bar")


@pytest.fixture
def example():
    """Imports an example by its name."""
    return load_example


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> list[Path]:
    """Two small random models by two names."""
    folders = []
    for seed, name in enumerate(("one", "two")):
        encoder = small_encoder(VIT, seed=seed, spread=True, name=name)
        folders.append(save_encoder(encoder, tmp_path_factory.mktemp("models") / name))
    return folders


def drawing(label: str, size: tuple[int, int] = (48, 40)) -> Image.Image:
    """A red ring on blue or a yellow bar on green."""
    y, x = np.mgrid[: size[1], : size[0]]
    ring = abs(np.hypot(x - size[0] / 2, y - size[1] / 2) - min(size) / 4) < 3
    mask, front, back = {
        "ring": (ring, (200, 30, 30), (30, 30, 160)),
        "bar": (abs(x - y) < 5, (220, 210, 40), (40, 120, 60)),
    }[label]
    return Image.fromarray(np.where(mask[..., None], front, back).astype(np.uint8))


@pytest.fixture
def tree(tmp_path) -> Path:
    """Two sets; in "goods" all images of a class are one image, in "kinds" every class has a single image."""
    rows = []
    for label in CLASSES:
        for group, count in (("goods", 4), ("kinds", 1)):
            for number in range(count):
                file = Path(group) / label / f"{number}.png"
                (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
                drawing(label).save(tmp_path / file)
                rows.append({"set": group, "class": label, "file": file.as_posix()})
    with (tmp_path / "index.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["set", "class", "file"])
        writer.writeheader()
        writer.writerows(rows)
    return tmp_path


SMALL = ["--count", "10", "--attacked", "4", "--steps", "8"]


def test_typical_distances_of_photographs(example, models, tree, capsys):
    typical, out = example("typical_distances"), tree / "out.json"
    arguments = ["--model", *map(str, models), *SMALL, "--out", str(out)]
    report = typical.main([*arguments, "--images", str(tree / "index.csv"), "--products", "goods"])
    assert json.loads(out.read_text()) == report and str(tree) not in out.read_text()
    rows = report["distances"]
    assert list(rows)[-4:] == ["same product", "other class", *list(rows)[-2:]]  # no class of "kinds" has two images
    for name in ("one", "two"):
        assert rows["identical"][name] == {"pairs": 10, "5 %": 0.0, "50 %": 0.0, "95 %": 0.0}
        assert rows["same product"][name] == {"pairs": 8, "5 %": 0.0, "50 %": 0.0, "95 %": 0.0}
        # Every pair of different classes is the same pair of pictures.
        metric = RobustPerceptualDistance(models[("one", "two").index(name)])
        x, y = (metric.preprocess(drawing(label))[None] for label in CLASSES)
        assert rows["other class"][name]["5 %"] == pytest.approx(metric(x, y).item(), abs=1e-4)
        assert rows["other class"][name]["95 %"] == pytest.approx(metric(x, y).item(), abs=1e-4)
        worst = [rows[f"worst case within linf {levels}/255 (APGD)"][name] for levels in (2, 4)]
        assert worst[0]["pairs"] == 4 and 0 < worst[0]["50 %"] < worst[1]["50 %"]
        noisy = (x + 2 / 255 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0)).sign()).clamp(0, 1)
        assert worst[0]["50 %"] > metric(x, noisy).item()
        assert report["models"][name]["revision"] and report["models"][name]["resize"] == "published"
    table = capsys.readouterr().out.splitlines()
    assert (
        table[0] == "| change | one | two |" and table[2] == "| identical | 0.00 (0.00 - 0.00) | 0.00 (0.00 - 0.00) |"
    )
    assert len(table) == 2 + len(rows)


def test_typical_distances_do_not_depend_on_the_number_of_models(example, models, tree):
    typical = example("typical_distances")
    arguments = ["--images", str(tree / "goods"), *SMALL]
    both = typical.main(["--model", *map(str, models), *arguments])["distances"]
    alone = typical.main(["--model", str(models[1]), *arguments])["distances"]
    assert {kind: cells["two"] for kind, cells in both.items()} == {kind: cells["two"] for kind, cells in alone.items()}
    assert "same class" in alone and "same product" not in alone


def test_typical_distances_pass_over_a_broken_photograph(example, models, tree, capsys):
    broken = tree / "goods" / "ring" / "0.png"
    broken.write_bytes(broken.read_bytes()[:60])
    arguments = ["--model", str(models[0]), "--images", str(tree / "index.csv"), "--sets", "goods", *SMALL]
    report = example("typical_distances").main(arguments)
    assert report["distances"]["identical"]["one"]["pairs"] == 7
    assert f"skipped: cannot read {broken}" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments, complaint",
    [
        (["--images", "missing.csv"], "missing.csv"),
        (["--images", "index.csv", "--sets", "toys"], "has no set 'toys'"),
        (["--images", "other.csv"], "other.csv has no column 'class': it needs class and file"),
        (["--images", "goods/ring"], "no class folders"),
    ],
)
def test_typical_distances_refuse_in_one_sentence(example, models, tree, monkeypatch, capsys, arguments, complaint):
    (tree / "other.csv").write_text("name,file\na,b.png\n")
    monkeypatch.chdir(tree)
    with pytest.raises(SystemExit) as stop:
        example("typical_distances").main(["--model", str(models[0]), *arguments])
    assert stop.value.code == 2 and complaint in capsys.readouterr().err.splitlines()[-1]


def test_typical_distances_of_scenes(example, models):
    report = example("typical_distances").main(["--model", str(models[0]), "--count", "3", *SMALL[2:]])
    assert report["images"] == "scenes" and {"one attribute changed", "other scene"} < set(report["distances"])
    assert {cells["one"]["pairs"] for cells in report["distances"].values()} == {3}


@pytest.fixture
def own(tmp_path) -> list[str]:
    """Two pictures, as the options that name them."""
    for label, size in (("ring", (300, 260)), ("bar", (240, 320))):
        drawing(label, size).save(tmp_path / f"{label}.png")
    return ["--reference", str(tmp_path / "ring.png"), "--farther", str(tmp_path / "bar.png")]


def test_an_attacked_photograph(example, models, own, tmp_path):
    pytest.importorskip("matplotlib")
    out = tmp_path / "out"
    arguments = ["--clean", str(models[0]), "--robust", str(models[1]), *own, "--steps", "20", "--restarts", "2"]
    report = example("attacked_photograph").main([*arguments, "--out", str(out)])
    assert json.loads((out / "photo-attacked.json").read_text()) == report

    def levels(name: str) -> np.ndarray:
        return np.asarray(Image.open(out / name).convert("RGB")).astype(int)

    assert levels("photo-reference.jpg").shape == (224, 224, 3)
    for name, folder in zip(("one", "two"), models, strict=True):
        change = abs(levels(f"photo-attacked-{name}.png") - levels("photo-reference.jpg"))
        assert change.max() == report["largest change"][name] == 4
        # The figures are those of the files, each attack hurts its own metric, and the choice follows the distances.
        metric = RobustPerceptualDistance(folder)
        option = {side: metric.preprocess(out / f"photo-{side}.jpg")[None] for side in ("closer", "farther")}
        for version, file in (("reference", "photo-reference.jpg"), (f"attacked-{name}", f"photo-attacked-{name}.png")):
            image = metric.preprocess(out / file)[None]
            expected = {side: metric(image, option[side]).item() for side in option}
            answer = report["models"][name]["answers"][version]
            assert {side: answer[side] for side in option} == pytest.approx(expected, abs=1e-4)
            assert answer["chosen"] == min(expected, key=lambda side: expected[side])
        before, after = (report["models"][name]["answers"][version] for version in ("reference", f"attacked-{name}"))
        assert after["closer"] - after["farther"] > before["closer"] - before["farther"]
    with Image.open(out / "photo-attacked.png") as picture:
        assert picture.width > 600
    page = (out / "photo-README.md").read_text()
    assert "| ring.png (`ring.png`) | not known here | not known here |" in page and str(tmp_path) not in page


def test_an_attacked_photograph_refuses_in_one_sentence(example, models, own, tmp_path, monkeypatch, capsys):
    module = example("attacked_photograph")
    one = ["--clean", str(models[0]), "--out", str(tmp_path / "out"), *own]

    def refused(*arguments: str) -> str:
        with pytest.raises(SystemExit) as stop:
            module.main([*one, *arguments])
        assert stop.value.code == 2
        return capsys.readouterr().err.splitlines()[-1]

    assert "both models are named one" in refused("--robust", str(models[0]))
    assert "There is no model 'r-lite-z'" in refused("--robust", "r-lite-z")
    assert "cannot read missing.png" in refused("--robust", str(models[1]), "--reference", "missing.png")
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    assert "pip install scikit-image" in refused("--robust", str(models[1]), "--reference", "chelsea")
    assert not (tmp_path / "out").exists()


def test_the_published_photographs_state_a_licence_and_flip_no_more_than_they_were_right(example, models):
    pytest.importorskip("skimage")
    module = example("attacked_photograph")
    assert {source.licence for source in module.PUBLISHED.values()} == {"CC0", "public domain"}
    metric = RobustPerceptualDistance(models[0])
    found = module.every_pair({"one": metric}, module.Attack(steps=2, restarts=1))
    assert found["pairs"] == 20 and 0 <= found["one"]["right under attack"] <= found["one"]["right"] <= 20
    page = module.sources(["chelsea", "coffee", "chelsea"])
    assert page.count("Stefan van der Walt | CC0") == 1 and "Rachel Michetti" in page


def test_short_runs_compare_settings_at_equal_processor_time(example, tmp_path, capsys):
    """Of 42 photographs 4 are set apart; a row that is there is not computed again."""
    torch.manual_seed(0)
    small = ConvNeXtArchitecture(image_size=32, depths=(1, 1, 1, 1), widths=(8, 8, 16, 16), projection=16)
    base = save_encoder(Encoder(small, Preprocessing(mode="squash", resize=32, crop=32), name="b"), tmp_path / "base")
    rng = np.random.default_rng(0)
    for folder in range(14):
        for number in range(3):
            path = tmp_path / "tree" / f"{folder:02d}" / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            blocks = rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)
            Image.fromarray(blocks).resize((72, 72), Image.Resampling.BICUBIC).save(path)
    short, out = example("short_runs"), tmp_path / "out"
    command = ["--images", str(tmp_path / "tree"), "--out", str(out), "--base", str(base), "--seconds", "0.5"]
    command += ["--triplets", "11", "--size", "32", "--only", "batch of 16"]
    short.main(command)
    assert sorted(path.name for path in (out / "apart").iterdir()) == ["03-0.png", "06-1.png", "09-2.png", "13-0.png"]
    assert len(list((out / "train").iterdir())) == 38
    (row,) = json.loads((out / "short_runs.json").read_text())
    recipe = row["recipe"]
    assert row["images"] == 16 * row["steps"] and recipe["batch_size"] == 16 and recipe["steps"] == row["steps"] >= 2
    assert recipe["learning_rate"] == 1e-3 and recipe["inner_steps"] == 1  # the rest is the recipe
    assert 0 <= row["accuracy"]["4/255"] <= row["accuracy"]["2/255"] <= row["accuracy"]["clean"] <= 100
    table = capsys.readouterr().out
    assert f"| batch of 16 | {row['steps']} | {row['images']} |" in table
    written = (out / "batch-of-16" / "row.json").stat().st_mtime_ns
    short.main(command)
    assert (out / "batch-of-16" / "row.json").stat().st_mtime_ns == written
    assert capsys.readouterr().out.endswith((out / "short_runs.md").read_text())


def test_edits_of_known_place_are_found(example, tmp_path):
    """What the benchmark of difference maps makes of one pair of each kind: areas that can be worked out by hand."""
    maps = example("benchmark_difference_maps")
    for number in range(6):
        drawing(CLASSES[number % 2], (200 + number, 210)).save(tmp_path / f"{number}.png")
    chosen = list(maps.pairs(tmp_path, 4))
    assert [pair.edit for pair in chosen] == list(maps.EDITS)[: len(chosen)] and len(chosen) >= 3
    for pair in chosen:
        assert (pair.x == pair.y)[:, ~pair.mask].all() and not (pair.x == pair.y)[:, pair.mask].all()
        assert 0.01 < pair.mask.float().mean() < 0.15
        for how in ("random 4/255", "JPEG 75"):
            assert not torch.equal(maps.disturbed(pair, how, 0, None), pair.y)
    mask = torch.tensor([[True, True, False, False]])
    values = torch.tensor([[0.9, 0.2, 0.2, 0.1]])  # of four pairs three in order and one tie: 3.5 / 4
    assert maps.area_under_curve(values, mask) == pytest.approx(3.5 / 4)
    record = maps.main(
        [
            str(tmp_path),
            "--pairs",
            "2",
            "--slow-pairs",
            "1",
            "--models",
            "tiny",
            "--quiet",
            "--out",
            str(tmp_path / "r.json"),
        ]
    )
    rows = {(row["model"], row["method"], row["disturbed"]): row for rows in record["results"].values() for row in rows}
    assert len(rows) == 4 * 4 + 3 * 3
    assert rows["|x - y|", "its own", "nothing"]["area"]["mean"] > 0.9
    assert rows["tiny", "features", "random 4/255"]["area"]["mean"] > 0.8
    assert json.loads((tmp_path / "r.json").read_text()) == json.loads(json.dumps(record))


def test_the_figure_of_differences(example, tmp_path):
    figure = example("difference_figure")
    drawing("ring", (60, 50)).save(tmp_path / "ring.png")
    out = tmp_path / "out.png"
    figure.main(["--photograph", str(tmp_path / "ring.png"), "--models", "tiny", "tiny-clean", "--out", str(out)])
    with Image.open(out) as picture:
        assert picture.width > 4 * picture.height
        assert len(np.unique(np.asarray(picture.convert("RGB")).reshape(-1, 3), axis=0)) > 1000
    y, _ = figure.edited(torch.full((3, 40, 60), 0.5))
    assert (y - 0.5).abs().max() <= 4 / 255 + 1e-6
