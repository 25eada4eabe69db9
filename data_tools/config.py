"""Configs: a YAML file, then `a.b=c` overrides, checked against a frozen dataclass.

Only this file imports omegaconf. A config class is a keyword-only frozen dataclass. Its `__post_init__`
raises `ValueError` with the full key of a wrong value. `ALTERNATIVES` of a class lists mutually exclusive
keys, see `_unset_alternatives`.
"""

import dataclasses
import functools
import logging
import math
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

import yaml
from omegaconf import MISSING, DictConfig, OmegaConf, flag_override
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from kinemae.data_tools.components import is_component
from kinemae.data_tools.config_hints import unknown_key, wrong_type
from kinemae.data_tools.overrides import (
    ConfigError,
    check_overrides,
    check_tree,
    first_line,
    is_missing_space,
    leaves,
    parse_override,
    require,
    with_space,
    yaml_problem,
)

__all__ = [
    "MISSING", "all_keys", "component_keys", "is_list_key", "load_config", "parse_override", "require",
    "to_yaml", "with_defaults",
]  # fmt: skip

Config = TypeVar("Config")
Tree = dict[str, Any]
"""A nested mapping of keys to values, as YAML gives it."""

_SCALARS = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}
_TEXT, _NULL, _MERGE = (f"tag:yaml.org,2002:{name}" for name in ("str", "null", "merge"))
_NO_WRAP = 1 << 30
_log = logging.getLogger("kinemae")


def load_config(schema: type[Config], path: str | Path | None, overrides: Sequence[str]) -> Config:
    """Build a checked config from a file and overrides.

    A component may be given by its name alone, which selects its default arguments. An override of one of
    several mutually exclusive keys unsets the others and logs this.

    Args:
        schema: the config dataclass. Its defaults come first, then the file, then the overrides.
        path: a YAML file, or None for the defaults alone.
        overrides: `a.b=c` strings; values are parsed as YAML.

    Raises:
        ValueError: unreadable file, unknown key, wrong type, missing value, NaN or infinity, or an error of
            the dataclass itself; the message names the key.
    """
    OmegaConf.clear_resolver("oc.env")  # the resolved config is written to the run folder: no secrets in it
    check_overrides(overrides)
    merged = OmegaConf.structured(schema)
    OmegaConf.set_readonly(merged, False)
    try:
        if path is not None:
            merged = _merge(schema, merged, _read_file(schema, Path(path)))
        for mapping in _replaced_mappings(schema, overrides):
            merged[mapping] = {}
        given, named_only = _read_overrides(schema, overrides)
        merged = _drop_replaced_arguments(schema, merged, given, named_only)
        merged = _merge(schema, merged, given)
        OmegaConf.resolve(merged)
        missing = sorted(OmegaConf.missing_keys(merged))
        if missing:
            raise ConfigError(
                f"no value for {', '.join(missing)}: set it in the config or as {missing[0]}=..."
            )
        _require_finite(OmegaConf.to_container(merged), "")
        return cast(Config, OmegaConf.to_object(merged))
    except MissingMandatoryValue as error:
        raise ConfigError(f"a value is missing: {first_line(error)}") from error
    except OmegaConfBaseException as error:
        key = getattr(error, "full_key", None)
        message = wrong_type(first_line(error))
        raise ConfigError(f"config key {key}: {message}" if key else message) from error


def to_yaml(config: Any) -> str:
    """Write a config dataclass as YAML that `load_config` reads back to an equal config."""
    return yaml.safe_dump(dataclasses.asdict(config), sort_keys=False, allow_unicode=True)


def with_defaults(schema: type[Any], tree: Mapping[str, Any]) -> dict[str, Any]:
    """Fill a config's missing keys with the schema's defaults."""
    defaults = OmegaConf.to_container(OmegaConf.structured(schema))
    assert isinstance(defaults, dict)
    return _filled(dict(tree), defaults)


def component_keys(schema: type) -> list[str]:
    """The dotted keys of a schema that hold a component."""
    return [key for key, kind in _dataclasses(schema) if is_component(kind)]


def all_keys(schema: type) -> list[str]:
    """Every dotted key of a schema, including those of nested dataclasses."""
    return [
        f"{key}.{name}" if key else name for key, node in _dataclasses(schema) for name in _field_types(node)
    ]


def is_list_key(schema: type, key: str) -> bool:
    """Check whether a dotted key of a schema holds a list."""
    return typing.get_origin(_kind_at(schema, key)) in (list, tuple)


def _merge(schema: type, merged: Any, tree: Tree) -> Any:
    """Merge a tree of values into a config and unset the keys that these values exclude."""
    unset, messages = _unset_alternatives(schema, _plain(merged), tree)
    for message in sorted(messages):
        _log.info("%s", message)
    return OmegaConf.merge(merged, unset, tree)


