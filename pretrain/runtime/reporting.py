"""What happens at a report: the metrics of the steps since the last one are fetched, judged and written."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from kinemae.data_tools.command import log
from kinemae.pretrain.runtime.checkpoint import RunState
from kinemae.pretrain.runtime.incidents import Incidents
from kinemae.pretrain.runtime.loss_guard import Guard, Incident, is_skipped
from kinemae.pretrain.runtime.meter import Report
from kinemae.pretrain.runtime.metrics import MetricsWriter
from kinemae.pretrain.runtime.processes import Processes
from kinemae.pretrain.runtime.settings import RunSettings
from kinemae.pretrain.runtime.stragglers import Stragglers


class Reporting:
    """The reports from a state on.

    Args:
        incidents: where the keys of bad steps are noted.
        stragglers: told everybody's own time.

    Attributes:
        state: as it was at the last report.
    """

    def __init__(
        self,
        settings: RunSettings,
        processes: Processes,
        state: RunState,
        *,
        incidents: Incidents,
        stragglers: Stragglers,
    ):
        self.state = state
        self._incidents = incidents
        self._stragglers = stragglers
        self._guard = Guard(settings.loss_guard, state.recent)
        self.writer: MetricsWriter | None = None
        if processes.is_first:
            run_dir = Path(settings.run_dir)
            self.writer = MetricsWriter(run_dir, first_step=state.step, steps=settings.steps)

    def take(self, report: Report, *, clips_per_step: int) -> Incident | None:
        """Count and judge the lines of a report; those of an incident are counted all the same."""
        lines = report.lines
        lines[-1] |= self._stragglers.judge(report.own_s)
        done = lines[-1]["step"] + 1
        skipped = [line["step"] for line in lines if is_skipped(line)]
        self._tell_skipped(skipped)
        incident = self._guard.judge(lines)
        self.state = replace(
            self.state,
            step=done,
            clips=done * clips_per_step,
            skipped_clips=self.state.skipped_clips + sum(line["skipped_clips"] for line in lines),
            skipped_steps=self.state.skipped_steps + len(skipped),
            recent=list(self._guard.recent),
        )
        return incident

    def write(self, lines: Sequence[dict[str, Any]]) -> None:
        """Write the lines, on the first process."""
        if self.writer is not None:
            self.writer.write(lines)

    def close(self) -> None:
        if self.writer is not None:
            self.writer.close()

    def _tell_skipped(self, steps: Sequence[int]) -> None:
        """Log skipped steps on the first process only, since all have the same information."""
        if self.writer is None:
            return
        for step in steps:
            log.warning("step %d was skipped on all processes: its gradient is not finite", step)
            self._incidents.write([step], "its gradient is not finite: the update was left out")
