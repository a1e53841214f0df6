"""Which detectors there are, by name."""

from __future__ import annotations

from rclip_metric.detectors.base import Detector
from rclip_metric.detectors.opennsfw import load_opennsfw
from rclip_metric.errors import UnknownModelError
from rclip_metric.plugins import call_plugin, is_plugin

_PARTS = ("name", "threshold", "device", "describe", "preprocess", "logits")


def load_detector(name: str, device: str = "cpu", *, threshold: float | None = None) -> Detector:
    """Load the detector of a name.

    Args:
        name: `opennsfw`, or `module:function`, a function that is called with the device and returns a `Detector`.
        device: cpu, cuda, cuda:1, ...
        threshold: An image is unsafe from this score on, in [0, 1]; None for the detector's own.

    Raises:
        UnknownModelError: There is no such detector; says which there are.
        WeightsError: Its weights are missing or others.
        ValueError: The module, the function or the threshold is not what it should be.

    Example:
        >>> load_detector("nudes")
        Traceback (most recent call last):
            ...
        rclip_metric.errors.UnknownModelError: 'nudes' is no detector that is known here: there are opennsfw and ...
    """
    if threshold is not None and not 0 <= threshold <= 1:
        raise ValueError(f"a detector's threshold is a score from 0 to 1, got {threshold}")
    if name == "opennsfw":
        detector: Detector = load_opennsfw().to(device)
    elif is_plugin(name):
        detector = call_plugin(name, device, what="detector", parts=_PARTS, see="rclip_metric.detectors.base")
    else:
        raise UnknownModelError(
            f"{name!r} is no detector that is known here: there are opennsfw and your own, as module:function."
        )
    if threshold is not None:
        detector.threshold = threshold
    return detector
