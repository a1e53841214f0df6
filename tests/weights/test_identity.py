"""Which weights an encoder has is said by their bytes: changed ones keep neither name nor revision."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from rclip_metric import Encoder, RobustPerceptualDistance
from rclip_metric.cli.main import main
from rclip_metric.errors import CheckpointError, DigestError
from rclip_metric.weights import get_spec, identity, load_encoder, save_encoder, short_digest, tensors_digest, verify

TINY = ("tiny", "sha256:61091ef75036", "drawn scenes")


def noise(encoder: Encoder) -> None:
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))


def zeros(encoder: Encoder) -> None:
    with torch.no_grad():
        next(encoder.parameters()).zero_()


def past_autograd(encoder: Encoder) -> None:
    next(encoder.parameters()).data.mul_(1.5)


def half(encoder: Encoder) -> None:
    encoder.bfloat16()


def changed(folder: Path, change: Callable[[Encoder], None]) -> Path:
    metric = RobustPerceptualDistance("tiny")
    change(metric.encoder)
    metric.save_pretrained(folder)
    return folder


def rewritten(folder: Path, change: Callable[[dict[str, torch.Tensor]], None], seal: bool) -> Path:
    """Write the tensors of a saved model anew, by another's hand: with its metadata, or without the seal."""
    path = folder / "model.safetensors"
    with safe_open(path, "pt") as file:
        metadata = {key: value for key, value in file.metadata().items() if seal or key != "rclip_metric_seal"}
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata)
    return folder


@pytest.mark.parametrize("change", [noise, zeros, past_autograd, half])
def test_changed_weights_are_no_longer_tiny(change, tmp_path):
    folder = changed(tmp_path / "mod", change)
    loaded = load_encoder(folder)
    revision = short_digest(tensors_digest(loaded.state_dict()))
    assert (loaded.name, loaded.revision) == ("tiny in mod", revision) and revision != TINY[1]
    assert json.loads((folder / "config.json").read_text())["revision"] == revision
    other = load_encoder(folder / "model.safetensors")
    assert (other.name, other.revision) == (loaded.name, loaded.revision)


def test_a_copy_of_the_same_weights_is_tiny(tmp_path):
    for change in (lambda encoder: None, lambda encoder: encoder.to(memory_format=torch.channels_last)):
        loaded = load_encoder(changed(tmp_path / "copy", change))
        assert (loaded.name, loaded.revision, loaded.domain) == TINY


def test_weights_of_tiny_for_other_images_are_not_tiny(tmp_path):
    encoder = load_encoder("tiny")
    encoder.preprocessing = encoder.preprocessing.at(64)
    assert load_encoder(save_encoder(encoder, tmp_path / "same")).name == "tiny"
    encoder.preprocessing = type(encoder.preprocessing)("squash", 64, 64)
    assert load_encoder(save_encoder(encoder, tmp_path / "squashed")).name == "tiny in squashed"


def test_the_manifest_states_the_digest_of_what_the_package_holds():
    for name in ("tiny", "tiny-clean", "r-lite-f"):
        assert tensors_digest(load_encoder(name).state_dict()) == get_spec(name).tensors


def test_a_config_that_claims_a_revision_is_not_believed(tmp_path):
    encoder = load_encoder("tiny")
    noise(encoder)
    encoder.origin = None
    folder = save_encoder(encoder, tmp_path / "claims")
    assert json.loads((folder / "config.json").read_text())["revision"] == TINY[1]
    assert load_encoder(folder).revision.startswith("tensors:")


def test_a_name_of_ones_own_stays_as_it_is(tmp_path):
    encoder = load_encoder("tiny")
    encoder.name = "mine"
    noise(encoder)
    assert load_encoder(save_encoder(encoder, tmp_path / "run")).name == "mine"


