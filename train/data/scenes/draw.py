"""Procedural, captioned 64x64 scenes: the data set that this repository can make for itself.

A scene is a textured, graded background with one to three objects under a light, with clutter. Because
every attribute is known, so are its caption and the order of its edits: in a triplet the farther image
carries all edits of the nearer one and more, so the right answer is known by construction.

Everything is a function of `(seed, part, index)`: scene 17 is the same scene whatever else is generated.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from rclip_metric.files import written_whole
from rclip_metric.json_files import read_json
from rclip_metric.progress import progress
from rclip_metric.train.data.scenes.config import ScenesConfig
from rclip_metric.train.runs.files import write_json

SIZE = 64
VERSION = 1  # raised whenever the same seed would give other pixels, captions or triplets

COLOURS: dict[str, tuple[float, float, float]] = {
    "red": (0.85, 0.15, 0.15),
    "orange": (0.95, 0.55, 0.10),
    "yellow": (0.95, 0.90, 0.20),
    "green": (0.15, 0.65, 0.25),
    "cyan": (0.15, 0.80, 0.85),
    "blue": (0.15, 0.25, 0.85),
    "purple": (0.55, 0.20, 0.75),
    "pink": (0.95, 0.55, 0.75),
    "white": (0.95, 0.95, 0.95),
    "black": (0.08, 0.08, 0.08),
}
BACKGROUNDS: dict[str, tuple[float, float, float]] = {
    "grey": (0.50, 0.50, 0.50),
    "brown": (0.45, 0.32, 0.22),
    "olive": (0.45, 0.47, 0.25),
    "teal": (0.22, 0.45, 0.45),
    "navy": (0.20, 0.24, 0.42),
    "mauve": (0.55, 0.42, 0.52),
    "beige": (0.76, 0.69, 0.55),
    "slate": (0.34, 0.38, 0.43),
}
SHAPES = ("circle", "square", "triangle", "hexagon", "star", "ring", "cross", "crescent")
TEXTURES = ("plain", "striped", "dotted", "checkered")
GROUNDS = ("plain", "striped", "checkered", "mottled")
SIZES = {"small": 0.10, "medium": 0.15, "large": 0.21}  # radius as a share of the image's side
TURNABLE = ("square", "triangle", "star", "cross", "crescent")  # a 20 degree turn of the others hardly shows


@dataclass(frozen=True)
class SceneObject:
    """One object. `x` and `y` are its centre in [0, 1], `angle` is in radians, `scale` multiplies its size."""

    shape: str
    colour: str
    size: str
    texture: str
    x: float
    y: float
    angle: float
    scale: float = 1.0
    tint: tuple[float, float, float] = (0.0, 0.0, 0.0)
    visible: bool = True

    @property
    def radius(self) -> float:
        """Radius of the circle around the object, as a share of the image's side."""
        return SIZES[self.size] * self.scale


@dataclass(frozen=True)
class Scene:
    """A whole scene; `light` is (direction in radians, strength), `clutter` is (seed, number of specks)."""

    objects: tuple[SceneObject, ...]
    ground: str
    ground_colour: str
    ground_angle: float
    light: tuple[float, float]
    clutter: tuple[int, int]
    noise: int

    @property
    def shown(self) -> tuple[SceneObject, ...]:
        """The objects that can be seen (an edit may hide one, or show a spare one)."""
        return tuple(item for item in self.objects if item.visible)


def generator(seed: int, part: str, index: int) -> np.random.Generator:
    """Make the random numbers of one item: a function of these three alone.

    Example:
        >>> int(generator(0, "image", 17).integers(100)) == int(generator(0, "image", 17).integers(100))
        True
    """
    return np.random.default_rng([seed, VERSION, *part.encode(), index])


def _pick(rng: np.random.Generator, options: Any, other_than: str = "") -> str:
    names = [name for name in options if name != other_than]
    return str(names[rng.integers(len(names))])


