"""The drop-in for DreamSim: its README's snippets with only the import changed, and the signature of the real one."""

import ast
import importlib.util
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from rclip_metric import RobustPerceptualDistance
from rclip_metric.compat.dreamsim import dreamsim

from support.encoders import small_encoder
from support.images import noise, save_noise

# DreamSim's README: quickstart, feature extraction, image retrieval (the ranking) and the loss.
QUICK_START = """
from {module} import dreamsim
from PIL import Image

device = "cpu"
model, preprocess = dreamsim(pretrained=True, device=device{more})

img1 = preprocess(Image.open(p1)).to(device)
img2 = preprocess(Image.open(p2)).to(device)
distance = model(img1, img2) # The model takes an RGB image from [0, 1], size batch_sizex3x224x224
embedding = model.embed(img1)

import torch.nn.functional as F
query_embed = model.embed(preprocess(Image.open(p1)).to(device))
dists = {{}}
for i, im in enumerate([Image.open(p1), Image.open(p2)]):
   img_embed = model.embed(preprocess(im).to(device))
   dists[i] = (1 - F.cosine_similarity(query_embed, img_embed, dim=-1)).item()
"""


@pytest.fixture(scope="module")
def encoder() -> Any:
    return small_encoder(spread=True, layer_scale=0.5)


def test_the_snippets_run_with_the_import_changed(tmp_path: Path) -> None:
    paths = {f"p{i}": str(save_noise(tmp_path / f"{i}.png", seed=i)) for i in (1, 2)}
    found: dict[str, Any] = dict(paths)
    exec(QUICK_START.format(module="rclip_metric.compat.dreamsim", more=', model="tiny"'), found)
    metric = RobustPerceptualDistance("tiny", squared=True, resize="squash")
    x, y = (metric.preprocess(path)[None] for path in paths.values())
    assert found["img1"].shape == (1, 3, 64, 64) and found["embedding"].shape == (1, 128)
    assert found["distance"].shape == (1,) and torch.equal(found["distance"], metric(x, y))
    assert found["dists"][0] < 1e-6 and math.isclose(found["dists"][1], found["distance"].item(), abs_tol=1e-5)


def test_the_signature_is_dreamsim_s_own_and_more() -> None:
    spec = importlib.util.find_spec("dreamsim")
    assert spec and spec.submodule_search_locations
    # Read and not imported: importing it takes peft and transformers.
    tree = ast.parse((Path(spec.submodule_search_locations[0]) / "model.py").read_text(encoding="utf-8"))
    theirs = next(node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "dreamsim")
    names = [argument.arg for argument in theirs.args.args]
    defaults = dict(zip(names, map(ast.literal_eval, theirs.args.defaults), strict=True))
    own = dict(zip(names, dreamsim.__defaults__ or (), strict=True))
    changed = {"device": ("cuda", None), "cache_dir": ("./models", None)}  # nothing is written where the user stands
    assert {name: (defaults[name], own[name]) for name in names if defaults[name] != own[name]} == changed


def test_the_distance_is_of_the_embeddings(encoder: Any) -> None:
    x, y = noise(2, 4, 3, 50, 70)
    model, _ = dreamsim(device="cpu", model=encoder)
    u, v = model.embed(x), model.embed(y)
    assert u.shape == (4, 16) and torch.allclose(u.norm(dim=1), torch.ones(4))
    torch.testing.assert_close(model(x, y), 1 - F.cosine_similarity(u, v), atol=1e-6, rtol=1e-5)
    raw, _ = dreamsim(device="cpu", model=encoder, normalize_embeds=False)
    assert torch.equal(raw.embed(x), raw.metric.encoder(x)) and torch.equal(raw(x, y), model(x, y))
    assert model(x[:1], y).shape == (4,)


def test_it_is_a_loss(encoder: Any) -> None:
    model, _ = dreamsim(device="cpu", model=encoder)
    reference, start = noise(2, 1, 3, 64, 64)
    predicted = start.clone().requires_grad_()
    optimizer = torch.optim.Adam([predicted], lr=0.02)
    before = model(predicted, reference).item()
    for _ in range(5):
        dist = model(predicted.clamp(0, 1), reference)
        optimizer.zero_grad()
        dist.backward()
        optimizer.step()
    assert dist.item() < 0.9 * before and not list(model.parameters()) and model.train() is model


def test_preprocessing_squashes_as_dreamsim_does(encoder: Any) -> None:
    _, preprocess = dreamsim(device="cpu", model=encoder)
    image = Image.new("L", (100, 40), 255)
    image.paste(0, (50, 0, 100, 40))  # the right half is black
    found = preprocess(image)
    assert found.shape == (1, 3, 64, 64) and found[..., :30].min() > 0.99 and found[..., 34:].max() < 0.01


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"pretrained": False}, "pretrained=False would give random weights"),
        ({"use_patch_model": True}, "difference_map"),
        ({"dreamsim_type": "vgg"}, "dreamsim_type must be one of ensemble, dino_vitb16, .*, got 'vgg'"),
    ],
)
def test_what_only_dreamsim_can_be_is_refused(encoder: Any, settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        dreamsim(model=encoder, **settings)
