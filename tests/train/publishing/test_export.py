"""A finished run as a folder and on the loopback Hub: weights, card, manifest entry, and whose results they are."""

import functools
import hashlib
import json
import os
import re
import resource
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from PIL import Image
from safetensors.torch import load_file

from rclip_metric import RobustPerceptualDistance
from rclip_metric.encoder import Encoder, ViTArchitecture
from rclip_metric.errors import AccessError, CheckpointError, DigestError, NetworkError, StorageError
from rclip_metric.images import Preprocessing
from rclip_metric.train.commands.train import export as command
from rclip_metric.train.evaluation.results.leaderboard import table
from rclip_metric.train.evaluation.results.outcome import Outcome
from rclip_metric.train.evaluation.results.record import Averaging, Effort, load_results, record, save
from rclip_metric.train.finetuning.nights import NightsConfig
from rclip_metric.train.metrics.base import EncoderMetric
from rclip_metric.train.models.weights_digest import weights_digest
from rclip_metric.train.publishing import EXPORT_NAMES, export_run, push_export, reported_numbers
from rclip_metric.weights import load_encoder, manifest, save_encoder, verify
from rclip_metric.weights.manifest import WeightSpec, format_manifest, get_spec, load_manifest, read_specs

from support.programs import run_command

LINF = {"attack": "apgd", "norm": "linf", "eps": 4 / 255, "steps": 100, "restarts": 1, "loss": "ce"}
L2 = {**LINF, "norm": "l2", "eps": 3.0 * 32 / 224}
CLEAN = {"attack": "none"}
SCENES = {"name": "scenes", "split": "test", "protocol": "majority"}
TRAINING = {"method": "FARE", "norm": "linf", "eps": "4/255", "data": "procedural scenes", "base": "tiny-clean"}
RECORD: dict[str, Any] = {
    "method": "FARE",
    "base": {"name": "tiny-clean", "revision": "sha256:1d0290a2f7e4"},
    "data": {"path": "/scratch/alice/scenes/train", "images": 24_000},
    "recipe": {"loss": "fare", "steps": 1200, "norm": "linf", "eps": 4 / 255, "inner_step_size": 1 / 255, "rho": 0.1},
    "run": {"device": "cpu", "precision": "float32", "save_every": 100, "validation": "C:\\Users\\alice\\nights"},
    "seed": 7,
    "versions": {"torch": "2.15.0", "python": "3.11.7"},
    "seconds": 2274.5,
    "made": "2026-11-21",
    "command": "rclip-metric train fare --images /scratch/alice/scenes/train --eps 4/255",
}
IMAGES = torch.rand(2, 3, 40, 50, generator=torch.Generator().manual_seed(0))


def small_encoder(seed: int = 0, mode: Any = "squash", **settings: Any) -> Encoder:
    torch.manual_seed(seed)
    tower = ViTArchitecture(image_size=32, patch_size=8, width=64, depth=1, heads=1, projection=16)
    size = 32 if mode == "squash" else 40
    return Encoder(tower, Preprocessing(mode, size, 32), mlp_hidden=8, name="mine", **settings).eval()


def make_run(folder: Path, encoder: Encoder | None = None, training: Any = TRAINING, **changes: Any) -> Path:
    """A folder as the training commands leave it."""
    save_encoder(encoder or small_encoder(), folder, training=training, license="MIT")
    (folder / "run.json").write_text(json.dumps({**RECORD, **changes}))
    lines = [{"step": 10, "loss": 90.0}, {"step": 1200, "loss": 48.417, "adversarial_cosine": 0.9356}, {"step": 1200}]
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return make_run(tmp_path / "run")


