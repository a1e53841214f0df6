"""A photograph, a change that nobody sees, and two metrics, of which one gives another answer.

    pip install scikit-image "rclip-metric[plot]"
    python examples/attacked_photograph.py --clean lite --robust r-lite-f

Is the photograph more like another crop of itself, or like a photograph of something else? Each metric is attacked for
itself, by the same APGD in the same ball, rounded to the 256 levels of a file, and asked again from the files that were
written: the reference and the options as JPEG, what each attack made of the reference as PNG, all of it as one picture,
the numbers as JSON, and where the photographs come from. --every-pair counts all pairs of published ones as well.
"""

import argparse
import importlib.util
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import permutations
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from rclip_metric import RobustPerceptualDistance, load_image
from rclip_metric.errors import WeightsError
from rclip_metric.images import ImageError, open_image
from rclip_metric.train.attacks.apgd import apgd
from rclip_metric.train.attacks.losses import two_afc_margin
from rclip_metric.train.attacks.threat import LpBall
from rclip_metric.train.models.weights_digest import weights_digest
from rclip_metric.train.runs.files import write_json
from rclip_metric.train.runs.machine import device_record, versions
from rclip_metric.train.runs.seeds import sample_seed

SIZE = 224  # pixels of everything that is written
CROP = 0.8  # of the sides, for the closer option
LEVELS = 4  # of 255, the radius of the ball
AMPLIFIED = 20
NAMES = ("reference", "closer", "farther")


@dataclass(frozen=True)
class Source:
    """A photograph that scikit-image's package carries, and by which right it is shown here."""

    file: str
    title: str
    by: str
    licence: str


PUBLISHED = {
    "chelsea": Source("chelsea.png", "Chelsea the cat", "Stefan van der Walt", "CC0"),
    "coffee": Source("coffee.png", "Coffee cup", "Rachel Michetti, courtesy of Pikolo Espresso Bar", "CC0"),
    "astronaut": Source("astronaut.png", "Eileen Collins", "NASA", "public domain"),
    "rocket": Source("rocket.jpg", "Launch of DSCOVR on Falcon 9", "SpaceX", "public domain"),
    "hubble": Source("hubble_deep_field.jpg", "Hubble eXtreme Deep Field", "NASA", "public domain"),
}


def published(name: str) -> Path:
    """Where scikit-image's package has a photograph; nothing of it is imported or downloaded.

    Raises:
        ValueError: It is not installed, or comes without the file.
    """
    spec = importlib.util.find_spec("skimage")
    for folder in (spec and spec.submodule_search_locations) or ():
        path = Path(folder) / "data" / PUBLISHED[name].file
        if path.exists():
            return path
    raise ValueError(f"the photograph {name!r} comes with scikit-image: pip install scikit-image, or pass a file")


def photograph(name: str) -> Image.Image:
    """One of `PUBLISHED`, or any file."""
    return open_image(published(name) if name in PUBLISHED else name)


