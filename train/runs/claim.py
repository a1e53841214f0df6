"""One run at a time for one output: a lock that goes with the process, however it ends."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path


@contextlib.contextmanager
def claimed(path: Path) -> Iterator[None]:
    """Keep other runs from writing to a file or folder meanwhile.

    The lock is a hidden file beside it, held by the system: a process that is killed holds none. Where no such file can
    be written, or there are no locks (Windows, some network drives), two runs are not told of each other.

    Raises:
        ValueError: another process has it, which is named.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder, claimed(Path(folder, "out")), claimed(Path(folder, "out")):
        ...     pass
        Traceback (most recent call last):
        ValueError: ...out is being written by process ... on ..., begun ...: wait for it, or choose another --out
    """
    lock = path.absolute().parent / f".{path.absolute().name}.lock"
    handle = _taken(lock, path)
    try:
        yield
    finally:
        if handle is not None:
            with contextlib.suppress(OSError):  # on a disk that is gone, the lock is too
                lock.unlink()
            os.close(handle)


def leads() -> bool:
    """Say whether this is the first of torchrun's processes, or the only one, before they know of each other."""
    return os.environ.get("RANK", "0") == "0"


def _taken(lock: Path, path: Path) -> int | None:
    """Open and lock the file; None where that cannot be done."""
    try:
        import fcntl
    except ImportError:
        return None
    while True:
        try:
            lock.parent.mkdir(parents=True, exist_ok=True)
            handle = os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError:  # the run itself will say what is wrong with the place
            return None
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.exists(lock) and os.path.samestat(os.fstat(handle), os.stat(lock)):
                begun = datetime.now().strftime("%Y-%m-%d %H:%M:%S")
                os.ftruncate(handle, 0)
                os.write(handle, f"process {os.getpid()} on {socket.gethostname()}, begun {begun}".encode())
                return handle
            os.close(handle)  # whoever had it removed it as it was opened here: try the new one
        except BlockingIOError:
            owner = os.pread(handle, 200, 0).decode(errors="replace") or "another process"
            os.close(handle)
            raise ValueError(f"{path} is being written by {owner}: wait for it, or choose another --out") from None
        except OSError:
            os.close(handle)
            return None
