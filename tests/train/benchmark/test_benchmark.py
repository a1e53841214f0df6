"""`rclip-metric benchmark`: what is written, resumed and reported, with real metrics on small scenes."""

import csv
import itertools
import json
from dataclasses import replace
from pathlib import Path
from statistics import NormalDist, median

import numpy as np
import pytest
import torch
from PIL import Image

from rclip_metric.cli.main import main
from rclip_metric.train.attacks.threat import LpBall
from rclip_metric.train.benchmark.settings import BenchmarkSettings, balls_from, data_of, metrics_of
from rclip_metric.train.data.scenes.formats import write_things
from rclip_metric.train.evaluation.certificates.lipschitz import certified_radii
from rclip_metric.train.evaluation.results.bootstrap import summary
from rclip_metric.train.evaluation.results.outcome import unpack
from rclip_metric.train.evaluation.results.record import load_results
from rclip_metric.train.evaluation.tasks import nights_data
from rclip_metric.train.metrics.base import EmbeddingMetric, Facts
from rclip_metric.train.metrics.registry import load_metric
from rclip_metric.train.runs.config import radius

from support.forked import ranks
from support.scenes import small_scenes


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    folder = small_scenes(tmp_path_factory.mktemp("scenes"), (0, 4, 12), queries=2)
    write_things(folder / "things", concepts=24, triplets=20, quiet=True)
    return folder


def arguments(scenes, out, metrics, *more):
    data = f"nights:{scenes / 'nights'}"
    return ["benchmark", "--metrics", metrics, "--data", data, "--norms", "linf:4/255,l2:0.857", "--steps", "3",
            "--image-size", "64", "--device", "cpu", "--quiet", "--out", str(out), *more]  # fmt: skip


@pytest.fixture(scope="module")
def done(scenes, tmp_path_factory):
    """A whole benchmark of four metrics, one of which is not there."""
    out = tmp_path_factory.mktemp("benchmark")
    more = ("--page", "--certified", "--direct", "3", "--examples", "2", "--sweep", "6")
    more = (*more, "--data", f"nights:{scenes / 'nights'},things:{scenes / 'things'}")
    code = main(arguments(scenes, out, "tiny,tiny-clean,l2,dreamsim", *more))
    return code, out, json.loads((out / "benchmark.json").read_text()), more


def test_everything_is_there_and_what_failed_is_told(done, capsys):
    code, out, board, _ = done
    assert code == 2
    assert {"benchmark.csv", "benchmark.html", "benchmark.json", "benchmark.md"} <= {p.name for p in out.iterdir()}
    assert not list(out.rglob("*.partial")) and not list(out.rglob(".journal"))
    rows = {metric["id"]: metric for metric in board["metrics"]}
    assert {name: row["kind"] for name, row in rows.items()} == {
        "tiny": "ours", "tiny-clean": "baseline", "l2": "baseline", "dreamsim": "baseline",
    }  # fmt: skip
    assert [row["failures"] == [] for row in rows.values()] == [True, True, True, False]
    [failure] = rows["dreamsim"]["failures"]
    assert "rclip-metric train baseline dreamsim FILE" in failure and "dreamsim_ensemble_checkpoint.zip" in failure
    assert failure in (out / "benchmark.md").read_text() and rows["dreamsim"]["results"] == {}
    for name in ("tiny", "tiny-clean", "l2"):
        assert set(rows[name]["results"]) == {"scenes", "scenes-things"}
        assert set(rows[name]["results"]["scenes"]["robust"]) == {"linf 4/255", "l2 0.857"}
        assert rows[name]["results"]["scenes-things"]["robust"] == {}
        assert {threat: len(found["distances"]) for threat, found in rows[name]["direct"].items()} == {
            "linf 4/255": 3, "l2 0.857": 3,
        }  # fmt: skip
    assert rows["tiny"]["parameters"] == sum(p.numel() for p in load_metric("tiny").metric.encoder.parameters())
    assert rows["tiny"]["licence"] == "MIT" and rows["l2"]["parameters"] == 0
    assert len(board["examples"]) == 2 and set(board["examples"][0]["metrics"]) == {"tiny", "tiny-clean", "l2"}
    assert not board["data"][0]["comparable"] and board["paper"][0]["nights"]["linf"] == 87.2
    page = (out / "benchmark.html").read_text()
    assert "sides with the scenes&#39; own rule" in page and "Scenes are drawn by a program" in page
    assert page.count("rclip-metric train baseline dreamsim FILE") == 1


