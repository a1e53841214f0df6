"""What a robust model keeps of an image, and a clean one does not: images made from embeddings, judged in numbers.

    python examples/inversion.py [--photographs FOLDER] [--out results/inversion]

`tiny` and `tiny-clean` on scenes that are drawn here, and on texts; `r-lite-f` and `lite`, which it was made from, at
its 112 pixels, on the photographs that scikit-image carries and whose licence allows it (see attacked_photograph.py),
which are shown as well, and on those of a folder, of which only numbers are kept. Written are a record for each model
and set, the table and margins of robust over clean with their 95 % intervals over images (summary.json, summary.md),
and sheet.png. What is there is not computed again.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from attacked_photograph import PUBLISHED, photograph, views
from PIL import Image

from rclip_metric import RobustPerceptualDistance
from rclip_metric.errors import WeightsError
from rclip_metric.images import load_image
from rclip_metric.train.data.images import NamedImage
from rclip_metric.train.data.scenes.draw import generator, render, sample_scene
from rclip_metric.train.evaluation import RunSettings, Session, kept
from rclip_metric.train.evaluation.tasks.inversion import (
    STATISTICS,
    InversionData,
    inversion_images,
    inversion_table,
    mean,
    verdicts,
)
from rclip_metric.train.inversion import How, InversionSettings, TextTarget, found_by, grey, invert
from rclip_metric.train.inversion.folder import picture, save_picture
from rclip_metric.train.inversion.sheet import Cell, contact_sheet
from rclip_metric.train.metrics.base import EncoderMetric
from rclip_metric.train.metrics.registry import load_metric
from rclip_metric.train.models import resized
from rclip_metric.train.runs.files import write_json, write_text
from rclip_metric.train.runs.seeds import sample_seed
from rclip_metric.weights import load_encoder

SIDE = 112  # pixels, of r-lite-f
# Two models' cosines are not on one scale: to r-lite-f any two photographs are far more alike than to lite.
SCALED = "the same, where another image of the set is 0 and the image itself 1"
TEXTS = (  # in the words of the scenes, the only ones that these models know
    "large red plain circle centre middle on plain grey ground",
    "large green plain star centre middle on plain brown ground",
    "large yellow plain triangle left middle on plain navy ground",
    "large blue plain square centre middle on plain beige ground",
    "large purple plain hexagon right middle on plain grey ground",
    "large orange plain ring centre top on plain slate ground",
    "large white plain cross centre bottom on plain teal ground",
    "large cyan plain crescent centre middle on plain mauve ground",
)


def scenes(folder: Path, count: int) -> list[NamedImage]:
    """Draw scenes into a folder."""
    for index in range(count):
        image = Image.fromarray(render(sample_scene(generator(0, "inversion", index))))
        image.save(folder / f"{index:03d}.png")
    return inversion_images(folder)


def published(folder: Path) -> list[NamedImage]:
    """Write squares of the photographs that may be shown into a folder."""
    for name in PUBLISHED:
        views(photograph(name))[0].save(folder / f"{name}.png")
    return inversion_images(folder)


def photograph_metrics() -> tuple[EncoderMetric, EncoderMetric]:
    """Load r-lite-f, and lite for images of the same size."""
    clean = resized(load_encoder("lite"), SIDE, squash=True)
    return EncoderMetric(RobustPerceptualDistance("r-lite-f")), EncoderMetric(RobustPerceptualDistance(clean))


def judged(data: InversionData, out: Path) -> tuple[str, dict[str, Any]]:
    """Make images through the first two judges, and say by how much those of the robust one, the first, are better."""
    robust_metric, clean_metric = data.judges[:2]
    run = RunSettings(batch_size=6, chunk_size=6)
    robust, clean = (data.record(Session(out), metric, run) for metric in (robust_metric, clean_metric))
    columns = {
        "cosine, each judged by the other model": (
            robust["judged"][clean_metric.name],
            clean["judged"][robust_metric.name],
        ),
        SCALED: (
            scaled(robust["judged"][clean_metric.name], level(clean_metric, data)),
            scaled(clean["judged"][robust_metric.name], level(robust_metric, data)),
        ),
        "SSIM to the original": (robust["judged"]["ssim"], clean["judged"]["ssim"]),
        **{f"less {key.replace('_', ' ')}": (clean["made"][key], robust["made"][key]) for key in STATISTICS},
    }
    return inversion_table([robust, clean]), {key: margin(*pair) for key, pair in columns.items()}


def level(judge: Any, data: InversionData) -> float:
    """Average the cosine of two different images of the set, as a judge sees it."""
    unit = judge.fix(torch.stack([data.reader(judge)(image.path) for image in data.images]))
    cosines, count = unit @ unit.T, len(unit)
    return ((cosines.sum() - cosines.trace()) / (count * (count - 1))).item()


def scaled(cosines: Sequence[float], other: float) -> list[float]:
    """Bring cosines to a scale on which another image of the set is 0, and the image itself 1."""
    return [(cosine - other) / (1 - other) for cosine in cosines]


def with_ssim(pair: Sequence[Any]) -> list[Any]:
    """Add a judge that makes none: SSIM, at the size of the images."""
    return [*pair, load_metric("ssim", image_size=pair[0].image_size)]


def margin(better: Sequence[float], worse: Sequence[float]) -> dict[str, Any]:
    """Average the differences of pairs, with their interval over images."""
    return mean([x - y for x, y in zip(better, worse, strict=True)])


def texts(pair: Sequence[Any], how: InversionSettings, out: Path) -> dict[str, Any]:
    """Make images of texts through both metrics; by how much those of the robust one, the first, are better."""

    def make(metric: Any) -> dict[str, Any]:
        targets = torch.cat([TextTarget(text).embedding(metric) for text in TEXTS])
        seeds = [sample_seed(0, text) for text in TEXTS]
        images = found_by(metric, targets, seeds, how, How(chunk_size=4), lambda *_: None).images
        found = {judge.name: (judge.fix(images) * targets).sum(1).tolist() for judge in pair}
        return {"judged": found, "made": {key: value(images).tolist() for key, value in STATISTICS.items()}}

    about = {"texts": TEXTS, "inversion": how.describe(), "models": [metric.describe() for metric in pair]}
    record = kept(out / "texts.json", about, lambda _: {**about, "found": [make(metric) for metric in pair]})
    robust, clean = record["found"]
    one, other = (metric.name for metric in pair)
    columns = {"cosine, each judged by the other model": (robust["judged"][other], clean["judged"][one])}
    for key in STATISTICS:
        columns[f"less {key.replace('_', ' ')}"] = (clean["made"][key], robust["made"][key])
    return {key: margin(*pair) for key, pair in columns.items()}


def draw(data: InversionData, path: Path) -> None:
    """Draw originals, and what each metric made of them, with the cosine that the other one sees."""
    pair = data.judges[:2]
    rows: list[list[Cell | None]] = []
    for image in data.images:
        original = data.reader(pair[0])(image.path)
        row: list[Cell | None] = [Cell(picture(original), Path(image.key).stem)]
        for metric, judge in zip(pair, reversed(pair), strict=True):
            file = data.picture(metric, image)
            cosine = verdicts(judge, load_image(file)[None], original[None]).item()
            row.append(Cell(Image.open(file), f"{judge.name}: {cosine:.2f}"))
        rows.append(row)
    sheet = contact_sheet(["original", *(f"from {metric.name}" for metric in pair)], rows, SIDE)
    save_picture(sheet.quantize(256), path)  # noise does not compress: a byte per pixel


def model_share(metric: Any, how: InversionSettings, images: int = 8, steps: int = 20) -> float:
    """Measure which share of the processor's time of an inversion its model takes, as the median of five rounds.

    What is not the model's is measured as the time of the same inversion through a model that is next to nothing, the
    mean colour: other work on the machine disturbs a small part less than a large one.
    """
    side = metric.image_size
    start = grey(side, range(images))

    def seconds(embed: Any) -> float:
        target = embed(start.flip(0)).detach()
        begun = time.process_time()
        invert(embed, target, start=start, ball=how.ball(side), steps=steps)
        return time.process_time() - begun

    shares = [1 - seconds(lambda points: points.mean((2, 3))) / seconds(metric.embed) for _ in range(5)]
    return statistics.median(shares)


def main(argv: list[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], epilog=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--photographs", type=Path, help="folder of photographs, of which numbers alone are kept")
    parser.add_argument("--count", type=int, default=8, help="of these (default %(default)s)")
    parser.add_argument("--scenes", type=int, default=12, help="how many (default %(default)s)")
    parser.add_argument("--steps", type=int, default=500, help="of APGD (default %(default)s)")
    parser.add_argument("--only", nargs="+", choices=("scenes", "texts", "published", "photographs"), help="parts")
    parser.add_argument("--time", action="store_true", help="also measure the model's share of the time")
    parser.add_argument("--out", type=Path, default=Path("results/inversion"), help="folder (default %(default)s)")
    options = parser.parse_args(argv)
    options.out.mkdir(parents=True, exist_ok=True)
    tables: dict[str, str] = {}
    margins: dict[str, Any] = {}
    wanted = options.only or ["scenes", "texts", "published", *(["photographs"] if options.photographs else [])]
    try:
        how = InversionSettings(steps=options.steps)
        drawn = load_metric("tiny"), load_metric("tiny-clean")
        with tempfile.TemporaryDirectory() as folder:
            place = {name: Path(folder, name) for name in ("scenes", "published", "pictures")}
            for each in place.values():
                each.mkdir()
            if "published" in wanted:
                data = InversionData("published", published(place["published"]), with_ssim(photograph_metrics()), how)
                shown = replace(data, pictures=place["pictures"])
                tables["published"], margins["published"] = judged(shown, options.out)
                if any(place["pictures"].iterdir()):  # they were made in this run
                    draw(shown, options.out / "sheet.png")
            if "scenes" in wanted:
                data = InversionData("scenes", scenes(place["scenes"], options.scenes), with_ssim(drawn), how)
                tables["scenes"], margins["scenes"] = judged(data, options.out)
            if "texts" in wanted:
                margins["texts"] = texts(drawn, how, options.out)
            if "photographs" in wanted:
                images = inversion_images(options.photographs)
                images = images[:: max(1, len(images) // options.count)][: options.count]
                data = InversionData("photographs", images, with_ssim(photograph_metrics()), how)
                tables["photographs"], margins["photographs"] = judged(data, options.out)
    except (WeightsError, ValueError) as error:
        parser.error(str(error))
    summary: dict[str, Any] = {"settings": how.describe(), "margins": margins}
    if options.time:
        shares = {metric.name: round(model_share(metric, how), 3) for metric in (*drawn, *photograph_metrics())}
        summary["model's share of the time of 8 images"] = shares
    write_json(options.out / "summary.json", summary)
    write_text(options.out / "summary.md", page(tables, margins))
    print((options.out / "summary.md").read_text(encoding="utf-8"))
    return margins


def page(tables: dict[str, str], margins: dict[str, Any]) -> str:
    """Write tables and margins in Markdown."""
    lines = ["# Images from embeddings, judged", ""]
    for name, table in tables.items():
        lines += [f"## {name}", "", table, ""]
    lines += [
        "## By how much the robust model's images are better",
        "",
        "| set | what | margin (95 %) |",
        "|---|---|---:|",
    ]
    for name, found in margins.items():
        for key, value in found.items():
            low, high = value["interval_95"]
            lines.append(f"| {name} | {key} | {value['mean']:.3f} ({low:.3f} - {high:.3f}) |")
    shown = [f"{source.title} ({source.by}, {source.licence})" for source in PUBLISHED.values()]
    lines += ["", f"Photographs in sheet.png, as scikit-image (`skimage.data`) states them: {'; '.join(shown)}."]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
