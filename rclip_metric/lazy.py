"""Packages whose public names are imported when they are used: what needs no torch, such as --help, need not wait."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from types import ModuleType
from typing import Any


class LazyPackage(ModuleType):
    """A package that `import_when_used` has been called for.

    A name can be that of its module too, as `attacks.pgd.pgd` is. In the package it always stands for what the module
    defines, as it does after `from .pgd import pgd`; the module is imported by its full name.

    Example:
        >>> import rclip_metric
        >>> isinstance(rclip_metric, LazyPackage), "score" in dir(rclip_metric)
        (True, True)
    """

    _places: Mapping[str, str] = {}

    def __getattr__(self, name: str) -> Any:
        """Import a public name, or a module that defines some."""
        if name not in self._places:
            if f".{name}" in self._places.values():
                return import_module(f".{name}", self.__name__)
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        # Not kept here: who replaces it in its module for a while, as tests do, has replaced it here for as long.
        return getattr(import_module(self._places[name], self.__name__), name)

    def __setattr__(self, name: str, value: object) -> None:
        """Set an attribute, but for a module in the place of a public name: imports put modules into their packages."""
        if not (name in self._places and isinstance(value, ModuleType)):
            super().__setattr__(name, value)

    def __dir__(self) -> list[str]:
        """List the public names too that were not used yet."""
        return sorted({*self.__dict__, *self._places})

    def __reduce__(self) -> tuple[Callable[[str], ModuleType], tuple[str]]:
        """Be pickled by name: cloudpickle does that by itself for plain modules alone."""
        return import_module, (self.__name__,)


def import_when_used(package: str, modules: Mapping[str, str]) -> None:
    """Let a package import each of its public names when it is first used (as PEP 562 does).

    The package imports them `if TYPE_CHECKING` as well, for those who read it without running it.

    Args:
        package: its `__name__`.
        modules: the public names, with spaces between, of each module; a leading dot stands for the package.

    Example:
        >>> import sys
        >>> sys.modules["shapes"] = ModuleType("shapes")
        >>> import_when_used("shapes", {"math": "pi tau"})
        >>> from shapes import pi
        >>> round(pi, 4)
        3.1416
        >>> del sys.modules["shapes"]
    """
    found = sys.modules[package]
    found.__dict__["_places"] = {name: module for module, names in modules.items() for name in names.split()}
    found.__class__ = LazyPackage
