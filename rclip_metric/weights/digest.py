"""Whether a file is the published one: its digest, computed before any tensor is read, then remembered.

Hashing the 718 MB of `r-clip-f` takes longer than loading it, so a digest that was computed once is
remembered in a small JSON file together with the `stamp` of the file it was computed from. A file that was
replaced, truncated or written to no longer has the same and is hashed again; with RCLIP_METRIC_ALWAYS_VERIFY=1
every file is, every time. This guards against broken downloads, disks and mix-ups, not against somebody who can
write to the notes as well.
"""

import contextlib
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rclip_metric.errors import DigestError, ManifestError
from rclip_metric.files import Stamp, always_verify, regular_file, stamp, written_whole
from rclip_metric.json_files import read_json

if TYPE_CHECKING:
    from torch import Tensor


def tensors_digest(state: "Mapping[str, Tensor]") -> str:
    """Compute the sha256 of tensors, in hex: in the order of their names, of each its name, dtype, shape and bytes.

    Whatever file they are in, and whatever dtype they are stored in: floats count as the float32 that they are
    computed with.

    Example:
        >>> import torch
        >>> tensors_digest({"a": torch.ones(2)}) == tensors_digest({"a": torch.ones(2, dtype=torch.float16)})
        True
    """
    import torch

    digest = hashlib.sha256()
    for key in sorted(state):
        tensor = state[key].detach().cpu().contiguous()
        tensor = tensor.float() if tensor.is_floating_point() else tensor
        digest.update(json.dumps([key, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def file_digest(path: Path, digits: int = 64) -> str:
    """Compute the digest of a file as the Hub states it, in hex.

    Args:
        path: The file.
        digits: 64 for sha256; 40 for the git blob sha1 that the Hub states for small files.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = Path(folder, "file").write_bytes(b"abc")
        ...     file_digest(Path(folder, "file"))
        'ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad'
    """
    if digits == 40:
        digest = hashlib.sha1(f"blob {path.stat().st_size}\0".encode(), usedforsecurity=False)
    else:
        digest = hashlib.sha256()
    buffer = memoryview(bytearray(1 << 20))
    with regular_file(path).open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            digest.update(buffer[:count])
    return digest.hexdigest()


def check_file(path: Path, expected: str, size: int | None = None, record: Path | None = None) -> str:
    """Check a file against its published digest and, where known, size; return the digest.

    Args:
        path: The file.
        expected: sha256 (64 hex digits) or git blob sha1 (40).
        size: In bytes, None where unknown.
        record: Where to remember that the digest was right, None to forget it.

    Raises:
        DigestError: The file is truncated, or another one.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = Path(folder, "file").write_bytes(b"abc")
        ...     check_file(Path(folder, "file"), expected=64 * "0", size=4)
        Traceback (most recent call last):
            ...
        rclip_metric.errors.DigestError: file is truncated: it has 3 of 4 bytes (...).
    """
    if record is not None and remembered(path, record) == expected:
        return expected
    before = stamp(path)
    if size is not None and before["size"] < size:
        raise DigestError(f"{path.name} is truncated: it has {before['size']} of {size} bytes ({path}).")
    found = file_digest(path, len(expected))
    if found != expected:
        raise DigestError(f"{path.name} is not the published file: digest {found}, expected {expected} ({path}).")
    if record is not None:
        remember(path, expected, record, before)
    return found


def remembered(path: Path, record: Path) -> str | None:
    """Return the digest that was computed from this very file, None if it never was or the file has changed."""
    note = _note(record)
    if always_verify() or not note or any(note.get(key) != value for key, value in stamp(path).items()):
        return None
    return noted(record)


def noted(record: Path) -> str | None:
    """Return the digest in a note, whatever has become of the file since; None where there is no such note."""
    digest = _note(record).get("digest")
    return digest if isinstance(digest, str) else None


def remember(path: Path, digest: str, record: Path, before: Stamp) -> None:
    """Note a digest, unless the file has changed since the stamp that was taken before the digest was computed."""
    if stamp(path) != before:
        return
    # A shared cache may be read-only: the digest is then simply computed every time.
    with contextlib.suppress(OSError), written_whole(record) as partial:
        partial.write_text(json.dumps({"digest": digest, **before}), encoding="utf-8")


def _note(record: Path) -> dict[str, Any]:
    try:
        return dict(read_json(record))
    except ManifestError:
        return {}  # never checked, or the note of it cannot be read: both mean that it has to be computed
