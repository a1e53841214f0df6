"""Models of OpenCLIP, timm and torchvision, and any module with mean, std and size, as the encoder of a distance."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import pytest
import timm
import torch
import torchvision
from safetensors.torch import save
from torch import Tensor, nn

from rclip_metric import RobustPerceptualDistance, score
from rclip_metric.distance import distance_between, normalize
from rclip_metric.errors import CheckpointError, UnknownModelError
from rclip_metric.images import IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from rclip_metric.weights import load_encoder, save_encoder

from support.encoders import randomised, small_encoder
from support.images import noise

TEXT = {"context_length": 8, "vocab_size": 20, "width": 16, "heads": 2, "layers": 1}
VISION = {"layers": 2, "width": 64, "patch_size": 8, "image_size": 32}


def clip() -> Any:
    model = randomised(open_clip.CLIP(16, VISION, TEXT))
    open_clip.model.set_model_preprocess_cfg(model, {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.4)})
    model.visual.preprocess_cfg |= {"resize_mode": "squash"}
    return model


def seeded(build: Callable[[], Any]) -> Any:
    """With the library's own initial weights, whose BatchNorms let images differ."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build().eval()


def normalised(images: Tensor, mean: Any, std: Any) -> Tensor:
    return (images - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)


def assert_same(module: nn.Module, u: Tensor, v: Tensor, x: Tensor, y: Tensor) -> RobustPerceptualDistance:
    """The distance of a module's own embeddings u and v of x and y."""
    modes = [part.training for part in module.modules()]
    needs = [parameter.requires_grad for parameter in module.parameters()]
    metric = RobustPerceptualDistance(module)
    with torch.no_grad():
        assert (u - v).abs().max() > 1e-3 * u.abs().max()
        torch.testing.assert_close(metric.encoder(x), u, atol=1e-6, rtol=1e-6)
        torch.testing.assert_close(metric(x, y), distance_between(normalize(u), normalize(v)), atol=1e-6, rtol=1e-5)
    assert score(x[0], y[0], model=module) == pytest.approx(metric(x[:1], y[:1]).item(), abs=1e-6)
    assert [part.training for part in module.modules()] == modes
    assert [parameter.requires_grad for parameter in module.parameters()] == needs
    own = {parameter.data_ptr() for parameter in module.parameters()}
    assert {parameter.data_ptr() for parameter in metric.encoder.parameters()} <= own
    (gradient,) = torch.autograd.grad(metric(x.requires_grad_(), y).sum(), x)
    assert gradient.abs().max() > 0 and all(parameter.grad is None for parameter in module.parameters())
    return metric


@pytest.mark.parametrize("part", ["whole", "visual"])
def test_an_open_clip_model_or_its_visual(part: str) -> None:
    model = clip().train()
    x, y = noise(2, 3, 3, 32, 32)
    u, v = (model.eval().encode_image(normalised(z, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))) for z in (x, y))
    metric = assert_same(model if part == "whole" else model.visual, u, v, x, y)
    assert metric.encoder.preprocessing.mode == "squash" and metric.encoder.name == "open_clip:VisionTransformer"


@pytest.mark.parametrize("classes", [0, 5])
def test_a_timm_model_with_and_without_classifier(classes: int) -> None:
    model = seeded(lambda: timm.create_model("test_resnet", num_classes=classes))
    x, y = noise(2, 2, 3, 160, 160)
    y = 0.3 * y
    config = model.pretrained_cfg
    pixels = (normalised(z, config["mean"], config["std"]) for z in (x, y))
    u, v = (model.forward_head(model.forward_features(z), pre_logits=True) for z in pixels)
    metric = assert_same(model, u, v, x, y)
    assert metric.encoder.preprocessing.crop == 160
    assert metric.encoder.preprocessing.resize == int(160 / config["crop_pct"])


def test_a_timm_model_whose_images_are_padded_is_refused() -> None:
    model: Any = timm.create_model("test_resnet")
    model.pretrained_cfg = dict(model.pretrained_cfg, crop_mode="border")
    with pytest.raises(ValueError, match="prepares images by 'border' with a share of"):
        RobustPerceptualDistance(model)


