"""Fine-tuning runs: resumed, interrupted, shared out and diverging ones end as they should, and so do the commands."""

import dataclasses
import json
import multiprocessing
import os
import shutil
import signal
import time

import pytest
import torch
from torch.nn.utils import parameters_to_vector

from rclip_metric import RobustPerceptualDistance
from rclip_metric.errors import StorageError
from rclip_metric.train.commands.train.main import main
from rclip_metric.train.data.scenes.formats import write_pairs
from rclip_metric.train.finetuning.adversarial import FinetuneConfig, NonFiniteLoss, RunConfig, finetune
from rclip_metric.train.models.clip import TINY_PREPROCESSING
from rclip_metric.train.models.text_weights import load_text
from rclip_metric.train.runs.checkpoint import latest_state
from rclip_metric.train.runs.config import configured, read_recipe, recipe_names
from rclip_metric.train.runs.machine import device_record
from rclip_metric.weights import load_encoder, save_encoder

from support.encoders import small_encoder
from support.forked import ranks
from support.programs import PATIENCE
from support.scenes import small_scenes

CONFIG = FinetuneConfig(steps=5, warmup_steps=2, batch_size=10, inner_steps=2, learning_rate=1e-3)
RUN = RunConfig(precision="float32", save_every=2, log_every=2)
# How far two orders of adding the same numbers may carry a run apart, by the precision that it is computed in: of what
# is logged, and of the way that the weights went. Bfloat16 keeps 8 bits, so a part's gradient is right to 0.4 %.
APART = {"float32": (1e-3, 1e-3), "bfloat16": (3e-2, 0.1)}


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    return small_scenes(tmp_path_factory.mktemp("scenes"), (1, 12, 1), images=24)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pairs") / "pairs"
    write_pairs(folder, per_class=1, quiet=True)
    return folder


def lines_of(run):
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def same(one, other):
    return all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def assert_the_same_run(one, other, precision, base):
    """Two runs from ``base``, each its log's lines and its encoder, are equal but for rounding.

    Adam turns the rounding of a gradient near zero into a whole step of that weight, so weights are not compared one by
    one: the difference of all of them is, with the way that they went together.
    """
    of_logs, of_weights = APART[precision]
    (lines, encoder), (other_lines, other_encoder) = one, other
    for name in ("step", "loss", "adversarial_cosine", "clean_cosine", "gradient_norm"):
        assert [line[name] for line in other_lines] == pytest.approx([line[name] for line in lines], rel=of_logs), name
    start, first, second = (parameters_to_vector(e.parameters()) for e in (base, encoder, other_encoder))
    assert (second - first).norm() <= of_weights * (first - start).norm()


def crash_at(step, monkeypatch):
    """Lose the machine right after the state of ``step`` is on disk."""
    import rclip_metric.train.finetuning.adversarial.loop as module

    class LostMachine(Exception):
        pass

    saved = module.save_state

    def save_and_crash(out, done, *args, **more):
        saved(out, done, *args, **more)
        if done == step:
            raise LostMachine

    monkeypatch.setattr(module, "save_state", save_and_crash)
    return LostMachine


@pytest.mark.parametrize("precision", APART)
@pytest.mark.parametrize("loss", ["fare", "lore"])
def test_a_resumed_run_is_the_uninterrupted_one_and_spares_the_original(scenes, tmp_path, loss, precision, monkeypatch):
    """24 images at 10 a step: the third step of an epoch has the 4 that are left."""
    original, config = small_encoder(), dataclasses.replace(CONFIG, loss=loss, dual_every=3)
    images, run = scenes / "images", dataclasses.replace(RUN, precision=precision)
    whole = finetune(original, images, tmp_path / "whole", config, run, quiet=True)
    with monkeypatch.context() as patch, pytest.raises(crash_at(2, patch)):
        finetune(original, images, tmp_path / "cut", config, run, quiet=True)
    again = finetune(original, images, tmp_path / "cut", config, run, quiet=True)
    assert same(whole, again) and same(original, small_encoder()) and not same(whole, original)
    times = ("seconds", "images_per_second")
    logs = [
        [{k: v for k, v in line.items() if k not in times} for line in lines_of(tmp_path / run)]
        for run in ("whole", "cut")
    ]
    assert logs[0] == logs[1] and [line["step"] for line in logs[0]] == [2, 4, 5]
    assert {"loss", "adversarial_cosine", "clean_cosine", "gradient_norm", "learning_rate"} <= logs[0][-1].keys()
    assert [path.name for path in (tmp_path / "whole").glob("state-*")] == [
        f"state-{step:08d}.safetensors" for step in (4, 5)
    ] or len(list((tmp_path / "whole").glob("state-*"))) == 2
    with pytest.raises(ValueError, match="learning_rate"):
        finetune(original, images, tmp_path / "cut", dataclasses.replace(config, learning_rate=1.0), run, quiet=True)


