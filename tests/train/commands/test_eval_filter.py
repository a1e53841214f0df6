"""`rclip-metric eval filter`: what is printed, what is written, and what is said when something is wrong."""

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rclip_metric.cli.main import main
from rclip_metric.train.evaluation.results.record import load_results

FAST = ["--model", "tiny-clean", "--device", "cpu", "--quiet", "--steps", "3"]
SIZES = ["--pool-size", "3", "--targets", "2", "--queries", "2"]
COLOURS = {"grass": (90, 120, 60), "sky": (110, 120, 140), "rust": (130, 90, 60), "blood": (135, 80, 70)}
NAMES = ["--unsafe", "blood", "--buffer", "rust"]
GIVEN = ["--data", "{data}", *NAMES, *SIZES]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Noisy patches of four colours, seven of each."""
    root, generator = tmp_path_factory.mktemp("colours"), np.random.default_rng(0)
    for name, colour in COLOURS.items():
        (root / name).mkdir()
        for number in range(7):
            pixels = np.clip(np.array(colour) + generator.normal(0, 20, (32, 32, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(root / name / f"{number}.png")
    return root


def test_both_directions_are_written_and_printed_and_not_done_again(folder, tmp_path, capsys):
    out = tmp_path / "results"
    arguments = ["eval", "filter", "--data", str(folder), *NAMES, *SIZES, *FAST, "--adaptive", "--out", str(out)]
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert "safe to unsafe: attacked" in printed and "unsafe to safe: informed" in printed
    assert "land in safe / buffer / unsafe. Attacks: attacked: grey-box on targets, 3 steps; informed" in printed
    before = {path.name: path.stat().st_mtime_ns for path in out.iterdir()}
    assert sorted(before) == [
        f"tiny-clean__{folder.name}__{kind}-linf-8_255-3steps-{loss}.json"
        for kind, loss in (("adaptive", "pool"), ("grey-box", "targets"))
    ]
    assert main(arguments) == 0 and {path.name: path.stat().st_mtime_ns for path in out.iterdir()} == before
    assert capsys.readouterr().out == printed
    assert main(["eval", "table", str(out)]) == 0 and main(["eval", "table", str(out), "--by", "split"]) == 0
    assert f"| {folder.name} | 4 |" in capsys.readouterr().out
    record, grey = load_results([out])
    assert record["robust"]["accuracy"] <= grey["robust"]["accuracy"] < record["clean"]["accuracy"]
    assert record["data"]["roles"] == {"safe": ["grass", "sky"], "buffer": ["rust"], "unsafe": ["blood"]}
    assert record["data"]["pool"] == {"safe": 3, "buffer": 3, "unsafe": 3}


def test_one_direction_without_a_buffer_has_a_name_of_its_own(folder, tmp_path, capsys):
    arguments = ["eval", "filter", "--data", str(folder), *NAMES, *SIZES, *FAST, "--no-buffer", "--out", str(tmp_path)]
    assert main([*arguments, "--query", "unsafe", "--target", "safe", "--eps", "2/255", "8/255"]) == 0
    assert "safe to unsafe" not in capsys.readouterr().out
    records = load_results([tmp_path])
    assert {record["threat"]["eps_text"] for record in records} == {"2/255", "8/255"}
    assert all(list(record["landed"]["clean"]["unsafe to safe"]) == ["safe", "unsafe"] for record in records)
    assert f"tiny-clean__{folder.name}-unsafe_to_safe-no_buffer__grey-box-linf-2_255-3steps-targets.json" in {
        path.name for path in tmp_path.iterdir()
    }
    assert "grass" in records[0]["data"]["roles"]["safe"] and "rust" not in str(records[0]["data"]["roles"])


def test_a_detector_is_judged_alone_and_together(folder, tmp_path, capsys, monkeypatch):
    pytest.importorskip("rclip_metric.detectors.loading")
    (tmp_path / "redness_detector.py").write_text(
        "import torch\n"
        "class Redness:\n"
        "    name, threshold, device = 'redness', 0.5, torch.device('cpu')\n"
        "    def describe(self):\n"
        "        return {'name': self.name}\n"
        "    def preprocess(self, image):\n"
        "        raise NotImplementedError\n"
        "    def logits(self, images):\n"
        "        return 4 * (images[:, 0] - images[:, 1] - 0.3).mean((1, 2))\n"
        "def build(device):\n"
        "    return Redness()\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    arguments = ["eval", "filter", "--data", str(folder), *NAMES, *SIZES, *FAST, "--out", str(tmp_path / "out")]
    assert main([*arguments, "--detector", "redness_detector:build"]) == 0
    sys.modules.pop("redness_detector", None)
    kinds = {(record["model"]["name"], record["threat"]["attack"]) for record in load_results([tmp_path / "out"])}
    assert kinds == {
        ("tiny-clean", "grey-box"),
        ("redness", "white-box"),
        ("tiny-clean or redness", "separate"),
        ("tiny-clean or redness", "joint"),
    }
    assert "| tiny-clean or redness" in capsys.readouterr().out


def test_blind_passes_in_half_precision_are_judged_in_full(folder, tmp_path, capsys):
    arguments = ["eval", "filter", "--data", str(folder), *NAMES, *SIZES, *FAST, "--adaptive"]
    for precision in ("float32", "bfloat16"):
        assert main([*arguments, "--precision", precision, "--out", str(tmp_path / precision)]) == 0
    full, half = (load_results([tmp_path / precision]) for precision in ("float32", "bfloat16"))
    for one, other in zip(full, half, strict=True):
        assert one["landings"]["clean"] == other["landings"]["clean"] and one["clean"] == other["clean"]
        assert other["settings"]["precision"] == "bfloat16" and other["largest_violation"] <= 1e-7
    capsys.readouterr()


def test_check_reads_every_image_without_a_model(folder, tmp_path, capsys):
    arguments = ["eval", "filter", "--data", str(folder), *NAMES, *SIZES, "--check", "--quiet"]
    assert main(arguments) == 0
    assert "all 17 images can be read" in capsys.readouterr().out  # 3 x 3 of the pool, 2 x 2 targets, 2 x 2 queries


def test_the_paper_preset_prints_its_settings(capsys):
    assert main(["eval", "filter", "--preset", "paper"]) == 0
    assert '"steps": 200' in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "tiny"], "needs --data"),
        (GIVEN, "needs --model"),
        (["--data", "{data}/nowhere", "--model", "tiny"], "there is no folder"),
        (["--data", "{data}", "--unsafe", "guns", "--model", "tiny"], "has no class 'guns', it has blood, grass"),
        (["--data", "{data}", *NAMES, "--model", "tiny"], "have 14 images, and 500 for the pool, 16 targets and 1000"),
        ([*GIVEN, "--model", "tiny", "--limit", "3"], "use --queries"),
        (
            [*GIVEN, "--model", "tiny", "--query", "safe"],
            "--query and --target go together",
        ),
        (
            [
                "--data",
                "{data}",
                *NAMES,
                *SIZES,
                "--model",
                "tiny",
                "--query",
                "buffer",
                "--target",
                "safe",
                "--no-buffer",
            ],
            "expected two different ones of safe, unsafe",
        ),
        ([*GIVEN, "--model", "tiny", "--published"], "not the published set nsfw"),
        ([*GIVEN, "--model", "nope"], "nope"),
        (["--data", "{data}", *NAMES, "--pool-size", "0", "--model", "tiny"], "--pool-size"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_bad_input_gives_one_sentence(folder, capsys, arguments, message):
    try:
        code = main(["eval", "filter", *(part.format(data=folder) for part in arguments)])
    except SystemExit as stop:  # the parser's own
        code = int(stop.code or 0)
    error = capsys.readouterr().err
    assert code == 2 and message in error and "Traceback" not in error
    assert len(error.strip().splitlines()) == 1 or "usage" in error, error


def test_a_filter_is_certified_beside_its_attack(folder, tmp_path, capsys):
    noise = ("--certify", "smoothing", "--sigma", "0.05", "--draws", "40", "--choose", "10", "--radius", "0.01")
    base = ["eval", "filter", "--data", str(folder), *NAMES, *SIZES, *FAST, "--out", str(tmp_path)]
    assert main([*base, *noise]) == 0
    out = capsys.readouterr().out
    assert "l2 0.01 smoothing sigma 0.05 n 40 n0 10 99.9 % confidence" in out and "it abstained on" in out
    [proven] = [record for record in load_results([tmp_path]) if record["threat"]["attack"] == "smoothing"]
    assert proven["robust"]["samples"] == proven["data"]["samples"] == 4
    assert proven["smoothing"]["draws"] == 4 * (50 + 16) and proven["smoothing"]["noise_on"] == "the query"
    # Who is proven keeps its role, and anybody else may land where it is aimed at.
    for part, shares in proven["landed"]["attacked"].items():
        own = part.partition(" to ")[0]
        assert shares[own]["accuracy"] == proven["splits"][part]["robust"]["accuracy"]
        assert sum(share["accuracy"] for share in shares.values()) == pytest.approx(100, abs=0.01)
