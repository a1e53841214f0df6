"""Which detectors there are, by name."""

from __future__ import annotations

from rclip_metric.detectors.base import Detector
from rclip_metric.detectors.laion import Embedder, load_laion
from rclip_metric.detectors.opennsfw import load_opennsfw
from rclip_metric.errors import UnknownModelError
from rclip_metric.plugins import call_plugin, is_plugin

_PARTS = ("name", "threshold", "device", "describe", "preprocess", "logits")
_SUFFIX = ".safetensors"
# What LAION publishes, in LAION-AI/CLIP-based-NSFW-Detector on GitHub.
_LAION = {"laion-vit-l-14": "clip_autokeras_binary_nsfw.zip", "laion-vit-b-32": "clip_autokeras_nsfw_b32.zip"}


def load_detector(
    name: str, device: str = "cpu", *, base: str | Embedder | None = None, threshold: float | None = None
) -> Detector:
    """Load the detector of a name.

    Args:
        name: `opennsfw`; the path of a head that `rclip-metric train convert-detector` wrote (.safetensors); or
            `module:function`, a function that is called with the device and returns a `Detector`.
        device: cpu, cuda, cuda:1, ...
        base: What gives a head its embeddings, a model or its name; None for the one that the file names.
        threshold: An image is unsafe from this score on, in [0, 1]; None for the detector's own.

    Raises:
        UnknownModelError: There is no such detector, or it has to be converted first; says which there are.
        WeightsError: Its weights are missing, damaged or others.
        ValueError: The module, the function, the base or the threshold is not what it should be.

    Example:
        >>> load_detector("nudes")
        Traceback (most recent call last):
            ...
        rclip_metric.errors.UnknownModelError: 'nudes' is no detector that is known here: there are opennsfw, ...
    """
    if threshold is not None and not 0 <= threshold <= 1:
        raise ValueError(f"a detector's threshold is a score from 0 to 1, got {threshold}")
    head = name.endswith(_SUFFIX)
    if base is not None and not head:
        raise ValueError(f"a base goes with a head on embeddings (a {_SUFFIX} file), and {name} is none")
    if name == "opennsfw":
        detector: Detector = load_opennsfw().to(device)
    elif head:
        detector = load_laion(name, base).to(device)
    elif is_plugin(name):
        detector = call_plugin(name, device, what="detector", parts=_PARTS, see="rclip_metric.detectors.base")
    else:
        raise _unknown(name)
    if threshold is not None:
        detector.threshold = threshold
    return detector


def _unknown(name: str) -> UnknownModelError:
    if name in _LAION:
        return UnknownModelError(
            f"{name} has to be converted first: get {_LAION[name]} from LAION-AI/CLIP-based-NSFW-Detector on GitHub, "
            f"run rclip-metric train convert-detector {_LAION[name]} {name}{_SUFFIX}, and pass that file."
        )
    return UnknownModelError(
        f"{name!r} is no detector that is known here: there are opennsfw, the head of a detector of LAION's once it is "
        f"converted (a {_SUFFIX} file), and your own, as module:function."
    )
