"""Progress of a long command: a bar on a terminal, elsewhere plain lines with the time left."""

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
    """When a line is due, and how much time is left.

    Lines come at the end, and at multiples of 1, 2 or 5 times a power of ten: of the one that makes them come
    about every `every_s` seconds.

    Args:
        first: how many are done at the start.
        total: how many there are.
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
        """How many are done in a second, on average; 0 before there is any."""
        passed_s = self._clock() - self._start_s
        return (self._last - self._first) / passed_s if passed_s > 0 else 0.0

    def is_due(self, done: int) -> bool:
        """Count what is done, and say whether a line is to be written."""
        before, self._last = self._last, done
        if done >= self._total:
            return True
        interval = round_up(self.per_s * self._every_s)
        has_rate = self._clock() - self._start_s >= self._every_s / 4  # the start alone takes seconds
        return has_rate and done // interval > before // interval

    def left(self) -> str:
        """The time left, as in `1 h 20 min left`; empty at the end and before there is any rate."""
        rate = self.per_s
        if rate == 0 or self._last >= self._total:
            return ""
        return f"{duration((self._total - self._last) / rate)} left"


def round_up(number: float) -> int:
    """The smallest of 1, 2, 5, 10, 20, 50, ... that is not below a number."""
    if number <= 1:
        return 1
    power = 10 ** math.floor(math.log10(number))
    return int(next(factor * power for factor in (1, 2, 5, 10) if factor * power >= number))


def duration(seconds: float) -> str:
    """A time in its two largest units."""
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


def progress(results: Iterable[Result], *, total: int, what: str, unit: str = "video") -> Iterator[Result]:
    """Pass results on, showing a bar on a terminal and plain lines in a log."""
    if sys.stderr.isatty():
        yield from tqdm(results, total=total, desc=what, unit=unit)
        return
    pace = Pace(total=total)
    for done, result in enumerate(results, start=1):
        yield result
        if pace.is_due(done):
            log.info("%s: %d of %d, %s", what, done, total, pace.left() or f"{pace.per_s:.1f} {unit}s/s")
