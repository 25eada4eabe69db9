"""Subpackages that can be called: `kinemae.pretrain("demo", ...)` runs the program of the subpackage."""

import importlib
import sys
from types import ModuleType
from typing import Any


class CallableModule(ModuleType):
    """A module whose call is a call of one of its functions.

    Attributes:
        _called: module and name of the function, which is imported at the first call.
    """

    _called: tuple[str, str]

    def __call__(self, *arguments: Any, **settings: Any) -> Any:
        module, function = self._called
        return getattr(importlib.import_module(module), function)(*arguments, **settings)


def make_callable(name: str, module: str, function: str) -> None:
    """Make the module `name` callable; for use in its `__init__.py`."""
    package = sys.modules[name]
    package.__class__ = CallableModule
    package.__dict__.update(_called=(module, function))