def result(model: str | Path | dict[str, Any], right: int = 90, robust: int = 60, **changes: Any) -> dict[str, Any]:
    """The record of 100 samples, of a model as the evaluation describes it."""
    described = model if isinstance(model, dict) else EncoderMetric(RobustPerceptualDistance(model)).describe()
    attacked = changes.get("threat", LINF) != CLEAN
    rows = [
        Outcome(f"{i}", "test_a", float(i < right), False, 0.1, float(i < robust) if attacked else None, 0.1)
        for i in range(100)
    ]
    settings: dict[str, Any] = {"task": "2afc", "model": described, "data": SCENES, "threat": LINF}
    settings |= {"effort": Effort(1.0), "averaging": Averaging(resamples=50)}
    return record(rows, **{**settings, **changes})


def embeddings(model: str | Path, **settings: Any) -> torch.Tensor:
    with torch.no_grad():
        return load_encoder(model, **settings).eval()(IMAGES)


# The folder


def test_an_export_is_the_encoder_with_its_card_and_entry(run):
    exported = export_run(run)
    assert exported.folder == run / "export" and exported.name == "mine"
    assert sorted(path.name for path in exported.folder.iterdir()) == sorted(EXPORT_NAMES)
    assert torch.equal(embeddings(exported.folder), embeddings(run))
    content = (exported.folder / "model.safetensors").read_bytes()
    files = [{"name": "model.safetensors", "sha256": hashlib.sha256(content).hexdigest(), "size": len(content)}]
    entry = json.loads((exported.folder / "manifest_entry.json").read_text())
    assert entry == {"mine": exported.entry} and exported.entry["files"] == files
    spec = WeightSpec.from_dict("mine", exported.entry)
    assert (spec.layout, spec.source, spec.repo, spec.mlp_hidden, spec.embedding_dim) == (
        *("rclip-metric", "local", None),
        *(8, 16),
    )
    assert (spec.training, spec.license, spec.reported) == (TRAINING, "MIT", {})
    assert spec.preprocessing == Preprocessing("squash", 32, 32)
    assert (exported.folder / "README.md").read_text() == exported.card


def test_the_revision_is_a_digest_of_the_tensors_whatever_the_file_says(run):
    exported = export_run(run, name="other", notes="Another file.", license="CC0-1.0")
    loaded = load_encoder(exported.folder)
    state = load_file(run / "model.safetensors")
    digest = hashlib.sha256()
    for name in sorted(state):
        digest.update(json.dumps([name, "torch.float32", list(state[name].shape)]).encode())
        digest.update(state[name].numpy().tobytes())
    assert (loaded.name, loaded.revision) == ("other", f"tensors:{digest.hexdigest()[:12]}")
    state["head.fc2.bias"][3] += 1e-6
    assert weights_digest(state) != loaded.revision
    half = load_encoder(export_run(run, half=True).folder).revision
    assert half not in (None, loaded.revision)


def test_half_precision_halves_the_file_and_rounds_the_weights(run):
    whole, half = export_run(run, run / "whole"), export_run(run, run / "half", half=True)
    sizes = [(exported.folder / "model.safetensors").stat().st_size for exported in (whole, half)]
    assert sizes[1] < 0.55 * sizes[0]
    state, rounded = load_file(run / "model.safetensors"), load_file(half.folder / "model.safetensors")
    assert all(torch.equal(rounded[name], state[name].half()) for name in state)
    assert "float16" in half.card and "float16" not in whole.card


@pytest.mark.parametrize(("mode", "resize"), [("squash", "published"), ("crop", "published"), ("crop", "squash")])
def test_the_entry_loads_by_its_name_with_the_preprocessing_that_was_saved(hub, tmp_path, with_entry, mode, resize):
    run = make_run(tmp_path / "run", small_encoder(mode=mode, resize=resize))
    exported = export_run(run)
    commit = push_export(exported, "me/mine", token=hub.token)
    entry = json.loads((exported.folder / "manifest_entry.json").read_text())
    assert (entry["mine"]["source"], entry["mine"]["repo"], entry["mine"]["revision"]) == ("hub", "me/mine", commit)
    with_entry(entry)
    assert torch.equal(embeddings("mine", cache_dir=tmp_path / "cache"), embeddings(run))
    assert verify("mine", cache_dir=tmp_path / "cache") == entry["mine"]["files"][0]["sha256"]


