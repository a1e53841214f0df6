"""DreamSim against the authors' package: files in the published layout, one set of weights, the same numbers."""

import importlib
import json
import math
import pickle
import warnings
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from rclip_metric.errors import CheckpointError, NetworkError, UnknownModelError
from rclip_metric.train.metrics.dreamsim import published as dreamsim_files
from rclip_metric.train.metrics.dreamsim.model import BRANCHES, VARIANTS, Branch, DreamSimMetric, build, convert
from rclip_metric.train.metrics.dreamsim.published import resampled
from rclip_metric.train.metrics.weight_files import Converted, Request, write_stored

# The package reads DINO's block 12 by its number, so that depth stays; it is blind to the width.
WIDTH, HEADS, DEPTH, EMBEDDING, RANK = 48, 3, 12, 20, 4
NAMES = list(VARIANTS)
# Found: 3e-7. Another eps in the norms moves embeddings by 1e-5 to 2e-4, another activation by 6e-4 to 5e-3.
TOLERANCE = 2e-6


def small(name: str) -> Branch:
    branch = BRANCHES[name]
    projection = None if branch.clean else EMBEDDING
    architecture = replace(branch.architecture, width=WIDTH, heads=HEADS, depth=DEPTH, projection=projection)
    return replace(branch, architecture=architecture)


def drawn(shape: tuple[int, ...], source: torch.Generator, key: str) -> Tensor:
    """Weights that show when they are lost, swapped or left at a default."""
    noise = torch.randn(shape, generator=source)
    if key.endswith("gamma"):
        return 0.4 + 0.2 * noise
    if "embed" in key or "token" in key:  # so small that the eps of the norm after it counts
        return 0.1 * noise * (math.prod(shape[1:]) ** -0.5 if len(shape) == 4 else 1)
    if len(shape) == 1:
        return 0.1 * noise + (1.0 if "norm" in key and key.endswith("weight") else 0.0)
    return noise * shape[1] ** -0.5


