"""The manifest: what it says of every checkpoint, and that a malformed one is refused by entry and field."""

import copy
import json

import pytest

from rclip_metric.errors import ManifestError, UnknownModelError
from rclip_metric.images import CLIP_MEAN, CLIP_STD, IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from rclip_metric.weights.manifest import (
    WeightFile,
    format_manifest,
    get_spec,
    load_manifest,
    manifest_path,
    model_names,
    read_specs,
)

ROBUST = [f"r-clip-{kind}{tower}" for tower in ("", "-vit-b-16", "-vit-b-32", "-vit-l-14") for kind in "ft"]
LARGER_EPS = ["r-clip-f2-vit-l-14", "r-clip-t2-vit-l-14"]
TUNED = [f"r-clip-{kind}{tower}+{how}" for tower in ("", "-vit-b-16") for how in ("mlp", "lora") for kind in "ft"]
CLEAN = [
    "clip-convnext-b",
    "clip-vit-b-16",
    "clip-vit-b-32",
    "clip-vit-l-14",
    "dino-vit-b-16",
    "dinov2-vit-b-14",
]
NAMES = [*ROBUST, *LARGER_EPS, *TUNED, *CLEAN, "r-dino-f", "lite", "r-lite-f", "tiny", "tiny-clean"]


def test_there_is_an_entry_for_every_checkpoint():
    assert sorted(model_names()) == sorted(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_an_entry_reads_back_as_it_is_written(name):
    assert get_spec(name).to_dict() == load_manifest()["models"][name]


def test_the_committed_file_is_formatted():
    assert manifest_path().read_text(encoding="utf-8") == format_manifest(load_manifest())


@pytest.mark.parametrize("name", NAMES)
def test_preprocessing_is_that_of_the_published_evaluation(name):
    found = get_spec(name).preprocessing
    if name.startswith("tiny"):
        assert found.crop == 64  # the rest is ours to choose
        return
    if name == "lite":
        assert found == Preprocessing("crop", 256, 224, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
        return
    if name == "r-lite-f":
        assert found == Preprocessing("squash", 112, 112, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
        return
    if "+" in name:
        expected = ("squash", 224, 224)
    elif "dino" in name or name in ("r-clip-f", "r-clip-t", "clip-convnext-b"):
        expected = ("crop", 256, 224)
    else:
        expected = ("crop", 224, 224)
    assert (found.mode, found.resize, found.crop) == expected
    assert (found.mean, found.std) == ((IMAGENET_MEAN, IMAGENET_STD) if "dino" in name else (CLIP_MEAN, CLIP_STD))


def test_towers_differ_where_the_published_ones_do():
    quick = [name for name in NAMES if getattr(get_spec(name).architecture, "activation", None) == "quick_gelu"]
    assert quick and quick == [name for name in NAMES if "vit-l-14" in name]
    epsilon = {name: get_spec(name).architecture.norm_eps for name in NAMES if "vit-b-16" in name}
    assert {name for name, eps in epsilon.items() if eps == 1e-6} == {
        "r-clip-f-vit-b-16+lora",
        "r-clip-t-vit-b-16+lora",
        "dino-vit-b-16",
    }
    assert set(epsilon.values()) == {1e-5, 1e-6}
    assert {name for name in NAMES if get_spec(name).mlp_hidden == 512} == {n for n in TUNED if "mlp" in n}


@pytest.mark.parametrize(
    "name, nights",
    [
        ("r-clip-f", (90.6, 74.3, 66.1)),
        ("r-clip-t", (92.3, 81.9, 78.5)),
        ("r-clip-f-vit-b-16", (90.6, 71.5, 65.5)),
        ("r-clip-t-vit-b-16", (91.9, 79.4, 77.1)),
        ("r-clip-f-vit-b-32", (91.1, 71.8, 70.6)),
        ("r-clip-t-vit-b-32", (91.0, 79.1, 79.7)),
        ("r-clip-f-vit-l-14", (87.2, 65.4, 52.2)),
        ("r-clip-t-vit-l-14", (89.1, 74.9, 72.1)),
        ("r-dino-f", (90.9, 72.2, 73.2)),
        ("r-clip-f+lora", (95.3, 85.6, 81.6)),
    ],
)
def test_reported_numbers(name, nights):
    assert tuple(get_spec(name).reported["nights"].values()) == nights
    assert list(get_spec(name).reported["nights"]) == ["clean", "linf", "l2"]


def test_robust_entries_say_how_they_were_trained_and_from_what():
    for name in [*ROBUST, *LARGER_EPS, *TUNED, "r-dino-f"]:
        spec = get_spec(name)
        assert spec.training is not None and spec.citation and spec.training["norm"] == "linf"
        assert spec.training["eps"] == ("2/255" if name in LARGER_EPS else "4/255")
        base = get_spec(spec.training["base"])
        assert base.embedding_dim == spec.embedding_dim


def test_entries_that_are_not_on_the_hub_say_where_they_are():
    for name in TUNED:
        spec = get_spec(name)
        assert spec.source == "local" and spec.repo is None
        assert "https://" in (spec.url_note or "")


def test_a_pickle_is_a_candidate_only_where_nothing_else_is_listed():
    spec = get_spec("r-clip-f-vit-b-16")
    assert [file.name for file in spec.files] == [
        "open_clip_model.safetensors",
        "open_clip_pytorch_model.bin",
    ]
    assert [file.name for file in spec.candidates] == ["open_clip_model.safetensors"]
    assert [file.name for file in get_spec("r-clip-t-vit-l-14").candidates] == ["open_clip_pytorch_model.bin"]
    assert get_spec("r-clip-f").files == ()
    assert WeightFile("open_clip_model.safetensors") in get_spec("r-clip-f").candidates
    assert all(file.name.endswith(".safetensors") for file in get_spec("r-clip-f").candidates)


def test_an_unknown_name_brings_the_closest_ones():
    with pytest.raises(UnknownModelError, match="'r-clip-f-vit-b-16'"):
        get_spec("r-clip-f-vit-b16")
    with pytest.raises(ValueError, match=r"no model 'zzz'.*known: r-clip-f, "):
        get_spec("zzz")


SHA = "0" * 64


@pytest.mark.parametrize(
    "path, value, complaint",
    [
        (("repo",), "no-owner", "'repo': expected owner/repo"),
        (("repo",), None, "'repo': source 'hub' goes with a repo"),
        (("revision",), "main", "'revision': expected 7 to 40"),
        (("revision",), "ABCDEF1", "'revision': expected 7 to 40"),
        (("revision",), 7, "'revision': expected a text or null, got 7"),
        (("layout",), "flax", "'layout': expected one of"),
        (("source",), "ftp", "'source': expected one of hub, package, pypi, local"),
        (("source",), "package", "'repo': source 'package' goes with no repo"),
        (("architecture",), "vit_b_17", "'architecture': expected one of"),
        (("architecture",), {"kind": "rnn"}, "'architecture': kind must be"),
        (("architecture",), 3, "'architecture'"),
        (("embedding_dim",), 512, "'embedding_dim': the architecture gives 640"),
        (("embedding_dim",), "640", "'embedding_dim': expected a positive integer"),
        (("mlp_hidden",), True, "'mlp_hidden': expected a positive integer up to 32768 or null"),
        (("preprocessing", "crop"), 256, "'preprocessing.crop': the architecture takes 224"),
        (("preprocessing", "mode"), "stretch", "'preprocessing': mode must be"),
        (("preprocessing", "colour"), "rgb", "'preprocessing': .*colour"),
        (("preprocessing",), None, "'preprocessing'"),
        (("files",), [], "'files': expected a list of files or null"),
        (("files",), [{"name": "a.safetensors", "sha256": None}], r"'files\[0\].size': is missing"),
        (
            ("files",),
            [{"name": "a.safetensors", "sha256": "ff", "size": 1}],
            r"'files\[0\].sha256': expected 64",
        ),
        (("files",), [{"name": "a.safetensors", "sha256": SHA, "size": -1}], r"'files\[0\].size'"),
        (("files",), [{"name": "../a.safetensors", "sha256": SHA, "size": 1}], r"'files\[0\].name'"),
        (("files",), [{"name": "a.exe", "sha256": SHA, "size": 1}], r"'files\[0\].name'"),
        (("files",), [{"name": "a.bin", "sha256": SHA, "size": 1}] * 2, "'files': a name appears twice"),
        (("training",), {"method": "FARE"}, "'training.norm': is missing"),
        (("training", "steps"), "10", "'training.steps': is not known"),
        (("reported",), None, "'reported': expected an object"),
        (("reported", "nights", "clean"), 906, "'reported.nights.clean': expected percent"),
        (("reported", "nights"), 90.6, "'reported.nights': expected an object"),
        (("license",), "", "'license': expected a text or null"),
        (("domain",), "", "'domain': expected a text or null"),
        (("colour",), "blue", "'colour': is not known"),
    ],
)
def test_a_malformed_entry_is_named_with_its_field(path, value, complaint):
    manifest = load_manifest()
    entry = manifest["models"]["r-clip-f"]
    *parents, last = path
    for key in parents:
        entry = entry[key]
    entry[last] = value
    with pytest.raises(ManifestError, match=f"^Weights manifest, entry 'r-clip-f', field {complaint}.*\\.$"):
        read_specs(manifest)


@pytest.mark.parametrize("field", list(load_manifest()["models"]["r-clip-f"]))
def test_a_missing_field_is_named(field):
    manifest = load_manifest()
    del manifest["models"]["r-clip-f"][field]
    with pytest.raises(ManifestError, match=f"entry 'r-clip-f', field '{field}': is missing"):
        read_specs(manifest)


@pytest.mark.parametrize(
    "manifest, complaint",
    [
        ([], "expected an object"),
        ({"models": {}}, "'schema_version': is missing"),
        ({"schema_version": 2, "models": {}}, "'schema_version': expected 1, got 2"),
        ({"schema_version": 1, "models": []}, "'models': expected an object"),
        ({"schema_version": 1, "models": {"x": "y"}}, "entry 'x': expected an object"),
    ],
)
def test_a_malformed_manifest_is_refused(manifest, complaint):
    with pytest.raises(ManifestError, match=complaint):
        read_specs(manifest)


def test_formatting_changes_nothing():
    manifest = load_manifest()
    odd = {**copy.deepcopy(manifest), "models": {"é": [1.5, None, True, {}, [], {"a": ["b" * 200]}]}}
    assert json.loads(format_manifest(manifest)) == manifest
    assert json.loads(format_manifest(odd)) == odd