def test_an_entry_goes_into_the_manifest_line_by_line(run, tmp_path):
    entry = (export_run(run).folder / "manifest_entry.json").read_text()
    models = load_manifest()
    whole = {**models, "models": {**models["models"], **json.loads(entry)}}
    assert read_specs(whole)["mine"].training == TRAINING
    lines = entry.splitlines()
    assert (lines[0], lines[-1]) == ("{", "}") and "\n".join(lines[1:-1]) in format_manifest(whole)


@pytest.fixture
def with_entry(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    """The real manifest and one more entry."""
    original = load_manifest()

    def add(entry: dict[str, Any]) -> None:
        path = tmp_path / "weights_manifest.json"
        path.write_text(json.dumps({**original, "models": {**original["models"], **entry}}))
        monkeypatch.setattr(manifest, "manifest_path", lambda: path)
        manifest._specs.cache_clear()

    yield add
    manifest._specs.cache_clear()


# The card


def test_the_card_says_what_the_run_says(run):
    records = [result(run), result(run, robust=70, threat=L2)]
    for index, item in enumerate(records):
        save(run / "results" / f"{index}.json", item)
    card = export_run(run, results=[run / "results"], notes="Seen by nobody.").card
    data = ModelCard(card).data
    assert (data.license, data.library_name) == ("mit", "rclip-metric")
    assert (data.pipeline_tag, data.get("base_model")) == ("image-feature-extraction", None)
    assert {"perceptual-metric", "adversarial-robustness", "fare", "vit"} <= set(data.tags or ())
    assert "Seen by nobody." in card and "stay within l_inf 4/255" in card
    assert table(load_results([run / "results"])) in card
    for row in (
        "| seed | 7 |",
        "| eps | 4/255 |",
        "| inner step size | 1/255 |",
        "| steps | 1200 |",
        "| loss | fare |",
    ):
        assert row in card
    assert "rho" not in card  # a setting of another loss
    assert "procedural scenes, 24,000 images" in card and "tiny-clean @ sha256:1d0290a2f7e4" in card
    assert "Made on 2026-11-21 in 38 min. Run with device cpu, precision float32." in card
    assert "(step 1200): loss 48.42, adversarial cosine 0.9356." in card
    assert "Robust CLIP: Unsupervised" in card and "TeCoA" not in card
    parameters = sum(tensor.numel() for tensor in load_file(run / "model.safetensors").values())
    assert f"| parameters | {parameters / 1e6:.2f} M |" in card


def test_nothing_that_is_published_names_this_machine(run):
    exported = export_run(run)
    for name in ("README.md", "run.json", "config.json", "manifest_entry.json"):
        text = (exported.folder / name).read_text()
        assert not re.search(rf"alice|scratch|{re.escape(str(run.parent))}", text), name
    published = json.loads((exported.folder / "run.json").read_text())
    assert published["data"] == {"path": "train", "images": 24_000} and published["recipe"] == RECORD["recipe"]
    assert published["run"]["validation"] == "nights"
    assert published["command"] == "rclip-metric train fare --images train --eps 4/255"


@pytest.mark.parametrize(
    ("stated", "license", "license_name"),
    [
        ("Apache-2.0", "apache-2.0", None),
        ("CC BY-NC 4.0", "cc-by-nc-4.0", None),
        ("Ask: first!", "other", "ask-first"),
        ("yes", "other", "yes"),  # not a YAML boolean
    ],
)
def test_front_matter_licences_are_those_of_the_hub(run, stated, license, license_name):
    card = export_run(run, license=stated).card
    data = ModelCard(card).data
    assert (data.license, data.license_name) == (license, license_name) and f"The weights: {stated}." in card


@pytest.mark.parametrize(
    ("base", "repo"),
    [
        ("clip-vit-b-16", get_spec("clip-vit-b-16").repo),
        ("me/base", "me/base"),
        ("open_clip:ViT-L-14@openai", None),
        (None, None),
    ],
)
def test_front_matter_names_the_base_where_the_hub_has_it(tmp_path, base, repo):
    run = make_run(tmp_path / "run", training={**TRAINING, "base": base}, base=base and {"name": base})
    data = ModelCard(export_run(run).card).data
    assert data.get("base_model") == repo
    assert data.get("base_model_relation") == ("finetune" if repo else None)


def test_a_card_without_results_licence_or_attack_says_so(tmp_path):
    training = {**TRAINING, "method": "CLIP", "norm": None, "eps": None, "base": None}
    run = save_encoder(small_encoder(), tmp_path / "run", training=training)
    (run / "run.json").write_text(json.dumps({"method": "CLIP", "scenes": "/data/scenes", "steps": 750}))
    card = export_run(run).card
    assert "is not known yet" in card and "nobody has said" in card and "expect that one can turn" in card
    assert "| steps | 750 |" in card and "none, from random weights" in card
    data = ModelCard(card).data
    assert data.license is None and "adversarial-robustness" not in (data.tags or ())


def test_the_card_of_a_tuned_encoder_has_its_epochs(tmp_path):
    training = {**TRAINING, "method": "FARE, then LoRA on clean NIGHTS", "data": "ImageNet, NIGHTS", "base": "r-clip-f"}
    about = {field.name: field.metadata["help"] for field in fields(NightsConfig)}
    epochs = [{"epoch": 0, "loss": None, "val_accuracy": 90.25}, {"epoch": 1, "loss": 0.03125, "val_accuracy": 93.512}]
    run = make_run(
        tmp_path / "run", training=training, method="LoRA", base={"name": "r-clip-f", "revision": "737e332"},
        data={"path": "nights", "triplets": 15_941}, epochs=epochs, best_epoch=1,
        recipe={"head": "lora", "rank": 16, "hidden": 512, "betas": [0.5, 0.999]},
    )  # fmt: skip
    card = export_run(run).card
    assert "| 0 | - | 90.25 |" in card and "| **1** | **0.03125** | **93.51** |" in card and "Epoch 1 was kept." in card
    assert "| rank | 16 |" in card and "| hidden |" not in card  # of the other head
    assert "15,941 triplets" in card and f"| betas | 0.5, 0.999 | {about['betas']} |" in card
    assert "Robust CLIP" in card and "DreamSim" in card
    assert ModelCard(card).data.get("base_model") == get_spec("r-clip-f").repo


def test_the_card_of_a_converted_checkpoint_names_its_files(tmp_path):
    source = [{"file": "head.pt", "sha256": "ab" * 32}]
    converted: dict[str, Any] = {"method": None, "command": "convert", "kind": "mlp", "source": source}
    run = save_encoder(small_encoder(), tmp_path / "run", training=None)
    (run / "run.json").write_text(json.dumps({**converted, "base": {"name": "r-clip-f", "revision": None}}))
    card = export_run(run).card
    assert f"| converted from | head.pt (sha256 {'ab' * 32}) |" in card and "| kind |" not in card


def test_what_a_cell_cannot_hold_is_escaped(tmp_path):
    run = make_run(tmp_path / "run", recipe={"prompts": "a|b\nc`d*", "flag": True, "nothing": None})
    card = export_run(run).card
    assert r"| prompts | a\|b c\`d\* |" in card and "| flag | yes |" in card and "| nothing | - |" in card


# The Hub


def test_pushed_in_one_commit_and_loaded_by_id(hub, run, tmp_path, monkeypatch, capfd):
    exported = export_run(run)
    assert 'RobustPerceptualDistance("path/to/mine")' in exported.card
    commit = push_export(exported, "me/mine", private=True, token=hub.token)
    repo = hub.repos["me/mine"]
    assert repo.private and repo.head == commit and len(repo.commits) == 2  # the Hub's own first one
    assert set(repo.commits[commit]) == {".gitattributes", *EXPORT_NAMES}
    assert torch.equal(embeddings("me/mine", cache_dir=tmp_path, token=hub.token), embeddings(run))
    assert capfd.readouterr().err == ""  # no progress bar off a terminal

    on_hub = json.loads(repo.commits[commit]["manifest_entry.json"])["mine"]
    here = json.loads((exported.folder / "manifest_entry.json").read_text())["mine"]
    assert (on_hub["revision"], here["revision"], here["source"]) == (None, commit, "hub")
    assert {**on_hub, "revision": commit} == here and here["url_note"] is None
    read_specs({**load_manifest(), "models": {**load_manifest()["models"], "mine": here}})

    card = repo.commits[commit]["README.md"].decode()
    assert card == (exported.folder / "README.md").read_text()
    lines = re.search(r"```python\n(.*?)```", card, re.DOTALL)
    assert lines is not None and 'RobustPerceptualDistance("me/mine")' in lines[1]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_TOKEN", hub.token)
    pixels = [(image[:, :32, :32].permute(1, 2, 0) * 255).byte().numpy() for image in IMAGES]
    for name, image in zip(("one", "other"), pixels, strict=True):
        Image.fromarray(image).save(f"{name}.png")
    scope: dict[str, Any] = {}
    exec(lines[1], scope)
    batch = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2) / 255
    with torch.no_grad():
        cosine = torch.cosine_similarity(*load_encoder(run).eval()(batch)[:, None].double())
    assert scope["distance"].item() == pytest.approx((1 - cosine.item()) ** 0.5, abs=1e-3)