class Scaled(nn.Module):
    """What DINOv2 has and DINO has not: each branch of a block scaled per channel."""

    def __init__(self, inner: Any, width: int) -> None:
        super().__init__()
        self.norm1, self.attn, self.norm2, self.mlp = inner.norm1, inner.attn, inner.norm2, inner.mlp
        self.ls1, self.ls2 = (nn.ParameterDict({"gamma": torch.ones(width)}) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        attended, _ = self.attn(self.norm1(x))
        x = x + self.ls1["gamma"] * attended
        return x + self.ls2["gamma"] * self.mlp(self.norm2(x))


def package_vit(patch_size: int = 16, **options: Any) -> nn.Module:
    """The package's own vit_base, narrower."""
    module = importlib.import_module("dreamsim.feature_extraction.vision_transformer")
    norm = partial(nn.LayerNorm, eps=1e-6)
    sizes = {"embed_dim": WIDTH, "num_heads": HEADS, "depth": DEPTH}
    vit: nn.Module = module.VisionTransformer(
        patch_size=patch_size, mlp_ratio=4, qkv_bias=True, norm_layer=norm, **(sizes | options)
    )
    return vit


def package_dinov2(**options: Any) -> nn.Module:
    vit: Any = package_vit(14, img_size=[518], **options)
    vit.blocks = nn.ModuleList(Scaled(block, vit.embed_dim) for block in vit.blocks)
    return vit


def fill(module: nn.Module, source: torch.Generator) -> dict[str, Tensor]:
    """Draw every parameter; returns the state dict."""
    with torch.no_grad():
        for key, parameter in module.named_parameters():
            parameter.copy_(drawn(tuple(parameter.shape), source, key))
    return {key: tensor.clone() for key, tensor in module.state_dict().items()}


def publish(name: str, folder: Path, seed: int = 0) -> dict[str, dict[str, Tensor]]:
    """Write a variant as it is published, from seeded weights; returns DINO's towers, which the hub has."""
    source = torch.Generator().manual_seed(seed)
    hub = {}
    factors: dict[str, Tensor] = {}
    for index, key in enumerate(VARIANTS[name].branches):
        branch = BRANCHES[key]
        width = branch.architecture.width
        if branch.clean:
            vit = package_dinov2() if "dinov2" in key else package_vit(16)
            hub[key] = fill(vit, source)
            shapes = {"mlp.0": (8, width), "mlp.2": (8, 8), "mlp.4": (6, 8)}
            head = {f"module.head.{part}.weight": torch.ones(shape) for part, shape in shapes.items()}
            head |= {f"module.head.{part}.bias": torch.ones(shape[0]) for part, shape in shapes.items()}
            head |= {"module.head.last_layer.weight": torch.ones(5, 6)}
            student = head | {"module.backbone.cls_token": torch.zeros(1, 1, width)}
            torch.save({"student": student, "epoch": 3}, folder / branch.file)
        else:
            vit = package_vit(branch.architecture.patch_size)
            vit.pos_drop = nn.LayerNorm(width)
            state: dict[str, Tensor] = fill(vit, source)
            state["proj"] = nn.Parameter(torch.randn(width, EMBEDDING, generator=source) * width**-0.5)
            torch.save({"state_dict": state}, folder / branch.file)
        for block in range(DEPTH):
            layer = f"base_model.model.extractor_list.{index}.model.blocks.{block}.attn.qkv"
            factors[f"{layer}.lora_A.weight"] = torch.randn(RANK, width, generator=source) * width**-0.5
            factors[f"{layer}.lora_B.weight"] = torch.randn(3 * width, RANK, generator=source) * 2
    adapter = folder / VARIANTS[name].adapter
    adapter.mkdir()
    config: dict[str, Any] = {
        "peft_type": "LORA",
        "task_type": None,
        "r": RANK,
        "lora_alpha": 0.5,
        "lora_dropout": 0.3,
        "bias": "none",
    }
    config |= {"target_modules": ["qkv"], "fan_in_fan_out": False, "modules_to_save": None, "inference_mode": True}
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    if name == "dreamsim":  # both forms are about
        torch.save(factors, adapter / "adapter_model.bin")
    else:
        save_file(factors, adapter / "adapter_model.safetensors")
    return hub


def package_model(name: str, folder: Path, hub: dict[str, dict[str, Tensor]]) -> Any:
    """The package's model of a folder that `publish` wrote, its torch.hub replaced by those towers."""
    model_module: Any = importlib.import_module("dreamsim.model")
    clip: Any = importlib.import_module("dreamsim.feature_extraction.load_clip_as_dino")
    open_clip: Any = importlib.import_module("dreamsim.feature_extraction.load_open_clip_as_dino")

    def hub_load(repository: str, key: str) -> nn.Module:
        vit = package_dinov2() if repository == "facebookresearch/dinov2" else package_vit(16)
        vit.load_state_dict(hub[key], strict=True)
        return vit

    kind = {"dreamsim": "ensemble"}.get(name, name.removeprefix("dreamsim-").replace("-", "_"))
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the package's own use of torch and peft
        patch.setattr(torch.hub, "load", hub_load)
        patch.setattr(torch.hub, "set_dir", lambda folder: None)
        patch.setattr(clip, "vit_base", package_vit)
        patch.setattr(open_clip, "vit_base", package_vit)
        model, _ = model_module.dreamsim(pretrained=True, device="cpu", cache_dir=str(folder), dreamsim_type=kind)
    return model


@dataclass(frozen=True)
class Pair:
    """One set of published files, and both implementations of it."""

    name: str
    folder: Path
    backbone: str | None
    theirs: Any
    ours: DreamSimMetric


@pytest.fixture(scope="module", autouse=True)
def narrow() -> Iterator[None]:
    """Every tower narrower, in our tables as in the package."""
    with pytest.MonkeyPatch.context() as patch:
        for name in list(BRANCHES):
            patch.setitem(BRANCHES, name, small(name))
        yield


@pytest.fixture(scope="module")
def pairs(narrow: None, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Pair]:
    built = {}
    for name in NAMES:
        folder = tmp_path_factory.mktemp(name)
        hub = publish(name, folder)
        backbone: str | None = None
        for state in hub.values():
            backbone = str(folder / "tower.pth")
            torch.save(state, backbone)
        theirs = package_model(name, folder, hub)
        converted = convert(name, folder, backbone=backbone)
        built[name] = Pair(name, folder, backbone, theirs, ours(name, converted, folder / "converted.safetensors"))
    return built


def ours(name: str, converted: Converted, path: Path) -> DreamSimMetric:
    write_stored(name, converted, path)
    return build(name, Request(weights=path))


def images(count: int = 2, seed: int = 1) -> Tensor:
    """Coarse patterns with noise on them: unlike each other at every scale."""
    source = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 5, 5, generator=source).repeat_interleave(45, 2).repeat_interleave(45, 3)
    return (0.7 * coarse[..., :224, :224] + 0.3 * torch.rand(count, 3, 224, 224, generator=source)).clamp(0, 1)


