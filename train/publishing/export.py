"""A finished run as something to publish: weights, model card and manifest entry in one folder, then on the Hub."""

from __future__ import annotations

import contextlib
import copy
import json
import re
import shutil
import uuid
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rclip_metric.errors import StorageError
from rclip_metric.files import written_whole
from rclip_metric.images import Preprocessing
from rclip_metric.json_files import ANYTHING, LINE, or_null, read_json
from rclip_metric.train.models.weights_digest import weights_digest
from rclip_metric.train.publishing.card import CardFacts, model_card
from rclip_metric.train.publishing.finished_run import RECORD_NAME, FinishedRun, read_run
from rclip_metric.train.publishing.own_results import Identity, read_own, reported_numbers
from rclip_metric.weights import CONFIG_NAME, WEIGHTS_NAME, check_file, file_digest, push_files, save_encoder
from rclip_metric.weights.manifest import WeightFile, WeightSpec, format_manifest

CARD_NAME = "README.md"
ENTRY_NAME = "manifest_entry.json"
EXPORT_NAMES = (WEIGHTS_NAME, CONFIG_NAME, CARD_NAME, ENTRY_NAME, RECORD_NAME)
_NAME = re.compile(r"[A-Za-z0-9][\w.+-]*")
_REPO = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_UNPUBLISHED = "Exported from a training run, and not published."


