"""The plug-in for pyiqa: by the registration that the package's entry point names, and as pyiqa calls a metric.

pyiqa itself, whose licence is non-commercial, is not installed for the tests: the last one runs where it is.
"""

import importlib.util
import sys
import types
from importlib import metadata
from typing import Any

import pytest
import torch

from rclip_metric import RobustPerceptualDistance
from rclip_metric.compat.pyiqa import PyiqaDistance, register

from support.images import noise


def test_nothing_of_pyiqa_is_imported_or_required() -> None:
    assert "pyiqa" not in sys.modules
    assert not any("pyiqa" in requirement for requirement in metadata.requires("rclip-metric") or [])


def test_the_network_is_the_distance_with_a_column_as_pyiqa_wants_it() -> None:
    x, y = noise(2, 3, 3, 64, 64)
    network = PyiqaDistance(model="tiny", squared=True)
    assert torch.equal(network(x, y)[:, 0], RobustPerceptualDistance("tiny", squared=True)(x, y))


def test_what_is_registered(monkeypatch: pytest.MonkeyPatch) -> None:
    known: dict[str, Any] = {}
    configs: dict[str, Any] = {}

    class Registry:
        def register(self, cls: type, name: str, override: bool) -> None:
            assert override
            known[name] = cls

    modules: dict[str, dict[str, Any]] = {
        "pyiqa": {},
        "pyiqa.utils": {},
        "pyiqa.utils.registry": {"ARCH_REGISTRY": Registry()},
        "pyiqa.default_model_configs": {"DEFAULT_CONFIGS": configs},
    }
    for name, content in modules.items():
        module = types.ModuleType(name)
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, name, module)
    names = register()
    assert {"tiny", "r-lite-f", "r-clip-f"} <= set(names) == set(configs)
    assert "r-clip-f+lora" not in names  # published as plain files: there is nothing to load by its name
    options = dict(configs["tiny"]["metric_opts"])
    network = known[options.pop("type")](**options)
    assert network.metric.encoder.name == "tiny" and configs["tiny"]["lower_better"]
    assert str(round(network.metric.score_range[1], 3)) in configs["tiny"]["score_range"]


@pytest.mark.skipif(importlib.util.find_spec("pyiqa") is None, reason="pyiqa is not installed (non-commercial licence)")
def test_pyiqa_itself_makes_and_calls_it() -> None:
    import pyiqa

    register()
    metric = pyiqa.create_metric("tiny", device="cpu")
    x, y = noise(2, 3, 3, 64, 64)
    assert metric.lower_better
    assert torch.equal(metric(x, y)[:, 0], RobustPerceptualDistance("tiny")(x, y))
    loss = pyiqa.create_metric("tiny", device="cpu", as_loss=True)(x.requires_grad_(), y)
    (gradient,) = torch.autograd.grad(loss, x)
    assert gradient.abs().max() > 0
