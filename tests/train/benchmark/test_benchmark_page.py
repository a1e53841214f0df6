"""The page of a benchmark: what is on it, that it needs nothing else, and how it behaves in a browser."""

import base64
import copy
import csv
import html
import io
import math
import random
import re
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.textpath import TextPath
from PIL import Image

from rclip_metric.train.benchmark.page import charts
from rclip_metric.train.benchmark.page.page import page
from rclip_metric.train.benchmark.page.picture import LETTER, LONGEST, shortened
from rclip_metric.train.benchmark.page.proof import SIGMA
from rclip_metric.train.benchmark.page.proof_charts import Proof, alone, together, top_radius
from rclip_metric.train.benchmark.page.reading import COLOURS, Look
from rclip_metric.train.benchmark.tables import as_csv, markdown
from rclip_metric.train.evaluation.results.leaderboard import plain_markdown

from support.programs import load_example

ROOT = Path(__file__).parents[3]

# id, label, kind, image size, parameters, licence, clean, l_inf 4/255, l_2 3, pairs/s: made up, after the paper's.
METRICS = [
    ("r-clip-f", "R-CLIP_F", "ours", 224, 87_900_000, "MIT", 90.6, 74.3, 66.1, 31.0),
    ("r-clip-f-lora", "R-CLIP_F + LoRA", "ours", 224, 87_900_000, "MIT", 95.3, 85.6, 81.6, 31.2),
    ("r-clip-t", "R-CLIP_T", "ours", 224, 87_900_000, "MIT", 92.3, 81.9, 78.5, 30.8),
    ("r-dino-f", "R-DINO_F", "ours", 224, 85_800_000, "MIT", 90.9, 72.2, 73.2, 27.5),
    ("tiny", "tiny", "ours", 64, 1_900_000, "MIT", 88.0, 69.5, 61.0, 410.0),
    ("mine", "my own metric", "yours", 96, 320_000, None, 81.5, 22.0, 30.5, 880.0),
    ("dreamsim", "DreamSim (ensemble)", "baseline", 224, 266_000_000, "MIT", 96.2, 0.5, 0.9, 6.1),
    ("dreamsim-clip", "DreamSim (OpenCLIP B/32)", "baseline", 224, 88_000_000, "MIT", 95.5, 0.3, 0.8, 44.0),
    ("dreamsim-dino", "DreamSim (DINO B/16)", "baseline", 224, 86_000_000, "MIT", 94.6, 0.8, 1.4, 26.5),
    ("lipsim-0.5", "LipSim (margin 0.5)", "baseline", 224, 100_000_000, "MIT", 85.1, 32.8, 53.1, 2.2),
    ("lipsim-pretrained", "LipSim (pretrained)", "baseline", 224, 100_000_000, "MIT", 86.0, 8.6, 26.5, 2.2),
    ("lpips-alex", "LPIPS (AlexNet)", "baseline", 224, 2_470_000, "BSD-2-Clause", 70.7, 0.0, 0.0, 160.0),
    ("r-lpips", "R-LPIPS", "baseline", 224, 2_470_000, "MIT", 71.6, 16.2, 26.9, 158.0),
    ("ssim", "SSIM", "baseline", 224, 0, "Apache-2.0", 61.5, 10.0, 12.0, 1240.0),
    ("psnr", "PSNR", "baseline", 224, 0, "Apache-2.0", 57.3, 41.0, 2.0, 9800.0),
    ("l2", "l_2", "baseline", 224, 0, None, 57.3, 41.0, 2.0, 12_300.0),
]
THREATS = [
    {"id": "linf 4/255", "norm": "linf", "eps": 4 / 255, "eps_text": "4/255"},
    {"id": "l2 3", "norm": "l2", "eps": 3.0, "eps_text": "3"},
]


def summary(accuracy: float, samples: int) -> dict[str, Any]:
    """A share with its normal 95 % interval."""
    half = 196 * math.sqrt(max(accuracy, 0.5) * max(100 - accuracy, 0.5) / samples) / 100
    return {
        "accuracy": accuracy,
        "interval_95": [max(0.0, accuracy - half), min(100.0, accuracy + half)],
        "samples": samples,
    }