def views(image: Image.Image) -> tuple[Image.Image, Image.Image]:
    """The square in the middle of a photograph, and another crop of it, a little brighter; both SIZE pixels wide."""
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    square = image.crop((left, top, left + side, top + side))
    cropped = square.crop((0, 0, round(side * CROP), round(side * CROP))).point(
        lambda level: min(255, level * 11 // 10)
    )
    whole, part = (view.resize((SIZE, SIZE), Image.Resampling.LANCZOS) for view in (square, cropped))
    return whole, part


@dataclass(frozen=True)
class Attack:
    """How each metric is attacked."""

    levels: int = LEVELS
    steps: int = 100
    restarts: int = 3
    seed: int = 0

    def __call__(self, metric: RobustPerceptualDistance, images: Tensor, closer: Tensor, farther: Tensor) -> Tensor:
        """What makes a metric prefer the farther option most, as levels: uint8 (N, 3, H, W).

        APGD on the margin of the metric's own choice, to the end rather than to the first success, so that it outlives
        the rounding. The centres are whole levels, and so is the radius: rounding stays within the ball.
        """
        choices = torch.stack([metric.embed(closer), metric.embed(farther)], 1)  # (N, 2, D)

        def loss(points: Tensor, alive: Tensor) -> Tensor:
            similarities = (metric.embed(points)[:, None] * choices[alive]).sum(2)  # (n, 2)
            return -two_afc_margin(similarities, torch.zeros_like(alive))

        seeds = [sample_seed(self.seed, str(index)) for index in range(len(images))]
        ball = LpBall("linf", self.levels / 255)
        found = apgd(loss, images, ball, self.steps, restarts=self.restarts, seeds=seeds, chunk_size=16)
        return (found.images * 255).round().clamp(0, 255).to(torch.uint8)


def answers(metric: RobustPerceptualDistance, files: dict[str, Path]) -> dict[str, Any]:
    """From the files, the distances of the reference and of its attacked versions to both options, and the choice."""
    x = {name: metric.preprocess(path)[None] for name, path in files.items()}
    found: dict[str, Any] = {}
    for name in files:
        if name not in ("closer", "farther"):
            closer, farther = (round(metric(x[name], x[option]).item(), 4) for option in ("closer", "farther"))
            found[name] = {"closer": closer, "farther": farther, "chosen": "closer" if closer <= farther else "farther"}
    return found


def every_pair(metrics: dict[str, RobustPerceptualDistance], attack: Attack) -> dict[str, Any]:
    """How often each metric is right of all pairs of published photographs, and after the attack on it."""
    shown = {name: [load_image(view) for view in views(photograph(name))] for name in PUBLISHED}
    pairs = list(permutations(PUBLISHED, 2))
    images = torch.stack([shown[one][0] for one, _ in pairs])
    closer = torch.stack([shown[one][1] for one, _ in pairs])
    farther = torch.stack([shown[other][0] for _, other in pairs])
    found: dict[str, Any] = {"pairs": len(pairs)}
    for name, metric in metrics.items():
        right = metric.two_afc(images, closer, farther).choice == 0
        after = metric.two_afc(attack(metric, images, closer, farther) / 255, closer, farther).choice == 0
        found[name] = {"right": int(right.sum()), "right under attack": int((right & after).sum())}
    return found


def draw(files: dict[str, Path], report: dict[str, Any], out: Path) -> None:
    """One picture: the question, what each attack made of the reference, and the answers.

    Raises:
        ValueError: matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
        from matplotlib.transforms import Bbox
    except ImportError as error:
        raise ValueError('the picture needs matplotlib, which is an extra: pip install "rclip-metric[plot]"') from error

    figure = Figure(figsize=(8.4, 6.2), layout="constrained")
    grid = figure.add_gridspec(len(report["models"]) + 1, 4)

    def show(row: int, column: int, pixels: Any, title: str) -> None:
        axes = figure.add_subplot(grid[row, column])
        axes.imshow(pixels)
        axes.set_title(title, fontsize=9)
        axes.axis("off")

    titles = ("the photograph", "A: another crop of it", "B: another photograph")
    for column, (name, title) in enumerate(zip(NAMES, titles, strict=True)):
        show(0, column, Image.open(files[name]), title)
    question = figure.add_subplot(grid[0, 3])
    question.axis("off")
    question.text(0, 0.5, "Which is more like\nthe photograph,\nA or B?", va="center", fontsize=11)
    reference = load_image(files["reference"])
    for row, (model, record) in enumerate(report["models"].items(), 1):
        name = f"attacked-{model}"
        most = report["largest change"][model]
        show(row, 0, Image.open(files[name]), f"changed against {model}\nby at most {most}/255")
        change = (load_image(files[name]) - reference) * AMPLIFIED
        show(row, 1, (0.5 + change).clamp(0, 1).permute(1, 2, 0).numpy(), f"the change\ntimes {AMPLIFIED}")
        cells = [[model, "to A", "to B", "answer"]]
        for when, version in (("before", "reference"), ("after", name)):
            answer = record["answers"][version]
            distances = (f"{answer[option]:.2f}" for option in ("closer", "farther"))
            cells.append([when, *distances, "A" if answer["chosen"] == "closer" else "B"])
        axes = figure.add_subplot(grid[row, 2:])
        axes.axis("off")
        drawn = axes.table(cells, bbox=Bbox.from_bounds(0.08, 0.25, 0.92, 0.5), cellLoc="center", edges="horizontal")
        drawn.auto_set_font_size(False)
        for (line, column), cell in drawn.get_celld().items():
            cell.set_fontsize(10)
            if line and column == 3:
                cell.set_text_props(color="#009E73" if cells[line][3] == "A" else "#D55E00", weight="bold")
    FigureCanvasAgg(figure).print_png(out, metadata={"Software": None})


def sources(names: Sequence[str]) -> str:
    """A page that says where the photographs are from and what was done to them."""
    lines = [
        "# Photographs",
        "",
        "`photo-*` in this folder are written by `python examples/attacked_photograph.py`: squares of the photographs",
        f"below, resized to {SIZE} pixels; `photo-attacked-*` are changed by at most {LEVELS}/255 in every value.",
        "Authors and licences as scikit-image (`skimage.data`), which carries the originals, states them:",
        "",
        "| photograph | by | licence |",
        "|---|---|---|",
    ]
    for name in dict.fromkeys(names):
        source = PUBLISHED.get(name, Source(name, Path(name).name, "not known here", "not known here"))
        lines.append(f"| {source.title} (`{Path(source.file).name}`) | {source.by} | {source.licence} |")
    return "\n".join(lines) + "\n"


def main(argv: list[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], epilog=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    kinds = f"one of {', '.join(PUBLISHED)}, or a file"
    parser.add_argument("--clean", default="lite", help="name or path (default %(default)s)")
    parser.add_argument("--robust", default="r-lite-f", help="name or path (default %(default)s)")
    parser.add_argument("--reference", default="chelsea", help=f"{kinds} (default %(default)s)")
    parser.add_argument("--farther", default="coffee", help=f"{kinds} (default %(default)s)")
    parser.add_argument("--steps", type=int, default=100, help="APGD steps (default %(default)s)")
    parser.add_argument("--restarts", type=int, default=3, help="the worst of so many (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--every-pair", action="store_true", help="count all pairs of published photographs as well")
    parser.add_argument("--out", type=Path, default=Path("examples/images"), help="folder (default %(default)s)")
    options = parser.parse_args(argv)
    attack = Attack(steps=options.steps, restarts=options.restarts, seed=options.seed)
    try:
        # Squashed, as the files are square: a crop would resample what was attacked.
        loaded = [RobustPerceptualDistance(model, resize="squash") for model in (options.clean, options.robust)]
        (reference, closer), (farther, _) = (views(photograph(name)) for name in (options.reference, options.farther))
        metrics = {Path(metric.encoder.name).name: metric for metric in loaded}
        if len(metrics) < 2:
            raise ValueError(f"both models are named {next(iter(metrics))}: pass two of different names")
        report = run(metrics, dict(zip(NAMES, (reference, closer, farther), strict=True)), attack, options.out)
        if options.every_pair:
            report["every pair"] = every_pair(metrics, attack)
    except (ImageError, WeightsError, ValueError) as error:
        parser.error(str(error))
    names = (options.reference, options.farther)
    report["photographs"] = [Path(name).name for name in names]
    (options.out / "photo-README.md").write_text(sources(names), encoding="utf-8")
    write_json(options.out / "photo-attacked.json", report)
    for model, record in report["models"].items():
        told = {name: answer["chosen"] for name, answer in record["answers"].items()}
        print(f"{model}: {told}, largest change {report['largest change'][model]}/255")
    if options.every_pair:
        print(report["every pair"])
    return report


def run(
    metrics: dict[str, RobustPerceptualDistance], images: dict[str, Image.Image], attack: Attack, out: Path
) -> dict[str, Any]:
    """Write the files, attack each metric, ask both again from the files, and draw."""
    out.mkdir(parents=True, exist_ok=True)
    files = {name: out / f"photo-{name}.jpg" for name in images}
    for name, image in images.items():
        image.save(files[name], quality=90)
    # What was saved is what is attacked: JPEG has changed it.
    reference, closer, farther = (load_image(files[name])[None] for name in NAMES)
    largest = {}
    for model, metric in metrics.items():
        levels = attack(metric, reference, closer, farther)[0]
        files[f"attacked-{model}"] = out / f"photo-attacked-{model}.png"
        Image.fromarray(levels.permute(1, 2, 0).numpy()).save(files[f"attacked-{model}"], optimize=True)
        largest[model] = round((levels / 255 - reference[0]).abs().max().item() * 255)
    models = {
        model: {
            "revision": metric.encoder.revision or weights_digest(metric.encoder.state_dict()),
            "preprocessing": metric.encoder.preprocessing.to_dict(),
            "resize": metric.encoder.resize,
            "answers": answers(metric, files),
        }
        for model, metric in metrics.items()
    }
    report = {
        "attack": asdict(attack),
        "largest change": largest,
        "models": models,
        "versions": versions(),
        "device": device_record(torch.device("cpu")),
    }
    draw(files, report, out / "photo-attacked.png")
    return report


if __name__ == "__main__":
    main()
