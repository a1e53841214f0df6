"""The examples run, and do what they say."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

import rclip_metric
from rclip_metric.images import Preprocessing
from rclip_metric.train.attacks.threat import LpBall
from rclip_metric.train.evaluation.certificates import Certificate
from rclip_metric.train.evaluation.results.bootstrap import summary
from rclip_metric.train.evaluation.results.outcome import Outcome
from rclip_metric.train.evaluation.results.record import Effort, save
from rclip_metric.train.evaluation.results.record import record as result
from rclip_metric.train.evaluation.smoothing import Smoothing
from rclip_metric.weights import save_encoder

from support.encoders import VIT, small_encoder
from support.images import save_noise
from support.programs import EXAMPLES, load_example
from support.scenes import small_scenes

TINY = Path(rclip_metric.__file__).parent / "models" / "tiny.safetensors"


@pytest.fixture(scope="module", params=["random"] + ["tiny"] * TINY.exists())
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Name or path of a small model: the one that ships, and a random one saved here."""
    if request.param == "tiny":
        return "tiny"
    encoder = small_encoder(VIT, Preprocessing("crop", 36, 32), spread=True, name="random")
    folder = tmp_path_factory.mktemp("models") / "random"
    save_encoder(encoder, folder)
    return str(folder)


def test_compare_images(model, tmp_path, capsys):
    a, b = str(save_noise(tmp_path / "a.png", 0, (50, 70))), str(save_noise(tmp_path / "b.png", 1, (64, 40)))
    compare = load_example("compare_images")
    distance, similarity = compare.main([a, b, "--model", model])
    assert 0 < distance < 2**0.5 and similarity == pytest.approx(1 - distance**2, abs=1e-5)
    assert rclip_metric.score(a, b, model) == pytest.approx(distance, abs=1e-6)
    printed = capsys.readouterr().out
    assert f"{distance:.4f}" in printed and Path(model).name in printed and "resize='published'" in printed
    assert compare.main([a, a, "--model", model, "--resize", "squash"]) == (0.0, 1.0)


def test_as_a_loss_gets_better(model, tmp_path):
    out = tmp_path / "found.png"
    steps = ["--model", model, "--steps", "30", "--size", "48", "--batch-size", "4", "--out", str(out)]
    losses = load_example("as_a_loss").main(steps)
    assert losses.image[1] < 0.5 * losses.image[0]
    assert losses.autoencoder[1] < 0.8 * losses.autoencoder[0]
    with Image.open(out) as image:
        assert image.size[1] >= 48


def test_the_examples_run_as_scripts(tmp_path):
    a = save_noise(tmp_path / "a.png", 0, (50, 70))
    command = [sys.executable, EXAMPLES / "compare_images.py", a, a, "--model", "tiny"]
    result = subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True)
    assert "distance    0.0000" in result.stdout and not result.stderr


def test_the_benchmark_runs_on_a_toy_tower(tmp_path, capsys, monkeypatch):
    """On a tower of a few thousand parameters the figures mean nothing; their names and relations do."""
    benchmark = load_example("benchmark_scoring")
    measured = benchmark.in_a_fresh_process("loss memory", name="naive float32", model="toy")
    assert measured["peak"] is None or measured["peak"] > 0

    # An interpreter for every figure would take a minute; what runs in it is the same.
    monkeypatch.setattr(
        benchmark,
        "in_a_fresh_process",
        lambda measurement, **settings: benchmark.MEASUREMENTS[measurement](**settings),
    )
    out = tmp_path / "benchmark.json"
    parts = ["construction", "loss", "overhead", "throughput"]
    report = benchmark.main(["--toy", "--repeats", "1", "--out", str(out), "--only", *parts])
    assert json.loads(out.read_text()) == report and list(report["results"]) == parts
    assert report["machine"]["torch"] == torch.__version__
    assert report["results"]["loss"]["toy"]["naive float32"]["times faster"] == 1.0
    assert 0 < report["results"]["throughput"]["tiny, change by bfloat16"]["largest change"] < 0.1
    printed = capsys.readouterr().out
    assert all(part in printed for part in parts)


def test_the_contestants_of_the_benchmark_hold_the_same_weights():
    benchmark = load_example("benchmark_scoring")
    tower = benchmark.original("toy")
    x, y = benchmark.images("toy", 3, seed=1), benchmark.images("toy", 3, seed=2)
    with torch.no_grad():
        expected = benchmark.naive_distance(tower, x, y)
    torch.testing.assert_close(benchmark.ours("toy", tower, squared=True)(x, y), expected, atol=1e-6, rtol=1e-4)