def picture(seed: int, size: int = 64, noise: float = 0.0) -> str:
    """A small PNG as a URI: three discs, or nothing but noise."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[0:size, 0:size] / size
    image = np.full((size, size, 3), 0.25) + 0.1 * rng.random(3)
    for _ in range(3 if noise < 0.1 else 0):
        x, y, radius = rng.random(), rng.random(), 0.12 + 0.2 * rng.random()
        inside = ((rows - y) ** 2 + (columns - x) ** 2 < radius**2)[..., None]
        image = np.where(inside, rng.random(3), image)
    image = image + noise * rng.normal(size=image.shape)
    file = io.BytesIO()
    Image.fromarray((image.clip(0, 1) * 255).round().astype(np.uint8)).save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def fall(eps: float, at: float, clean: float, end: float, samples: int) -> list[float]:
    """A point of a sweep: from clean at 0 to ``end`` at the radius ``at``."""
    rate = math.log(max(clean, 1) / max(end, 0.2)) / at**1.5
    value = clean * math.exp(-rate * eps**1.5)
    return [value, *summary(value, samples)["interval_95"]]


def make_board(count: int = len(METRICS), sets: int = 2, examples: int = 4) -> dict[str, Any]:
    """A whole board, like the one that the command writes: made up, the same each time."""
    rng = np.random.default_rng(0)
    words = "APGD, 100 iterations, cross-entropy, 1 restart"
    data = [
        {"id": "nights", "label": "nights test", "task": "2afc", "samples": 1824, "comparable": True},
        {"id": "scenes", "label": "scenes test majority", "task": "2afc", "samples": 400, "comparable": False},
    ][:sets]
    names = [threat["id"] for threat in THREATS]
    metrics: list[dict[str, Any]] = []
    for name, label, kind, size, parameters, licence, *reported, speed in METRICS[:count]:
        results, sweep, direct = {}, {}, {}
        for entry in data:
            samples, shift = int(str(entry["samples"])), 0.0 if entry["comparable"] else rng.normal(0, 2)
            clean, linf, l2 = (min(99.8, max(0.0, score + shift * (score > 5))) for score in reported)
            certified = None
            if name.startswith("lipsim"):
                radii = ((1, 36), (2, 72))
                points = [
                    {"eps": r / 255, "eps_text": f"{r}/255", **summary(clean - 9.5 * n, samples)} for n, r in radii
                ]
                curve = [[r / 40, max(0.0, clean - 2.4 * r)] for r in range(41)]
                certified = {"points": points, "curve": curve, "median": 0.2}
            results[entry["id"]] = {
                "samples": samples,
                "ties": 0,
                "clean": summary(clean, samples),
                "robust": {names[0]: summary(linf, samples), names[1]: summary(l2, samples)},
                "paper": {"clean": reported[0], names[0]: reported[1]} if kind != "yours" and size == 224 else {},
                "certified": certified,
                "warnings": ["12 triplets were left out: an image could not be read"] * (name in ("ssim", "psnr")),
            }
            sweep[entry["id"]] = {
                "linf": [[eps / 255, *fall(eps, 4, clean, linf, samples)] for eps in (0, 1, 2, 4, 8, 16)],
                "l2": [[eps, *fall(eps, 3, clean, l2, samples)] for eps in (0, 0.75, 1.5, 3, 6)],
            }
        for threat, score in zip(names, reported[1:], strict=True):
            others = rng.lognormal(-1, 0.35, 200)
            distances = others.mean() * rng.lognormal(math.log(0.05 + 2.2 * math.exp(-score / 28)), 0.3, 200)
            direct[threat] = {"distances": distances.tolist(), "others": others.tolist()}
        cells = {
            batch: {"pairs_per_second": s, "low": 0.96 * s, "high": 1.04 * s}
            for batch, s in zip("18", (speed, 1.9 * speed), strict=True)
        }
        timing: dict[str, Any] = {"float32": {**cells, "memory_mb": 400 + 4 * parameters / 1e6}}
        if kind == "ours":
            timing["bfloat16"] = {
                "8": {"pairs_per_second": 5 * speed, "low": 4.8 * speed, "high": 5.2 * speed},
                "memory_mb": 380 + 2 * parameters / 1e6,
            }
        metrics.append(
            {
                "id": name,
                "label": label,
                "revision": "sha256:0123456789ab",
                "kind": kind,
                "similarity": "cosine" if parameters else "minus the distance",
                "image_size": size,
                "parameters": parameters,
                "licence": licence,
                "source": "a paper, and where its weights are from",
                "failures": [],
                "timing": timing,
                "results": results,
                "sweep": sweep,
                "direct": direct,
            }
        )
    shown = [make_example(n, metrics) for n in range(examples)]
    paper = [
        {
            "label": label,
            "metric": name,
            "nights": {"clean": clean, "linf": linf, "l2": l2},
            "bapps": {"clean": 72.5, "linf": 52.1, "l2": 40.3} if kind == "ours" else None,
        }
        for name, label, kind, size, parameters, _, clean, linf, l2, _ in METRICS[:count]
        if parameters and size == 224
    ]
    return {
        "title": "Perceptual metrics under attack",
        "made": "2026-11-21T12:00:00+00:00",
        "command": "rclip-metric benchmark --metrics r-clip-f,r-clip-t,dreamsim,lipsim-0.5,lpips-alex,ssim,psnr "
        "--data nights:NIGHTS,scenes:SCENES --norms linf:4/255,l2:3 --certified --timing --out RESULTS --page",
        "settings": {"seed": 0, "steps": 100, "limit": None, "certified": True, "balls": names},
        "versions": {"rclip-metric": "0.1.0", "torch": "2.9.1", "python": "3.11.7"},
        "device": {"type": "cpu", "name": "Intel(R) Xeon(R) Processor @ 2.70GHz"},
        "cores": 2,
        "data": data,
        "threats": [{**threat, "words": words} for threat in THREATS],
        "metrics": metrics,
        "examples": shown,
        "paper": [
            *paper,
            {"label": "not run here", "metric": None, "nights": {"clean": 60.0, "linf": 1.5, "l2": 2.5}, "bapps": None},
        ],
    }


def make_example(n: int, metrics: list[dict[str, Any]]) -> dict[str, Any]:
    """A triplet in which the metrics that are not robust, and one of five others, change their mind."""
    share = (1.0, 0.0, 0.83, 0.17)[n % 4]
    verdicts = {}
    for m, metric in enumerate(metrics):
        near, far = 0.2 + 0.02 * m, 0.4 + 0.03 * m
        flips = METRICS[m][7] < 50 or (n + m) % 5 == 0
        before, after = [far, near], [near, far + 0.08] if flips else [far, near + 0.08]
        verdicts[metric["id"]] = {
            "attacked": picture(100 + n, noise=0.02),
            "perturbation": picture(500 + n * 50 + m, noise=0.25),
            "before": before if share > 0.5 else before[::-1],
            "after": after if share > 0.5 else after[::-1],
        }
    return {
        "key": f"{n:03d}",
        "data": "nights",
        "threat": THREATS[0]["id"],
        "share_right": share,
        "reference": picture(100 + n),
        "left": picture(200 + n),
        "right": picture(300 + n),
        "metrics": verdicts,
    }


class Parsed(HTMLParser):
    """What is on a page: elements with their attributes and text, in order; fails where tags do not match."""

    VOID = ("meta", "link", "img", "br")

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[dict[str, Any]] = []
        self.elements: list[dict[str, Any]] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        parents = [one["tag"] for one in self.open]
        table = next((one.get("class") for one in self.open if one["tag"] == "table"), None)
        element = {"tag": tag, "text": "", "parents": parents, "table": table, **dict(attrs)}
        assert len(dict(attrs)) == len(attrs), f"{tag} has an attribute twice"
        self.elements.append(element)
        if tag not in self.VOID:
            self.open.append(element)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1]["tag"] == tag, f"</{tag}> closes {[one['tag'] for one in self.open]}"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        plain = data.translate({0x2113: "l", 0x2013: "-", 0xA0: " "})  # script l, en dash, no-break space
        for element in self.open:
            element["text"] += plain

    def every(self, tag: str, **attributes: str) -> list[dict[str, Any]]:
        """Elements of a tag, with these attributes."""
        wanted = {key.rstrip("_").replace("_", "-"): value for key, value in attributes.items()}
        return [one for one in self.elements if one["tag"] == tag and wanted.items() <= one.items()]

    def tables(self, style: str = "board") -> list[list[list[dict[str, Any]]]]:
        """The cells of the rows of each table of a style: "board" for those of a data set, "board glance" of all."""
        tables: list[list[list[dict[str, Any]]]] = []
        for element in self.elements:
            if element["tag"] == "table":
                tables.append([])
                inside = element.get("class") == style
            elif element["tag"] == "tr" and "tbody" in element["parents"]:
                tables[-1].append([])
            elif element["tag"] in ("th", "td") and "tbody" in element["parents"] and inside:
                tables[-1][-1].append(element)
        return [table for table in tables if table and table[0]]

    def headings(self, style: str = "board") -> list[str]:
        """The names of the columns of the tables of a style, in order."""
        shown = [one for one in self.every("th", table=style) if "data-column" in one]
        heads = {int(one["data-column"]): one["text"] for one in shown}
        return [heads[n] for n in sorted(heads)]


@pytest.fixture(scope="module")
def board() -> dict[str, Any]:
    return make_board()


@pytest.fixture(scope="module")
def whole(board: dict[str, Any]) -> str:
    return page(copy.deepcopy(board))


def column(parsed: Parsed, heading: str, table: int = 0) -> list[dict[str, Any]]:
    return [row[parsed.headings().index(heading)] for row in parsed.tables()[table]]


def value(cell: dict[str, Any]) -> float | None:
    return float(cell["data-value"]) if "data-value" in cell else None


def test_a_row_per_metric_with_its_numbers(board: dict[str, Any], whole: str) -> None:
    parsed = Parsed(whole)
    assert len(parsed.tables()) == len(board["data"])
    metrics = {metric["label"]: metric for metric in board["metrics"]}
    for table, data in enumerate(board["data"]):
        names = [
            next(label for label in sorted(metrics, key=len)[::-1] if row[0]["text"].startswith(label))
            for row in parsed.tables()[table]
        ]
        assert sorted(names) == sorted(metrics)
        for heading, threat in (("clean", None), ("l∞ 4/255", "linf 4/255"), ("l2 3", "l2 3")):
            for name, cell in zip(names, column(parsed, heading, table), strict=True):
                result = metrics[name]["results"][data["id"]]
                found = result["robust"][threat] if threat else result["clean"]
                assert value(cell) == pytest.approx(round(found["accuracy"], 1))
                low, high = found["interval_95"]
                assert f"{found['accuracy']:.1f}{low:.1f}-{high:.1f}" in cell["text"]
                paper = result["paper"].get(threat or "clean") if data["comparable"] else None
                assert (
                    cell["text"]
                    .replace(" best", "")
                    .endswith(f"paper {paper:.1f}" if paper is not None else f"-{high:.1f}")
                )
        robust = [value(cell) or 0.0 for cell in column(parsed, "l∞ 4/255", table)]
        assert robust == sorted(robust, reverse=True)
        speeds = [metrics[name]["timing"]["float32"]["8"]["pairs_per_second"] for name in names]
        assert [value(cell) for cell in column(parsed, "float32batch 8", table)] == pytest.approx(speeds, rel=1e-5)
        certified = column(parsed, "certifiedl2 36/255", table)
        assert [cell["text"] == "-" and value(cell) is None for cell in certified] == [
            not name.startswith("LipSim") for name in names
        ]
    sorting = [one for one in parsed.every("th") if "aria-sort" in one]
    assert [(one["text"], one["aria-sort"]) for one in sorting] == [("l∞ 4/255", "descending")] * 3


def with_cues(board: dict[str, Any]) -> dict[str, Any]:
    """The board with a set in which shape and texture are in conflict, first; it is decided for shape by rank."""
    entry = {"id": "cues", "label": "cues share for shape", "task": "cue-conflict", "samples": 96, "judges": None}
    board["data"].insert(0, entry | {"note": "2 images are no references."})
    for n, metric in enumerate(board["metrics"]):
        clean = summary(30.0 + n, 96)
        metric["results"]["cues"] = {"samples": 96, "ties": 0, "clean": clean, "robust": {}, "paper": {}}
    return board


def test_all_sets_are_seen_at_a_glance() -> None:
    board = with_cues(make_board())
    parsed = Parsed(page(board))
    [rows] = parsed.tables("board glance")
    heads = parsed.headings("board glance")
    scores = ["share for shape, %", *["clean", "l∞ 4/255", "l2 3"] * 2]
    assert heads == ["metric", *scores, "float32batch 1", "float32batch 8", "bf16batch 8"]
    groups = [(one["text"], one["colspan"]) for one in parsed.every("th", table="board glance", class_="group")]
    assert groups == [("cues", "1"), ("nights", "3"), ("scenes", "3"), ("pairs per second", "3")]
    assert [row[0]["text"] for row in rows] == [row[0]["text"] for row in parsed.tables()[0]]
    for row, metric in zip(rows, board["metrics"][::-1], strict=True):  # the first set decides the order
        found = metric["results"]
        expected = [found["cues"]["clean"]["accuracy"]]
        for name in ("nights", "scenes"):
            expected += [found[name]["clean"]["accuracy"]]
            expected += [found[name]["robust"][threat["id"]]["accuracy"] for threat in THREATS]
        assert [value(cell) for cell in row[1:8]] == pytest.approx([round(number, 1) for number in expected])
    best = [[row[n].get("class") == "best" for row in rows] for n in (1, 2)]
    assert not any(best[0]) and sum(best[1]) == 1
    assert Parsed(page(make_board(sets=1))).tables("board glance") == []


def test_shares_for_shape_are_no_accuracies() -> None:
    board = with_cues(make_board(3, 1, 0))
    text = page(board)
    parsed = Parsed(text)
    cues = parsed.tables()[0]
    assert not any(cell.get("class") == "best" for row in cues for cell in row[1:2])
    assert [value(row[1]) for row in cues] == [32.0, 31.0, 30.0]
    assert parsed.every("p", class_="summary")[0]["text"].startswith("On nights test, R-CLIP_F + LoRA is the most")
    [lede] = [one["text"] for one in parsed.every("p", class_="lede") if "Accuracy is" in one["text"]]
    assert "sides with people; a coin gets 50. Share for shape is how often a metric goes by shape" in lede
    assert any(one["text"] == "cues share for shape: 2 images are no references." for one in parsed.every("li"))
    assert "here, cues" not in text
    for metric in board["metrics"]:
        metric["results"].pop("nights")
    parsed = Parsed(page(board | {"data": board["data"][:1]}))
    said = parsed.every("p", class_="summary")[0]["text"]
    assert said == (
        "On cues share for shape, R-CLIP_T goes by shape most often, 32.0 % of the time; nothing was attacked."
    )
    assert not [one for one in parsed.every("p") if "Accuracy is" in one["text"]]


def test_the_best_of_each_column_is_marked(board: dict[str, Any], whole: str) -> None:
    parsed = Parsed(whole)
    assert parsed.headings()[-3:] == ["memory,MB", "para\xadmeters", "licence"]
    for table in range(len(board["data"])):
        for n, heading in enumerate(parsed.headings()):
            cells = column(parsed, heading, table)
            values = [value(cell) for cell in cells]
            known = [number for number in values if number is not None]
            choose = {"memory,MB": min, "para\xadmeters": None}.get(heading, max)
            best = choose(known) if choose and len(known) > 1 else None
            assert [cell.get("class") == "best" for cell in cells] == [
                best is not None and v == best for v in values
            ], (n, heading)
            assert [cell["text"].endswith(" best") for cell in cells] == [cell.get("class") == "best" for cell in cells]
    assert sum(cell.get("class") == "best" for cell in column(parsed, "memory,MB")) == 3


def test_the_page_loads_nothing(whole: str) -> None:
    parsed = Parsed(whole)
    for element in parsed.elements:
        for name, attribute in element.items():
            if name in ("href", "src", "xlink:href", "srcset", "action", "data", "style", "poster"):
                assert attribute.startswith(("#", "data:")), (element["tag"], name, attribute)
            assert not name.startswith("on")
    targets = {one["id"] for one in parsed.elements if "id" in one}
    assert {one["href"][1:] for one in parsed.elements if one.get("href", "").startswith("#")} <= targets
    style, script = (parsed.every(tag)[0]["text"] for tag in ("style", "script"))
    assert not re.search(r"url\(|@import|@font-face|https?:", style)
    assert not re.search(r"https?:|fetch|XMLHttp|import|localStorage|cookie", script)
    policy = next(one["content"] for one in parsed.every("meta") if one.get("http-equiv"))
    assert "default-src 'none'" in policy
    bare = re.sub(r"data:image/png;base64,[^\"]*", "", whole)
    assert len(bare.encode()) < 200 * 1024


def test_the_processor_is_told_with_its_instructions_and_by_its_name_in_older_results() -> None:
    board = make_board(2, 1, 1)
    name = "cpu, Intel(R) Xeon(R) Processor @ 2.70GHz"
    assert name in page(board) and "oneDNN" not in page(board)
    board["device"] |= {"capability": "AVX512", "bfloat16": ["amx_bf16", "avx512_bf16"], "onednn": "on"}
    assert f"{name}, AVX512, amx_bf16, avx512_bf16, oneDNN on" in page(board)
    board["device"] |= {"capability": "AVX2", "bfloat16": [], "onednn": "AVX2"}
    assert f"{name}, AVX2, oneDNN AVX2" in page(board)


def smoothed(accuracy: float, sigma: float, samples: int = 1824, **more: Any) -> dict[str, Any]:
    """What is certified under noise: all that is right is so up to twice sigma."""
    points = [{"eps": eps, "eps_text": text, **summary(accuracy * (eps < 2 * sigma), samples)}
              for eps, text in ((36 / 255, "36/255"), (1.0, "1"), (3.0, "3"))]  # fmt: skip
    return {
        "sigma": sigma,
        "n0": 100,
        "n": 1000,
        "confidence": 0.999,
        "abstained": 7,
        "right": {"accuracy": accuracy, "samples": samples},
        "draws": 1100 * samples,
        "seconds": 0.5 * samples,
        "points": points,
        "curve": [[0.0, accuracy], [2 * sigma, accuracy], [2 * sigma, 0.0]],
        "median": 2 * sigma,
        **more,
    }


def with_noise() -> dict[str, Any]:
    """A board of three metrics: under two noises, under one and with a certificate besides, and without proof."""
    board = make_board(11, 1, 0)
    board["metrics"] = [board["metrics"][n] for n in (4, 9, 10)]
    tiny, lipsim, neither = board["metrics"]
    tiny["results"]["nights"]["smoothed"] = [smoothed(60.0, 0.25), smoothed(80.0, 0.1)]
    lipsim["results"]["nights"]["smoothed"] = [smoothed(70.0, 0.25)]
    neither["results"]["nights"] |= {"smoothed": [], "certified": None}
    return board


def test_proof_beside_the_attack() -> None:
    board = with_noise()
    text = page(copy.deepcopy(board))
    parsed = Parsed(text)
    assert "proof" in {one["id"] for one in parsed.every("section")}
    headings = ["certifiedl2 36/255", *(f"smoothedl2 36/255{SIGMA} {sigma}" for sigma in (0.1, 0.25))]
    cells = {heading: [value(cell) for cell in column(parsed, heading)] for heading in headings}
    assert cells == {  # tiny, LipSim (margin 0.5), LipSim (pretrained)
        "certifiedl2 36/255": [None, 75.6, None],
        f"smoothedl2 36/255{SIGMA} 0.1": [80.0, None, None],
        f"smoothedl2 36/255{SIGMA} 0.25": [60.0, 70.0, None],
    }
    at = text.index('<section id="proof">')
    proof = Parsed(text[at : text.index("</section>", at) + len("</section>")])
    heads = [one["text"] for one in proof.every("th", scope="col")]
    radii = ["l2 36/255", "l2 3"]
    assert heads == ["metric", "clean", "l2 3", "l2 36/255", "median radius", SIGMA, "right, atradius 0", *radii,
                     "median radius", "abstained", "forwards", "seconds"]  # fmt: skip
    rows = [[cell["text"] for cell in row] for row in proof.tables("plain")[0]]
    assert [len(row) for row in rows] == [13, 8, 13]  # the second noise of tiny shares what is without noise
    assert rows[0][0] == "tiny" and rows[0][1].startswith("88.0") and rows[0][2].startswith("61.0")
    assert rows[0][3:7] == ["-", "-", "0.1", "80.0"] and rows[0][-4:] == ["0.200", "7", "1,100", "0.500"]
    assert rows[1][:2] == ["0.25", "60.0"] and rows[1][2].startswith("60.0") and rows[1][3].startswith("0.0")
    assert rows[2][0].startswith("LipSim (margin 0.5)") and rows[2][3].startswith("75.6") and rows[2][4] == "0.200"
    told = proof.every("p")[1]["text"]
    assert "holds with 99.9 % confidence for each sample, by 1,000 draws of noise" in told
    # Where all 1000 draws agree: Phi^-1(0.001 ** (1 / 1000)) is 2.4626.
    assert told.endswith("no larger radius can come out than 0.246 with sigma 0.1 and 0.616 with sigma 0.25.")
    assert [one["text"] for one in proof.every("figcaption")][1:] == ["tiny", "LipSim (margin 0.5)"]
    assert re.findall(rf">{SIGMA} ([\d.]+)</text>", text[at:]) == ["0.1", "0.25", "0.25"]


def test_tables_of_proof_in_markdown_and_csv() -> None:
    board = with_noise()
    drawn = next(part for part in markdown(board).split("\n\n") if "| sigma |" in part).splitlines()
    assert drawn[0] == (
        "| metric | clean | attacked l2 3 | certified l2 36/255 | median radius | sigma | smoothed right | "
        "smoothed l2 36/255 | smoothed l2 3 | smoothed median radius | abstained | forwards a sample | "
        "seconds a sample |"
    )
    assert drawn[2:] == [
        "| tiny | 88.0 | 61.0 | - | - | 0.1 | 80.0 | 80.0 | 0.0 | 0.200 | 7 | 1,100 | 0.500 |",
        "| tiny | 88.0 | 61.0 | - | - | 0.25 | 60.0 | 60.0 | 0.0 | 0.500 | 7 | 1,100 | 0.500 |",
        "| LipSim (margin 0.5) | 85.1 | 53.1 | 75.6 | 0.200 | 0.25 | 70.0 | 70.0 | 0.0 | 0.500 | 7 | 1,100 | 0.500 |",
    ]
    lines = list(csv.DictReader(io.StringIO(as_csv(board))))
    found = {(line["metric"], line["column"]): line["percent"] for line in lines if "sigma" in line["column"]}
    assert len(found) == 3 * 5
    assert float(found["tiny", "smoothed l2 36/255, sigma 0.1"]) == 80
    assert float(found["tiny", "abstained, sigma 0.1"]) == pytest.approx(100 * 7 / 1824)


@pytest.mark.parametrize("key", ["sigma", "n", "confidence", "right", "points", "curve", "smoothed"])
def test_what_is_missing_of_smoothing_is_left_out(key: str) -> None:
    board = with_noise()
    results = [metric["results"]["nights"] for metric in board["metrics"]]
    for result in results:
        if key == "smoothed":  # as in boards of before there was any
            del result["smoothed"]
        else:
            result["smoothed"] = [{name: None if name == key else part for name, part in one.items()}
                                  for one in result["smoothed"]]  # fmt: skip
    text = page(board)
    parsed = Parsed(text)
    assert len(parsed.tables()[0]) == 3
    some = [one["text"] for one in parsed.every("li") if one["text"].startswith("Not part of this benchmark")]
    assert ("smoothed accuracy" in some[0]) == (key in ("sigma", "smoothed"))
    assert ("smoothed, %" in text) == (key not in ("sigma", "smoothed"))
    assert markdown(board) and as_csv(board)


def test_curves_of_proof_are_where_their_numbers_say() -> None:
    attacked = [(0.0, 90.0, 85.0, 95.0), (1.0, 50.0, 40.0, 60.0), (4.0, 20.0, 10.0, 30.0)]
    own = [(0.0, 80.0), (1.0, 40.0), (2.0, 0.0)]
    noisy = {0.5: [(0.0, 60.0), (1.0, 60.0), (1.0, 0.0)], 0.25: [(0.0, 70.0), (0.5, 70.0), (0.5, 0.0)]}
    proof = Proof("a", Look(1), attacked, own, noisy)
    assert proof.reach == 2.0 and top_radius([proof]) == 2.0
    far = Proof("b", Look(0), [], [(0.0, 90.0), (50.0, 90.0), (100.0, 0.0)], {})
    assert top_radius([proof, far]) == 2.5 and top_radius([Proof("c", Look(0), [], [], {})]) == 1.0
    assert [level for radius, level in proof.envelope if radius < 0.49] == [70.0] * 32
    assert proof.envelope[-2] == (pytest.approx(63 / 64), 60.0)
    picture = alone(proof, 2.0)
    x, y = ticks_of(picture)

    def where(points: Any) -> list[Any]:
        step, rise = (x[2] - x[0]) / 2, (y[100] - y[0]) / 100
        return [pytest.approx((x[0] + r * step, y[0] + p * rise), abs=0.9) for r, p in points]

    [line] = re.findall(r'class="c" d="([^"]*)"', picture)
    assert places(line) == where([(0, 90), (1, 50), (2, 40)])  # the last one is where the axis ends
    [dashes] = re.findall(r'class="c d" d="([^"]*)"', picture)
    assert places(dashes) == where(own)
    dots = re.findall(r'class="c r" d="([^"]*)"', picture)
    assert [places(one) for one in dots] == [where(noisy[0.25]), where(noisy[0.5])]
    whole = together([proof, far], 4.0)
    assert re.findall(r"<title>(.*?)</title>", whole) == [
        "b: certified 90.0 at 0",
        "a: certified 80.0 at 0, smoothed, sigma 0.25, 70.0 at 0, smoothed, sigma 0.5, 60.0 at 0",
    ]
    assert len(re.findall('class="c r"', whole)) == 1 and len(re.findall('class="c d"', whole)) == 2


def test_all_text_is_escaped() -> None:
    bad = "<script>alert('1')</script>\"'&<b onload=x>"
    board = make_board(2, 1, 1)
    board |= {"title": bad, "command": bad, "made": bad, "versions": {bad: bad}, "settings": {bad: [bad, {bad: bad}]}}
    board["device"] = {"type": bad, "name": bad}
    board["data"][0]["label"] = board["examples"][0]["key"] = board["paper"][0]["label"] = bad
    board["threats"][0] |= {"words": bad, "eps_text": bad}
    for key in ("label", "licence", "source", "revision", "similarity"):
        board["metrics"][1][key] = bad  # the most robust one, which the summary names
    board["metrics"][0]["failures"] = board["metrics"][0]["results"]["nights"]["warnings"] = [bad]
    parsed = Parsed(page(board))
    assert len(parsed.every("script")) == 1
    assert not [name for element in parsed.elements for name in element if name.startswith("on")]
    assert not [one for one in parsed.every("b") if "onload" in one]
    for tag in ("title", "h1", "pre", "ol", "ul", "h4", "tr", "dd", "strong", "code"):
        assert any(bad in one["text"] for one in parsed.every(tag)), tag


def test_the_summary_is_computed() -> None:
    def said(board: dict[str, Any]) -> str:
        return Parsed(page(board)).every("p", class_="summary")[0]["text"]

    board = make_board(7, 1, 0)
    words = "On nights test, R-CLIP_F + LoRA is the most robust: it still sides with people 85.6 % of the time"
    words += " under l∞ 4/255"
    assert (
        said(board)
        == f"{words} (95.3 % clean). The best on clean images, DreamSim (ensemble), falls from 96.2 % to 0.5 %."
    )
    board = make_board(7, 1, 0)
    board["metrics"][6]["results"]["nights"]["robust"] = {}
    assert said(board).endswith("The best on clean images, DreamSim (ensemble) (96.2 %), was not attacked.")
    board = make_board(3, 1, 0)
    board["metrics"][2]["results"]["nights"]["robust"]["linf 4/255"]["interval_95"] = [80.0, 84.5]
    assert (
        said(board)
        == f"{words} (95.3 % clean), closely followed by R-CLIP_T (81.9 %). None is better on clean images either."
    )
    board["metrics"][2]["results"]["nights"] = copy.deepcopy(board["metrics"][1]["results"]["nights"])
    tie = words.replace("LoRA is", "LoRA and R-CLIP_T are").replace("it still sides", "they still side")
    assert said(board) == f"{tie}. None is better on clean images either (95.3 %)."
    board = make_board(2, 1, 0) | {"threats": []}
    for metric in board["metrics"]:
        metric["results"]["nights"]["robust"] = {}
    assert (
        said(board)
        == "On nights test, R-CLIP_F + LoRA sides with people most often, 95.3 % of the time; nothing was attacked."
    )
    assert said({}) == "No metric has been measured yet."
    board = make_board(3, 2, 0)
    board["data"][0]["judges"] = "the order by construction"
    for metric in board["metrics"]:
        metric["results"]["scenes"]["robust"] = {}
    board["metrics"][0]["results"]["scenes"]["clean"]["accuracy"] = 97.04
    board["metrics"][1]["results"]["scenes"]["clean"]["accuracy"] = 96.96
    people = " On clean images people are sided with most often by R-CLIP_F and R-CLIP_F + LoRA on scenes test majority"
    assert said(board).startswith(words.replace("people", "the order by construction"))
    assert said(board).endswith(f"{people} (97.0 %).")
    board["data"].reverse()  # the one that was attacked is told first all the same
    assert said(board).endswith(f"{people} (97.0 %).")
    board["data"][0]["judges"] = "the scenes' own rule"
    assert "On clean images people" not in said(board)


def test_ratios_of_processor_time_are_beside_pairs_per_second_and_old_boards_have_none() -> None:
    times, board = "\N{MULTIPLICATION SIGN}", make_board(3, 1, 0)
    old = page(board), markdown(board)
    assert times not in old[0] and "In brackets" not in old[1] and "over that of" not in "".join(old)
    for n, metric in enumerate(board["metrics"], 1):
        for size in "18":
            ratio = {"times": 1.25 * n, "low": 1.0 * n, "high": 1.5 * n, "of": "processor"}
            metric["timing"]["float32"][size]["ratio"] = ratio | {"reference": board["metrics"][0]["id"]}
    parsed, label = Parsed(page(board)), board["metrics"][0]["label"]
    cells = column(parsed, "float32batch 8")
    rates = [metric["timing"]["float32"]["8"]["pairs_per_second"] for metric in board["metrics"]]
    assert sorted(value(cell) or 0 for cell in cells) == pytest.approx(sorted(rates), rel=1e-5)
    for n, rate in enumerate(rates, 1):  # the rate, its spread, and how many times the first's processor time
        [cell] = [cell for cell in cells if value(cell) == pytest.approx(rate, rel=1e-5)]
        assert cell["text"].removesuffix(" best").endswith(f"{1.25 * n:.2f} {times}")
    said = f"the processor time that a pair takes, of all threads, over that of {label} in the same type of number."
    assert any(f"Below pairs per second, {times}: {said}" in one["text"] for one in parsed.every("p"))
    drawn = markdown(board)
    assert f"In brackets beside pairs per second: {plain_markdown(said)}" in drawn and "(2.50) |" in drawn


SECTIONS = {"sweep": "radius", "direct": "distances", "examples": "examples", "paper": "papers", "threats": "clean"}


@pytest.mark.parametrize(
    "key", [*make_board(1, 1, 0), "timing", "results", "sweep", "direct", "parameters", "licence", "kind", "label"]
)
def test_what_is_missing_is_left_out(key: str) -> None:
    for empty in (None, "absent"):
        board = make_board(3, 1, 1)
        for part in [board, *board["metrics"]]:
            if key in part and empty is None:
                part[key] = None
            else:
                part.pop(key, None)
        if key == "threats":
            for metric in board["metrics"] or ():
                metric["results"]["nights"]["robust"] = metric["direct"] = {}
        parsed = Parsed(page(board))
        there = {one["id"] for one in parsed.every("section")}
        if key in SECTIONS:
            assert SECTIONS[key] not in there
        assert {"table", "settings"} <= there
        assert len(parsed.tables()[0] if parsed.tables() else []) == (0 if key == "metrics" else 3)
        lost = {"timing": "speed and memory", "sweep": "accuracy against the radius", "direct": "direct attacks"}
        if key in lost:
            assert any(lost[key] in one["text"] for one in parsed.every("li"))


def test_partial_and_failed_metrics() -> None:
    board = make_board(4, 1, 1)
    failed, half, bare, good = board["metrics"]
    failed |= {
        "results": {},
        "timing": None,
        "sweep": {},
        "direct": {},
        "failures": ["nights: out of memory, lower --chunk-size"],
    }
    half["results"]["nights"]["robust"].pop("l2 3")
    half["results"]["nights"]["clean"]["accuracy"] = math.nan
    half["direct"]["l2 3"] = {"distances": [], "others": []}
    half["direct"]["linf 4/255"] = {"distances": [math.inf, 1.0], "others": [0.0, 0.0, 1.0]}
    board["metrics"][2] = {"id": bare["id"]}
    good["results"]["nights"]["robust"]["l2 3"]["samples"] = 200
    board["examples"][0]["metrics"] = {
        good["id"]: {"attacked": None, "perturbation": None, "before": None, "after": [0.1, 0.1]}
    }
    board["examples"][0]["share_right"] = 0.9
    parsed = Parsed(page(board))
    rows = parsed.tables()[0]
    assert len(rows) == 4
    texts = {row[0]["text"].split("ours")[0]: [cell["text"] for cell in row] for row in rows}
    assert set(texts["R-CLIP_F"][1:4]) == {"-"} and "failed" in texts["R-CLIP_F"][0]
    assert (
        texts["R-CLIP_F + LoRA"][1] == "-"
        and texts["R-CLIP_F + LoRA"][2].startswith("85.6")
        and texts["R-CLIP_F + LoRA"][3] == "-"
    )
    assert set(texts["r-clip-t"][1:]) == {"-"}
    assert "of 200" in texts["R-DINO_F"][3]
    assert [one["text"] for one in parsed.every("li") if "out of memory" in one["text"]] == [
        "R-CLIP_F nights: out of memory, lower --chunk-size"
    ]
    assert [one["text"] for one in parsed.every("span", class_="empty")] == ["no image"] * 2
    assert [one["text"] for one in parsed.every("tr") if "attacked" in one["text"]] == ["attacked0.1000.100= tie"]


def test_notes_name_the_metrics(whole: str) -> None:
    parsed = Parsed(whole)
    assert [one["text"] for one in parsed.every("sup")] == ["1"] * 4
    notes = [one["text"] for one in parsed.every("li") if "left out" in one["text"]]
    assert notes == ["12 triplets were left out: an image could not be read (PSNR and SSIM)"] * 2


def test_examples_tell_what_changed(board: dict[str, Any], whole: str) -> None:
    parsed = Parsed(whole)
    cards = parsed.every("div", class_="card")
    assert len(cards) == len(board["metrics"]) * len(board["examples"])
    told = [one["text"] for one in parsed.every("p") if "agree with people" in one["text"]]
    labels = {metric["label"]: metric["id"] for metric in board["metrics"]}
    for n, example in enumerate(board["examples"]):
        chosen = int(example["share_right"] > 0.5)
        agree = {when: 0 for when in ("before", "after")}
        for card in cards[n * len(labels) : (n + 1) * len(labels)]:
            name = next(label for label in sorted(labels, key=len)[::-1] if card["text"].startswith(label))
            found, text = example["metrics"][labels[name]], card["text"].removeprefix(name)
            for when, word in (("before", "clean"), ("after", "attacked")):
                right = found[when][chosen] < found[when][1 - chosen]
                agree[when] += right
                distances = "".join(f"{distance:.3f}" for distance in found[when])
                assert f"{word}{distances}{'✓ correct' if right else '✗ wrong'}" in text
        assert (
            told[n]
            == f"{agree['before']} of 16 metrics agree with people before the attack, {agree['after']} after it."
        )
    people = [one["text"] for one in parsed.every("figcaption") if "people" in one["text"]]
    assert [text for text in people] == [
        "right✓ people: 100 %",
        "left✓ people: 100 %",
        "right✓ people: 83 %",
        "left✓ people: 83 %",
    ]
    assert all(image["alt"] and image["class"] == "px" for image in parsed.every("img"))


def test_images_are_embedded_and_pixelated_only_if_small() -> None:
    board = make_board(1, 1, 1)
    board["examples"][0] |= {
        "reference": picture(0, 256),
        "left": picture(1, 127),
        "right": "data:image/webp;base64,AAAA",
    }
    images = Parsed(page(board)).every("img")[:3]
    assert [image.get("class") for image in images] == ["px", None, None]
    board = make_board(1, 1, 1)
    board["examples"][0]["left"] = "https://example.org/image.png"
    with pytest.raises(ValueError, match="is no data: URI of an image: embed the image"):
        page(board)


def test_the_papers_numbers_are_kept_apart(whole: str) -> None:
    parsed = Parsed(whole)
    groups = [one["text"] for one in parsed.every("th", table="plain", class_="group")]
    proof = 2 * ["clean and attacked, %", "certified, %"]
    assert groups == [
        *proof,
        "paper, NIGHTS",
        "paper, BAPPS",
        "here, nights test",
        "here, scenes test majority not comparable",
    ]
    rows = [one["text"] for one in parsed.every("tr") if one["text"].startswith(("R-CLIP_F90", "not run"))]
    assert rows[0].startswith("R-CLIP_F90.674.366.172.552.140.390.674.366.1")
    assert rows[1] == "not run here60.01.52.5" + "-" * 9
    assert any("measured here on scenes test majority is of other images" in one["text"] for one in parsed.every("p"))


@pytest.mark.parametrize(
    ("distance", "told"),
    [
        (1234.5, "1,230"),
        (123.4, "123"),
        (1.234, "1.23"),
        (0.01234, "0.0123"),
        (0.0012, "0.0012"),
        (1.2e-4, "1.2e-4"),
        (0.0, "0.00"),
    ],
)
def test_distances_have_three_digits(distance: float, told: str) -> None:
    board = make_board(1, 1, 1)
    board["examples"][0]["metrics"]["r-clip-f"] |= {"before": [distance, 2e4], "after": [None, 1.0]}
    rows = [
        one["text"]
        for one in Parsed(page(board)).every("tr")
        if one["text"].startswith(("clean0", "clean1", "attacked"))
    ]
    assert rows == [f"clean{told}20,000✗ wrong", "attacked---"]


def test_distances_are_told_in_other_images() -> None:
    board = make_board(1, 1, 0)
    board["metrics"][0]["direct"] = {"l2 3": {"distances": [0.1, 0.2, 0.5, 0.9], "others": [0.3, 0.4, 0.5]}}
    text = Parsed(page(board)).every("figure", class_="small k0")[0]["text"]
    assert text == "R-CLIP_Fmedian 0.875, 50 % past 1"  # over 0.4: 0.25, 0.5, 1.25, 2.25


def places(path: str) -> list[tuple[float, float]]:
    """The corners of a path of M, l, h and v."""
    found = [(0.0, 0.0)]
    for kind, numbers in re.findall(r"([Mlhv])([^Mlhv]*)", path):
        steps = [float(number) for number in re.findall(r"-?[\d.]+", numbers)]
        across, down = (steps[0], 0.0) if kind == "h" else (0.0, steps[0]) if kind == "v" else (steps[0], steps[1])
        found.append((across, down) if kind == "M" else (found[-1][0] + across, found[-1][1] + down))
    return found[1:]


def ticks_of(picture: str) -> tuple[dict[float, float], dict[float, float]]:
    """Where a picture's axes, the horizontal and the vertical one, have which number."""
    texts = re.findall(r'<text x="([\d.]+)" y="([\d.]+)" text-anchor="(\w+)">([\d.]+)<', picture)
    across = {float(number): float(x) for x, _, anchor, number in texts if anchor == "middle"}
    return across, {float(number): float(y) - 3.8 for _, y, anchor, number in texts if anchor == "end"}


