"""Names, paths and Hub ids to encoders: bit for bit, rightly preprocessed, or one sentence why not."""

import json
import os
import pickle
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save, save_file
from torch import Tensor

from rclip_metric.encoder import ConvNeXtArchitecture, Encoder, ViTArchitecture
from rclip_metric.errors import (
    CheckpointError,
    DigestError,
    ManifestError,
    NotFoundError,
    StorageError,
    UnknownModelError,
)
from rclip_metric.images import CLIP_MEAN, CLIP_STD, IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from rclip_metric.weights import (
    download,
    get_spec,
    is_cached,
    load_encoder,
    local,
    locate,
    manifest,
    save_encoder,
    short_digest,
    tensors_digest,
    verify,
)

from support.images import noise

VIT = ViTArchitecture(image_size=32, patch_size=8, width=64, depth=2, heads=1, projection=32)
CONVNEXT = ConvNeXtArchitecture(image_size=64, depths=(1, 1, 2, 1), widths=(8, 16, 24, 32), projection=16)
CROP = Preprocessing("crop", 40, 32)
SQUASH = Preprocessing("squash", 64, 64, mean=IMAGENET_MEAN, std=IMAGENET_STD)
OPEN_CLIP = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "patch_size": 8},
    "text_cfg": {"context_length": 8, "vocab_size": 50, "width": 32, "heads": 1, "layers": 1},
}


def random_encoder(architecture: Any = VIT, preprocessing: Preprocessing = CROP, **options: Any) -> Encoder:
    torch.manual_seed(0)
    encoder = Encoder(architecture, preprocessing, **options).eval()
    for parameter in encoder.parameters():  # also those that start at zero or one
        torch.nn.init.normal_(parameter, std=0.1)
    return encoder


def images(side: int = 50) -> Tensor:
    return noise(2, 3, side, side + 7, seed=1)


def assert_same(one: Encoder, other: Encoder) -> None:
    """Equal in every bit of the weights, in all settings, and in what they compute."""
    first, second = one.state_dict(), other.state_dict()
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)
    for setting in ("architecture", "preprocessing", "mlp_hidden", "resize", "name", "domain"):
        assert getattr(one, setting) == getattr(other, setting)
    with torch.no_grad():
        size = one.image_size if one.resize is None else 50
        batch = images(size)[..., : one.image_size] if one.resize is None else images()
        assert torch.equal(one.eval()(batch), other.eval()(batch))


@pytest.fixture(scope="module")
def clip() -> Any:
    """A whole OpenCLIP model, text tower and all, with random weights."""
    torch.manual_seed(0)
    return open_clip.CLIP(**OPEN_CLIP).eval()


@pytest.fixture
def clip_folder(clip, tmp_path) -> Path:
    """Published as OpenCLIP publishes."""
    folder = tmp_path / "published"
    folder.mkdir()
    save_file(
        {key: value.contiguous() for key, value in clip.state_dict().items()},
        folder / "open_clip_model.safetensors",
    )
    stated = {"mean": CLIP_MEAN, "std": CLIP_STD, "interpolation": "bicubic", "resize_mode": "shortest"}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": OPEN_CLIP, "preprocess_cfg": stated}))
    return folder


def entry(**changes: Any) -> dict[str, Any]:
    """A manifest entry for the small OpenCLIP model."""
    common = manifest.load_manifest()["models"]["r-clip-f-vit-b-16"]
    small = {
        "architecture": {"kind": "vit"} | {k: v for k, v in vars(VIT).items() if k != "kind"},
        "embedding_dim": 32,
        "preprocessing": json.loads(json.dumps(CROP.to_dict())),
        "repo": "owner/small",
        "revision": None,
        "files": None,
    }
    return common | small | changes


@pytest.fixture
def add_models(monkeypatch, tmp_path) -> Iterator[Any]:
    """Adds entries to the manifest, in a file of its own."""

    def add(**entries: dict[str, Any]) -> None:
        models = {**original["models"], **{name.replace("_", "-"): value for name, value in entries.items()}}
        path = tmp_path / "weights_manifest.json"
        path.write_text(json.dumps({**original, "models": models}))
        monkeypatch.setattr(manifest, "manifest_path", lambda: path)
        manifest._specs.cache_clear()

    original = manifest.load_manifest()
    yield add
    manifest._specs.cache_clear()