@pytest.mark.parametrize("name", NAMES)
def test_embeddings_and_distances_are_the_packages(pairs: dict[str, Pair], name: str) -> None:
    pair = pairs[name]
    left, right = images(2, 1), images(2, 2)
    with torch.no_grad():
        expected, distance = pair.theirs.embed(left), pair.theirs(left, right)
    assert expected.shape == (2, 48 + 2 * EMBEDDING if name == "dreamsim" else 48 if "dino" in name else EMBEDDING)
    torch.testing.assert_close(pair.ours.embed(left), expected, rtol=0, atol=TOLERANCE)
    found = 1 - pair.ours.similarities(left, pair.ours.fix(right)[:, None])[:, 0]
    torch.testing.assert_close(found, distance, rtol=0, atol=TOLERANCE)
    assert distance.min() > 0.004  # so that the tolerance says something


@pytest.mark.parametrize("name", ["dreamsim", "dreamsim-clip-vitb32", "dreamsim-dinov2-vitb14"])
def test_gradients_in_the_image_are_the_packages(pairs: dict[str, Pair], name: str) -> None:
    pair = pairs[name]
    left, right = images(2, 1), images(2, 2)
    mine, theirs = left.clone().requires_grad_(), left.clone().requires_grad_()
    fixed = pair.ours.fix(right)[:, None]
    (found,) = torch.autograd.grad((1 - pair.ours.similarities(mine, fixed)).sum(), mine)
    (expected,) = torch.autograd.grad(pair.theirs(theirs, right).sum(), theirs)
    assert expected.norm() > 0
    assert (found - expected).norm() / expected.norm() < 1e-5


@pytest.mark.parametrize("name", ["dreamsim", "dreamsim-clip-vitb32"])
def test_adapter_counts(pairs: dict[str, Pair], name: str, tmp_path: Path) -> None:
    """Were the adapter lost, or its scale, the parity above would still hold if it changed nothing."""
    pair = pairs[name]
    converted = convert(name, pair.folder, backbone=pair.backbone)
    assert converted.config["adapter"] == {"rank": RANK, "scale": 0.5 / RANK}
    half = extracted(zipped(pair.folder, tmp_path / "files.zip"), tmp_path / "half")
    adapter = half / VARIANTS[name].adapter
    edit_json(adapter / "adapter_config.json", lora_alpha=0.25)
    weaker = ours(name, convert(name, half, backbone=pair.backbone), tmp_path / "weaker")
    assert (weaker.embed(images()) - pair.ours.embed(images())).abs().max() > 1e-3


def test_zip_is_the_folder(pairs: dict[str, Pair], tmp_path: Path) -> None:
    pair = pairs["dreamsim"]
    archive = zipped(pair.folder, tmp_path / "ensemble.zip")
    before = sorted(path.name for path in tmp_path.iterdir())
    found = convert(pair.name, archive, backbone=pair.backbone)
    expected = convert(pair.name, pair.folder, backbone=pair.backbone)
    assert found.files == [archive, pair.folder / "tower.pth"]
    assert len(expected.files) == 5 and all(file.is_file() for file in expected.files)
    assert found.config == expected.config and same(found, pair)
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_members_of_a_zip_cannot_escape(pairs: dict[str, Pair], tmp_path: Path) -> None:
    archive = zipped(pairs["dreamsim-clip-vitb32"].folder, tmp_path / "c.zip")
    with zipfile.ZipFile(archive, "a") as file:
        file.writestr("../escaped.txt", "out")
        file.writestr("clip_vitb32_single_lora/../../escaped.txt", "out")
    convert("dreamsim-clip-vitb32", archive)
    assert not list(tmp_path.parent.glob("**/escaped.txt"))


def zipped(folder: Path, archive: Path) -> Path:
    with zipfile.ZipFile(archive, "w") as file:
        for path in sorted(folder.rglob("*")):
            if path.is_file() and path.name not in ("tower.pth", "converted.safetensors"):
                file.write(path, path.relative_to(folder))
    return archive


def extracted(archive: Path, folder: Path) -> Path:
    with zipfile.ZipFile(archive) as file:
        file.extractall(folder)
    return folder