def test_the_board_agrees_with_the_records(done):
    _, out, board, _ = done
    rows = {metric["id"]: metric for metric in board["metrics"]}
    for record in load_results([out]):
        result = rows[record["model"]["name"]]["results"][record["data"]["name"]]
        assert result["clean"]["accuracy"] == record["clean"]["accuracy"]
        if record["threat"]["attack"] == "apgd":
            assert result["robust"][f"{record['threat']['norm']} {record['threat']['eps_text']}"] == record["robust"]
    with (out / "benchmark.csv").open() as handle:
        lines = list(csv.DictReader(handle))
    tiny = next(line for line in lines if (line["metric"], line["data"], line["column"]) == ("tiny", "scenes", "clean"))
    assert float(tiny["percent"]) == rows["tiny"]["results"]["scenes"]["clean"]["accuracy"]
    assert "| tiny @ sha256:" in (out / "benchmark.md").read_text()


def test_the_curve_begins_with_the_clean_accuracy_of_the_swept_samples(done):
    _, out, board, _ = done
    tiny = next(metric for metric in board["metrics"] if metric["id"] == "tiny")
    whole = next(r for r in load_results([out]) if (r["model"]["name"], r["threat"]["norm"]) == ("tiny", "linf"))
    swept = load_results([out / "sweep"])
    keys = {row.key for row in unpack(swept[0])}
    few = [row for row in unpack(whole) if row.key in keys]
    assert len(few) == 6
    curve = tiny["sweep"]["scenes"]["linf"]
    assert [point[0] for point in curve] == pytest.approx([0, 1 / 255, 2 / 255, 4 / 255, 8 / 255, 16 / 255])
    for point, values in ((curve[0], [row.clean for row in few]), (curve[3], [row.robust for row in few])):
        expected = summary(values, [""] * 6, macro=False)
        assert point[1:] == [expected["accuracy"], *expected["interval_95"]]


def test_certified_accuracy_of_l2_is_that_of_the_perpendicular_bisector(done, scenes):
    """R = | |x - y0|^2 - |x - y1|^2 | / (2 |y0 - y1|): the distance to where both options are equally far."""
    _, out, board, _ = done
    metric = load_metric("l2", image_size=64)
    expected = {}
    for triplet in nights_data(scenes / "nights").triplets:
        x, left, right = (metric.preprocess(p).double() for p in (triplet.reference, triplet.left, triplet.right))
        apart = (x - left).square().sum() - (x - right).square().sum()
        right_choice = (apart > 0) == (triplet.label == 1)
        expected[triplet.key] = float(abs(apart) / (2 * (left - right).norm())) if right_choice else 0.0
    records = [r for r in load_results([out]) if r["threat"]["attack"] == "certified"]
    assert {r["model"]["name"] for r in records} == {"l2"}
    assert sorted(r["threat"]["eps"] for r in records) == pytest.approx([36 / 255, 72 / 255, 108 / 255, 0.857, 1.0])
    for record in records:
        found = dict(zip((row.key for row in unpack(record)), certified_radii(record), strict=True))
        assert found == pytest.approx(expected, abs=1e-4)
        share = 100 * sum(value > record["threat"]["eps"] for value in expected.values()) / len(expected)
        assert record["robust"]["accuracy"] == pytest.approx(share, abs=1e-3)
    attacked = next(r for r in load_results([out]) if r["model"]["name"] == "l2" and r["threat"]["attack"] == "apgd"
                    and r["threat"]["norm"] == "l2")  # fmt: skip
    proven = next(r for r in records if r["threat"]["eps"] == attacked["threat"]["eps"])
    safe = {row.key for row in unpack(proven) if row.robust}
    assert safe and safe <= {row.key for row in unpack(attacked) if row.robust}
    curve = next(m for m in board["metrics"] if m["id"] == "l2")["results"]["scenes"]["certified"]["curve"]
    assert curve[0] == [0.0, pytest.approx(100 * sum(v > 0 for v in expected.values()) / len(expected))]
    assert curve[-1][1] == 0.0 and all(a[1] >= b[1] for a, b in itertools.pairwise(curve))