class TestOurFormat:
    @pytest.mark.parametrize(
        "encoder",
        [
            lambda: random_encoder(name="mine", revision="abc"),
            lambda: random_encoder(CONVNEXT, SQUASH, mlp_hidden=12),
            lambda: random_encoder(resize="squash"),
            lambda: random_encoder(resize=None),
        ],
        ids=["vit", "convnext-mlp", "squash", "strict"],
    )
    def test_a_round_trip_is_exact(self, encoder, tmp_path):
        encoder = encoder()
        folder = save_encoder(encoder, tmp_path / "a" / "b")
        assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]
        for path in (folder, str(folder), folder / "model.safetensors"):
            loaded = load_encoder(path)
            assert_same(encoder, loaded)
            assert loaded.revision == short_digest(tensors_digest(encoder.state_dict()))

    def test_what_the_caller_says_of_resizing_counts(self, tmp_path):
        folder = save_encoder(random_encoder(resize="squash"), tmp_path)
        assert load_encoder(folder).resize == "squash"
        assert load_encoder(folder, resize="published").resize == "published"
        assert load_encoder(folder, resize=None).resize is None

    def test_half_precision_is_kept_and_widened(self, tmp_path):
        encoder = random_encoder()
        folder = save_encoder(random_encoder().half(), tmp_path)
        loaded = load_encoder(folder)
        assert all(value.dtype == torch.float32 for value in loaded.state_dict().values())
        assert (folder / "model.safetensors").stat().st_size < 0.6 * sum(4 * p.numel() for p in encoder.parameters())
        for key, value in encoder.state_dict().items():
            assert torch.equal(loaded.state_dict()[key], value.half().float())

    def test_another_save_replaces_the_first_even_under_its_own_reader(self, tmp_path):
        save_encoder(random_encoder(), tmp_path)
        mapped = load_encoder(tmp_path)
        with torch.no_grad():
            next(mapped.parameters()).add_(1.0)
        expected = {key: value.clone() for key, value in mapped.state_dict().items()}
        save_encoder(mapped, tmp_path, training=None, license="MIT", notes="shifted")
        assert all(torch.equal(value, expected[key]) for key, value in load_encoder(tmp_path).state_dict().items())
        assert all(torch.equal(value, expected[key]) for key, value in mapped.state_dict().items())
        assert locate(tmp_path).spec.license == "MIT"

    def test_the_weights_are_mapped_and_not_copied(self, tmp_path):
        if not Path("/proc/self/maps").exists():
            pytest.skip("needs the list of mappings that Linux gives")
        loaded = load_encoder(save_encoder(random_encoder(), tmp_path))
        ranges = [
            [int(end, 16) for end in line.split()[0].split("-")]
            for line in Path("/proc/self/maps").read_text().splitlines()
            if line.endswith("model.safetensors")
        ]
        assert ranges
        for parameter in loaded.parameters():
            assert any(start <= parameter.data_ptr() < end for start, end in ranges)

    def test_changing_the_weights_in_memory_leaves_the_file_alone(self, tmp_path):
        path = save_encoder(random_encoder(), tmp_path) / "model.safetensors"
        before = path.read_bytes()
        with torch.no_grad():
            for parameter in load_encoder(path).parameters():
                parameter.zero_()
        assert path.read_bytes() == before

    def test_a_save_that_fails_leaves_the_old_files_and_no_half_ones(self, tmp_path):
        encoder = random_encoder()
        with pytest.raises(StorageError, match=r"cannot be saved in .*Not a directory"):
            (tmp_path / "file").write_text("")
            save_encoder(encoder, tmp_path / "file" / "folder")
        folder = save_encoder(encoder, tmp_path / "folder")
        (folder / "config.json").unlink()
        (folder / "config.json").mkdir()
        with pytest.raises(StorageError, match=r"cannot be saved in .*directory"):
            save_encoder(encoder, folder)
        assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]

    def test_what_it_knows_goes_with_the_weights(self, tmp_path):
        drawn = random_encoder(domain="drawn scenes")
        folder = save_encoder(drawn, tmp_path / "drawn")
        assert_same(load_encoder(folder), drawn)
        assert_same(load_encoder(folder / "model.safetensors"), drawn)
        assert locate(folder).spec.to_dict()["domain"] == "drawn scenes"
        assert "knows='drawn scenes only'" in repr(load_encoder(folder))
        anything = save_encoder(random_encoder(), tmp_path / "anything")
        assert "domain" not in (anything / "config.json").read_text()  # earlier versions read it
        assert "knows" not in repr(load_encoder(anything))

    def test_training_has_the_fields_of_the_manifest(self, tmp_path):
        training = {"method": "FARE", "norm": "linf", "eps": "4/255", "data": "scenes", "base": None}
        assert locate(save_encoder(random_encoder(), tmp_path, training=training)).spec.training == training
        with pytest.raises(ManifestError, match=r"field 'training.norm': is missing"):
            save_encoder(random_encoder(), tmp_path, training={"method": "FARE"})

    @pytest.mark.parametrize(
        "change, complaint",
        [
            ({"format_version": 2}, "'format_version': got 2"),
            ({"colour": 1}, "'colour': is not known"),
            ({"resize": "stretch"}, "'resize': expected one of"),
            ({"name": None}, "'name': expected a text"),
            ({"embedding_dim": 33}, "'embedding_dim': the architecture gives 32"),
            ({"preprocessing": {"mode": "crop"}}, "'preprocessing': "),
            ({"architecture": {"kind": "vit"}}, "'architecture': "),
        ],
    )
    def test_a_malformed_config_is_named_with_its_field(self, change, complaint, tmp_path):
        folder = save_encoder(random_encoder(), tmp_path)
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | change))
        with pytest.raises(ManifestError, match=f"config.json, field {complaint}"):
            load_encoder(folder)

    def test_a_config_of_other_weights_is_refused(self, tmp_path):
        one = save_encoder(random_encoder(preprocessing=CROP), tmp_path / "one")
        other = save_encoder(random_encoder(preprocessing=Preprocessing("crop", 32, 32)), tmp_path / "other")
        os.replace(other / "config.json", one / "config.json")
        with pytest.raises(CheckpointError, match=r"says preprocessing .* do not belong together"):
            load_encoder(one)
        (one / "model.safetensors").unlink()
        with pytest.raises(CheckpointError, match="There is no file"):
            load_encoder(one)

    def test_base_is_refused_where_the_weights_say_it_themselves(self, tmp_path):
        folder = save_encoder(random_encoder(), tmp_path)
        for path in (folder, folder / "model.safetensors"):
            with pytest.raises(CheckpointError, match="leave base='tiny' out"):
                load_encoder(path, base="tiny")

    @pytest.mark.parametrize(
        "key, value, complaint",
        [
            ("tower.trunk.norm.weight", None, "missing.*tower.trunk.norm.weight"),
            ("tower.trunk.extra", torch.zeros(1), "unexpected.*tower.trunk.extra"),
            ("tower.trunk.norm.weight", torch.zeros(3), "tower.trunk.norm.weight"),
        ],
    )
    def test_keys_and_shapes_are_strict_and_named(self, key, value, complaint, tmp_path):
        path = save_encoder(random_encoder(), tmp_path) / "model.safetensors"
        with safe_open(path, "pt") as file:
            metadata, state = file.metadata(), {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
        state.pop(key, None)
        save_file(state if value is None else state | {key: value}, path, metadata)
        with pytest.raises(CheckpointError, match=f"{re.escape(str(path))}: .*{complaint}"):
            load_encoder(path)


class TestPublishedLayouts:
    def test_an_open_clip_folder_gives_open_clips_own_embeddings(self, clip, clip_folder):
        loaded = load_encoder(clip_folder).eval()
        assert loaded.preprocessing == Preprocessing("crop", 32, 32)
        assert (loaded.name, loaded.architecture) == ("published", VIT)
        batch = images(32)[..., :32]
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (CLIP_MEAN, CLIP_STD))
        with torch.no_grad():
            expected = clip.encode_image((batch - mean) / std)
            assert (loaded(batch) - expected).abs().max() < 1e-5

    def test_its_preprocessing_is_read(self, clip_folder):
        config = json.loads((clip_folder / "open_clip_config.json").read_text())
        config["preprocess_cfg"] |= {"resize_mode": "squash", "mean": [0.5, 0.5, 0.5]}
        (clip_folder / "open_clip_config.json").write_text(json.dumps(config))
        found = load_encoder(clip_folder).preprocessing
        assert found == Preprocessing("squash", 32, 32, mean=(0.5, 0.5, 0.5))
        config["preprocess_cfg"]["resize_mode"] = "longest"
        (clip_folder / "open_clip_config.json").write_text(json.dumps(config))
        with pytest.raises(CheckpointError, match="resize_mode must be shortest or squash, got 'longest'"):
            load_encoder(clip_folder)

    def test_a_pickle_is_read_only_where_there_is_nothing_else(self, clip, clip_folder):
        good = load_encoder(clip_folder)
        torch.save({"not": "weights"}, clip_folder / "open_clip_pytorch_model.bin")
        assert_same(good, load_encoder(clip_folder))
        (clip_folder / "open_clip_model.safetensors").unlink()
        with pytest.raises(CheckpointError, match="not a plain state dict"):
            load_encoder(clip_folder)
        torch.save(clip.state_dict(), clip_folder / "open_clip_pytorch_model.bin")
        assert_same(good, load_encoder(clip_folder))

    def test_a_folder_with_neither_is_refused(self, clip_folder):
        (clip_folder / "open_clip_model.safetensors").unlink()
        with pytest.raises(CheckpointError, match=r"has none of open_clip_model.safetensors"):
            load_encoder(clip_folder)
        (clip_folder / "open_clip_config.json").unlink()
        with pytest.raises(CheckpointError, match=r"neither a config.json"):
            load_encoder(clip_folder)

    @pytest.mark.parametrize("side", [224, 256])
    def test_a_convnext_folder_never_loads_with_its_own_resize(self, side, tmp_path):
        """Whatever its config says, the published numbers are from 256 cropped to 224."""
        vision = {
            "timm_model_name": "convnext_base",
            "timm_pool": "",
            "timm_proj": "linear",
            "image_size": side,
        }
        config = {"model_cfg": {"embed_dim": 640, "vision_cfg": vision}, "preprocess_cfg": {}}
        (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
        (tmp_path / "open_clip_model.safetensors").write_bytes(b"")
        with pytest.raises(CheckpointError, match='pass base="r-clip-f"'):
            locate(tmp_path)
        found = locate(tmp_path, base="r-clip-f").spec
        assert (found.preprocessing.resize, found.preprocessing.crop) == (256, 224)
        assert found.architecture == get_spec("r-clip-f").architecture and found.name == tmp_path.name

    def test_a_base_of_another_tower_is_refused(self, tmp_path):
        """The string TRUE makes it a QuickGELU tower, whose weights fit the other one as well."""
        vision = {"image_size": 224, "layers": 24, "width": 1024, "patch_size": 14}
        config = {"model_cfg": {"embed_dim": 768, "quick_gelu": "TRUE", "vision_cfg": vision}}
        (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
        (tmp_path / "open_clip_pytorch_model.bin").write_bytes(b"")
        assert locate(tmp_path).spec.architecture == get_spec("r-clip-t-vit-l-14").architecture
        assert locate(tmp_path, base="r-clip-t-vit-l-14").layout == "open-clip"
        config["model_cfg"]["quick_gelu"] = False
        (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
        with pytest.raises(CheckpointError, match="describes another tower than base='r-clip-t-vit-l-14'"):
            locate(tmp_path, base="r-clip-t-vit-l-14")

    def test_a_transformers_folder_needs_a_base(self, tmp_path):
        """Its preprocessor says mean 0.5 and its config eps 1e-12, and both are wrong for DINO."""
        (tmp_path / "config.json").write_text(json.dumps({"model_type": "vit", "layer_norm_eps": 1e-12}))
        (tmp_path / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.5] * 3}))
        (tmp_path / "model.safetensors").write_bytes(b"")
        with pytest.raises(CheckpointError, match=r"does not say how its images .* base="):
            locate(tmp_path)
        found = locate(tmp_path, base="r-dino-f")
        assert found.layout == "transformers-vit" and found.spec.preprocessing.mean == IMAGENET_MEAN
        assert found.spec.architecture.norm_eps == 1e-6 and found.spec.reported == {}

    @pytest.mark.parametrize("name", ["visual.pt", "visual.safetensors"])
    def test_a_bare_tower_needs_a_base(self, name, clip, add_models, tmp_path):
        add_models(small=entry())
        state = {key: value.clone() for key, value in clip.visual.state_dict().items()}
        (torch.save if name.endswith(".pt") else save_file)(state, tmp_path / name)
        with pytest.raises(CheckpointError, match=r'visual.* does not say .*base="r-clip-f"'):
            load_encoder(tmp_path / name)
        loaded = load_encoder(tmp_path / name, base="small").eval()
        assert (loaded.preprocessing, loaded.name) == (CROP, name)
        with torch.no_grad():
            mean, std = (torch.tensor(values).view(3, 1, 1) for values in (CLIP_MEAN, CLIP_STD))
            batch = images(32)[..., :32]
            assert (loaded(batch) - clip.encode_image((batch - mean) / std)).abs().max() < 1e-5

    def test_a_pickle_that_would_run_code_does_not(self, add_models, tmp_path):
        class Evil:
            def __reduce__(self) -> Any:
                return os.mkdir, (str(tmp_path / "ran"),)

        add_models(small=entry())
        (tmp_path / "old.pt").write_bytes(pickle.dumps({"visual.proj": Evil()}, protocol=2))
        torch.save({"visual.proj": Evil()}, tmp_path / "new.pt")
        for name in ("old.pt", "new.pt"):
            with pytest.raises(CheckpointError, match="not a file of plain tensors"):
                load_encoder(tmp_path / name, base="small")
        assert not (tmp_path / "ran").exists()

    @pytest.mark.parametrize("content", [b"", b"garbage" * 100])
    @pytest.mark.parametrize("name", ["x.safetensors", "x.bin"])
    def test_an_unreadable_file_is_refused(self, content, name, tmp_path):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(CheckpointError, match=re.escape(str(tmp_path / name))):
            load_encoder(tmp_path / name, base="r-clip-f")


