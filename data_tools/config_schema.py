"""Config classes as schemas: their keys, the types of their values, and keys that exclude one another."""

import dataclasses
import functools
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Any

from kinemae.data_tools.components import is_component
from kinemae.data_tools.config_hints import unknown_key
from kinemae.data_tools.overrides import lacks_space, leaves, with_space

_SCALARS = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}

Tree = dict[str, Any]
"""A nested mapping of keys to values, as YAML gives it."""


@functools.cache
def kinds(schema: type) -> dict[str, Any]:
    """The type of each field; None is removed from optional types."""
    hints = typing.get_type_hints(schema)
    return {field.name: _bare(hints[field.name]) for field in dataclasses.fields(schema)}


def nodes(schema: type, prefix: str = "") -> Iterator[tuple[str, type]]:
    """The dotted key and class of every dataclass in a schema, the schema first; parts are included."""
    yield prefix, schema
    for name, kind in kinds(schema).items():
        if dataclasses.is_dataclass(kind):
            yield from nodes(typing.cast(type, kind), f"{prefix}.{name}" if prefix else name)


def component_keys(schema: type) -> list[str]:
    """The dotted keys of a schema that hold a part."""
    return [key for key, kind in nodes(schema) if is_component(kind)]


def all_keys(schema: type) -> list[str]:
    """Every dotted key of a schema, those of nested dataclasses too."""
    return [f"{key}.{name}" if key else name for key, node in nodes(schema) for name in kinds(node)]


def fit(schema: type, tree: Mapping[str, Any]) -> Tree:
    """Normalise a tree for the schema: a bare name becomes a part, and whole floats become integers.

    Raises:
        ValueError: a key is not in the schema, or a value is given where a mapping is expected.
    """
    return _fit_node(schema, schema, tree, "")


def value_at(tree: Any, key: str) -> Any:
    """The value at a dotted key; None where there is none."""
    for name in key.split(".") if key else ():
        tree = tree.get(name) if isinstance(tree, Mapping) else None
    return tree


def choose_alternatives(schema: type, current: Tree, tree: Tree) -> tuple[Tree, list[str]]:
    """Resolve mutually exclusive keys: a key set in `tree` unsets the others.

    A class lists them as `ALTERNATIVES`: a key that is chosen by any value but null, or `key=value`.

    Args:
        current: the config into which the tree is merged.

    Returns:
        Values to merge into the config before the tree, and a log sentence for each value that is unset. A
        null in the tree that requests the same is replaced by the default.
    """
    unset: Tree = {}
    said: list[str] = []
    for prefix, node in nodes(schema):
        given, before = value_at(tree, prefix), value_at(current, prefix) or {}
        alternatives = _alternatives(node)
        if not alternatives or not isinstance(given, dict):
            continue
        chosen = [name for name, value in alternatives.items() if _is_chosen(given.get(name), value)]
        for name in alternatives.keys() - set(chosen) if len(chosen) == 1 else ():
            default = _default(node, name)
            if before.get(name) != default and given.get(name) is None:
                _put(unset, f"{prefix}.{name}", default)
                pair = f"{prefix}.{chosen[0]}={given[chosen[0]]}"
                said.append(f"{pair}: {prefix}.{name}={before.get(name)} of the config is left out")
        _settle_nulls(node, prefix, given, {**before, **(value_at(unset, prefix) or {}), **given})
    return unset, sorted(said)


def _settle_nulls(node: type, prefix: str, given: Tree, after: Tree) -> None:
    """Replace a null of one alternative by the default if another alternative is set."""
    alternatives = _alternatives(node)
    for name in [name for name in alternatives if name in given and given[name] is None]:
        others = [other for other in alternatives if other != name]
        if any(_is_chosen(after.get(other), alternatives[other]) for other in others):
            given[name] = _default(node, name)
        elif _default(node, name) is not None:
            places = [
                f"{prefix}.{other}={value}" if value else f"{prefix}.{other}"
                for other, value in alternatives.items()
                if other != name
            ]
            raise ValueError(
                f"config key {prefix}.{name}: expected a value, or {' or '.join(places)} in its place, "
                "got null"
            )


def _fit_node(root: type, node: type, tree: Mapping[str, Any], prefix: str) -> Tree:
    fitted = {}
    for name, value in tree.items():
        key = f"{prefix}.{name}" if prefix else str(name)
        if name not in kinds(node):
            full = next(leaves(value, key))[0] if isinstance(value, dict) else key
            raise ValueError(unknown_key(full, all_keys(root), parts=component_keys(root)))
        kind = kinds(node)[name]
        if value is None and dataclasses.is_dataclass(kind) and name not in _optional(node):
            raise ValueError(f"config key {key}: {_expected(typing.cast(type, kind), key, value)}, got null")
        fitted[str(name)] = _fit_value(root, kind, value, key)
    return fitted


def _fit_value(root: type, kind: Any, value: Any, key: str) -> Any:
    if value is None or (isinstance(value, str) and ("${" in value or value == "???")):
        return value
    if is_component(kind) and isinstance(value, str):
        if lacks_space(value):
            raise ValueError(
                f"{key}: expected a space after the colon of {value!r}; "
                f"fix: write '{key}={{{with_space(value)}}}'"
            )
        return {"name": value}
    if dataclasses.is_dataclass(kind):
        if not isinstance(value, Mapping):
            raise ValueError(
                f"config key {key}: {_expected(typing.cast(type, kind), key, value)}, got {value!r}"
            )
        return _fit_node(root, typing.cast(type, kind), value, key)
    if kind is int and isinstance(value, float) and value.is_integer():
        return int(value)
    if typing.get_origin(kind) in (list, tuple):
        if not isinstance(value, list):
            raise ValueError(f"config key {key}: expected a list, as in '{key}=[A, B]', got {value!r}")
        return [_fit_value(root, typing.get_args(kind)[0], child, key) for child in value]
    if kind in _SCALARS and isinstance(value, list | dict):
        raise ValueError(f"config key {key}: expected {_SCALARS[kind]}, got {value!r}")
    return value


def _expected(node: type, key: str, value: Any) -> str:
    if is_component(node):
        return "expected a name, or a mapping {name: ..., args: {...}}"
    if "size" in kinds(node) and isinstance(value, str | int):
        return f"expected a mapping of its keys, as in {key}.size={value}"
    return f"expected a mapping of its keys ({', '.join(kinds(node))})"


@functools.cache
def _optional(schema: type) -> frozenset[str]:
    """The fields that may be None."""
    hints = typing.get_type_hints(schema)
    return frozenset(name for name, hint in hints.items() if type(None) in typing.get_args(hint))


def _bare(hint: Any) -> Any:
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        inner = [kind for kind in typing.get_args(hint) if kind is not type(None)]
        return inner[0] if len(inner) == 1 else hint
    return hint


def _alternatives(node: type) -> dict[str, str | None]:
    """By key, the value that selects it; None if any value does."""
    entries: tuple[str, ...] = getattr(node, "ALTERNATIVES", ())
    pairs = [entry.partition("=") for entry in entries]
    return {name: value or None for name, _, value in pairs}


def _is_chosen(given: Any, choosing: str | None) -> bool:
    return given is not None if choosing is None else given == choosing


def _default(node: type, name: str) -> Any:
    return next(field.default for field in dataclasses.fields(node) if field.name == name)


def _put(tree: Tree, key: str, value: Any) -> None:
    above, _, name = key.rpartition(".")
    for step in above.split("."):
        tree = tree.setdefault(step, {})
    tree[name] = value
