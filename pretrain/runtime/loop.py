"""The training loop, the same for pretraining and fine-tuning.

What happens at a step is a function of the step and of which steps' updates are left out: which clips, their
crops and masks, the noise, the learning rate. The loop itself carries only counters (`RunState`).
"""

import platform
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from torch import nn

from kinemae.data_tools.command import DataError, Diverged, Stopped, log
from kinemae.data_tools.storage.location import StorageUnavailable
from kinemae.data_tools.stream.loader import TrainingClips
from kinemae.data_tools.stream.order import BatchPlan
from kinemae.pretrain.runtime.checkpoint import Checkpoints, RunState
from kinemae.pretrain.runtime.cores import share_cores
from kinemae.pretrain.runtime.engine import Engine
from kinemae.pretrain.runtime.incidents import Incidents
from kinemae.pretrain.runtime.loss_guard import Incident, LossGuardConfig
from kinemae.pretrain.runtime.metrics import MetricsWriter
from kinemae.pretrain.runtime.outages import StorageWait
from kinemae.pretrain.runtime.processes import Processes, join_group
from kinemae.pretrain.runtime.rank_flags import Agreement
from kinemae.pretrain.runtime.reporting import Reporting
from kinemae.pretrain.runtime.settings import RunSettings
from kinemae.pretrain.runtime.signals import StopSignals
from kinemae.pretrain.runtime.stepping import Stepping
from kinemae.pretrain.runtime.stragglers import Stragglers
from kinemae.pretrain.runtime.watchdog import Watchdog

_FEW_BAD_CLIPS = 10


class Watcher(Protocol):
    """Something that looks at the run now and then, for example to draw pictures."""

    def is_due(self, first_step: int, last_step: int) -> bool:
        """Whether it looks at the report of these steps; a function of them, the same on every process."""

    def after_step(self, step: int, writer: MetricsWriter) -> None:
        """Called on the first process at a report that it is due at, the step being the last one done."""


@dataclass(kw_only=True)
class Training:
    """A run made ready: every check has passed, no process group has been used yet.

    Attributes:
        module: `forward(batch, draws)` gives per-clip values of shape (B,), "loss" among them.
        groups: the optimiser's parameter groups, each with "lr_scale".
        watchers: look at the run; known on every process.
    """

    module: nn.Module
    groups: list[dict[str, Any]]
    clips: TrainingClips
    plan: BatchPlan
    settings: RunSettings
    processes: Processes
    watchers: tuple[Watcher, ...] = ()
    _has_cores: bool = False

    def run(self) -> None:
        """Train from the newest checkpoint, or from the start, to the last step; then the module is readable.

        Raises:
            Stopped: on SIGTERM, SIGINT or SIGUSR1 to any process, after a checkpoint.
            DataError: more videos than allowed could not be read.
            CheckpointError: no checkpoint could be read or written.
            Diverged: the numbers went bad, and no roll-back is left.
            Stuck: the processes could not connect, or a storage was down for data.outage_s.
        """
        watchdog = Watchdog(self.settings.timeouts, rank=self.processes.rank)
        with watchdog:
            # `join_group` itself is bounded by the same key and says more, so it comes to its end first.
            join_group(self.processes, self.settings.timeouts)
            self.share_cores()
            watchdog.enter("building the engine and loading a checkpoint", limit="start_s")
            _Run(self, watchdog).go()

    def share_cores(self) -> None:
        """Collective. Set the number of loader workers and threads of this process, once."""
        if not self._has_cores:
            settings = self.settings
            threads = settings.engine.cpu_threads
            workers = share_cores(self.processes, workers=settings.num_workers, cpu_threads=threads)
            self.settings, self._has_cores = replace(settings, num_workers=workers), True


