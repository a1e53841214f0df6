"""Class-per-folder sets, and the prompts that name their classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rclip_metric.json_files import ANYTHING, read_json
from rclip_metric.train.data.images import find_images

_PROMPTS = Path(__file__).parent / "prompts"
# What prompts may name instead of listing it: open_clip carries ImageNet's templates and class names.
_IN_OPEN_CLIP = ("OPENAI_IMAGENET_TEMPLATES", "SIMPLE_IMAGENET_TEMPLATES", "IMAGENET_CLASSNAMES")


@dataclass(frozen=True)
class LabelledImage:
    """An image of a class: `key` is its path below the set's folder, `label` the index of its class.

    Example:
        >>> LabelledImage("cat/1.png", Path("set/cat/1.png"), label=0).path.parent.name
        'cat'
    """

    key: str
    path: Path
    label: int


@dataclass(frozen=True)
class LabelledFolders:
    """A class-per-folder set: folder names in sorted order, and the images, class by class, sorted by path.

    Example:
        >>> image = LabelledImage("dog/1.png", Path("set/dog/1.png"), label=1)
        >>> folders = LabelledFolders(("cat", "dog"), (image,))
        >>> folders.names[folders.images[0].label]
        'dog'
    """

    names: tuple[str, ...]
    images: tuple[LabelledImage, ...]


def read_classes(folder: Path, per_class: int | None = None) -> LabelledFolders:
    """Read a set whose classes are the folders in `folder`: ImageNet's `val` with its wnids, or any other.

    Images count at any depth below their class folder; files beside the class folders and hidden folders are left out.

    Args:
        folder: holds one folder per class.
        per_class: only the first so many images of every class.

    Raises:
        ValueError: if there are fewer than two class folders, or one of them holds no image.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for name in ("dog", "cat"):
        ...         Path(folder, name).mkdir()
        ...         Path(folder, name, "1.png").touch()
        ...     found = read_classes(Path(folder))
        >>> found.names, [image.key for image in found.images]
        (('cat', 'dog'), ['cat/1.png', 'dog/1.png'])
    """
    if not folder.is_dir():
        raise ValueError(f"there is no folder {folder}: pass one that holds a folder per class")
    if per_class is not None and per_class < 1:
        raise ValueError(f"at least one image per class is needed, and {per_class} were asked for")
    found = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    if len(found) < 2:
        raise ValueError(
            f"{folder} holds {len(found) or 'no'} class folder{'s' * (not found)}: "
            "pass a folder with at least two, one per class"
        )
    images = []
    for label, path in enumerate(found):
        try:
            files = find_images(path)
        except ValueError:
            raise ValueError(f"the class folder {path} holds no images: add some or remove it") from None
        images += [LabelledImage(file.relative_to(folder).as_posix(), file, label) for file in files[:per_class]]
    return LabelledFolders(tuple(path.name for path in found), tuple(images))


@dataclass(frozen=True)
class Prompts:
    """How to put a class into words.

    Attributes:
        name: of the file, without its ending.
        templates: texts with one `{}` in the place of the class.
        classes: words by folder name, or words in the order of the sorted folder names; None for the folder names.

    Example:
        >>> Prompts("mine", ("a photo of a {}.",), {"n01440764": "tench"}).words(["n01440764"])
        ('tench',)
    """

    name: str
    templates: tuple[str, ...]
    classes: Mapping[str, str] | tuple[str, ...] | None

    def words(self, names: Sequence[str]) -> tuple[str, ...]:
        """Say what to call the classes whose folders have these names, given in sorted order.

        Raises:
            ValueError: if the prompts do not have a word for each.
        """
        if self.classes is None:
            return tuple(name.replace("_", " ").replace("-", " ").strip() for name in names)
        if isinstance(self.classes, Mapping):
            if missing := [name for name in names if name not in self.classes]:
                raise ValueError(
                    f"the prompts {self.name!r} have no words for the class folder {missing[0]!r}: add some"
                )
            return tuple(self.classes[name] for name in names)
        if len(names) != len(self.classes):
            raise ValueError(
                f"the prompts {self.name!r} name {len(self.classes)} classes in the order of their folders, and there "
                f"are {len(names)} folders: pass a set with all of them, or prompts that give words by folder name"
            )
        return self.classes


def prompt_names() -> list[str]:
    """List the prompts that come with this package."""
    return sorted(path.stem for path in _PROMPTS.glob("*.json"))


def read_prompts(name: str | Path) -> Prompts:
    """Read prompts: one of `prompt_names`, or the path of a JSON file.

    The file is `{"templates": ["a photo of a {}."], "classes": {"n01440764": "tench"}}`. `classes` may also be a
    list in the order of the sorted folder names, or be left out; either may be the name of a list in
    `open_clip.zero_shot_metadata`.

    Raises:
        ValueError: naming what is missing or malformed.

    Example:
        >>> prompts = read_prompts("simple")
        >>> prompts.templates[0], prompts.words(["guinea_pig", "tench"])
        ('a photo of a {}.', ('guinea pig', 'tench'))
    """
    path = _PROMPTS / f"{name}.json" if name in prompt_names() else Path(name)
    if not path.is_file():
        raise ValueError(f"there are no prompts {str(name)!r}: pass one of {', '.join(prompt_names())} or a JSON file")
    values = read_json(path, {"templates": ANYTHING, "classes?": ANYTHING})
    templates, classes = (_listed(values.get(field)) for field in ("templates", "classes"))
    if not _texts(templates) or not all(text.count("{}") == 1 for text in templates):
        raise ValueError(f"{path}: templates must be a list of texts with one {{}} each, for the class")
    words = list(classes.values()) if isinstance(classes, dict) else classes
    if classes is not None and not _texts(words):
        raise ValueError(f"{path}: classes must be an object or a list of texts")
    return Prompts(path.stem, tuple(templates), tuple(classes) if isinstance(classes, list) else classes)


def _listed(value: Any) -> Any:
    """Give the value, or the list in open_clip that it names; templates there are functions of the class."""
    if value not in _IN_OPEN_CLIP:
        return value
    import open_clip.zero_shot_metadata

    entries = getattr(open_clip.zero_shot_metadata, value)
    return [entry("{}") if callable(entry) else entry for entry in entries]


def _texts(value: Any) -> bool:
    return isinstance(value, list) and len(value) > 0 and all(isinstance(text, str) and text for text in value)