def _replaced_mappings(schema: type, overrides: Sequence[str]) -> list[str]:
    """Mappings of scalars that an override `key={...}` replaces, such as the hosts of a cluster file."""
    keys = [override.partition("=")[0] for override in overrides]
    return [key for key in keys if typing.get_origin(_field_types(schema).get(key)) is dict]


def _read_overrides(schema: type, overrides: Sequence[str]) -> tuple[Tree, set[str]]:
    """Merge overrides into one tree, in their order. Also return the components given by name only.

    A component of another name than that of an earlier override replaces it with its arguments.
    """
    named_only: set[str] = set()
    merged: Any = OmegaConf.create({})
    for override in overrides:
        key, _, text = override.partition("=")
        written = _keep_text(schema, yaml.compose(text, Loader=yaml.SafeLoader), key)
        tree = _plain(OmegaConf.from_dotlist([f"{key}={written}"]))
        named_only |= {key for key in component_keys(schema) if isinstance(_value_at(tree, key), str)}
        tree = _normalize(schema, schema, tree, "")
        merged = OmegaConf.merge(_drop_overridden_arguments(schema, merged, tree), tree)
    return _plain(merged), named_only


def _drop_overridden_arguments(schema: type, merged: Any, given: Tree) -> Any:
    """Drop the arguments of a component of earlier overrides if this one selects another component."""
    for key in component_keys(schema):
        before, name = OmegaConf.select(merged, key), _value_at(given, f"{key}.name")
        if name is not None and before and before.get("name") not in (None, name) and before.get("args"):
            _log.info("%s=%s: the arguments of %s in an earlier override are dropped", key, name, before.name)
            del before["args"]
    return merged


def _drop_replaced_arguments(schema: type, merged: Any, given: Tree, named_only: set[str]) -> Any:
    """Drop the file's arguments of a component if an override selects another component.

    A name alone selects the default arguments, so it also drops those of the same component.
    """
    current = _plain(merged)
    for key in component_keys(schema):
        name = _value_at(given, f"{key}.name")
        before = _value_at(current, key)
        if not isinstance(name, str) or not before or not before["args"]:
            continue
        if key in named_only or before["name"] != name:
            _log.info("%s=%s: the arguments of %s in the config are dropped", key, name, before["name"])
            component = OmegaConf.select(merged, key)
            with flag_override(component, "readonly", False):
                component.args = {}
    return merged


def _filled(tree: Tree, defaults: Mapping[Any, Any]) -> Tree:
    for key, default in defaults.items():
        if key not in tree and default != MISSING:
            tree[key] = default
        elif isinstance(tree.get(key), dict) and isinstance(default, dict):
            tree[key] = _filled(dict(tree[key]), default)
    return tree


def _plain(config: Any) -> Tree:
    """A config as nested dicts, interpolations unresolved."""
    tree = OmegaConf.to_container(config, resolve=False, enum_to_str=True)
    assert isinstance(tree, dict)
    return cast(Tree, tree)


