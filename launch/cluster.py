"""Cluster files: YAML, then `a.b=c` overrides, into the dataclass of one kind of cluster.

A value is kept as it was written until the type of its field reads it. So `time: 12:30:00` and `ID: 010` are
the texts that somebody wrote, which YAML 1.1 alone would make numbers. The rooms' configs are read by
`data_tools/config.py`, which this room does not import.
"""

import argparse
import dataclasses
import difflib
import math
import shlex
import types
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml

Kind = TypeVar("Kind")

_WORDS = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "text",
}


# Our keys by their names in torchrun, Slurm and other launchers.
_SYNONYMS = {
    **dict.fromkeys(
        ("nproc", "nproc_per_node", "num_gpus", "gpus", "ngpus", "ntasks", "num_processes", "np", "tasks"),
        ("processes", "gpus_per_node", "processes_per_node"),
    ),
    **dict.fromkeys(("ntasks_per_node", "tasks_per_node"), ("processes_per_node",)),
    **dict.fromkeys(("nnodes", "num_nodes"), ("nodes",)),
    **dict.fromkeys(("cpus", "cpus_per_task"), ("cpus_per_process", "cpus_per_node")),
    **dict.fromkeys(("gres", "gpus_per_task"), ("gpus_per_node",)),
    **dict.fromkeys(("time_limit", "walltime"), ("time",)),
    **dict.fromkeys(("mem", "memory_per_node"), ("memory", "memory_per_node")),
    **dict.fromkeys(("env", "envs"), ("environment",)),
    **dict.fromkeys(("job_name",), ("name",)),
    **dict.fromkeys(("nodelist", "hostlist", "host"), ("hosts", "hostfile")),
}


class UsageError(ValueError):
    """The command line or the cluster file cannot be used; the message says what to change. Exit code 2."""


def require(condition: bool, key: str, expected: str, given: object) -> None:
    """Raise `UsageError` in the house wording unless the condition holds.

    Args:
        key: the full key, as a user would write it in an override.
        expected: what the value must be, read after "must".
    """
    if not condition:
        raise UsageError(f"{key} must {expected}, got {given!r}")


def read_cluster(kind: type[Kind], file: Path | None, overrides: Sequence[str]) -> Kind:
    """Build one kind of cluster from a file and overrides.

    Fields may be str, int, float, bool, `Literal`, list[...], dict[str, ...], another dataclass, or one of
    them and None. An override of text is taken as it is (quotes stay); one of a list or a mapping is YAML.
    What follows a mapping's name is one key, dots and all: `hosts.10.0.0.1=8`. `null` is None where a field
    may be None.

    Args:
        kind: a dataclass; its defaults come first, then the file, then the overrides.
        file: a YAML file, or None for defaults and overrides alone.

    Raises:
        UsageError: no such file, no YAML, an unknown key, a wrong type, a missing value, or whatever the
            dataclass itself refuses; the message names the key.
    """
    tree = {} if file is None else _read_file(file)
    try:
        values = _fields(kind, tree, "")
    except UsageError as error:
        is_training = bool({"masking", "head"} & tree.keys())
        hint = f"; it is a training's config; fix: put {file} after --" if is_training else ""
        raise UsageError(f"{file}: {error}{hint}") from error
    for override in overrides:
        _apply(kind, values, override)
    return _build(kind, values, "")


def add_cluster_arguments(parser: argparse.ArgumentParser) -> None:
    """The words that every kind of cluster takes: `[CLUSTER.yaml] [a.b=c ...]`, read by `split_words`."""
    parser.add_argument(
        "words",
        nargs="*",
        default=[],
        metavar="CLUSTER.yaml a.b=c",
        help="a cluster file, as in configs/cluster, then overrides of its keys; both may be left out",
    )


def split_words(words: Sequence[str]) -> tuple[Path | None, list[str]]:
    """Tell the cluster file from the overrides: it comes first and holds no `=`.

    Raises:
        UsageError: a word behind the first is no override.
    """
    file = Path(words[0]) if words and "=" not in words[0] else None
    overrides = list(words[1:] if file else words)
    for number, word in enumerate(overrides):
        key, equals, text = word.partition("=")
        whole = _rejoined(overrides[number:]) if text.startswith(("{", "[")) else word
        if whole != word:
            raise UsageError(
                f"{key}: expected a whole mapping or list, got {text!r}: the shell has split it at its "
                f"spaces; fix: put the whole override in single quotes, {shlex.quote(whole)}"
            )
        if not equals or not key.strip() or word.startswith("-"):
            raise UsageError(
                f"expected an override of the form key=value, got {word!r}; the job comes after --, "
                "as in: kinemae launch local processes=2 -- pretrain CONFIG"
            )
    return file, overrides


def _rejoined(words: Sequence[str]) -> str:
    """The override that a shell has split into these words, and the following words."""
    for count in range(1, len(words) + 1):
        joined = " ".join(words[:count])
        if joined.count("{") == joined.count("}") and joined.count("[") == joined.count("]"):
            return joined
    return words[0]