def test_a_branch_is_pushed_to_and_named_in_the_card(hub, run):
    exported = export_run(run)
    push_export(exported, "me/mine", token=hub.token)
    push_export(exported, "me/mine", token=hub.token, revision="next")
    assert [r.path for r in hub.requests if "/commit/" in r.path] == [
        *("/api/models/me/mine/commit/main", "/api/models/me/mine/commit/next")
    ]
    assert 'RobustPerceptualDistance("me/mine", revision="next")' in (exported.folder / "README.md").read_text()


def test_a_push_that_fails_is_one_sentence_and_leaves_the_export_alone(hub, run):
    exported = export_run(run)
    before = {path.name: path.read_bytes() for path in exported.folder.iterdir()}
    with pytest.raises(AccessError) as refused:
        push_export(exported, "me/mine", token="hf_wrong")
    hub.status = 503
    with pytest.raises(NetworkError) as down:
        push_export(exported, "me/mine", token=hub.token)
    assert all("\n" not in str(error.value) for error in (refused, down)) and not hub.repos
    assert before == {path.name: path.read_bytes() for path in exported.folder.iterdir()}
    hub.status = None
    for repo_id in ("mine", "me/mine/again", "me mine/x"):
        with pytest.raises(ValueError, match="write it like owner/repo"):
            push_export(exported, repo_id, token=hub.token)
    with (exported.folder / "model.safetensors").open("ab") as file:
        file.write(b"more")
    with pytest.raises(DigestError):
        push_export(exported, "me/mine", token=hub.token)
    (exported.folder / "model.safetensors").unlink()
    with pytest.raises(StorageError, match="cannot be read: No such file or directory: export the run again"):
        push_export(exported, "me/mine", token=hub.token)
    assert not hub.repos


