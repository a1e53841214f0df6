"""What image files hold, as a digest: computed once for a file, and again when it was replaced or written to."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from rclip_metric.files import always_verify, notes_folder, stamp, written_whole
from rclip_metric.weights import file_digest

MISSING = "missing"
BUDGET = 2**32
"""Bytes of the files of a tree whose contents are looked at; of a larger one, files at equal steps."""

_Note = list[int | str]
_THREADS = 4


def contents_digest(paths: Iterable[Path]) -> str:
    """Digest what files hold, in this order, wherever they lie and whatever they are called: 16 hex digits.

    A file that cannot be read counts as missing, and not as nothing.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     one, other = Path(folder, "1.png"), Path(folder, "2.png")
        ...     _ = one.write_bytes(b"1"), other.write_bytes(b"2")
        ...     before, swapped = contents_digest([one, other]), contents_digest([other, one])
        ...     _ = one.write_bytes(b"3")
        ...     len({before, swapped, contents_digest([one, other])})
        3
    """
    paths = list(paths)
    found = file_digests(paths)
    return _short("\n".join(found[path] for path in paths))


def tree_digest(root: Path, paths: Sequence[str]) -> str:
    """Digest the names below `root` and sizes of files, and what they hold: all of them up to `BUDGET`, else a part.

    Of larger sets every n-th file is read, so that it takes no longer for a hundred million of them: other images are
    noticed by their sizes, and by those that are read.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder, "1.png")
        ...     _ = path.write_bytes(b"1")
        ...     before = tree_digest(Path(folder), [str(path)])
        ...     _ = path.write_bytes(b"2")
        ...     before == tree_digest(Path(folder), [str(path)])
        False
    """
    sizes = [os.path.getsize(path) if os.path.exists(path) else 0 for path in paths]  # links to nothing are among them
    step = max(1, -(-sum(sizes) // BUDGET))
    read = file_digests([Path(path) for path in paths[::step]])
    lines = (f"{os.path.relpath(path, root)} {size}" for path, size in zip(paths, sizes, strict=True))
    return _short("\n".join([*lines, *read.values()]))


def file_digests(paths: Sequence[Path]) -> dict[Path, str]:
    """Compute the sha256 of files, or take it from the notes where a file is as it was; `MISSING` for unreadable ones.

    The notes of a folder's files are in one file in `notes_folder`.
    """
    distinct = list(dict.fromkeys(paths))
    if not distinct:
        return {}
    root = os.path.commonpath([os.path.abspath(path.parent) for path in distinct])
    note = notes_folder() / "contents" / f"{_short(os.path.realpath(root))}.json"
    known = {} if always_verify() else _read(note)
    with ThreadPoolExecutor(_THREADS) as pool:
        told = list(pool.map(lambda path: _told(path, known.get(os.path.relpath(path, root))), distinct))
    new = {os.path.relpath(path, root): one for path, one in zip(distinct, told, strict=True) if one[-1] != MISSING}
    if any(known.get(name) != one for name, one in new.items()):
        with contextlib.suppress(OSError), written_whole(note) as partial:  # otherwise they are computed every time
            partial.write_text(json.dumps({**_read(note), **new}), encoding="utf-8")
    return {path: str(one[-1]) for path, one in zip(distinct, told, strict=True)}


def _told(path: Path, known: _Note | None) -> _Note:
    """Give a file's stamp and, last, its digest."""
    try:
        before: _Note = list(stamp(path).values())
        if isinstance(known, list) and known[:-1] == before:
            return known
        return [*before, file_digest(path)]
    except OSError:
        return [MISSING]


def _read(note: Path) -> Mapping[str, _Note]:
    try:
        stored = json.loads(note.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return stored if isinstance(stored, dict) else {}


def _short(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()[:16]