def test_points_are_where_their_numbers_say() -> None:
    names = ["a", "b", "c"]
    middles = [(60.0, 20.0), (70.0, 40.0), (95.0, 85.0)]
    points = [
        charts.Point(name, Look(1), x, y, (x - 1, x + 1), (y - 2, y + 2))
        for name, (x, y) in zip(names, middles, strict=True)
    ]
    picture = charts.scatter(points, "clean accuracy, %", "robust accuracy, %")
    drawn = [tuple(map(float, found)) for found in re.findall(r'class="g" d="M([\d.]+) ([\d.]+)m-3-3h6', picture)]
    across, up = ticks_of(picture)
    for (x, y), place in zip(middles, drawn, strict=True):
        wanted = across[60] + (x - 60) * (across[90] - across[60]) / 30, up[20] + (y - 20) * (up[80] - up[20]) / 60
        assert place == pytest.approx(wanted, abs=1.01)
    whiskers = [places(path) for path in re.findall(r'class="w" d="([^"]*)"', picture)]
    assert [whisker[0][0] for whisker in whiskers[::2]] == pytest.approx(
        [across[60] + (x - 61) * (across[90] - across[60]) / 30 for x, _ in middles], abs=0.51
    )
    assert [whisker[0][1] - whisker[1][1] for whisker in whiskers[1::2]] == pytest.approx(
        [4 * (up[20] - up[80]) / 60] * 3, abs=1.01
    )
    assert re.findall("<title>(.*?)</title>", picture)[2] == "c: 95.0 clean, 85.0 robust"


