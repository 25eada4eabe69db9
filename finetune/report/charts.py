"""Charts of a page: lines, points and bands as fractions of the chart's width and height.

The template draws them in an SVG that stretches to the width of the page. Labels are text beside it, which
keeps its size on a phone.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from kinemae.data_tools.report.figures import round_step, short

MOST_POINTS = 100  # of a line; longer ones are averaged in bins
_TICKS = 5
_TABLE_ROWS = 120


@dataclass(frozen=True, kw_only=True)
class Series:
    """Values of one line or set of points.

    Attributes:
        colour: number of the colour; series of equal number belong together.
        kind: "line", "dotted" (a line with a point at each value), "points" or "dashed".
        low, high: ends of a band around a line, such as the spread over seeds.
        texts: tooltips of the points.
    """

    name: str
    x: Sequence[float] | np.ndarray
    y: Sequence[float] | np.ndarray
    colour: int = 0
    kind: str = "line"
    low: Sequence[float] | np.ndarray | None = None
    high: Sequence[float] | np.ndarray | None = None
    texts: Sequence[str] = ()


@dataclass(frozen=True, kw_only=True)
class Rule:
    """A vertical line with a label."""

    x: float
    text: str


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """A series in the coordinates of the SVG, 1000 wide and 300 high."""

    name: str
    colour: int
    kind: str
    path: str
    band: str
    points: tuple[tuple[float, float, str], ...]


@dataclass(frozen=True, kw_only=True)
class Chart:
    """A chart with axes.

    Attributes:
        y_label: quantity and unit of the vertical axis; `x_label` of the horizontal one.
        x_ticks, y_ticks: (fraction of the width or the height from below, label).
        rules: (fraction of the width, label).
        head, rows: the numbers as a table.
        is_square: whether both axes have the same scale.
    """

    title: str
    note: str
    x_label: str
    y_label: str
    series: tuple[Drawn, ...]
    x_ticks: tuple[tuple[float, str], ...]
    y_ticks: tuple[tuple[float, str], ...]
    rules: tuple[tuple[float, str], ...] = ()
    head: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()
    is_square: bool = False

    @property
    def named(self) -> tuple[Drawn, ...]:
        """The series of the legend."""
        return tuple(each for each in self.series if each.name)


def draw_chart(  # noqa: PLR0913 - the parts of a chart, all by name
    title: str,
    series: Sequence[Series],
    *,
    x_label: str,
    y_label: str,
    note: str = "",
    x_range: tuple[float, float] | None = None,
    y_range: tuple[float, float] | None = None,
    rules: Sequence[Rule] = (),
    is_square: bool = False,
    with_table: bool = True,
) -> Chart | None:
    """Draw the finite values of some series; None if there are none.

    Args:
        x_range, y_range: limits of the axes; by default those of the values, rounded outwards.
        with_table: whether the chart offers its numbers as a table.
    """
    kept = [each for each in map(_finite, series) if len(each.x)]
    if not kept:
        return None
    x_axis = _Axis.of([each.x for each in kept] + [[rule.x for rule in rules]], x_range, is_tight=True)
    limits = [ends for each in kept for ends in (each.low, each.high) if ends is not None]
    y_axis = _Axis.of([each.y for each in kept] + limits, y_range)
    head, rows = _table(kept, x_label) if with_table else ((), ())
    return Chart(
        title=title,
        note=note,
        x_label=x_label,
        y_label=y_label,
        series=tuple(_draw(each, x_axis, y_axis) for each in kept),
        x_ticks=x_axis.ticks(),
        y_ticks=y_axis.ticks(),
        rules=tuple((float(x_axis.place(rule.x)), rule.text) for rule in rules),
        head=head,
        rows=rows,
        is_square=is_square,
    )


def averaged(x: Sequence[float], y: Sequence[float]) -> tuple[np.ndarray, np.ndarray, int]:
    """Average a long line in bins of equal numbers of values; also return the values per bin."""
    x_N, y_N = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    per_bin = math.ceil(len(x_N) / MOST_POINTS) if len(x_N) else 1
    if per_bin == 1:
        return x_N, y_N, 1
    starts = np.arange(0, len(x_N), per_bin)
    counts = np.diff([*starts, len(x_N)])
    return np.add.reduceat(x_N, starts) / counts, np.add.reduceat(y_N, starts) / counts, per_bin


@dataclass(frozen=True)
class _Axis:
    low: float
    high: float
    step: float

    @classmethod
    def of(
        cls,
        values: Sequence[Sequence[float] | np.ndarray],
        limits: tuple[float, float] | None,
        *,
        is_tight: bool = False,
    ) -> "_Axis":
        together = np.concatenate([np.asarray(each, dtype=float) for each in values])
        low, high = limits or (float(together.min()), float(together.max()))
        if high - low <= 1e-9 * max(abs(low), abs(high), 1e-9):
            padding = max(abs(low) * 0.1, 1e-6)
            low, high = low - padding, high + padding
        step = round_step((high - low) / _TICKS)
        if limits is None and not is_tight:
            low, high = math.floor(low / step + 1e-9) * step, math.ceil(high / step - 1e-9) * step
        return cls(low, high, step)

    def place(self, value: float | np.ndarray) -> np.ndarray:
        return np.clip((np.asarray(value, dtype=float) - self.low) / (self.high - self.low), -0.02, 1.02)

    def ticks(self) -> tuple[tuple[float, str], ...]:
        first, last = math.ceil(self.low / self.step - 1e-6), math.floor(self.high / self.step + 1e-6)
        marks = [number * self.step for number in range(first, last + 1)]
        return tuple((float(self.place(mark)), _label(mark, self.step)) for mark in marks)


def _label(value: float, step: float) -> str:
    """The value with as many digits as the step needs."""
    if step < 1e-6:
        return f"{value:.2g}"
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    digits += abs(round(step, digits) - step) > step * 1e-6  # 2.5
    return f"{value + 0.0:,.{digits}f}"


def _finite(series: Series) -> Series:
    x, y = np.asarray(series.x, dtype=float), np.asarray(series.y, dtype=float)
    keep = np.isfinite(x) & np.isfinite(y)
    low, high = (
        None if ends is None else np.asarray(ends, dtype=float)[keep] for ends in (series.low, series.high)
    )
    texts = tuple(text for text, kept in zip(series.texts, keep, strict=False) if kept)
    return Series(
        name=series.name,
        x=x[keep],
        y=y[keep],
        colour=series.colour,
        kind=series.kind,
        low=low,
        high=high,
        texts=texts,
    )


def _draw(series: Series, x_axis: _Axis, y_axis: _Axis) -> Drawn:
    x = np.round(1000 * x_axis.place(np.asarray(series.x)), 1)
    y = np.round(300 * (1 - y_axis.place(np.asarray(series.y))), 1)
    path = "" if series.kind == "points" else _path(x, y)
    band = ""
    if series.low is not None and series.high is not None and len(x) > 1:
        low, high = (
            np.round(300 * (1 - y_axis.place(np.asarray(ends))), 1) for ends in (series.low, series.high)
        )
        band = f"{_path(x, high)}L{_path(x[::-1], low[::-1])[1:]}Z"
    points: tuple[tuple[float, float, str], ...] = ()
    if series.kind in ("points", "dotted") or len(x) == 1:
        texts = series.texts or [f"{short(a)}: {short(b)}" for a, b in zip(series.x, series.y, strict=True)]
        points = tuple(zip(x.tolist(), y.tolist(), texts, strict=True))
    return Drawn(
        name=series.name, colour=series.colour, kind=series.kind, path=path, band=band, points=points
    )


def _path(x: np.ndarray, y: np.ndarray) -> str:
    return "M" + "L".join(f"{a:g} {b:g}" for a, b in zip(x.tolist(), y.tolist(), strict=True))


def _table(series: Sequence[Series], x_label: str) -> tuple[tuple[str, ...], tuple[tuple[str, ...], ...]]:
    """The numbers of all named series by x."""
    named = [each for each in series if each.name]
    cells: dict[float, dict[str, str]] = {}
    for each in named:
        for x, y in zip(np.asarray(each.x).tolist(), np.asarray(each.y).tolist(), strict=True):
            cells.setdefault(x, {})[each.name] = short(y)
    names = tuple(dict.fromkeys(each.name for each in named))
    every = math.ceil(len(cells) / _TABLE_ROWS) or 1
    rows = [(short(x), *(cells[x].get(name, "") for name in names)) for x in sorted(cells)[::every]]
    return (x_label, *names), tuple(rows)
