"""How the five packages of `pains.py` are called, each as its own documentation calls it."""

import functools
import importlib
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

Read = Callable[[Path], Tensor]


@dataclass(frozen=True)
class Package:
    """One package.

    Attributes:
        name, distribution, module: What it is called, installed and imported as.
        value_range: What its first example takes.
        load: Its metric; with loss=True as its documentation has it for gradients.
        call: The plain call, of images in `value_range`.
        distance: The call for images in [0, 1].
        fresh: A program that makes the documented metric.
        by_default: Makes one without saying a device, and names where it is.
        weight_licences: How many of its weights state a licence, of how many.
        read: A file to (1, 3, H, W) in [0, 1]; None where only tensors are taken.
        difference_map, cached, foreign, silence, as_loss: None where there is no such thing.
    """

    name: str
    distribution: str
    module: str
    value_range: tuple[float, float]
    load: Callable[..., Any]
    call: Callable[[Any, Tensor, Tensor], Tensor]
    distance: Callable[[Any, Tensor, Tensor], Tensor]
    fresh: str
    by_default: Callable[[], str]
    weight_licences: Callable[[], tuple[int, int]]
    read: Read | None = None
    reads: str = ""
    difference_map: Callable[[Tensor, Tensor], Tensor] | None = None
    cached: Callable[[Any, Tensor, Tensor], Tensor] | None = None
    foreign: Callable[[Path], Any] | None = None
    foreign_name: str = "weights.pth"
    silence: Callable[[Any], None] | None = None
    as_loss: Callable[[Any, Tensor, Tensor], Tensor] | None = None


def place(model: Any) -> str:
    """The device of a module's first tensor."""
    return str(next(iter([*model.parameters(), *model.buffers()])).device)


def silence_last(model: nn.Module) -> None:
    """Have no channel of AlexNet's last layer fire, as happens at places of an image."""
    layers = [module for module in model.modules() if isinstance(module, nn.Conv2d) and module.bias is not None]
    with torch.no_grad():
        layers[-1].bias.fill_(-1e4)  # type: ignore[union-attr]  # the last of those with a bias


def _rclip(loss: bool = False) -> Any:
    from rclip_metric import RobustPerceptualDistance

    return RobustPerceptualDistance("tiny", squared=loss)


def _rclip_read(path: Path) -> Tensor:
    from rclip_metric import load_image

    return load_image(path)[None]


def _rclip_foreign(path: Path) -> Any:
    from rclip_metric.weights import load_encoder

    return load_encoder(path, base="tiny")


def _rclip_licences() -> tuple[int, int]:
    from rclip_metric.weights import get_spec, model_names

    specs = [get_spec(name) for name in model_names()]
    return sum(spec.license is not None for spec in specs), len(specs)


RCLIP = Package(
    name="rclip-metric",
    distribution="rclip-metric",
    module="rclip_metric",
    value_range=(0, 1),
    load=_rclip,
    call=lambda model, x, y: model(x, y),
    distance=lambda model, x, y: model(x, y),
    fresh="from rclip_metric import RobustPerceptualDistance\nRobustPerceptualDistance()",
    by_default=lambda: str(_rclip().device),
    weight_licences=_rclip_licences,
    read=_rclip_read,
    difference_map=lambda x, y: _rclip().difference_map(x, y),  # type: ignore[no-any-return]
    cached=lambda model, x, y: model.distance_to(model.embed(y), x),
    foreign=_rclip_foreign,
)


def _lpips(loss: bool = False, **settings: Any) -> Any:
    import lpips

    return lpips.LPIPS(net="alex", pnet_rand=True, verbose=False, **settings)


def _lpips_read(path: Path) -> Tensor:
    import lpips

    signed: Tensor = lpips.im2tensor(lpips.load_image(str(path)))
    return (signed + 1) / 2


LPIPS = Package(
    name="lpips",
    distribution="lpips",
    module="lpips",
    value_range=(-1, 1),
    load=_lpips,
    call=lambda model, x, y: model(x, y),
    distance=lambda model, x, y: model(x, y, normalize=True),
    fresh="import lpips\nlpips.LPIPS(net='alex')",
    by_default=lambda: place(_lpips()),
    weight_licences=lambda: (0, 3),
    read=_lpips_read,
    reads="; load_image needs OpenCV, which is not among the requirements",
    difference_map=lambda x, y: _lpips(spatial=True)(x, y, normalize=True),  # type: ignore[no-any-return]
    foreign=lambda path: _lpips(model_path=str(path)),
    silence=silence_last,
)


@functools.cache
def _dreamsim_folder() -> tempfile.TemporaryDirectory[str]:
    """The folder of DreamSim's files with a random ViT-B/32 in the place of CLIP's."""
    vit = importlib.import_module("dreamsim.feature_extraction.vision_transformer").vit_base(patch_size=32)
    vit.pos_drop = nn.LayerNorm(vit.embed_dim)
    torch.manual_seed(0)
    state = {**vit.state_dict(), "proj": torch.randn(768, 512) / 768**0.5}
    folder = tempfile.TemporaryDirectory(prefix="rclip-metric-pains-")
    torch.save({"state_dict": state}, Path(folder.name, "clip_vitb32_pretrain.pth.tar"))
    adapter = Path(folder.name, "clip_vitb32_single_lora")
    adapter.mkdir()
    config = '{"r": 16, "lora_alpha": 0.5, "lora_dropout": 0.3, "bias": "none", "target_modules": ["qkv"]}'
    (adapter / "adapter_config.json").write_text(config)
    return folder