@pytest.mark.parametrize("name", ["squeezenet1_1", "resnet18"])
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_torchvision_model_embeds_as_what_its_last_linear_layer_sees(name: str) -> None:
    model = seeded(getattr(torchvision.models, name))
    if name == "squeezenet1_1":
        with pytest.raises(ValueError, match="SqueezeNet has no linear layer whose input would be an embedding"):
            RobustPerceptualDistance(model)
        return
    last = [part for part in model.modules() if isinstance(part, nn.Linear)][-1]
    seen: list[Tensor] = []
    hook = last.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    x, y = noise(2, 1, 3, 224, 224)
    y = 0.3 * y
    with torch.no_grad():
        for z in (x, y):
            model(normalised(z, IMAGENET_MEAN, IMAGENET_STD))
    hook.remove()
    metric = assert_same(model, seen[0], seen[1], x, y)
    assert metric.encoder.preprocessing == Preprocessing("crop", 256, 224, mean=IMAGENET_MEAN, std=IMAGENET_STD)


class Mine(nn.Module):
    def __init__(self, size: Any = 16) -> None:
        super().__init__()
        self.mean, self.std, self.size = torch.tensor([0.5, 0.5, 0.5]), [0.25, 0.25, 0.25], size
        self.linear = nn.Linear(3 * 16 * 16, 8)

    def forward(self, pixels: Tensor) -> Any:
        return self.linear(pixels.flatten(1))


def test_any_module_with_mean_std_and_size() -> None:
    module = randomised(Mine((16, 16)))
    x, y = noise(2, 2, 3, 16, 16)
    u, v = (module((z - 0.5) / 0.25) for z in (x, y))
    metric = assert_same(module, u, v, x, y)
    assert metric.encoder.preprocessing.mode == "squash" and metric(noise(1, 3, 40, 20), y).shape == (2,)
    assert (metric.encoder.revision or "").startswith("tensors:")


def test_what_does_not_say_how_is_refused_in_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="got a Linear, which does not say how its images are prepared"):
        RobustPerceptualDistance(nn.Linear(2, 2))
    with pytest.raises(TypeError, match="model must be a name, a path or a module, got int"):
        RobustPerceptualDistance(3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"Mine takes images of \(16, 8\) pixels, expected a square"):
        RobustPerceptualDistance(Mine((16, 8)))
    wrong = Mine()
    wrong.std = [0.25]
    with pytest.raises(ValueError, match=r"the std of Mine is \[0\.25\], expected three numbers"):
        RobustPerceptualDistance(wrong)
    wrong = Mine()
    wrong.linear = nn.Unflatten(1, (3, 256))  # type: ignore[assignment]
    with pytest.raises(ValueError, match=r"Mine gives \(1, 3, 256\) for an image of 16 pixels, expected an embedding"):
        RobustPerceptualDistance(wrong)
    with pytest.raises(ValueError, match="no configuration describes, so that it cannot be saved"):
        RobustPerceptualDistance(Mine()).save_pretrained(tmp_path)


def test_names_of_libraries(tmp_path: Path, hub: Any) -> None:
    metric = RobustPerceptualDistance("timm:test_vit@random")
    assert metric.encoder.name == "timm:test_vit@random" and metric.encoder.origin is not None
    with pytest.raises(UnknownModelError, match=r"is loaded by its library, which takes no revision or token"):
        load_encoder("open_clip:RN50@openai", revision="main", token=True)
    model = clip()
    config = {"model_cfg": {"embed_dim": 16, "vision_cfg": VISION, "text_cfg": TEXT}, "preprocess_cfg": {}}
    files = {"open_clip_model.safetensors": save(model.state_dict())}
    hub.commit("me/clip", files | {"open_clip_config.json": json.dumps(config).encode()})
    x = noise(2, 3, 32, 32)
    encoder = load_encoder("hf-hub:me/clip", resize="squash")
    assert encoder.architecture.kind == "vit" and encoder.resize == "squash"
    torch.testing.assert_close(encoder(x), model.visual((x - encoder.mean) / encoder.std), atol=1e-5, rtol=1e-5)
    own = small_encoder(spread=True)
    hub.commit("me/own", {path.name: path.read_bytes() for path in save_encoder(own, tmp_path).iterdir()})
    assert torch.equal(load_encoder("hf-hub:me/own")(x), own(x))
    hub.commit("me/other", {"config.json": b'{"model_type": "bert"}'})
    with pytest.raises(CheckpointError, match=r"me/other has a config\.json, and it is neither timm's"):
        load_encoder("hf-hub:me/other")
