"""Odd-one-out triplets in the THINGS format: a tab-separated table over one image per concept."""

from __future__ import annotations

import csv
from array import array
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from rclip_metric.files import regular_file
from rclip_metric.images import list_images
from rclip_metric.train.data.table import place_in

COLUMNS = ("image1", "image2", "image3", "choice")
PUBLISHED = "triplets_large_final_correctednc_correctedorder.csv"
_TABLES = (".csv", ".tsv", ".txt")


@dataclass(frozen=True, eq=False)
class Things:
    """Images and the judgements over them.

    Attributes:
        images: One file per concept, in the order that the table counts in.
        triplets: int64 (T, 3), which images were shown, from 0.
        odd: int64 (T,) in {0, 1, 2}, which of the three people called the odd one.

    Example:
        >>> images = (Path("cat.png"), Path("dog.png"), Path("car.png"))
        >>> things = Things(images, triplets=torch.tensor([[0, 1, 2]]), odd=torch.tensor([2]))
        >>> things.images[things.triplets[0, things.odd[0]]].name
        'car.png'
    """

    images: tuple[Path, ...]
    triplets: torch.Tensor
    odd: torch.Tensor


def read_things(table: Path, images: Path, *, allow_outside: bool = False) -> Things:
    """Read every triplet of a table: its first line is a header, and every other one counts.

    Args:
        table: tab-separated, with at least the columns image1, image2, image3 (from 1) and choice (1 to 3, the
            odd one), or a folder that holds the published file or exactly one such table.
        images: in the order of the published concepts: a text file with one path per line, relative to it; or
            a folder with one image per concept, sorted by name; or a folder with a folder per concept, of which
            the first image by name is taken.
        allow_outside: the paths in a list may lead out of its folder, see `place_in`.

    Raises:
        ValueError: naming the file, row or column that is missing or malformed, or the index without an image.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for number in (1, 2, 3):
        ...         Path(folder, f"{number}.png").touch()
        ...     table = Path(folder, "triplets.csv")
        ...     _ = table.write_text("image1\\timage2\\timage3\\tchoice\\n3\\t1\\t2\\t1\\n")
        ...     things = read_things(table, Path(folder))
        >>> things.triplets, things.odd  # counted from 0
        (tensor([[2, 0, 1]]), tensor([0]))
    """
    paths = _concepts(images, allow_outside)
    table = _table(table)
    try:
        with regular_file(table).open(newline="", encoding="utf-8-sig") as handle:
            reader = csv.reader(handle, delimiter="\t")
            header = next(reader, [])
            if missing := [column for column in COLUMNS if column not in header]:
                raise ValueError(
                    f"{table} lacks the column {missing[0]!r} in its first line, tab-separated; "
                    f"it has {', '.join(header) or 'none'}"
                )
            first, second, third, choice = (header.index(column) for column in COLUMNS)
            width, most = len(header), len(paths)
            numbers = array("i")
            for row in reader:  # 4.7 million of them: no function calls but int
                try:
                    a, b, c, odd = int(row[first]), int(row[second]), int(row[third]), int(row[choice])
                except (ValueError, IndexError):
                    if not row:  # an empty line
                        continue
                    a = 0
                if len(row) != width or not (
                    0 < a <= most and 0 < b <= most and 0 < c <= most and 0 < odd < 4 and a != b != c != a
                ):
                    raise ValueError(_fault(table, reader.line_num, header, row, images, most))
                numbers.extend((a, b, c, odd))
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{table} is not a UTF-8 text file of tab-separated values ({error}): replace it") from error
    if not numbers:
        raise ValueError(f"{table} has a header and no triplets: download it again")
    rows = torch.from_numpy(np.array(numbers, dtype=np.int64)).view(-1, 4) - 1  # (T, 4)
    return Things(paths, rows[:, :3].contiguous(), rows[:, 3].contiguous())


