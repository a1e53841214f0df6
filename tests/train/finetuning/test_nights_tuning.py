"""Tuning on NIGHTS-format triplets: the loss is the equation, resuming is exact, and the result is a plain encoder."""

import dataclasses
import functools
import json
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from rclip_metric import RobustPerceptualDistance
from rclip_metric.distance import distance_between, normalize
from rclip_metric.encoder import Encoder, ViTArchitecture
from rclip_metric.images import Preprocessing
from rclip_metric.train.commands.train import nights as command
from rclip_metric.train.data.triplet_images import TripletEmbeddings, TripletImages
from rclip_metric.train.data.triplets import read_nights
from rclip_metric.train.evaluation.tasks.two_afc import TwoAfcData, evaluate_two_afc
from rclip_metric.train.finetuning.nights import NightsConfig, drawn_mlp, hinge, tune_nights
from rclip_metric.train.finetuning.nights.step import sides, squared_distances, update
from rclip_metric.train.metrics.base import EncoderMetric
from rclip_metric.train.runs.machine import device_record
from rclip_metric.train.runs.seeds import mixed_seed, temporary_seed
from rclip_metric.weights import load_encoder, save_encoder

from support.encoders import CONVNEXT, same_weights, small_encoder
from support.programs import run_command
from support.scenes import small_scenes

VIT = ViTArchitecture(image_size=64, patch_size=16, width=64, depth=1, heads=2, projection=16)
MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
LORA = NightsConfig(epochs=2, batch_size=8, learning_rate=3e-3, save_every=1)
MLP = NightsConfig(head="mlp", hidden=8, epochs=3, batch_size=8, learning_rate=1e-2, save_every=1)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def nights(tmp_path_factory) -> Path:
    return small_scenes(tmp_path_factory.mktemp("scenes"), (22, 12, 1)) / "nights"


def make_encoder(architecture=CONVNEXT, name="small") -> Encoder:
    preprocessing = Preprocessing("crop", 72, 64, mean=MEAN, std=STD)
    return small_encoder(architecture, preprocessing, layer_scale=0.5, name=name)


def tune(nights, out, config=MLP, base=None, **more) -> Encoder:
    return tune_nights(base or make_encoder(), nights, out, config, name="tuned", quiet=True, **more)


def record(out: Path) -> dict:
    return json.loads((out / "run.json").read_text())


def test_the_hinge_is_the_equation_and_its_sign_is_right():
    d_left, d_right = torch.tensor([0.30, 0.30, 0.30, 0.10, 0.2]), torch.tensor([0.10, 0.10, 0.28, 0.30, 0.2])
    y = torch.tensor([1.0, -1.0, 1.0, -1.0, 1.0])
    expected = torch.tensor([0.0, 0.25, 0.03, 0.0, 0.05])  # max(0, 0.05 - (d_left - d_right) y)
    torch.testing.assert_close(hinge(d_left, d_right, y), expected)
    # From images on: people chose the right image, and it is nearer (d_left > d_right): nothing to pay.
    reference, far, near = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0]), torch.tensor([1.0, 0.1])
    triplet = torch.stack([reference, far, near])[None]
    left, right = squared_distances(triplet)
    assert left.item() == pytest.approx(1.0) and right.item() == pytest.approx(1 - 1 / 1.01**0.5, abs=1e-6)
    assert hinge(left, right, sides(torch.tensor([1]))).item() == 0.0
    assert hinge(left, right, sides(torch.tensor([0]))).item() == pytest.approx(0.05 + (left - right).item())


def test_a_batch_in_parts_has_the_gradient_of_the_whole():
    head = drawn_mlp(6, 4, seed=1)
    values, y = torch.randn(7, 3, 6, generator=generator(2)), torch.tensor([1.0, -1.0] * 3 + [1.0])
    gradients, losses = [], []
    for part in (7, 3):
        optimizer = torch.optim.SGD(head.parameters(), lr=0.0)
        losses.append(update(head, values, y, hinge, optimizer, part))
        gradients.append(torch.cat([parameter.grad.flatten() for parameter in head.parameters()]))
    torch.testing.assert_close(*gradients)
    expected = sum(
        max(0.0, 0.05 - (distance_between(u[0], u[1], True) - distance_between(u[0], u[2], True)).item() * side)
        for u, side in zip(normalize(head(values)).detach(), y.tolist(), strict=True)
    )
    assert losses == pytest.approx([expected / 7] * 2, rel=1e-5)


