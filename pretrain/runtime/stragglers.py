"""Straggler detection: each process's local time, compared at the reports.

A step takes as long as the slowest process, so the time of a whole step is equal on all. The local time is
the part before a process first waits for others: waiting for data, and the forward pass. (At ZeRO stage 3
the forward pass itself waits for others: a slow loader shows there, a slow device does not.)
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from statistics import median_low
from time import monotonic
from typing import Any

import torch

from kinemae.data_tools.command import log

_PERIODS_IN_A_ROW = 3
_PERIOD_S = 5.0  # of local time; single steps are noise


class LocalTime:
    """Sum of this process's local time, in seconds since it was last taken."""

    def __init__(self, device: torch.device):
        self._is_cuda = device.type == "cuda"
        self._seconds = 0.0
        self._events: list[tuple[Any, Any]] = []

    def add(self, seconds: float) -> None:
        self._seconds += seconds

    @contextmanager
    def forward(self) -> Iterator[None]:
        """Measure a forward pass, on CUDA without waiting for it."""
        if not self._is_cuda:
            begun_s = monotonic()
            yield
            self._seconds += monotonic() - begun_s
            return
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        yield
        end.record()
        self._events.append((begin, end))

    def take(self) -> float:
        """Return the sum and reset it; on CUDA this waits for the last forward pass."""
        if self._events:
            self._events[-1][1].synchronize()
        seconds = self._seconds + sum(begin.elapsed_time(end) for begin, end in self._events) / 1000
        self._seconds, self._events = 0.0, []
        return seconds


class Stragglers:
    """Log a process that is slow for several periods in a row, with its host.

    Args:
        hosts: of all processes, by rank.
        ratio: `timeouts.straggler_ratio`.
        logs: whether to warn; one process does, since all have the same information.
    """

    def __init__(self, hosts: Sequence[str], *, ratio: float, logs: bool = True):
        self._logs = logs
        self._hosts = hosts
        self._ratio = ratio
        self._slow = [0] * len(hosts)
        self._local_s = [0.0] * len(hosts)

    def update(self, local_s: Sequence[float]) -> dict[str, float]:
        """The metrics of a report: the slowest process, and its time divided by the median.

        Args:
            local_s: local time of all processes, by rank. Of two, the faster one is the median.
        """
        if len(local_s) < 2:
            return {}
        self._local_s = [before + seconds for before, seconds in zip(self._local_s, local_s, strict=True)]
        if median_low(self._local_s) >= _PERIOD_S:
            self._end_period(median_low(self._local_s))
            self._local_s = [0.0] * len(local_s)
        slowest = max(range(len(local_s)), key=lambda rank: local_s[rank])
        ratio = local_s[slowest] / max(median_low(local_s), 1e-9)
        return {"slowest_rank": slowest, "slowest_ratio": round(ratio, 3)}

    def _end_period(self, median_s: float) -> None:
        for rank, seconds in enumerate(self._local_s):
            self._slow[rank] = self._slow[rank] + 1 if seconds > self._ratio * median_s else 0
            if self._slow[rank] == _PERIODS_IN_A_ROW and self._logs:
                log.warning(
                    "rank %d on %s is a straggler: its local time (data and forward pass) was %.1f times "
                    "the median for at least %.0f seconds; all other processes wait for it",
                    rank, self._hosts[rank], seconds / median_s, _PERIODS_IN_A_ROW * _PERIOD_S,
                )  # fmt: skip
