"""From a model's name, path or Hub id to an encoder with its weights: found, checked, mapped from disk."""

import os
import pickle
import zipfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from rclip_metric.encoder.state_dicts import detect, vision_keys
from rclip_metric.errors import (
    CheckpointError,
    ManifestError,
    NetworkError,
    NotFoundError,
    UnknownModelError,
    first_line,
)
from rclip_metric.files import regular_file
from rclip_metric.images.preprocessing import Reading, Resize
from rclip_metric.json_files import read_json, shown
from rclip_metric.weights.advice import how_to_fetch, what_helps_offline
from rclip_metric.weights.digest import file_digest, tensors_digest
from rclip_metric.weights.hub import HubSource, fetch, first_cached, recheck
from rclip_metric.weights.identity import check_saved, identify
from rclip_metric.weights.local import USUAL_NAMES, Located, find_packaged, find_weights, like_base
from rclip_metric.weights.manifest import HUB_ID, PACKAGED, SUFFIXES, WeightFile, WeightSpec, get_spec, model_names
from rclip_metric.weights.saving import CONFIG_NAME, FORMAT, WEIGHTS_NAME, SavedConfig, check_pair, opened

if TYPE_CHECKING:
    from rclip_metric.encoder.encoder import Encoder


def locate(
    model: str | os.PathLike[str],
    *,
    base: str | None = None,
    revision: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    token: str | bool | None = None,
    local_files_only: bool = False,
) -> Located:
    """Find a model's weights, download them where necessary and check their digest; read no tensor.

    Args:
        model: A name in the manifest; a file or folder, in our own format or a published layout; or a Hub id
            "owner/repo" of a model in our own format. Names come first, then paths.
        base: The manifest entry whose architecture and preprocessing apply to a file, folder or Hub
            repository that does not carry its own.
        revision: Commit, branch or tag on the Hub instead of the manifest's.
        cache_dir: Hub cache folder instead of huggingface_hub's own.
        token: Hub token instead of HF_TOKEN or the stored login; False for none.
        local_files_only: Use nothing but what is on this machine.

    Raises:
        UnknownModelError: No such name, path or Hub id.
        HubError: The network or the Hub (NetworkError, AccessError, NotFoundError).
        DigestError: The file is not the published one; it was removed from the cache.
        StorageError: Full disk or read-only cache.
        MissingPackageError: The weights are in a package that is not installed.
        CheckpointError: A local path that does not say what it holds.

    Example:
        >>> found = locate("tiny")
        >>> found.path.name, found.layout, found.spec.embedding_dim
        ('tiny.safetensors', 'rclip-metric', 128)
    """
    base_spec = None if base is None else get_spec(base)
    asked = HubSource("", revision, cache_dir, token, local_files_only)  # of a repository that is found below
    name = os.fspath(model)
    if isinstance(model, str) and name in model_names():
        if base is not None:
            raise UnknownModelError(f"{name!r} is in the manifest: leave base={base!r} out.")
        return _locate_named(get_spec(name), asked)
    try:
        path = Path(name).expanduser()
        here = path.exists()
    except (OSError, RuntimeError) as error:  # a name too long for the system, a home of nobody
        reason = getattr(error, "strerror", None) or first_line(error)
        raise UnknownModelError(f"There is no file or folder {shown(name)}: {reason}.") from error
    if here:
        return find_weights(path, base_spec)
    if isinstance(model, str) and HUB_ID[1](name) and path.suffix not in SUFFIXES:
        named = [spec for spec in map(get_spec, model_names()) if spec.repo == name and base is None]
        return _locate_named(named[0], asked) if named else _locate_on_hub(replace(asked, repo=name), base_spec)
    if "/" in name or len(path.parts) > 1 or path.suffix:
        raise UnknownModelError(f"There is no file or folder {shown(name)}, nor is that a Hub id: {HUB_ID[0]}.")
    get_spec(name)  # raises, with the closest names
    raise UnknownModelError(f"There is no folder {name!r}; for the model of that name pass a str.")


