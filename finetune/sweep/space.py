"""Search space of a sweep: keys with several values or with a range, and the trials drawn from them."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import yaml

from kinemae.data_tools.config import is_list_key, require
from kinemae.data_tools.randomness import generator

Values = dict[str, str]
"""YAML text by config key."""

_KINDS = ("uniform", "log_uniform", "int_uniform")


@dataclass(frozen=True, kw_only=True)
class Choice:
    """A key with a list of values, each as YAML text."""

    key: str
    values: tuple[str, ...]

    def draw(self, share: float) -> str:
        """Return the value at a share in [0, 1) of the list."""
        return self.values[int(share * len(self.values))]


@dataclass(frozen=True, kw_only=True)
class Range:
    """A key with a range: "uniform", "log_uniform", or "int_uniform" with both ends included."""

    key: str
    kind: str
    low: float
    high: float

    def draw(self, share: float) -> str:
        """Return the value at a share in [0, 1) of the range, with 4 digits."""
        if self.kind == "int_uniform":
            return str(int(self.low) + int(share * (int(self.high) - int(self.low) + 1)))
        if self.kind == "log_uniform":
            return f"{math.exp(math.log(self.low) + share * math.log(self.high / self.low)):.4g}"
        return f"{self.low + share * (self.high - self.low):.4g}"


Axis = Choice | Range


def read_space(schema: type, overrides: Sequence[str]) -> tuple[list[Axis], list[str]]:
    """Separate the overrides with several values from the others.

    `key=[A, B]` is a list of values; for a key that holds a list itself, `key=[[A], [B, C]]`.
    `key={log_uniform: [LOW, HIGH]}` is a range, also `uniform` and `int_uniform`.

    Returns:
        The axes in their order, and the other overrides.

    Raises:
        ValueError: a key twice, an empty list, or an invalid range.
    """
    axes: list[Axis] = []
    others = []
    for override in overrides:
        key, _, text = override.partition("=")
        axis = _axis(key, yaml.compose(text, Loader=yaml.SafeLoader), holds_list=is_list_key(schema, key))
        if axis is None:
            others.append(override)
            continue
        require(all(axis.key != other.key for other in axes), key, "be given once", text)
        axes.append(axis)
    return axes, others


def draw_trials(axes: Sequence[Axis], *, trials: int | None, seed: int) -> list[Values]:
    """Return the whole grid, or `trials` trials drawn from it without repetition or from the ranges.

    Raises:
        ValueError: a range without `trials`, or more trials than the grid has.
    """
    choices = [axis for axis in axes if isinstance(axis, Choice)]
    if len(choices) < len(axes):
        require(trials is not None, "sweep.trials", "be a number of trials to draw from the ranges", trials)
        assert trials is not None
        return [_drawn(axes, seed, number) for number in range(trials)]
    grid = [
        dict(zip([axis.key for axis in axes], values, strict=True))
        for values in itertools.product(*(axis.values for axis in choices))
    ]
    if trials is None:
        return grid
    require(trials <= len(grid), "sweep.trials", f"be at most {len(grid)}, the size of the grid", trials)
    order = torch.randperm(len(grid), generator=generator(seed, purpose="sweep"))
    return [grid[number] for number in sorted(order[:trials].tolist())]


def _drawn(axes: Sequence[Axis], seed: int, number: int) -> Values:
    shares = torch.rand(len(axes), generator=generator(seed, purpose="sweep", sample=number)).tolist()
    return {axis.key: axis.draw(share) for axis, share in zip(axes, shares, strict=True)}


def _axis(key: str, node: yaml.Node | None, *, holds_list: bool) -> Axis | None:
    """The axis of an override; None for an ordinary value."""
    if isinstance(node, yaml.SequenceNode):
        if holds_list and not any(isinstance(child, yaml.SequenceNode) for child in node.value):
            return None
        require(bool(node.value), key, "list at least one value", "[]")
        values = tuple(_text(child) for child in node.value)
        require(len(set(values)) == len(values), key, "list each value once", _text(node))
        return Choice(key=key, values=values)
    if isinstance(node, yaml.MappingNode) and len(node.value) == 1:
        kind, limits = node.value[0]
        if kind.value in _KINDS:
            return _range(key, kind.value, limits)
    return None


def _range(key: str, kind: str, limits: yaml.Node) -> Range:
    texts = [_text(child) for child in limits.value] if isinstance(limits, yaml.SequenceNode) else []
    try:
        low, high = (float(text) for text in texts)
    except ValueError:
        low, high = math.nan, math.nan
    expected = f"be a range {{{kind}: [LOW, HIGH]}} with LOW below HIGH"
    require(low < high and math.isfinite(high - low), key, expected, _text(limits))
    if kind == "log_uniform":
        require(low > 0, key, "have a LOW above 0 with log_uniform", _text(limits))
    if kind == "int_uniform":
        require(low == int(low) and high == int(high), key, "have whole numbers", _text(limits))
    return Range(key=key, kind=kind, low=low, high=high)


def _text(node: yaml.Node) -> str:
    """The YAML of a value on one line, as it was written."""
    text: str = yaml.serialize(node, width=1 << 30, allow_unicode=True)
    return text.strip().removesuffix("...").strip()