# The folder it is written to


def test_an_export_is_replaced_as_a_whole(run):
    first = export_run(run, notes="The first.", half=True)
    (first.folder / "README.md").unlink()
    second = export_run(run)
    assert sorted(path.name for path in second.folder.iterdir()) == sorted(EXPORT_NAMES)
    assert "The first." not in second.card and torch.equal(embeddings(second.folder), embeddings(run))
    assert not list(run.glob(".*")), "no temporary folder is left"


@pytest.mark.parametrize(
    ("kept", "message"),
    [("export/mine.txt", "holds mine.txt and is not an export"), ("export/README.md", "holds README.md and is not")],
)
def test_other_peoples_files_are_not_replaced(run, kept, message):
    (run / "export").mkdir()
    (run / kept).write_text("mine")
    with pytest.raises(ValueError, match=message):
        export_run(run)
    assert (run / kept).read_text() == "mine"
    with pytest.raises(ValueError, match="is the run itself"):
        export_run(run, run)
    with pytest.raises(ValueError, match=r"log\.jsonl is a file"):
        export_run(run, run / "log.jsonl")


@pytest.fixture
def locked() -> Iterator[Path]:
    """A run in a folder that may be read and not written, also if these tests are run by root."""
    parent = Path(tempfile.mkdtemp(prefix="rclip-metric-locked-"))
    run = make_run(parent / "run")
    (run / "model.safetensors").chmod(0o644)
    export_run(run, run / "export", notes="The one that stays.")
    for folder in (run / "export", run, parent):
        folder.chmod(0o555)
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield run
    finally:
        if root:
            os.seteuid(0)
        for folder in (parent, run, run / "export"):
            folder.chmod(0o755)
        shutil.rmtree(parent)


