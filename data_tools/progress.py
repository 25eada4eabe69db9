"""Progress of a long command: a bar on a terminal, plain lines with the remaining time in a log."""

import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

from kinemae.data_tools.command import log

Result = TypeVar("Result")

LINE_EVERY_S = 20.0


class Pace:
    """Decides when to log a progress line, and estimates the remaining time.

    A line is due at the end and at multiples of 1, 2 or 5 times a power of ten, about every `every_s`
    seconds.

    Args:
        first: number of steps done at the start.
        total: number of all steps.
    """

    def __init__(
        self,
        *,
        first: int = 0,
        total: int,
        every_s: float = LINE_EVERY_S,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._first, self._total, self._every_s, self._clock = first, total, every_s, clock
        self._last = first
        self._start_s = clock()

    @property
    def per_s(self) -> float:
        """Average number of steps per second; 0 before the first one."""
        passed_s = self._clock() - self._start_s
        return (self._last - self._first) / passed_s if passed_s > 0 else 0.0

    def is_due(self, done: int) -> bool:
        """Update the number of steps done; return whether a line is due."""
        before, self._last = self._last, done
        if done >= self._total:
            return True
        interval = round_up(self.per_s * self._every_s)
        has_rate = self._clock() - self._start_s >= self._every_s / 4  # the start takes seconds
        return has_rate and done // interval > before // interval

    def left(self) -> str:
        """The remaining time, such as `1 h 20 min left`; empty at the end and before the first step."""
        rate = self.per_s
        if rate == 0 or self._last >= self._total:
            return ""
        return f"{duration((self._total - self._last) / rate)} left"


def round_up(number: float) -> int:
    """Round up to one of 1, 2, 5, 10, 20, 50, ..."""
    if number <= 1:
        return 1
    power = 10 ** math.floor(math.log10(number))
    return int(next(factor * power for factor in (1, 2, 5, 10) if factor * power >= number))


def duration(seconds: float) -> str:
    """Format a duration in its two largest units."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    if minutes < 24 * 60:
        return f"{minutes // 60} h {minutes % 60} min"
    hours = round(seconds / 3600)
    return f"{hours // 24} d {hours % 24} h"


def progress(
    results: Iterable[Result], *, total: int, what: str, unit: str = "video", first: int = 0
) -> Iterator[Result]:
    """Yield the results and show progress: a bar on a terminal, plain lines in a log.

    Args:
        first: number of results before the first of these.
    """
    if sys.stderr.isatty():
        yield from tqdm(results, total=total, desc=what, unit=unit, initial=first)
        return
    pace = Pace(first=first, total=total)
    for done, result in enumerate(results, start=first + 1):
        yield result
        if pace.is_due(done):
            log.info("%s: %d of %d, %s", what, done, total, pace.left() or f"{pace.per_s:.1f} {unit}s/s")