def edit_json(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


# Where DINO's tower comes from.


@pytest.fixture
def dino(pairs: dict[str, Pair], tmp_path: Path) -> Path:
    """A zip of the single DINO, whose file has a student and no teacher."""
    return zipped(pairs["dreamsim-dino-vitb16"].folder, tmp_path / "dino.zip")


def tower_of(pair: Pair) -> dict[str, Tensor]:
    assert pair.backbone is not None
    state: dict[str, Tensor] = torch.load(pair.backbone, weights_only=True)
    return state


def same(found: Converted, pair: Pair) -> bool:
    expected = convert(pair.name, pair.folder, backbone=pair.backbone)
    assert found.tensors.keys() == expected.tensors.keys()
    return all(torch.equal(found.tensors[key], tensor) for key, tensor in expected.tensors.items())


@pytest.mark.parametrize("prefix", ["backbone.", "module.backbone.", ""])
def test_teacher_in_the_file(pairs: dict[str, Pair], tmp_path: Path, prefix: str) -> None:
    pair = pairs["dreamsim-dino-vitb16"]
    tower = {f"{prefix}{key}": tensor for key, tensor in tower_of(pair).items()}
    wrong = {key: tensor + 1 for key, tensor in tower.items()}
    again = extracted(zipped(pair.folder, tmp_path / "dino.zip"), tmp_path / "again")
    content = {"student": wrong, "teacher": tower | {"head.mlp.0.weight": torch.ones(2)}} if prefix else tower
    torch.save(content, again / "dino_vitb16_pretrain.pth")
    found = convert(pair.name, again)
    assert same(found, pair) and found.config["backbone"] == {"dino_vitb16": "dino_vitb16_pretrain.pth"}


def test_hub_folder_beside(pairs: dict[str, Pair], dino: Path) -> None:
    pair = pairs["dreamsim-dino-vitb16"]
    (dino.parent / "checkpoints").mkdir()
    beside = dino.parent / "checkpoints" / "dino_vitbase16_pretrain.pth"
    torch.save(tower_of(pair), beside)
    found = convert(pair.name, dino)
    assert same(found, pair) and found.files == [dino, beside]
    assert found.config["backbone"] == {"dino_vitb16": "checkpoints/dino_vitbase16_pretrain.pth"}


@pytest.mark.parametrize("name", ["dreamsim-dino-vitb16", "dreamsim-dinov2-vitb14"])
def test_manifest_model(pairs: dict[str, Pair], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """The clean model of the manifest, from its file as published; timm's rule would resample DINOv2's embeddings."""
    from rclip_metric.weights import locate

    pair = pairs[name]
    (branch,) = VARIANTS[name].branches
    asked = []
    file = tmp_path / "model.safetensors"
    save_file(tower_of(pair), file)

    def located(model: str) -> Any:
        asked.append(model)
        return replace(locate(file, base="dino-vit-b-16"), revision="abc")

    monkeypatch.setattr(dreamsim_files, "locate", located)
    found = convert(name, zipped(pair.folder, tmp_path / "files.zip"))
    assert same(found, pair) and asked == [BRANCHES[branch].clean]
    assert found.config["backbone"] == {branch: f"{BRANCHES[branch].clean}@abc"}


def test_no_backbone_to_be_had(dino: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(model: str) -> Any:
        raise NetworkError(f"No connection for {model}.")

    monkeypatch.setattr(dreamsim_files, "locate", unreachable)
    with pytest.raises(NetworkError) as caught:
        convert("dreamsim-dino-vitb16", dino)
    assert str(caught.value) == (
        f"{dino} does not hold the tower of dino_vitb16, and dino-vit-b-16 cannot be had in its place (No connection "
        "for dino-vit-b-16): pass dino_vitbase16_pretrain.pth as --backbone."
    )


def test_backbones_that_are_none(pairs: dict[str, Pair], dino: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="neither a file nor a model in the manifest"):
        convert("dreamsim-dino-vitb16", dino, backbone="dino-vit-b-61")
    with pytest.raises(CheckpointError, match="has no DINO tower: leave the backbone"):
        convert("dreamsim-clip-vitb32", pairs["dreamsim-clip-vitb32"].folder, backbone="dino-vit-b-16")
    state = tower_of(pairs["dreamsim-dino-vitb16"])
    short = tmp_path / "short.pth"
    torch.save({key: tensor for key, tensor in state.items() if key != "norm.bias"} | {"extra": torch.ones(1)}, short)
    with pytest.raises(CheckpointError, match=r"short.pth: .*missing norm.bias; unexpected extra"):
        convert("dreamsim-dino-vitb16", dino, backbone=str(short))
    with pytest.raises(CheckpointError, match="is no DINO tower"):
        torch.save({"x": torch.ones(1)}, short)
        convert("dreamsim-dino-vitb16", dino, backbone=str(short))


@pytest.mark.parametrize(("name", "expected"), [("dreamsim-dinov2-vitb14", 1370), ("dreamsim-dino-vitb16", 197)])
def test_position_embeddings_as_published(pairs: dict[str, Pair], tmp_path: Path, name: str, expected: int) -> None:
    """Once resampled by another rule, nothing shows it but their number."""
    pair = pairs[name]
    state = tower_of(pair)
    path = tmp_path / "resampled.pth"
    torch.save(state | {"pos_embed": torch.zeros(1, 257, WIDTH)}, path)
    with pytest.raises(CheckpointError, match=rf"pos_embed is \(1, 257, 48\), expected \(1, {expected}, 48\)"):
        convert(pair.name, pair.folder, backbone=str(path))


def test_resampling_is_cubic_convolution() -> None:
    """Keys 1981 with a = -0.75, sample i at (i + 1/2) * 37 / 16.1 - 1/2, the edge repeated: from the formula."""

    def kernel(t: float) -> float:
        a, t = -0.75, abs(t)
        if t <= 1:
            return (a + 2) * t**3 - (a + 3) * t**2 + 1
        return a * t**3 - 5 * a * t**2 + 8 * a * t - 4 * a if t < 2 else 0.0

    matrix = torch.zeros(16, 37, dtype=torch.float64)
    for i in range(16):
        x = (i + 0.5) * 37 / 16.1 - 0.5
        for j in range(math.floor(x) - 1, math.floor(x) + 3):
            matrix[i, min(max(j, 0), 36)] += kernel(x - j)
    embedding = torch.randn(1, 1 + 37 * 37, 3, generator=torch.Generator().manual_seed(0))
    grid = embedding[0, 1:].double().view(37, 37, 3)
    expected = torch.einsum("ai,bj,ijd->abd", matrix, matrix, grid).reshape(256, 3)
    found = resampled(embedding, 16)
    assert torch.equal(found[:, 0], embedding[:, 0])
    torch.testing.assert_close(found[0, 1:].double(), expected, rtol=0, atol=1e-4)
    from timm.layers import resample_abs_pos_embed

    timms = resample_abs_pos_embed(embedding, new_size=[16, 16], old_size=[37, 37])
    assert (timms[0, 1:] - expected).abs().max() > 0.1


# Files that are wrong.


@pytest.fixture
def clip(pairs: dict[str, Pair], tmp_path: Path) -> Path:
    """A copy of CLIP's folder, to be spoiled."""
    return extracted(zipped(pairs["dreamsim-clip-vitb32"].folder, tmp_path / "clip.zip"), tmp_path / "clip")


def one_sentence(error: pytest.ExceptionInfo[Exception], *parts: str) -> None:
    text = str(error.value)
    assert "\n" not in text and all(part in text for part in parts), text


def test_wrong_variant(pairs: dict[str, Pair], tmp_path: Path) -> None:
    archive = zipped(pairs["dreamsim-clip-vitb32"].folder, tmp_path / "c.zip")
    with pytest.raises(CheckpointError) as caught:
        convert("dreamsim-open-clip-vitb32", archive)
    assert str(caught.value) == (
        f"{archive} has no open_clip_vitb32_pretrain.pth.tar, open_clip_vitb32_single_lora and cannot be "
        "dreamsim-open-clip-vitb32: it is dreamsim-clip-vitb32."
    )
    with pytest.raises(CheckpointError, match="it is none of DreamSim's"):
        (tmp_path / "empty").mkdir()
        convert("dreamsim", tmp_path / "empty")


def test_truncated_zip(clip: Path, tmp_path: Path) -> None:
    whole = tmp_path / "clip.zip"
    cut = tmp_path / "cut.zip"
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    with pytest.raises(CheckpointError) as caught:
        convert("dreamsim-clip-vitb32", cut)
    one_sentence(caught, f"{cut} is neither a folder nor a whole zip file")
    damaged = tmp_path / "damaged.zip"
    content = bytearray(whole.read_bytes())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        convert("dreamsim-clip-vitb32", damaged)
    one_sentence(caught, f"{damaged} is damaged")


class Calls:
    def __reduce__(self) -> Any:
        return print, ("run",)


def test_pickle_with_code(clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"state_dict": {"proj": Calls()}}, clip / "clip_vitb32_pretrain.pth.tar")
    for source in (clip, zipped(clip, tmp_path / "code.zip")):
        with pytest.raises(CheckpointError) as caught:
            convert("dreamsim-clip-vitb32", source)
        one_sentence(caught, f"{source}/clip_vitb32_pretrain.pth.tar is not a file of plain tensors")
    (clip / "clip_vitb32_single_lora" / "adapter_model.safetensors").unlink()
    (clip / "clip_vitb32_single_lora" / "adapter_model.bin").write_bytes(pickle.dumps(Calls(), protocol=2))
    with pytest.raises(CheckpointError) as caught:
        convert("dreamsim-clip-vitb32", clip)
    one_sentence(caught, "adapter_model.bin is not a file of plain tensors")
    assert capsys.readouterr().out == ""


def test_clip_tower_is_read_strictly(clip: Path) -> None:
    path = clip / "clip_vitb32_pretrain.pth.tar"
    state = torch.load(path, weights_only=True)["state_dict"]
    lost = {key: tensor for key, tensor in state.items() if key != "pos_drop.bias"}
    torch.save({"state_dict": lost | {"head.weight": torch.ones(1)}}, path)
    with pytest.raises(CheckpointError) as caught:
        convert("dreamsim-clip-vitb32", clip)
    one_sentence(caught, f"{path} is not the CLIP tower: missing pos_drop.bias; unexpected head.weight.")
    torch.save({"state_dict": state | {"pos_embed": torch.ones(1, 5, WIDTH)}}, path)
    with pytest.raises(CheckpointError) as caught:
        convert("dreamsim-clip-vitb32", clip)
    one_sentence(caught, str(path), "pos_embed", "(1, 5, 48)", "(1, 50, 48)")
    torch.save({"state_dict": state | {"proj": torch.ones(1, 2, 3)}}, path)
    with pytest.raises(CheckpointError) as caught:
        convert("dreamsim-clip-vitb32", clip)
    one_sentence(caught, str(path), "(1, 2, 3)", "(20, 48)")


def test_adapter_is_read_strictly(clip: Path) -> None:
    adapter = clip / "clip_vitb32_single_lora"
    path = adapter / "adapter_model.safetensors"
    from safetensors.torch import load

    whole = load(path.read_bytes())
    key = "base_model.model.extractor_list.0.model.blocks.7.attn.qkv.lora_B.weight"
    cases = {
        "missing blocks.7.attn.qkv.lora_B": {name: tensor for name, tensor in whole.items() if name != key},
        "unexpected extractor_list.0.proj": whole | {"extractor_list.0.proj": torch.ones(1)},
        "extractor_list.1.model": whole | {key.replace("list.0", "list.1"): whole[key].clone()},
        "unexpected blocks.7.attn.proj": whole | {key.replace("qkv", "proj"): whole[key].clone()},
        "unexpected extractor_list.0.model": whole | {key.removeprefix("base_model.model."): whole[key].clone()},
        "(9, 4)": whole | {key: torch.ones(9, 4)},
    }
    for expected, tensors in cases.items():
        save_file(tensors, path)
        with pytest.raises(CheckpointError) as caught:
            convert("dreamsim-clip-vitb32", clip)
        one_sentence(caught, str(adapter), expected)
    save_file(whole, path)
    edit_json(adapter / "adapter_config.json", target_modules=["query"])
    with pytest.raises(CheckpointError, match="adapts no layer of clip_vitb32"):
        convert("dreamsim-clip-vitb32", clip)
    edit_json(adapter / "adapter_config.json", target_modules=["qkv"], use_dora=True)
    with pytest.raises(CheckpointError, match="use_dora"):
        convert("dreamsim-clip-vitb32", clip)


@pytest.mark.parametrize(
    "targets",
    [
        r"extractor_list\.0\.model\.blocks\.\d+\.attn\.qkv",
        [f"extractor_list.0.model.blocks.{i}.attn.qkv" for i in range(12)],
    ],
)
def test_targets_by_full_name(pairs: dict[str, Pair], clip: Path, targets: Any) -> None:
    edit_json(clip / "clip_vitb32_single_lora" / "adapter_config.json", target_modules=targets)
    pair = pairs["dreamsim-clip-vitb32"]
    assert same(convert(pair.name, clip), pair)


def test_converted_file_of_another(pairs: dict[str, Pair], tmp_path: Path) -> None:
    pair = pairs["dreamsim-clip-vitb32"]
    path = tmp_path / "c.safetensors"
    converted = convert(pair.name, pair.folder)
    lost = {key: tensor for key, tensor in converted.tensors.items() if not key.endswith("norm_pre.bias")}
    write_stored(pair.name, replace(converted, tensors=lost), path)
    with pytest.raises(CheckpointError, match=r"c.safetensors: .*norm_pre.bias"):
        build(pair.name, Request(weights=path))
    write_stored(pair.name, replace(converted, tensors={**converted.tensors, "dino.x": torch.ones(1)}), path)
    with pytest.raises(CheckpointError, match=r"dino\.x belongs to none of the towers"):
        build(pair.name, Request(weights=path))
    with pytest.raises(CheckpointError, match="holds dreamsim-clip-vitb32, and dreamsim was asked for"):
        build("dreamsim", Request(weights=path))
    with pytest.raises(UnknownModelError, match="rclip-metric train baseline dreamsim"):
        build("dreamsim", Request(weights=tmp_path / "none"))


# What is built.


def test_random_weights() -> None:
    state = torch.random.get_rng_state()
    first, second = (build("dreamsim", Request(random=True)) for _ in range(2))
    assert torch.equal(torch.random.get_rng_state(), state)
    batch = images()
    assert torch.equal(first.embed(batch), second.embed(batch)) and first.embed(batch).shape == (2, 88)
    assert first.name == "dreamsim@random" and first.facts.licence == "MIT"
    assert not any(parameter.requires_grad for parameter in first.function.parameters())  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", ["dreamsim", "dreamsim-open-clip-vitb32"])
def test_batch_of_one(pairs: dict[str, Pair], name: str) -> None:
    """Ten images are worked through in chunks, and one alone keeps its dimension."""
    metric = pairs[name].ours
    batch = images(10)
    whole = metric.fix(batch)
    alone = torch.cat([metric.fix(image[None]) for image in batch])
    torch.testing.assert_close(alone, whole, rtol=0, atol=1e-6)


def test_facts_and_description(pairs: dict[str, Pair]) -> None:
    metric = pairs["dreamsim"].ours
    theirs = pairs["dreamsim"].theirs.get_base_model()
    # LoRA is merged; the package's DINO has a last norm that nothing reads, and a head for training.
    parts = [
        parameter.numel()
        for key, parameter in theirs.named_parameters()
        if "lora_" not in key and not key.startswith(("extractor_list.0.proj", "extractor_list.0.model.norm."))
    ]
    assert metric.facts.parameters == sum(parts)
    about = metric.describe()
    assert about["backbone"] == {"dino_vitb16": "tower.pth"} and about["similarity"] == "cosine"
    assert metric.revision is not None and metric.revision.startswith("sha256:")
    json.dumps(about)


@pytest.mark.parametrize("name", ["dreamsim", "dreamsim-dinov2-vitb14"])
def test_bfloat16_copy(pairs: dict[str, Pair], name: str) -> None:
    """Towers in bfloat16 move distances by less than 0.002 (found: 5e-4); head, images, the original stay float32."""
    metric = pairs[name].ours
    left, right = images(2, 1), images(2, 2)
    before = metric.similarities(left, metric.fix(right)[:, None])
    half = metric.in_bfloat16()
    found = half.similarities(left, half.fix(right)[:, None])
    assert found.dtype == torch.float32
    assert {p.dtype for p in half.function.parameters()} == {torch.bfloat16}  # type: ignore[attr-defined]
    assert 0 < (found - before).abs().max() < 0.002
    assert torch.equal(metric.similarities(left, metric.fix(right)[:, None]), before)
    image = left[:1].clone().requires_grad_()
    (gradient,) = torch.autograd.grad(half.similarities(image, metric.fix(right[:1])[:, None]).sum(), image)
    assert gradient.dtype == torch.float32 and gradient.isfinite().all() and gradient.norm() > 0


def test_other_sizes_are_refused(pairs: dict[str, Pair]) -> None:
    with pytest.raises(ValueError, match="224"):
        pairs["dreamsim"].ours.embed(torch.rand(1, 3, 64, 64))