def test_the_same_command_does_nothing_twice_and_one_more_metric_does_the_rest(done, scenes, capsys):
    _, out, _, more = done
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.json") if path.name != "benchmark.json"}
    assert main(arguments(scenes, out, "tiny,tiny-clean,l2,linf", *more)) == 0
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert capsys.readouterr().out.count("| l_inf") == 4  # one table per data set, what is proven, and that of both
    threats = sorted(record["threat"]["attack"] for record in load_results(out.glob("linf__*.json")))
    assert threats == ["apgd"] * 2 + ["certified"] * 5 + ["none"]


def test_two_processes_give_the_numbers_of_one(done, scenes, tmp_path, forks):
    _, one, _, _ = done
    forks.start(arguments(scenes, tmp_path, "tiny-clean,dreamsim", "--batch-size", "5"), environments=ranks(2))
    assert any(forks.wait()) and "1 of 2 metrics failed" in forks.errors
    name = "tiny-clean__scenes-test__apgd-linf-4_255-3steps.json"
    alone, together = (unpack(json.loads((folder / name).read_text())) for folder in (one, tmp_path))
    assert [(row.key, row.clean, row.robust) for row in alone] == [(row.key, row.clean, row.robust) for row in together]
    assert json.loads((tmp_path / name).read_text())["processes"] == 2


def thumbnails(device):
    """A user's metric: the embedding is the image at 8 x 8."""

    def embed(images):
        return torch.nn.functional.adaptive_avg_pool2d(images, 8).flatten(1) - 0.5

    return EmbeddingMetric(embed, 64, name="thumbnails", device=device, facts=Facts("8 x 8", 0, "CC0"))