def test_the_head_starts_as_linear_layers_are_drawn():
    state = torch.get_rng_state()
    head = drawn_mlp(100, 400, seed=0)
    assert torch.equal(torch.get_rng_state(), state)
    for linear, bound in ((head.fc1, 0.1), (head.fc2, 0.05)):
        for name in ("weight", "bias"):
            drawn = getattr(linear, name)
            assert drawn.abs().max() <= bound
            assert drawn.std().item() == pytest.approx(bound / 3**0.5, rel=0.15)  # uniform


def test_dropout_masks_depend_on_the_step_alone():
    state = torch.get_rng_state()
    drawn = []
    for step in (1, 2, 1):
        with temporary_seed(mixed_seed(0, step)):
            drawn.append(nn.functional.dropout(torch.ones(50), 0.5))
    assert torch.equal(drawn[0], drawn[2]) and not torch.equal(drawn[0], drawn[1])
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("threads", [0, 2])
def test_images_come_in_the_order_asked_for_and_without_loss(nights, threads):
    triplets = read_nights(nights, "train")
    encoder = make_encoder()
    for keep_bytes in (0, 2**30):
        images = TripletImages(triplets, encoder.preprocess, 64, threads=threads, keep_bytes=keep_bytes)
        orders = [torch.tensor(order) for order in ([3, 0], [5], [1, 2, 4], [0], [6], [7])]
        for _ in range(2):
            batches = list(images.batches(orders))
            assert [indices.tolist() for indices, _ in batches] == [order.tolist() for order in orders]
            for indices, pixels in batches:
                assert pixels.dtype == torch.uint8 and pixels.shape == (len(indices), 3, 3, 64, 64)
                for index, one in zip(indices.tolist(), pixels, strict=True):
                    paths = (triplets[index].reference, triplets[index].left, triplets[index].right)
                    assert torch.equal(one.float() / 255, torch.stack([encoder.preprocess(path) for path in paths]))


@pytest.mark.parametrize("config", [MLP, LORA], ids=["mlp", "lora"])
@pytest.mark.parametrize("architecture", [CONVNEXT, VIT], ids=["convnext", "vit"])
def test_the_result_is_one_plain_checkpoint_and_the_base_is_spared(nights, tmp_path, config, architecture):
    base = make_encoder(architecture)
    before = {key: value.clone() for key, value in base.state_dict().items()}
    state = torch.get_rng_state()
    tuned = tune(nights, tmp_path, config, base)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[key]) for key, value in base.state_dict().items())
    assert all(parameter.requires_grad for parameter in base.parameters())
    loaded = load_encoder(tmp_path)
    images = torch.rand(2, 3, 64, 80, generator=generator(1))
    assert torch.equal(loaded(images), tuned(images))
    assert loaded.preprocessing == Preprocessing("squash", 64, 64, mean=MEAN, std=STD) == tuned.preprocessing
    assert loaded.name == "tuned" and loaded.mlp_hidden == (8 if config.head == "mlp" else None)
    run = record(tmp_path)
    assert run["device"] == device_record(torch.device("cpu"))
    assert run["method"] == {"mlp": "MLP", "lora": "LoRA"}[config.head]
    assert run["base"] == {"name": "small", "revision": None} and run["seed"] == 0
    assert [epoch["epoch"] for epoch in run["epochs"]] == list(range(config.epochs + 1))
    assert run["seconds"] >= run["run"]["prepared_seconds"] + sum(epoch["seconds"] for epoch in run["epochs"]) - 0.2
    accuracies = [epoch["val_accuracy"] for epoch in run["epochs"]]
    assert run["best_epoch"] == accuracies.index(max(accuracies))
    saved = json.loads((tmp_path / "config.json").read_text())
    how = "MLP head" if config.head == "mlp" else "LoRA"
    assert saved["training"] == {
        "method": f"{how} on clean NIGHTS-format scenes", "norm": None, "eps": None, "data": "procedural scenes",
        "base": "small",
    }  # fmt: skip
    # The evaluation's own count of the saved model, image by image, is what the record says.
    metric = EncoderMetric(RobustPerceptualDistance(tmp_path))
    data = TwoAfcData("nights", "val", read_nights(nights, "val"))
    judged = evaluate_two_afc(metric, data, quiet=True)[0]["clean"]
    assert judged["accuracy"] == pytest.approx(max(accuracies), abs=1e-3)


