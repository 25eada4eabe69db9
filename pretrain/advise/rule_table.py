"""Tables of rules that propose config keys, each with its reason and its source."""

import re
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Generic, TypeVar

from kinemae.data_tools.overrides import as_yaml_override

WIDTH = 100
_SIDES = re.compile(r"(?<![a-z])(left|right|clockwise|anticlockwise|counterclockwise)(?![a-z])")
Facts = TypeVar("Facts")
Settings = dict[str, Any]
"""Values by config key."""


@dataclass(frozen=True, kw_only=True)
class Rule(Generic[Facts]):
    """Advice on one topic.

    Attributes:
        when: whether it applies, from the facts and the settings so far.
        sets: config keys and values.
        why: the reason, one line.
        source: paper, script, issue or measurement.
    """

    topic: str
    when: Callable[[Facts, Settings], bool]
    sets: Callable[[Facts, Settings], Settings]
    why: Callable[[Facts, Settings], str]
    source: str


@dataclass(frozen=True, kw_only=True)
class Advice:
    """A rule that applied."""

    topic: str
    settings: Settings
    why: str
    source: str


def apply_table(rules: Sequence[Rule[Facts]], facts: Facts, fixed: Settings | None = None) -> list[Advice]:
    """Apply the first matching rule of each topic, in the order of the table.

    Later topics see the settings of earlier ones.

    Args:
        fixed: values that are given already; no rule changes them.
    """
    settings: Settings = dict(fixed or {})
    advice: dict[str, Advice] = {}
    for rule in rules:
        if rule.topic not in advice and rule.when(facts, settings):
            new = {key: value for key, value in rule.sets(facts, settings).items() if key not in settings}
            why = rule.why(facts, {**settings, **new})
            advice[rule.topic] = Advice(topic=rule.topic, settings=new, why=why, source=rule.source)
            settings |= new
    return [each for each in advice.values() if each.settings]


def settings_of(advice: Sequence[Advice]) -> Settings:
    """All settings of some advice."""
    return {key: value for each in advice for key, value in each.settings.items()}


def as_fixed(settings: Mapping[str, Any]) -> Callable[[Any, Settings], Settings]:
    """Settings that do not depend on the facts."""
    return lambda facts, given: dict(settings)


def said(text: str) -> Callable[[Any, Settings], str]:
    """A reason that does not depend on the facts."""
    return lambda facts, given: text


def always(facts: Any, given: Settings) -> bool:
    """Apply to every data set."""
    return True


def sided_classes(names: Sequence[str]) -> list[str]:
    """Classes whose names have a side or a sense of rotation, which a flip would change."""
    return [name for name in names if _SIDES.search(name.lower().replace("_", " "))]


def fixed_values(
    config: Any, overrides: Sequence[str], keys: Sequence[str], excluding: Mapping[str, Sequence[str]]
) -> Settings:
    """The values of the keys of a table that the user has given, see `is_given`."""
    given = [override.partition("=")[0] for override in overrides]
    tree = asdict(config)
    return {key: value_at(tree, key) for key in keys if is_given(key, given, excluding)}


def is_given(key: str, given: Sequence[str], excluding: Mapping[str, Sequence[str]]) -> bool:
    """Check whether the user has given this key, a key below or above it, or one that excludes it.

    Args:
        excluding: by key of the table, the keys whose choice excludes it.
    """
    others = excluding.get(key, (key,))
    return any(
        key == other or key.startswith(f"{other}.") or other.startswith(f"{key}.") or other in others
        for other in given
    )


def value_at(tree: Any, key: str) -> Any:
    """The value of a dotted key in a nested mapping; None if it is missing."""
    for name in key.split("."):
        tree = tree.get(name) if isinstance(tree, dict) else None
    return tree


def wrapped(text: str, indent: str) -> list[str]:
    """Break a text into indented lines of at most `WIDTH` columns."""
    return textwrap.wrap(text, WIDTH, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False)


def advice_lines(advice: Sequence[Advice], fixed: Settings) -> list[str]:
    """The settings with reasons and sources, then the user's own choices, as lines of text."""
    lines = ["settings"]
    for each in advice:
        lines += [f"  {as_yaml_override(key, value)}" for key, value in each.settings.items()]
        lines += wrapped(f"{each.why} [{each.source}]", "      ")
    if fixed:
        lines += ["", "your choice", *(f"  {as_yaml_override(key, value)}" for key, value in fixed.items())]
    return lines
