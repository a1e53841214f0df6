"""The other direction: an encoder to the Hub, and what the Hub says of published files into the manifest."""

import copy
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rclip_metric.errors import AccessError, NotFoundError
from rclip_metric.weights.digest import file_digest
from rclip_metric.weights.hub import explained, require_hub_id, without_progress_bars
from rclip_metric.weights.local import packaged_path
from rclip_metric.weights.manifest import PACKAGED, WeightSpec, read_specs
from rclip_metric.weights.saving import save_encoder

if TYPE_CHECKING:
    from rclip_metric.encoder.encoder import Encoder


def push_encoder(
    encoder: "Encoder",
    repo_id: str,
    *,
    private: bool = False,
    token: str | bool | None = None,
    revision: str | None = None,
    commit_message: str = "Upload an encoder of rclip-metric",
    training: Mapping[str, str | None] | None = None,
    license: str | None = None,
    notes: str | None = None,
) -> str:
    """Put an encoder on the Hub in our own format, in one commit; `load_encoder(repo_id)` loads it.

    Args:
        encoder: See `save_encoder`.
        repo_id: "owner/repo"; made if it does not exist.
        private: Whether a repository that is made is private.
        token: With the right to write; HF_TOKEN or the stored login if None.
        revision: Branch, which must exist; the main one if None.
        commit_message: The first line of the commit.
        training, license, notes: See `save_encoder`.

    Returns:
        The commit.

    Raises:
        HubError: The network or the Hub.
        StorageError: There is no room for the temporary copy.

    Example:
        >>> from rclip_metric.weights import load_encoder
        >>> push_encoder(load_encoder("tiny"), "no/such/name")
        Traceback (most recent call last):
            ...
        rclip_metric.errors.UnknownModelError: 'no/such/name' is no Hub id: that is owner/repo, each of 1 to 96 ...
    """
    require_hub_id(repo_id)
    with tempfile.TemporaryDirectory(prefix="rclip-metric-") as temporary:
        folder = save_encoder(encoder, temporary, training=training, license=license, notes=notes)
        return push_files(
            {path.name: path for path in sorted(folder.iterdir())},
            repo_id,
            private=private,
            token=token,
            revision=revision,
            commit_message=commit_message,
        )


def push_files(
    files: Mapping[str, Path | bytes],
    repo_id: str,
    *,
    private: bool = False,
    token: str | bool | None = None,
    revision: str | None = None,
    commit_message: str,
) -> str:
    """Put files on the Hub in one commit, beside what is there; return the commit.

    Args:
        files: Paths on this machine, or contents, by their path in the repository.
        repo_id, private, token, revision, commit_message: As for `push_encoder`.

    Raises:
        HubError: The network or the Hub.

    Example:
        >>> push_files({"README.md": b"My model."}, "no/such/name", commit_message="Describe it")
        Traceback (most recent call last):
            ...
        rclip_metric.errors.UnknownModelError: 'no/such/name' is no Hub id: that is owner/repo, each of 1 to 96 ...
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    api = HfApi(token=token, library_name="rclip-metric")
    require_hub_id(repo_id)
    operations = [CommitOperationAdd(path_in_repo=name, path_or_fileobj=content) for name, content in files.items()]
    # huggingface_hub keeps its progress bars out of log files for downloads, but not for uploads.
    with explained(f"The repository {repo_id}"), without_progress_bars(not sys.stderr.isatty()):
        api.create_repo(repo_id, private=private, exist_ok=True)
        commit = api.create_commit(repo_id, operations, commit_message=commit_message, revision=revision)
    return commit.oid


def refresh_manifest(
    manifest: Mapping[str, Any], *, token: str | bool | None = None
) -> tuple[dict[str, Any], list[str]]:
    """Fill in what the Hub knows: full revisions, file lists, sha256 and sizes.

    An entry keeps its revision, a short one becomes the full one of the same commit, and a missing one the
    newest. An entry whose repository cannot be read stays as it is, and the difference says so.

    Args:
        manifest: As `load_manifest` gives it; left as it is.
        token: Hub token, for gated repositories.

    Returns:
        The new manifest, and one line "name.field: old -> new" for each change.

    Raises:
        ManifestError: The manifest is malformed.
        NetworkError: The Hub cannot be reached.

    Example:
        >>> from rclip_metric.weights import load_manifest
        >>> manifest = load_manifest()
        >>> manifest["models"] = {"tiny": manifest["models"]["tiny"]}
        >>> manifest["models"]["tiny"]["files"][0]["size"] = None
        >>> refresh_manifest(manifest)[1]  # this one is in the package: the Hub is not asked
        ['tiny.files[models/tiny.safetensors].size: None -> 3878544']
    """
    specs = read_specs(manifest)
    refreshed = copy.deepcopy(dict(manifest))
    difference: list[str] = []
    for name, spec in specs.items():
        try:
            facts = _package_facts(spec) if spec.source in PACKAGED else _hub_facts(spec, token)
        except (AccessError, NotFoundError) as error:
            difference.append(f"{name}: not refreshed: {error}")
            continue
        entry = refreshed["models"][name]
        for field, value in facts.items():
            difference += _changes(f"{name}.{field}", entry[field], value)
            entry[field] = value
    read_specs(refreshed)
    return refreshed, difference


def _hub_facts(spec: WeightSpec, token: str | bool | None) -> dict[str, Any]:
    from huggingface_hub import HfApi

    if spec.repo is None:
        return {}
    with explained(f"The repository {spec.repo}"):
        info = HfApi(token=token).model_info(spec.repo, revision=spec.revision, files_metadata=True)
    published = {file.rfilename: file for file in info.siblings or ()}
    listed = [file.name for file in spec.files]
    names = listed or [file.name for file in spec.candidates if file.name in published]
    names = names or [name for name in published if Path(name).suffix in (".bin", ".pt")]
    facts: dict[str, Any] = {"revision": info.sha}
    if names:
        facts["files"] = [_file_facts(name, published.get(name)) for name in names]
    return facts


def _file_facts(name: str, published: Any) -> dict[str, Any]:
    """Name, hash and measure a file; null if it is no longer there or too small to have a sha256."""
    large = published and published.lfs
    return {"name": name, "sha256": large and large["sha256"], "size": published and published.size}


def _package_facts(spec: WeightSpec) -> dict[str, Any]:
    path, name = packaged_path(spec), spec.files[0].name
    if path is None:
        raise NotFoundError(f"{spec.repo or 'This installation'} has no {name} here.")
    return {"files": [{"name": name, "sha256": file_digest(path), "size": path.stat().st_size}]}


def _changes(where: str, old: Any, new: Any) -> list[str]:
    """Write one line per value that differs; files are compared by name."""
    if isinstance(old, list) and isinstance(new, list):
        old, new = ({f"[{item['name']}]": item for item in items} for items in (old, new))
    elif isinstance(old, dict) and isinstance(new, dict):
        old, new = ({f".{key}": value for key, value in item.items()} for item in (old, new))
    else:
        return [] if old == new else [f"{where}: {old} -> {new}"]
    lines = []
    for part in old | new:
        lines += _changes(where + part, old.get(part), new.get(part))
    return lines