def test_the_result_loads_by_path_and_says_how_it_was_made(scenes, tmp_path):
    trained = finetune(small_encoder(), scenes / "images", tmp_path / "run", CONFIG, RUN, name="mine", quiet=True)
    metric = RobustPerceptualDistance(tmp_path / "run")
    assert metric.encoder.preprocessing == TINY_PREPROCESSING and metric.encoder.name == "mine"
    images = torch.rand(2, 3, 64, 64)
    torch.testing.assert_close(metric.encoder(images), trained(images), rtol=1e-5, atol=1e-5)
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["method"] == "FARE" and record["base"]["name"] == "small" and record["data"]["images"] == 24
    assert configured(FinetuneConfig, None, record["recipe"]) == CONFIG
    assert record["versions"]["torch"] == torch.__version__.split("+")[0]
    assert record["device"] == device_record(torch.device("cpu"))
    saved = json.loads((tmp_path / "run" / "config.json").read_text())
    assert saved["training"] == {"method": "FARE", "norm": "linf", "eps": "4/255", "data": "images", "base": "small"}


def test_a_run_trains_an_earlier_one_on_and_still_imitates_the_base(scenes, tmp_path):
    """With steps of no length and no attack the weights stay, and the log has their cosines with the base."""
    original = small_encoder()
    earlier = finetune(original, scenes / "images", tmp_path / "earlier", CONFIG, RUN, quiet=True)
    still = dataclasses.replace(
        CONFIG, steps=1, warmup_steps=0, learning_rate=1e-12, weight_decay=0.0, eps=0.0, inner_steps=0, batch_size=24
    )
    later = finetune(
        original, scenes / "images", tmp_path / "later", still, RUN, start_from=load_encoder(tmp_path / "earlier"),
        quiet=True,
    )  # fmt: skip
    for one, other in zip(earlier.parameters(), later.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6)
    images = torch.stack([original.preprocess(path) for path in sorted((scenes / "images").rglob("*.png"))])
    with torch.no_grad():
        expected = torch.cosine_similarity(earlier(images), original(images)).mean()
    assert lines_of(tmp_path / "later")[-1]["adversarial_cosine"] == pytest.approx(float(expected), abs=1e-4)
    assert expected < 0.999  # the base itself would have 1
    record = json.loads((tmp_path / "later" / "run.json").read_text())
    assert record["start_from"] == {"name": "earlier", "revision": earlier.revision}
    assert record["base"]["name"] == "small"
    with pytest.raises(ValueError, match="other weights"):  # without start_from it is another run
        finetune(original, scenes / "images", tmp_path / "later", still, RUN, quiet=True)
    with pytest.raises(ValueError, match="tiny cannot start the run"):
        finetune(
            original, scenes / "images", tmp_path / "none", still, RUN, start_from=load_encoder("tiny"), quiet=True
        )


