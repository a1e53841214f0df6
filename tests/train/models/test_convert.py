"""Foreign checkpoints: each file comes from the library that writes it, and so does the expected embedding."""

import hashlib
import json
import math
import os
import re
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import open_clip
import peft
import pytest
import torch
import torch.nn.functional as F
from open_clip.model import CLIPVisionCfg, _build_vision_tower
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from rclip_metric.encoder import NAMED, Architecture, ConvNeXtArchitecture, Encoder, ViTArchitecture, state_dicts
from rclip_metric.errors import CheckpointError
from rclip_metric.images import IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from rclip_metric.train.commands.train import convert as command
from rclip_metric.train.models import peft_adapters as adapters
from rclip_metric.train.models.convert import conversion, convert, save_conversion, tuned
from rclip_metric.train.models.peft_adapters import read_adapter
from rclip_metric.weights import get_spec, load_encoder, load_manifest, locate, save_encoder

from support.encoders import randomised
from support.images import noise
from support.programs import run_command

SIDE, DIM = 32, 24
VIT = ViTArchitecture(image_size=SIDE, patch_size=8, width=128, depth=3, heads=2, projection=DIM)
DINO = replace(VIT, norm_eps=1e-6, pre_norm=False, patch_bias=True, projection=None)
CONVNEXT = ConvNeXtArchitecture(image_size=SIDE, depths=(1, 1, 2, 1), widths=(16, 24, 32, 48), projection=DIM)
CROP = Preprocessing("crop", 40, SIDE)
SQUASH = Preprocessing("squash", SIDE, SIDE)
TRAINING = {"method": "FARE", "norm": "linf", "eps": "4/255", "data": "ImageNet", "base": "clip"}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(count: int = 3) -> Tensor:
    return noise(count, 3, SIDE, SIDE, seed=1)


def embedded(module: Callable[[Tensor], Tensor], encoder: Encoder) -> Tensor:
    """What a reference makes of the pixels that the encoder's tower sees."""
    with torch.inference_mode():
        return module((images() - encoder.mean) / encoder.std)


def assert_embeds(encoder: Encoder, expected: Tensor) -> None:
    with torch.inference_mode():
        result = encoder.eval()(images())
    assert expected.std() > 0.1
    torch.testing.assert_close(result, expected, atol=1e-5, rtol=1e-5)


@pytest.fixture(scope="module")
def open_clip_vit() -> Any:
    """A whole OpenCLIP model."""
    vision = {"layers": 3, "width": 128, "patch_size": 8, "image_size": SIDE}
    text = {"context_length": 8, "vocab_size": 50, "width": 32, "heads": 2, "layers": 1}
    return randomised(open_clip.CLIP(DIM, vision, text))


@pytest.fixture(scope="module")
def open_clip_convnext() -> Any:
    """OpenCLIP's wrapper of a timm ConvNeXt, whose trunk and head are replaced by small ones."""
    from open_clip.timm_model import TimmModel
    from timm.models.convnext import ConvNeXt

    with torch.device("meta"):
        model = TimmModel("convnext_tiny", DIM, image_size=SIDE, pool="", proj="linear", pretrained=False)
    model.trunk = ConvNeXt(num_classes=0, depths=CONVNEXT.depths, dims=CONVNEXT.widths)
    model.head.proj = nn.Linear(CONVNEXT.widths[-1], DIM, bias=False)
    return randomised(model)


def base_folder(visual: nn.Module, folder: Path, architecture: Architecture = VIT, **options: Any) -> Path:
    """The visual tower as an encoder in our format."""
    state = state_dicts.convert(visual.state_dict(), "open-clip-visual", architecture)
    encoder = Encoder.from_weights(state, architecture, CROP, name="base", revision="abc", **options)
    return save_encoder(encoder, folder, training=TRAINING)


def empty(architecture: Architecture, preprocessing: Preprocessing = CROP, **options: Any) -> Encoder:
    """A base for towers, of which nothing but architecture and preprocessing is taken."""
    with torch.device("meta"):
        return Encoder(architecture, preprocessing, name="empty", **options)


