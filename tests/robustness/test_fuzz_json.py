"""Every kind of JSON file that is read back, damaged at random: it is read, or one sentence of ours says what is wrong.

python tests/robustness/test_fuzz_json.py [SECONDS [SEED]]    # for longer than the test does
"""

import ast
import copy
import functools
import json
import random
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import rclip_metric
from rclip_metric import errors
from rclip_metric.encoder import open_clip_architecture
from rclip_metric.json_files import read_json
from rclip_metric.train.data.classes import read_prompts
from rclip_metric.train.data.set_folder import written
from rclip_metric.train.evaluation.blocks import run_blocks
from rclip_metric.train.evaluation.results.breakdown import breakdown
from rclip_metric.train.evaluation.results.leaderboard import STYLES, table
from rclip_metric.train.evaluation.results.record import load_results
from rclip_metric.train.evaluation.session import kept
from rclip_metric.train.finetuning.adversarial.config import FinetuneConfig, RunConfig
from rclip_metric.train.finetuning.nights import NightsConfig
from rclip_metric.train.models.peft_adapters import read_adapter
from rclip_metric.train.publishing.finished_run import read_run
from rclip_metric.train.publishing.own_results import reported_numbers
from rclip_metric.train.runs import tensor_file
from rclip_metric.train.runs.config import configured, read_recipe, read_settings, shared_out
from rclip_metric.weights import SavedConfig, find_weights, load_encoder, save_encoder
from rclip_metric.weights.digest import remembered
from rclip_metric.weights.manifest import manifest_path, read_specs

ROOT = Path(__file__).parents[2]
CODE = (str(Path(rclip_metric.__file__).parent), str(ROOT / "train"))
OURS = {ValueError, *(kind for kind in vars(errors).values() if isinstance(kind, type))}
NASTY: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 0.5, -0.5, 10**7, 2**63, 10**30, 1e300, "", "x", "../x", "/etc/passwd"),
    *("a\n\x1b[31mb", "\x00", "é" * 300, "4/255", "nan", "\ud800", [], [1], ["x"], [[]], [None], {}, {"a": 1}),
    *({"name": "x"}, [{}]),
)
TEXTS = (
    *("NaN", "Infinity", "-Infinity", "1e999", "9" * 400, "[" * 3000, '{"a":' * 3000, "\\u0000", "\ufeff"),
    *("]", "}", ",", "\x00"),
)
Read = Callable[[Path], object]


def places(value: Any, parent: Any = None, key: Any = None) -> Iterator[tuple[Any, Any]]:
    """All containers below a value, with their keys."""
    if parent is not None:
        yield parent, key
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for inner, item in list(items):
        yield from places(item, value, inner)


def damaged(content: bytes, chance: random.Random) -> bytes:
    """Change something in what the JSON says, or in its bytes."""
    if chance.random() < 0.7:
        value = json.loads(content)
        for _ in range(chance.choice((1, 1, 1, 2, 5))):
            found = [*places(value)]
            if not found:
                break
            parent, key = chance.choice(found)
            match chance.randrange(6):
                case 0:
                    del parent[key]
                case 1 if isinstance(parent, dict):
                    parent[chance.choice(("x", "", "*", f"{key}?", "name"))] = parent.pop(key)
                case 2:
                    parent[key] = [parent[key]]
                case 3:
                    parent[key] = {"a": parent[key]}
                case _:
                    parent[key] = copy.deepcopy(chance.choice(NASTY))
        return json.dumps(value).encode()
    at = chance.randrange(len(content))
    match chance.randrange(5):
        case 0:
            return content[:at]
        case 1:
            return content[:at] + bytes([content[at] ^ (1 << chance.randrange(8))]) + content[at + 1 :]
        case 2:
            return content[:at] + chance.choice(TEXTS).encode() + content[at:]
        case 3:  # a piece twice: keys come twice
            return content[: min(len(content), at + chance.randrange(1, 80))] + content[at:]
        case _:
            return chance.choice((b"", b"null", b"[]", b"{}", b"1", b'"x"', content * 2, chance.randbytes(40)))


@functools.cache
def raises(path: str) -> tuple[tuple[int, int], ...]:
    """The lines of all `raise` statements of a module."""
    tree = ast.parse(Path(path).read_text(encoding="utf-8"))
    return tuple((node.lineno, node.end_lineno or 0) for node in ast.walk(tree) if isinstance(node, ast.Raise))