def test_a_read_only_folder_is_one_sentence(locked):
    for out in (None, locked / "new" / "folder"):
        with pytest.raises(StorageError, match=r"The export cannot be written to .*: Permission denied\.$") as error:
            export_run(locked, out)
        assert ".tmp" not in str(error.value) and "\n" not in str(error.value)
    assert "The one that stays." in (locked / "export" / "README.md").read_text()


def test_a_full_disk_leaves_the_old_export(run):
    old = export_run(run, notes="The one that stays.")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
    try:
        with pytest.raises(StorageError, match=r"[Ff]ile too large"):
            export_run(run)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (old.folder / "README.md").read_text() == old.card
    assert torch.equal(embeddings(old.folder), embeddings(run)) and not list(run.glob(".*"))


# The run


def test_only_a_finished_run_is_exported(run, tmp_path):
    with pytest.raises(ValueError, match=r"there is no folder .*: pass the --out of a"):
        export_run(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(
        ValueError, match=r"empty is no training run, model\.safetensors and config\.json and run\.json"
    ):
        export_run(tmp_path / "empty")
    (run / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"is not finished, model.safetensors is missing: give its command again"):
        export_run(run)
    for step in (100, 20, 1000):
        (run / f"state-{step:08d}.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match=r"give its command again, it goes on from state-00001000\.safetensors$"):
        export_run(run)
    assert not (run / "export").exists()


def test_a_damaged_run_is_refused(run, tmp_path):
    (run / "log.jsonl").write_text('{"loss": 1}\n{"lo')
    with pytest.raises(ValueError, match=r"log.jsonl, line 2, is not JSON"):
        export_run(run)
    (run / "log.jsonl").unlink()
    export_run(run)  # the log is not needed
    (run / "run.json").write_text('{"seed": 0}')
    with pytest.raises(ValueError, match="field 'method': is missing"):
        export_run(run)
    (run / "run.json").write_text("{")
    with pytest.raises(ValueError, match=r"run\.json is not JSON"):
        export_run(run)
    other = make_run(tmp_path / "other", small_encoder(mode="crop"))
    shutil.copy(other / "config.json", run / "config.json")
    (run / "run.json").write_text(json.dumps(RECORD))
    with pytest.raises(CheckpointError, match="preprocessing"):
        export_run(run)


def test_weights_that_nobody_should_publish_are_refused(tmp_path):
    encoder = small_encoder()
    with torch.no_grad():
        encoder.head.fc1.bias[0] = 1e6  # type: ignore[union-attr]
    run = make_run(tmp_path / "run", encoder)
    export_run(run)
    with pytest.raises(ValueError, match=r"head\.fc1\.bias holds NaN or infinity"):
        export_run(run, half=True)
    with pytest.raises(ValueError, match="'a name' cannot be the name of an encoder"):
        export_run(run, name="a name")


# Whose results


def test_results_of_others_are_refused_by_name(run, tmp_path):
    folder = tmp_path / "results"
    save(folder / "tiny.json", result("tiny"))
    with pytest.raises(
        ValueError, match=r"tiny\.json is a result of tiny @ sha256:\w+, not of mine: evaluate this run"
    ):
        export_run(run, results=[folder / "tiny.json"])
    with pytest.raises(
        ValueError, match=r"no result in .*results is of this encoder: the first one is a result of tiny"
    ):
        export_run(run, results=[folder])
    save(folder / "own.json", result(run))
    exported = export_run(run, results=[folder])
    (sentence,) = exported.passed_over
    assert "passed over scenes test majority: it is a result of tiny @ sha256:" in sentence
    assert exported.entry["reported"] == {"scenes": {"clean": 90.0, "linf": 60.0}}
    with pytest.raises(ValueError, match=r"there is no .*nowhere"):
        export_run(run, results=[folder / "nowhere"])


def test_results_of_other_weights_of_the_same_name_are_refused(run, tmp_path):
    path = tmp_path / "own.json"
    model = result(run)["model"]
    save(path, result({**model, "revision": "a" * 40}))
    with pytest.raises(
        ValueError, match=r"a result of mine @ aaaaaaa, and these weights of mine are without a revision"
    ):
        export_run(run, results=[path])
    save(path, result({**model, "preprocessing": {**model["preprocessing"], "mode": "crop", "resize": 40}}))
    with pytest.raises(ValueError, match="a mine whose preprocessing has another mode and resize"):
        export_run(run, results=[path])


def test_results_of_the_export_and_of_its_commit_count_until_the_weights_change(hub, run, tmp_path):
    exported = export_run(run, name="renamed")
    save(tmp_path / "folder.json", result(exported.folder))
    commit = push_export(exported, "me/mine", token=hub.token)
    by_id = EncoderMetric(RobustPerceptualDistance("me/mine", cache_dir=tmp_path)).describe()
    assert by_id["revision"] == commit
    save(tmp_path / "id.json", result(by_id, robust=70, threat=L2))
    results = [tmp_path / "folder.json", tmp_path / "id.json"]
    again = export_run(run, name="renamed", results=results, notes="With results.")
    assert again.entry["reported"] == {"scenes": {"clean": 90.0, "linf": 60.0, "l2": 70.0}}
    assert f"renamed @ {commit[:7]}" in again.card and "renamed @ tensors:" in again.card

    push_export(again, "me/mine", token=hub.token)
    make_run(run, small_encoder(seed=1))
    for path in results:
        with pytest.raises(ValueError, match=r"and these weights of mine are without a revision or tensors:"):
            export_run(run, name="renamed", results=[path])


def test_results_from_before_rounding_are_told_from_those_after(run, tmp_path):
    half = export_run(run, half=True)
    save(tmp_path / "after.json", result(half.folder))
    save(tmp_path / "before.json", result(run))
    sentence = "Measured with the float32 weights, before they were rounded."
    assert sentence in export_run(run, half=True, results=[tmp_path / "before.json"]).card
    assert sentence not in export_run(run, half=True, results=[tmp_path / "after.json"]).card
    with pytest.raises(ValueError, match="a result of mine @ tensors:"):
        export_run(run, results=[tmp_path / "after.json"])


def test_only_results_in_the_papers_setting_are_reported():
    model = {"name": "mine", "revision": None, "resize": "published"}
    nights = {"name": "nights", "split": "test", "protocol": "2afc"}
    things = {"name": "things"}
    bapps = {"name": "bapps", "protocol": "majority", "interpolation": "bilinear"}
    squashed = {**model, "resize": "squash"}
    records = [
        result(model, data=nights, robust=55),
        result(model, data=nights, robust=44, threat={**LINF, "norm": "l2", "eps": 3.0}),
        result(model, data=nights, robust=1, threat={**LINF, "eps": 8 / 255}),
        result(model, data=nights, robust=2, threat={**LINF, "steps": 50}),
        result(model, data=nights, robust=3, threat={**LINF, "attack": "square", "steps": 5000, "loss": "margin"}),
        result(model, data=nights, robust=4, threat=L2),  # scaled radii are for scenes
        result(model, right=5, data={**nights, "split": "val"}),
        result(model, right=6, data=nights, settings={"limit": 100}),
        result(model, right=7, data={**nights, "unreadable": ["one is broken"]}),
        result(squashed, right=8, data=nights),
        result(model, right=51, data=things, task="odd-one-out", threat=CLEAN),
        result(squashed, right=74, data=bapps),  # 100 attacked samples of the split, and the paper has 1000
        result(model, right=9, data={**bapps, "protocol": "soft"}),
        result(squashed, right=10, data={**bapps, "interpolation": None}),  # as earlier versions resized it
        result(model, right=62, robust=23, data={"name": "imagenet"}, task="zero-shot", threat={
            "attack": "apgd-ce+apgd-t", "norm": "linf", "eps": 2 / 255, "steps": 100, "restarts": 1, "targets": 9}),
    ]  # fmt: skip
    assert reported_numbers(records, 32) == {
        "nights": {"clean": 90.0, "linf": 55.0, "l2": 44.0},
        "things": {"clean": 51.0},
        "bapps": {"clean": 74.0},
        "imagenet_zero_shot": {"clean": 62.0, "linf_2": 23.0},
    }
    with pytest.raises(
        ValueError, match=r"two results give nights linf as 55\.0 and as 54\.0 %: pass only one of them"
    ):
        reported_numbers([records[0], result(model, data=nights, robust=54)], 32)


def test_the_results_of_tiny_are_those_of_its_own_entry():
    records = [
        r for r in load_results([Path(__file__).parents[3] / "results/robustness"]) if r["model"]["name"] == "tiny"
    ]
    assert reported_numbers(records, 64) == {"scenes": get_spec("tiny").reported["scenes"]}


# The command


call = functools.partial(run_command, command, "export")


def test_the_command_exports_and_pushes(hub, run, tmp_path, monkeypatch, capsys):
    save(tmp_path / "results" / "own.json", result(run))
    save(tmp_path / "results" / "tiny.json", result("tiny"))
    monkeypatch.setenv("HF_TOKEN", hub.token)
    out = tmp_path / "out"
    call(run, "--out", out, "--results", tmp_path / "results", "--half", "--name", "new", "--push", "me/mine")
    printed = capsys.readouterr()
    commit = hub.repos["me/mine"].head
    size = (out / "model.safetensors").stat().st_size / 1e6
    assert printed.out.splitlines() == [
        f"{out}: {size:.2f} MB, load it with RobustPerceptualDistance({str(out)!r})",
        f"me/mine @ {commit}: load it with RobustPerceptualDistance('me/mine')",
        f"{out / 'manifest_entry.json'}: its entry for weights_manifest.json",
    ]
    assert "passed over" in printed.err and "licence" not in printed.err
    assert RobustPerceptualDistance("me/mine", cache_dir=tmp_path).encoder.name == "new"


def test_the_command_refuses_before_it_works(run):
    for arguments, message in (
        (("--push", "mine"), "'mine' is no repository of the Hub"),
        (("--private",), "--private goes with --push OWNER/REPO"),
        (("--revision", "next"), "--revision goes with --push"),
    ):
        with pytest.raises(ValueError, match=message):
            call(run, *arguments)
    assert not (run / "export").exists()


def test_the_command_asks_for_a_licence(tmp_path, capsys):
    run = save_encoder(small_encoder(), tmp_path / "run", training=TRAINING)
    (run / "run.json").write_text(json.dumps(RECORD))
    call(run)
    assert "add --license" in capsys.readouterr().err
    call(run, "--quiet")
    assert capsys.readouterr().err == ""
