"""Parts: swappable strategies, each one file in its folder and one line of config.

`masking: {name: tube, args: {ratio: 0.9}}` means the class in `pretrain/masking/tube.py`, built with
`ratio=0.9`. A part is found by file name inside its own folder and never by a dotted path, so a config
or a checkpoint cannot name code from elsewhere.
"""

import difflib
import importlib
import inspect
import pkgutil
from dataclasses import dataclass, field
from typing import Any, TypeVar

Interface = TypeVar("Interface")

# What fits where a constructor says float, int, str or bool; other types are the part's own to check.
_FITTING: dict[Any, tuple[type, ...]] = {float: (float, int), int: (int,), str: (str,), bool: (bool,)}


@dataclass(frozen=True, kw_only=True)
class Part:
    """A part as it stands in a config: the file's name and the constructor's keyword arguments."""

    name: str
    args: dict[str, Any] = field(default_factory=dict)


def part_names(folder: str) -> list[str]:
    """Names of the parts in a folder given as a package, as in `pretrain.masking`."""
    package = importlib.import_module(folder)
    return sorted(module.name for module in pkgutil.iter_modules(package.__path__) if module.name != "base")


def build_part(folder: str, part: Part, interface: type[Interface], *, key: str | None = None) -> Interface:
    """Build the part that a config names.

    Args:
        folder: the package that holds the parts of this kind.
        interface: the class in the folder's `base.py` that every part of it implements.
        key: the config key, where it is not the folder's own name, as in `model.attention`.

    Raises:
        ValueError: no such part, an unknown or missing argument, or an argument the part refuses.
    """
    kind = folder.rpartition(".")[2].removesuffix("s")  # the config key is `head`, the folder heads/
    names = part_names(folder)
    if part.name not in names:
        raise ValueError(f"{key or kind}.name: no {kind} named {part.name!r}{_suggest(part.name, names)}")
    part_class = _only_class(folder, part.name, interface)
    _check_arguments(part_class, part, f"{key or kind}.args")
    return part_class(**part.args)


def _only_class(folder: str, name: str, interface: type[Interface]) -> type[Interface]:
    module = importlib.import_module(f"{folder}.{name}")
    found = [
        value
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, interface) and value.__module__ == module.__name__
    ]
    assert len(found) == 1, f"{module.__name__} must define exactly one {interface.__name__}, found {found}"
    return found[0]


def _check_arguments(part_class: type, part: Part, key: str) -> None:
    parameters = inspect.signature(part_class).parameters
    for argument in part.args:
        if argument not in parameters:
            raise ValueError(
                f"{key}: {part.name} has no argument {argument!r}{_suggest(argument, list(parameters))}"
            )
        _check_type(part.args[argument], parameters[argument].annotation, f"{key}.{argument}")
    for name, parameter in parameters.items():
        if parameter.default is inspect.Parameter.empty and name not in part.args:
            raise ValueError(f"{key}: {part.name} needs {name}; set {key}.{name}=...")


def _check_type(value: Any, annotation: Any, key: str) -> None:
    fitting = _FITTING.get(annotation)
    if fitting and (not isinstance(value, fitting) or (isinstance(value, bool) and annotation is not bool)):
        raise ValueError(f"{key} must be of type {annotation.__name__}, got {value!r}")


def _suggest(given: str, known: list[str]) -> str:
    close = difflib.get_close_matches(given, known, n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; there is {', '.join(known) or 'none'}"
