"""What is missing, truncated or not an image, before the first hour of GPU time (while a run reads: `unreadable`)."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from rclip_metric.images import ImageError, open_image
from rclip_metric.progress import progress


def check_images(paths: Iterable[Path], *, workers: int = 8, quiet: bool = False) -> list[str]:
    """Decode every distinct file completely, as an evaluation would.

    A file that was cut off is found wherever its format can tell. What decoders let pass cannot be found
    here: other bytes in the middle of a JPEG, for instance.

    Args:
        paths: image files; repeated ones are read once.
        workers: threads; Pillow decodes outside Python's lock.
        quiet: no progress bar, which is shown on a terminal only.

    Returns:
        One sentence for each file that cannot be read, sorted by path; empty when all is well.

    Raises:
        ValueError: for fewer than one worker.

    Example:
        >>> [problem] = check_images([Path("nowhere.png")], quiet=True)
        >>> "nowhere.png" in problem
        True
    """
    if workers < 1:
        raise ValueError(f"got {workers} workers, expected 1 or more")
    distinct = sorted(set(paths))
    with ThreadPoolExecutor(workers) as pool:
        bar = progress(total=len(distinct), label="check", unit="image", quiet=quiet)
        problems = []
        for problem in pool.map(_problem, distinct):
            bar.update()
            if problem:
                problems.append(problem)
        bar.close()
    return problems


def _problem(path: Path) -> str:
    try:
        open_image(path)
    except ImageError as error:
        return str(error)
    return ""
