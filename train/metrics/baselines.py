"""The metrics of others by name: who built each, and what its weights are published in."""

from __future__ import annotations

from dataclasses import dataclass

_DREAMSIM = "from the release page of ssundaram21/dreamsim on GitHub"
_LIPSIM = "from the page that SaraGhazanfari/lipsim on GitHub links to"


@dataclass(frozen=True)
class Baseline:
    """A metric of others.

    Attributes:
        family: module of `rclip_metric.train.metrics` that builds it.
        label: how people call it.
        published: which file holds its weights, and where; None where there is nothing to convert.
        free_size: images may be squashed to any size, not only to the one it was trained at.
    """

    family: str
    label: str
    published: str | None = None
    free_size: bool = False


def _dreamsim(label: str, zip_name: str) -> Baseline:
    return Baseline("dreamsim", label, f"dreamsim_{zip_name}_checkpoint.zip {_DREAMSIM}")


BASELINES: dict[str, Baseline] = {
    "dreamsim": _dreamsim("DreamSim (ensemble)", "ensemble"),
    "dreamsim-dino-vitb16": _dreamsim("DreamSim (DINO ViT-B/16)", "dino_vitb16"),
    "dreamsim-open-clip-vitb32": _dreamsim("DreamSim (OpenCLIP ViT-B/32)", "open_clip_vitb32"),
    "dreamsim-clip-vitb32": _dreamsim("DreamSim (CLIP ViT-B/32)", "clip_vitb32"),
    "dreamsim-dinov2-vitb14": _dreamsim("DreamSim (DINOv2 ViT-B/14)", "dinov2_vitb14"),
    "lipsim-pretrained": Baseline("lipsim", "LipSim (pretrained)", f"the pretrained checkpoint {_LIPSIM}"),
    "lipsim-0.2": Baseline("lipsim", "LipSim (margin 0.2)", f"the checkpoint of margin 0.2 {_LIPSIM}"),
    "lipsim-0.5": Baseline("lipsim", "LipSim (margin 0.5)", f"the checkpoint of margin 0.5 {_LIPSIM}"),
    "lipsim-lite": Baseline("lipsim", "LipSim lite (ours)"),
    "lpips-alex": Baseline("lpips", "LPIPS (AlexNet)", free_size=True),
    "lpips-vgg": Baseline("lpips", "LPIPS (VGG)", free_size=True),
    "lpips-squeeze": Baseline("lpips", "LPIPS (SqueezeNet)", free_size=True),
    "r-lpips": Baseline(
        "lpips", "R-LPIPS (AlexNet)", "checkpoints/latest_net_linf_ref.pth of SaraGhazanfari/R-LPIPS on GitHub", True
    ),
    "ssim": Baseline("pixel", "SSIM", free_size=True),
    "ms-ssim": Baseline("pixel", "MS-SSIM", free_size=True),
    "psnr": Baseline("pixel", "PSNR", free_size=True),
    "l1": Baseline("pixel", "l_1", free_size=True),
    "l2": Baseline("pixel", "l_2", free_size=True),
    "linf": Baseline("pixel", "l_inf", free_size=True),
}