class DinoBlock(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
        self.attn = nn.ModuleDict({"qkv": nn.Linear(width, 3 * width), "proj": nn.Linear(width, width)})
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(width, 4 * width), "fc2": nn.Linear(4 * width, width)})

    def forward(self, tokens: Tensor) -> Tensor:
        count, length, width = tokens.shape
        parts = self.attn["qkv"](self.norm1(tokens)).view(count, length, 3, self.heads, width // self.heads)
        query, key, value = parts.permute(2, 0, 3, 1, 4)  # (N, heads, T, width / heads) each
        weights = (query @ key.mT * (width // self.heads) ** -0.5).softmax(-1)
        tokens = tokens + self.attn["proj"]((weights @ value).transpose(1, 2).reshape(count, length, width))
        return tokens + self.mlp["fc2"](F.gelu(self.mlp["fc1"](self.norm2(tokens))))


class DinoVit(nn.Module):
    """The ViT that DreamSim tunes, of DINO's modules and names: LayerNorm eps 1e-6, and 1e-5 where `pos_drop` was."""

    def __init__(self) -> None:
        super().__init__()
        width, patch = VIT.width, VIT.patch_size
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, width, patch, patch)})
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + (SIDE // patch) ** 2, width))
        self.pos_drop: nn.Module = nn.LayerNorm(width)
        self.blocks = nn.ModuleList(DinoBlock(width, VIT.heads) for _ in range(VIT.depth))
        self.norm = nn.LayerNorm(width, eps=1e-6)

    def forward(self, pixels: Tensor) -> Tensor:
        patches = self.patch_embed["proj"](pixels).flatten(2).mT
        tokens = torch.cat([self.cls_token.expand(len(pixels), -1, -1), patches], 1) + self.pos_embed
        tokens = self.pos_drop(tokens)
        for block in self.blocks:
            tokens = block(tokens)
        return self.norm(tokens)[:, 0]


def dino_of(visual: Any) -> DinoVit:
    """OpenCLIP's ViT inside the DINO-style one: patch bias zero, the projection left out."""
    renamed = {
        "class_embedding": "cls_token",
        "positional_embedding": "pos_embed",
        "conv1.weight": "patch_embed.proj.weight",
    }
    pieces = (
        ("transformer.resblocks", "blocks"),
        ("ln_pre", "pos_drop"),
        ("ln_post", "norm"),
        ("ln_1", "norm1"),
        ("ln_2", "norm2"),
        ("attn.in_proj_", "attn.qkv."),
        ("attn.out_proj", "attn.proj"),
        ("mlp.c_fc", "mlp.fc1"),
        ("mlp.c_proj", "mlp.fc2"),
    )
    state = {"patch_embed.proj.bias": torch.zeros(VIT.width)}
    for key, tensor in visual.state_dict().items():
        name = renamed.get(key, key)
        for old, new in pieces:
            name = name.replace(old, new)
        state[name] = tensor
    model = DinoVit()
    del state["proj"]
    shapes = {key: value.shape for key, value in model.state_dict().items()}
    model.load_state_dict({key: value.reshape(shapes[key]) for key, value in state.items()}, strict=True)
    return model.eval()


class Wrapper(nn.Module):
    """DreamSim's wrapper: the tower as `model`, and its blocks once more under a name of their own."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self.blocks = model.blocks if hasattr(model, "blocks") else model.trunk.stages

    def forward(self, pixels: Tensor) -> Tensor:
        return self.model(pixels)


def adapted(model: nn.Module, targets: Any, **options: Any) -> Any:
    """The model with random LoRA factors; rank and scale are not the published ones, so that they show."""
    settings = {"r": 4, "lora_alpha": 6, "lora_dropout": 0.3, "bias": "none", "target_modules": targets} | options
    wrapped: Any = peft.get_peft_model(Wrapper(model), peft.LoraConfig(**settings))  # type: ignore[arg-type]
    return randomised(wrapped, "lora_", seed=5)


def fc_names(model: nn.Module) -> list[str]:
    return [name for name, _ in model.named_modules() if "fc1" in name or "fc2" in name]


@pytest.fixture
def vit_base(open_clip_vit: Any, tmp_path: Path) -> Path:
    return base_folder(open_clip_vit.visual, tmp_path / "base")


@pytest.fixture
def vit_adapter(open_clip_vit: Any, tmp_path: Path) -> Path:
    """An adapter folder for `vit_base`."""
    adapted(dino_of(open_clip_vit.visual), ["qkv"]).save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def rewrite(folder: Path, **changes: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


class TestTowers:
    @pytest.mark.parametrize("kind", ["vit", "convnext"])
    @pytest.mark.parametrize("prefix", ["", "module.", "model.", "visual.", "module.visual.", "module.model."])
    def test_the_authors_file(self, kind, prefix, open_clip_vit, open_clip_convnext, tmp_path):
        visual, architecture = (open_clip_vit.visual, VIT) if kind == "vit" else (open_clip_convnext, CONVNEXT)
        path = tmp_path / "fare-eps4.pt"
        torch.save({f"{prefix}{key}": value for key, value in visual.state_dict().items()}, path)
        found = conversion(path, empty(architecture))
        encoder = found.encoder
        assert (encoder.architecture, encoder.preprocessing, encoder.name) == (architecture, CROP, "fare-eps4")
        assert_embeds(encoder, embedded(visual, encoder))
        sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
        assert found.record["source"] == [{"file": "fare-eps4.pt", "sha256": sha256}] and sha256 in found.notes
        assert (found.record["kind"], found.record["layout"]) == ("tower", "open-clip-visual")
        assert encoder.revision == f"sha256:{sha256[:12]}" and found.training is None

    @pytest.mark.parametrize("name", ["state.pt", "state.bin", "open_clip_model.safetensors", "folder"])
    def test_a_whole_clip_loses_its_text_tower(self, name, open_clip_vit, tmp_path):
        path = tmp_path / name
        if name == "folder":
            path.mkdir()
            vision = {"layers": 3, "width": 128, "patch_size": 8, "image_size": SIDE}
            config = {"model_cfg": {"embed_dim": DIM, "vision_cfg": vision}, "preprocess_cfg": {"mean": [0.5] * 3}}
            (path / "open_clip_config.json").write_text(json.dumps(config))
        state = {key: value.contiguous() for key, value in open_clip_vit.state_dict().items()}
        target = path / "open_clip_pytorch_model.bin" if name == "folder" else path
        save_file(state, target) if name.endswith("safetensors") else torch.save(state, target)
        encoder = convert(path, empty(VIT))
        assert encoder.preprocessing == CROP
        assert_embeds(encoder, embedded(open_clip_vit.encode_image, encoder))

    def test_training_and_preprocessing_are_those_of_a_saved_base(self, open_clip_vit, vit_base, tmp_path):
        torch.save({"state_dict": open_clip_vit.visual.state_dict(), "epoch": 3}, tmp_path / "x.pt")
        found = conversion(tmp_path / "x.pt", vit_base, name="mine")
        assert (found.training, found.encoder.preprocessing, found.encoder.name) == (TRAINING, CROP, "mine")
        assert found.record["method"] == "FARE" and found.record["base"]["name"] == "base"

    @pytest.mark.parametrize("name", ["vit_b_16", "vit_b_32", "convnext_base_w"])
    def test_the_full_architectures_have_these_keys(self, name):
        """On the meta device: every tensor of OpenCLIP's own model is used, and every one of ours is found."""
        published = {"vit_b_16": "ViT-B-16", "vit_b_32": "ViT-B-32"}.get(name, name)
        config = open_clip.get_model_config(published)
        with torch.device("meta"):
            state = _build_vision_tower(config["embed_dim"], CLIPVisionCfg(**config["vision_cfg"])).state_dict()
        assert state_dicts.detect(state) == "open-clip-visual"
        assert len(state_dicts.convert(state, "open-clip-visual", NAMED[name])) == len(state) > 150

    def test_keys_and_shapes_are_strict_and_named(self, open_clip_vit, tmp_path):
        state, path = open_clip_vit.visual.state_dict(), tmp_path / "x.pt"
        for key in ("proj", "transformer.resblocks.1.attn.in_proj_bias"):
            torch.save({k: v for k, v in state.items() if k != key}, path)
            with pytest.raises(CheckpointError, match=rf"x\.pt: .*missing {re.escape(key)}\."):
                convert(path, empty(VIT))
            torch.save(state | {key: torch.zeros(7, 5)}, path)
            with pytest.raises(CheckpointError, match=rf"x\.pt: The shape of {re.escape(key)} is .*\(7, 5\)"):
                convert(path, empty(VIT))
        torch.save(state | {"extra.weight": torch.zeros(1)}, path)
        with pytest.raises(CheckpointError, match=r"unexpected extra\.weight\."):
            convert(path, empty(VIT))

    def test_what_is_ours_already_is_refused(self, vit_base, tmp_path):
        for path in (vit_base, vit_base / "model.safetensors"):
            with pytest.raises(CheckpointError, match="in this project's format already"):
                convert(path, empty(VIT))

    def test_a_source_is_not_replaced(self, open_clip_vit, tmp_path):
        save_file(
            {k: v.contiguous() for k, v in open_clip_vit.visual.state_dict().items()}, tmp_path / "model.safetensors"
        )
        before = (tmp_path / "model.safetensors").read_bytes()
        with pytest.raises(CheckpointError, match="would be replaced: choose another output folder"):
            save_conversion(conversion(tmp_path / "model.safetensors", empty(VIT)), tmp_path)
        assert (tmp_path / "model.safetensors").read_bytes() == before


class TestTransformers:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> tuple[Path, Any]:
        """As R-DINO_F is published, with the eps and the statistics that are wrong."""
        from transformers import ViTConfig, ViTModel

        config = ViTConfig(
            image_size=SIDE,
            patch_size=8,
            hidden_size=128,
            num_hidden_layers=3,
            num_attention_heads=2,
            intermediate_size=512,
            layer_norm_eps=1e-12,
        )
        model = randomised(ViTModel(config))
        model.save_pretrained(tmp_path / "dino")
        preprocessor = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
        (tmp_path / "dino" / "preprocessor_config.json").write_text(json.dumps(preprocessor))
        return tmp_path / "dino", model

    def test_r_dino(self, folder):
        path, model = folder
        imagenet = replace(get_spec("r-dino-f").preprocessing, resize=40, crop=SIDE)
        assert (imagenet.mean, imagenet.std) == (IMAGENET_MEAN, IMAGENET_STD)
        keys = set(load_file(path / "model.safetensors"))
        assert "pooler.dense.weight" in keys and "encoder.layer.2.attention.attention.query.bias" in keys
        found = conversion(path, empty(DINO, imagenet))
        assert found.encoder.architecture == DINO and found.encoder.preprocessing == imagenet
        assert found.encoder.architecture.norm_eps == get_spec("r-dino-f").architecture.norm_eps == 1e-6
        assert_embeds(found.encoder, embedded(lambda x: model(x).last_hidden_state[:, 0], found.encoder))
        assert found.record["layout"] == "transformers-vit" and found.encoder.name == "dino"
        assert [item["file"] for item in found.record["source"]] == ["dino/config.json", "dino/model.safetensors"]

    @pytest.mark.parametrize("field, value", [("num_attention_heads", 4), ("hidden_act", "quick_gelu")])
    def test_what_no_shape_shows_is_compared(self, field, value, folder):
        config = json.loads((folder[0] / "config.json").read_text())
        (folder[0] / "config.json").write_text(json.dumps(config | {field: value}))
        with pytest.raises(CheckpointError, match=rf"says {field} {value!r}, and the base has"):
            convert(folder[0], empty(DINO))

    def test_another_base_is_refused(self, folder):
        with pytest.raises(CheckpointError, match="describes a ViT, and the base is a convnext"):
            convert(folder[0], empty(CONVNEXT))


def head_state(dim: int = DIM, hidden: int = 512) -> dict[str, Tensor]:
    shapes = {"fc1.weight": (hidden, dim), "fc1.bias": (hidden,), "fc2.weight": (dim, hidden), "fc2.bias": (dim,)}
    return {key: torch.randn(shape, generator=generator(3)) * shape[-1] ** -0.5 for key, shape in shapes.items()}


class TestHeads:
    def expected(self, encoder: Encoder) -> Tensor:
        """DreamSim's MLP, by its formula, on the base's embeddings."""
        head = head_state()
        with torch.inference_mode():
            plain = encoder.tower((images() - encoder.mean) / encoder.std)
            hidden = torch.clamp(plain @ head["fc1.weight"].T + head["fc1.bias"], min=0)
            return hidden @ head["fc2.weight"].T + head["fc2.bias"] + plain

    @pytest.mark.parametrize("prefix", ["perceptual_model.mlp.", "module.perceptual_model.mlp.", "mlp.", ""])
    @pytest.mark.parametrize("wrapped", [True, False])
    def test_the_authors_and_dreamsims_heads(self, prefix, wrapped, open_clip_vit, vit_base, tmp_path):
        state = {f"{prefix}{key}": value for key, value in head_state().items()}
        torch.save({"state_dict": state} if wrapped else state, tmp_path / "mlp.pt")
        found = conversion(tmp_path / "mlp.pt", vit_base)
        encoder = found.encoder
        assert (encoder.mlp_hidden, encoder.preprocessing, encoder.name) == (512, SQUASH, "base+mlp")
        assert_embeds(encoder, self.expected(encoder))
        base = load_encoder(vit_base).state_dict()
        assert all(torch.equal(encoder.state_dict()[key], base[key]) for key in base)
        sha256 = hashlib.sha256((vit_base / "model.safetensors").read_bytes()).hexdigest()
        assert found.record["base"] == {"name": "base", "revision": "abc", "sha256": sha256}
        assert found.record["method"] == "MLP" and found.training is not None
        assert found.training["method"] == "FARE, then MLP head on clean NIGHTS"

    def test_on_the_authors_tower_at_once(self, open_clip_convnext, tmp_path):
        torch.save(open_clip_convnext.state_dict(), tmp_path / "tower.pt")
        torch.save(
            {"state_dict": {f"perceptual_model.mlp.{k}": v for k, v in head_state().items()}}, tmp_path / "mlp.pt"
        )
        found = conversion(tmp_path / "tower.pt", empty(CONVNEXT), mlp=tmp_path / "mlp.pt", data="my triplets")
        assert_embeds(found.encoder, self.expected(found.encoder))
        assert found.encoder.preprocessing == SQUASH and found.record["method"] == "MLP"
        assert [item["file"] for item in found.record["source"]] == ["tower.pt", "mlp.pt"]
        assert found.training == {
            **{"method": "MLP head on clean my triplets", "norm": None, "eps": None},
            **{"data": "my triplets", "base": "empty"},
        }

    def test_keys_and_shapes_are_strict_and_named(self, vit_base, tmp_path):
        state, path = {f"mlp.{key}": value for key, value in head_state().items()}, tmp_path / "mlp.pt"
        torch.save({k: v for k, v in state.items() if k != "mlp.fc2.bias"}, path)
        with pytest.raises(CheckpointError, match=r"is not an MLP head: missing fc2\.bias\."):
            convert(path, vit_base)
        for extra in ("mlp.fc3.weight", "module.mlp.fc1.bias"):
            torch.save(state | {extra: torch.zeros(512)}, path)
            with pytest.raises(CheckpointError, match=rf"is not an MLP head: unexpected {re.escape(extra)}\."):
                convert(path, vit_base)
        torch.save({f"mlp.{key}": value for key, value in head_state(dim=1792).items()}, path)
        with pytest.raises(CheckpointError, match=r"shape of mlp\.fc1\.weight is \(512, 1792\), expected \(512, 24\)"):
            convert(path, vit_base)
        torch.save(state | {"mlp.fc1.bias": torch.zeros(512, dtype=torch.long)}, path)
        with pytest.raises(CheckpointError, match=r"mlp\.fc1\.bias is torch\.int64, expected floating point"):
            convert(path, vit_base)

    def test_one_head_is_enough(self, vit_base, open_clip_vit, tmp_path):
        torch.save(head_state(), tmp_path / "mlp.pt")
        save_encoder(convert(tmp_path / "mlp.pt", vit_base), tmp_path / "headed")
        with pytest.raises(CheckpointError, match=r"The base base\+mlp has an MLP head"):
            convert(tmp_path / "mlp.pt", tmp_path / "headed")
        with pytest.raises(CheckpointError, match="A head goes on a tower"):
            convert(tmp_path / "mlp.pt", vit_base, mlp=tmp_path / "mlp.pt")
        torch.save(open_clip_vit.visual.state_dict(), tmp_path / "tower.pt")
        with pytest.raises(CheckpointError, match=r"An MLP head is one file, and .*none\.pt' is none"):
            convert(tmp_path / "tower.pt", empty(VIT), mlp=tmp_path / "none.pt")

    def test_an_encoder_as_the_base_keeps_its_weights_to_itself(self, vit_base, tmp_path):
        torch.save(head_state(), tmp_path / "mlp.pt")
        base = load_encoder(vit_base)
        converted = convert(tmp_path / "mlp.pt", base)
        before = {key: value.clone() for key, value in base.state_dict().items()}
        with torch.no_grad():
            for parameter in converted.parameters():
                parameter.zero_()
        assert all(torch.equal(value, before[key]) for key, value in base.state_dict().items())


class TestAdapters:
    @pytest.mark.parametrize("safe", [True, False])
    def test_convnext(self, safe, open_clip_convnext, tmp_path):
        base = base_folder(open_clip_convnext, tmp_path / "base", CONVNEXT)
        plain = load_encoder(base)
        tower = self.copy(open_clip_convnext)
        model = adapted(tower, fc_names(tower))
        model.save_pretrained(tmp_path / "lora", safe_serialization=safe)
        found = conversion(tmp_path / "lora", base)
        encoder = found.encoder
        unmerged = embedded(model, encoder)
        assert_embeds(encoder, unmerged)
        assert_embeds(encoder, embedded(model.merge_and_unload(), encoder))
        assert (unmerged - embedded(open_clip_convnext, encoder)).abs().max() > 0.1
        assert (encoder.architecture, encoder.preprocessing, encoder.name) == (CONVNEXT, SQUASH, "base+lora")
        assert found.record["lora"] == {"rank": 4, "scale": 1.5} and found.record["method"] == "LoRA"
        changed = {k for k, v in encoder.state_dict().items() if not torch.equal(v, plain.state_dict()[k])}
        assert changed == {k for k in encoder.state_dict() if re.search(r"fc[12]\.weight", k)} and len(changed) == 10
        names = [item["file"] for item in found.record["source"]]
        weights = "adapter_model.safetensors" if safe else "adapter_model.bin"
        assert names == ["lora/adapter_config.json", f"lora/{weights}"]

    @staticmethod
    def copy(module: Any) -> Any:
        import copy

        return copy.deepcopy(module)

    def test_vit(self, open_clip_vit, vit_base, tmp_path):
        model = adapted(dino_of(open_clip_vit.visual), ["qkv"])
        model.save_pretrained(tmp_path / "lora")
        found = conversion(tmp_path / "lora", vit_base)
        encoder, proj = found.encoder, open_clip_vit.visual.proj
        assert (
            encoder.architecture == replace(VIT, norm_eps=1e-6, pre_norm_eps=1e-5) and encoder.preprocessing == SQUASH
        )
        assert_embeds(encoder, embedded(lambda x: model(x) @ proj, encoder))
        assert_embeds(encoder, embedded(lambda x: model.merge_and_unload()(x) @ proj, encoder))
        assert "DINO-style ViT" in found.notes and "r 4, scale 1.5" in found.notes
        changed = [
            k for k, v in encoder.state_dict().items() if not torch.equal(v, load_encoder(vit_base).state_dict()[k])
        ]
        assert changed == [f"tower.trunk.blocks.{i}.attn.qkv.weight" for i in range(3)]

    def test_the_eps_is_that_of_the_dino_style_vit(self, open_clip_vit, tmp_path):
        """Small activations tell 1e-6 from the base's 1e-5."""
        visual = self.copy(open_clip_vit.visual)
        with torch.no_grad():
            for name, parameter in visual.named_parameters():
                if re.search(r"^(class|positional|conv1)|ln_pre|out_proj|c_proj", name):
                    parameter.mul_(3e-3)
        model = adapted(dino_of(visual), ["qkv"])
        model.save_pretrained(tmp_path / "lora")
        encoder = convert(tmp_path / "lora", base_folder(visual, tmp_path / "base"))
        expected = embedded(lambda x: model(x) @ visual.proj, encoder)
        with torch.inference_mode():
            assert (encoder.eval()(images()) - expected).abs().max() < 1e-4
            as_the_base = Encoder.from_weights(encoder.state_dict(), VIT, CROP).eval()
            assert (as_the_base(images()) - expected).abs().max() > 1e-2

    def test_the_first_norm_has_the_eps_of_the_published_evaluation(self, open_clip_vit, tmp_path):
        """1e-5, of perceptual-metrics 962995f; tokens of OpenCLIP's initial scale (variance 0.0024) tell it apart."""
        visual = self.copy(open_clip_vit.visual)
        with torch.no_grad():
            for parameter in (visual.class_embedding, visual.positional_embedding):
                parameter.copy_(torch.randn(parameter.shape, generator=generator(2)) * 0.0012**0.5)
        model = adapted(dino_of(visual), ["qkv"])
        model.save_pretrained(tmp_path / "lora")
        encoder = convert(tmp_path / "lora", base_folder(visual, tmp_path / "base")).eval()
        expected = embedded(lambda x: model(x) @ visual.proj, encoder)
        alike = Encoder.from_weights(encoder.state_dict(), replace(VIT, norm_eps=1e-6), SQUASH).eval()
        with torch.inference_mode():
            found, other = (
                ((one(images()) - expected).norm(dim=1) / expected.norm(dim=1)).max() for one in (encoder, alike)
            )
        assert found < 5e-6 and other > 1e-5
        # A saved encoder keeps it.
        save_encoder(encoder, tmp_path / "merged")
        assert load_encoder(tmp_path / "merged").architecture == encoder.architecture

    def test_dino_as_the_base(self, tmp_path):
        """DreamSim's first branch: no projection, and a patch bias."""
        vit = DinoVit()
        vit.pos_drop = nn.Identity()
        randomised(vit)
        state = state_dicts.convert(vit.state_dict(), "timm-vit", DINO)
        save_encoder(Encoder.from_weights(state, DINO, CROP, name="dino"), tmp_path / "base")
        model = adapted(vit, ["qkv"])
        model.save_pretrained(tmp_path / "lora")
        encoder = convert(tmp_path / "lora", tmp_path / "base")
        assert encoder.architecture == DINO
        assert_embeds(encoder, embedded(model, encoder))

    def test_the_published_files_nest_wrappers_and_list_the_blocks_twice(
        self, open_clip_vit, open_clip_convnext, tmp_path
    ):
        """DreamSim's script saved with an older PEFT, and prefixed every key for the second wrapping at loading."""
        for name, architecture, plain, tower, targets in (
            ("vit", VIT, open_clip_vit.visual, dino_of(open_clip_vit.visual), ["qkv"]),
            ("convnext", CONVNEXT, open_clip_convnext, self.copy(open_clip_convnext), None),
        ):
            model = adapted(tower, targets or fc_names(tower))
            folder = tmp_path / name
            model.save_pretrained(folder)
            (folder / "adapter_model.safetensors").unlink()
            state = {k.replace(".default", ""): v.clone() for k, v in model.state_dict().items() if "lora_" in k}
            assert any(key.startswith("base_model.model.blocks.") for key in state)  # the wrapper's own name
            assert len(state) == 2 * (6 if name == "vit" else 20)
            torch.save({f"base_model.model.{k}": v for k, v in state.items()}, folder / "adapter_model.bin")
            encoder = convert(folder, base_folder(plain, tmp_path / f"{name}-base", architecture))
            proj = open_clip_vit.visual.proj if name == "vit" else None
            assert_embeds(encoder, embedded(lambda x, m=model, p=proj: m(x) if p is None else m(x) @ p, encoder))

            alias = next(key for key in state if key.startswith("base_model.model.blocks."))
            torch.save(state | {alias: state[alias] + 1}, folder / "adapter_model.bin")
            with pytest.raises(CheckpointError, match=r"has two different tensors lora_[AB] for"):
                convert(folder, tmp_path / f"{name}-base")

    @pytest.mark.parametrize("stabilised", [True, False])
    def test_the_scale(self, stabilised, open_clip_vit, vit_base, tmp_path):
        model = adapted(dino_of(open_clip_vit.visual), r".*\.qkv", r=16, lora_alpha=0.5, use_rslora=stabilised)
        model.save_pretrained(tmp_path / "lora")
        found = conversion(tmp_path / "lora", vit_base)
        assert found.record["lora"] == {"rank": 16, "scale": 0.5 / math.sqrt(16) if stabilised else 1 / 32}
        assert_embeds(found.encoder, embedded(lambda x: model(x) @ open_clip_vit.visual.proj, found.encoder))

    def test_the_full_architectures_have_these_keys(self):
        """On the meta device: PEFT's own names for every fc1 and fc2 of OpenCLIP's ConvNeXt-B."""
        config = open_clip.get_model_config("convnext_base_w")
        with torch.device("meta"):
            visual = _build_vision_tower(config["embed_dim"], CLIPVisionCfg(**config["vision_cfg"]))
            model = peft.get_peft_model(
                Wrapper(visual),
                peft.LoraConfig(r=16, lora_alpha=0.5, lora_dropout=0.3, bias="none", target_modules=fc_names(visual)),
            )
            tensors = peft.get_peft_model_state_dict(model)
        assert len(tensors) == 2 * 2 * (3 + 3 + 27 + 3)
        architecture = NAMED["convnext_base_w"]
        state = {
            key: torch.empty(shape, device="meta") for key, shape in state_dicts.expected_shapes(architecture).items()
        }
        adapter = adapters.Adapter(16, 1 / 32, ("fc1", "fc2"), tensors, Path("lora"))
        merged = adapters.merge(adapter, state, architecture)
        assert {k: v.shape for k, v in merged.items()} == {k: v.shape for k, v in state.items()}
        assert sum(merged[key] is not state[key] for key in state) == 72

    @pytest.mark.parametrize(
        "change, complaint",
        [
            ({"peft_type": "LOHA"}, "peft_type 'LOHA'"),
            ({"r": 0}, "r 0, and only a positive integer"),
            ({"lora_alpha": "big"}, "lora_alpha 'big', and only a number"),
            ({"use_rslora": "yes"}, "use_rslora 'yes'"),
            ({"bias": "lora_only"}, "bias 'lora_only', and only 'none'"),
            ({"fan_in_fan_out": True}, "fan_in_fan_out True"),
            ({"modules_to_save": ["head"]}, "modules_to_save"),
            ({"use_dora": True}, "use_dora True"),
            ({"rank_pattern": {"qkv": 2}}, "rank_pattern"),
            ({"init_lora_weights": "pissa"}, "init_lora_weights 'pissa'"),
            ({"from_the_future": 1}, "from_the_future 1"),
            ({"target_modules": None}, "target_modules None"),
            ({"target_modules": "("}, r"target_modules '\('"),
        ],
    )
    def test_settings_that_are_not_merged_are_named(self, change, complaint, vit_base, vit_adapter):
        rewrite(vit_adapter, **change)
        with pytest.raises(CheckpointError, match=rf"adapter_config\.json says {complaint}.*can be converted\.$"):
            convert(vit_adapter, vit_base)

    def test_every_tensor_is_used_and_every_target_covered(self, vit_base, vit_adapter):
        path = vit_adapter / "adapter_model.safetensors"
        state, key = load_file(path), "base_model.model.model.blocks.1.attn.qkv.lora_B.weight"
        save_file({k: v for k, v in state.items() if k != key}, path)
        with pytest.raises(CheckpointError, match=r"does not fit the base: missing blocks\.1\.attn\.qkv\.lora_B\."):
            convert(vit_adapter, vit_base)
        for extra in ("lora_magnitude_vector", "blocks.3.attn.qkv.lora_A.weight", "blocks.0.attn.qkv.bias"):
            save_file(state | {f"base_model.model.model.{extra}": torch.zeros(4, 128)}, path)
            with pytest.raises(CheckpointError, match=rf"unexpected base_model\.model\.model\.{re.escape(extra)}"):
                convert(vit_adapter, vit_base)
        save_file(state | {key: torch.zeros(384, 5)}, path)
        with pytest.raises(
            CheckpointError, match=r"lora_B of blocks\.1\.attn\.qkv .* is \(384, 5\), expected \(384, 4\)"
        ):
            convert(vit_adapter, vit_base)
        save_file(state, path)
        rewrite(vit_adapter, target_modules=["qkv", "fc1"])
        with pytest.raises(CheckpointError, match=r"missing blocks\.0\.mlp\.fc1\.lora_A, .* and 1 more"):
            convert(vit_adapter, vit_base)
        rewrite(vit_adapter, target_modules=["fc1"])
        with pytest.raises(CheckpointError, match=r"missing .*; unexpected blocks\.0\.attn\.qkv"):
            convert(vit_adapter, vit_base)
        rewrite(vit_adapter, target_modules=["q_proj"])
        with pytest.raises(CheckpointError, match=r"No layer of the base has a name that .* targets \(q_proj\)"):
            convert(vit_adapter, vit_base)

    def test_a_base_that_does_not_fit(self, vit_adapter):
        for architecture, complaint in (
            (CONVNEXT, r"No layer of the base has a name that .* targets \(qkv\)"),
            (replace(VIT, depth=4), r"missing blocks\.3\.attn\.qkv\.lora_A, blocks\.3\.attn\.qkv\.lora_B\."),
            (replace(VIT, depth=2), r"unexpected base_model\.model\.model\.blocks\.2\.attn\.qkv\.lora_A\.weight"),
            (replace(VIT, activation="quick_gelu"), r"trained with GELU, and the base computes QuickGELU"),
        ):
            with pytest.raises(CheckpointError, match=complaint):
                convert(vit_adapter, Encoder(architecture, CROP))
        with pytest.raises(CheckpointError, match="has an MLP head: give the plain encoder"):
            convert(vit_adapter, Encoder(VIT, CROP, mlp_hidden=8))

    def test_incomplete_folders(self, vit_base, vit_adapter):
        weights = vit_adapter / "adapter_model.safetensors"
        with pytest.raises(CheckpointError, match=r"is no folder: pass the folder of the adapter"):
            convert(weights, vit_base)
        with pytest.raises(CheckpointError, match="head"):
            convert(vit_adapter, vit_base, mlp=weights)
        (vit_adapter / "config.json").write_text("{}")
        with pytest.raises(CheckpointError, match="holds both an adapter and a whole model"):
            convert(vit_adapter, vit_base)
        weights.unlink()
        with pytest.raises(CheckpointError, match=r"has none of adapter_model\.safetensors, adapter_model\.bin"):
            convert(vit_adapter, vit_base, kind="lora")


@pytest.mark.parametrize("name", [name for name in load_manifest()["models"] if name.endswith(("+mlp", "+lora"))])
def test_the_manifest_describes_what_is_converted(name):
    base, step = name.split("+")
    expected, result = get_spec(name), tuned(get_spec(base), step)
    for field in ("architecture", "preprocessing", "training", "embedding_dim"):
        assert getattr(result, field) == getattr(expected, field)


def test_a_pickle_that_would_run_code_does_not(vit_base, vit_adapter, tmp_path):
    class Evil:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(tmp_path / "ran"),)

    torch.save({"state_dict": {"fc1.weight": Evil()}}, tmp_path / "evil.pt")
    torch.save({"base_model.model.blocks.0.attn.qkv.lora_A.weight": Evil()}, vit_adapter / "adapter_model.bin")
    (vit_adapter / "adapter_model.safetensors").unlink()
    torch.save(head_state(), tmp_path / "mlp.pt")
    for attempt in (
        partial(convert, tmp_path / "evil.pt", vit_base),
        partial(convert, tmp_path / "evil.pt", vit_base, kind="tower"),
        partial(convert, tmp_path / "evil.pt", vit_base, kind="mlp"),
        partial(convert, vit_adapter, vit_base),
    ):
        with pytest.raises(CheckpointError, match="is not a file of plain tensors"):
            attempt()
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "content, complaint",
    [
        (
            {"conv.weight": torch.zeros(1)},
            r"none of what can be converted: known are a vision tower .*: conv\.weight\.$",
        ),
        ({}, "its keys: none at all"),
        (
            {"class_embedding": torch.zeros(4), "mlp.fc1.bias": torch.zeros(4)},
            "mixes an MLP head and a vision tower in",
        ),
        ({"mlp.fc1.bias": torch.zeros(4), "x.lora_A.weight": torch.zeros(4)}, "mixes an MLP head and LoRA factors"),
        ({"epoch": 3}, "is not a state dict of names and tensors"),
        ({"state_dict": {"fc1.weight": [1.0]}}, "is not a state dict of names and tensors"),
        ([torch.zeros(1)], "is not a state dict of names and tensors"),
    ],
)
def test_unknown_and_mixed_files_are_described(content, complaint, tmp_path):
    torch.save(content, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match=complaint):
        convert(tmp_path / "x.pt", empty(VIT))