def _place(rng: np.random.Generator, others: list[SceneObject], radius: float) -> tuple[float, float]:
    """Find a centre that keeps clear of the other objects, as far as 20 tries can."""
    best, clearance = (0.5, 0.5), -math.inf
    for _ in range(20):
        x, y = rng.uniform(radius, 1 - radius, 2)
        room = min((math.hypot(x - o.x, y - o.y) - o.radius - radius for o in others), default=1.0)
        if room > clearance:
            best, clearance = (float(x), float(y)), room
        if clearance > 0:
            break
    return best


def sample_object(
    rng: np.random.Generator, others: list[SceneObject], shape: str | None = None, size: str | None = None
) -> SceneObject:
    """Draw a random object that stands clear of the others."""
    size = size or _pick(rng, SIZES)
    x, y = _place(rng, others, SIZES[size])
    return SceneObject(
        shape=shape or _pick(rng, SHAPES),
        colour=_pick(rng, COLOURS),
        size=size,
        texture=_pick(rng, TEXTURES),
        x=x,
        y=y,
        angle=float(rng.uniform(-math.pi, math.pi)),
    )


def sample_scene(rng: np.random.Generator, shape: str | None = None) -> Scene:
    """Draw a random scene of one to three objects, and one more that is hidden (for an edit that adds one).

    Args:
        rng: source of randomness.
        shape: when given, the first object has this shape and is large: the class of a class-per-folder set.

    Example:
        >>> scene = sample_scene(generator(0, "image", 17), shape="star")
        >>> scene.shown[0].shape, scene.shown[0].size, 1 <= len(scene.shown) <= 3
        ('star', 'large', True)
    """
    ground_colour = _pick(rng, BACKGROUNDS)
    objects: list[SceneObject] = []
    count = int(rng.integers(1, 4))
    for index in range(count + 1):
        main = shape if index == 0 else None
        item = sample_object(rng, objects, main, "large" if main else None)
        objects.append(replace(item, visible=index < count))
    return Scene(
        objects=tuple(objects),
        ground=_pick(rng, GROUNDS),
        ground_colour=ground_colour,
        ground_angle=float(rng.uniform(0, math.pi)),
        light=(float(rng.uniform(-math.pi, math.pi)), float(rng.uniform(0.1, 0.45))),
        clutter=(int(rng.integers(2**31)), int(rng.integers(0, 9))),
        noise=int(rng.integers(2**31)),
    )


# Rendering. Shapes are signed distances (negative inside) in units of the object's radius.


