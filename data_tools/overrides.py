"""Syntax checks of command-line overrides: `a.b=c` with the value in YAML.

This file imports no config class. A command rejects a malformed command line before slow imports.
"""

import itertools
import os
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import yaml

MISSING = "???"

# YAML 1.1 reads 12:30:00 as 45000 and 010 as 8.
_SURPRISING_NUMBER = re.compile(r"[-+]?(0[0-7_]+|[1-9][0-9_]*(:[0-5]?[0-9])+(\.[0-9_]*)?)")
_YAML_HINTS = {
    "expected ':'": "; is a space missing after a colon?",
    "mapping values": "; is a space missing after a colon, or a line indented too far?",
    "<block end>": "; is a line indented differently from its neighbours?",
    "found character '\\t'": "; indent with spaces, not with tabs",
    "expected ',' or": "; is a bracket not closed?",
}
_KEY = re.compile(r"[^/:=]*=")
_QUOTED = re.compile(r"'[^']*'|\"[^\"]*\"")


class ConfigError(ValueError):
    """Wrong usage or config, as opposed to a `ValueError` of a defect; the message names the fix."""


def require(condition: bool, key: str, expected: str, given: object) -> None:
    """Raise `ConfigError` with the project's wording unless the condition holds.

    Args:
        key: the full config key, as in an override.
        expected: continues "KEY must".
    """
    if not condition:
        raise ConfigError(f"{key} must {expected}, got {given!r}")


def is_override(word: str) -> bool:
    """Check whether a word that may be a path or a URL is an override: `KEY=...`, and no existing path.

    `./KEY=...` is always a path.
    """
    return _KEY.match(word) is not None and not os.path.exists(word)  # of `Path`, a long name is an error


def check_overrides(overrides: Sequence[str]) -> None:
    """Check the form of every override.

    Raises:
        ValueError: see `parse_override`, or the shell has split a mapping or a list at its spaces.
    """
    for number, override in enumerate(overrides):
        _reject_spaces(override, overrides[number + 1 :])
        if _is_open(override.partition("=")[2]):
            _reject_split_by_shell(overrides[number:])
        parse_override(override)


def parse_override(text: str) -> str:
    """Check the form of one `a.b=c` override and return it unchanged.

    Raises:
        ValueError: the override begins with dashes, has no `=`, is no YAML, lacks the space after a colon, or
            holds a number that YAML 1.1 misreads.
    """
    key, equals, value = text.partition("=")
    if text.startswith("-"):
        bare = text.lstrip("-") + ("" if equals else "=...")
        raise ConfigError(f"expected an override without dashes, got {text!r}; fix: write {bare}")
    if not equals or not key.strip():
        colon = re.fullmatch(r"([\w.]+):\s*(\S.*)", text)
        fix = f"; fix: write {colon[1]}={colon[2]}" if colon else ""
        raise ConfigError(f"expected an override of the form key=value, got {text!r}{fix}")
    if value.startswith("~/"):
        fix = shlex.quote(f"{key}={os.path.expanduser(value)}")
        raise ConfigError(
            f"{key}: expected a path without ~, because the shell does not expand ~ here; fix: write {fix}"
        )
    if key != key.strip() or re.search(r"\s", key):
        raise ConfigError(f"expected an override of the form key=value, got {text!r}: its key holds a space")
    if value.strip() == MISSING:
        raise ConfigError(f"{key} must be given a value, got {MISSING}")
    try:
        yaml.safe_load(value)  # refuses tags, which name code
        node = yaml.compose(value, Loader=yaml.SafeLoader)
        check_tree(node, key)
    except yaml.YAMLError as error:
        open_end = (
            "close its brackets, with the whole override in single quotes; or " if _is_open(value) else ""
        )
        raise ConfigError(
            f"{key}: {value!r} is not valid YAML ({yaml_problem(error)}); fix: {open_end}"
            f"quote it if it is text, as in {shlex.quote(f'{key}={_yaml_text(value)}')}"
        ) from error
    is_plain = isinstance(node, yaml.ScalarNode) and node.style is None
    if value.strip() and (node is None or (is_plain and node.value != value.strip())):
        read = "" if node is None else node.value
        raise ConfigError(
            f"{key}: YAML reads {value!r} as {read!r}; "
            f"fix: quote it if it is text, as in {shlex.quote(f'{key}={_yaml_text(value)}')}"
        )
    return text


def check_tree(node: yaml.Node | None, key: str) -> None:
    """Reject values that YAML reads differently from the intended meaning.

    Raises:
        ValueError: a number such as 010, or an entry of a mapping without the space after its colon; the
            message names the key.
    """
    for child_key, scalar in _plain_scalars(node, key):
        if _SURPRISING_NUMBER.fullmatch(scalar):
            raise ConfigError(
                f"{child_key}: YAML reads {scalar} as another number; fix: quote it if it is text"
            )
    for child_key, entry in _entries_without_value(node, key):
        if is_missing_space(entry):
            raise ConfigError(
                f"{child_key or entry}: expected a space after the colon of {entry!r}; "
                f"fix: write {{{with_space(entry)}}}"
            )


def as_overrides(tree: Mapping[str, Any]) -> list[str]:
    """Write a nested mapping of keys to values as overrides; `~` at the start of a text is the home folder.

    Raises:
        ValueError: a value that YAML does not have.
    """
    overrides = []
    for key, value in (leaf for name, child in tree.items() for leaf in leaves(child, name)):
        plain = os.path.expanduser(value) if isinstance(value, str | os.PathLike) else value
        try:
            overrides.append(as_yaml_override(key, list(plain) if isinstance(plain, tuple) else plain))
        except yaml.YAMLError as error:
            raise ConfigError(
                f"{key}: expected a number, a text, a list or a mapping, got {type(value).__name__}; fix: "
                "convert it"
            ) from error
    return overrides