def test_the_cost_of_a_command_is_compared_with_importing_torch_within_a_turn(tmp_path, monkeypatch):
    startup = load_example("benchmark_startup")
    burn = "import time\nwhile time.process_time() < {}: pass"
    command = "rclip-metric --version"
    monkeypatch.setattr(
        startup, "COMMANDS", {startup.BASE: ("-c", burn.format(0.3)), command: ("-c", burn.format(0.9))}
    )
    report = startup.main(["--repeats", "1", "--out", str(tmp_path)])
    [file] = tmp_path.iterdir()
    assert file.name.startswith("benchmark_startup_") and json.loads(file.read_text()) == report
    base, own = report["results"].values()
    assert 0.3 <= base["processor seconds"] < 0.6 and 0.9 <= own["processor seconds"] < 1.2
    assert own["over import torch"] == pytest.approx(own["each"][0] / base["each"][0], rel=0.01)
    assert base["over import torch"] == 1 and len(own["each"]) == 1  # the warm-up does not count
    with pytest.raises(SystemExit, match=r"ended with 1: .*no such thing"):
        startup.run(("-c", "raise SystemExit('no such thing')"), os.environ)


def test_your_own_metric_becomes_a_row_of_the_page(tmp_path):
    small_scenes(tmp_path / "scenes", (0, 4, 12), queries=2)
    out = tmp_path / "mine"
    command = ["--data", f"nights:{tmp_path / 'scenes' / 'nights'}", "--out", str(out), "--metrics", "l2"]
    command += ["--norms", "linf:4/255", "--image-size", "64", "--limit", "3", "--steps", "2", "--device", "cpu"]
    script = [sys.executable, str(EXAMPLES / "benchmark_dreamsim_lipsim.py"), *command, "--quiet"]
    finished = subprocess.run(script, capture_output=True, text=True, check=True)
    assert "| Edges (mine) |" in finished.stdout
    own, pixels = json.loads((out / "benchmark.json").read_text())["metrics"]
    assert (own["kind"], pixels["kind"]) == ("yours", "baseline")
    assert own["results"]["scenes"]["robust"]["linf 4/255"]["samples"] == 3
    assert own["results"]["scenes"]["certified"] is None and pixels["results"]["scenes"]["certified"]["points"]
    assert "Edges (mine)" in (out / "benchmark.html").read_text()


def test_the_speed_table_compares_with_dreamsim_s_package():
    table = load_example("benchmark_metrics")

    def timed(rate: float) -> dict:
        return {"timing": {"float32": {"1": {"pairs_per_second": rate}, "memory_mb": 99.6}}}

    found = {"r-clip-f@random": timed(3.5), "ssim": {"failed": "no"}, table.DREAMSIM: timed(0.5)}
    rows = table.markdown(found, [1, 8], ["float32"]).splitlines()
    assert rows[0] == "| | float32, batch 1 | float32, batch 8 | MB |"
    assert rows[2:] == [
        "| r-clip-f | 3.5 (7) | - | 100 |",
        "| ssim | - | - | - |",
        "| DreamSim, its package | 0.5 (1) | - | 100 |",
    ]
    # Where processor time was measured, the ratio is of that, within the rounds of the run.
    found["r-clip-f@random"]["timing"]["float32"]["1"]["ratio"] = {"times": 0.25}
    assert table.markdown(found, [1], ["float32"]).splitlines()[2] == "| r-clip-f | 3.5 (4) | 100 |"


def test_the_memory_of_a_command_does_not_begin_with_that_of_the_benchmark():
    """A process begins with the peak of the one that started it, and this one, with torch, has hundreds of MB."""
    growth = load_example("benchmark_growth")
    assert growth.in_a_process(["-c", "pass"]) < 60
    assert 100 < growth.in_a_process(["-c", "held = b'x' * 10**8"]) < 170
    with pytest.raises(RuntimeError, match="ended with 3"):
        growth.in_a_process(["-c", "raise SystemExit(3)"])


def test_a_second_look_is_timed_and_judged_on_the_same_batches(tmp_path):
    small_scenes(tmp_path / "scenes", (0, 0, 5), queries=2)
    command = ["--data", str(tmp_path / "scenes" / "nights"), "--names", "scenes", "--batch-size", "2"]
    report = load_example("benchmark_second_look").main([*command, "--out", str(tmp_path / "out")])
    [found] = report["results"].values()
    assert list(report["results"]) == ["tiny, scenes"] and found["triplets"] == 5
    assert found["unchanged"]["second look"] >= found["unchanged"]["bfloat16"] > 0
    assert 0 < found["change of a distance"]["mean"] < 0.01
    assert found["bfloat16's time over"]["float32"]["sums"] == pytest.approx(
        found["processor seconds"]["bfloat16"] / found["processor seconds"]["float32"]
    )
    [file] = (tmp_path / "out").iterdir()
    assert json.loads(file.read_text()) == report


