"""Tuning LPIPS: the loss is the equation, weights stay from 0 on, attacks stay in the ball, and resuming is exact."""

import dataclasses
import json
import math
import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from rclip_metric.cli.main import main
from rclip_metric.errors import CheckpointError, WeightsError
from rclip_metric.train.attacks.threat import LpBall
from rclip_metric.train.commands.train import lpips as command
from rclip_metric.train.data.scenes.formats import TRAINING_PEOPLE, write_bapps
from rclip_metric.train.data.triplets import read_bapps, read_bapps_training
from rclip_metric.train.finetuning.lpips import LpipsConfig, RankingNetwork, head_distance, ranking_loss, tune_lpips
from rclip_metric.train.finetuning.lpips import run as tuning
from rclip_metric.train.finetuning.lpips.step import attacked_references, draw_heads, trained_parameters, update
from rclip_metric.train.metrics import load_metric
from rclip_metric.train.metrics.lpips import Lpips, LpipsMetric, random_trunk
from rclip_metric.train.metrics.lpips_trunks import TRUNKS
from rclip_metric.train.metrics.weight_files import METRIC_FILE, Converted, write_stored
from rclip_metric.train.runs.config import configured, read_recipe
from rclip_metric.train.runs.interrupt import Interrupted

from support.programs import run_command

SIZE = 32
PLAIN = LpipsConfig(
    random_trunk=True, image_size=SIZE, batch_size=4, epochs=1, decay_epochs=1, learning_rate=1e-2, save_every=1
)
ROBUST = dataclasses.replace(PLAIN, adversarial=True, attack_steps=2)


@pytest.fixture(scope="module")
def bapps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("bapps")
    write_bapps(folder, per_split=1, training=3, quiet=True)
    return folder


def built(config: LpipsConfig, seed: int = 0) -> tuple[Lpips, RankingNetwork]:
    network = Lpips(config.trunk)
    network.load(random_trunk(network, config.trunk_seed) | draw_heads(network, seed))
    return network, RankingNetwork(config.hidden, seed)