@dataclass(frozen=True)
class Exported:
    """An export as it lies on disk.

    Attributes:
        folder: with the files of `EXPORT_NAMES`.
        entry: the manifest entry, as `WeightSpec.from_dict` reads it.
        card: the model card's text.
        facts: what the card is written from, the encoder's name among them.
        passed_over: a sentence for every result in a folder that is of another encoder.

    Example:
        >>> import tempfile
        >>> from rclip_metric.weights import load_encoder
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     run = save_encoder(load_encoder("tiny"), Path(folder, "run"))
        ...     size = (run / RECORD_NAME).write_text('{"method": "FARE", "base": "tiny-clean"}')
        ...     exported = export_run(run, name="robust")
        >>> exported.name, exported.card.splitlines()[-1][:16]
        ('robust', '- Schlarmann, Si')
    """

    folder: Path
    entry: dict[str, Any]
    card: str
    facts: CardFacts
    passed_over: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Of the encoder, and of its manifest entry."""
        return self.facts.name


def export_run(
    run: Path,
    out: Path | None = None,
    *,
    results: Iterable[Path | str] = (),
    name: str | None = None,
    license: str | None = None,
    notes: str | None = None,
    half: bool = False,
) -> Exported:
    """Write what is to be published of a run into one folder, all of it or nothing.

    An export that is there already is replaced as a whole. The encoder gets `weights_digest` as its revision, so that
    results of the exported folder say which weights they are of.

    Args:
        run: the --out of a training command.
        out: folder; `run / "export"` if None.
        results: files and folders that `rclip-metric eval` wrote, see `read_own`.
        name: of the encoder; that of the run if None.
        license: of the weights; what the run says if None.
        notes: anything else that a reader must know; what the run says if None.
        half: round the weights to float16, which come back as float32.

    Raises:
        ValueError: the run is not finished, the results are of another encoder, or `out` holds other files.
        WeightsError: the encoder cannot be loaded, or the folder cannot be written (StorageError).

    Example:
        >>> import tempfile
        >>> from rclip_metric.weights import load_encoder
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     run = save_encoder(load_encoder("tiny"), Path(folder, "run"))
        ...     size = (run / RECORD_NAME).write_text('{"method": "FARE", "base": "tiny-clean"}')
        ...     exported = export_run(run, half=True)
        ...     sorted(path.name for path in exported.folder.iterdir())
        ['README.md', 'config.json', 'manifest_entry.json', 'model.safetensors', 'run.json']
    """
    finished = read_run(run)
    out = finished.folder / "export" if out is None else out
    _check_target(out, finished.folder)
    spec = finished.saved.spec
    name, license, notes = name or spec.name, license or spec.license, notes or spec.notes
    if not _NAME.fullmatch(name):
        raise ValueError(f"{name!r} cannot be the name of an encoder: pass --name with letters, digits and . + - _")
    own_digest = weights_digest(finished.encoder.state_dict())
    encoder = copy.deepcopy(finished.encoder).half() if half else finished.encoder
    digest = weights_digest(encoder.state_dict())
    encoder.name, encoder.revision = name, digest
    identity = Identity(
        tuple(dict.fromkeys((spec.name, name))),
        tuple(dict.fromkeys((finished.saved.revision, own_digest, digest, *_pushed(out, digest)))),
        spec.preprocessing,
    )
    records, passed_over = read_own(results, identity)

    with _replacing(out) as temporary:
        save_encoder(encoder, temporary, training=finished.training, license=license, notes=notes)
        weights = temporary / WEIGHTS_NAME
        rounded = half and any(record["model"].get("revision") != digest for record in records)
        facts = CardFacts(finished, name, license, notes, half, weights.stat().st_size / 1e6, rounded, tuple(records))
        card, entry = model_card(facts), _entry(finished, facts, weights)
        (temporary / CARD_NAME).write_text(card, encoding="utf-8")
        (temporary / ENTRY_NAME).write_text(_entry_text(name, entry), encoding="utf-8")
        (temporary / RECORD_NAME).write_text(json.dumps(finished.record, indent=2) + "\n", encoding="utf-8")
    return Exported(out, entry, card, facts, tuple(passed_over))


def push_export(
    exported: Exported,
    repo_id: str,
    *,
    private: bool = False,
    token: str | bool | None = None,
    revision: str | None = None,
    commit_message: str | None = None,
) -> str:
    """Put an export on the Hub in one commit; then its card and manifest entry on disk name the repository too.

    The entry on the Hub cannot name the commit that it is part of: there its revision is null.

    Args:
        exported: of `export_run`.
        repo_id: "owner/repo"; made if it does not exist.
        private: whether a repository that is made is private.
        token: with the right to write; HF_TOKEN or the stored login if None.
        revision: branch, which must exist; the main one if None.
        commit_message: the first line of the commit.

    Returns:
        The commit.

    Raises:
        ValueError: `repo_id` is no Hub id.
        HubError: the network or the Hub.
        DigestError: the weights on disk are no longer those that were exported.
        StorageError: a file cannot be read, or after the push not be written.

    Example:
        >>> import tempfile
        >>> from rclip_metric.weights import load_encoder
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     run = save_encoder(load_encoder("tiny"), Path(folder, "run"))
        ...     size = (run / RECORD_NAME).write_text('{"method": "FARE"}')
        ...     push_export(export_run(run), "owner")
        Traceback (most recent call last):
        ValueError: 'owner' is no repository of the Hub: write it like owner/repo
    """
    check_repo_id(repo_id)
    folder, name = exported.folder, exported.name
    published = {"source": "hub", "repo": repo_id, "revision": None, "url_note": None}
    entry = {**exported.entry, **published}
    card = model_card(replace(exported.facts, repo=repo_id, branch=revision))
    contents: dict[str, Path | bytes] = {file: folder / file for file in (WEIGHTS_NAME, CONFIG_NAME, RECORD_NAME)}
    contents |= {CARD_NAME: card.encode(), ENTRY_NAME: _entry_text(name, entry).encode()}
    _check_weights(exported)
    commit = push_files(
        contents,
        repo_id,
        private=private,
        token=token,
        revision=revision,
        commit_message=commit_message or f"{name}, exported by rclip-metric",
    )
    try:
        for file, text in ((CARD_NAME, card), (ENTRY_NAME, _entry_text(name, {**entry, "revision": commit}))):
            with written_whole(folder / file) as partial:
                partial.write_text(text, encoding="utf-8")
    except OSError as error:
        raise StorageError(
            f"{repo_id} is now at {commit}, and that could not be noted in {folder}: {error.strerror}."
        ) from error
    return commit


def _check_weights(exported: Exported) -> None:
    """Raise DigestError unless the weights on disk are those that were exported; StorageError if they are not there."""
    path, stated = exported.folder / WEIGHTS_NAME, exported.entry["files"][0]
    try:
        check_file(path, stated["sha256"], stated["size"])
    except OSError as error:
        raise StorageError(f"{path} cannot be read: {error.strerror}: export the run again.") from error


def check_repo_id(repo_id: str) -> None:
    """Raise ValueError for what is no "owner/repo".

    Example:
        >>> check_repo_id("someone/robust-clip")
        >>> check_repo_id("robust-clip")
        Traceback (most recent call last):
        ValueError: 'robust-clip' is no repository of the Hub: write it like owner/repo
    """
    if not _REPO.fullmatch(repo_id):
        raise ValueError(f"{repo_id!r} is no repository of the Hub: write it like owner/repo")


def _check_target(out: Path, run: Path) -> None:
    """Raise ValueError where writing to `out` would take away anything but an earlier export."""
    if out.resolve() == run.resolve():
        raise ValueError(f"{out} is the run itself: pass another --out, or none for {run / 'export'}")
    if not out.exists():
        return
    if not out.is_dir():
        raise ValueError(f"{out} is a file: pass a folder as --out")
    found = sorted(path.name for path in out.iterdir())
    others = [name for name in found if name not in EXPORT_NAMES]
    if others or (found and ENTRY_NAME not in found):
        raise ValueError(
            f"{out} holds {(others or found)[0]} and is not an export, which would be replaced as a whole: "
            "pass another --out"
        )


def _pushed(out: Path, digest: str) -> tuple[str, ...]:
    """Find the commit that an earlier export of the very same weights was pushed as."""
    if not (out / ENTRY_NAME).exists() or not (out / CONFIG_NAME).exists():
        return ()
    same = read_json(out / CONFIG_NAME).get("revision") == digest
    entries = read_json(out / ENTRY_NAME, {"*": {"revision": or_null(LINE), "*": ANYTHING}})
    return tuple(entry["revision"] for entry in entries.values() if same and entry["revision"])


def _entry(run: FinishedRun, card: CardFacts, weights: Path) -> dict[str, Any]:
    spec = replace(
        run.saved.spec,
        name=card.name,
        files=(WeightFile(WEIGHTS_NAME, file_digest(weights), weights.stat().st_size),),
        preprocessing=_as_saved(run),
        training=run.training,
        license=card.license,
        notes=card.notes,
        reported=reported_numbers(card.records, run.encoder.image_size),
        url_note=_UNPUBLISHED,
    )
    entry = spec.to_dict()
    WeightSpec.from_dict(card.name, entry)
    return entry


def _as_saved(run: FinishedRun) -> Preprocessing:
    """Give the preprocessing with the way of resizing that was saved: an entry has no other place for it."""
    preprocessing = run.saved.spec.preprocessing
    if run.saved.resize != "squash" or preprocessing.mode == "squash":
        return preprocessing
    return replace(preprocessing, mode="squash", resize=preprocessing.crop)


def _entry_text(name: str, entry: Mapping[str, Any]) -> str:
    """Write the entry under its name; the lines between the outer braces go into the manifest's models as they are."""
    return format_manifest({name: dict(entry)}, 2).removesuffix("\n  }") + "\n}\n"


@contextlib.contextmanager
def _replacing(out: Path) -> Iterator[Path]:
    """Yield a folder to write into, which takes the place of `out` at the end; after an error `out` is as it was.

    Raises:
        StorageError: it cannot be written.
    """
    folder = out.resolve()
    temporary = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}.tmp")
    try:
        yield temporary
        _put_in_place(temporary, folder)
    except (OSError, StorageError) as error:
        cause = error.__cause__ if isinstance(error, StorageError) and error.__cause__ else error
        reason = (isinstance(cause, OSError) and cause.strerror) or str(cause)
        raise StorageError(f"The export cannot be written to {out}: {reason.rstrip('.')}.") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _put_in_place(new: Path, folder: Path) -> None:
    """Move a complete folder to its place; what was there is removed only after that."""
    if not folder.exists():
        new.rename(folder)
        return
    old = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}.old")
    folder.rename(old)
    try:
        new.rename(folder)
    except OSError:
        old.rename(folder)
        raise
    shutil.rmtree(old)
