"""Files: written as a whole or not at all, read only where there is an end to them, told from their replacements."""

import contextlib
import errno
import glob
import os
import shutil
import stat
import time
import uuid
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def written_whole(path: Path, *, flush: bool = False) -> Iterator[Path]:
    """Give another place to write a file to, and move it to `path` when it is complete, over what was there.

    The place is a hidden folder of its own beside `path`, for whoever writes under further names on the way. Whatever
    goes wrong, nothing of it is left, and `path` is as it was. The file gets the permissions of any new file, which
    safetensors takes from everybody else.

    Args:
        path: Its folder is made if it does not exist.
        flush: Whether the bytes and the name have to be on the disk when this returns, and not on their way there.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    workshop = path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")
    try:
        workshop.mkdir()
        written = workshop / "unfinished"  # under no name that anybody looks for
        written.touch()
        mode = written.stat().st_mode & 0o777
        yield written
        written.chmod(mode)
        if flush:
            flush_to_disk(written)
        os.replace(written, path)
        if flush:
            flush_to_disk(path.parent)
    finally:
        shutil.rmtree(workshop, ignore_errors=True)  # if this fails too, the first error is the one to tell


_ENDLESS = (
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def regular_file(path: Path) -> Path:
    """Return a path that is about to be opened for reading, if that will neither wait for somebody nor never end.

    What is not there, or is a folder, is left to whoever opens it.

    Raises:
        OSError: It is a pipe, a socket or a device, or a link to one.

    Example:
        >>> regular_file(Path("/dev/zero"))
        Traceback (most recent call last):
            ...
        OSError: [Errno 22] it is a device, not a file: '/dev/zero'
    """
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError):
        return path
    for holds, what in _ENDLESS:
        if holds(mode):
            raise OSError(errno.EINVAL, f"it is {what}, not a file", str(path))
    return path


def remove_unfinished(path: Path) -> None:
    """Remove what processes that were killed in the midst of `written_whole` left beside `path`."""
    for workshop in path.parent.glob(f".{glob.escape(path.name)}.*.partial"):
        shutil.rmtree(workshop, ignore_errors=True)


def flush_to_disk(path: Path) -> None:
    """Wait until a file's bytes, or a folder's names, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if not (path.is_dir() and error.errno in (errno.EINVAL, errno.ENOTSUP)):
            raise  # some network file systems have nothing to flush for a folder
    finally:
        os.close(handle)


Stamp = dict[str, int]
_TICK = 20_000_000  # nanoseconds; no clock of a file system in use on a local disk is coarser


def stamp(path: Path) -> Stamp:
    """Return what differs when a file was replaced, truncated or written to since: what is known of it is then void.

    The time of the last change of status (ctime) is the one that nobody can set back. A file that was written to a
    moment ago is waited for, so that whoever writes to it later leaves another time.

    Example:
        >>> sorted(stamp(Path(__file__)))
        ['ctime_ns', 'device', 'inode', 'mtime_ns', 'size']
    """
    found = path.stat()
    age = time.time_ns() - found.st_ctime_ns
    if 0 <= age < _TICK:
        time.sleep((_TICK - age) / 1e9)
        found = path.stat()
    return {
        "device": found.st_dev,
        "inode": found.st_ino,
        "size": found.st_size,
        "mtime_ns": found.st_mtime_ns,
        "ctime_ns": found.st_ctime_ns,
    }


def always_verify() -> bool:
    """Tell whether the user wants every digest computed anew, whatever is remembered: RCLIP_METRIC_ALWAYS_VERIFY=1."""
    return os.environ.get("RCLIP_METRIC_ALWAYS_VERIFY", "") not in ("", "0")


def notes_folder() -> Path:
    """Name the folder for what is remembered of the user's own files: it may be removed at any time.

    RCLIP_METRIC_CACHE, else `rclip-metric` in XDG_CACHE_HOME, else in ~/.cache.
    """
    if own := os.environ.get("RCLIP_METRIC_CACHE"):
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "rclip-metric"
