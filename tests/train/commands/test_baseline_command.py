"""`rclip-metric train baseline`: published weights, converted once, then a metric of that name everywhere."""

import json

import pytest
import torch

from rclip_metric.cli.main import main
from rclip_metric.train.metrics.lpips import LpipsMetric
from rclip_metric.train.metrics.registry import BASELINES, load_baseline, load_metric
from rclip_metric.train.metrics.weight_files import FOLDER_VARIABLE, weights_folder

from support.scenes import small_scenes


@pytest.fixture
def published(tmp_path):
    """R-LPIPS as its authors publish it, with random weights: a pickled state dict, lin0 to lin4 twice."""
    random = load_baseline("r-lpips@random")
    assert isinstance(random, LpipsMetric)
    tensors = {key: value.detach().clone() for key, value in random.network.state_dict().items()}
    tensors |= {key.replace("lin", "lins.", 1): value for key, value in tensors.items() if key.startswith("lin")}
    path = tmp_path / "latest_net_linf_ref.pth"
    torch.save(tensors, path)
    return path


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path / "baselines"))
    return tmp_path / "baselines"


def test_what_is_converted_is_found_by_its_name(published, folder, tmp_path, capsys):
    assert main(["train", "baseline", "r-lpips", str(published)]) == 0
    assert capsys.readouterr().out.startswith(f"{folder / 'r-lpips.safetensors'}: r-lpips @ sha256:")
    metric, random = load_metric("r-lpips", image_size=64), load_metric("r-lpips@random", image_size=64)
    x, y = torch.rand(2, 1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    expected = random.similarities(x, random.fix(y)[:, None])
    torch.testing.assert_close(metric.similarities(x, metric.fix(y)[:, None]), expected)
    assert (metric.revision or "").startswith("sha256:") and random.revision is None

    small_scenes(tmp_path / "scenes", (0, 4, 12), queries=2)
    data = f"nights:{tmp_path / 'scenes' / 'nights'}"
    out = tmp_path / "results"
    command = ["benchmark", "--metrics", "r-lpips", "--data", data, "--norms", "linf:4/255", "--steps", "2"]
    assert main([*command, "--limit", "3", "--image-size", "64", "--device", "cpu", "--quiet", "--out", str(out)]) == 0
    [row] = json.loads((out / "benchmark.json").read_text())["metrics"]
    assert row["label"] == "R-LPIPS (AlexNet)" and row["results"]["scenes"]["robust"]["linf 4/255"]["samples"] == 3


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("r-lpip", "did you mean r-lpips?"),
        ("ssim", "ssim has nothing to convert: it is ready, as --metrics ssim"),
        ("lipsim-0.5", "latest_net_linf_ref.pth"),
        ("dreamsim", "latest_net_linf_ref.pth"),
    ],
)
def test_what_cannot_be_converted_is_one_sentence(name, sentence, published, folder, capsys):
    assert main(["train", "baseline", name, str(published)]) == 2
    told = capsys.readouterr().err
    assert sentence in told and told.count("\n") == 1 and "Traceback" not in told
    assert not folder.exists()


def test_a_file_that_is_not_there_says_where_to_get_it(folder, tmp_path, capsys):
    assert main(["train", "baseline", "dreamsim", str(tmp_path / "none.zip")]) == 2
    assert "dreamsim_ensemble_checkpoint.zip from the release page" in capsys.readouterr().err


def test_a_converted_file_of_another_metric_or_none_is_refused(published, folder, tmp_path, capsys):
    out = tmp_path / "mine.safetensors"
    assert main(["train", "baseline", "r-lpips", str(published), "--out", str(out)]) == 0
    assert not folder.exists()
    folder.mkdir()
    out.rename(folder / "lipsim-0.2.safetensors")
    with pytest.raises(ValueError, match=r"holds r-lpips, and lipsim-0.2 was asked for"):
        load_metric("lipsim-0.2")
    (folder / "r-lpips.safetensors").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"r-lpips\.safetensors cannot be read"):
        load_metric("r-lpips")


def test_names_that_are_nearly_known_are_suggested_and_nothing_is_fetched(folder):
    for name, baseline in BASELINES.items():
        if baseline.published is not None:
            with pytest.raises(ValueError, match=rf"rclip-metric train baseline {name} FILE"):
                load_metric(name)
    assert weights_folder() == folder and not folder.exists()


def test_the_help_names_every_file_that_can_be_converted(capsys):
    assert main(["train", "baseline", "--help"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    for name, baseline in BASELINES.items():
        assert (f"{name}: {baseline.published}" in text) == (baseline.published is not None)
