"""The text tower: OpenCLIP's numbers from its own checkpoints, or one sentence why not."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from open_clip.model import CLIP, CustomTextCLIP
from open_clip.zero_shot_classifier import build_zero_shot_classifier
from safetensors import safe_open
from safetensors.torch import save, save_file
from torch import Tensor

from rclip_metric import RobustPerceptualDistance
from rclip_metric.encoder import Encoder
from rclip_metric.errors import CheckpointError
from rclip_metric.train.data.scenes.draw import SHAPES, caption, generator, render, sample_scene
from rclip_metric.train.models.clip import ClipConfig, build_clip
from rclip_metric.train.models.text import TextModel, build_text, class_embeddings
from rclip_metric.train.models.text_weights import export_text, load_text
from rclip_metric.train.models.tokenizer import WordTokenizer
from rclip_metric.train.runs.checkpoint import write_state
from rclip_metric.train.runs.files import provenance
from rclip_metric.train.runs.seeds import seeded
from rclip_metric.weights import save_encoder

from support.encoders import CONVNEXT, randomised, small_encoder

VISION = {"image_size": 32, "layers": 1, "width": 64, "patch_size": 32}
TEXT = {"context_length": 12, "vocab_size": 50, "width": 128, "heads": 2, "layers": 2}
WORDS = {**TEXT, "context_length": 77, "vocab_size": 49408, "width": 64, "heads": 1}


def clip(kind: Any = CLIP, text: Any = TEXT, embed_dim: int = 24, **settings: Any) -> Any:
    with torch.random.fork_rng():
        return randomised(kind(embed_dim=embed_dim, vision_cfg=VISION, text_cfg=text, **settings))


def tokens() -> Tensor:
    """Rows of 3 to 12 tokens, the last of which is the end (49), then zeros."""
    rows = torch.randint(1, 49, (6, 12), generator=seeded(1))
    for row, length in zip(rows, (3, 12, 5, 7, 4, 11), strict=True):
        row[length - 1] = 49
        row[length:] = 0
    return rows


@pytest.mark.parametrize("quick_gelu", [False, True])
@pytest.mark.parametrize("kind", [CLIP, CustomTextCLIP])
def test_the_tower_gives_open_clips_embeddings(kind: Any, quick_gelu: bool) -> None:
    model = clip(kind, quick_gelu=quick_gelu)
    tower = build_text(model.state_dict(), quick_gelu=quick_gelu)
    with torch.no_grad():
        expected = model.encode_text(tokens())
        torch.testing.assert_close(tower(tokens()), expected, rtol=0, atol=1e-6 * expected.abs().max().item())
        short = tokens()[[0, 2, 4]]  # worked through at five columns
        torch.testing.assert_close(tower(short), model.encode_text(short), rtol=0, atol=1e-5)
        other = build_text(model.state_dict(), quick_gelu=not quick_gelu)
        assert (other(tokens()) - expected).abs().max() > 1e-3
    assert tower.logit_scale.item() == model.logit_scale.item()
    assert not any(parameter.requires_grad for parameter in tower.parameters())


def test_what_the_shapes_tell_and_what_they_do_not() -> None:
    model = clip()
    config = build_text(model.state_dict()).config
    assert (config.context, config.vocabulary, config.width, config.layers) == (12, 50, 128, 2)
    assert (config.heads, config.embedding_dim) == (2, 24)
    one = build_text(model.state_dict(), heads=1)
    with torch.no_grad():
        assert (one(tokens()) - model.encode_text(tokens())).abs().max() > 1e-3
    narrow = clip(text={**TEXT, "width": 32, "heads": 1}).state_dict()
    with pytest.raises(CheckpointError, match=r"is 32 wide, which is no multiple of 64"):
        build_text(narrow)
    assert build_text(narrow, heads=1).config.width == 32


def test_half_precision_and_the_forms_of_the_logit_scale() -> None:
    state = clip(nonscalar_logit_scale=True).half().state_dict()
    tower = build_text(state)
    assert {parameter.dtype for parameter in tower.parameters()} == {torch.float32}
    assert tower.logit_scale.shape == () and tower.logit_scale.item() == state["logit_scale"].item()
    del state["logit_scale"]
    assert TextModel(build_text(state), WordTokenizer(), "x").scale == pytest.approx(100)


@pytest.mark.parametrize("kind", [CLIP, CustomTextCLIP])
def test_a_checkpoint_that_does_not_fit_is_refused_by_name(kind: Any) -> None:
    state = clip(kind).state_dict()
    own = "" if kind is CLIP else "text."
    gone = {key: value for key, value in state.items() if key != f"{own}transformer.resblocks.0.ln_1.bias"}
    with pytest.raises(CheckpointError, match=r"missing text\.transformer\.resblocks\.0\.ln_1\.bias\.$"):
        build_text(gone)
    with pytest.raises(CheckpointError, match=r"unexpected text\.transformer\.resblocks\.1\.ls_1\.gamma\.$"):
        build_text({**state, f"{own}transformer.resblocks.1.ls_1.gamma": torch.ones(128)})
    with pytest.raises(CheckpointError, match=r"ln_final\.weight is \(7,\), expected \(128,\)"):
        build_text({**state, f"{own}ln_final.weight": torch.ones(7)})
    with pytest.raises(CheckpointError, match=r"text tower: missing text\.token_embedding\.weight, "):
        build_text({key: value for key, value in state.items() if key.startswith("visual.")})


def test_class_embeddings_are_open_clips_zero_shot_weights() -> None:
    model = clip(text=WORDS)
    tokenizer = open_clip.tokenizer.SimpleTokenizer()
    names, templates = ["tench", "goldfish", "great white shark"], ["a photo of a {}.", "art of the {}."]
    expected = build_zero_shot_classifier(model, tokenizer, names, templates).T
    text = TextModel(build_text(model.state_dict()), tokenizer, "random")
    for batch_size in (1, 4, 512):
        found = class_embeddings(text, names, templates, batch_size=batch_size, quiet=True)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    assert found.norm(dim=1).tolist() == pytest.approx([1, 1, 1])


def test_a_published_model_gives_its_text_tower_from_the_encoders_file(hub: Any, tmp_path: Path) -> None:
    model = clip(text=WORDS)
    content = save({key: value.contiguous() for key, value in model.state_dict().items()})
    hub.commit("chs20/FARE4-ViT-B-32-laion2B-s34B-b79K", {"open_clip_model.safetensors": content})
    text = load_text("r-clip-f-vit-b-32", cache_dir=tmp_path)
    assert text.source == f"r-clip-f-vit-b-32 @ {hub.repos['chs20/FARE4-ViT-B-32-laion2B-s34B-b79K'].head}"
    texts = ["a photo of a cat", "This is a photo of a great white shark, seen from below"]
    with torch.no_grad():
        expected = model.encode_text(open_clip.tokenize(texts), normalize=True)
    torch.testing.assert_close(text.embed(texts), expected, rtol=0, atol=1e-6)
    hub.requests.clear()
    load_text("r-clip-f-vit-b-32", cache_dir=tmp_path)
    assert not hub.requests


def test_a_pickle_is_read_and_openai_models_have_their_own_activation(tmp_path: Path) -> None:
    model = clip(text=WORDS, quick_gelu=True)
    torch.save(model.state_dict(), tmp_path / "open_clip_pytorch_model.bin")
    texts = ["a photo of a cat"]
    with torch.no_grad():
        expected = model.encode_text(open_clip.tokenize(texts), normalize=True)
    path = tmp_path / "open_clip_pytorch_model.bin"
    assert (load_text(path, base="clip-vit-l-14").embed(texts) - expected).abs().max() < 1e-6
    assert (load_text(path, base="clip-vit-b-16").embed(texts) - expected).abs().max() > 1e-3
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="is not a readable file of tensors"):
        load_text(path, base="clip-vit-l-14")


def test_another_vocabulary_has_no_tokenizer(tmp_path: Path) -> None:
    save_file(clip().state_dict(), tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="a vocabulary of 50 tokens, and CLIP's tokenizer one of 49408"):
        load_text(tmp_path / "model.safetensors", base="clip-vit-b-16")


@pytest.mark.parametrize("name", ["dino-vit-b-16", "r-clip-f-vit-b-16+lora", "r-clip-f+mlp"])
def test_an_encoder_without_a_text_tower_says_so(name: str) -> None:
    with pytest.raises(
        CheckpointError, match=rf"^{name.replace('+', '.')} has no text tower: .* needs one of these\.$"
    ):
        load_text(name)


def encoder(projection: int = 128) -> Encoder:
    return small_encoder(replace(CONVNEXT, projection=projection), name="mine")


def test_a_fine_tuned_clip_has_the_text_tower_of_its_base(tmp_path: Path) -> None:
    folder = save_encoder(encoder(), tmp_path / "fare", training=provenance("FARE", "x", base="tiny-clean"))
    inherited = load_text(folder)
    assert inherited.source == "tiny-clean (tiny-text.safetensors), the base of mine"
    texts = ["large red plain circle"]
    assert torch.equal(inherited.embed(texts), load_text("tiny-clean").embed(texts))
    assert load_text("tiny").source == "tiny-clean (tiny-text.safetensors), the base of tiny"
    tuned = save_encoder(encoder(), tmp_path / "lora", training=provenance("LoRA", "x", base="tiny-clean"))
    with pytest.raises(CheckpointError, match=r"mine has no text tower: .* by FARE or TeCoA alone"):
        load_text(tuned)
    wider = save_encoder(encoder(64), tmp_path / "wider", training=provenance("TeCoA", "x", base="tiny-clean"))
    with pytest.raises(CheckpointError, match=r"of tiny-clean gives 128 numbers and mine, .*, 64"):
        load_text(wider)
    dino = save_encoder(encoder(), tmp_path / "dino", training=provenance("FARE", "x", base="dino-vit-b-16"))
    with pytest.raises(CheckpointError, match="mine has no text tower of its own, and its base none: dino-vit-b-16"):
        load_text(dino)


def test_a_runs_text_tower_is_exported_and_found_beside_its_encoder(tmp_path: Path) -> None:
    config = ClipConfig(steps=3, text_width=64, text_layers=1, seed=5)
    with torch.random.fork_rng():
        model: Any = build_clip(config)
    run = tmp_path / "run"
    optimizer = torch.optim.AdamW(model.parameters())
    write_state(run / "state.safetensors", 3, config, model=model, optimizer=optimizer)
    before = torch.random.get_rng_state()
    export_text(run / "state.safetensors", run / "text.safetensors")
    assert torch.equal(before, torch.random.get_rng_state())
    save_encoder(model.visual, run, training=provenance("CLIP", "scenes"))

    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.half())
        texts = ["large red plain circle", "small blue dotted star top left"]
        expected = model.encode_text(WordTokenizer()(texts), normalize=True)
    for place in (run, run / "text.safetensors"):
        text = load_text(place)
        torch.testing.assert_close(text.embed(texts), expected, rtol=0, atol=1e-6)
    assert text.scale == pytest.approx(math.exp(model.logit_scale.item()))
    with safe_open(run / "text.safetensors", framework="pt") as file:
        about = json.loads(file.metadata()["rclip_metric_text"])
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
    assert (about["run"], about["step"], about["heads"], about["training"]["seed"]) == ("run", 3, 2, 5)
    assert all(tensor.dtype == torch.float16 for tensor in tensors.values())

    about["vocabulary"][0] = "crimson"
    save_file(tensors, run / "text.safetensors", {"rclip_metric_text": json.dumps(about)})
    with pytest.raises(CheckpointError, match="was trained with other words than the scenes have now"):
        load_text(run)


def test_only_the_state_of_a_clip_run_is_exported(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"there is no .*state\.safetensors: pass the state"):
        export_text(tmp_path / "state.safetensors", tmp_path / "out.safetensors")
    save_file({"model.tower.x": torch.zeros(1)}, tmp_path / "state.safetensors", {"config": '{"inner_steps": 10}'})
    with pytest.raises(ValueError, match="is not the state of a run of `train clip`"):
        export_text(tmp_path / "state.safetensors", tmp_path / "out.safetensors")


def test_the_shipped_text_tower_finds_the_captions_of_fresh_scenes() -> None:
    scenes = [sample_scene(generator(99, "text", index), shape=SHAPES[index % 8]) for index in range(64)]
    text, metric = load_text("tiny-clean"), RobustPerceptualDistance("tiny-clean")
    images = torch.stack([metric.preprocess(render(scene)) for scene in scenes])
    found = (metric.embed(images) @ text.embed([caption(scene) for scene in scenes]).T).argmax(1)
    assert (found == torch.arange(64)).float().mean() > 0.9  # 1 in 64 by chance