class TestNamedModels:
    """Through the loopback Hub, as r-clip-f comes from the real one."""

    @pytest.fixture
    def small(self, hub, add_models, clip) -> bytes:
        """An entry "small" and its repository."""
        content = save({key: value.contiguous() for key, value in clip.state_dict().items()})
        commit = hub.commit("owner/small", {"open_clip_model.safetensors": content})
        add_models(small=entry(revision=commit[:7]))
        return content

    def test_a_name_loads_and_knows_its_commit(self, hub, small, clip_folder, tmp_path):
        assert not is_cached(get_spec("small"), tmp_path)
        loaded = load_encoder("small", cache_dir=tmp_path)
        assert (loaded.name, loaded.revision) == ("small", hub.repos["owner/small"].head)
        assert is_cached(get_spec("small"), tmp_path)
        hub.requests.clear()
        assert_same(loaded, load_encoder("small", cache_dir=tmp_path))
        assert not hub.requests
        expected = load_encoder(clip_folder, base="small").state_dict()
        assert all(torch.equal(value, expected[key]) for key, value in loaded.state_dict().items())

    def test_the_manifests_digest_counts(self, hub, small, add_models, tmp_path):
        add_models(small=entry(files=[{"name": "open_clip_model.safetensors", "sha256": "0" * 64, "size": None}]))
        with pytest.raises(DigestError):
            load_encoder("small", cache_dir=tmp_path)
        hub.commit("owner/small", {"README.md": b"another revision, whose digest the manifest does not know"})
        head = hub.repos["owner/small"].head
        assert load_encoder("small", revision=head, cache_dir=tmp_path).revision == head

    def test_a_branch_is_followed_where_it_is_asked_for(self, hub, small, tmp_path):
        pinned = locate("small", cache_dir=tmp_path).revision
        newer = hub.commit("owner/small", {"README.md": b"newer"})
        assert locate("small", cache_dir=tmp_path).revision == pinned
        assert locate("small", revision="main", cache_dir=tmp_path).revision == newer

    def test_download_and_verify(self, small, tmp_path):
        with pytest.raises(
            NotFoundError, match=r"small is not in the cache .*: `rclip-metric download small` fetches it once \("
        ):
            verify("small", cache_dir=tmp_path)
        path = download("small", cache_dir=tmp_path)
        assert path.read_bytes() == small
        assert verify("small", cache_dir=tmp_path) == path.resolve().name
        path.resolve().write_bytes(small[:-1])
        with pytest.raises(DigestError):
            verify("small", cache_dir=tmp_path)
        assert download("small", cache_dir=tmp_path).read_bytes() == small

    def test_the_repository_of_an_entry_is_that_entry(self, small, tmp_path):
        assert locate("owner/small", cache_dir=tmp_path) == locate("small", cache_dir=tmp_path)

    def test_a_pickle_is_downloaded_only_where_nothing_else_is_listed(self, hub, add_models, clip, tmp_path):
        torch.save(clip.state_dict(), tmp_path / "x.bin")
        hub.commit("owner/small", {"open_clip_pytorch_model.bin": (tmp_path / "x.bin").read_bytes()})
        add_models(small=entry())
        with pytest.raises(NotFoundError, match=r"has no open_clip_model.safetensors or .* \(404\)"):
            load_encoder("small", cache_dir=tmp_path)
        listed = {"name": "open_clip_pytorch_model.bin", "sha256": None, "size": None}
        add_models(small=entry(files=[listed]))
        assert load_encoder("small", cache_dir=tmp_path).architecture == VIT

    def test_another_repository_in_a_published_layout(self, hub, small, tmp_path):
        hub.commit("else/where", {"open_clip_model.safetensors": small})
        with pytest.raises(NotFoundError, match=r"else/where has no config.json.*pass base="):
            load_encoder("else/where", cache_dir=tmp_path)
        loaded = load_encoder("else/where", base="small", cache_dir=tmp_path)
        assert (loaded.name, loaded.revision) == ("else/where", hub.repos["else/where"].head)
        expected = load_encoder("small", cache_dir=tmp_path).state_dict()
        assert all(torch.equal(value, expected[key]) for key, value in loaded.state_dict().items())
        hub.commit("else/torch", {"open_clip_pytorch_model.bin": b""})
        with pytest.raises(NotFoundError, match=r"has no open_clip_model.safetensors or .*model.safetensors on the"):
            load_encoder("else/torch", base="tiny", cache_dir=tmp_path)

    def test_a_repository_with_another_projects_config(self, hub, tmp_path):
        hub.commit("else/where", {"config.json": b'{"model_type": "clip"}'})
        with pytest.raises(ManifestError, match=r"config.json of else/where is not .*pass base="):
            load_encoder("else/where", cache_dir=tmp_path)

    @pytest.mark.parametrize("name", ["r-clip-f+lora", "r-clip-t-vit-b-16+mlp"])
    def test_what_is_not_on_the_hub_says_where_it_is(self, name):
        with pytest.raises(UnknownModelError, match=r"cannot be loaded by its name: .*https://.*Pass its path"):
            load_encoder(name)
        assert not is_cached(get_spec(name))

    def test_what_is_not_there(self, tmp_path):
        with pytest.raises(UnknownModelError, match=r"did you mean 'r-clip-f'"):
            load_encoder("rclip-f")
        for missing in ("./none", "folder/none.safetensors", "none.pt", tmp_path / "none", Path("tiny")):
            with pytest.raises(UnknownModelError, match=r"no file or folder|no model|no folder"):
                load_encoder(missing, local_files_only=True)
        with pytest.raises(UnknownModelError, match="in the manifest: leave base='tiny' out"):
            load_encoder("r-clip-f", base="tiny")

    def test_a_packaged_model_is_checked(self, add_models, tmp_path, monkeypatch):
        save_encoder(random_encoder(), tmp_path / "models")
        os.replace(tmp_path / "models" / "model.safetensors", tmp_path / "models" / "pack.safetensors")
        file = {"name": "models/pack.safetensors", "sha256": None, "size": None}
        shipped = {"source": "package", "repo": None, "layout": "rclip-metric"}
        add_models(pack=entry(**shipped, files=[file]))
        with pytest.raises(CheckpointError, match="pack is missing from this installation"):
            load_encoder("pack")
        monkeypatch.setattr(local, "__file__", str(tmp_path / "weights" / "local.py"))
        assert is_cached(get_spec("pack")) and load_encoder("pack").revision is None
        sha256 = verify("pack")
        add_models(pack=entry(**shipped, files=[file | {"sha256": sha256}]))
        assert load_encoder("pack").revision == f"sha256:{sha256[:12]}"
        add_models(pack=entry(**shipped, files=[file | {"sha256": "0" * 64}]))
        with pytest.raises(DigestError):
            load_encoder("pack")


