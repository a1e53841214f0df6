"""What users bring along: a function of theirs, named on the command line as `module:function`."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from typing import Any


def is_plugin(name: str) -> bool:
    """Tell whether a name is `module:function`, and not that of a file.

    Example:
        >>> is_plugin("my_detectors:build"), is_plugin("opennsfw")
        (True, False)
    """
    return ":" in name and not os.path.exists(name)


def call_plugin(name: str, device: str, *, what: str, parts: Sequence[str], see: str) -> Any:
    """Import the module of `module:function` and call the function with a device.

    Modules are looked for where Python looks, and in the folder where the user stands.

    Args:
        name: `module:function`.
        device: cpu, cuda, cuda:1, ...
        what: What the function returns, in a word, for the error.
        parts: The attributes that it must have.
        see: The module that describes them, for the error.

    Raises:
        ValueError: The module, the function or what it returns is not what it should be.

    Example:
        >>> call_plugin("fractions:Fraction", "1/2", what="number", parts=["numerator"], see="numbers")
        Fraction(1, 2)
    """
    module, _, function = name.partition(":")
    if not {"", os.getcwd()} & set(sys.path):
        sys.path.append(os.getcwd())  # the console script, other than python -m, does not look where the user stands
    try:
        built = getattr(importlib.import_module(module), function)(device)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"the {what} {name} names no function that can be imported: {error}") from error
    except SystemExit as stop:  # an exit code of its own would pass for ours
        raise ValueError(f"the {what} {name} ended the program (exit {stop.code!r}) and returned no {what}") from stop
    missing = [part for part in parts if not hasattr(built, part)]
    if missing:
        raise ValueError(f"the {what} {name} is an object without {missing[0]!r}: see {see}")
    return built
