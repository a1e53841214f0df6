"""CLIP on scenes: the loss is the equation, a resumed run is the uninterrupted one; and the commands work together."""

import dataclasses
import json

import pytest
import torch

from rclip_metric.train.commands.evaluate.main import main as evaluate
from rclip_metric.train.commands.train.main import main
from rclip_metric.train.data.images import StepSampler
from rclip_metric.train.evaluation.results.outcome import unpack
from rclip_metric.train.evaluation.results.record import load_results
from rclip_metric.train.finetuning.clip import contrastive_loss, train_clip
from rclip_metric.train.models.clip import ClipConfig, build_clip
from rclip_metric.train.models.tokenizer import WordTokenizer
from rclip_metric.train.runs.schedule import cosine_schedule
from rclip_metric.train.runs.seeds import seeded

from support.encoders import CONVNEXT, same_weights
from support.scenes import small_scenes

CLIP = ClipConfig(steps=4, warmup_steps=2, batch_size=8, save_every=2, text_width=32, text_layers=1)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    return small_scenes(tmp_path_factory.mktemp("scenes"), (1, 1, 12), images=24)


def test_contrastive_loss_is_openclips():
    from open_clip.loss import ClipLoss

    image, text = (torch.nn.functional.normalize(torch.randn(5, 7, generator=seeded(i)), dim=1) for i in (1, 2))
    ours = contrastive_loss(image, text, torch.tensor(9.0))
    torch.testing.assert_close(ours, ClipLoss()(image, text, torch.tensor(9.0)))


def test_the_text_tower_reads_up_to_the_end_token():
    model = build_clip(CLIP).eval()
    rows = WordTokenizer()(["large red plain circle centre middle", "large red plain circle centre left"])
    embedding = model.encode_text(rows)
    assert not torch.allclose(embedding[0], embedding[1])
    padded = rows.clone()
    padded[:, 30:] = 3  # after the end: the causal text tower must not see it
    torch.testing.assert_close(model.encode_text(padded), embedding)
    with pytest.raises(ValueError, match="'zebra'"):
        WordTokenizer()(["a zebra"])


def test_schedule_rises_and_falls_as_a_half_cosine():
    late = cosine_schedule(100, 10, full_first_step=True)
    # The published loop asks its schedule for step n + 1 after step n: step 0 runs at the optimiser's own rate.
    assert [late(step) for step in range(4)] == pytest.approx([1.0, 0.2, 0.3, 0.4])
    factor = cosine_schedule(100, 10)
    assert [late(step) for step in range(1, 100)] == [factor(step) for step in range(1, 100)]
    assert factor(0) == pytest.approx(0.1) and factor(9) == 1.0
    assert factor(55) == pytest.approx(0.5) and factor(99) < 0.001


def test_batches_depend_on_seed_and_step_alone():
    whole = list(StepSampler(20, 6, seed=1, start=0, stop=9))
    assert list(StepSampler(20, 6, seed=1, start=4, stop=9)) == whole[4:]
    assert list(StepSampler(20, 6, seed=2, start=0, stop=9)) != whole
    assert len({index for batch in whole[:3] for index in batch}) == 18  # no image twice within an epoch
    with pytest.raises(ValueError, match="there are 3 images"):
        StepSampler(3, 4, seed=0, start=0, stop=1)


def test_a_resumed_clip_run_is_the_uninterrupted_one(scenes, tmp_path):
    whole = train_clip(scenes, tmp_path / "whole", CLIP, architecture=CONVNEXT, quiet=True)
    stop_after(tmp_path / "cut", 2, lambda out: train_clip(scenes, out, CLIP, architecture=CONVNEXT, quiet=True))
    again = train_clip(scenes, tmp_path / "cut", CLIP, architecture=CONVNEXT, quiet=True)
    assert same_weights(whole, again)
    with pytest.raises(ValueError, match="learning_rate"):
        train_clip(
            scenes,
            tmp_path / "cut",
            dataclasses.replace(CLIP, learning_rate=1.0),
            architecture=CONVNEXT,
            quiet=True,
        )


def stop_after(out, step, run):
    """Run until the checkpoint of ``step`` is on disk, then crash, as a lost machine would."""

    class LostMachine(Exception):
        pass

    import rclip_metric.train.finetuning.clip as clip

    saved = clip.write_state

    def save_and_crash(path, done, config, **state):
        saved(path, done, config, **state)
        if done == step:
            raise LostMachine

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(clip, "write_state", save_and_crash)
        with pytest.raises(LostMachine):
            run(out)


def test_the_commands_from_nothing_to_a_table(tmp_path, capsys):
    data, runs = tmp_path / "data", tmp_path / "runs"
    counts = ["--images", "16", "--triplets", "1,1,6", "--pool", "1", "--queries", "1", "--quiet"]
    assert main(["train", "scenes", "--out", f"{data}", *counts]) == 0
    small = ["--steps", "2", "--batch-size", "8", "--warmup-steps", "1", "--quiet"]
    assert main(["train", "clip", "--scenes", f"{data}", "--out", f"{runs / 'clean'}", *small]) == 0
    fare = [
        "train",
        "fare",
        "--base",
        f"{runs / 'clean'}",
        "--images",
        f"{data / 'images'}",
        "--recipe",
        "tiny",
    ]
    assert main([*fare, "--out", f"{runs / 'robust'}", "--eps", "2/255", "--inner-steps", "1", *small]) == 0
    settings = json.loads((runs / "robust" / "run.json").read_text())
    assert settings["device"] == json.loads((runs / "clean" / "run.json").read_text())["device"]
    recipe = settings["recipe"]
    assert recipe["eps"] == 2 / 255 and recipe["steps"] == 2 and recipe["learning_rate"] == 5e-4
    packed = tmp_path / "packed.safetensors"
    assert main(["train", "pack", f"{runs / 'robust'}", "--out", f"{packed}"]) == 0
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["packed.safetensors"]
    assert packed.stat().st_size < 5e6
    capsys.readouterr()
    out = tmp_path / "results"
    judge = [
        "eval",
        "nights",
        "--data",
        f"{data / 'nights'}",
        "--model",
        f"{packed}",
        "--steps",
        "2",
        "--quiet",
    ]
    assert evaluate([*judge, "--norm", "linf", "l2", "--eps", "4/255", "0.857", "--out", f"{out}"]) == 0
    printed = capsys.readouterr().out
    assert "| linf 4/255 | l2 0.857 |" in printed and "| robust @ tensors:" in printed
    records = load_results([out])
    assert len(records) == 2 and all(len(unpack(record)) == 6 for record in records)
    assert all(record["data"]["name"] == "scenes" and record["largest_violation"] < 1e-6 for record in records)
    assert evaluate([*judge, "--norm", "linf", "l2", "--eps", "4/255"]) == 2
    assert "one --eps value per --norm value" in capsys.readouterr().err
    assert evaluate([*judge[:3], f"{tmp_path}", *judge[4:]]) == 2
    assert "no data.csv" in capsys.readouterr().err