@pytest.mark.parametrize("name", ["tiny", "tiny-clean"])
def test_the_shipped_models_are_what_their_entries_say(name):
    if not is_cached(get_spec(name)):
        pytest.skip("is not made yet")
    own = locate(locate(name).path)
    spec = get_spec(name)
    assert own.spec.preprocessing == spec.preprocessing
    assert own.spec.architecture == spec.architecture
    assert spec.files[0].sha256 is not None
    assert load_encoder(name).name == name


def test_our_repository_on_the_hub(hub, tmp_path):
    encoder = random_encoder(CONVNEXT, SQUASH, mlp_hidden=12, name="mine", resize="squash")
    folder = save_encoder(encoder, tmp_path / "mine")
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    first = hub.commit("me/mine", files)
    cache = tmp_path / "cache"
    loaded = load_encoder("me/mine", cache_dir=cache)
    assert_same(encoder, loaded)
    assert loaded.revision == first

    other = save_encoder(random_encoder(CONVNEXT, SQUASH, name="mine"), tmp_path / "other")
    second = hub.commit("me/mine", {path.name: path.read_bytes() for path in other.iterdir()})
    assert load_encoder("me/mine", cache_dir=cache).revision == second
    hub.requests.clear()
    assert_same(encoder, load_encoder("me/mine", revision=first[:7], cache_dir=cache))
    assert not hub.requests
    assert load_encoder("me/mine", cache_dir=cache, local_files_only=True).revision == second

    hub.commit("me/mine", {"model.safetensors": files["model.safetensors"]})
    with pytest.raises(CheckpointError, match="do not belong together"):
        load_encoder("me/mine", cache_dir=cache)