def test_tecoa_learns_its_classes(pairs, tmp_path):
    """On the clean images (eps 0) four epochs lower the cross-entropy over the 80 prompts of the shipped text tower."""
    config = dataclasses.replace(
        CONFIG, loss="tecoa", prompts="scenes-pairs", eps=0.0, inner_steps=0, steps=8, batch_size=40, warmup_steps=0
    )
    base, text = load_encoder("tiny-clean"), load_text("tiny-clean")
    finetune(base, pairs, tmp_path / "run", config, dataclasses.replace(RUN, log_every=1), text=text, quiet=True)
    losses = [line["loss"] for line in lines_of(tmp_path / "run")]
    assert sum(losses[-2:]) < 0.7 * sum(losses[:2])
    assert json.loads((tmp_path / "run" / "run.json").read_text())["data"]["classes"] == 80
    with pytest.raises(ValueError, match="needs the text tower"):
        finetune(base, pairs, tmp_path / "none", config, RUN, quiet=True)
    with pytest.raises(ValueError, match="needs class prompts"):
        finetune(base, pairs, tmp_path / "none", dataclasses.replace(config, prompts=""), RUN, text=text, quiet=True)


def test_validation_on_held_out_images_and_triplets(scenes, tmp_path):
    run = dataclasses.replace(RUN, validate_every=3, validation_images=5, validation_triplets=6)
    finetune(
        small_encoder(), scenes / "images", tmp_path / "run", CONFIG, run,
        validation=scenes / "classes", nights=scenes / "nights", quiet=True,
    )  # fmt: skip
    found = {line["step"]: line["validation"] for line in lines_of(tmp_path / "run") if "validation" in line}
    assert found.keys() == {3, 5}
    for values in found.values():
        assert values["adversarial_cosine"] < values["clean_cosine"] <= 1
        assert 0 <= values["two_afc_robust"] <= values["two_afc_clean"] <= 100


def test_a_diverging_run_stops_with_the_batch_keeps_its_last_state_and_ends_its_workers(scenes, tmp_path):
    original = small_encoder()
    out = tmp_path / "run"
    with pytest.raises(NonFiniteLoss, match=r"at step \d.*failed-step-\d+\.safetensors"):
        finetune(
            original, scenes / "images", out, dataclasses.replace(CONFIG, learning_rate=1e30, warmup_steps=0),
            dataclasses.replace(RUN, save_every=1, workers=2), quiet=True,
        )  # fmt: skip
    assert not multiprocessing.active_children()  # although they leave SIGTERM to their parent
    from safetensors.torch import load_file

    (kept,) = out.glob("failed-step-*.safetensors")
    tensors = load_file(kept)
    assert tensors["images"].shape[1:] == tensors["attacked"].shape[1:] == (3, 64, 64)
    state = latest_state(out)
    assert state is not None and all(torch.isfinite(v).all() for v in state.parts["model"].values())
    assert not (out / "model.safetensors").exists()


def test_an_unreadable_image_is_left_out_counted_and_named(scenes, tmp_path):
    images = tmp_path / "images"
    shutil.copytree(scenes / "images", images)
    broken = next(images.rglob("*.png"))
    broken.write_bytes(broken.read_bytes()[:200])
    finetune(small_encoder(), images, tmp_path / "run", CONFIG, RUN, quiet=True)
    assert {name for line in lines_of(tmp_path / "run") for name in line.get("unreadable", [])} == {str(broken)}
    assert json.loads((tmp_path / "run" / "run.json").read_text())["data"]["unreadable"] >= 1


def test_a_folder_that_cannot_be_written_is_one_sentence(scenes, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError):
        finetune(small_encoder(), scenes / "images", tmp_path / "file" / "run", CONFIG, RUN, quiet=True)


def test_sigterm_saves_and_the_same_command_goes_on(scenes, tmp_path, forks):
    save_encoder(small_encoder(), tmp_path / "base")
    command = [
        "train", "fare", "--base", tmp_path / "base", "--images", scenes / "images", "--steps", "30", "--batch-size",
        "10", "--inner-steps", "2", "--learning-rate", "1e-3", "--log-every", "1", "--device", "cpu", "--precision",
        "float32",
    ]  # fmt: skip
    stopped = tmp_path / "stopped"
    [process] = forks.start([*command, "--out", stopped])
    deadline = time.monotonic() + PATIENCE
    while not (stopped / "log.jsonl").exists() or len((stopped / "log.jsonl").read_text().splitlines()) < 3:
        assert time.monotonic() < deadline and "Traceback" not in forks.errors, forks.errors
        time.sleep(0.02)
    os.kill(process, signal.SIGTERM)
    assert forks.wait() == [143]
    assert "the same command goes on from it" in forks.errors and "Traceback" not in forks.errors
    state = latest_state(stopped)
    assert state is not None and 3 <= state.step < 30 and not (stopped / "model.safetensors").exists()
    for out in (stopped, tmp_path / "whole"):
        assert forks.run([*command, "--out", out]) == 0, forks.errors
    assert same(load_encoder(stopped), load_encoder(tmp_path / "whole"))