def label_boxes(picture: str) -> list[tuple[float, float, float, float]]:
    """Left, top, right and bottom of the labels of a picture, as wide as their letters are."""
    boxes = []
    for x, y, anchor, words in re.findall(r'<text x="([\d.]+)" y="([\d.]+)"([^>]*)>([^<]*)</text></g>', picture):
        if words.startswith("label"):
            wide = TextPath((0, 0), words, size=LETTER).get_extents().x1
            left = float(x) - wide * (0.5 if "middle" in anchor else 1 if "end" in anchor else 0)
            boxes.append((left, float(y) - 8, left + wide, float(y) + 2))
    return boxes


def test_labels_do_not_cover_each_other() -> None:
    for seed in range(2):
        chance = random.Random(seed)
        crowd = [(chance.uniform(90, 99), chance.uniform(0, 3)) for _ in range(5)]
        middles = crowd + [(chance.uniform(50, 99), chance.uniform(0, 90)) for _ in range(9)]
        points = [
            charts.Point("label" + "x" * chance.randrange(1, 14), Look(n, False), x, y)
            for n, (x, y) in enumerate(middles)
        ]
        picture = charts.scatter(points, "clean", "robust")
        assert picture == charts.scatter(points, "clean", "robust")
        boxes = label_boxes(picture.replace('<path class="l"', "</g><path").replace("<path", "</g><path"))
        assert len(boxes) == 14
        for n, a in enumerate(boxes):
            assert a[0] >= 34 and a[1] >= 10 and a[2] <= charts.PANEL[0] and a[3] <= 308
            for b in boxes[:n]:
                assert a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]
    alone = charts.scatter([charts.Point("label", Look(1), 70, 50)], "clean", "robust")
    [box] = label_boxes(alone)
    [(x, y)] = re.findall(r'class="g" d="M([\d.]+) ([\d.]+)', alone)
    assert 3 < box[0] - float(x) < 12 and box[1] < float(y) < box[3]
    assert 'class="l"' not in alone


