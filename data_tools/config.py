"""Configs: a YAML file, then `a.b=c` overrides, checked against a frozen dataclass.

This is the only file that knows omegaconf. A config class is a keyword-only frozen dataclass whose
`__post_init__` raises `ValueError` with the full key of what is wrong.
"""

import dataclasses
import logging
import math
import re
from pathlib import Path
from typing import Any, TypeVar, cast

import yaml
from omegaconf import MISSING, DictConfig, OmegaConf, flag_override
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

__all__ = ["MISSING", "load_config", "parse_override", "require", "to_yaml"]

Config = TypeVar("Config")

_log = logging.getLogger("kinemae")

# YAML 1.1 reads 12:30:00 as 45000 and 010 as 8; nobody who writes them means that.
_SURPRISING_NUMBER = re.compile(r"[-+]?(0[0-7_]+|[1-9][0-9_]*(:[0-5]?[0-9])+(\.[0-9_]*)?)")


def require(condition: bool, key: str, expected: str, given: object) -> None:
    """Raise `ValueError` in the house wording unless the condition holds.

    Args:
        key: the full config key, as a user would write it in an override.
        expected: what the value must be, read after "must".
    """
    if not condition:
        raise ValueError(f"{key} must {expected}, got {given!r}")


def load_config(schema: type[Config], path: str | Path | None, overrides: list[str]) -> Config:
    """Build a checked config from a file and overrides.

    Args:
        schema: the config dataclass; its defaults come first, then the file, then the overrides.
        path: a YAML file, or None for the defaults alone.
        overrides: `a.b=c` strings; values are read as YAML.

    Raises:
        ValueError: unreadable file, unknown key, wrong type, missing value, NaN or infinity, or
            whatever the dataclass itself refuses; the message names the key.
    """
    OmegaConf.clear_resolver("oc.env")  # a resolved copy is written to the run folder: no secrets in it
    merged = OmegaConf.structured(schema)
    try:
        OmegaConf.set_readonly(merged, False)
        if path is not None:
            merged = OmegaConf.merge(merged, _read_file(Path(path)))
        for override in overrides:
            _drop_arguments_of_another_part(merged, parse_override(override))
        for override in overrides:
            merged = OmegaConf.merge(merged, OmegaConf.from_dotlist([parse_override(override)]))
        OmegaConf.resolve(merged)
        missing = sorted(OmegaConf.missing_keys(merged))
        if missing:
            raise ValueError(
                f"no value for {', '.join(missing)}: set it in the config or as {missing[0]}=..."
            )
        _refuse_non_finite(OmegaConf.to_container(merged), "")
        return cast(Config, OmegaConf.to_object(merged))
    except MissingMandatoryValue as error:
        raise ValueError(f"a value is missing: {_first_line(error)}") from error
    except OmegaConfBaseException as error:
        key = getattr(error, "full_key", None)
        raise ValueError(f"config key {key}: {_first_line(error)}" if key else _first_line(error)) from error


def _drop_arguments_of_another_part(merged: Any, override: str) -> None:
    """Where an override names another part than the file, the file's arguments are not meant for it."""
    key, _, text = override.partition("=")
    value = yaml.safe_load(text)
    name = value.get("name") if isinstance(value, dict) else value
    part_key = key if isinstance(value, dict) else key.removesuffix(".name")
    part = OmegaConf.select(merged, part_key)
    is_part = isinstance(part, DictConfig) and set(part) == {"name", "args"} and isinstance(name, str)
    if is_part and not OmegaConf.is_missing(part, "name") and part.name != name and part.args:
        _log.info("%s=%s: the arguments that the config gives %s are left out", part_key, name, part.name)
        with flag_override(part, "readonly", False):
            part.args = {}


def parse_override(text: str) -> str:
    """Check the shape of one `a.b=c` override and return it unchanged.

    Raises:
        ValueError: it begins with dashes, has no `=`, is no YAML, or holds a number that YAML 1.1 misreads.
    """
    key, equals, value = text.partition("=")
    if text.startswith("-"):
        raise ValueError(
            f"an override is written key=value without dashes: {text.lstrip('-')!r}, not {text!r}"
        )
    if not equals or not key.strip():
        raise ValueError(f"expected an override of the form key=value, got {text!r}")
    if value.strip() == MISSING:
        raise ValueError(f"{key} must be given a value, got {MISSING}")
    try:
        yaml.safe_load(value)  # refuses tags, which name code
        scalars = _plain_scalars(yaml.compose(value, Loader=yaml.SafeLoader), key)
    except yaml.YAMLError as error:
        raise ValueError(
            f"{key}: {value!r} is not valid YAML ({_yaml_problem(error)}); quote it if it is text"
        ) from error
    for scalar_key, scalar in scalars:
        _refuse_surprising_number(scalar, scalar_key)
    return text


def to_yaml(config: Any) -> str:
    """Write a config dataclass as YAML that `load_config` reads back to an equal config."""
    return yaml.safe_dump(dataclasses.asdict(config), sort_keys=False, allow_unicode=True)


def _read_file(path: Path) -> DictConfig:
    try:
        text = path.read_text(encoding="utf-8")
        for key, value in _plain_scalars(yaml.compose(text, Loader=yaml.SafeLoader), ""):
            _refuse_surprising_number(value, key)
        loaded = OmegaConf.create(text)
    except FileNotFoundError as error:
        raise ValueError(f"no config file at {path}") from error
    except yaml.YAMLError as error:
        raise ValueError(f"cannot read the config file {path}: {_yaml_problem(error)}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"cannot read the config file {path}: {_first_line(error)}") from error
    if not isinstance(loaded, DictConfig):
        raise ValueError(f"the config file {path} must hold a mapping of keys to values")
    return loaded


def _plain_scalars(node: yaml.Node | None, key: str) -> list[tuple[str, str]]:
    """Unquoted scalars of a YAML tree with their dotted keys."""
    if isinstance(node, yaml.MappingNode):
        pairs = [(child, f"{key}.{name.value}" if key else str(name.value)) for name, child in node.value]
    elif isinstance(node, yaml.SequenceNode):
        pairs = [(child, f"{key}[{index}]") for index, child in enumerate(node.value)]
    elif isinstance(node, yaml.ScalarNode) and node.style is None:
        return [(key, node.value)]
    else:
        return []
    return [found for child, child_key in pairs for found in _plain_scalars(child, child_key)]


def _refuse_surprising_number(value: str, key: str) -> None:
    if _SURPRISING_NUMBER.fullmatch(value):
        raise ValueError(f"{key}: YAML reads {value} as another number; quote it if it is text")


def _refuse_non_finite(value: Any, key: str) -> None:
    if isinstance(value, dict):
        for name, child in value.items():
            _refuse_non_finite(child, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list | tuple):
        for index, child in enumerate(value):
            _refuse_non_finite(child, f"{key}[{index}]")
    elif isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{key} must be a finite number, got {value}")


def _yaml_problem(error: yaml.YAMLError) -> str:
    """What is wrong and in which line, of an error that spreads both over several lines."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem and error.problem_mark:
        return f"line {error.problem_mark.line + 1}: {error.problem}"
    return _first_line(error)


def _first_line(error: BaseException) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