def _dreamsim_pair(**settings: Any) -> tuple[Any, Callable[[Any], Tensor]]:
    from dreamsim import dreamsim

    cached = {"pretrained": False, "dreamsim_type": "clip_vitb32", "cache_dir": _dreamsim_folder().name}
    found: tuple[Any, Callable[[Any], Tensor]] = dreamsim(**(cached | settings))
    return found


def _dreamsim(loss: bool = False) -> Any:
    return _dreamsim_pair(device="cpu")[0]


def _dreamsim_read(path: Path) -> Tensor:
    from PIL import Image

    return _preprocess()(Image.open(path))


@functools.cache
def _preprocess() -> Callable[[Any], Tensor]:
    return _dreamsim_pair(device="cpu")[1]


def _dreamsim_cached(model: Any, x: Tensor, y: Tensor) -> Tensor:
    return 1 - nn.functional.cosine_similarity(model.embed(x), model.embed(y), dim=-1)


def _dreamsim_foreign(path: Path) -> Any:
    (path.parent / "clip_vitb32_single_lora").mkdir()
    return _dreamsim_pair(cache_dir=str(path.parent), device="cpu")


DREAMSIM = Package(
    name="dreamsim",
    distribution="dreamsim",
    module="dreamsim",
    value_range=(0, 1),
    load=_dreamsim,
    call=lambda model, x, y: model(x, y),
    distance=lambda model, x, y: model(x, y),
    fresh="from dreamsim import dreamsim\ndreamsim(pretrained=True, device='cpu')",
    by_default=lambda: place(_dreamsim_pair()[0]),
    weight_licences=lambda: (0, len(importlib.import_module("dreamsim.config").dreamsim_weights)),
    read=_dreamsim_read,
    cached=_dreamsim_cached,
    foreign=_dreamsim_foreign,
    foreign_name="clip_vitb32_pretrain.pth.tar",
)


def _torchmetrics(loss: bool = False, **settings: Any) -> Any:
    module: Any = importlib.import_module("torchmetrics.image.lpip")
    functional: Any = importlib.import_module("torchmetrics.functional.image.lpips")
    plain, module._NoTrainLpips = module._NoTrainLpips, functools.partial(functional._NoTrainLpips, pnet_rand=True)
    try:
        return module.LearnedPerceptualImagePatchSimilarity(net_type="alex", reduction="none", **settings)
    finally:
        module._NoTrainLpips = plain


def _torchmetrics_distance(model: Any, x: Tensor, y: Tensor) -> Tensor:
    model.normalize = True
    model.reset()
    found: Tensor = model(x, y)
    return found


TORCHMETRICS = Package(
    name="torchmetrics",
    distribution="torchmetrics",
    module="torchmetrics",
    value_range=(-1, 1),
    load=_torchmetrics,
    call=lambda model, x, y: model(x, y),
    distance=_torchmetrics_distance,
    fresh="from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity as L\nL(net_type='alex')",
    by_default=lambda: place(_torchmetrics()),
    weight_licences=lambda: (0, 3),
    silence=silence_last,
)


def _pyiqa(loss: bool = False, **settings: Any) -> Any:
    import pyiqa

    settings = {"pretrained": False, "pnet_rand": True, "as_loss": loss, **settings}
    towers = importlib.import_module("pyiqa.archs.lpips_arch").models
    alexnet = towers.alexnet  # it asks for ImageNet's weights whatever pnet_rand says
    towers.alexnet = lambda **_: alexnet()
    try:
        metric = pyiqa.create_metric("lpips", loss_reduction="none", **settings)
    finally:
        towers.alexnet = alexnet
    with torch.no_grad():
        for weight in metric.net.lins.parameters():
            weight.abs_()  # as the released ones are
    return metric


def _pyiqa_read(path: Path) -> Tensor:
    read: Read = importlib.import_module("pyiqa.utils.img_util").imread2tensor
    return read(str(path), rgb=True)[None]  # type: ignore[call-arg,arg-type]  # as its models call it


def _pyiqa_licences() -> tuple[int, int]:
    configs = importlib.import_module("pyiqa.default_model_configs").DEFAULT_CONFIGS
    return sum("license" in str(sorted(one)) for one in configs.values()), len(configs)


def _pyiqa_as_loss(model: Any, x: Tensor, y: Tensor) -> Tensor:
    loss = _pyiqa(loss=True)
    loss.load_state_dict(model.state_dict())
    found: Tensor = loss(x, y)
    return found


PYIQA = Package(
    name="pyiqa",
    distribution="pyiqa",
    module="pyiqa",
    value_range=(0, 1),
    load=_pyiqa,
    call=lambda model, x, y: model(x, y),
    distance=lambda model, x, y: model(x, y),
    fresh="import pyiqa\npyiqa.create_metric('lpips')",
    by_default=lambda: str(_pyiqa().device),
    weight_licences=_pyiqa_licences,
    read=_pyiqa_read,
    difference_map=lambda x, y: _pyiqa(spatial=True)(x, y),  # type: ignore[no-any-return]
    foreign=lambda path: _pyiqa(pretrained_model_path=str(path)),
    silence=silence_last,
    as_loss=_pyiqa_as_loss,
)

PACKAGES = {package.name: package for package in (RCLIP, LPIPS, DREAMSIM, TORCHMETRICS, PYIQA)}