def as_yaml_override(key: str, value: Any) -> str:
    """Write `key=value` with the value in YAML on one line."""
    return f"{key}={_flow(value)}"


def as_override(key: str, value: object) -> str:
    """Write `key=value`, quoted for the shell, and also for YAML if YAML would not read the value as text."""
    text = str(value)
    try:
        is_text = yaml.safe_load(text) == text and not _SURPRISING_NUMBER.fullmatch(text)
    except yaml.YAMLError:
        is_text = False
    return shlex.quote(f"{key}={text if is_text else _yaml_text(text)}")


def is_missing_space(text: str) -> bool:
    """Check whether a text looks like `name:value`, which YAML reads as one word for lack of a space."""
    name, colon, value = text.rpartition(":")
    return bool(colon and name.strip() and value.strip()) and not value.startswith(("//", "\\", " "))


def with_space(text: str) -> str:
    """Rewrite `name:value` as `name: value`."""
    name, _, value = text.rpartition(":")
    return f"{name}: {value}"


def yaml_problem(error: yaml.YAMLError) -> str:
    """The line number and problem of a YAML error, as one line."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem and error.problem_mark:
        hint = next((hint for sign, hint in _YAML_HINTS.items() if sign in error.problem), "")
        return f"line {error.problem_mark.line + 1}: {error.problem}{hint}"
    return first_line(error)


def first_line(error: BaseException) -> str:
    """The first non-empty line of an error message."""
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)


def leaves(value: Any, key: str) -> Iterator[tuple[str, Any]]:
    """Values of a nested mapping with their dotted keys. Empty mappings and lists count as values."""
    if not isinstance(value, dict) or not value:
        yield key, value
        return
    for name, child in value.items():
        yield from leaves(child, f"{key}.{name}" if key else str(name))


def _reject_spaces(override: str, following: Sequence[str]) -> None:
    """Reject `key = value`, which a shell splits into up to three words."""
    if "=" not in override and following and following[0].startswith("="):
        joined = (
            override + following[0] + (following[1] if following[0] == "=" and len(following) > 1 else "")
        )
        raise ConfigError(
            f"expected an override of the form key=value, got {override!r}; "
            f"fix: write it without spaces, {shlex.quote(joined)}"
        )
    pieces = list(itertools.takewhile(lambda word: "=" not in word and word[:1] != "-", following))
    if pieces and "/" in override.partition("=")[2]:
        raise ConfigError(
            f"expected an override of the form key=value, got {pieces[0]!r}; fix: if it belongs to the word "
            f"before it, quote both, {shlex.quote(' '.join([override, *pieces]))}"
        )


def _is_open(value: str) -> bool:
    """Check whether a mapping or a list is not closed."""
    bare = _QUOTED.sub("", value)
    if bare.lstrip()[:1] not in ("{", "["):
        return False
    return sum(map(bare.count, "{[")) > sum(map(bare.count, "}]"))


def _reject_split_by_shell(words: Sequence[str]) -> None:
    """Reject a mapping or a list that the shell has split into the first ones of `words`."""
    joined, rest = words[0], list(words[1:])
    while _is_open(joined.partition("=")[2]) and rest:
        joined = f"{joined} {rest.pop(0)}"
    key, _, value = joined.partition("=")
    if _is_open(value):
        return
    try:
        found = yaml.safe_load(value)
    except yaml.YAMLError:
        found = None
    pieces = " ".join(shlex.quote(f"{name}={_flow(leaf)}") for name, leaf in leaves(found, key))
    dotted = f", or write {pieces}" if isinstance(found, dict) and found else ""
    raise ConfigError(
        f"{key}: expected a whole mapping or list, got {words[0].partition('=')[2]!r}: the shell has "
        f"split it at its spaces; fix: put the whole override in single quotes, {shlex.quote(joined)}{dotted}"
    )


def _flow(value: Any) -> str:
    """Write a value as YAML in one line."""
    return (
        yaml.safe_dump(value, default_flow_style=True, width=1 << 20, sort_keys=False)
        .removesuffix("\n...\n")
        .strip()
    )


def _yaml_text(value: str) -> str:
    """Quote a text with YAML's double quotes."""
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _children(node: yaml.Node | None, key: str) -> list[tuple[str, yaml.Node]]:
    if isinstance(node, yaml.MappingNode):
        return [(f"{key}.{name.value}" if key else str(name.value), child) for name, child in node.value]
    if isinstance(node, yaml.SequenceNode):
        return [(f"{key}[{index}]", child) for index, child in enumerate(node.value)]
    return []


def _plain_scalars(node: yaml.Node | None, key: str) -> list[tuple[str, str]]:
    """Unquoted scalars of a YAML tree with their dotted keys."""
    if isinstance(node, yaml.ScalarNode) and node.style is None:
        return [(key, node.value)]
    return [found for child_key, child in _children(node, key) for found in _plain_scalars(child, child_key)]


def _entries_without_value(node: yaml.Node | None, key: str) -> Iterator[tuple[str, str]]:
    """Entries in braces without a value, as in `{name}`: the key of the mapping and the name."""
    if isinstance(node, yaml.MappingNode) and node.flow_style:
        for name, child in node.value:
            if isinstance(name, yaml.ScalarNode) and name.style is None and child.value == "":
                yield key, name.value
    for child_key, child in _children(node, key):
        yield from _entries_without_value(child, child_key)
