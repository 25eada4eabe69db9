"""Configs: a YAML file, then `a.b=c` overrides, checked against a frozen dataclass.

This is the only file that knows omegaconf. A config class is a keyword-only frozen dataclass whose
`__post_init__` raises `ValueError` with the full key of a wrong value. `ALTERNATIVES` lists keys that exclude
one another, see `kinemae.data_tools.config_schema.choose_alternatives`.
"""

import dataclasses
import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

import yaml
from omegaconf import MISSING, DictConfig, OmegaConf, flag_override
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from kinemae.data_tools.config_hints import wrong_type
from kinemae.data_tools.config_schema import Tree, choose_alternatives, component_keys, fit, value_at
from kinemae.data_tools.overrides import check_overrides, check_tree, first_line, parse_override, yaml_problem

__all__ = ["MISSING", "load_config", "parse_override", "require", "to_yaml", "with_defaults"]

Config = TypeVar("Config")

_log = logging.getLogger("kinemae")


def require(condition: bool, key: str, expected: str, given: object) -> None:
    """Raise `ValueError` in the house wording unless the condition holds.

    Args:
        key: the full config key, as a user would write it in an override.
        expected: what the value must be, read after "must".
    """
    if not condition:
        raise ValueError(f"{key} must {expected}, got {given!r}")


def load_config(schema: type[Config], path: str | Path | None, overrides: Sequence[str]) -> Config:
    """Build a checked config from a file and overrides.

    A part may be given by its name alone, which means its default arguments. An override of one of several
    keys that exclude one another unsets the others, and the log says so.

    Args:
        schema: the config dataclass; its defaults come first, then the file, then the overrides.
        path: a YAML file, or None for the defaults alone.
        overrides: `a.b=c` strings; values are read as YAML.

    Raises:
        ValueError: unreadable file, unknown key, wrong type, missing value, NaN or infinity, or
            whatever the dataclass itself refuses; the message names the key.
    """
    OmegaConf.clear_resolver("oc.env")  # a resolved copy is written to the run folder: no secrets in it
    check_overrides(overrides)
    merged = OmegaConf.structured(schema)
    OmegaConf.set_readonly(merged, False)
    try:
        if path is not None:
            merged = _over(schema, merged, _fit_file(schema, Path(path)))
        given, short = _read_overrides(schema, overrides)
        merged = _drop_replaced_arguments(schema, merged, given, short)
        merged = _over(schema, merged, given)
        OmegaConf.resolve(merged)
        missing = sorted(OmegaConf.missing_keys(merged))
        if missing:
            raise ValueError(
                f"no value for {', '.join(missing)}: set it in the config or as {missing[0]}=..."
            )
        _refuse_non_finite(OmegaConf.to_container(merged), "")
        return cast(Config, OmegaConf.to_object(merged))
    except MissingMandatoryValue as error:
        raise ValueError(f"a value is missing: {first_line(error)}") from error
    except OmegaConfBaseException as error:
        key = getattr(error, "full_key", None)
        said = wrong_type(first_line(error))
        raise ValueError(f"config key {key}: {said}" if key else said) from error


def _over(schema: type, merged: Any, tree: Tree) -> Any:
    """Merge a tree of values into a config and unset the keys that these values exclude."""
    unset, said = choose_alternatives(schema, _plain(merged), tree)
    for sentence in said:
        _log.info("%s", sentence)
    return OmegaConf.merge(merged, unset, tree)


def _read_overrides(schema: type, overrides: Sequence[str]) -> tuple[Tree, set[str]]:
    """Merge overrides into one tree (later ones win); also return the keys of parts given by name only."""
    short: set[str] = set()
    together: Any = OmegaConf.create({})
    for override in overrides:
        tree = _plain(OmegaConf.from_dotlist([override]))
        short |= {key for key in component_keys(schema) if isinstance(value_at(tree, key), str)}
        together = OmegaConf.merge(together, fit(schema, tree))
    return _plain(together), short


def _drop_replaced_arguments(schema: type, merged: Any, given: Tree, short: set[str]) -> Any:
    """Drop the file's arguments of a part where an override selects another part.

    A name alone stands for the default arguments, so it drops those of the same part too.
    """
    current = _plain(merged)
    for key in component_keys(schema):
        name = value_at(given, f"{key}.name")
        before = value_at(current, key)
        if not isinstance(name, str) or not before or not before["args"]:
            continue
        if key in short or before["name"] != name:
            _log.info("%s=%s: the arguments that the config gives %s are left out", key, name, before["name"])
            part = OmegaConf.select(merged, key)
            with flag_override(part, "readonly", False):
                part.args = {}
    return merged


def to_yaml(config: Any) -> str:
    """Write a config dataclass as YAML that `load_config` reads back to an equal config."""
    return yaml.safe_dump(dataclasses.asdict(config), sort_keys=False, allow_unicode=True)


def with_defaults(schema: type[Any], tree: Mapping[str, Any]) -> dict[str, Any]:
    """Fill a config's missing keys with the schema's defaults.

    A config from an older version lacks newer keys. Their defaults keep the old behaviour.
    """
    defaults = OmegaConf.to_container(OmegaConf.structured(schema))
    assert isinstance(defaults, dict)
    return _filled(dict(tree), defaults)


def _filled(tree: dict[str, Any], defaults: Mapping[Any, Any]) -> dict[str, Any]:
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


def _fit_file(schema: type, path: Path) -> Tree:
    tree = _read_file(path)
    try:
        return fit(schema, tree)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _read_file(path: Path) -> Tree:
    try:
        text = path.read_text(encoding="utf-8")
        check_tree(yaml.compose(text, Loader=yaml.SafeLoader), "")
        loaded = OmegaConf.create(text)
    except FileNotFoundError as error:
        raise ValueError(f"no config file at {path}") from error
    except yaml.YAMLError as error:
        raise ValueError(f"cannot read the config file {path}: {yaml_problem(error)}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"cannot read the config file {path}: {first_line(error)}") from error
    except ValueError as error:  # of check_tree
        raise ValueError(f"{path}: {error}") from error
    if not isinstance(loaded, DictConfig):
        raise ValueError(f"the config file {path} must hold a mapping of keys to values")
    return _plain(loaded)


def _refuse_non_finite(value: Any, key: str) -> None:
    if isinstance(value, dict):
        for name, child in value.items():
            _refuse_non_finite(child, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list | tuple):
        for index, child in enumerate(value):
            _refuse_non_finite(child, f"{key}[{index}]")
    elif isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{key} must be a finite number, got {value}")