def test_the_best_epoch_is_kept_and_the_earlier_of_equals(nights, tmp_path):
    tuned = tune(nights, tmp_path / "long", dataclasses.replace(MLP, epochs=6))
    accuracies = [epoch["val_accuracy"] for epoch in record(tmp_path / "long")["epochs"]]
    best = record(tmp_path / "long")["best_epoch"]
    assert 0 < best == accuracies.index(max(accuracies)) < 6
    # Its weights are those of a run that ends there.
    assert same_weights(tune(nights, tmp_path / "short", dataclasses.replace(MLP, epochs=best)), tuned)
    # A rate too small to change any decision: all epochs are equal, and the head stays as it was drawn.
    still = tune(nights, tmp_path / "still", dataclasses.replace(MLP, learning_rate=1e-9))
    assert len({epoch["val_accuracy"] for epoch in record(tmp_path / "still")["epochs"]}) == 1
    assert record(tmp_path / "still")["best_epoch"] == 0
    assert still.head is not None and torch.equal(still.head.fc1.weight, drawn_mlp(16, 8, seed=0).fc1.weight)


@pytest.mark.parametrize(
    "config",
    [dataclasses.replace(MLP, epochs=8), dataclasses.replace(LORA, epochs=6, learning_rate=2e-2)],
    ids=["mlp", "lora"],
)
def test_tuning_lowers_the_loss_and_does_not_lose_accuracy(nights, tmp_path, config):
    tune(nights, tmp_path, config)
    epochs = record(tmp_path)["epochs"]
    assert epochs[-1]["loss"] < 0.8 * epochs[1]["loss"]
    assert epochs[record(tmp_path)["best_epoch"]]["val_accuracy"] >= epochs[0]["val_accuracy"]


def test_embedded_once_is_embedded_every_time(nights):
    triplets = read_nights(nights, "train")
    encoder = make_encoder()
    images = TripletImages(triplets, encoder.preprocess, 64)

    def embed(pixels: Tensor) -> Tensor:
        with torch.no_grad():
            return encoder(pixels.flatten(0, 1).float() / 255).unflatten(0, (-1, 3))

    embedded = TripletEmbeddings(images, embed, batch=5, quiet=True)
    order = [torch.randperm(len(triplets), generator=generator(1))]
    for (indices, values), (same, pixels) in zip(embedded.batches(order), images.batches(order), strict=True):
        assert torch.equal(indices, same)
        torch.testing.assert_close(values, embed(pixels))


CHILD = """
import os, signal, sys
from pathlib import Path
import torch
torch.set_num_threads({threads})
torch.backends.mkldnn.enabled = {onednn}
from rclip_metric.train.finetuning.nights import NightsConfig, tune_nights
from rclip_metric.weights import load_encoder

replace, count = os.replace, 0
def killed(source, target):
    global count
    count += str(target).endswith(".safetensors")
    if count == {die}:
        os.kill(os.getpid(), signal.SIGKILL)  # the new state is written in part, under its other name
    replace(source, target)
os.replace = killed
tune_nights(load_encoder({base!r}), Path({data!r}), Path({out!r}), NightsConfig(**{config!r}), name="tuned", quiet=True)
"""