class _Run:
    """From the newest checkpoint to the last step, going back where the guard says so."""

    def __init__(self, training: Training, watchdog: Watchdog):
        self.training = training
        self.settings = settings = training.settings
        self.processes = processes = training.processes
        self.watchdog = watchdog
        self.engine = Engine(
            training.module,
            training.groups,
            optim=settings.optim,
            engine=settings.engine,
            plan=training.plan,
            processes=processes,
        )
        run_dir = Path(settings.run_dir)
        self.checkpoints = Checkpoints(
            run_dir,
            processes,
            keep=settings.keep_checkpoints,
            keep_every_steps=settings.keep_every_steps,
            background=settings.save_in_background,
        )
        self.incidents = Incidents(run_dir, training.clips, training.plan)
        self.agreement = Agreement(processes)
        nodes = processes.gather(platform.node())
        ratio = settings.timeouts.straggler_ratio
        self.stragglers = Stragglers(nodes, ratio=ratio, logs=processes.is_first)
        self.signals = StopSignals()
        self.saved_step = 0  # the step of the newest checkpoint
        self.has_looked = True  # watchers at the last report; the first step may take long as well

    def go(self) -> None:
        """See `Training.run`."""
        state = self._begin()
        with self.signals:
            while state.step < self.settings.steps:
                state, incident = self._go_on(state)
                if incident is not None:
                    state = self._go_back(state, incident)
        self.engine.make_readable()

    def _begin(self) -> RunState:
        state = self.checkpoints.load_newest(self.engine)
        state = self.processes.from_first(self.incidents.recall(state) if self.processes.is_first else state)
        self.saved_step = state.step
        if state.step:
            log.info("continuing at step %d of %d", state.step, self.settings.steps)
        elif self.settings.loss_guard.is_on:
            self._save(state)  # to have something to go back to
            self._commit()
        return state

    def _go_on(self, state: RunState) -> tuple[RunState, Incident | None]:
        """Steps until the last one, or until an incident."""
        stepping = Stepping(
            self.engine,
            clips=self.training.clips,
            plan=self.training.plan,
            settings=self.settings,
            processes=self.processes,
            watchdog=self.watchdog,
            state=state,
            on_outage=StorageWait(self.watchdog, self.signals),
        )
        reporting = Reporting(
            self.settings, self.processes, state, incidents=self.incidents, stragglers=self.stragglers
        )
        try:
            for step in range(state.step, self.settings.steps):
                try:
                    stepping.do(step, may_take_long=self.has_looked)
                except (StorageUnavailable, Stopped):
                    self._save_alone(step, stepping, reporting)
                    raise
                incident = self._end_step(step + 1, stepping, reporting)
                if incident is not None:
                    return reporting.state, incident
            self._commit()
            return reporting.state, None
        finally:
            stepping.close()
            reporting.close()

    def _end_step(self, done: int, stepping: Stepping, reporting: Reporting) -> Incident | None:
        """What is due after a step, at the same steps on all processes."""
        settings = self.settings
        self.has_looked = False
        agreed = self.agreement.answer()
        if self.checkpoints.is_under_way and not agreed.is_writing:
            self._commit()
        is_saved = done % settings.save_every_steps == 0 or done == settings.steps
        if is_saved or agreed.stop or done % settings.log.every_steps == 0:
            incident = self._report(stepping, reporting)
            if incident is not None:
                return incident
            if is_saved or agreed.stop:
                self._save(reporting.state)
            self._end_if_due(reporting.state, agreed.stop)
        if done < settings.steps:
            self.signals.tell()
            self.agreement.ask(stop=self.signals.exit_code, is_writing=not self.checkpoints.is_written())
        return None

    def _report(self, stepping: Stepping, reporting: Reporting) -> Incident | None:
        self.watchdog.move("reporting, or waiting for another process that should be")
        report = stepping.meter.fetch()
        incident = reporting.take(report, clips_per_step=self.training.plan.global_clips)
        if incident is None:
            self._look(report.lines[0]["step"], report.lines[-1]["step"], reporting.writer)
        reporting.write(report.lines)
        return incident

    def _look(self, first_step: int, last_step: int, writer: MetricsWriter | None) -> None:
        """Let those watchers look that are due; the metrics come after them, since they may add numbers."""
        due = [watcher for watcher in self.training.watchers if watcher.is_due(first_step, last_step)]
        if not due:
            return
        self.watchdog.enter("taking pictures and measures", limit="first_step_s", step=last_step)
        self.has_looked = True
        self.engine.make_readable()
        if writer is None:
            return
        for watcher in due:
            try:
                watcher.after_step(last_step, writer)
            except OSError as error:
                log.warning("%s could not look at the run: %s", type(watcher).__name__, error)

    def _save(self, state: RunState) -> None:
        """Begin to write a checkpoint, signed with who writes it."""
        stage = self.settings.engine.zero_stage
        with self.watchdog.during("saving a checkpoint", limit="save_s"):
            self.checkpoints.save(self.engine, replace(state, world=self.processes.world, zero_stage=stage))
        self.saved_step = state.step

    def _save_alone(self, done: int, stepping: Stepping, reporting: Reporting) -> None:
        """Save the steps before a storage outage; a single process only, since a save is collective."""
        if self.processes.world > 1 or done == self.saved_step:
            return
        if reporting.state.step == done or self._report(stepping, reporting) is None:
            self._save(reporting.state)
            self._commit()

    def _commit(self) -> None:
        with self.watchdog.during("committing a checkpoint", limit="save_s"):
            self.checkpoints.commit()

    def _end_if_due(self, state: RunState, stop: int) -> None:
        """End the run where there is a reason to, on all processes alike, once its checkpoint is whole."""
        allowed = max(_FEW_BAD_CLIPS, self.settings.max_bad_fraction * state.clips)
        if stop and state.step < self.settings.steps:
            self._commit()
            what = f"stopped at step {state.step} with a checkpoint; repeat the command to go on"
            raise Stopped(stop, self._said(what))
        if state.skipped_clips > allowed:
            self._commit()
            what = (
                f"{state.skipped_clips} of {state.clips} clips could not be read, more than "
                f"data.max_bad_fraction={self.settings.max_bad_fraction} allows; the log above names them"
            )
            raise DataError(self._said(what))

    def _go_back(self, state: RunState, incident: Incident) -> RunState:
        """Load the newest checkpoint before an incident; what is left out from now on stands in the state.

        Raises:
            Diverged: there is no guard, or it has gone back too often.
        """
        guard, first = self.settings.loss_guard, incident.steps[0]
        what = f"step {first}: {incident.reason}"
        if not guard.is_on or state.rollbacks >= guard.max_rollbacks:
            self._commit()
            self._note(incident, range(0))
            raise Diverged(self._said(f"{what}; {_ways_out(guard, state.rollbacks)}"))
        with self.watchdog.during("going back to a checkpoint", limit="save_s"):
            self.checkpoints.commit()
            loaded = self.checkpoints.load_newest(self.engine, before=first)
        omitted = incident.omitted(loaded.step)
        self._note(incident, omitted)
        self.has_looked = True
        log.warning(
            "%s: back to the checkpoint of step %d, and on without the updates of steps %d to %d",
            what, loaded.step, omitted[0], omitted[-1],
        )  # fmt: skip
        everything = sorted({*state.omitted, *omitted})
        return replace(loaded, omitted=everything, rollbacks=state.rollbacks + 1)

    def _note(self, incident: Incident, omitted: range) -> None:
        if self.processes.is_first:
            self.incidents.write(incident.steps, incident.reason, omitted=omitted)

    def _said(self, what: str) -> str:
        """What an error that all processes meet alike says on this one."""
        return what if self.processes.is_first else "ended as all processes did: the log of rank 0 says why"


def _ways_out(guard: LossGuardConfig, rollbacks: int) -> str:
    if guard.is_on:
        return (
            f"the run went back {rollbacks} times already, loss_guard.max_rollbacks={guard.max_rollbacks}: "
            "see RUN/incidents for the clips, lower optim.lr, or raise loss_guard.max_rollbacks"
        )
    return (
        "lower optim.lr or set optim.clip_norm, and continue from an older checkpoint; or set "
        "loss_guard.spike_sigmas, and the run goes back by itself"
    )
