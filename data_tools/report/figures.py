"""Charts: histograms and rankings as relative bar sizes with labels."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

_BINS = 24
_LOG_RANGE = (200.0, 1e9)  # of largest to smallest value, for a logarithmic axis
_MAX_TICKS = 8
_MAX_ROWS = 1000
_ROUND_STEPS = (1.0, 2.0, 2.5, 5.0, 10.0)


@dataclass(frozen=True, kw_only=True)
class Bar:
    """A bar of a histogram, as fractions of the chart's width and height, with one segment per split.

    Attributes:
        segments: (split's number, lower end, height).
        text: tooltip, such as "12.5 to 13 s: 42".
        range, counts: the same as table cells.
    """

    left: float
    width: float
    segments: tuple[tuple[int, float, float], ...]
    text: str
    range: str
    counts: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Histogram:
    """A histogram over all splits.

    Attributes:
        summary: minimum, maximum and median in words.
        ticks: (fraction of the width, label).
        top: count of the highest bar.
    """

    title: str
    unit: str
    summary: str
    bars: tuple[Bar, ...]
    ticks: tuple[tuple[float, str], ...]
    top: int
    is_logarithmic: bool


@dataclass(frozen=True, kw_only=True)
class Row:
    """A row of a ranking: name, count per split, and bar widths relative to the longest bar."""

    name: str
    counts: tuple[int, ...]
    widths: tuple[float, ...]

    @property
    def total(self) -> int:
        return sum(self.counts)


@dataclass(frozen=True, kw_only=True)
class Ranking:
    """Values by frequency: visible rows, folded rows, and the number of values that are left out."""

    title: str
    rows: tuple[Row, ...]
    folded: tuple[Row, ...]
    left_out: int


def histogram(title: str, unit: str, values: Sequence[np.ndarray]) -> Histogram:
    """Make a histogram of the values of each split, with round bin edges."""
    together = np.concatenate(values)
    low, high = float(together.min()), float(together.max())
    is_logarithmic = low > 0 and _LOG_RANGE[0] < high / low < _LOG_RANGE[1]
    edges = _logarithmic(low, high) if is_logarithmic else _linear(low, high)
    counts_SX = np.stack([np.histogram(of_split, edges)[0] for of_split in values])
    place = np.log(edges) if is_logarithmic else edges
    place = (place - place[0]) / (place[-1] - place[0])
    top = int(counts_SX.sum(axis=0).max())
    bars = [
        _bar(counts_SX[:, at], edges[at : at + 2], place[at : at + 2], (top, unit))
        for at in range(len(place) - 1)
    ]
    span = short(low) if low == high else f"{short(low)} to {short(high)}"
    return Histogram(
        title=title,
        unit=unit,
        summary=f"{span} {unit}".rstrip() + f", median {short(float(np.median(together)))} {unit}".rstrip(),
        bars=tuple(bars),
        ticks=_ticks(edges, place),
        top=top,
        is_logarithmic=is_logarithmic,
    )


def ranking(title: str, names: Sequence[str], counts_SX: np.ndarray, *, shown: int) -> Ranking:
    """Rank names by their counts over all splits; rows after the first `shown` are folded."""
    order = np.argsort(-counts_SX.sum(axis=0), kind="stable")
    longest = max(int(counts_SX.sum(axis=0).max(initial=0)), 1)
    rows = []
    for at in order[:_MAX_ROWS]:
        counts = tuple(int(count) for count in counts_SX[:, at])
        rows.append(Row(name=names[at], counts=counts, widths=tuple(count / longest for count in counts)))
    return Ranking(
        title=title, rows=tuple(rows[:shown]), folded=tuple(rows[shown:]), left_out=len(names) - len(rows)
    )


def short(value: float) -> str:
    """Format with three significant digits and no exponent: 0.0123, 4.7, 150, 12,346; below 1e-6 as 0."""
    if abs(value) < 1e-6:
        return "0"
    digits = max(2 - math.floor(math.log10(abs(value))), 0)
    text = f"{value:,.{digits}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def size_text(count: float) -> str:
    """Format a number of bytes, in powers of 1000."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if count < 1000:
            return f"{short(count)} {unit}"
        count /= 1000
    return f"{short(count)} PB"


def time_text(seconds: float) -> str:
    """Format a duration in seconds, minutes or hours."""
    if seconds < 120:
        return f"{short(seconds)} s"
    return f"{short(seconds / 60)} min" if seconds < 7200 else f"{short(seconds / 3600)} h"


def _bar(counts_S: np.ndarray, edges: np.ndarray, place: np.ndarray, scale: tuple[int, str]) -> Bar:
    top, unit = scale
    segments, lower = [], 0.0
    for split, count in enumerate(counts_S.tolist()):
        if count:
            segments.append((split, lower, count / top))
            lower += count / top
    span = f"{short(edges[0])} to {short(edges[1])}"
    return Bar(
        left=float(place[0]),
        width=float(place[1] - place[0]),
        segments=tuple(segments),
        text=f"{span} {unit}: {counts_S.sum():,}",
        range=span,
        counts=tuple(counts_S.tolist()),
    )


def _ticks(edges: np.ndarray, place: np.ndarray) -> tuple[tuple[float, str], ...]:
    """Labels at every n-th bin edge, aligned to round numbers."""
    every = 1
    while len(edges) / every > _MAX_TICKS:
        every = next(number for number in (2, 5, 10, 20, 50, 100) if number > every)
    first = -round(edges[0] / (edges[1] - edges[0])) % every
    return tuple((float(place[at]), short(edges[at])) for at in range(first, len(edges), every))


def _linear(low: float, high: float) -> np.ndarray:
    if high - low <= 1e-6 * max(abs(low), abs(high), 1):  # equal up to rounding
        low, high = low - max(abs(low), 1) * 0.05, high + max(abs(low), 1) * 0.05
    step = round_step((high - low) / _BINS)
    first, last = math.floor(low / step), math.floor(high / step) + 1
    return np.arange(first, last + 1) * step


def _logarithmic(low: float, high: float) -> np.ndarray:
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 2)
    steps = np.array([factor * 10.0**power for power in powers for factor in (1, 2, 5)])
    first = int(np.searchsorted(steps, low, side="right")) - 1
    last = int(np.searchsorted(steps, high, side="right"))
    return steps[first : last + 1]


def round_step(rough: float) -> float:
    """The next larger round number, for the distance of ticks: 1, 2, 2.5 or 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(rough))
    return next(factor for factor in _ROUND_STEPS if factor * power >= rough * (1 - 1e-9)) * power