def objection(error: BaseException) -> str | None:
    """Say why an error is no sentence that this package raised itself; None if it is one."""
    *_, (frame, line) = traceback.walk_tb(error.__traceback__)
    path, text = frame.f_code.co_filename, str(error)
    if type(error) not in OURS:
        return f"{type(error).__name__} is none of ours"
    if not path.startswith(CODE) or not any(first <= line <= last for first, last in raises(path)):
        return f"raised by {path}:{line}"
    if not text.isprintable():
        return "more than a line, or control characters"
    return None if 10 < len(text) < 1500 else f"{len(text)} characters"


# Each reads a file and goes on as far as the package does before it computes.


def _recipe(path: Path) -> None:
    recipe = read_recipe(path)
    if recipe.command == "nights":
        configured(NightsConfig, None, recipe.settings)
    else:
        what, how = shared_out(recipe.settings, FinetuneConfig, RunConfig)
        configured(FinetuneConfig, None, what)
        configured(RunConfig, None, how)


def _result(path: Path) -> None:
    records = load_results([path])
    for style in STYLES:
        table(records, style)  # type: ignore[arg-type]
    for by in ("split", "kind"):
        breakdown(records, by)
    reported_numbers(records, 64)


def _run(path: Path) -> None:
    run = read_run(path.parent)
    assert run.method is not None and run.recipe is not None and run.training
    assert run.base is None or isinstance(run.sources, list)


def _kept(path: Path) -> None:
    kept(path, {"seed": 0}, lambda journal: {"distances": [0.1]})


def _journal(path: Path) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", r".* has a damaged line, of block .*, which is evaluated again", RuntimeWarning
        )
        run_blocks([0, 1], lambda block: {"x": 1}, settings={"seed": 0}, journal=path.parent, quiet=True)


def _metadata(path: Path) -> dict[str, str]:
    with safe_open(path, "pt") as file:
        return dict(file.metadata())


def _structure(path: Path) -> None:
    """Read a state whose tensors are whole, and what says where they go is not."""
    state, other = path.with_name("state.safetensors"), path.with_name("other.safetensors")
    save_file(load_file(state), other, _metadata(state) | {"structure": path.read_text(errors="replace")})
    tensor_file.read(other)