def test_after_kill_9_a_run_ends_with_the_same_weights(nights, tmp_path, forks):
    """Killed while a state is being written, in the middle of the second epoch of three; the state before it holds."""
    save_encoder(make_encoder(), tmp_path / "base")
    base = load_encoder(tmp_path / "base")
    config = dataclasses.replace(LORA, epochs=3)
    whole = tune(nights, tmp_path / "whole", config, base)
    out = tmp_path / "cut"
    script = CHILD.format(
        base=str(tmp_path / "base"), data=str(nights), out=str(out), config=dataclasses.asdict(config), die=7,
        threads=torch.get_num_threads(), onednn=torch.backends.mkldnn.enabled,
    )  # fmt: skip
    (tmp_path / "child.py").write_text(script)
    forks.start([], script=tmp_path / "child.py")
    assert forks.wait() == [-signal.SIGKILL], forks.errors
    left = sorted(path.name for path in out.glob("state-*.safetensors"))
    assert left == ["state-00000003.safetensors", "state-00000004.safetensors"]
    assert not (out / "run.json").exists()
    assert same_weights(tune(nights, out, config, base), whole)
    epochs = [{**epoch, "seconds": 0} for epoch in record(out)["epochs"]]
    assert epochs == [{**epoch, "seconds": 0} for epoch in record(tmp_path / "whole")["epochs"]]
    assert record(out)["best_epoch"] == record(tmp_path / "whole")["best_epoch"]
    # A run that is done is not trained on, and one of other settings, data or base is refused.
    assert same_weights(tune(nights, out, config, base), whole)
    with pytest.raises(ValueError, match="margin"):
        tune(nights, out, dataclasses.replace(config, margin=0.1), base)
    with torch.no_grad():
        next(base.parameters()).add_(1e-3)
    with pytest.raises(ValueError, match="base"):
        tune(nights, out, config, base)


def test_sigterm_saves_the_step_and_the_run_goes_on_from_it(nights, tmp_path, monkeypatch):
    import rclip_metric.train.finetuning.nights.loop as tuning
    from rclip_metric.train.runs.interrupt import Interrupted

    config = dataclasses.replace(MLP, save_every=100)
    whole = tune(nights, tmp_path / "whole", config)
    steps, real = [], tuning.update

    def terminated(*arguments):
        steps.append(1)
        if len(steps) == 4:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(tuning, "update", terminated)
        with pytest.raises(Interrupted, match="goes on from step 1 of epoch 2/3"):
            tune(nights, tmp_path / "cut", config)
    assert len(steps) == 4
    assert same_weights(tune(nights, tmp_path / "cut", config), whole)


@pytest.mark.parametrize("config", [MLP, LORA], ids=["mlp", "lora"])
def test_unreadable_images_are_left_out_counted_and_named(nights, tmp_path, config):
    data = tmp_path / "scenes" / "nights"
    shutil.copytree(nights, data)
    train, val = read_nights(data, "train"), read_nights(data, "val")
    for path in (train[2].left, val[1].reference):
        path.write_bytes(path.read_bytes()[:200])
    tune(data, tmp_path / "run", dataclasses.replace(config, max_unreadable=0.2))
    counted = record(tmp_path / "run")["data"]
    assert counted == {"path": str(data), "triplets": len(train) - 1, "val": len(val) - 1, "unreadable": 2}
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    told = [(line["split"], sentence) for line in lines if "unreadable" in line for sentence in line["unreadable"]]
    assert sorted(split for split, _ in told) == ["train", "val"]
    for split, sentence in told:
        triplet, path = (train[2], train[2].left) if split == "train" else (val[1], val[1].reference)
        assert f"triplet {triplet.key}: " in sentence and str(path) in sentence
    for split, triplets in (("train", train), ("val", val)):
        shutil.rmtree(data)
        shutil.copytree(nights, data)
        for triplet in triplets:
            triplet.right.unlink()
        with pytest.raises(ValueError, match=f"triplets of {split} could not be read"):
            tune(data, tmp_path / split, config)


@pytest.mark.parametrize("config", [MLP, LORA], ids=["mlp", "lora"])
def test_a_loss_that_is_not_a_number_stops_the_run(nights, tmp_path, config):
    base = make_encoder()
    with torch.no_grad():
        next(base.parameters()).fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="the loss on val is nan after epoch 0"):
        tune(nights, tmp_path / "nan", config, base)
    with pytest.raises(FloatingPointError, match="lower the learning rate"):
        tune(nights, tmp_path / "inf", dataclasses.replace(config, learning_rate=1e38))
    assert not (tmp_path / "inf" / "model.safetensors").exists()