def load_encoder(
    model: str | os.PathLike[str],
    *,
    base: str | None = None,
    resize: Resize | Literal["default"] = "default",
    revision: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    token: str | bool | None = None,
    local_files_only: bool = False,
    reading: Reading | Literal["default"] = "default",
) -> "Encoder":
    """Build a model's encoder, float32 on the CPU, around its weights, which stay mapped from the file.

    Only the vision tower is read, and its pages only when they are first used. The digest of the tensors of a file that
    the manifest does not know is computed once, and remembered as long as the file stays as it is.

    Args:
        model, base, revision, cache_dir, token, local_files_only: As for `locate`; also a library's model, such as
            "open_clip:ViT-B-32@laion2b_s34b_b79k", "timm:resnet50.a1_in1k" or "hf-hub:owner/repo" (see
            `weights.libraries`), which takes none of the others.
        resize: "published", "squash" or None, see `Encoder`; "default" for what the model was saved with,
            which is "published" for every named one.
        reading: Likewise "published", "fast" or "default".

    Raises:
        WeightsError: As for `locate`, and CheckpointError naming the keys that do not fit the architecture.

    Example:
        >>> encoder = load_encoder("tiny")
        >>> encoder(torch.zeros(2, 3, 80, 60)).shape
        torch.Size([2, 128])
    """
    from rclip_metric.encoder.encoder import Encoder

    if isinstance(model, str) and model.startswith(_LIBRARIES):
        given = {"base": base, "revision": revision, "cache_dir": cache_dir, "token": token}
        given["local_files_only"] = local_files_only or None
        encoder = _library_encoder(model, [name for name, value in given.items() if value is not None])
        if resize != "default":
            encoder.resize = resize
        if reading != "default":
            encoder.reading = reading
        return encoder
    found = locate(
        model, base=base, revision=revision, cache_dir=cache_dir, token=token, local_files_only=local_files_only
    )
    spec = found.spec
    layout, state = _read_vision_tensors(found.path, found.layout)
    try:
        encoder = Encoder.from_weights(
            state,
            spec.architecture,
            spec.preprocessing,
            layout=layout,
            mlp_hidden=spec.mlp_hidden,
            resize=found.resize if resize == "default" else resize,
            reading=found.reading if reading == "default" else reading,
            name=spec.name,
            revision=found.revision,
            domain=spec.domain,
        )
    except CheckpointError as error:
        raise CheckpointError(f"{found.path}: {error}") from error
    identify(encoder, found, layout)
    return encoder


_LIBRARIES = ("open_clip:", "timm:", "hf-hub:")


def _library_encoder(name: str, given: list[str]) -> "Encoder":
    from rclip_metric.encoder.encoder import Origin
    from rclip_metric.weights.identity import short_digest
    from rclip_metric.weights.libraries import library_name, load_library

    if given:
        raise UnknownModelError(
            f"{name} is loaded by its library, which takes no {' or '.join(given)}: set HF_HUB_CACHE, HF_TOKEN or "
            "HF_HUB_OFFLINE instead."
        )
    found = library_name(name)
    if not found.startswith(_LIBRARIES):
        return load_encoder(found)
    encoder = load_library(found)
    digest = tensors_digest(encoder.state_dict())
    encoder.revision = encoder.revision or short_digest(digest)
    encoder.origin = Origin(encoder.name, encoder.revision, digest)
    return encoder


def download(
    name: str,
    *,
    revision: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    token: str | bool | None = None,
) -> Path:
    """Bring a model's weights into the cache, where later loads need no network; return the file.

    Raises:
        WeightsError: As for `locate`.

    Example:
        >>> download("tiny").name  # this one is in the package
        'tiny.safetensors'
    """
    return locate(name, revision=revision, cache_dir=cache_dir, token=token).path


def verify(
    name: str | os.PathLike[str], *, revision: str | None = None, cache_dir: str | os.PathLike[str] | None = None
) -> str:
    """Compute the digest of a model's file on this machine anew, whatever is remembered of it.

    Args:
        name: A name in the manifest, a Hub id, or a path. A file that `save_encoder` wrote is compared with what was
            saved; one that nobody has stated anything of cannot be damaged, and its digest is given back as it is.
        revision: As for `locate`.
        cache_dir: As for `locate`.

    Returns:
        The published digest, which the file has: sha256, or the git blob sha1 that the Hub states for a small
            file. Of a path, the sha256.

    Raises:
        DigestError: It has another one; a file in the cache was removed, so that it is downloaded again.
        CheckpointError: A saved file is damaged, or a path does not hold what it should.
        NotFoundError: The model is not on this machine.
        MissingPackageError: Nor is the package that holds it.

    Example:
        >>> verify("tiny") == get_spec("tiny").files[0].sha256
        True
    """
    asked, text = HubSource("", revision, cache_dir), os.fspath(name)
    if text in model_names():
        spec = get_spec(text)
        if spec.source in PACKAGED:
            return file_digest(find_packaged(spec).path)
        return _rechecked(text, how_to_fetch(text, spec, revision), *_on_hub(spec, asked))
    if not Path(text).expanduser().exists() and HUB_ID[1](text):
        source = replace(asked, repo=text)
        _rechecked(text, how_to_fetch(text, None, revision), source, [WeightFile(CONFIG_NAME)])
        return _rechecked(text, how_to_fetch(text, None, revision), source, [WeightFile(WEIGHTS_NAME)])
    found = locate(name, local_files_only=True)
    if found.layout == FORMAT:
        check_saved(found.path, tensors_digest(_read_vision_tensors(found.path, FORMAT)[1]))
    return file_digest(found.path)


def _rechecked(name: str, help_is: str, source: HubSource, files: list[WeightFile]) -> str:
    hit = first_cached(source, files)
    if hit is None:
        raise NotFoundError(f"{name} is not in the cache {source.cache}: {help_is}.")
    return recheck(source, *hit)


def _locate_named(spec: WeightSpec, asked: HubSource) -> Located:
    if spec.source in PACKAGED:
        return find_packaged(spec)
    try:
        found = fetch(*_on_hub(spec, asked))
    except NetworkError as error:
        raise NetworkError(f"{str(error).removesuffix('.')}; {what_helps_offline(spec, asked.revision)}.") from error
    return Located(spec, found.path, found.commit, spec.layout, named=True)