@pytest.mark.parametrize("precision", APART)
def test_two_processes_compute_what_one_does(scenes, tmp_path, precision, forks):
    """The loss curve of two gloo processes is that of one, for LORE, which is FARE and shares its multipliers too.

    An epoch's steps have 10, 10 and 4 images.
    """
    save_encoder(small_encoder(), tmp_path / "base")
    options = [
        "--base", f"{tmp_path / 'base'}", "--images", f"{scenes / 'images'}", "--loss", "lore", "--steps", "4",
        "--batch-size", "10", "--inner-steps", "2", "--learning-rate", "1e-3", "--warmup-steps", "1",
        "--log-every", "1", "--device", "cpu", "--chunk-size", "3", "--clip-gradient", "100", "--precision", precision,
    ]  # fmt: skip
    assert forks.run(["train", "fare", *options, "--out", tmp_path / "one"]) == 0, forks.errors
    forks.start(["train", "fare", *options, "--out", tmp_path / "two"], environments=ranks(2))
    assert forks.wait() == [0, 0], forks.errors[-2000:]
    one, two = ((lines_of(tmp_path / run), load_encoder(tmp_path / run)) for run in ("one", "two"))
    assert [line["step"] for line in one[0]] == list(range(1, 5))
    assert_the_same_run(one, two, precision, small_encoder())
    assert json.loads((tmp_path / "two" / "run.json").read_text())["run"]["processes"] == 2


def test_every_recipe_is_a_config_and_names_its_base():
    from rclip_metric.train.metrics.registry import is_baseline
    from rclip_metric.weights import model_names

    for name in recipe_names():
        recipe = read_recipe(name)
        assert recipe.row and recipe.source
        if recipe.command == "lpips":  # it has a trunk in its settings
            continue
        assert recipe.base
        assert recipe.base in model_names() or recipe.base.startswith("open_clip:") or is_baseline(recipe.base)
        if recipe.command in ("fare", "tecoa"):
            config = configured(FinetuneConfig, None, recipe.settings)
            assert (config.loss == recipe.command and config.augmentation is None) or name == "r-lite-f"
            if name == "r-lite-f":  # ours, for an hour on two cores
                continue
            assert config.inner_steps == 10 and config.inner_momentum_factor == 0.9
            if not name.startswith("tiny"):
                eps = 2 / 255 if "2-vit" in name else 4 / 255
                published = FinetuneConfig(loss=config.loss, prompts=config.prompts, eps=eps)
                if recipe.base != "clip-convnext-b":  # a ViT has no blocks to leave out
                    published = dataclasses.replace(published, drop_path=0.0)
                assert config == published  # the defaults are the paper's


def test_the_defaults_are_the_published_loop_and_our_own_recipes_say_what_they_were_trained_with():
    looked_at = ("inner_momentum", "inner_start", "full_first_step", "drop_path")
    assert [getattr(FinetuneConfig(), name) for name in looked_at] == ["published", "ball", True, 0.1]
    for name in ("tiny", "tiny-tecoa", "r-lite-f"):
        settings = read_recipe(name).settings
        assert [settings[name] for name in looked_at] == ["accumulated", "box", False, 0.0]
    assert read_recipe("r-lite-f").settings["inner_momentum_factor"] == 0.0