def test_a_base_with_a_head_and_settings_without_sense_are_refused(nights, tmp_path):
    headed = Encoder(CONVNEXT, Preprocessing("squash", 64, 64), mlp_hidden=4, name="headed")
    with pytest.raises(ValueError, match="headed has an MLP head already"):
        tune(nights, tmp_path, LORA, headed)
    for field, value in (("head", "linear"), ("rank", 0), ("margin", 0.0), ("epochs", -1), ("dropout", 1.0),
                         ("betas", (0.5,))):  # fmt: skip
        with pytest.raises(ValueError, match=field):
            NightsConfig(**{field: value})


def test_what_is_not_given_is_as_dreamsim_published_it():
    """configs/train_single_model_lora.yaml and train_single_model_mlp.yaml of DreamSim's repository."""
    shared = {"margin": 0.05, "learning_rate": 3e-4, "weight_decay": 0.0, "betas": (0.5, 0.999)}
    lora = dataclasses.asdict(NightsConfig())
    assert lora.items() >= {"batch_size": 32, "epochs": 8, "rank": 16, "alpha": 0.5, "dropout": 0.3, **shared}.items()
    mlp = dataclasses.asdict(NightsConfig(head="mlp"))
    assert mlp.items() >= {"batch_size": 512, "epochs": 20, "hidden": 512, **shared}.items()
    assert NightsConfig(head="mlp", epochs=3).epochs == 3


def test_bfloat16_trains_the_same_to_its_precision(nights, tmp_path):
    full, half = (
        tune(nights, tmp_path / precision, LORA, precision=precision) for precision in ("float32", "bfloat16")
    )
    assert all(parameter.dtype == torch.float32 for parameter in half.parameters())
    losses = [[epoch["loss"] for epoch in record(tmp_path / p)["epochs"][1:]] for p in ("float32", "bfloat16")]
    assert losses[0] != losses[1] and losses[1] == pytest.approx(losses[0], rel=0.1)
    images = torch.rand(2, 3, 64, 64, generator=generator(1))
    assert torch.cosine_similarity(full(images), half(images)).min() > 0.99


run_nights = functools.partial(run_command, command, "nights", "--quiet")


def test_the_command(nights, tmp_path, capsys):
    origin = {"method": "FARE", "norm": "linf", "eps": "4/255", "data": "ImageNet", "base": "clean"}
    save_encoder(make_encoder(name="robust"), tmp_path / "robust", training=origin, license="MIT")
    out = tmp_path / "robust+mlp"
    recipe = tmp_path / "recipe.json"
    settings = {"hidden": 4, "batch_size": 4, "epochs": 1}
    recipe.write_text(json.dumps({"command": "nights", "base": str(tmp_path / "robust"), "settings": settings}))
    places = ["--data", str(nights), "--device", "cpu"]
    run_nights(*places, "--out", str(out), "--recipe", str(recipe), "--head", "mlp", "--betas", "0.6,0.99")
    assert "% on val after epoch" in capsys.readouterr().out
    run = record(out)
    wanted = {"head": "mlp", **settings, "betas": [0.6, 0.99], "learning_rate": 3e-4}
    assert {key: run["recipe"][key] for key in wanted} == wanted
    saved = json.loads((out / "config.json").read_text())
    assert saved["name"] == "robust+mlp" and saved["license"] == "MIT"
    assert saved["training"] == {
        "method": "FARE, then MLP head on clean NIGHTS-format scenes", "norm": "linf", "eps": "4/255",
        "data": "ImageNet, procedural scenes", "base": "robust",
    }  # fmt: skip
    (tmp_path / "old.json").write_text('{"micro_batch": 3}')  # as the setting was once called
    run_nights(
        *places, "--base", str(tmp_path / "robust"), "--out", str(tmp_path / "b"), "--head", "mlp", "--epochs", "0",
        "--config", str(tmp_path / "old.json"),
    )  # fmt: skip
    assert record(tmp_path / "b")["recipe"]["batch_size"] == 512 and record(tmp_path / "b")["run"]["chunk_size"] == 3
    with pytest.raises(ValueError, match="pass --base"):
        run_nights(*places, "--out", str(tmp_path / "d"))
