"""From a folder on the disk to the samples of an evaluation: NIGHTS, BAPPS, THINGS, scenes as these, cue conflicts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rclip_metric.train.data.cue_conflict import conflict_triplets, read_conflicts
from rclip_metric.train.data.photos import PHOTOS_RECORD as PHOTOS
from rclip_metric.train.data.things import read_things
from rclip_metric.train.data.triplets import BAPPS_SPLITS, read_bapps, read_nights
from rclip_metric.train.evaluation.results.labels import CONSTRUCTION, PEOPLE, SCENES
from rclip_metric.train.evaluation.tasks import odd_one_out, two_afc
from rclip_metric.train.evaluation.tasks.cue_conflict import CueConflictData
from rclip_metric.train.evaluation.tasks.odd_one_out import OddOneOutData
from rclip_metric.train.evaluation.tasks.two_afc import (
    Interpolation,
    TwoAfcData,
    at_equal_steps,
    first_of_each_split,
    loader_at,
)
from rclip_metric.train.metrics.paper import BAPPS_ATTACKED, published_as


@dataclass(frozen=True)
class BappsProtocol:
    """How BAPPS is judged.

    Attributes:
        score: "majority", or a soft score's name in records.
        side: of the square that images are squashed to before the metric sees them; None for the metric's own.
        interpolation: by which Pillow does that.
        macro: average over splits rather than over triplets.
    """

    score: str
    side: int | None
    interpolation: Interpolation
    macro: bool = True


BAPPS_PROTOCOLS = {
    # The R-CLIP paper: perceptual-metrics 962995f, utils_perceptual_data.py, at 224 pixels, the size of its models.
    "majority": BappsProtocol("majority", None, "bilinear"),
    # LPIPS 082bb24: data/dataset/twoafc_dataset.py, and a mean over what test_dataset_model.py prints for each split.
    "lpips": BappsProtocol("lpips", 64, "bilinear"),
    # DreamSim: evaluation/eval_datasets.py, whose own default is bicubic, and one mean over all triplets.
    "dreamsim": BappsProtocol("dreamsim", 224, "bicubic", macro=False),
    # What this package did before it had the three above; its records say `majority` and `soft`, and no interpolation.
    "majority-bicubic": BappsProtocol("majority", None, "bicubic"),
    "soft": BappsProtocol("soft", 64, "bicubic"),
}


def nights_data(
    folder: Path,
    split: str = "test",
    limit: int | None = None,
    *,
    attacked: int | None = None,
    name: str | None = None,
    published: bool = False,
    allow_outside: bool = False,
) -> TwoAfcData:
    """Read triplets in the NIGHTS format.

    Args:
        folder: with data.csv.
        split: train, val, test, test_imagenet or test_no_imagenet.
        limit: only the first ones.
        attacked: triplets that attacks are run on, at equal steps through the set (through its kinds one after the
            other, where it has any, so that each is there in proportion); None for all.
        name: of the set (default: the folder's, "scenes" for the scenes').
        published: the user states that this is NIGHTS itself, see `published_as`.
        allow_outside: paths in data.csv may lead out of the folder, see `place_in`.

    Raises:
        ValueError: as `read_nights` and `published_as` raise it.

    Example:
        >>> from tempfile import mkdtemp
        >>> from rclip_metric.train.data.scenes.draw import ScenesConfig, write_scenes
        >>> folder = Path(mkdtemp())
        >>> _ = write_scenes(folder, ScenesConfig(images=1, triplets=(0, 0, 4), pool=1, queries=1), quiet=True)
        >>> data = nights_data(folder / "nights", limit=3)
        >>> data.name, len(data.triplets), data.judges
        ('scenes', 3, "the scenes' own rule")
    """
    triplets = read_nights(folder, split, allow_outside=allow_outside)[:limit]
    # The scenes' folder is called nights, for its format.
    own, judges = _own(folder, folder.resolve().parent / "scenes.json", "scenes")
    if judges == PEOPLE and (folder / PHOTOS).exists():
        judges = CONSTRUCTION
    known = published_as("nights", len(triplets), two_afc.digest_of(triplets), split, stated=published)
    data = TwoAfcData(name or own, split, triplets, limit=limit, published=known, judges=judges)
    if attacked is None or attacked >= len(triplets):
        return data
    chosen = at_equal_steps(sorted(triplets, key=lambda triplet: triplet.kind), attacked)
    return replace(data, attacked=frozenset(triplet.key for triplet in chosen), attack_limit=attacked)


def bapps_data(
    folder: Path,
    splits: Sequence[str] | None = None,
    *,
    protocol: str = "majority",
    attacked: int = BAPPS_ATTACKED,
    limit: int | None = None,
    name: str | None = None,
    published: bool = False,
) -> TwoAfcData:
    """Read triplets in the BAPPS format.

    Args:
        folder: with 2afc/val.
        splits: default all six.
        protocol: one of `BAPPS_PROTOCOLS`.
        attacked: triplets of each split that attacks are run on.
        limit: only the first ones of each split.
        name: of the set (default: the folder's, "scenes-bapps" for the scenes').
        published: the user states that this is BAPPS itself, see `published_as`.

    Raises:
        ValueError: as `read_bapps` and `published_as` raise it.

    Example:
        >>> from tempfile import mkdtemp
        >>> from rclip_metric.train.data.scenes.formats import write_bapps
        >>> folder = Path(mkdtemp())
        >>> _ = write_bapps(folder, per_split=1, quiet=True)
        >>> data = bapps_data(folder, ["cnn", "color"])
        >>> data.split, len(data.triplets), data.macro
        ('cnn+color', 2, True)
    """
    triplets = read_bapps(folder, splits or BAPPS_SPLITS)
    if limit:
        triplets = first_of_each_split(triplets, limit)
    own, judges = _own(folder, folder / "bapps.json", "scenes-bapps")
    chosen = frozenset(triplet.key for triplet in first_of_each_split(triplets, attacked))
    split = None if splits is None else "+".join(sorted(splits))
    if protocol not in BAPPS_PROTOCOLS:
        raise ValueError(f"protocol must be one of {', '.join(BAPPS_PROTOCOLS)}, not {protocol!r}")
    how = BAPPS_PROTOCOLS[protocol]
    load = None if how.side is None else loader_at(how.side, how.interpolation)
    resized = how.interpolation if load is None and how.interpolation == "bilinear" else None
    known = published_as("bapps", len(triplets), two_afc.digest_of(triplets), split, stated=published)
    data = TwoAfcData(name or own, split, triplets, how.score, how.macro, chosen, load, limit, known, judges=judges)
    return replace(data, interpolation=resized)


def things_data(
    folder: Path,
    table: Path | None = None,
    images: Path | None = None,
    limit: int | None = None,
    *,
    name: str | None = None,
    published: bool = False,
    allow_outside: bool = False,
) -> OddOneOutData:
    """Read odd-one-out triplets in the THINGS format.

    Args:
        folder: with the table and the images, or the table itself beside them.
        table: the tab-separated triplets, if they are elsewhere.
        images: folder, or list of one path per line (default: images/ in the folder).
        limit: only the first triplets.
        name: of the set (default: the folder's, "scenes-things" for the scenes').
        published: the user states that this is THINGS itself, see `published_as`.
        allow_outside: paths in a list of images may lead out of its folder, see `place_in`.

    Raises:
        ValueError: as `read_things` and `published_as` raise it.

    Example:
        >>> from tempfile import mkdtemp
        >>> from rclip_metric.train.data.scenes.formats import write_things
        >>> folder = Path(mkdtemp())
        >>> _ = write_things(folder, concepts=6, triplets=5, quiet=True)
        >>> len(things_data(folder, limit=4).samples)
        4
    """
    if folder.is_file():
        table, folder = table or folder, folder.parent
    things = read_things(table or folder, images or folder / "images", allow_outside=allow_outside)
    if limit:
        things = replace(things, triplets=things.triplets[:limit], odd=things.odd[:limit])
    own, judges = _own(folder, folder / "things.json", "scenes-things")
    known = published_as("things", len(things.triplets), odd_one_out.digest_of(things), stated=published)
    return OddOneOutData(name or own, things, limit, known, judges)


def _own(folder: Path, record: Path, scenes: str) -> tuple[str, str]:
    """Find a set's own name and who judged it: `scenes` and their rule where the scenes' `record` is there."""
    return (scenes, SCENES) if record.exists() else (folder.resolve().name, PEOPLE)


def cue_conflict_data(
    folder: Path,
    classes: Path | None = None,
    draws: int = 10,
    seed: int = 0,
    limit: int | None = None,
    *,
    name: str | None = None,
) -> CueConflictData:
    """Read cue-conflict images, and draw triplets of them.

    Args:
        folder: with the images.
        classes: a table that says what they show, for files that are not called so.
        draws: pairs of options per reference.
        seed: of the draws.
        limit: only the first triplets.
        name: of the set (default: the folder's).

    Raises:
        ValueError: as `read_conflicts` and `conflict_triplets` raise it.

    Example:
        >>> from itertools import permutations
        >>> from tempfile import mkdtemp
        >>> from PIL import Image
        >>> folder = Path(mkdtemp())
        >>> for shape, texture in permutations(("car1", "car2", "bus1", "bus2", "dog1", "dog2"), 2):
        ...     Image.new("L", (8, 8), ord(shape[1])).save(folder / f"{shape}-{texture}.png")
        >>> len(cue_conflict_data(folder, draws=2).triplets)
        48
    """
    triplets, left_out = conflict_triplets(read_conflicts(folder, classes), draws, seed)
    return CueConflictData(name or folder.resolve().name, triplets[:limit], limit, left_out)