def test_certified_accuracy_under_noise_is_that_of_its_records_for_any_metric(scenes, tmp_path, monkeypatch, capsys):
    """Noise on the reference leaves a plane where it is: l2 is smoothed to itself, and its distance is a bound."""
    monkeypatch.syspath_prepend(Path(__file__).parent)
    names, sigmas = "l2,test_benchmark:thumbnails", ("0.12", "0.25")
    command = arguments(scenes, tmp_path, names, "--norms", "l2:0.857", "--image-size", "16", "--attacked", "8")
    command += ["--certified", "--smoothing", *sigmas, "--smoothing-draws", "200"]
    assert main(command) == 0
    board = json.loads((tmp_path / "benchmark.json").read_text())
    assert board["settings"]["smoothing"] == [0.12, 0.25] and board["settings"]["smoothing_draws"] == 200
    pixels, small = (metric["results"]["scenes"] for metric in board["metrics"])
    assert small["certified"] is None and pixels["certified"]["points"]
    files = load_results([tmp_path])
    exact = next(r for r in files if r["threat"]["attack"] == "certified")
    true = {row.key: found for row, found in zip(unpack(exact), certified_radii(exact), strict=True)}
    for name, result in (("l2", pixels), ("thumbnails", small)):
        assert [found["sigma"] for found in result["smoothed"]] == [0.12, 0.25]
        for found in result["smoothed"]:
            own = (r for r in files if r["model"]["name"].endswith(name))
            record = next(r for r in own if r["threat"].get("sigma") == found["sigma"])
            eps = [point["eps"] for point in found["points"]]
            assert eps == pytest.approx([36 / 255, 72 / 255, 108 / 255, 0.857, 1])
            rows = unpack(record)
            asked = {row.key for row in rows if row.robust is not None}
            radii = dict(zip((row.key for row in rows), certified_radii(record), strict=True))
            assert len(asked) == 8 and found["draws"] >= 8 * 300 and found["seconds"] > 0
            for point in found["points"]:
                share = 100 * sum(radii[key] > point["eps"] for key in asked) / 8
                assert point["accuracy"] == pytest.approx(share, abs=1e-3) and point["samples"] == 8
            # The bound of as many votes as there are draws is alpha ** (1 / n).
            most = found["sigma"] * NormalDist().inv_cdf(0.001 ** (1 / 200))
            assert max(radii.values()) <= most * (1 + 1e-5)
            assert found["curve"][0] == [0, pytest.approx(100 * sum(radii[key] > 0 for key in asked) / 8, abs=1e-3)]
            assert found["right"]["accuracy"] == found["curve"][0][1] and found["right"]["samples"] == 8
            assert found["median"] == pytest.approx(median(radii[key] for key in asked))
            if name == "l2":
                assert all(radii[key] <= true[key] * (1 + 1e-5) for key in asked)
                assert found["abstained"] == sum(radii[key] == 0 for key in asked)
    with (tmp_path / "benchmark.csv").open() as handle:
        lines = {(line["metric"], line["column"]): line for line in csv.DictReader(handle)}
    for sigma, found in zip(sigmas, pixels["smoothed"], strict=True):
        line = lines["l2", f"smoothed l2 0.857, sigma {sigma}"]
        assert float(line["percent"]) == found["points"][3]["accuracy"] and line["samples"] == "8"
        assert float(lines["l2", f"smoothed, sigma {sigma}"]["percent"]) == found["right"]["accuracy"]
        assert float(lines["l2", f"abstained, sigma {sigma}"]["percent"]) == 100 * found["abstained"] / 8
    told = capsys.readouterr().out
    assert "holds with 99.9 % confidence for each sample, by 200 draws of noise" in told
    assert "abstained | forwards a sample | seconds a sample |" in told
    # One sigma more leaves the others as they are.
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*sigma*.json")}
    assert main([*command, "--smoothing", "0.12", "0.25", "0.5", "--smoothing-draws", "200"]) == 0
    assert {path: path.stat().st_mtime_ns for path in before} == before and len(before) == 20
    assert len(list(tmp_path.glob("*0.5sigma*.json"))) == 10


def broken(device):
    raise ZeroDivisionError("no such luck")