def test_the_published_loop_beside_ours(tmp_path, capsys):
    rows = ["as tiny was trained", "published, all four"]
    command = ["--out", str(tmp_path), "--steps", "2", "--batch-size", "2", "--seeds", "1", "--triplets", "4"]
    load_example("published_loop").main([*command, "--only", *rows])
    record = json.loads((tmp_path / "published_loop.json").read_text())
    ours, theirs = (row["recipe"] for row in record["rows"])
    differing = {name for name in ours if ours[name] != theirs[name]}
    assert differing == {"inner_momentum", "inner_start", "full_first_step", "drop_path"}
    assert theirs["inner_momentum"] == "published" and theirs["drop_path"] == 0.1
    assert all(0 <= row["accuracy"]["4/255"] <= row["accuracy"]["clean"] <= 100 for row in record["rows"])
    assert capsys.readouterr().out.endswith((tmp_path / "published_loop.md").read_text())


def test_the_figure_of_neighbours(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    assert load_example("neighbours_figure").draw(tmp_path, pool=3, steps=1) == 0
    assert capsys.readouterr().out.count("| pool | 24 | 3 | linf 4/255, 1 steps |") == 3
    here = EXAMPLES.parent / "results" / "neighbours"
    for folder, images in ((tmp_path, 24), (here, 400)):
        with Image.open(folder / "neighbours.png") as figure:
            assert figure.size == (1431, 1084) and (folder / "neighbours.png").stat().st_size < 300_000
        records = [json.loads(path.read_text()) for path in folder.glob("*.json")]
        assert {record["model"]["name"] for record in records} == {"tiny", "tiny-clean", "l2"}
        for record in records:
            assert record["data"]["database"]["images"] == images and len(record["neighbours"]) == 3
            shares = [row["overlap"] for row in record["neighbours"]]
            assert record["overlap"]["mean"] == pytest.approx(100 * sum(shares) / 3, abs=1e-4)


def proof_records(folder, data="anything", names=("one", "two", "three", "four", "five", "six")):
    """Records of six metrics, as `eval --out` writes them: attacked at 1 and 2, certified with and without noise.

    Of metric k eight samples have radii of k / 10, 2 k / 10, ..., and the noise proves half of that of all but two: of
    one it says nothing, and one it has wrong.
    """
    for k, name in enumerate(names, 1):
        radii = [k * n / 10 for n in range(1, 9)]
        about = {"task": "2afc", "model": {"name": name}, "data": {"name": data, "split": "test"}}
        about["effort"] = Effort(seconds=8.0, passes=800)
        for eps in (1.0, 2.0):
            rows = [Outcome(str(n), "test", 1.0, False, 0.1, float(2 * r > eps), 2 * r - eps)
                    for n, r in enumerate(radii)]  # fmt: skip
            threat = {"attack": "apgd", "norm": "l2", "eps": eps}
            save(folder / f"{name}-apgd-{eps}.json", result(rows, threat=threat, **about))
        kinds = {"certified": (Certificate(LpBall("l2", 0.5)), radii)}
        kinds["smoothing"] = (Smoothing(LpBall("l2", 0.5), 0.25), [-0.3, 0.0, *(r / 2 for r in radii[2:])])
        for kind, (certificate, signed) in kinds.items():
            rows = [Outcome(str(n), "test", 1.0, False, 0.1, float(r > 0.5), r - 0.5) for n, r in enumerate(signed)]
            made = result(rows, threat=certificate.describe(), **about)
            if kind == "smoothing":
                made["smoothing"] = {
                    "abstained": 1,
                    "right": summary([float(r > 0) for r in signed], [""] * 8, macro=False),
                    "draws": 8800,
                }
            save(folder / f"{name}-{kind}.json", made)


def test_the_figure_of_proof(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    proof_records(tmp_path)
    out = tmp_path / "figure" / "proof.png"
    out.parent.mkdir()
    figure = load_example("proof_figure")
    assert figure.main([str(tmp_path), "--out", str(out)]) == 0
    with Image.open(out) as image:
        assert image.size[0] > 1000 and len(image.convert("RGB").getcolors(1 << 24)) > 50
    found = json.loads(out.with_suffix(".json").read_text())
    assert found["data"] == "anything test" and len(found["rows"]) == 18
    assert [row["metric"] for row in found["rows"][::3]] == ["six", "five", "four", "three", "two", "one"]
    attack, lipschitz, noise = found["rows"][6:9]  # of "four": radii 0.4, 0.8, ..., 3.2
    assert attack["accuracy"] == {"0": 100.0, "1": 87.5, "2": 75.0}
    assert lipschitz["accuracy"] == {"0": 100.0, "0.1412": 100.0, "1": 75.0, "2": 37.5}
    assert noise["accuracy"] == {"0": 75.0, "0.1412": 75.0, "1": 37.5, "2": 0.0}
    assert lipschitz["median radius"] == pytest.approx(1.8) and noise["median radius"] == pytest.approx(0.9)
    assert (noise["abstained"], noise["n"], noise["confidence"]) == (1, 1000, 0.999)
    assert (noise["forwards a sample"], attack["forwards a sample"], noise["seconds a sample"]) == (1100, 100, 1.0)
    told = out.with_suffix(".md").read_text()
    assert "| four | smoothing, sigma 0.25 | 8 | 75.0 | 75.0 | 37.5 | 0.0 | 0.9 | 1 | 1,100 | 1 |" in told
    assert "99.9 % confidence for each sample, by 1,000 draws after 100 that choose" in told
    assert capsys.readouterr().out == told
    panels = figure.panels_of(figure.load_results([tmp_path]))
    drawn = figure.draw(panels, "title")
    assert [axes.get_title() for axes in drawn.axes] == ["six", "five", "four", "three", "two", "one"]
    assert all(axes.get_xlim() == pytest.approx((0, 4.8 * 1.05)) for axes in drawn.axes)
    assert [line.get_linestyle() for line in drawn.axes[0].lines] == ["-", "--", ":"]


def test_a_figure_of_proof_begins_with_the_samples_that_were_asked(tmp_path):
    """Of four samples the first is right and certified, and the others were left out."""
    rows = [Outcome("0", "test", 1.0, False, 0.1, 1.0, 0.2)]
    rows += [Outcome(str(n), "test", float(n % 2), False, 0.1, None, None) for n in range(1, 4)]
    about = {"task": "2afc", "model": {"name": "m"}, "data": {"name": "d"}, "effort": Effort(1.0, 4)}
    save(tmp_path / "one.json", result(rows, threat=Certificate(LpBall("l2", 0.5)).describe(), **about))
    figure = load_example("proof_figure")
    records = figure.load_results([tmp_path])
    [panel] = figure.panels_of(records)
    assert records[0]["clean"]["accuracy"] == 75.0  # the record's own, of all four
    assert panel.clean["accuracy"] == 100.0 and panel.clean["samples"] == 1


def test_a_figure_of_proof_needs_certificates_of_one_data_set(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    for data in ("this", "that"):
        (tmp_path / data).mkdir()
        proof_records(tmp_path / data, data, names=("one",))
    figure, out = load_example("proof_figure"), ["--out", str(tmp_path / "proof.png")]

    def said(*paths):
        assert figure.main([*map(str, paths), *out]) == 2
        return capsys.readouterr().err

    assert "the results are of that test, this test: draw each by itself" in said(tmp_path / "this", tmp_path / "that")
    assert "nothing is certified in these results" in said(tmp_path / "this" / "one-apgd-1.0.json")
    assert "holds no result" in said(tmp_path)
    assert not (tmp_path / "proof.png").exists()


def test_the_growth_of_time_is_fitted_above_start_up(tmp_path):
    growth = load_example("benchmark_growth")
    points = {str(n): {"processor": 5 + 1e-6 * n**2, "megabytes": 700.0} for n in (2, 100, 1000, 3000, 10_000)}
    assert growth.slope(points) == pytest.approx(2, abs=1e-3)  # n = 100 takes no more than start-up, and is left out
    assert growth.slope({"2": {"processor": 5.0}, "100": {"processor": 5.1}}) is None
    names = (*growth.ON_IMAGES, *growth.ON_EMBEDDINGS)
    report = {"results": dict.fromkeys(names, points) | {"rank": {}}, "slopes": dict.fromkeys(names, 2.0)}
    growth.draw(report, tmp_path / "growth.png")
    with Image.open(tmp_path / "growth.png") as picture:
        assert picture.format == "PNG" and picture.width > 1000


def test_the_quick_benchmark_fails_where_a_ratio_has_fallen(tmp_path, capsys, monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    quick, file, name = load_example("benchmark_quick"), tmp_path / "quick.json", "sums"
    case = quick.Case(lambda: sum(range(100_000)), lambda: sum(range(300_000)))
    monkeypatch.setattr(quick, "CASES", {name: (lambda: case, 3)})
    threads = torch.get_num_threads()
    command = ["--only", name, "--check", str(file)]
    try:
        assert quick.main(["--only", name, "--out", str(file)]) == 0
        [(kind, found)] = json.loads(file.read_text()).items()
        measured = found["ratios"][name]["ratio"]
        assert 2 < measured < 4.5
        for factor, code in ((0.01, 0), (100.0, 1)):
            found["ratios"][name]["ratio"] = factor * measured
            file.write_text(json.dumps({kind: found}))
            assert quick.main(command) == code
        file.write_text(json.dumps({"another kind": found}))
        assert quick.main(command) == 0
    finally:
        torch.set_num_threads(threads)
    printed = capsys.readouterr().out
    assert printed.count("TOO SLOW") == 1 and f"no ratios of this kind of machine ({kind})" in printed
