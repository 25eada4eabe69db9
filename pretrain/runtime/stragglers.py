"""Who is slow: each process's own time in a step, compared at the reports.

A step takes as long as the slowest process needs, and in the whole step's time all look alike. So what counts
is what a process does before it first meets the others: waiting for its data, and the forward pass. (At ZeRO
stage 3 the forward pass itself meets the others; a slow loader shows there, a slow device does not.)
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from statistics import median_low
from time import monotonic
from typing import Any

import torch

from kinemae.data_tools.command import log

_STRETCHES_IN_A_ROW = 3
_STRETCH_S = 5.0  # of own work: single steps are noise


class OwnTime:
    """The time of this process's own work, in seconds since it was last taken."""

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
        """The sum, and begin anew; on CUDA this waits for the last forward pass."""
        if self._events:
            self._events[-1][1].synchronize()
        seconds = self._seconds + sum(begin.elapsed_time(end) for begin, end in self._events) / 1000
        self._seconds, self._events = 0.0, []
        return seconds


class Stragglers:
    """Names a process that is slow for several stretches in a row, with its host.

    Args:
        hosts: of all processes, by rank.
        ratio: `timeouts.straggler_ratio`.
        logs: whether to warn; one process does, since all know the same.
    """

    def __init__(self, hosts: Sequence[str], *, ratio: float, logs: bool = True):
        self._logs = logs
        self._hosts = hosts
        self._ratio = ratio
        self._slow = [0] * len(hosts)
        self._own_s = [0.0] * len(hosts)

    def judge(self, own_s: Sequence[float]) -> dict[str, float]:
        """What a report adds to the metrics: who was the slowest, and how many times the median it took.

        Args:
            own_s: own time of all processes, by rank. Of two, the faster one is the median.
        """
        if len(own_s) < 2:
            return {}
        self._own_s = [before + seconds for before, seconds in zip(self._own_s, own_s, strict=True)]
        if median_low(self._own_s) >= _STRETCH_S:
            self._judge_stretch(median_low(self._own_s))
            self._own_s = [0.0] * len(own_s)
        slowest = max(range(len(own_s)), key=lambda rank: own_s[rank])
        ratio = own_s[slowest] / max(median_low(own_s), 1e-9)
        return {"slowest_rank": slowest, "slowest_ratio": round(ratio, 3)}

    def _judge_stretch(self, median_s: float) -> None:
        for rank, seconds in enumerate(self._own_s):
            self._slow[rank] = self._slow[rank] + 1 if seconds > self._ratio * median_s else 0
            if self._slow[rank] == _STRETCHES_IN_A_ROW and self._logs:
                log.warning(
                    "rank %d on %s is a straggler: its own work (data and forward pass) took %.1f times the "
                    "median's for %.0f seconds and more; all others wait for it",
                    rank, self._hosts[rank], seconds / median_s, _STRETCHES_IN_A_ROW * _STRETCH_S,
                )  # fmt: skip