def test_names_on_charts_are_neither_mathematics_nor_markup() -> None:
    for name in ("$x_{$", "<b>&amp;", "$a$"):
        points = [charts.Point(name, Look(0), 70, 50)]
        for picture in (
            charts.scatter(points, "clean", "robust"),
            charts.curves([charts.Line(name, Look(0), [(0, 50, 40, 60)])], "radius", "accuracy, %"),
        ):
            assert html.escape(name) + "</text></g>" in picture and html.escape(name) + ": " in picture


def test_levels_are_spread_apart() -> None:
    assert charts.spread([10, 50, 90], 10, (0, 100)) == [10, 50, 90]
    assert charts.spread([50, 50, 50], 10, (0, 100)) == [40, 50, 60]
    assert charts.spread([2, 1, 1.5], 10, (0, 100)) == [20, 0, 10]
    assert charts.spread([99, 100], 10, (0, 100)) == [90, 100]
    assert charts.spread([5] * 5, 10, (0, 20)) == [0, 5, 10, 15, 20]
    assert charts.spread([], 10, (0, 20)) == []
    chance = random.Random(0)
    for _ in range(50):
        wanted = [chance.uniform(0, 300) for _ in range(chance.randrange(1, 20))]
        levels = charts.spread(wanted, 13, (0, 300))
        order = sorted(range(len(wanted)), key=lambda n: wanted[n])
        assert all(levels[b] - levels[a] >= 13 - 1e-9 for a, b in pairwise(order))
        assert min(levels) >= 0 and max(levels) <= 300


