"""The examples for Lightning, Ignite and Accelerate train, each where its package is installed."""

import importlib.util
import math

import pytest

from support.programs import load_example

PACKAGES = {"with_lightning": "lightning", "with_ignite": "ignite", "with_accelerate": "accelerate"}


# What these packages, and what they import, do in deprecated ways.
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("example", PACKAGES)
def test_training_with_the_distance_brings_it_down(example: str, capsys: pytest.CaptureFixture[str]) -> None:
    package = PACKAGES[example]
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed")
    module = load_example(example)
    found = module.main(["--epochs", "4"])
    assert len(found) == 5 and all(math.isfinite(value) for value in found)
    assert found[-1] < 0.9 * found[0]
    assert f"{found[0]:.4f}" in capsys.readouterr().out
    if example == "with_lightning":
        state = module.Restorer("tiny").state_dict()
        assert state and all(key.startswith("network.") for key in state)  # a checkpoint holds no backbone
