"""Components: swappable strategies. Each is one file in its folder and one line of config.

`masking: {name: tube, args: {ratio: 0.9}}` selects the class in `pretrain/masking/tube.py` and passes
`ratio=0.9` to its constructor. A component is found by file name inside its own folder and never by a dotted
path, so a config or a checkpoint cannot name other code.
"""

import difflib
import importlib
import inspect
import pkgutil
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from kinemae.data_tools.config_hints import SYNONYMS

Interface = TypeVar("Interface")

# Accepted types by annotation. A constructor checks arguments with other annotations itself.
_ACCEPTED: dict[Any, tuple[type, ...]] = {float: (float, int), int: (int,), str: (str,), bool: (bool,)}


@dataclass(frozen=True, kw_only=True)
class Component:
    """A component in a config: its file name and the keyword arguments of its constructor."""

    name: str
    args: dict[str, Any] = field(default_factory=dict)


def is_component(kind: Any) -> bool:
    """Check whether the type of a config field is `Component` or a subclass."""
    return isinstance(kind, type) and issubclass(kind, Component)


def component_names(folder: str) -> list[str]:
    """Names of the components in a package, such as `kinemae.pretrain.masking`."""
    package = importlib.import_module(folder)
    return sorted(module.name for module in pkgutil.iter_modules(package.__path__) if module.name != "base")


def build_component(
    folder: str, component: Component, interface: type[Interface], *, key: str | None = None
) -> Interface:
    """Build the component that a config names.

    Args:
        folder: the package of this kind of components.
        interface: the base class in the folder's `base.py`.
        key: the config key if it is not the name of the folder, as in `model.attention`.

    Raises:
        ValueError: no such component, an unknown or missing argument, or an invalid value.
    """
    kind = folder.rpartition(".")[2].removesuffix("s")  # the config key is `head`, the folder heads/
    names = component_names(folder)
    if component.name not in names:
        raise ValueError(
            f"{key or kind}.name: no {kind} named {component.name!r}{_suggest(component.name, names)}"
        )
    found = component_class(folder, component.name, interface)
    return found(**_checked_arguments(found, component, f"{key or kind}.args"))


def accepts_argument(folder: str, component: Component, interface: type, argument: str) -> bool:
    """Check whether the constructor of an existing component has an argument."""
    if component.name not in component_names(folder):
        return False
    return argument in inspect.signature(component_class(folder, component.name, interface)).parameters


def named_components(given: Any, key: str, kind: str) -> dict[str, Any]:
    """Normalize several components to a mapping of names to settings; a bare name gets `{}`.

    Args:
        given: a mapping, one name, or a list of names.
        kind: the kind of components, for messages.

    Raises:
        ValueError: none of these, empty, or with duplicates; the message names `key`.
    """
    if isinstance(given, str):
        given = [given]
    if isinstance(given, list):
        is_named = all(isinstance(name, str) for name in given) and len(set(given)) == len(given)
        given = dict.fromkeys(given) if is_named else given
    if not isinstance(given, dict) or not given:
        raise ValueError(
            f"{key} must name at least one {kind}, each once, as in [NAME, NAME] or {{NAME: {{...}}}}, "
            f"got {given!r}"
        )
    return {name: {} if settings is None else settings for name, settings in given.items()}


def component_class(folder: str, name: str, interface: type[Interface]) -> type[Interface]:
    """The class of an existing component: the only one in its file with this interface."""
    module = importlib.import_module(f"{folder}.{name}")
    found = [
        value
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, interface) and value.__module__ == module.__name__
    ]
    assert len(found) == 1, f"{module.__name__} must define exactly one {interface.__name__}, found {found}"
    return found[0]


def _checked_arguments(found: type, component: Component, key: str) -> dict[str, Any]:
    """Convert whole floats to integers where the constructor expects integers."""
    parameters = inspect.signature(found).parameters
    checked = {}
    for argument, value in component.args.items():
        if argument not in parameters:
            raise ValueError(
                f"{key}: {component.name} has no argument {argument!r}"
                f"{_suggest_argument(argument, key, parameters)}"
            )
        annotation = parameters[argument].annotation
        is_whole = annotation is int and isinstance(value, float) and value.is_integer()
        checked[argument] = int(value) if is_whole else value
        _check_type(checked[argument], annotation, f"{key}.{argument}")
    for name, parameter in parameters.items():
        if parameter.default is inspect.Parameter.empty and name not in component.args:
            raise ValueError(f"{key}: {component.name} needs {name}; set {key}.{name}=...")
    return checked


def _check_type(value: Any, annotation: Any, key: str) -> None:
    accepted = _ACCEPTED.get(annotation)
    if accepted and (not isinstance(value, accepted) or (isinstance(value, bool) and annotation is not bool)):
        raise ValueError(f"{key} must be of type {annotation.__name__}, got {value!r}")


def _suggest_argument(given: str, key: str, known: Iterable[str]) -> str:
    """Suggest an argument by its name in other projects, else by its spelling."""
    hints = {hint.removeprefix(f"{key}.") for hint in SYNONYMS.get(given.lower(), ())}
    named = [name for name in known if name in hints]
    return f"; did you mean {named[0]!r}?" if named else _suggest(given, list(known))


def _suggest(given: str, known: list[str]) -> str:
    close = difflib.get_close_matches(given, known, n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; expected one of {', '.join(known)}"