def _signed_distance(shape: str, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    radius = np.hypot(u, v)
    if shape == "circle":
        return radius - 0.9
    if shape == "square":
        return np.maximum(abs(u), abs(v)) - 0.75
    if shape == "triangle":
        return np.maximum(np.maximum(0.866 * u + 0.5 * v, -0.866 * u + 0.5 * v), -v) - 0.5
    if shape == "hexagon":
        return np.maximum(np.maximum(abs(0.5 * u + 0.866 * v), abs(0.5 * u - 0.866 * v)), abs(u)) - 0.8
    if shape == "star":
        return radius - 0.68 - 0.32 * np.cos(5 * np.arctan2(v, u))
    if shape == "ring":
        return abs(radius - 0.7) - 0.26
    if shape == "cross":
        return np.minimum(np.maximum(abs(u) - 0.3, abs(v) - 0.95), np.maximum(abs(u) - 0.95, abs(v) - 0.3))
    if shape == "crescent":
        return np.maximum(radius - 0.95, 0.75 - np.hypot(u - 0.5, v))
    raise ValueError(f"unknown shape {shape!r}; known are {', '.join(SHAPES)}")


def _pattern(texture: str, u: np.ndarray, v: np.ndarray) -> np.ndarray | float:
    """Draw a texture: 1 where it shows the full colour, less where it shows the darker one."""
    if texture == "striped":
        return 0.75 + 0.25 * np.sign(np.sin(9.0 * u))
    if texture == "dotted":
        return 0.75 + 0.25 * np.sign(0.45 - np.cos(8.0 * u) * np.cos(8.0 * v))
    if texture == "checkered":
        return 0.75 + 0.25 * np.sign(np.sin(6.5 * u) * np.sin(6.5 * v))
    return 1.0


def _upsampled(coarse: np.ndarray) -> np.ndarray:
    grown = Image.fromarray(coarse.astype(np.float32)).resize((SIZE, SIZE), Image.Resampling.BICUBIC)
    return np.asarray(grown)


_AXIS = (np.arange(SIZE, dtype=np.float32) + 0.5) / SIZE
_Y, _X = np.meshgrid(_AXIS, _AXIS, indexing="ij")


def render(scene: Scene) -> np.ndarray:
    """Draw a scene: uint8 RGB, shape (64, 64, 3).

    Example:
        >>> render(sample_scene(generator(0, "image", 17))).shape
        (64, 64, 3)
    """
    rng = np.random.default_rng(scene.noise)
    cos, sin = math.cos(scene.ground_angle), math.sin(scene.ground_angle)
    along, across = cos * _X + sin * _Y, -sin * _X + cos * _Y
    shade = 0.9 + 0.2 * along
    if scene.ground == "striped":
        shade = shade + 0.10 * np.sign(np.sin(28 * along))
    elif scene.ground == "checkered":
        shade = shade + 0.10 * np.sign(np.sin(22 * along) * np.sin(22 * across))
    elif scene.ground == "mottled":
        # Seeded by the angle: the mottle belongs to the ground and stays when only the sensor noise changes.
        mottle = np.random.default_rng(int(scene.ground_angle * 1e6)).standard_normal((9, 9))
        shade = shade + 0.12 * np.clip(_upsampled(mottle), -1.5, 1.5)
    image = np.asarray(BACKGROUNDS[scene.ground_colour], np.float32) * shade[..., None]  # (64, 64, 3)

    specks = np.random.default_rng(scene.clutter[0])
    palette = list(COLOURS.values())
    for _ in range(scene.clutter[1]):
        x, y, radius = specks.uniform(0, 1), specks.uniform(0, 1), specks.uniform(0.012, 0.028)
        cover = np.clip((radius - np.hypot(_X - x, _Y - y)) * SIZE + 0.5, 0, 1)[..., None]
        image += cover * (np.asarray(palette[specks.integers(len(palette))], np.float32) - image)

    for item in scene.shown:
        cos, sin = math.cos(item.angle), math.sin(item.angle)
        dx, dy = (_X - item.x) / item.radius, (_Y - item.y) / item.radius
        u, v = cos * dx + sin * dy, -sin * dx + cos * dy
        distance = _signed_distance(item.shape, u, v) * (item.radius * SIZE)  # in pixels
        cover = np.clip(0.5 - distance, 0, 1)[..., None]
        rim = 1.0 - 0.35 * np.clip(1 + distance / 1.5, 0, 1)  # a darker rim of about one pixel
        colour = np.clip(np.asarray(COLOURS[item.colour]) + item.tint, 0, 1).astype(np.float32)
        image += cover * (colour * (_pattern(item.texture, u, v) * rim)[..., None] - image)

    direction, strength = scene.light
    lit = 1 + strength * (math.cos(direction) * (_X - 0.5) + math.sin(direction) * (_Y - 0.5))
    image = image * lit[..., None] + rng.normal(0, 0.008, image.shape)
    return (np.clip(image, 0, 1) * 255 + 0.5).astype(np.uint8)


# Captions. The vocabulary is closed; `train/finetuning/clip.py` reads it off VOCABULARY.


def _where(item: SceneObject) -> str:
    column = ("left", "middle", "right")[min(2, int(item.x * 3))]
    row = ("top", "centre", "bottom")[min(2, int(item.y * 3))]
    return f"{row} {column}"


def caption(scene: Scene) -> str:
    """Say what a scene shows, objects from left to right."""
    parts = [
        f"{item.size} {item.colour} {item.texture} {item.shape} {_where(item)}"
        for item in sorted(scene.shown, key=lambda item: item.x)
    ]
    side = ("left", "top", "right", "bottom")[round((scene.light[0] + math.pi) / (math.pi / 2)) % 4]
    return f"{' and '.join(parts)} on {scene.ground} {scene.ground_colour} ground lit from {side}"


VOCABULARY: tuple[str, ...] = tuple(
    dict.fromkeys(
        [
            *(*COLOURS, *BACKGROUNDS, *SHAPES, *TEXTURES, *GROUNDS, *SIZES),
            *("left", "middle", "right", "top", "centre", "bottom", "and", "on", "ground", "lit", "from"),
            *("a", "photo", "of", "this", "is"),
        ]
    )
)


# Edits. A key says which attribute an edit touches, so that no attribute is edited twice in a triplet.


@dataclass(frozen=True)
class Edit:
    """A change of one attribute: `weight` 1 leaves the scene's description as it is, 4 changes it."""

    name: str
    key: tuple[str, int, str]
    weight: int
    apply: Callable[[Scene, np.random.Generator], Scene]

    def clashes(self, other: Edit) -> bool:
        """Say whether both touch the same attribute, or one touches an object that the other hides or shows."""
        same_thing = self.key[:2] == other.key[:2]
        return same_thing and ("*" in (self.key[2], other.key[2]) or self.key[2] == other.key[2])


def _changed(index: int, change: Callable[[SceneObject, np.random.Generator], dict[str, Any]]) -> Any:
    def apply(scene: Scene, rng: np.random.Generator) -> Scene:
        objects = list(scene.objects)
        objects[index] = replace(objects[index], **change(objects[index], rng))
        return replace(scene, objects=tuple(objects))

    return apply


def _shift(item: SceneObject, rng: np.random.Generator) -> dict[str, Any]:
    direction, length = rng.uniform(-math.pi, math.pi), rng.uniform(0.05, 0.09)
    x, y = item.x + length * math.cos(direction), item.y + length * math.sin(direction)
    return {"x": min(max(x, 0.1), 0.9), "y": min(max(y, 0.1), 0.9)}


def _relocate(item: SceneObject, rng: np.random.Generator) -> dict[str, Any]:
    while True:
        x, y = (float(value) for value in rng.uniform(item.radius, 1 - item.radius, 2))
        if math.hypot(x - item.x, y - item.y) > 0.35:
            return {"x": x, "y": y}


def _resize(item: SceneObject, rng: np.random.Generator) -> dict[str, Any]:
    return {"scale": item.scale * (0.85 if rng.random() < 0.5 else 1.18)}


def edits(scene: Scene) -> list[Edit]:
    """List every edit that this scene admits.

    Example:
        >>> scene = sample_scene(generator(0, "image", 17))
        >>> {"recolour", "relight", "repaint"} <= {edit.name for edit in edits(scene)}
        True
    """
    found: list[Edit] = []
    shown = len(scene.shown)
    for i, item in enumerate(scene.objects):
        if not item.visible:
            found.append(Edit("add", ("object", i, "*"), 4, _changed(i, lambda o, r: {"visible": True})))
            continue

        def add(name: str, attribute: str, weight: int, change: Any, i: int = i) -> None:
            found.append(Edit(name, ("object", i, attribute), weight, _changed(i, change)))

        add("shift", "place", 1, _shift)
        add("resize", "size", 1, _resize)
        add("tint", "colour", 1, lambda o, r: {"tint": tuple(r.uniform(-0.1, 0.1, 3).tolist())})
        if item.shape in TURNABLE:
            add("turn", "angle", 1, lambda o, r: {"angle": o.angle + r.choice([-1, 1]) * r.uniform(0.25, 0.5)})
        add("recolour", "colour", 4, lambda o, r: {"colour": _pick(r, COLOURS, o.colour)})
        add("reshape", "shape", 4, lambda o, r: {"shape": _pick(r, SHAPES, o.shape)})
        add("retexture", "texture", 4, lambda o, r: {"texture": _pick(r, TEXTURES, o.texture)})
        add("relocate", "place", 4, _relocate)
        if shown > 1:
            add("remove", "*", 4, lambda o, r: {"visible": False})

    def whole(name: str, attribute: str, weight: int, change: Callable[[np.random.Generator], dict[str, Any]]) -> None:
        found.append(Edit(name, ("scene", 0, attribute), weight, lambda s, r: replace(s, **change(r))))

    direction, strength = scene.light
    whole("relight", "light", 1, lambda r: {"light": (direction + r.uniform(0.5, 1.0), strength)})
    whole("scatter", "clutter", 1, lambda r: {"clutter": (int(r.integers(2**31)), int(r.integers(2, 9)))})
    whole("reground", "ground", 4, lambda r: {"ground": _pick(r, GROUNDS, scene.ground)})
    whole("repaint", "paint", 4, lambda r: {"ground_colour": _pick(r, BACKGROUNDS, scene.ground_colour)})
    return found


@dataclass(frozen=True)
class SceneTriplet:
    """A reference and two edits of it; `right_is_closer` holds by construction, `votes` as in NIGHTS (of 10).

    Example:
        >>> triplet = sample_triplet(generator(0, "triplet", 0))
        >>> isinstance(triplet, SceneTriplet), triplet.votes <= 10
        (True, True)
    """

    reference: Scene
    left: Scene
    right: Scene
    right_is_closer: bool
    votes: int
    edits: dict[str, list[str]]


def sample_triplet(rng: np.random.Generator) -> SceneTriplet:
    """Draw a NIGHTS-style triplet: the farther image has every edit of the nearer one, and one to three more.

    One in twenty is undecided (both images carry edits of equal weight): it gets 5 votes or fewer, which
    the protocol's `votes >= 6` leaves out.

    Example:
        >>> triplet = sample_triplet(generator(0, "triplet", 0))
        >>> set(triplet.edits["near"]) <= set(triplet.edits["far"])
        True
    """
    reference = sample_scene(rng)
    order = edits(reference)
    order = [order[i] for i in rng.permutation(len(order))]

    def take(weight: int, count: int, taken: list[Edit]) -> list[Edit]:
        chosen: list[Edit] = []
        for edit in order:
            if len(chosen) < count and edit.weight == weight and not any(edit.clashes(t) for t in taken + chosen):
                chosen.append(edit)
        return chosen

    near = take(1, int(rng.integers(1, 3)), [])
    if rng.random() < 0.25:
        near += take(4, 1, near)
    undecided = rng.random() < 0.05
    if undecided:
        far = take(1, len(near), near)
        votes = int(rng.integers(3, 6))
    else:
        extra = take(4, int(rng.integers(1, 4)), near)
        far = near + extra
        votes = min(10, 5 + len(extra) + int(rng.integers(0, 3)))

    def edited(chosen: list[Edit], stream: int) -> Scene:
        scene = reference
        for edit in chosen:
            scene = edit.apply(scene, np.random.default_rng([stream, *edit.name.encode()]))
        return replace(scene, noise=stream % 2**31)

    # The shared edits draw the same numbers in both images; only the sensor noise differs.
    stream = int(rng.integers(2**31))
    closer, farther = edited(near, stream), replace(edited(far, stream), noise=(stream + 1) % 2**31)
    right_is_closer = bool(rng.random() < 0.5)
    left, right = (farther, closer) if right_is_closer else (closer, farther)
    names = {"near": [edit.name for edit in near], "far": [edit.name for edit in far]}
    return SceneTriplet(reference, left, right, right_is_closer, votes, names)


# Writing the sets in the formats of the real ones.


def _save(scene: Scene, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(render(scene)).save(path, compress_level=1)


def _counted(total: int, what: str, quiet: bool) -> Iterator[int]:
    return iter(progress(range(total), label=what, unit="scene", quiet=quiet))


def write_scenes(
    folder: Path,
    config: ScenesConfig = ScenesConfig(),  # noqa: B008 (frozen)
    *,
    quiet: bool = False,
) -> dict[str, Any]:
    """Write the three sets below `folder` and return the record that is saved as `scenes.json`.

    - `images/train/<shape of the largest object>/NNNNNN.png` with `images/captions.csv`: an ImageFolder;
    - `nights/`: data.csv, ref/, distort/, as the NIGHTS release has them;
    - `classes/pool/<shape>/` and `classes/query/<shape>/`: for retrieval and filtering.

    Raises:
        ValueError: if `folder` holds scenes of other settings.

    Example:
        >>> import tempfile
        >>> config = ScenesConfig(images=2, triplets=(1, 0, 1), pool=1, queries=0)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = write_scenes(Path(folder), config, quiet=True)
        ...     images = len(list(Path(folder).rglob("*.png")))
        >>> images  # 2 of training, 3 of each triplet, 1 of each of the 8 shapes
        16
    """
    record = {
        "generator": "rclip_metric.train.data.scenes.draw",
        "version": VERSION,
        "size": SIZE,
        **asdict(config),
    }
    record = json.loads(json.dumps(record))  # tuples become lists, as they will be when read back
    done = folder / "scenes.json"
    if done.exists():
        if read_json(done) != record:
            raise ValueError(
                f"{folder} holds scenes of other settings (see {done}): choose another folder or delete it"
            )
        return record

    with written_whole(folder / "images" / "captions.csv") as partial, partial.open("w", newline="") as handle:
        writer = csv.writer(handle)
        writer.writerow(["path", "caption"])
        for index in _counted(config.images, "images", quiet):
            scene = sample_scene(generator(config.seed, "image", index))
            label = max(scene.shown, key=lambda item: item.radius).shape
            path = Path("train") / label / f"{index:06d}.png"
            _save(scene, folder / "images" / path)
            writer.writerow([path.as_posix(), caption(scene)])

    _write_nights(folder / "nights", config, quiet)
    for part, count in (("pool", config.pool), ("query", config.queries)):
        for label in SHAPES:
            for index in range(count):
                scene = sample_scene(generator(config.seed, f"{part} {label}", index), shape=label)
                _save(scene, folder / "classes" / part / label / f"{index:04d}.png")
    write_json(done, record)
    return record


def _write_nights(folder: Path, config: ScenesConfig, quiet: bool) -> None:
    splits: list[str] = []
    for name, count in zip(("train", "val", "test"), config.triplets, strict=True):
        splits += [name] * count
    folder.mkdir(parents=True, exist_ok=True)
    columns = ["id", "left_vote", "right_vote", "votes", "ref_path", "left_path", "right_path"]
    with (folder / "data.csv").open("w", newline="") as handle:
        writer = csv.writer(handle)
        writer.writerow([*columns, "prompt", "split", "is_imagenet", "near_edits", "far_edits"])
        for index in _counted(len(splits), "triplets", quiet):
            triplet = sample_triplet(generator(config.seed, "triplet", index))
            shelf, stem = f"{index // 1000:03d}", f"{index % 1000:03d}"
            paths = [
                f"ref/{shelf}/{stem}.png",
                f"distort/{shelf}/{stem}_0.png",
                f"distort/{shelf}/{stem}_1.png",
            ]
            for scene, path in zip((triplet.reference, triplet.left, triplet.right), paths, strict=True):
                _save(scene, folder / path)
            right = int(triplet.right_is_closer)
            writer.writerow(
                [
                    *(index, 1 - right, right, triplet.votes, *paths),
                    *(caption(triplet.reference), splits[index], index % 2 == 0),
                    *(" ".join(triplet.edits["near"]), " ".join(triplet.edits["far"])),
                ]
            )