def kinds(folder: Path) -> dict[str, tuple[Path, Read]]:
    """A good file of every kind, in a folder of its own, and who reads it."""
    made: dict[str, tuple[Path, Read]] = {}

    def add(kind: str, content: str | bytes, name: str, read: Read) -> Path:
        path = folder / kind / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        made[kind] = path, read
        return path

    add("manifest", manifest_path().read_bytes(), "manifest.json", lambda path: read_specs(read_json(path)))
    config = (save_encoder(load_encoder("tiny"), folder / "config") / "config.json").read_bytes()
    add("config", config, "config.json", lambda path: load_encoder(path.parent))
    add("config alone", config, "config.json", lambda path: SavedConfig.read(read_json(path), str(path)))
    record = (ROOT / "results" / "r-lite-f" / "run-1.json").read_bytes()
    save_encoder(load_encoder("tiny"), folder / "run")
    add("run", record, "run.json", _run)
    add("settings", record, "run.json", read_settings)
    vision = {"layers": 2, "width": 64, "patch_size": 8, "image_size": 32, "head_width": 16, "mlp_ratio": 4.0}
    stated = {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic", "resize_mode": "shortest"}
    whole = {"model_cfg": {"embed_dim": 16, "quick_gelu": True, "vision_cfg": vision}, "preprocess_cfg": stated}
    path = add("open_clip", json.dumps(whole), "open_clip_config.json", lambda path: find_weights(path.parent))
    path.with_name("model.safetensors").touch()
    resnet = {"embed_dim": 24, "vision_cfg": {"layers": [1, 1, 1, 1], "width": 16, "image_size": 64}}
    add("open_clip tower", json.dumps(resnet), "c.json", lambda path: open_clip_architecture("x", read_json(path)))
    for name in ("tiny", "r-clip-f+lora", "r-clip-t"):
        add(f"recipe {name}", (ROOT / "train" / "recipes" / f"{name}.json").read_bytes(), "recipe.json", _recipe)
    for name in ("scenes", "simple", "imagenet-tecoa"):
        content = (ROOT / "train" / "data" / "prompts" / f"{name}.json").read_bytes()
        add(f"prompts {name}", content, "prompts.json", read_prompts)
    for name in ("robustness/tiny__scenes-test__apgd-linf-4_255", "formats/tiny__scenes-things__clean"):
        add(f"result {name}", (ROOT / "results" / f"{name}.json").read_bytes(), "result.json", _result)
    transferred = next((ROOT / "results" / "sanity").glob("*__transfer-l2-*.json"))
    add("result with a source", transferred.read_bytes(), "result.json", _result)
    made_of = {"seed": 1, "version": 1}
    add("set", json.dumps({**made_of, "kinds": ["a"]}), "photos.json", lambda path: written(path, made_of))
    adapter = {"peft_type": "LORA", "r": 4, "lora_alpha": 6, "bias": "none", "target_modules": ["qkv", "proj"]}
    add("adapter", json.dumps(adapter), "adapter_config.json", lambda path: read_adapter(path.parent, {}))
    note = {"digest": "0" * 64, "size": 1, "mtime_ns": 2, "inode": 3}
    add("digest", json.dumps(note), "note.json", lambda path: remembered(path, path))
    result = {"distances": [0.1], "settings": {"a": 1}, "fingerprint": "x"}
    add("kept", json.dumps(result), "direct.json", _kept)
    run_blocks([0, 1], lambda block: {"x": 1}, settings={"seed": 0}, journal=folder / "written", quiet=True)
    path = next((folder / "written").iterdir())
    add("journal", path.read_bytes().splitlines()[0], path.name, _journal)
    state = folder / "state" / "state.safetensors"
    tensor_file.write(state, {"model": {"w": torch.ones(2)}, "n": [1, (2, "x")]}, {})
    add("state", _metadata(state)["structure"], "structure.json", _structure)
    return made


def fuzz(seconds: float = 1e9, count: int = 10**9, seed: int = 0) -> tuple[Counter[str], list[str]]:
    """Damage and read files until one of the two is used up; how many there were and were refused, and objections."""
    chance, counts, objections = random.Random(seed), Counter[str](), list[str]()
    with tempfile.TemporaryDirectory() as folder:
        files = [(kind, path, path.read_bytes(), read) for kind, (path, read) in kinds(Path(folder)).items()]
        for kind, path, _, read in files:
            if kind != "kept":  # it is of other settings, undamaged too
                read(path)
        start = time.monotonic()
        for number in range(count):
            if time.monotonic() - start > seconds:
                break
            kind, path, content, read = files[number % len(files)]
            broken = damaged(content, chance)
            path.write_bytes(broken)
            counts["tried"] += 1
            began = time.process_time()
            try:
                read(path)
            except Exception as error:
                counts["refused"] += 1
                if problem := objection(error):
                    place = traceback.extract_tb(error.__traceback__)[-1]
                    objections.append(f"{kind}: {problem}: {error!r:.300} at {place.filename}:{place.lineno}")
            if time.process_time() - began > 10:
                objections.append(f"{kind}: took {time.process_time() - began:.0f} s: {broken[:200]!r}")
            path.write_bytes(content)
    return counts, objections


def test_damaged_json_is_read_or_refused_in_one_sentence(fuzz_seconds: float) -> None:
    counts, objections = fuzz(seconds=fuzz_seconds, count=10**6)
    assert objections == []
    assert counts["refused"] > 0.3 * counts["tried"] > 10


def test_every_committed_result_is_read() -> None:
    # Beside records of accuracy there are results of another kind, as `eval neighbours` and `eval inversion` make them.
    files = [path for path in (ROOT / "results").rglob("*__*.json") if ".journal" not in path.parts]
    folders = {path.parent for path in files if b'"schema"' in path.read_bytes()[:200]}
    assert sum(len(load_results([folder])) for folder in folders) > 200


@pytest.mark.parametrize("error", [KeyError("x"), RecursionError(), TypeError("x"), json.JSONDecodeError("x", "", 0)])
def test_a_foreign_error_is_noticed(error: Exception) -> None:
    try:
        raise error
    except Exception as caught:
        assert objection(caught) == f"{type(error).__name__} is none of ours"
    try:
        int("x")
    except ValueError as caught:
        assert "raised by" in (objection(caught) or "")


if __name__ == "__main__":
    given = [*sys.argv[1:], "60", "1"][:2] if len(sys.argv) < 3 else sys.argv[1:3]
    tried, problems = fuzz(float(given[0]), seed=int(given[1]))
    kinds_of = Counter(problem.partition(" at ")[2] + " " + problem[:200] for problem in problems)
    lines = [f"{n} x {text}" for text, n in kinds_of.most_common(60)]
    sys.stdout.write("\n".join([*lines, f"{dict(tried)}, objections: {len(problems)}", ""]))