def test_on_the_hub_a_name_of_the_manifest_is_shown_with_the_repository(hub, tmp_path):
    folder = changed(tmp_path / "mod", noise)
    commit = hub.commit("me/mod", {path.name: path.read_bytes() for path in folder.iterdir()})
    loaded = load_encoder("me/mod", cache_dir=tmp_path / "cache")
    assert (loaded.name, loaded.revision) == ("tiny in me/mod", commit)


def flip(folder: Path) -> None:
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[-2000] ^= 1
    (folder / "model.safetensors").write_bytes(content)


def test_a_flipped_byte_of_a_saved_model_is_damage(tmp_path):
    folder = changed(tmp_path / "mod", noise)
    load_encoder(folder)
    path = folder / "model.safetensors"
    before = path.stat()
    with path.open("r+b") as file:  # in place, and the time set back
        file.seek(-2000, os.SEEK_END)
        byte = file.read(1)
        file.seek(-2000, os.SEEK_END)
        file.write(bytes([byte[0] ^ 1]))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    for attempt in (load_encoder, verify):
        with pytest.raises(CheckpointError, match=r"model.safetensors is damaged: its tensors or settings"):
            attempt(folder)


def test_settings_changed_in_the_file_s_own_metadata_are_damage(tmp_path):
    folder = changed(tmp_path / "mod", noise)
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes().replace(b"drawn scenes", b"photographs!"))
    with pytest.raises(CheckpointError, match="is damaged"):
        load_encoder(path)


def test_a_file_without_a_seal_has_the_identity_of_its_bytes(tmp_path):
    folder = changed(tmp_path / "mod", noise)
    before = load_encoder(folder).revision
    rewritten(folder, lambda tensors: None, seal=False)
    assert load_encoder(folder).revision == before
    rewritten(folder, lambda tensors: tensors["tower.trunk.stem.0.weight"].view(-1)[:1].add_(1), seal=False)
    assert load_encoder(folder).revision not in (before, TINY[1])


def test_float8_tensors_are_other_weights_or_refused(tmp_path):
    folder = changed(tmp_path / "mod", lambda encoder: None)

    def squeeze(tensors):
        tensors.update({key: value.to(torch.float8_e4m3fn) for key, value in tensors.items()})

    rewritten(folder, squeeze, seal=False)
    try:
        loaded = load_encoder(folder)
    except CheckpointError as error:
        assert "float8" in str(error)
    else:
        assert loaded.name == "tiny in mod" and loaded.revision.startswith("tensors:")


def test_the_digest_is_computed_once_for_a_file(tmp_path, monkeypatch):
    folder, computed = changed(tmp_path / "mod", noise), []
    digest = tensors_digest
    monkeypatch.setattr(identity, "tensors_digest", lambda state: computed.append(1) or digest(state))
    assert len({load_encoder(folder).revision for _ in range(3)}) == len(computed) == 1
    monkeypatch.setenv("RCLIP_METRIC_ALWAYS_VERIFY", "1")
    load_encoder(folder)
    assert len(computed) == 2


def test_the_command_verifies_names_ids_and_paths(hub, tmp_path, capsys):
    folder, cache = changed(tmp_path / "mod", noise), str(tmp_path / "cache")
    hub.commit("me/mod", {path.name: path.read_bytes() for path in folder.iterdir()})
    assert main(["verify", "me/mod", "--cache-dir", cache]) == 3  # it is not here
    load_encoder("me/mod", cache_dir=cache)
    capsys.readouterr()
    assert main(["verify", "tiny", "me/mod", str(folder), "--cache-dir", cache]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [line[0] for line in lines] == ["tiny", "me/mod", str(folder)] and lines[1][1] == lines[2][1]
    [blob] = [path for path in Path(cache).rglob("blobs/*") if path.name == lines[1][1]]
    with blob.open("r+b") as file:
        file.seek(-2000, os.SEEK_END)
        file.write(b"????")
    with pytest.raises(DigestError, match="removed from the cache"):
        verify("me/mod", cache_dir=cache)
    flip(folder)
    assert main(["verify", str(folder)]) == 2
    assert "is damaged" in capsys.readouterr().err