def test_your_own_metric_is_a_row_and_a_broken_one_leaves_its_traceback(scenes, tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(Path(__file__).parent)
    names = "test_benchmark:thumbnails,test_benchmark:broken"
    assert main(arguments(scenes, tmp_path, names, "--limit", "4")) == 2
    board = json.loads((tmp_path / "benchmark.json").read_text())
    own, failed = board["metrics"]
    assert (own["kind"], own["label"], own["licence"]) == ("yours", "8 x 8", "CC0")
    assert own["results"]["scenes"]["robust"]["l2 0.857"]["samples"] == 4
    assert failed["failures"] == ["ZeroDivisionError: no such luck"]
    [told] = (tmp_path / "failures").iterdir()
    assert "in broken" in told.read_text()
    assert "1 of 2 metrics failed" in capsys.readouterr().err


@pytest.fixture(scope="module")
def photographs(scenes, tmp_path_factory):
    """Triplets, odd ones and cue conflicts on one board, with intervals over images; six triplets are attacked."""
    cues, out = tmp_path_factory.mktemp("cues"), tmp_path_factory.mktemp("photographs")
    for (a, shape), b, (c, texture), d in itertools.product(enumerate(("ant", "bee", "cat"), 1), (1, 2), repeat=2):
        values = np.full((16, 16, 3), 80 * a + b, np.uint8)
        values[8:] = 80 * c + d
        Image.fromarray(values).save(cues / f"{shape}{b}-{texture}{d}.png")
    data = f"cue-conflict:{cues},nights:{scenes / 'nights'},things:{scenes / 'things'}"
    command = [*arguments(scenes, out, "tiny-clean,l2"), "--norms", "linf:4/255", "--data", data]
    command += ["--resample", "images", "--page", "--direct", "2", "--examples", "2", "--sweep", "4"]
    assert main([*command, "--attacked", "6"]) == 0
    return cues, out, command


def test_triplets_odd_ones_and_cue_conflicts_are_on_one_board(photographs, tmp_path):
    cues, out, _ = photographs
    board = json.loads((out / "benchmark.json").read_text())
    name = cues.name
    assert {data["id"]: data["judges"] for data in board["data"]} == {
        name: None, "scenes": "the scenes' own rule", "scenes-things": "the scenes' own rule",
    }  # fmt: skip
    assert {data["intervals"] for data in board["data"]} == {"95 % intervals over images"}
    assert {example["data"] for example in board["examples"]} == {"scenes"}
    record = json.loads((out / f"tiny-clean__{name}-share_for_shape__clean-images.json").read_text())
    command = ["eval", "cue-conflict", "--data", str(cues), "--model", "tiny-clean", "--device", "cpu", "--quiet"]
    assert main([*command, "--out", str(tmp_path)]) == 0
    [alone] = load_results([tmp_path])
    assert record["clean"] == alone["clean"] and record["settings"]["fingerprint"] == alone["settings"]["fingerprint"]
    tiny = next(metric for metric in board["metrics"] if metric["id"] == "tiny-clean")
    assert tiny["results"][name]["clean"]["accuracy"] == record["clean"]["accuracy"]
    assert all(metric["results"][name]["robust"] == {} for metric in board["metrics"])
    with (out / "benchmark.csv").open() as handle:
        lines = [line for line in csv.DictReader(handle) if line["data"] == name]
    assert [(line["metric"], line["column"]) for line in lines] == [
        ("tiny-clean", "share for shape, %"), ("l2", "share for shape, %"),
    ]  # fmt: skip
    assert float(lines[0]["percent"]) == record["clean"]["accuracy"]
    tables = (out / "benchmark.md").read_text().split("\n\n")
    assert tables[0].startswith(
        f"| metric | {name} share for shape, % | scenes clean | scenes linf 4/255 | scenes-things clean |"
    )
    [row] = [line for line in tables[0].splitlines() if line.startswith("| tiny-clean")]
    found = tiny["results"]
    shown = [found[name]["clean"], found["scenes"]["clean"], found["scenes"]["robust"]["linf 4/255"]]
    shown.append(found["scenes-things"]["clean"])
    assert row.split(" | ")[1:] == [
        *(f"{cell['accuracy']:.1f}" for cell in shown[:-1]),
        f"{shown[-1]['accuracy']:.1f} |",
    ]
    assert (
        tables[2].startswith("| metric | share for shape, % | parameters |")
        and "95 % intervals over images" in tables[3]
    )
    page = (out / "benchmark.html").read_text()
    assert "On scenes test majority, " in page and "intervals over images" in page and ", of 6" in page


def test_a_part_under_attack_shares_what_it_does_not_change(photographs, scenes):
    """The direct attack and the examples are of the whole set, and no result stands in the way of another."""
    _, out, command = photographs
    shared = {path: path.stat().st_mtime_ns for path in out.rglob("*.json") if path.name != "benchmark.json"}
    part = json.loads((out / "benchmark.json").read_text())
    assert main(command) == 0
    assert {path: path.stat().st_mtime_ns for path in shared} == shared
    more = {path.relative_to(out).as_posix() for path in out.rglob("*.json")} - {
        path.relative_to(out).as_posix() for path in [*shared, out / "benchmark.json"]
    }
    assert {name.partition("/")[0] for name in more if "/" in name} == {"sweep"}
    assert sorted(name for name in more if "/" not in name) == [
        "l2__scenes-test__apgd-linf-4_255-3steps-images.json",
        "tiny-clean__scenes-test__apgd-linf-4_255-3steps-images.json",
    ]
    board = json.loads((out / "benchmark.json").read_text())
    assert part["settings"]["attacked"] == 6 and board["settings"]["attacked"] == "all, of BAPPS 1000 per split"
    for metric, other in zip(part["metrics"], board["metrics"], strict=True):
        few, all_ = (m["results"]["scenes"]["robust"]["linf 4/255"]["samples"] for m in (metric, other))
        assert (few, all_) == (6, 12)
        assert len(metric["sweep"]["scenes"]["linf"]) == 6
    whole = load_results([out / "l2__scenes-test-6attacked__apgd-linf-4_255-3steps-images.json"])[0]
    swept = load_results([next((out / "sweep").glob("l2__scenes-test-6attacked-first4__*"))])[0]
    keys = [row.key for row in unpack(whole) if row.robust is not None]
    assert [row.key for row in unpack(swept)] == keys[:4]
    [start] = [point for point in part["metrics"][1]["sweep"]["scenes"]["linf"] if point[0] == 0]
    files = {t.key: (t.reference, t.left, t.right) for t in nights_data(scenes / "nights").triplets}
    values = [row.clean for row in unpack(whole) if row.key in keys[:4]]
    found = summary(values, [""] * 4, macro=False, images=[files[key] for key in keys[:4]])
    assert start[1:] == [found["accuracy"], *found["interval_95"]]


def test_timing_is_measured_in_one_run_and_kept(scenes, tmp_path, capsys):
    command = arguments(scenes, tmp_path, "tiny", "--norms", "none", "--limit", "2", "--timing")
    assert main(command) == 0
    assert "pairs/s fp32, batch 1" in capsys.readouterr().out
    first = (tmp_path / "timing.json").read_text()
    assert main(command) == 0 and (tmp_path / "timing.json").read_text() == first
    [tiny] = json.loads((tmp_path / "benchmark.json").read_text())["metrics"]
    cell = tiny["timing"]["float32"]["8"]
    assert 0 < cell["low"] <= cell["pairs_per_second"] <= cell["high"] and tiny["timing"]["float32"]["memory_mb"] > 7


def test_lists_on_the_command_line(tmp_path):
    with pytest.raises(ValueError, match=r"sigma 0\.25 is there twice: once is enough"):
        BenchmarkSettings(("l2",), (), tmp_path, smoothing=(0.25, 0.25))
    assert metrics_of("r-clip-f, dreamsim,ssim") == ("r-clip-f", "dreamsim", "ssim")
    assert balls_from("linf:4/255,l2:3", radius) == (LpBall("linf", 4 / 255), LpBall("l2", 3.0))
    assert balls_from("none", radius) == ()
    [part] = data_of(f"nights:{tmp_path}")
    assert (part.format, part.folder) == ("nights", tmp_path)


def test_blocks_hold_two_passes_and_at_least_64_samples(tmp_path):
    settings = BenchmarkSettings(("l2",), (), tmp_path)
    assert settings.run(8).batch_size == 64 and settings.run(98).batch_size == 196
    assert replace(settings, chunk_size=50).run(98).batch_size == 100
    assert replace(settings, batch_size=5).run(98).batch_size == 5


@pytest.mark.parametrize(
    ("option", "value", "sentence"),
    [
        ("--metrics", "tiny,tiny", "names tiny twice"),
        ("--metrics", ",", "names no metric"),
        ("--data", "coco:/", "write FORMAT:FOLDER, with one of nights, bapps, things"),
        ("--data", "nights:/nowhere/at/all", "there is no folder /nowhere/at/all"),
        ("--norms", "l7:3", "write NORM:RADIUS, with one of linf, l2, l1"),
        ("--norms", "linf:far", "'far' is not a radius"),
        ("--norms", "l2:3,l2:3", "names l2 3 twice"),
        ("--smoothing", "0", "sigma must be a finite number above 0, and it is 0"),
        ("--smoothing", "nan", "sigma must be a finite number above 0, and it is nan"),
        ("--smoothing=0.25", "--smoothing-draws=50", "n is 50 with n0 100"),
    ],
)
def test_bad_input_is_one_sentence(option, value, sentence, scenes, tmp_path, capsys):
    assert main(arguments(scenes, tmp_path, "tiny", option, value)) == 2
    told = capsys.readouterr().err
    assert sentence in told and told.count("\n") == 1 and "Traceback" not in told
