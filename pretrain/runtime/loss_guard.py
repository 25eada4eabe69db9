"""Loss guard: skipped steps, loss spikes and rollbacks, and their record in `RUN/incidents`.

The engine skips a step whose gradient is not finite, on all processes. The guard finds spikes in the loss or
the gradient norm at each report. The run then loads the newest checkpoint before the spike and repeats the
steps without that step's update. The decision depends only on the metrics, which are equal on all processes,
and on the checkpoint; so a run that is killed meanwhile decides the same again.
"""

import fnmatch
import json
import math
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any

from kinemae.data_tools.command import log
from kinemae.data_tools.files import atomic_write_text, names_in, read_json
from kinemae.data_tools.stream.order import BatchPlan
from kinemae.data_tools.stream.training_clips import RunClips
from kinemae.pretrain.runtime.checkpoint import RunState
from kinemae.pretrain.runtime.settings import LossGuardConfig

_MONITORED = ("loss", "grad_norm")


@dataclass(frozen=True, kw_only=True)
class Incident:
    """Steps with a spike or without a finite gradient.

    Attributes:
        steps: in order.
        lead: number of earlier steps that are left out too, since they may be the cause.
        reason: completes "step N: ".
    """

    steps: tuple[int, ...]
    lead: int
    reason: str

    def omitted(self, first_step: int) -> range:
        """The steps to leave out in a run that continues from `first_step`."""
        return range(max(first_step, self.steps[0] - self.lead), self.steps[-1] + 1)


class LossGuard:
    """Check the steps of a run in order.

    Attributes:
        recent: loss and gradient norm of the last applied steps, oldest first; empty if the guard is off.
        skipped_in_row: the last steps, if their gradients were not finite.

    A checkpoint stores both, and a continued run starts with them.
    """

    def __init__(
        self, config: LossGuardConfig, recent: Sequence[list[float]], skipped_in_row: Sequence[int] = ()
    ):
        self._config = config
        self.recent = deque(recent if config.is_on else (), maxlen=config.window)
        self.skipped_in_row = list(skipped_in_row)

    def check(self, lines: Sequence[dict[str, Any]]) -> Incident | None:
        """The first incident in the next lines of metrics; later lines are not examined.

        Lines marked "omitted" are ignored.
        """
        for line in lines:
            if line.get("omitted"):
                continue
            incident = self._check_skipped(line) if is_skipped(line) else self._check_applied(line)
            if incident is not None:
                return incident
        return None

    def _check_skipped(self, line: dict[str, Any]) -> Incident | None:
        self.skipped_in_row.append(line["step"])
        if len(self.skipped_in_row) < self._config.max_skipped:
            return None
        return Incident(
            steps=tuple(self.skipped_in_row),
            # Skipped steps do not change the weights: the cause lies before them.
            lead=self._config.max_skipped,
            reason=f"{len(self.skipped_in_row)} steps in a row had a gradient that is not finite",
        )

    def _check_applied(self, line: dict[str, Any]) -> Incident | None:
        self.skipped_in_row.clear()
        if not self._config.is_on:
            return None
        if len(self.recent) == self._config.window:
            for name, before in zip(_MONITORED, zip(*self.recent, strict=True), strict=True):
                limit = fmean(before) + self._config.spike_sigmas * pstdev(before)
                if line[name] > limit:
                    reason = (
                        f"{name} {line[name]:.6g} is above {limit:.6g}, loss_guard.spike_sigmas="
                        f"{self._config.spike_sigmas:g} deviations above the mean of {len(before)} steps"
                    )
                    return Incident(steps=(line["step"],), lead=0, reason=reason)
        values = [line[name] for name in _MONITORED]
        if all(map(math.isfinite, values)):  # a step without a readable clip has no loss
            self.recent.append(values)
        return None


def is_skipped(line: dict[str, Any]) -> bool:
    """Check whether the engine skipped the update because the gradient was not finite."""
    return not line.get("omitted") and not math.isfinite(line["grad_norm"])


class IncidentLog:
    """`RUN/incidents/step-00001234.json`: the clips of skipped steps and spikes, and the omitted steps.

    Only the first process reads and writes. A full disk gives a warning. If a run was killed between a
    rollback and its next checkpoint, it reads the omitted steps from these files.

    Args:
        clips: clips of the run; only their sample keys are used.
    """

    def __init__(self, run_dir: Path, clips: RunClips[Any], plan: BatchPlan):
        self._folder = run_dir / "incidents"
        self._clips = clips
        self._plan = plan

    def write(self, steps: Sequence[int], reason: str, *, omitted: Iterable[int] = ()) -> None:
        """Write an incident, named after its first step.

        Args:
            omitted: steps whose update is left out from now on.
        """
        found = {
            "step": steps[0],
            "reason": reason,
            "omitted": list(omitted),
            "keys": {str(step): self._keys(step) for step in steps},
        }
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            atomic_write_text(self._folder / f"step-{steps[0]:08d}.json", json.dumps(found, indent=1))
        except OSError as error:
            log.warning("cannot write the incident of step %d to %s (%s)", steps[0], self._folder, error)

    def restore(self, state: RunState) -> RunState:
        """Add rollbacks that happened after the state's checkpoint.

        Raises:
            OSError: the folder exists and cannot be read.
        """
        for name in sorted(fnmatch.filter(names_in(self._folder), "step-*.json")):
            new = set(read_json(self._folder / name)["omitted"]) - set(state.omitted)
            if new:
                omitted = sorted(new | set(state.omitted))
                state = replace(state, omitted=omitted, rollbacks=state.rollbacks + 1)
        return state

    def _keys(self, step: int) -> list[str]:
        """The sample key of each clip of the step, over all processes, in the order of the run."""
        first = step * self._plan.global_clips
        return self._clips.keys(range(first, first + self._plan.global_clips))
