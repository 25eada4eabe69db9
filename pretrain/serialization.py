"""Exported models: a JSON description and safetensors weights, both checked on reading.

A description is a dataclass written as JSON. Reading it checks every key and the type of every value, and
builds only dataclasses and numbers: no file can execute code. A missing key takes the default of its field.
An unknown key is an error.
"""

import json
import math
import os
import re
import types
from collections.abc import Callable
from dataclasses import MISSING, asdict, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from kinemae.data_tools.command import CheckpointError
from kinemae.data_tools.files import fsync_path, set_default_mode

Record = TypeVar("Record")
Module = TypeVar("Module", bound=nn.Module)

_LISTED = 5
"""Number of tensor names in an error."""

_PLAIN: dict[Any, tuple[str, tuple[type, ...]]] = {
    int: ("a whole number", (int,)),
    float: ("a number", (int, float)),
    bool: ("true or false", (bool,)),
    str: ("a text", (str,)),
}


def save_tensors(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    """Write safetensors.

    Raises:
        OSError: for example on a full disk; safetensors has its own kind of error for it.
    """
    try:
        save_file(tensors, path, metadata)
    except SafetensorError as error:
        number = re.search(r"(?:os error|code:) (\d+)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error


def save_weights(module: nn.Module, path: Path) -> None:
    """Write a module's state in float32 as safetensors, complete or absent; see `save_tensors`."""
    weights = {name: value.detach().float().cpu().contiguous() for name, value in module.state_dict().items()}
    partial = path.with_name(f"{path.name}.partial")
    save_tensors(weights, partial)
    _publish(partial, path)


def save_description(description: Any, path: Path) -> None:
    """Write a dataclass as JSON, complete or absent."""
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(json.dumps(asdict(description), indent=2) + "\n", encoding="utf-8")
    _publish(partial, path)


def read_description(path: Path, kind: type[Record], *, formats: range) -> Record:
    """Read what `save_description` wrote.

    Args:
        kind: the dataclass of the description.
        formats: the values of its `format` that this version reads.

    Raises:
        FileNotFoundError: it is not there.
        CheckpointError: it is unreadable, of another format, or a key or a value of it is wrong.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{path}: expected JSON, got an error: {error}; fix: export it again"
        ) from error
    check_format(found, formats, path)
    try:
        # Files are always written in the current format.
        return read_record(kind, {**found, "format": formats[-1]})
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from error


def check_format(found: Any, formats: range, path: Path) -> None:
    """Reject a description in a format that this version does not read.

    Raises:
        CheckpointError: it is not an object, or its format is too old or too new.
    """
    if not isinstance(found, dict):
        raise CheckpointError(f"{path}: expected an object, got {type(found).__name__}; fix: export it again")
    number = found.get("format")
    if type(number) is not int or number not in formats:
        known = str(formats[-1]) if len(formats) == 1 else f"{formats[0]} to {formats[-1]}"
        is_newer = type(number) is int and number > formats[-1]
        fix = "install a newer version of KineMAE" if is_newer else "export it again"
        raise CheckpointError(f"{path}: expected format {known}, got {number!r}; fix: {fix}")


def read_and_build(
    path: Path,
    kind: type[Record],
    build: Callable[[Record], Module],
    *,
    formats: range,
    what: str,
    absent: str,
) -> tuple[Record, Module]:
    """Read a description and build its module on the meta device, which checks all components.

    Args:
        what: name of the module, for messages.
        absent: message if the file is missing.

    Raises:
        CheckpointError: the file is missing, see `read_description`, or the module cannot be built.
    """
    try:
        description = read_description(path, kind, formats=formats)
    except FileNotFoundError as error:
        raise CheckpointError(absent) from error
    try:
        with torch.device("meta"):
            return description, build(description)
    except ValueError as error:
        raise CheckpointError(f"{path}: expected a valid {what}, got an error: {error}") from error


def read_record(kind: type[Record], found: Any, name: str = "") -> Record:
    """Build a dataclass from JSON, each value checked against the type of its field, nested ones too.

    A missing key takes the default of its field.

    Args:
        name: key of the record; empty for the whole file.

    Raises:
        ValueError: a key without a default is missing, a key is unknown, or a value is of another type; the
            message names the key.
    """
    known = {field.name: field for field in fields(kind)}  # type: ignore[arg-type]
    given = set(found) if isinstance(found, dict) else set()
    needed = {
        name for name, field in known.items() if field.default is MISSING and field.default_factory is MISSING
    }
    wrong = [f"missing {key}" for key in sorted(needed - given)]
    wrong += [f"unknown {key}" for key in sorted(given - known.keys())]
    if wrong or not isinstance(found, dict):
        raise ValueError(f"wrong keys in {name or 'the file'}: {', '.join(wrong) or 'not an object'}")
    hints = get_type_hints(kind)
    prefix = f"{name}." if name else ""
    return kind(**{key: _value(hints[key], found[key], f"{prefix}{key}") for key in sorted(given)})


def _value(hint: Any, value: Any, key: str) -> Any:
    """Check a value against its type."""
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        (inner,) = (kind for kind in get_args(hint) if kind is not type(None))
        return None if value is None else _value(inner, value, key)
    if origin is Literal:
        _expect(value in get_args(hint), key, f"be one of {', '.join(map(str, get_args(hint)))}", value)
        return value
    if origin is tuple:
        return _tuple(get_args(hint), value, key)
    if origin is dict:
        _expect(isinstance(value, dict), key, "be an object", value)
        return value
    if is_dataclass(hint):
        return read_record(hint, value, key)  # type: ignore[arg-type]
    description, kinds = _PLAIN[hint]
    _expect(type(value) in kinds, key, f"be {description}", value)
    if hint is float:
        _expect(math.isfinite(value), key, "be finite", value)
        return float(value)
    return value


def _tuple(kinds: tuple[Any, ...], value: Any, key: str) -> tuple[Any, ...]:
    _expect(isinstance(value, list), key, "be a list", value)
    if kinds[-1] is ...:
        kinds = (kinds[0],) * len(value)
    _expect(len(value) == len(kinds), key, f"hold {len(kinds)} values", value)
    pairs = zip(kinds, value, strict=True)
    return tuple(_value(kind, part, f"{key}[{i}]") for i, (kind, part) in enumerate(pairs))


def _expect(is_right: bool, key: str, expected: str, given: Any) -> None:
    if not is_right:
        raise ValueError(f"{key} must {expected}, got {given!r}")


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read safetensors.

    Raises:
        CheckpointError: missing or damaged.
    """
    try:
        return load_file(path)
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: expected weights, got no file; fix: export them again") from error
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{path}: expected safetensors, got a damaged file ({error}); fix: export it again"
        ) from error


def check_weights(module: nn.Module, weights: dict[str, Tensor], path: Path) -> None:
    """Check that the weights are exactly the module's parameters. The module may be on the meta device.

    Raises:
        CheckpointError: names tensors that are missing, unexpected or of another shape.
    """
    expected = {name: value.shape for name, value in module.named_parameters()}
    shapes = [
        f"{name} {tuple(weights[name].shape)} instead of {tuple(shape)}"
        for name, shape in expected.items()
        if name in weights and weights[name].shape != shape
    ]
    wrong = {
        "missing": sorted(expected.keys() - weights.keys()),
        "unexpected": sorted(weights.keys() - expected.keys()),
        "of another shape": shapes,
    }
    if any(wrong.values()):
        parts = [f"{len(names)} {kind} ({_some(names)})" for kind, names in wrong.items() if names]
        described = path.with_suffix(".json").name
        raise CheckpointError(
            f"{path}: expected the tensors of {described}, got {', '.join(parts)}; fix: export both again"
        )


def _some(names: list[str]) -> str:
    return ", ".join(names[:_LISTED]) + (", ..." if len(names) > _LISTED else "")


def _publish(partial: Path, final: Path) -> None:
    """Rename a complete file to its final name, after fsync."""
    fsync_path(partial)
    set_default_mode(partial)  # safetensors writes files that only the owner can read
    os.replace(partial, final)