def _read_file(schema: type, path: Path) -> Tree:
    try:
        text = path.read_text(encoding="utf-8")
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        check_tree(node, "")
        loaded = OmegaConf.create(text)
        if isinstance(loaded, DictConfig):
            loaded = OmegaConf.create(_keep_text(schema, node, ""))
            return _normalize(schema, schema, _plain(loaded), "")
    except FileNotFoundError as error:
        raise ConfigError(f"no config file at {path}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"cannot read the config file {path}: {yaml_problem(error)}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the config file {path}: {first_line(error)}") from error
    except ValueError as error:
        raise ConfigError(f"{path}: {error}") from error
    raise ConfigError(f"the config file {path} must hold a mapping of keys to values")


def _keep_text(schema: type, node: yaml.Node | None, key: str) -> str:
    """Write YAML with quotes around the values of text fields: `on` and `1e3` stay as they are written.

    Args:
        node: the value at `key`; None for no value.
        key: dotted; empty for the whole config.
    """
    kind = _kind_at(schema, key)
    if node is None:
        is_entry = any(typing.get_origin(_kind_at(schema, above)) is dict for above in _keys_above(key))
        return '""' if kind is str and is_entry else ""
    _quote_text(kind, node, key)
    return cast(str, yaml.serialize(node, allow_unicode=True, width=_NO_WRAP))


def _quote_text(kind: Any, node: yaml.Node, key: str) -> None:
    """Turn each plain scalar of a text field, and each name in a mapping of scalars, into a quoted text."""
    if isinstance(node, yaml.SequenceNode):
        inner = typing.get_args(kind)[0] if typing.get_origin(kind) in (list, tuple) else Any
        for child in node.value:
            _quote_text(inner, child, key)
    elif isinstance(node, yaml.MappingNode):
        if kind in _SCALARS:
            given = yaml.safe_load(yaml.serialize(node))
            raise ConfigError(f"config key {key}: expected {_SCALARS[kind]}, got {given!r}")
        for name, child in node.value:
            is_merge = name.tag == _MERGE
            if typing.get_origin(kind) is dict and not is_merge:
                _quote(name)
                if child.value == "" and not node.flow_style and _is_text(_kind_at(kind, name.value)):
                    _quote(child)
            _quote_text(kind if is_merge else _kind_at(kind, str(name.value)), child, f"{key}.{name.value}")
    elif _is_text(kind) and node.tag != _NULL:
        _quote(node)


def _quote(node: yaml.Node) -> None:
    if isinstance(node, yaml.ScalarNode) and node.style is None:
        node.tag, node.style = _TEXT, '"'


def _is_text(kind: Any) -> bool:
    return kind is str or (typing.get_origin(kind) is Literal and isinstance(typing.get_args(kind)[0], str))


def _keys_above(key: str) -> list[str]:
    names = key.split(".")
    return [".".join(names[:count]) for count in range(1, len(names))]


def _kind_at(kind: Any, key: str) -> Any:
    """The type of the value at a dotted key; names in a mapping of scalars may contain dots."""
    for name in key.split(".") if key else ():
        if dataclasses.is_dataclass(kind):
            kind = _field_types(cast(type, kind)).get(name, Any)
        elif typing.get_origin(kind) is dict:
            kind = typing.get_args(kind)[1]
        elif kind not in _SCALARS:
            return Any
    return kind


def _require_finite(value: Any, key: str) -> None:
    if isinstance(value, dict):
        for name, child in value.items():
            _require_finite(child, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list | tuple):
        for index, child in enumerate(value):
            _require_finite(child, f"{key}[{index}]")
    else:
        is_finite = not isinstance(value, float) or math.isfinite(value)
        require(is_finite, key, "be a finite number", value)


@functools.cache
def _field_types(schema: type) -> dict[str, Any]:
    """The type of each field, without None for optional fields."""
    hints = typing.get_type_hints(schema)
    return {field.name: _without_none(hints[field.name]) for field in dataclasses.fields(schema)}


@functools.cache
def _optional_fields(schema: type) -> frozenset[str]:
    hints = typing.get_type_hints(schema)
    return frozenset(name for name, hint in hints.items() if type(None) in typing.get_args(hint))


def _without_none(hint: Any) -> Any:
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        inner = [kind for kind in typing.get_args(hint) if kind is not type(None)]
        return inner[0] if len(inner) == 1 else hint
    return hint


def _dataclasses(schema: type, prefix: str = "") -> Iterator[tuple[str, type]]:
    """The dotted key and class of the schema and of every nested dataclass, including components."""
    yield prefix, schema
    for name, kind in _field_types(schema).items():
        if dataclasses.is_dataclass(kind):
            yield from _dataclasses(cast(type, kind), f"{prefix}.{name}" if prefix else name)


def _value_at(tree: Any, key: str) -> Any:
    """The value at a dotted key, or None."""
    for name in key.split(".") if key else ():
        tree = tree.get(name) if isinstance(tree, Mapping) else None
    return tree


def _normalize(root: type, node: type, tree: Mapping[str, Any], prefix: str) -> Tree:
    """Check the keys of a tree; expand a bare name to a component; convert whole floats to integers."""
    normalized = {}
    for name, value in tree.items():
        key = f"{prefix}.{name}" if prefix else str(name)
        if name not in _field_types(node):
            full = next(leaves(value, key))[0] if isinstance(value, dict) else key
            raise ConfigError(unknown_key(full, all_keys(root), components=component_keys(root)))
        kind = _field_types(node)[name]
        if value is None and kind is str and _default(node, name) == "":
            value = ""
        if value is None and dataclasses.is_dataclass(kind) and name not in _optional_fields(node):
            raise ConfigError(f"config key {key}: {_expected(cast(type, kind), key, value)}, got null")
        normalized[str(name)] = _normalize_value(root, kind, value, key)
    return normalized


def _normalize_value(root: type, kind: Any, value: Any, key: str) -> Any:
    if value is None or (isinstance(value, str) and ("${" in value or value == MISSING)):
        return value
    if is_component(kind) and isinstance(value, str):
        if is_missing_space(value):
            raise ConfigError(
                f"{key}: expected a space after the colon of {value!r}; "
                f"fix: write '{key}={{{with_space(value)}}}'"
            )
        return {"name": value}
    if dataclasses.is_dataclass(kind):
        if not isinstance(value, Mapping):
            raise ConfigError(f"config key {key}: {_expected(cast(type, kind), key, value)}, got {value!r}")
        return _normalize(root, cast(type, kind), value, key)
    if typing.get_origin(kind) in (list, tuple):
        if not isinstance(value, list):
            raise ConfigError(f"config key {key}: expected a list, as in '{key}=[A, B]', got {value!r}")
        return [_normalize_value(root, typing.get_args(kind)[0], child, key) for child in value]
    if typing.get_origin(kind) is dict and typing.get_args(kind)[1] in _SCALARS:
        return _normalize_mapping(root, typing.get_args(kind)[1], value, key)
    return _normalize_scalar(kind, value, key)


def _normalize_scalar(kind: Any, value: Any, key: str) -> Any:
    if kind is int and isinstance(value, float) and value.is_integer():
        return int(value)
    if kind in _SCALARS and isinstance(value, list | dict):
        raise ConfigError(f"config key {key}: expected {_SCALARS[kind]}, got {value!r}")
    return value


def _normalize_mapping(root: type, kind: type, value: Any, key: str) -> Tree:
    """Normalize a mapping of scalars; its names may contain dots, as in hosts.10.0.0.1=8."""
    if not isinstance(value, Mapping):
        raise ConfigError(f"config key {key}: expected a mapping, as in '{key}={{a: b}}', got {value!r}")
    pairs = [pair for name, child in value.items() for pair in leaves(child, str(name))]
    for name, child in pairs:
        if child is None and is_missing_space(name):
            raise ConfigError(
                f"{key}: expected a space after the colon of {name!r}; fix: write {{{with_space(name)}}}"
            )
    return {name: _normalize_value(root, kind, child, f"{key}.{name}") for name, child in pairs}


def _expected(node: type, key: str, value: Any) -> str:
    if is_component(node):
        return "expected a name, or a mapping {name: ..., args: {...}}"
    if "size" in _field_types(node) and isinstance(value, str | int):
        return f"expected a mapping of its keys, as in {key}.size={value}"
    return f"expected a mapping of its keys ({', '.join(_field_types(node))})"


def _unset_alternatives(schema: type, current: Tree, tree: Tree) -> tuple[Tree, list[str]]:
    """Resolve mutually exclusive keys: a key that `tree` sets unsets the others.

    `ALTERNATIVES` of a class lists them. `"key"` is selected by any value but null, `"key=value"` by this
    value.

    Args:
        current: the config into which the tree is merged.

    Returns:
        Values to merge into the config before the tree, and a log line for each value that is unset. A null
        in the tree that requests the same is replaced by the default.
    """
    unset: Tree = {}
    messages: list[str] = []
    for prefix, node in _dataclasses(schema):
        given, before = _value_at(tree, prefix), _value_at(current, prefix) or {}
        alternatives = _alternatives(node)
        if not alternatives or not isinstance(given, dict):
            continue
        selected = [name for name, value in alternatives.items() if _is_selected(given.get(name), value)]
        for name in alternatives.keys() - set(selected) if len(selected) == 1 else ():
            default = _default(node, name)
            if before.get(name) != default and given.get(name) is None:
                _put(unset, f"{prefix}.{name}", default)
                pair = f"{prefix}.{selected[0]}={given[selected[0]]}"
                messages.append(f"{pair}: {prefix}.{name}={before.get(name)} of the config is dropped")
        _replace_nulls(node, prefix, given, {**before, **(_value_at(unset, prefix) or {}), **given})
    return unset, messages


def _replace_nulls(node: type, prefix: str, given: Tree, after: Tree) -> None:
    """Replace a null of one alternative by the default if another alternative is selected."""
    alternatives = _alternatives(node)
    for name in [name for name in alternatives if name in given and given[name] is None]:
        others = {other: value for other, value in alternatives.items() if other != name}
        if any(_is_selected(after.get(other), value) for other, value in others.items()):
            given[name] = _default(node, name)
        elif _default(node, name) is not None:
            fixes = [
                f"{prefix}.{other}={value}" if value else f"{prefix}.{other}"
                for other, value in others.items()
            ]
            raise ConfigError(
                f"config key {prefix}.{name}: expected a value, or {' or '.join(fixes)} instead, got null"
            )


def _alternatives(node: type) -> dict[str, str | None]:
    """By key, the value that selects it; None if any value does."""
    entries: tuple[str, ...] = getattr(node, "ALTERNATIVES", ())
    pairs = [entry.partition("=") for entry in entries]
    return {name: value or None for name, _, value in pairs}


def _is_selected(given: Any, selecting: str | None) -> bool:
    return given is not None if selecting is None else given == selecting


def _default(node: type, name: str) -> Any:
    return next(field.default for field in dataclasses.fields(node) if field.name == name)


def _put(tree: Tree, key: str, value: Any) -> None:
    above, _, name = key.rpartition(".")
    for step in above.split("."):
        tree = tree.setdefault(step, {})
    tree[name] = value