class _Loader(yaml.BaseLoader):
    """Every scalar stays text; a key that stands twice is refused instead of the last one winning."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        names = [child.value for child, _ in node.value]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise UsageError(f"the key {twice} stands twice: keep one of them")
        return super().construct_mapping(node, deep=True)


def _read_file(path: Path) -> dict[str, Any]:
    try:
        tree = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except FileNotFoundError as error:
        raise UsageError(f"no cluster file at {path}") from error
    except yaml.YAMLError as error:
        raise UsageError(f"cannot read the cluster file {path}: {_problem(error)}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read the cluster file {path}: {error}") from error
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from error
    if tree in (None, ""):
        return {}
    if not isinstance(tree, dict):
        raise UsageError(f"the cluster file {path} must hold a mapping of keys to values")
    return tree


def _apply(kind: type, values: dict[str, Any], override: str) -> None:
    """Put one override into the values read so far."""
    key, _, text = override.partition("=")
    key = key.strip()
    place, wanted, above, rest = values, kind, "", key
    while True:
        name, _, rest = rest.partition(".")
        hints = typing.get_type_hints(wanted)
        _check_known(name, hints, above)
        inner = _without_none(hints[name])
        if not rest:
            place[name] = _value(hints[name], _parsed(inner, text, key), key)
            return
        if typing.get_origin(inner) is dict:
            of = typing.get_args(inner)[1]
            value = _value(of, _parsed(_without_none(of), text, key), key)
            place[name] = {**(place.get(name) or {}), rest: value}  # all that is left: a host's name has dots
            return
        if not dataclasses.is_dataclass(inner):
            raise UsageError(f"{key}: {name} is {_named(inner)}, it has no {rest}")
        place[name] = place.get(name) or {}
        place, wanted = place[name], typing.cast(type, inner)
        above = f"{above}.{name}" if above else name


def _parsed(wanted: Any, text: str, key: str) -> Any:
    is_plain = wanted in _WORDS or typing.get_origin(wanted) is Literal
    if is_plain:
        return text
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise UsageError(f"{key}: {text!r} is not valid YAML ({_problem(error)})") from error


def _fields(kind: type, tree: Any, key: str) -> dict[str, Any]:
    """The values of a dataclass's fields, by name, as far as the tree gives them."""
    if not isinstance(tree, dict):
        raise UsageError(f"{key} must be a mapping of keys to values, got {tree!r}")
    hints = typing.get_type_hints(kind)
    values = {}
    for name, child in tree.items():
        _check_known(name, hints, key)
        values[name] = _value(hints[name], child, f"{key}.{name}" if key else name)
    return values


def _check_known(name: str, hints: dict[str, Any], prefix: str) -> None:
    if name in hints:
        return
    key = f"{prefix}.{name}" if prefix else name
    near = [known for known in _SYNONYMS.get(name, ()) if known in hints]
    near = near or difflib.get_close_matches(name, hints, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(hints)}"
    raise UsageError(f"no key {key!r}; {hint}")


def _value(wanted: Any, given: Any, key: str) -> Any:
    """Read text, a list or a mapping of texts as a field's type has it."""
    inner = _without_none(wanted)
    if inner is not wanted and given in ("null", "~", "", None):
        return None
    if dataclasses.is_dataclass(inner):
        return _fields(typing.cast(type, inner), given, key)
    origin, arguments = typing.get_origin(inner), typing.get_args(inner)
    if origin is list and isinstance(given, list):
        return [_value(arguments[0], child, f"{key}[{index}]") for index, child in enumerate(given)]
    if origin is dict and isinstance(given, dict):
        for name in [name for name, child in given.items() if child in (None, "") and ":" in name]:
            written = ": ".join(name.rsplit(":", 1))
            raise UsageError(f"{key}: expected a space after the colon of {name!r}; fix: write {{{written}}}")
        return {name: _value(arguments[1], child, f"{key}.{name}") for name, child in given.items()}
    if origin is Literal:
        if given in arguments:
            return given
        raise UsageError(f"{key} must be one of {', '.join(arguments)}, got {given!r}")
    if inner in _WORDS and isinstance(given, str):
        return _scalar(inner, given, key)
    raise UsageError(f"{key} must be {_named(inner)}, got {given!r}")


def _scalar(wanted: type, text: str, key: str) -> Any:
    if wanted is str:
        return text
    read: Callable[[str], Any] = {"true": True, "false": False}.__getitem__ if wanted is bool else wanted
    try:
        value = read(text.strip())
    except (KeyError, ValueError) as error:
        raise UsageError(f"{key} must be {_WORDS[wanted]}, got {text!r}") from error
    if wanted is float and not math.isfinite(value):
        raise UsageError(f"{key} must be a finite number, got {text!r}")
    return value


def _build(kind: type[Kind], values: dict[str, Any], key: str) -> Kind:
    """Make the dataclass, its inner ones first."""
    hints = typing.get_type_hints(kind)
    made = dict(values)
    for name, value in values.items():
        inner = _without_none(hints[name])
        if dataclasses.is_dataclass(inner) and value is not None:
            made[name] = _build(typing.cast(type, inner), value, f"{key}{name}.")
    for entry in dataclasses.fields(kind):  # type: ignore[arg-type]
        has_default = entry.default is not dataclasses.MISSING
        if entry.name not in made and not has_default and entry.default_factory is dataclasses.MISSING:
            full = key + entry.name
            raise UsageError(f"no value for {full}: set it in the cluster file or as {full}=...")
    return kind(**made)


def _without_none(wanted: Any) -> Any:
    """The type itself where a field may also be None."""
    if isinstance(wanted, types.UnionType):
        inner = [child for child in wanted.__args__ if child is not type(None)]
        assert len(inner) == 1, f"a field is one type or None, not {wanted}"
        return inner[0]
    return wanted


def _named(wanted: Any) -> str:
    origin = typing.get_origin(wanted)
    if origin is list:
        return "a list, as in [a, b]"
    if origin is dict and typing.get_args(wanted)[1] is int:
        return "a mapping of whole numbers, as in '{a: 8, b: 8}'"
    if origin is dict or dataclasses.is_dataclass(wanted):
        return "a mapping, as in {a: b}"
    return _WORDS.get(wanted, str(wanted))


def _problem(error: yaml.YAMLError) -> str:
    """What is wrong and in which line, of an error that spreads both over several lines."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem and error.problem_mark:
        return f"line {error.problem_mark.line + 1}: {error.problem}"
    return str(error).splitlines()[0]
