"""WebDataset shards: tar files whose neighbouring members of one name are a sample (`0017.jpg`, `0017.cls`).

Shards are local files. Only their headers are read where samples are listed; whoever wants a sample goes to its place
in the file and reads that alone.
"""

from __future__ import annotations

import hashlib
import os
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rclip_metric.files import regular_file
from rclip_metric.images.reading import SUFFIXES, ImageError
from rclip_metric.json_files import parse_json, shown

# Of a sample that has several, the first of these is its image.
_USUAL = ("png", "jpg", "jpeg", "webp", "bmp", "tif", "tiff")
_IMAGES = (*_USUAL, *sorted({suffix.removeprefix(".") for suffix in SUFFIXES} - {*_USUAL}))
_BLOCK = 512  # bytes; a tar file is made of these

Span = tuple[int, int]
"""Where the content of a member is in its shard: first byte, number of bytes."""


@dataclass(frozen=True)
class ShardImage:
    """A sample of a shard: where its image is, and its label where labels are read; either is None if missing."""

    key: int
    name: str
    shard: str
    image: Span | None
    label: Span | None = None
    label_kind: str | None = None
    image_kind: str | None = None

    def load(self) -> tuple[bytes, int | None]:
        """Read the encoded image and the label.

        Raises:
            ImageError: if there is no image, no label, or the shard does not give them.
        """
        if self.image is None:
            raise ImageError(f"{self.name} has no image ({', '.join(_IMAGES)})")
        label = None
        if self.label_kind is not None:
            label = self._label()
        return self._read(self.image), label

    def _read(self, span: Span) -> bytes:
        try:
            with open(self.shard, "rb") as handle:
                handle.seek(span[0])
                content = handle.read(span[1])
        except OSError as error:
            raise ImageError(f"cannot read {self.name}: {error.strerror}") from error
        if len(content) < span[1]:
            raise ImageError(f"cannot read {self.name}: the shard ends within it")
        return content

    def _label(self) -> int:
        if self.label is None:
            raise ImageError(f"{self.name} has no label: neither .cls nor .json")
        content = self._read(self.label)
        try:
            value = int(content) if self.label_kind == "cls" else parse_json(content, f"the label of {self.name}")
        except ValueError as error:
            raise ImageError(f"the label of {self.name} is neither a number nor JSON") from error
        if isinstance(value, dict):
            value = value.get("label", value.get("cls"))
        if type(value) is not int or value < 0:
            raise ImageError(f"the label of {self.name} is {shown(value)}, expected the number of a class, from 0")
        return value


@dataclass(frozen=True)
class DamagedShard:
    """Stands in a batch for a shard that ends too early, so that it is named there."""

    name: str
    key: int = -1

    def load(self) -> tuple[bytes, int | None]:
        """Raise ImageError."""
        raise ImageError(f"{self.name} is damaged, or ends too early: what follows is left out")


def find_shards(source: str | Path, suffix: str = ".tar") -> list[str]:
    """List the shards of a file, a folder of them, or a pattern in braces (`shard-{000..127}.tar`), sorted.

    Args:
        source: A .tar file, a folder that holds some, or a pattern.
        suffix: That of shards of another kind.

    Raises:
        ValueError: if there is none, one of them is missing, or the extra is not installed.
    """
    if Path(source).is_dir():
        shards = [str(path) for path in Path(source).iterdir() if path.suffix == suffix]
    elif os.path.isfile(source):
        shards = [str(source)]
    else:
        shards = list(_webdataset().shardlists.expand_urls(str(source)))
    if not shards:
        raise ValueError(f"no {suffix} files in {source}: pass a folder that holds some")
    if missing := [shard for shard in shards if not os.path.isfile(shard)]:
        raise ValueError(
            f"{len(missing)} of the {len(shards)} shards of {source} are not there, the first is {missing[0]}: "
            "correct the pattern or fetch them"
        )
    return sorted(shards)


def index_shard(shard: str, labels: bool = False) -> tuple[list[ShardImage], bool]:
    """List the samples of a shard in order, from the headers alone, and say whether the shard is whole.

    Members are grouped into samples by WebDataset itself: a name up to its first dot is the key, the rest the kind.
    """
    whole = True

    def damaged(error: Exception) -> bool:  # two members of one key and kind: the first one counts
        nonlocal whole
        whole = False
        return True

    members: list[dict[str, Any]] = []
    try:
        with tarfile.open(regular_file(Path(shard)), "r:") as archive:
            size = os.path.getsize(shard)
            while (member := archive.next()) is not None:
                archive.members = []  # type: ignore[attr-defined]  # it would keep them all
                if not member.isfile():
                    continue
                if member.offset_data + member.size > size:
                    whole = False
                    break
                members.append({"fname": member.name, "data": (member.offset_data, member.size), "__url__": shard})
            if whole:  # a whole archive ends with blocks of zeros; tarfile takes any end for one
                with open(shard, "rb") as handle:
                    handle.seek(archive.offset)  # type: ignore[attr-defined]
                    whole = handle.read(_BLOCK) == bytes(_BLOCK)
    except (tarfile.TarError, OSError):
        whole = False
    groups = _webdataset().tariterators.group_by_keys(members, handler=damaged)
    samples = [_sample(shard, group, labels) for group in groups]
    return samples, whole


def _sample(shard: str, group: dict[str, Any], labels: bool) -> ShardImage:
    name = f"{os.path.basename(shard)}:{group['__key__']}"
    digest = hashlib.blake2b(name.encode(errors="surrogateescape"), digest_size=8).digest()
    kind = next((kind for kind in ("cls", "json") if kind in group), "cls") if labels else None
    image_kind = next((kind for kind in _IMAGES if kind in group), None)
    return ShardImage(
        key=int.from_bytes(digest, "big") >> 1,  # 63 bits, as a signed integer holds
        name=f"{shard}:{group['__key__']}",
        shard=shard,
        image=group[image_kind] if image_kind else None,
        label=group.get(kind) if kind else None,
        label_kind=kind,
        image_kind=image_kind,
    )


def _webdataset() -> Any:
    try:
        import webdataset.shardlists
        import webdataset.tariterators
    except ImportError as error:
        raise ValueError('shards need webdataset, which is an extra: pip install "rclip-metric[webdataset]"') from error
    return webdataset