def curve(*radii: float, certified: Any = ()) -> charts.Line:
    return charts.Line("a", Look(0), [(radius, 50.0, 40.0, 60.0) for radius in radii], certified)


def test_the_radius_axis() -> None:
    def ticks(*lines: charts.Line) -> list[float]:
        """Where the radii are, as shares of the axis."""
        across, _ = ticks_of(charts.curves(lines, "radius", "accuracy, %"))
        found = sorted(across.values())
        return [(at - found[0]) / (found[-1] - found[0]) for at in found]

    assert ticks(curve(0, 1, 2, 4)) == pytest.approx([0, 0.25, 0.5, 1], abs=1e-3)
    # Linear up to the first, which is as far as a factor of 10 ** (0.4 / 0.9) is beyond it.
    places = [0.0, *(0.4 / 0.9 + math.log10(radius) for radius in (1, 2, 4, 8))]
    shares = [place / places[-1] for place in places]
    bent = curve(0, 1, 2, 4), curve(0, 8)
    assert ticks(*bent) == pytest.approx(shares, abs=1e-3)
    assert ", log scale<" in charts.curves(bent, "radius", "accuracy, %")
    proven = charts.curves([curve(certified=[(0, 90.0), (0.5, 10.0), (0.8, 0.0)])], "radius", "accuracy, %")
    across, _ = ticks_of(proven)
    assert list(across) == [0.5, 0] or list(across) == [0, 0.5]
    [dashes] = re.findall(r'class="c d" d="([^"]*)"', proven)
    assert places_of_x(dashes) == pytest.approx([across[0], across[0.5]], abs=0.51)
    assert set(ticks_of(charts.curves([curve(0)], "radius", "accuracy, %"))[0]) == {0, 1}
    near = ticks_of(charts.curves([curve(0, 0.1, 1, 1.05)], "radius", "accuracy, %"))[0]
    assert set(near) == {0, 0.1, 1.05}  # a number is left out where there is no room