def test_settings_come_from_recipe_file_and_options_in_this_order(scenes, tmp_path, capsys):
    save_encoder(small_encoder(), tmp_path / "base")
    (tmp_path / "mine.json").write_text(json.dumps({"steps": 3, "batch_size": 7, "eps": "2/255", "log_every": 1}))
    command = ["train", "fare", "--base", f"{tmp_path / 'base'}", "--images", f"{scenes / 'images'}", "--quiet"]
    out = ["--out", f"{tmp_path / 'run'}"]
    given = ["--recipe", "tiny", "--config", f"{tmp_path / 'mine.json'}", "--batch-size", "8", "--inner-steps", "1"]
    assert main([*command, *out, *given]) == 0
    assert "RobustPerceptualDistance" in capsys.readouterr().out
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    recipe = record["recipe"]
    assert recipe["learning_rate"] == 5e-4 and recipe["steps"] == 3 and recipe["eps"] == 2 / 255
    assert recipe["batch_size"] == 8 and recipe["inner_steps"] == 1 and record["run"]["log_every"] == 1


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (["--recipe", "r-clip-g"], "did you mean r-clip-f"),
        (["--recipe", "r-clip-t"], "is for `train tecoa`"),
        (["--config", "missing.json"], "cannot be read"),
        (["--batch-size", "1000"], "there are 24 images"),
        (["--device", "cuda:77"], "GPUs"),
        (["--base", "tiny-cleen"], "tiny-clean"),
        (["--images", "nowhere"], "nowhere"),
        (["--learning-rate", "0"], "must be positive"),
    ],
)
def test_bad_input_is_one_sentence(scenes, tmp_path, capsys, more, told):
    from rclip_metric.cli.main import main as whole

    command = [
        "train",
        "fare",
        "--base",
        "tiny-clean",
        "--images",
        f"{scenes / 'images'}",
        "--out",
        f"{tmp_path / 'r'}",
    ]
    assert whole([*command, *more]) != 0
    captured = capsys.readouterr()
    assert told in captured.err and captured.err.count("\n") == 1 and "Traceback" not in captured.err


def test_a_setting_that_does_not_exist_is_named(tmp_path):
    (tmp_path / "mine.json").write_text('{"epss": 1}')
    with pytest.raises(ValueError, match="did you mean 'eps'"):
        configured(FinetuneConfig, None, {"epss": 1})
    with pytest.raises(ValueError, match=r"batch_size must be like 128"):
        configured(FinetuneConfig, None, {"batch_size": "many"})
    with pytest.raises(ValueError, match="one of pgd, apgd"):
        configured(FinetuneConfig, None, {"attack": "fgsm"})


@pytest.mark.parametrize("command", ["fare", "tecoa"])
def test_the_help_explains_every_setting(command, capsys):
    with pytest.raises(SystemExit):
        main(["train", command, "--help"])
    text = capsys.readouterr().out
    fields = [*dataclasses.fields(FinetuneConfig), *dataclasses.fields(RunConfig)]
    only = {"fare": ("scale", "prompts"), "tecoa": ("loss", "mixup", "rho", "dual_learning_rate", "dual_every")}[
        command
    ]
    for field in fields:
        assert (f"--{field.name.replace('_', '-')}" in text) == (field.name not in only), field.name
    assert "4/255" in text and "0.0156" not in text and "torchrun" in text


@pytest.mark.parametrize("precision", APART)
def test_checkpointing_parts_and_tensorboard_change_nothing_but_memory(scenes, tmp_path, precision):
    run = dataclasses.replace(RUN, precision=precision)
    plain = finetune(small_encoder(), scenes / "images", tmp_path / "plain", CONFIG, run, quiet=True)
    run = dataclasses.replace(run, checkpointing=True, chunk_size=3, tensorboard=True, keep=1)
    frugal = finetune(small_encoder(), scenes / "images", tmp_path / "frugal", CONFIG, run, quiet=True)
    runs = ((lines_of(tmp_path / name), made) for name, made in (("plain", plain), ("frugal", frugal)))
    assert_the_same_run(*runs, precision, small_encoder())
    assert list((tmp_path / "frugal" / "tensorboard").glob("events.*"))
    assert len(list((tmp_path / "frugal").glob("state-*"))) == 1
    assert not frugal.checkpointing