def test_what_is_not_there_or_not_readable(tmp_path):
    with pytest.raises(CheckpointError, match="There is no file or folder"):
        convert(tmp_path / "none.pt", empty(VIT))
    with pytest.raises(ValueError, match="kind must be one of auto, tower, mlp, lora, got 'vae'"):
        convert(tmp_path, empty(VIT), kind="vae")
    for name in ("x.pt", "x.safetensors"):
        (tmp_path / name).write_bytes(b"garbage" * 100)
        with pytest.raises(CheckpointError, match=re.escape(str(tmp_path / name))):
            convert(tmp_path / name, empty(VIT))
    with pytest.raises(CheckpointError, match=r"has neither a config\.json"):
        convert(tmp_path, empty(VIT))


class TestCommand:
    def run(self, *words: Any) -> int | None:
        return run_command(command, "convert", *words)

    def test_from_the_authors_files_to_a_folder_that_loads(self, open_clip_vit, vit_base, tmp_path, capsys):
        """The story of lora-vit-b-16-fare: the tower first, and the adapter on it."""
        torch.save(open_clip_vit.visual.state_dict(), tmp_path / "fare.pt")
        self.run(tmp_path / "fare.pt", "--base", vit_base, "--out", tmp_path / "fare", "--license", "MIT", "--quiet")
        model = adapted(dino_of(open_clip_vit.visual), ["qkv"])
        model.save_pretrained(tmp_path / "lora")
        capsys.readouterr()
        out = tmp_path / "made"
        words = ("--base", tmp_path / "fare", "--out", out, "--kind", "lora", "--name", "mine", "--data", "scenes")
        assert not self.run(tmp_path / "lora", *words)
        printed = capsys.readouterr().out
        assert printed.count("\n") == 1 and printed.startswith(f"{out}: mine, 24 dimensions; ") and str(out) in printed

        assert sorted(path.name for path in out.iterdir()) == ["config.json", "model.safetensors", "run.json"]
        loaded = load_encoder(out)
        assert_embeds(loaded, embedded(lambda x: model(x) @ open_clip_vit.visual.proj, loaded))
        again = convert(tmp_path / "lora", tmp_path / "fare").eval()
        with torch.inference_mode():
            assert torch.equal(loaded.eval()(images()), again(images()))
        spec = locate(out).spec
        assert (spec.name, spec.license, spec.preprocessing) == ("mine", None, SQUASH)
        assert spec.training == TRAINING | {
            **{"method": "FARE, then LoRA on clean scenes", "data": "ImageNet, scenes", "base": "fare"},
        }
        assert locate(tmp_path / "fare").spec.license == "MIT"
        record = json.loads((out / "run.json").read_text())
        digests = {item["file"]: item["sha256"] for item in record["source"]}
        assert digests == {
            f"lora/{name}": hashlib.sha256((tmp_path / "lora" / name).read_bytes()).hexdigest()
            for name in ("adapter_config.json", "adapter_model.safetensors")
        }
        assert all(digest in (spec.notes or "") for digest in digests.values())
        assert (record["method"], record["base"]["name"], record["kind"]) == ("LoRA", "fare", "lora")
        assert set(record["versions"]) == {"rclip-metric", "torch", "safetensors"} and record["made"]

    def test_bad_input_is_a_value_error(self, vit_base, tmp_path):
        with pytest.raises(ValueError, match=r"none\.pt"):
            self.run(tmp_path / "none.pt", "--base", vit_base, "--out", tmp_path / "out")
        with pytest.raises(SystemExit):
            self.run(tmp_path / "none.pt", "--out", tmp_path / "out")


def test_a_long_name_in_an_adapter_s_configuration_is_cut_in_the_sentence(tmp_path):
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 4, "[" * 5000: 1}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError) as caught:
        read_adapter(tmp_path, {})
    assert len(str(caught.value)) < 250 + len(str(tmp_path)) and "[[[... 1, and only" in str(caught.value)