def places_of_x(path: str) -> list[float]:
    return [x for x, _ in places(path)]


def test_curves_are_where_their_numbers_say() -> None:
    lines = [
        charts.Line("a", Look(1), [(0, 90, 88, 92), (2, 40, 37, 43), (4, 0, 0, 1)], [(0, 90.0), (1, 45.0), (9, 0.0)])
    ]
    picture = charts.curves(lines, "radius", "accuracy, %", 50.0)
    x, _ = ticks_of(picture)
    assert x[0] == 38 and 300 < x[4] < 400
    y = lambda percent: 304 - 2.84 * percent  # noqa: E731
    [path] = re.findall(r'class="c" d="([^"]*)"', picture)
    wanted = [(x[0] + r * (x[4] - x[0]) / 4, y(p)) for r, p in ((0, 90), (2, 40), (4, 0))]
    assert places(path) == [pytest.approx(place, abs=0.51) for place in wanted]
    [band] = re.findall(r'class="b" d="([^"]*)"', picture)
    corners = {(r, p) for r, low, high in ((0, 88, 92), (2, 37, 43), (4, 0, 1)) for p in (low, high)}
    for r, p in corners:
        corner = (x[0] + r * (x[4] - x[0]) / 4, y(p))
        assert any(place == pytest.approx(corner, abs=0.51) for place in places(band)), (r, p)
    [dashes] = re.findall(r'class="c d" d="([^"]*)"', picture)  # what is beyond the axis is not drawn
    assert places(dashes) == [
        pytest.approx(place, abs=0.51) for place in ((x[0], y(90)), (x[0] + (x[4] - x[0]) / 4, y(45)))
    ]
    [chance] = re.findall(r'<g class="eq"><path d="([^"]*)"', picture)
    assert [up for _, up in places(chance)] == [y(50)] * 2
    assert "a: 90.0 at 0, 40.0 at 2, 0.0 at 4" in picture


