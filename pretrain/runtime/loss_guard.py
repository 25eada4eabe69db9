"""The guard: what happens when a run's numbers go bad.

A step whose gradient is not finite is skipped by the engine on all processes. A step whose loss or gradient
norm jumps out of the last ones' range (a spike) is found here, at the report: the run goes back to the newest
checkpoint before it and is run again with that step's update left out. The judgement needs nothing but the
lines of the metrics, which are the same on all processes, and what the checkpoint holds; so a run that is
killed in the midst of it judges the same again.
"""

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, pstdev
from typing import Any

from kinemae.data_tools.config import require

_WATCHED = ("loss", "grad_norm")


@dataclass(frozen=True, kw_only=True)
class LossGuardConfig:
    """When numbers count as bad, and how often a run may go back.

    Attributes:
        spike_sigmas: a step is a spike where its loss or gradient norm lies so many standard deviations above
            the mean of the last steps; 0 for no guard: nothing is rolled back.
        window: how many of the last applied steps those are; before there are so many nothing is a spike.
        max_rollbacks: in the whole run; at the next incident it stops.
        max_skipped: steps in a row whose gradient is not finite before the run goes back or, without a
            guard, stops.
    """

    spike_sigmas: float = 0.0
    window: int = 128
    max_rollbacks: int = 10
    max_skipped: int = 10

    def __post_init__(self) -> None:
        require(self.spike_sigmas >= 0, "loss_guard.spike_sigmas", "be 0 (off) or more", self.spike_sigmas)
        require(self.window >= 2, "loss_guard.window", "be at least 2", self.window)
        require(self.max_rollbacks >= 0, "loss_guard.max_rollbacks", "be 0 or more", self.max_rollbacks)
        require(self.max_skipped >= 1, "loss_guard.max_skipped", "be at least 1", self.max_skipped)

    @property
    def is_on(self) -> bool:
        return self.spike_sigmas > 0


@dataclass(frozen=True, kw_only=True)
class Incident:
    """Steps whose numbers went bad.

    Attributes:
        steps: the bad ones, in order.
        led_by: how many steps before them are left out too, since what they did to the weights shows here.
        reason: to be read after "step N: ".
    """

    steps: tuple[int, ...]
    led_by: int
    reason: str

    def omitted(self, first_step: int) -> range:
        """The steps to leave out in a run that goes on from `first_step`."""
        return range(max(first_step, self.steps[0] - self.led_by), self.steps[-1] + 1)


class Guard:
    """Judges the steps of a run one after the other.

    Attributes:
        recent: loss and gradient norm of the last applied steps, oldest first; empty without a guard. What a
            checkpoint holds of them is where a continued run begins.
    """

    def __init__(self, config: LossGuardConfig, recent: Sequence[list[float]]):
        self._config = config
        self.recent = deque(recent if config.is_on else (), maxlen=config.window)
        self._skipped: list[int] = []  # the row of steps without a finite gradient that ends here

    def judge(self, lines: Sequence[dict[str, Any]]) -> Incident | None:
        """The first incident among these lines, the next ones of the run; what follows it is not looked at.

        A line that is marked "omitted" counts for nothing.
        """
        for line in lines:
            if line.get("omitted"):
                continue
            incident = self._judge_skipped(line) if is_skipped(line) else self._judge_applied(line)
            if incident is not None:
                return incident
        return None

    def _judge_skipped(self, line: dict[str, Any]) -> Incident | None:
        self._skipped.append(line["step"])
        if len(self._skipped) < self._config.max_skipped:
            return None
        return Incident(
            steps=tuple(self._skipped),
            # Skipping did the weights no harm: what is wrong with them came before.
            led_by=self._config.max_skipped,
            reason=f"{len(self._skipped)} steps in a row had a gradient that is not finite",
        )

    def _judge_applied(self, line: dict[str, Any]) -> Incident | None:
        self._skipped.clear()
        if not self._config.is_on:
            return None
        if len(self.recent) == self._config.window:
            for name, before in zip(_WATCHED, zip(*self.recent, strict=True), strict=True):
                limit = fmean(before) + self._config.spike_sigmas * pstdev(before)
                if line[name] > limit:
                    reason = (
                        f"{name} {line[name]:.6g} is above {limit:.6g}, loss_guard.spike_sigmas="
                        f"{self._config.spike_sigmas:g} deviations above the mean of {len(before)} steps"
                    )
                    return Incident(steps=(line["step"],), led_by=0, reason=reason)
        self.recent.append([line[name] for name in _WATCHED])
        return None


def is_skipped(line: dict[str, Any]) -> bool:
    """Whether the engine left the update out because the gradient was not finite."""
    return not line.get("omitted") and not math.isfinite(line["grad_norm"])
