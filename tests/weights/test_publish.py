"""To the Hub and back, and the Hub's facts into the manifest, all on loopback."""

import copy
import hashlib
import json

import pytest
import torch

from rclip_metric.encoder import Encoder, ViTArchitecture
from rclip_metric.errors import AccessError, HubError, ManifestError, NetworkError
from rclip_metric.images import Preprocessing
from rclip_metric.weights import get_spec, load_encoder, load_manifest, push_encoder, push_files, refresh_manifest

from support.encoders import small_encoder


@pytest.fixture
def encoder() -> Encoder:
    tower = ViTArchitecture(image_size=32, patch_size=8, width=64, depth=1, heads=1, projection=16)
    return small_encoder(tower, Preprocessing("squash", 32, 32), mlp_hidden=8, name="mine")


def test_pushed_and_loaded_by_id_gives_the_same_embeddings(hub, encoder, tmp_path, capfd):
    commit = push_encoder(encoder, "me/mine", private=True, token=hub.token, commit_message="Hello", license="MIT")
    repo = hub.repos["me/mine"]
    assert repo.private and repo.head == commit
    assert {"config.json", "model.safetensors"} < set(repo.commits[commit])
    loaded = load_encoder("me/mine", cache_dir=tmp_path, token=hub.token).eval()
    assert (loaded.name, loaded.revision) == ("mine", commit)
    batch = torch.rand(2, 3, 40, 50)
    with torch.no_grad():
        assert torch.equal(loaded(batch), encoder(batch))
    assert capfd.readouterr().err == ""  # no progress bar off a terminal

    with torch.no_grad():
        encoder.head.fc2.bias.add_(1.0)
    second = push_encoder(encoder, "me/mine", token=hub.token)
    assert second != commit and len(repo.commits) == 3
    with torch.no_grad():
        newest = load_encoder("me/mine", cache_dir=tmp_path, token=hub.token).eval()
        assert torch.equal(newest(batch), encoder(batch))


def test_files_are_pushed_together_beside_what_is_there(hub, tmp_path, capfd):
    (tmp_path / "a.safetensors").write_bytes(weights := b"w" * 5000)
    files = {
        "model.safetensors": tmp_path / "a.safetensors",
        "notes/one.json": b"{}",
        "README.md": b"---\nlicense: mit\n---\n",
    }
    first = push_files(files, "me/mine", token=hub.token, commit_message="First")
    second = push_files(
        {"notes/two.json": json.dumps([1]).encode()}, "me/mine", token=hub.token, commit_message="Second"
    )
    repo = hub.repos["me/mine"]
    assert list(repo.commits)[1:] == [first, second] and not repo.private
    assert repo.commits[first]["model.safetensors"] == weights and repo.commits[first]["notes/one.json"] == b"{}"
    assert set(repo.commits[second]) == {".gitattributes", *files, "notes/two.json"}
    with pytest.raises(HubError, match=r"The repository me/mine could not be transferred: ValueError: .*400") as bad:
        push_files({"README.md": b"---\nlicense: [1]\n---\n"}, "me/mine", token=hub.token, commit_message="Bad")
    assert "\n" not in str(bad.value) and repo.head == second and capfd.readouterr().err == ""


def test_a_push_without_the_right_to_write_is_refused(hub, encoder):
    with pytest.raises(AccessError, match=r"The repository me/mine .*\(401\)") as error:
        push_encoder(encoder, "me/mine", token="hf_wrong")
    assert "\n" not in str(error.value) and not hub.repos
    hub.status = 503
    with pytest.raises(NetworkError, match=r"The repository me/mine .*\(503\).*try again"):
        push_encoder(encoder, "me/mine", token=hub.token)


def test_refreshing_fills_in_what_the_hub_knows(hub):
    manifest = load_manifest()
    weights, old, pickled = b"a" * 1000, b"b" * 500, b"c" * 10
    unknown, short, full = (get_spec(name).repo for name in ("r-clip-t", "r-clip-f", "r-clip-f-vit-b-16"))
    newest = hub.commit(unknown, {"open_clip_pytorch_model.bin": pickled, "open_clip_model.safetensors": weights})
    pinned = hub.commit(short, {"open_clip_model.safetensors": old}, prefix="737e332")
    hub.commit(short, {"open_clip_model.safetensors": weights})
    hub.commit(get_spec("r-clip-f-vit-l-14").repo, {"open_clip_pytorch_model.bin": pickled})
    hub.commit(
        full,
        {"open_clip_model.safetensors": weights, "open_clip_pytorch_model.bin": pickled},
        prefix=get_spec("r-clip-f-vit-b-16").revision,
    )
    hub.commit(get_spec("r-clip-f-vit-b-32").repo, {"odd_name.bin": pickled, "README.md": b""})

    before = copy.deepcopy(manifest)
    refreshed, difference = refresh_manifest(manifest, token=hub.token)
    assert manifest == before
    models = refreshed["models"]

    def file(name: str, content: bytes) -> dict[str, object]:
        return {"name": name, "sha256": hashlib.sha256(content).hexdigest(), "size": len(content)}

    assert models["r-clip-t"]["revision"] == newest
    assert models["r-clip-t"]["files"] == [file("open_clip_model.safetensors", weights)]
    assert models["r-clip-f"]["revision"] == pinned
    assert models["r-clip-f"]["files"] == [file("open_clip_model.safetensors", old)]
    assert models["r-clip-f-vit-l-14"]["files"] == [file("open_clip_pytorch_model.bin", pickled)]
    assert models["r-clip-f-vit-b-32"]["files"] == [file("odd_name.bin", pickled)]
    assert [item["size"] for item in models["r-clip-f-vit-b-16"]["files"]] == [1000, 10]

    assert f"r-clip-t.revision: None -> {newest}" in difference
    assert f"r-clip-f.revision: 737e332 -> {pinned}" in difference
    known = "0d432910d3e70ea6fe043662a9fa99472ae87dffef8b1ddd6f5383f96d6dff27"
    changed = f"r-clip-f-vit-b-16.files[open_clip_pytorch_model.bin].sha256: {known} -> "
    assert any(line.startswith(changed) for line in difference)
    assert any(line.startswith("r-dino-f: not refreshed: The repository") for line in difference)
    assert models["r-dino-f"] == before["models"]["r-dino-f"]
    assert models["r-clip-f+mlp"] == before["models"]["r-clip-f+mlp"]
    touched = {line.partition(".")[0] for line in difference if "not refreshed" not in line}
    assert touched <= {name for name in models if models[name] != before["models"][name]}

    again, nothing = refresh_manifest(refreshed, token=hub.token)
    assert again == refreshed and all("not refreshed" in line for line in nothing)


def test_refreshing_needs_a_good_manifest_and_a_hub(hub):
    with pytest.raises(ManifestError, match="'schema_version'"):
        refresh_manifest({"models": {}})
    hub.status = 500
    with pytest.raises(NetworkError, match=r"\(500\)"):
        refresh_manifest(load_manifest())