def _fault(table: Path, number: int, header: list[str], row: list[str], images: Path, most: int) -> str:
    """Say what is wrong with a row that `read_things` does not take."""
    where = f"{table}, row {number}"
    if len(row) != len(header):
        return f"{where} has {len(row)} cells where the header has {len(header)}: download the file again"
    cells = dict(zip(header, row, strict=True))
    for name in COLUMNS:
        try:
            value = int(cells[name])
        except ValueError:
            return f"{where} has {name} {cells[name]!r}, expected a whole number: download the file again"
        if name == "choice" and not 1 <= value <= 3:
            return f"{where} has choice {value}, expected 1, 2 or 3: download the file again"
        if value < 1:
            return f"{where} has {name} {value}, expected an index from 1: download the file again"
        if name != "choice" and value > most:
            return f"{where} has {name} {value}, and {images} gives {most} images: pass an image for every concept"
    return f"{where} shows an image twice ({', '.join(cells[name] for name in COLUMNS[:3])}): correct or remove it"


def _table(place: Path) -> Path:
    """Find the table: the file itself, the published file in a folder, or the only table in it."""
    if place.is_file():
        return place
    if not place.is_dir():
        raise ValueError(f"{place} does not exist: pass the table of triplets ({PUBLISHED}) or its folder")
    if (place / PUBLISHED).is_file():
        return place / PUBLISHED
    files = sorted(path for path in place.iterdir() if path.suffix.lower() in _TABLES and path.is_file())
    tables = [path for path in files if not path.name.startswith(".") and _has_header(path)]
    if len(tables) != 1:
        found = ", ".join(path.name for path in tables) or "none"
        raise ValueError(
            f"{place} holds neither {PUBLISHED} nor exactly one tab-separated table with the columns "
            f"{', '.join(COLUMNS)} (found {found}): pass the file itself"
        )
    return tables[0]


def _has_header(path: Path) -> bool:
    with path.open(newline="", encoding="utf-8-sig", errors="replace") as handle:
        header = handle.readline(10_000).rstrip("\r\n").split("\t")
    return {name.strip('"') for name in header} >= set(COLUMNS)


def _concepts(place: Path, allow_outside: bool) -> tuple[Path, ...]:
    """List one image per concept, in order."""
    if place.is_file():
        return _listed(place, allow_outside)
    if not place.is_dir():
        raise ValueError(f"{place} does not exist: pass the folder of images, or a text file with one path per line")
    images = list_images(place)
    folders = sorted(path for path in place.iterdir() if path.is_dir() and not path.name.startswith("."))
    if images and folders:
        raise ValueError(
            f"{place} holds both images ({images[0].name}) and folders ({folders[0].name}), so that the order of "
            "the concepts is not clear: pass a text file with one path per line"
        )
    for folder in folders:
        inside = list_images(folder)
        if not inside:
            raise ValueError(f"{folder} holds no image, and every concept needs one: add it, or remove the folder")
        images.append(inside[0])
    if not images:
        raise ValueError(f"{place} holds neither images nor folders of images: pass one image per concept")
    return tuple(images)


def _listed(file: Path, allow_outside: bool) -> tuple[Path, ...]:
    try:
        lines = file.read_text(encoding="utf-8-sig").rstrip().splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{file} is not a text file: pass a folder of images, or a list with one path per line"
        ) from error
    if not lines:
        raise ValueError(f"{file} is empty: write one path per line, relative to it, in the order of the concepts")
    paths = []
    for number, line in enumerate(lines, start=1):
        try:
            path = place_in(file.parent, line.strip(), allow_outside)
        except ValueError as error:
            raise ValueError(f"{file}, row {number}: {error}") from None
        if not line.strip() or not path.is_file():
            what = f"{line.strip()!r}, which is no file" if line.strip() else "nothing"
            raise ValueError(f"{file}, row {number} names {what}: one path per line, relative to the list")
        paths.append(path)
    return tuple(paths)
