"""Which versions these are, and on what they run: a line without torch, and everything with it."""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rclip_metric import __version__
from rclip_metric.printing import say

_LIBRARIES = ("torchvision", "open_clip_torch", "timm", "huggingface_hub", "safetensors", "numpy", "pillow")


class ShowVersion(argparse.Action):
    """The option --version: one line, for which torch is not imported."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        """Print the line, and leave."""
        say(version_line())
        parser.exit()


def version_line() -> str:
    """Say which versions are installed, and what torch was built for, without importing it.

    Example:
        >>> version_line().startswith(f"rclip-metric {__version__} (torch ")
        True
    """
    version, built_for = _installed_torch()
    return f"rclip-metric {__version__} (torch {version} for {built_for}, Python {platform.python_version()})"


def _installed_torch() -> tuple[str, str]:
    """Read version and accelerator from the file that torch's build wrote: unlike the metadata, it has both."""
    found = find_spec("torch")
    if found is None or found.origin is None:
        return "is missing", "nothing"
    written = Path(found.origin).with_name("version.py")
    stated = dict(re.findall(r"(?m)^(\w+)\b[^=\n]*= '(.+)'$", written.read_text() if written.exists() else ""))
    version = stated.get("__version__", "of no known version")
    kinds = {"cuda": "CUDA", "hip": "ROCm", "xpu": "XPU"}
    accelerator = next((f"{shown} {stated[kind]}" for kind, shown in kinds.items() if kind in stated), None)
    return version, accelerator or ("Apple's GPUs and the CPU" if platform.system() == "Darwin" else "the CPU")


def add_version(commands: Any, parents: Sequence[argparse.ArgumentParser], raw: dict[str, Any]) -> None:
    """Add `version`."""
    parser = commands.add_parser(
        "version", help="versions and devices, as a report of a bug needs them", parents=parents, **raw
    )
    parser.set_defaults(command=_version)


def _version(args: argparse.Namespace) -> int:
    facts = about()
    if args.json:
        say(json.dumps(facts))
        return 0
    for name, value in facts.items():
        say(f"{name.replace('_', ' '):<16} {', '.join(value) if isinstance(value, list) else value}")
    return 0


def about() -> dict[str, Any]:
    """State the versions of what this package stands on, and the devices that it finds; imports torch.

    Example:
        >>> about()["rclip_metric"] == __version__
        True
    """
    from importlib import metadata

    import torch
    from huggingface_hub import constants

    from rclip_metric.cli.run import chosen_device

    threads = f"{torch.get_num_threads()} threads of {os.cpu_count()} cores"
    cuda = [f"cuda:{i} {torch.cuda.get_device_name(i)}" for i in range(torch.cuda.device_count())]
    return {
        "rclip_metric": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "torch": torch.__version__,
        "torch_for": _installed_torch()[1],
        "device": chosen_device("auto"),
        "devices": ["cpu", *cuda, *(["mps"] if torch.backends.mps.is_available() else [])],
        "cpu": f"{torch.backends.cpu.get_cpu_capability()}, {threads}",
        **{name: metadata.version(name) for name in _LIBRARIES},
        "cache": str(constants.HF_HUB_CACHE),
        "offline": "yes (HF_HUB_OFFLINE)" if constants.HF_HUB_OFFLINE else "no",
    }