def pictures(count: int, seed: int = 0) -> Tensor:
    """Smooth triplets with some noise, (count, 3, 3, S, S), of which the right image is the nearer one."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 4, 4, generator=generator)
    reference = functional.interpolate(coarse, (SIZE, SIZE), mode="bilinear")
    noise = torch.randn(count, 2, 3, SIZE, SIZE, generator=generator)
    options = reference[:, None] + torch.tensor([0.3, 0.05]).view(1, 2, 1, 1, 1) * noise
    return torch.cat([reference[:, None], options], 1).clamp(0, 1)


def weights(network: Lpips) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in network.state_dict().items()}


def record(out: Path) -> dict:
    found: dict = json.loads((out / "run.json").read_text())
    return found


def equal(one: Lpips, other: Lpips) -> bool:
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def test_the_ranking_loss_is_the_published_formula() -> None:
    network = RankingNetwork(hidden=7, seed=3).double()
    d0, d1 = torch.tensor([0.0, 0.2, 1.5, 0.3]).double(), torch.tensor([0.0, 0.7, 0.1, 0.3]).double()
    share = torch.tensor([0.0, 1.0, 0.5, 0.2]).double()
    found = ranking_loss(network, d0, d1, share)
    numbers = [parameter.detach().numpy() for parameter in network.parameters()]
    maps = list(zip(numbers[::2], numbers[1::2], strict=True))  # matrices, and what is added
    for loss, a, b, h in zip(found.tolist(), d0.tolist(), d1.tolist(), share.tolist(), strict=True):
        x = np.array([a, b, a - b, a / (b + 0.1), b / (a + 0.1)])
        for matrix, bias in maps[:2]:
            x = matrix @ x + bias
            x = np.where(x > 0, x, 0.2 * x)
        p = 1 / (1 + math.exp(-(maps[2][0] @ x + maps[2][1]).item()))
        assert loss == pytest.approx(-h * math.log(p) - (1 - h) * math.log(1 - p), rel=1e-9)


@pytest.mark.parametrize("trunk", TRUNKS)
def test_the_distance_is_that_of_the_metric_that_is_read_back(trunk: str) -> None:
    network, _ = built(dataclasses.replace(PLAIN, trunk=trunk))
    one, other = pictures(2)[:, 0], pictures(2)[:, 1]
    found = head_distance(network, network.directions(one), network.directions(other))
    about = {"name": trunk, "device": "cpu"}
    wanted = LpipsMetric(network, SIZE, keeps=True, **about).function(one, other)
    torch.testing.assert_close(found, wanted)
    assert wanted.min() > 1e-4


def test_dropout_leaves_the_mean_of_the_distance() -> None:
    network, _ = built(PLAIN)
    one, other = (list(network.directions(pictures(1)[:, place])) for place in (0, 1))
    clean = head_distance(network, one, other)
    drawn = torch.stack([head_distance(network, one, other, 0.5) for _ in range(200)])
    assert drawn.std() > 0
    assert abs(drawn.mean() - clean.item()) < 4 * drawn.std() / 200**0.5


def test_weights_at_zero_have_a_gradient_and_can_grow_again() -> None:
    network, _ = built(PLAIN)
    with torch.no_grad():
        network.linear(0).zero_()
    network.linear(0).requires_grad_(True)
    triplets = pictures(2)
    head_distance(network, network.directions(triplets[:, 0]), network.directions(triplets[:, 1])).sum().backward()
    gradient = network.linear(0).grad
    assert gradient is not None and gradient.isfinite().all() and gradient.max() > 0


@pytest.mark.parametrize("config", [PLAIN, ROBUST, dataclasses.replace(PLAIN, trunk="squeeze")])
def test_no_weight_is_below_zero_after_any_step_and_only_the_heads_are_clamped(config: LpipsConfig) -> None:
    network, rank = built(config)
    trunk = {key: value.clone() for key, value in network.net.state_dict().items()}
    assert any(bool((value < 0).any()) for value in trunk.values())
    trained = trained_parameters(network, rank, train_trunk=False)
    # With a rate at which many a weight would fall below 0: as the reason for clamping.
    optimizer = torch.optim.Adam(trained.values(), lr=0.1)
    cut = 0
    for step in range(4):
        triplets, share = pictures(4, step), torch.tensor([0.0, 0.5, 1.0, 0.0])
        before = torch.cat([network.linear(layer).flatten() for layer in range(len(network.trunk.channels))]).detach()
        update(network, rank, triplets, share, optimizer, config)
        after = torch.cat([network.linear(layer).flatten() for layer in range(len(network.trunk.channels))]).detach()
        assert bool((after >= 0).all()) and not torch.equal(before, after)
        cut += int(((before > 0) & (after == 0)).sum())
    assert cut > 0
    assert all(torch.equal(value, trunk[key]) for key, value in network.net.state_dict().items())


@pytest.mark.parametrize(
    ("attack", "norm", "eps"), [("pgd", "linf", 8 / 255), ("apgd", "linf", 8 / 255), ("pgd", "l2", 0.5)]
)
def test_adversarial_points_stay_in_ball_and_box_and_raise_the_loss(attack: str, norm: str, eps: float) -> None:
    step = 1.0 if (attack, norm) == ("pgd", "linf") else 0.0
    config = dataclasses.replace(ROBUST, attack=attack, norm=norm, eps=eps, attack_steps=6, step_size=step)
    network, rank = built(config)
    # A ranking network that has learnt nothing but the sign: more of d0 - d1 is more likely the right image.
    with torch.no_grad():
        for parameter in rank.parameters():
            parameter.zero_()
        for (name, weight), place in zip(list(rank.named_parameters())[::2], (2, 0, 0), strict=True):
            assert name.endswith("weight")
            weight[0, place] = 3.0
    triplets = pictures(3)
    triplets[0, 0], triplets[1, 0] = 0.0, 1.0  # references on the box's edges
    share = torch.tensor([1.0, 0.0, 1.0])
    ball = config.ball
    assert ball is not None and isinstance(ball, LpBall)
    points = attacked_references(network, rank, triplets, share, ball, config)
    assert ball.violation(points, triplets[:, 0]) <= 1e-7
    if step:  # as published: every value is at the edge of the ball, or of the box
        reference = triplets[:, 0]
        low, high = (reference - eps).clamp(min=0), (reference + eps).clamp(max=1)
        at_edge = torch.isclose(points, low, atol=1e-6) | torch.isclose(points, high, atol=1e-6)
        assert at_edge.float().mean() > 0.99

    def losses(reference: Tensor) -> Tensor:
        e, left, right = (network(images) for images in (reference, triplets[:, 1], triplets[:, 2]))
        return ranking_loss(rank, (e - left).square().sum(1), (e - right).square().sum(1), share)

    with torch.no_grad():
        assert losses(points).sum() > losses(triplets[:, 0]).sum()


def test_plain_tuning_learns_which_differences_count() -> None:
    network, rank = built(PLAIN, seed=1)
    trained = trained_parameters(network, rank, train_trunk=False)
    optimizer = torch.optim.Adam(trained.values(), lr=1e-2)
    triplets, share = pictures(6), torch.ones(6)
    triplets[::2, 1:], share[::2] = triplets[::2, 1:].flip(1), 0.0
    config = dataclasses.replace(PLAIN, dropout=0.0)
    found = [update(network, rank, triplets, share, optimizer, config) for _ in range(30)]
    assert found[-1].loss < 0.5 * found[0].loss
    assert found[-1].agreement == 1.0


def test_the_rate_falls_as_published() -> None:
    config = LpipsConfig()
    wanted = [1e-4] * 6 + [0.8e-4, 0.6e-4, 0.4e-4, 0.2e-4]
    assert [config.rate(epoch) for epoch in range(1, config.last_epoch + 1)] == pytest.approx(wanted)


def test_the_recipes_are_the_published_settings() -> None:
    plain, robust = (
        configured(LpipsConfig, None, read_recipe(name, "lpips").settings) for name in ("lpips", "r-lpips")
    )
    assert plain == LpipsConfig() and robust == LpipsConfig(adversarial=True)
    assert (robust.batch_size, robust.learning_rate, robust.betas, robust.dropout) == (50, 1e-4, (0.5, 0.999), 0.5)
    assert robust.eps == pytest.approx(8 / 255 / 2)  # images in [-1, 1] there, in [0, 1] here


@pytest.mark.parametrize("config", [PLAIN, ROBUST, dataclasses.replace(PLAIN, train_trunk=True)])
def test_a_run_that_was_stopped_ends_with_the_same_weights(
    bapps: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, config: LpipsConfig
) -> None:
    before = torch.get_rng_state()
    whole = tune_lpips(bapps, tmp_path / "whole", config, name="whole", quiet=True)
    assert torch.equal(torch.get_rng_state(), before)
    steps, real = [], update

    def terminated(*arguments):
        steps.append(1)
        if len(steps) == 4:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(tuning, "update", terminated)
        with pytest.raises(Interrupted, match="goes on from step 1 of epoch 2/2"):
            tune_lpips(bapps, tmp_path / "cut", config, name="whole", quiet=True)
    assert len(steps) == 4
    assert equal(tune_lpips(bapps, tmp_path / "cut", config, name="whole", quiet=True), whole)
    assert len(steps) == 4  # the rest was done by the real one
    first, second = (record(tmp_path / run) for run in ("whole", "cut"))
    assert first["metric"] == second["metric"]
    assert load_metric(str(tmp_path / "cut")).revision == load_metric(str(tmp_path / "whole")).revision
    for one, other in zip(first["epochs"], second["epochs"], strict=True):
        assert {**one, "seconds": 0} == {**other, "seconds": 0}
    # Nothing is left to do: it reads the last state and writes the same again.
    assert equal(tune_lpips(bapps, tmp_path / "cut", config, name="whole", quiet=True), whole)
    with pytest.raises(ValueError, match=r"another setting of .*seed \(0, and now 7\)"):
        tune_lpips(bapps, tmp_path / "cut", dataclasses.replace(config, seed=7), name="whole", quiet=True)


def test_unreadable_images_are_left_out_counted_and_named(bapps: Path, tmp_path: Path) -> None:
    data = tmp_path / "bapps"
    shutil.copytree(bapps, data)
    triplets = read_bapps_training(data)
    triplets[2].left.write_bytes(triplets[2].left.read_bytes()[:200])
    config = dataclasses.replace(PLAIN, max_unreadable=0.2)
    tune_lpips(data, tmp_path / "run", config, name="tuned", quiet=True)
    counted = record(tmp_path / "run")["data"]
    assert (counted["triplets"], counted["unreadable"]) == (len(triplets) - 1, 1)
    assert triplets[2].key in (tmp_path / "run" / "log.jsonl").read_text()
    with pytest.raises(ValueError, match="could not be read"):
        tune_lpips(data, tmp_path / "strict", PLAIN, name="tuned", quiet=True)


def test_a_loss_that_is_not_a_number_stops_the_run(
    bapps: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spoilt(hidden: int, seed: int) -> RankingNetwork:
        network = RankingNetwork(hidden, seed)
        next(network.parameters()).data.fill_(math.nan)
        return network

    monkeypatch.setattr(tuning, "RankingNetwork", spoilt)
    with pytest.raises(FloatingPointError, match="the loss is nan at step 1 of epoch 1"):
        tune_lpips(bapps, tmp_path / "run", PLAIN, name="tuned", quiet=True)
    assert not (tmp_path / "run" / METRIC_FILE).exists()


def test_the_trunk_moves_if_it_is_to(bapps: Path, tmp_path: Path) -> None:
    for train_trunk in (False, True):
        config = dataclasses.replace(PLAIN, train_trunk=train_trunk, decay_epochs=0)
        tuned = tune_lpips(bapps, tmp_path / str(train_trunk), config, name="tuned", quiet=True)
        start, _ = built(config)
        same = [torch.equal(a, b) for a, b in zip(tuned.net.parameters(), start.net.parameters(), strict=True)]
        assert all(same) if not train_trunk else not any(same)
    assert record(tmp_path / "True")["method"] == "LPIPS, heads and trunk"


@pytest.mark.parametrize("trunk", ["alex", "squeeze"])
def test_the_command_trains_and_the_evaluation_reads_its_folder(
    bapps: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], trunk: str
) -> None:
    out = tmp_path / "mine"
    more = ["--random-trunk", "--trunk-seed", "3", "--trunk", trunk, "--image-size", SIZE, "--batch-size", 8]
    more += ["--epochs", 1, "--decay-epochs", 0, "--attack-steps", 2, "--eps", "8/255", "--device", "cpu", "--quiet"]
    run_command(command, "lpips", "--data", bapps, "--out", out, "--recipe", "r-lpips", *more)
    assert "eval bapps --model" in capsys.readouterr().out
    made = record(out)
    assert (made["method"], made["trunk"], made["threat"]) == ("R-LPIPS heads", "random, seed 3", "linf 8/255")
    # 9 triplets, three images each, two options once more for the attack, and its two steps
    assert made["run"]["images_through_the_trunk"] == 9 * (3 + 2 + 2)
    assert made["metric"]["file"] == METRIC_FILE
    for place in (out, out / METRIC_FILE):
        metric = load_metric(str(place), image_size=64)
        assert isinstance(metric, LpipsMetric)
        assert (metric.name, metric.image_size) == ("mine", SIZE)
        about = metric.describe()
        assert about["net"] == trunk and about["trained"]["threat"] == "linf 8/255"
    arguments = ["eval", "bapps", "--data", str(bapps), "--model", str(out), "--norm", "linf", "--eps", "8/255"]
    assert main([*arguments, "--steps", "2", "--device", "cpu", "--quiet", "--out", str(tmp_path / "results")]) == 0
    [result] = (tmp_path / "results").rglob("*.json")
    evaluated = json.loads(result.read_text())
    assert evaluated["robust"]["accuracy"] <= evaluated["clean"]["accuracy"]


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (["--eps", "4/255"], "--eps is of the attack, and there is none: pass --adversarial"),
        (["--attack-steps", "10"], "--attack-steps is of the attack"),
        (["--attack", "pgd"], "--attack is of the attack"),
        (["--adversarial", "--attack-steps", "0"], "attack_steps must be at least 1"),
        (["--adversarial", "--eps", "0"], "eps must be positive"),
        (["--adversarial", "--attack", "apgd", "--step-size", "1/255"], "step_size is PGD's"),
        (["--epochs", "0"], "epochs must be at least 1"),
        (["--image-size", "16"], "at least 31 pixels"),
        (["--dropout", "1"], "dropout must be in [0, 1)"),
        (["--splits", "superres"], "unknown BAPPS training split 'superres'"),
        (["--recipe", "r-clip-f"], "is for `train fare`"),
        (["--recipe", "r-lpip"], "did you mean"),
        (["--name", "r-lpips"], "is the name of a metric that there is"),
    ],
)
def test_bad_settings_are_one_sentence(
    bapps: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], told: str
) -> None:
    out = tmp_path / "out"
    assert main(["train", "lpips", "--data", str(bapps), "--out", str(out), "--random-trunk", "--quiet", *more]) == 2
    said = capsys.readouterr().err
    assert told in said and said.startswith("rclip-metric: ") and said.count("\n") == 1
    assert not out.exists()


def test_a_seed_of_a_trunk_that_is_not_drawn_is_refused() -> None:
    with pytest.raises(ValueError, match="trunk_seed is for a random trunk"):
        LpipsConfig(trunk_seed=1)


def test_data_that_cannot_be_trained_on_is_one_sentence(bapps: Path, tmp_path: Path) -> None:
    def tuned(data: Path) -> None:
        tune_lpips(data, tmp_path / "out", PLAIN, name="tuned", quiet=True)

    with pytest.raises(ValueError, match="no BAPPS set with training triplets"):
        tuned(tmp_path)
    # Of the same names as folders of 2afc/train, and what the metric is judged on.
    with pytest.raises(ValueError, match="no BAPPS set with training triplets"):
        tuned(bapps / "2afc" / "val")
    for damage, told in (("file", "none for '000001'"), ("folder", "lacks the folder .*judge")):
        data = tmp_path / damage
        shutil.copytree(bapps, data)
        judge = data / "2afc" / "train" / "mix" / "judge"
        if damage == "file":
            (judge / "000001.npy").unlink()
        else:
            shutil.rmtree(judge)
        with pytest.raises(ValueError, match=told):
            tuned(data)
    assert not (tmp_path / "out").exists()


def test_a_trunk_that_is_not_there_is_one_sentence(
    bapps: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    for proxy in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(proxy, "http://127.0.0.1:9")  # where nobody listens
    config = dataclasses.replace(PLAIN, random_trunk=False)
    with pytest.raises(WeightsError, match=r"alexnet-.* cannot be fetched .*, or train on --random-trunk\.$"):
        tune_lpips(bapps, tmp_path / "out", config, name="tuned", quiet=True)


def test_a_file_of_another_kind_is_told(tmp_path: Path) -> None:
    network, _ = built(PLAIN)
    path = tmp_path / METRIC_FILE
    trained = {"name": "mine", "image_size": SIZE}
    for config in ({"net": "resnet", "version": "0.1"}, {"net": "vgg", "version": "0.1", "trained": trained}):
        write_stored("r-lpips", Converted(weights(network), config, files=[]), path)
        with pytest.raises(ValueError, match=r"one of alex, vgg, squeeze|does not hold LPIPS's weights"):
            load_metric(str(tmp_path))
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(CheckpointError, match="damaged"):
        load_metric(str(tmp_path))


def test_scenes_have_training_splits_and_the_others_are_what_they_were(bapps: Path, tmp_path: Path) -> None:
    write_bapps(tmp_path, per_split=1, quiet=True)
    for one, other in zip(read_bapps(bapps), read_bapps(tmp_path), strict=True):
        assert one.share == other.share and one.left.read_bytes() == other.left.read_bytes()
    triplets = read_bapps_training(bapps)
    assert [triplet.split for triplet in triplets] == ["traditional"] * 3 + ["cnn"] * 3 + ["mix"] * 3
    assert {triplet.share * TRAINING_PEOPLE for triplet in triplets} <= {0.0, 1.0, 2.0}
    lines = (bapps / "strengths.csv").read_text().splitlines()[1:]
    kinds = dict(line.split(",")[:2] for line in lines if line.startswith("train/"))
    assert len(kinds) == 9 and {kinds[f"train/cnn/{index:06d}"] for index in range(3)} == {"blocks"}
    with pytest.raises(ValueError, match="got -1 training triplets"):
        write_bapps(tmp_path / "less", training=-1)
    assert main(["train", "scenes", "--out", str(tmp_path / "some"), "--bapps-training", "2"]) == 2
