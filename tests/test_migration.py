"""Every cell of the two tables of migration: ours, and the other package's with random weights."""

import functools
import importlib
import importlib.util
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rclip_metric import ImageError, RobustPerceptualDistance

from support.images import noise

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
GUIDE = (ROOT / "docs" / "guides" / "migrate.md").read_text(encoding="utf-8")
A, B = (str(ROOT / "examples" / "images" / f"photo-{word}.jpg") for word in ("reference", "closer"))
X, Y = noise(2, 2, 3, 64, 80)


def rows(text: str) -> list[list[str]]:
    """The cells of the table under `| from | there | here |`."""
    table = text[text.index("| from | there | here |") :].split("\n\n")[0]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]


def needs(module: str) -> Any:
    if importlib.util.find_spec(module) is None:
        pytest.skip(f"needs {module}")
    return importlib.import_module(module)


@pytest.fixture(scope="module")
def metric() -> RobustPerceptualDistance:
    return RobustPerceptualDistance("tiny")


@pytest.fixture
def lpips(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The real package with random trunks and its own linear layers."""
    module = needs("lpips")
    monkeypatch.setattr(module, "LPIPS", functools.partial(module.LPIPS, pnet_rand=True, verbose=False))
    return module


@pytest.fixture(scope="module")
def dreamsim(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What the real package's `dreamsim` returns, of a random and narrow tower in the place of CLIP's ViT-B/32."""
    real = needs("dreamsim")
    vit = importlib.import_module("dreamsim.feature_extraction.vision_transformer")
    loader = importlib.import_module("dreamsim.feature_extraction.load_clip_as_dino")
    folder = tmp_path_factory.mktemp("dreamsim")
    (folder / "clip_vitb32_single_lora").mkdir()
    config = '{"r": 2, "lora_alpha": 0.5, "lora_dropout": 0.3, "bias": "none", "target_modules": ["qkv"]}'
    (folder / "clip_vitb32_single_lora" / "adapter_config.json").write_text(config)
    build = functools.partial(vit.VisionTransformer, embed_dim=32, depth=12, num_heads=2, qkv_bias=True)
    tower = build(patch_size=32)
    tower.pos_drop = torch.nn.LayerNorm(32)
    torch.save(
        {"state_dict": {**tower.state_dict(), "proj": torch.randn(32, 16)}}, folder / "clip_vitb32_pretrain.pth.tar"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loader, "vit_base", build)
        return real.dreamsim(pretrained=False, device="cpu", cache_dir=str(folder), dreamsim_type="clip_vitb32")


@pytest.fixture
def torchmetrics(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The real package's class, with a random trunk."""
    needs("torchmetrics")
    module = importlib.import_module("torchmetrics.image.lpip")
    monkeypatch.setattr(module, "_NoTrainLpips", functools.partial(module._NoTrainLpips, pnet_rand=True))
    return module


def code(cell: str) -> str:
    return re.findall(r"`([^`]+)`", cell)[0]


def readme_cells(word: str) -> list[str]:
    """The column `there` of the rows of a package."""
    return [code(row[1]) for row in rows(README) if row[0].startswith(word)]


def test_the_readme_s_table_has_these_rows_and_all_of_them_run_below() -> None:
    names = [row[0].split(",")[0] for row in rows(README)]
    assert names == ["LPIPS", "LPIPS", "LPIPS", "DreamSim", "DreamSim", "DreamSim", "torchmetrics", "pyiqa"]
    imports = [code(row[2]) for row in rows(README) if code(row[2]).split()[0] in ("import", "from")]
    assert len(imports) == 2
    for line in imports:
        names_of: dict[str, Any] = {}
        exec(line, names_of)
        assert any(hasattr(value, "LPIPS") or callable(value) for key, value in names_of.items() if key[0] != "_")


@pytest.mark.filterwarnings("ignore:The parameter 'pretrained'", "ignore:Arguments other than a weight enum")
def test_lpips_s_own_cells(lpips: Any) -> None:
    line, call, spatial = readme_cells("LPIPS")
    names: dict[str, Any] = {"x": X, "y": Y}
    exec(line, names)
    names["loss_fn"] = names["lpips"].LPIPS()
    with torch.no_grad():
        assert eval(call, names).shape == (2,)
        assert torch.allclose(eval(call, names), names["loss_fn"](X, Y, normalize=True).flatten())
        assert eval(spatial, names).shape == (2, 1, 64, 80)


def test_dreamsim_s_own_cells(dreamsim: Any) -> None:
    from PIL import Image

    line, call, embedding = readme_cells("DreamSim")
    names: dict[str, Any] = {}
    exec(line, names)
    assert callable(names["dreamsim"])
    names |= dict(zip(("model", "preprocess"), dreamsim, strict=True), a=Image.open(A), b=Image.open(B))
    distance, embedded = eval(call, names), eval(embedding, names)
    assert distance.shape == (1,) and 0 < distance.item() < 2 and embedded.shape == (1, 16)


@pytest.mark.filterwarnings("ignore")  # of its own
def test_torchmetrics_own_cell(torchmetrics: Any) -> None:
    [cell] = readme_cells("torchmetrics")
    running = eval(cell, vars(torchmetrics))
    running.update(X, Y)
    assert running.compute().shape == ()


def test_pyiqa_s_own_cell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    [cell] = readme_cells("pyiqa")
    pyiqa = needs("pyiqa")
    from pains_packages import PYIQA  # type: ignore[import-not-found]  # beside the scripts of examples/

    model = PYIQA.load()
    names = {"pyiqa": type("", (), {"create_metric": staticmethod(lambda name: model)}), "x": X, "y": Y}
    assert pyiqa is not None and eval(cell, names).shape in ((2,), (2, 1))


def lpips_range(metric: Any, lpips: Any) -> None:
    theirs = lpips.LPIPS()
    assert torch.allclose(theirs(2 * X - 1, 2 * Y - 1), theirs(X, Y, normalize=True))
    with pytest.raises(ImageError):
        metric(2 * X - 1, Y)
    signed = RobustPerceptualDistance("tiny", value_range=(-1, 1))
    assert torch.allclose(signed(2 * X - 1, 2 * Y - 1), metric(X, Y), atol=1e-5)


def lpips_shape(metric: Any, lpips: Any) -> None:
    assert lpips.LPIPS()(X, Y).shape == (2, 1, 1, 1) and metric(X, Y).shape == (2,)


def lpips_spatial(metric: Any, lpips: Any) -> None:
    assert lpips.LPIPS(spatial=True)(X, Y).shape == (2, 1, 64, 80)
    assert metric.difference_map(X, Y).shape == (2, 64, 80)


def lpips_layers(metric: Any, lpips: Any) -> None:
    total, layers = lpips.LPIPS()(X, Y, retPerLayer=True)
    assert len(layers) == 5 and torch.allclose(sum(layers), total)
    assert metric.embed(X).dim() == 2 and metric(X, noise(1, 3, 7, 31)).shape == (2,)


def dreamsim_scale(metric: Any, dreamsim: Any) -> None:
    model, _ = dreamsim
    x, y = noise(2, 1, 3, 224, 224)
    cosine = torch.nn.functional.cosine_similarity
    assert torch.allclose(model(x, y), 1 - cosine(model.embed(x), model.embed(y), dim=-1))
    squared = RobustPerceptualDistance("tiny", squared=True)
    expected = 1 - cosine(squared.embed(x), squared.embed(y))
    assert torch.allclose(squared(x, y), expected, atol=1e-5) and squared.score_range == (0, 2)
    assert torch.allclose(metric(x, y), expected.sqrt(), atol=1e-4)
    assert metric.score_range == (0, pytest.approx(2**0.5))


def dreamsim_preprocess(metric: Any, dreamsim: Any) -> None:
    from PIL import Image

    _, preprocess = dreamsim
    assert preprocess(Image.open(A)).shape == (1, 3, 224, 224)
    with pytest.raises(AttributeError):
        preprocess(X)
    forms: list[Tensor] = [metric.preprocess(form) for form in (A, Image.open(A), Path(A).read_bytes())]
    assert all(torch.equal(form, forms[0]) for form in forms)
    assert metric(X, X).tolist() == [0, 0]


def torchmetrics_class(metric: Any, torchmetrics: Any) -> None:
    from rclip_metric.torchmetric import RobustPerceptualDistanceMetric

    theirs, ours = (
        torchmetrics.LearnedPerceptualImagePatchSimilarity(normalize=True),
        RobustPerceptualDistanceMetric(metric),
    )
    for running in (theirs, ours):
        running.update(X, Y)
        assert running.compute().shape == ()
    assert torch.allclose(ours.compute(), metric(X, Y).mean(), atol=1e-5) and ours.count == 2


def pyiqa_attributes(metric: Any, _: Any) -> None:
    assert metric.higher_is_better is False and metric.score_range[0] == 0


CHECKS: dict[tuple[str, str], tuple[Callable[[Any, Any], None], str | None]] = {
    ("LPIPS", "images in [-1, 1], or `normalize=True`"): (lpips_range, "lpips"),
    ("LPIPS", "(N, 1, 1, 1)"): (lpips_shape, "lpips"),
    ("LPIPS", "`spatial=True`"): (lpips_spatial, "lpips"),
    ("LPIPS", "one network and five layers"): (lpips_layers, "lpips"),
    ("DreamSim", "`1 - cos`, in [0, 2]"): (dreamsim_scale, "dreamsim"),
    ("DreamSim", "`preprocess(PIL)` before the model"): (dreamsim_preprocess, "dreamsim"),
    ("torchmetrics", "`LearnedPerceptualImagePatchSimilarity`"): (torchmetrics_class, "torchmetrics"),
    ("pyiqa", "`lower_better`, `score_range`"): (pyiqa_attributes, None),
}


def test_the_guide_s_table_has_these_rows() -> None:
    assert [(row[0], row[1]) for row in rows(GUIDE)] == list(CHECKS)


@pytest.mark.filterwarnings("ignore")  # of the other packages
@pytest.mark.parametrize("row", list(CHECKS), ids=": ".join)
def test_a_row_of_the_guide_is_so(row: tuple[str, str], metric: Any, request: pytest.FixtureRequest) -> None:
    check, package = CHECKS[row]
    with torch.no_grad():
        check(metric, None if package is None else request.getfixturevalue(package))