def test_histograms_count_all() -> None:
    values = np.random.default_rng(0).gamma(2, 0.6, 500).tolist()
    counts = np.histogram(values, 32, (0, 4))[0]
    counts[-1] += 500 - counts.sum()  # the last one holds what is beyond
    picture = charts.histogram(values, [], 4.0)
    [path] = re.findall(r'class="h" d="([^"]*)V64"', picture)
    heights = []
    for (left, up), (right, level) in pairwise(places(path)):
        heights += [64 - level] * round((right - left) / 5) if up == level else []
    assert heights == [round(56 * count / counts.max()) for count in counts]
    assert 'class="ho"' not in picture
    board = make_board(1, 1, 0)
    board["metrics"][0]["direct"] = {"l2 3": {"distances": [4.5, 9.0], "others": [1.0]}}
    assert 'd="M45 4V68"' in page(board) and ">4+<" in page(board)


def test_bars_and_looks() -> None:
    board = make_board(1, 1, 0)
    board["metrics"][0]["results"]["nights"] = {"clean": {"accuracy": 50.0, "interval_95": [45.0, 60.0]}}
    assert '<path d="M0 4H27"/><path d="M24.3 4H32.4"/></svg><b>50.0</b>' in page(board)
    assert len({(look.style, look.shape) for look in map(Look, range(35))}) == 35
    assert charts.percent_domain([96.2, 57.3]) == (50, 100) and charts.percent_domain([0.0, 0.5]) == (0, 20)
    assert charts.percent_domain([99.0]) == (80, 100)
    assert shortened("abc") == "abc"
    cut = shortened("a very long name, and more")
    assert cut.endswith("…") and len(cut) <= LONGEST and "a very long name, and more".startswith(cut[:-1])


@pytest.mark.parametrize("library", ["matplotlib", "textalloc"])
def test_without_what_draws_there_is_one_sentence(library: str, tmp_path: Path) -> None:
    code = f"import sys; sys.modules[{library!r}] = None; from rclip_metric.train.benchmark import tables; "
    code += "import rclip_metric.train.benchmark.page.page"
    ended = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert ended.stderr.splitlines()[-1] == (
        "ValueError: the page needs matplotlib and textalloc, which are in an extra: "
        'pip install "rclip-metric[benchmark]"'
    )


def luminance(colour: str) -> float:
    parts = [int(colour[n : n + 2], 16) / 255 for n in (1, 3, 5)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_colours_can_be_seen(theme: str) -> None:
    style = (ROOT / "train" / "html" / "page.css").read_text(encoding="utf-8")
    found = re.findall(r"--(\w+): light-dark\((#\w{6}), (#\w{6})\)", style)
    colours = {name: light if theme == "light" else dark for name, light, dark in found}

    def contrast(name: str, ground: str) -> float:
        bright, dim = sorted((luminance(colours[name]), luminance(colours[ground])), reverse=True)
        return (bright + 0.05) / (dim + 0.05)

    for name in ("ink", "quiet", "accent", "bad", "good"):  # text: WCAG AA
        assert all(contrast(name, ground) >= 4.5 for ground in ("page", "card")), name
    assert contrast("ink", "best") >= 7 and contrast("quiet", "best") >= 4.5
    assert all(contrast(f"k{n}", "card") >= 3 for n in range(COLOURS))  # graphics


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    module = load_example("screenshot_page")
    path = module.find_browser()
    if path is None:
        pytest.skip(f"there is no browser on the PATH: none of {', '.join(module.BROWSERS)}")
    with module.Browser(path) as found:
        yield found


@pytest.fixture(scope="module")
def file(whole: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "benchmark.html"
    path.write_text(whole, encoding="utf-8")
    return path


ORDER = (
    "[...document.querySelector('.board:not(.glance)').tBodies[0].rows].map(row => row.cells[%d].dataset.value ?? null)"
)


def test_in_a_browser(browser: Any, file: Path) -> None:
    browser.show(file, 1280, 900)
    assert browser.overflow() <= 0
    assert browser.requests() == [file.resolve().as_uri()]
    robust = browser.run(ORDER % 2)
    assert robust == sorted(robust, key=float, reverse=True)

    head = "document.querySelector('.board:not(.glance)').querySelector('[data-column=\"4\"] button')"
    browser.run(f"{head}.click()")
    certified = browser.run(ORDER % 4)
    known = [float(number) for number in certified if number is not None]
    assert known == sorted(known, reverse=True) and len(known) == 2
    assert certified[2:] == [None] * 14  # what was not measured is last, both ways
    browser.run(f"{head}.focus()")
    for kind in ("keyDown", "keyUp"):
        browser.ask("Input.dispatchKeyEvent", type=kind, key="Enter", code="Enter", windowsVirtualKeyCode=13, text="\r")
    certified = browser.run(ORDER % 4)
    assert [float(number) for number in certified[:2]] == sorted(known) and certified[2:] == [None] * 14
    sorts = "[...document.querySelector('.board:not(.glance)').querySelectorAll('[aria-sort]')].map(h => h.ariaSort)"
    assert browser.run(sorts) == ["ascending"]

    shown = "[...document.querySelectorAll('#table [data-set]')].map(part => part.getClientRects().length > 0)"
    assert browser.run(shown) == [True, False]
    browser.run("document.querySelector('[data-choose=\"1\"]').click()")
    assert browser.run(shown) == [False, True]

    ground = "getComputedStyle(document.documentElement).backgroundColor"
    light = browser.run(ground)
    browser.run("document.querySelector('.theme').click()")
    dark = browser.run(ground)
    browser.run("document.querySelector('.theme').click()")
    assert browser.run(ground) == light == "rgb(252, 251, 249)" and dark == "rgb(20, 22, 26)"
    browser.show(file, 1280, 900, dark=True)
    assert browser.run(ground) == dark
    assert browser.errors() == []


def test_labels_are_apart_in_a_browser(browser: Any, file: Path) -> None:
    # As wide as letters really are; less 2 at top and bottom, where most letters have nothing.
    browser.show(file, 1280, 900)
    charts_shown = browser.run(
        """[...document.querySelectorAll('#clean .chart, #radius .chart')].filter(c => c.getClientRects().length).map(
        chart => [...chart.querySelectorAll('.p text')].map(text => text.getBBox()).map(
        box => [box.x, box.y + 2, box.x + box.width, box.y + box.height - 2]))"""
    )
    assert [len(boxes) for boxes in charts_shown] == [16] * 4
    for boxes in charts_shown:
        for n, a in enumerate(boxes):
            assert a[0] >= -0.5 and a[2] <= 401.5  # browsers differ by less than half a pixel
            assert not [b for b in boxes[:n] if a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]]


@pytest.mark.parametrize("width", [360, 390])
def test_on_a_phone(browser: Any, file: Path, width: int) -> None:
    browser.show(file, width, 800)
    assert browser.run("innerWidth") == width
    assert browser.overflow() <= 0
    assert browser.run("[...document.querySelectorAll('.scroll')].some(part => part.scrollWidth > part.clientWidth)")
    browser.run("document.querySelector('.scroll').scrollLeft = 200")
    assert browser.run("document.querySelector('.board tbody th').getBoundingClientRect().left < 30")
    assert browser.errors() == []


def test_taking_a_picture(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    module = load_example("screenshot_page")
    if module.find_browser() is None:
        pytest.skip(f"there is no browser on the PATH: none of {', '.join(module.BROWSERS)}")
    small = tmp_path / "small.html"
    small.write_text(
        "<!DOCTYPE html><body style='margin:0;background:#123456'><p style='width:450px'>wide</p>", encoding="utf-8"
    )
    assert module.main([str(small), str(tmp_path / "a.png"), "--width", "390", "--height", "300"]) == 1
    assert "the page is 60 pixels wider than the window" in capsys.readouterr().err
    with Image.open(tmp_path / "a.png") as image:
        assert image.size == (390, 300) and image.convert("RGB").getpixel((380, 290)) == (0x12, 0x34, 0x56)
