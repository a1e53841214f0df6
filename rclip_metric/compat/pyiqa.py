"""The robust distance among pyiqa's metrics, for who has pyiqa installed: it is none of our dependencies.

By the entry point `pyiqa.archs` of this package pyiqa finds the network, and after `register` its names:

    import pyiqa
    from rclip_metric.compat.pyiqa import register

    register()
    metric = pyiqa.create_metric("r-lite-f", device="cpu")
    metric("a.png", "b.png")

pyiqa's licence is non-commercial (PolyForm Noncommercial 1.0.0).
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from rclip_metric.metric import RobustPerceptualDistance
from rclip_metric.weights import get_spec, model_names

_TYPE = "RobustPerceptualDistance"


class PyiqaDistance(nn.Module):
    """`RobustPerceptualDistance` as pyiqa calls its networks.

    Args:
        settings: Arguments of `RobustPerceptualDistance`.

    Example:
        >>> import torch
        >>> PyiqaDistance(model="tiny")(torch.zeros(2, 3, 64, 64), torch.ones(2, 3, 64, 64)).shape
        torch.Size([2, 1])
    """

    def __init__(self, **settings: Any) -> None:
        """Load the model."""
        super().__init__()
        self.metric = RobustPerceptualDistance(**settings)
        self.training = False

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Compute the distance of each pair, (N, 3, H, W) in [0, 1] each: (N, 1)."""
        distance: Tensor = self.metric(x, y)
        return distance[:, None]


def register_archs() -> None:
    """Tell pyiqa of the network; pyiqa calls this itself by the entry point.

    Raises:
        ImportError: pyiqa is not installed.
    """
    from pyiqa.utils.registry import ARCH_REGISTRY

    ARCH_REGISTRY.register(PyiqaDistance, name=_TYPE, override=True)


def register() -> list[str]:
    """Let `pyiqa.create_metric` know every model of the manifest by its name; no weights are read.

    Returns:
        The names: all that have weights to be loaded by name.

    Raises:
        ImportError: pyiqa is not installed.
    """
    from pyiqa.default_model_configs import DEFAULT_CONFIGS

    register_archs()
    names = [name for name in model_names() if get_spec(name).source != "local"]
    for name in names:
        DEFAULT_CONFIGS[name] = {
            "metric_opts": {"type": _TYPE, "model": name},
            "metric_mode": "FR",
            "lower_better": True,
            "score_range": "0, 1.414",
        }
    return names
