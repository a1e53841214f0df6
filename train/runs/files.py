"""The files of a run: the names of its states, JSON and lines of it, and what is said when the disk refuses."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from rclip_metric.errors import ManifestError, StorageError
from rclip_metric.files import written_whole
from rclip_metric.json_files import ANYTHING, parse_json, read_json

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def state_path(folder: Path, step: int) -> Path:
    """Name the file of the state after `step` steps.

    Example:
        >>> state_path(Path("run"), 1200).name
        'state-00001200.safetensors'
    """
    return folder / f"state-{step:08d}.safetensors"


def states(folder: Path) -> list[Path]:
    """List the numbered states in a folder, by step; none where there is no such folder.

    Example:
        >>> states(Path("nowhere"))
        []
    """
    named = (path for path in folder.glob("state-*.safetensors") if path.stem.removeprefix("state-").isdecimal())
    return sorted(named, key=step_of)


def step_of(path: Path) -> int:
    """Read the step in the name of a state.

    Example:
        >>> step_of(Path("run", "state-00001200.safetensors"))
        1200
    """
    return int(path.stem.removeprefix("state-"))


@contextlib.contextmanager
def storing(what: str, folder: Path, needed: int | None = None, doing: str = "written to") -> Iterator[None]:
    """Turn what the disk raises into one sentence, which tells the room there is and the last good state of the run.

    Args:
        what: is being written, as the subject of a sentence.
        folder: of the run.
        needed: bytes.
        doing: what cannot be done, before the folder's name.

    Raises:
        StorageError: for a full disk, a used-up quota, a read-only folder, a path that is no folder.

    Example:
        >>> with storing("the log", Path("run")):
        ...     raise OSError(errno.EROFS, "said by the system")
        Traceback (most recent call last):
        rclip_metric.errors.StorageError: the log cannot be written to run: Read-only file system: make it writable, ...
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        number = system_error(error)
        if number is None:
            raise
        full = number in _FULL
        room = [f"it takes {_size(needed)}"] if full and needed is not None else []
        if full:
            with contextlib.suppress(OSError):  # a folder that is not there has no room to tell of
                room.append(f"{_size(shutil.disk_usage(folder).free)} are free there")
        told, reason = f" ({', '.join(room)})" if room else "", os.strerror(number)
        good = next((path.name for path in reversed(states(folder)) if _is_whole(path)), None)
        advice = "make it writable, or choose another folder"
        if full:
            advice = "make room, or keep fewer states (--keep)" if good else "make room"
        elif number in (errno.ENOTDIR, errno.EEXIST):
            reason, advice = "it is no folder", "choose another"
        left = f"; {good} is still good, and the same command goes on from it" if good else ""
        raise StorageError(f"{what} cannot be {doing} {folder}: {reason}{told}: {advice}{left}.") from error


def _size(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e8 else f"{count / 1e6:.2f} MB"


def _is_whole(path: Path) -> bool:
    """Tell whether the file's header can be read and its length is right; the checksum is not looked at."""
    try:
        with safe_open(path, framework="pt"):
            return True
    except (OSError, SafetensorError):
        return False


def system_error(error: OSError | SafetensorError) -> int | None:
    """Find the system's number of an error, which safetensors has in its text only; None if the system has none."""
    if isinstance(error, OSError):
        return error.errno
    with contextlib.suppress(IndexError, ValueError):
        return int(str(error).split("(os error ")[1].split(")")[0])
    return None


def write_json(path: Path, record: dict[str, Any]) -> None:
    """Write JSON so that a reader sees either the old file or the whole new one.

    Raises:
        StorageError: the disk is full or the folder cannot be written.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_json(Path(folder, "run.json"), {"seed": 0})
        ...     Path(folder, "run.json").read_text()
        '{\\n  "seed": 0\\n}\\n'
    """
    write_text(path, json.dumps(record, indent=2))


def checksum(record: Mapping[str, Any]) -> str:
    """Compute the sha256 of what JSON holds, whatever the order of its keys; that of a "checksum" in it aside.

    Example:
        >>> checksum({"a": 1, "b": 2}) == checksum({"b": 2, "a": 1, "checksum": ""}) != checksum({"a": 1})
        True
    """
    held = {key: value for key, value in record.items() if key != "checksum"}
    return hashlib.sha256(json.dumps(held, sort_keys=True).encode()).hexdigest()[:32]


def write_sealed(path: Path, record: Mapping[str, Any]) -> None:
    """Write JSON as `write_json` does, with its checksum."""
    write_json(path, {**record, "checksum": checksum(record)})


def read_sealed(path: Path) -> tuple[Any, bool]:
    """Read JSON, and say whether it has a checksum, which is not in what is returned.

    Raises:
        ValueError: the file is damaged: no JSON, or other values than were written.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_sealed(Path(folder, "found.json"), {"accuracy": 75.0})
        ...     read_sealed(Path(folder, "found.json"))
        ({'accuracy': 75.0}, True)
    """
    try:
        record = read_json(path, ANYTHING)
    except ManifestError as error:
        if isinstance(error.__cause__, OSError):
            raise
        raise ValueError(f"{path} is damaged: it cannot be read as JSON ({str(error).removesuffix('.')})") from error
    if not isinstance(record, dict) or "checksum" not in record:
        return record, False
    if record.pop("checksum") != checksum(record):
        raise ValueError(f"{path} is damaged: its values are not those that were written")
    return record, True


def write_text(path: Path, text: str) -> None:
    """Write a text, with a newline at its end, as `write_json` does.

    Raises:
        StorageError: the disk is full or the folder cannot be written.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_text(Path(folder, "notes.md"), "One line")
        ...     Path(folder, "notes.md").read_text()
        'One line\\n'
    """
    with storing(path.name, path.parent), written_whole(path) as partial:
        partial.write_text(text if text.endswith("\n") else text + "\n", encoding="utf-8")


def append_line(path: Path, record: Mapping[str, Any]) -> None:
    """Add a line of JSON to a file, which is on the disk when this returns.

    A line before it that a crash or a full disk cut short stays a line of its own.

    Raises:
        StorageError: the disk is full or the folder cannot be written.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for step in (1, 2):
        ...         append_line(Path(folder, "log.jsonl"), {"step": step})
        ...     list(whole_lines(Path(folder, "log.jsonl")))
        [{'step': 1}, {'step': 2}]
    """
    with storing(path.name, path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a+b") as handle:
            if handle.tell() > 0:
                handle.seek(-1, os.SEEK_END)
                handle.write(b"" if handle.read(1) == b"\n" else b"\n")
            handle.write(json.dumps(record).encode() + b"\n")
            handle.flush()
            os.fsync(handle.fileno())


def whole_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the JSON objects in the lines of a file; lines that were cut short are left out.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     size = Path(folder, "log.jsonl").write_text('{"step": 1}\\n{"st')
        ...     list(whole_lines(Path(folder, "log.jsonl")))
        [{'step': 1}]
    """
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            entry = parse_json(line, path.name, finite=False)
        except ValueError:
            continue
        if isinstance(entry, dict):
            yield entry


def provenance(
    method: str, data: str, norm: str | None = None, eps: str | None = None, base: str | None = None
) -> dict[str, str | None]:
    """Make the `training` record of a saved encoder, in the manifest's fields.

    Example:
        >>> provenance("CLIP", "scenes")
        {'method': 'CLIP', 'norm': None, 'eps': None, 'data': 'scenes', 'base': None}
    """
    return {"method": method, "norm": norm, "eps": eps, "data": data, "base": base}