@pytest.mark.weights
@pytest.mark.parametrize("name", ["r-clip-f", "r-dino-f", "r-clip-f-vit-b-16", "r-clip-t-vit-l-14"])
def test_released_weights_load(name, outside_environment):
    """From the user's own cache, and only from there."""
    home = Path(outside_environment.get("HF_HOME", Path.home() / ".cache" / "huggingface"))
    cache = Path(outside_environment.get("HF_HUB_CACHE", home / "hub"))
    if not is_cached(get_spec(name), cache):
        pytest.skip(f"{name} is not in the Hub cache")
    encoder = load_encoder(name, cache_dir=cache, local_files_only=True).eval()
    with torch.no_grad():
        embeddings = encoder(images(256))
    assert embeddings.shape == (2, get_spec(name).embedding_dim) and embeddings.isfinite().all()


def test_a_spec_is_plain_data():
    spec = get_spec("r-clip-f")
    assert pickle.loads(pickle.dumps(spec)) == spec
    assert replace(spec, name="x").name == "x"


def test_saved_weights_are_as_readable_as_any_new_file(tmp_path):
    """On the shared disk of a cluster others load them; safetensors by itself leaves them to their owner alone."""
    folder = save_encoder(random_encoder(), tmp_path / "model")
    (tmp_path / "plain").touch()
    modes = {path.stat().st_mode for path in (tmp_path / "plain", *folder.iterdir())}
    assert len(modes) == 1
