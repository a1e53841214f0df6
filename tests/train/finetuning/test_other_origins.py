"""A run goes on only on the base, the weights and the images that it was begun with."""

import dataclasses
import json
import os
from pathlib import Path

import pytest
import torch
from PIL import Image, ImageOps
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from rclip_metric import Encoder
from rclip_metric.train.finetuning.adversarial import FinetuneConfig, RunConfig, finetune
from rclip_metric.train.finetuning.clip import train_clip
from rclip_metric.train.finetuning.nights import NightsConfig, tune_nights
from rclip_metric.train.models.clip import ClipConfig
from rclip_metric.train.runs.files import states

from support.encoders import small_encoder
from support.scenes import small_scenes

CONFIG = FinetuneConfig(steps=1, warmup_steps=0, batch_size=4, inner_steps=1, learning_rate=1e-3)
RUN = RunConfig(precision="float32", save_every=1)


@pytest.fixture
def scenes(tmp_path: Path) -> Path:
    return small_scenes(tmp_path / "scenes", (4, 2, 1), images=4)


def changed(encoder: Encoder) -> Encoder:
    """Other weights, under the same name and revision."""
    with torch.no_grad():
        next(encoder.parameters()).mul_(1.5)
    return encoder


def replaced(folder: Path) -> None:
    """Other pixels in every image, in files of the same names and times."""
    for path in folder.rglob("*.png"):
        times = path.stat()
        with Image.open(path) as image:
            ImageOps.invert(image.convert("RGB")).save(path)
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def test_fine_tuning_is_not_resumed_on_another_base(scenes, tmp_path):
    out = tmp_path / "run"
    finetune(small_encoder(), scenes / "images", out, CONFIG, RUN, quiet=True)
    finetune(small_encoder(), scenes / "images", out, CONFIG, RUN, quiet=True)
    with pytest.raises(ValueError, match=r"was begun with another base \(tensors:\w+, now tensors:\w+\): choose"):
        finetune(changed(small_encoder()), scenes / "images", out, CONFIG, RUN, quiet=True)
    with pytest.raises(ValueError, match="was begun with other weights"):
        start = changed(small_encoder())
        finetune(small_encoder(), scenes / "images", out, CONFIG, RUN, start_from=start, quiet=True)


def test_fine_tuning_is_not_resumed_on_replaced_images(scenes, tmp_path):
    out = tmp_path / "run"
    finetune(small_encoder(), scenes / "images", out, CONFIG, RUN, quiet=True)
    contents = json.loads((out / "run.json").read_text())["data"]["contents"]
    replaced(scenes / "images")
    with pytest.raises(ValueError, match=f"was begun on other data .*{contents}.*choose another output folder"):
        finetune(small_encoder(), scenes / "images", out, CONFIG, RUN, quiet=True)


def test_a_state_that_says_less_is_continued(scenes, tmp_path):
    """As those of earlier versions do."""
    out, config = tmp_path / "run", dataclasses.replace(CONFIG, steps=2)
    finetune(small_encoder(), scenes / "images", out, config, RUN, quiet=True)
    newest = states(out)[-1]
    newest.unlink()
    path = states(out)[-1]
    with safe_open(path, framework="pt") as handle:
        metadata = handle.metadata()
    facts = json.loads(metadata["facts"])
    del facts["base"], facts["text"], facts["data"]["contents"], metadata["crc32_of_the_rest"]
    save_file(load_file(path), path, {**metadata, "facts": json.dumps(facts)})
    finetune(small_encoder(), scenes / "images", out, config, RUN, quiet=True)
    assert states(out)[-1] == newest


def test_tuning_on_triplets_is_not_resumed_on_replaced_images(scenes, tmp_path):
    recipe = NightsConfig(head="mlp", hidden=4, epochs=1)

    def tune() -> None:
        tune_nights(small_encoder(), scenes / "nights", tmp_path / "tuned", recipe, name="tuned", quiet=True)

    tune()
    tune()
    replaced(scenes / "nights")
    with pytest.raises(ValueError, match=r"was written with another setting of images"):
        tune()


def test_a_clip_is_not_resumed_on_replaced_images(scenes, tmp_path):
    config = ClipConfig(steps=1, warmup_steps=0, batch_size=2)
    train_clip(scenes, tmp_path / "clip", config, quiet=True)
    train_clip(scenes, tmp_path / "clip", config, quiet=True)
    replaced(scenes / "images")
    with pytest.raises(ValueError, match="was begun on other images or captions: choose another output folder"):
        train_clip(scenes, tmp_path / "clip", config, quiet=True)