def _locate_on_hub(source: HubSource, base: WeightSpec | None) -> Located:
    """Find a Hub id that is no name in the manifest; a branch is asked for its newest commit."""
    source = replace(source, newest=True)
    if base is not None:
        own_names = [file.name for file in base.candidates] if base.source == "hub" else []
        found = fetch(source, [WeightFile(name) for name in dict.fromkeys((*USUAL_NAMES, *own_names))])
        spec = replace(like_base(source.repo, base), source="hub", repo=source.repo, revision=found.commit)
        return Located(spec, found.path, found.commit)
    try:
        config_file = fetch(source, [WeightFile(CONFIG_NAME)])
        config = SavedConfig.read(read_json(config_file.path), f"{CONFIG_NAME} of {source}")
    except (ManifestError, NotFoundError) as error:
        raise type(error)(f"{error} For a published layout, pass base= as well.") from error
    except NetworkError as error:
        helps = how_to_fetch(source.repo, None, source.revision)
        raise NetworkError(f"{str(error).removesuffix('.')}; {helps}.") from error
    # The weights of the very commit that the configuration is from, even if the branch moves meanwhile.
    found = fetch(replace(source, revision=config_file.commit), [WeightFile(WEIGHTS_NAME)])
    check_pair(config, found.path)
    spec = replace(config.spec, source="hub", repo=source.repo, revision=found.commit)
    return Located(spec, found.path, found.commit, FORMAT, config.resize, config.reading)


def _on_hub(spec: WeightSpec, asked: HubSource) -> tuple[HubSource, list[WeightFile]]:
    """Return an entry's repository, and its files with the digests that the manifest has of its own revision."""
    if spec.repo is None:
        raise UnknownModelError(
            f"{spec.name} cannot be loaded by its name: {spec.url_note} {spec.notes} Pass its path."
        )
    known = not asked.revision or asked.revision == spec.revision
    files = [file if known else WeightFile(file.name) for file in spec.candidates]
    newest = asked.revision is not None
    return replace(asked, repo=spec.repo, revision=asked.revision or spec.revision, newest=newest), files


def _read_vision_tensors(path: Path, layout: str | None) -> tuple[str, dict[str, Tensor]]:
    """Read the tensors of the vision tower, mapped from the file, and the layout of their keys."""
    if path.suffix == ".safetensors":
        with opened(path) as file:
            keys = list(file.keys())
            layout = layout or detect(keys)
            return layout, {key: file.get_tensor(key) for key in keys if vision_keys(layout, key)}
    state = read_pickle(path)
    if not isinstance(state, Mapping) or not all(
        isinstance(key, str) and isinstance(value, Tensor) for key, value in state.items()
    ):
        raise CheckpointError(f"{path} is not a plain state dict of names and tensors.")
    layout = layout or detect(state)
    return layout, {key: tensor for key, tensor in state.items() if vision_keys(layout, key)}


def read_pickle(path: Path) -> Any:
    """Read what torch.save wrote, on the CPU and mapped where it can be; run no code from the file.

    Raises:
        CheckpointError: The file is unreadable, or holds more than tensors and plain containers.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     torch.save({"weight": torch.zeros(2)}, f"{folder}/weights.pt")
        ...     read_pickle(Path(folder, "weights.pt"))
        {'weight': tensor([0., 0.])}
    """
    try:
        # Only the zip form that torch.save writes since 1.6 can be mapped.
        return torch.load(regular_file(path), map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        # Torch's own words advise to run what the file holds.
        raise CheckpointError(
            f"{path} is not a file of plain tensors: it holds other objects, whose code is not run, or is damaged."
        ) from error
    except (EOFError, OSError, RuntimeError, ValueError) as error:
        raise CheckpointError(f"{path} is not a file of plain tensors: {first_line(error)}.") from error
    except (AttributeError, LookupError, TypeError) as error:  # a text, say, read as a pickle's instructions
        raise CheckpointError(f"{path} is not a file that torch.save wrote, or it is damaged.") from error


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read a file of named tensors: safetensors, or a pickled state dict, also as the entry "state_dict".

    Raises:
        CheckpointError: It cannot be read, would run code, or holds something else than tensors.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     torch.save({"state_dict": {"weight": torch.zeros(3)}, "epoch": 7}, Path(folder, "any.pth"))
        ...     tensors = read_tensors(Path(folder, "any.pth"))
        >>> tensors
        {'weight': tensor([0., 0., 0.])}
    """
    from safetensors import SafetensorError, safe_open

    if path.suffix == ".safetensors":
        try:
            with safe_open(regular_file(path), framework="pt") as file:
                return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{path} is not a readable safetensors file: {error}.") from error
    content = read_pickle(path)
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]  # what Lightning keeps beside it is not read
    named = isinstance(content, Mapping) and all(isinstance(key, str) for key in content)
    if not named or not all(isinstance(value, Tensor) for value in content.values()):
        raise CheckpointError(f"{path} is not a state dict of names and tensors.")
    return dict(content)
