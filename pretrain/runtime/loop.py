"""The training loop of pretraining and fine-tuning.

Each step is a function of its number and of the omitted steps: its clips, their crops and masks, the noise,
the learning rate. The loop carries only counters (`RunState`).
"""

import platform
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, Protocol

from torch import nn

from kinemae.data_tools.command import DataError, Diverged, Stopped, log
from kinemae.data_tools.storage.location import StorageUnavailable
from kinemae.data_tools.stream.order import BatchPlan
from kinemae.data_tools.stream.streamed_clips import StreamedClips, merged_state
from kinemae.data_tools.stream.training_clips import RunClips
from kinemae.pretrain.runtime.abort import StopSignals, StorageWait
from kinemae.pretrain.runtime.checkpoint import Checkpoints, RunState
from kinemae.pretrain.runtime.engine import Engine
from kinemae.pretrain.runtime.file_retries import run_on_first
from kinemae.pretrain.runtime.loss_guard import Incident, IncidentLog, LossGuard, is_skipped
from kinemae.pretrain.runtime.metrics import MetricsWriter
from kinemae.pretrain.runtime.micro_batch import AutoMicroBatch
from kinemae.pretrain.runtime.optimizer import decay_start
from kinemae.pretrain.runtime.processes import Processes, init_process_group, share_cores
from kinemae.pretrain.runtime.rank_flags import RankFlags
from kinemae.pretrain.runtime.settings import LossGuardConfig, RunConfig
from kinemae.pretrain.runtime.stragglers import Stragglers
from kinemae.pretrain.runtime.train_step import Report, TrainStep
from kinemae.pretrain.runtime.utilization import utilization
from kinemae.pretrain.runtime.validation import ValidationProgress, Validator, is_owed, write_history
from kinemae.pretrain.runtime.watchdog import Watchdog
from kinemae.pretrain.runtime.weight_average import evaluation_weights

_FEW_BAD_CLIPS = 10


class Callback(Protocol):
    """A periodic measurement of the run, for example pictures."""

    def is_due(self, first_step: int, last_step: int) -> bool:
        """Check whether it runs at the report of these steps; the same on every process."""

    def after_step(self, step: int, writer: MetricsWriter) -> None:
        """Called on the first process at a report where it is due, with the last step that was done.

        The module then has its `evaluation_weights`.
        """


@dataclass(kw_only=True)
class Trainer:
    """Trainer of a checked run; `run` starts the process group.

    Attributes:
        module: `forward(batch, draws)` returns per-clip values of shape (B,), "loss" among them.
        groups: the optimizer's parameter groups, each with "lr_scale".
        steps: optimizer steps of the whole run, unless the validator ends it earlier.
        callbacks: the same on every process.
        validator: validates at fixed steps; None for none.
        step_flops: training FLOPs of a step over all processes, for the metrics of the first process; None
            if they are not known.
        compiled: whether `Compilable` parts of the module are compiled.
        auto: confirms the micro-batch of `plan`, an estimate; None if the config has it.
    """

    module: nn.Module
    groups: list[dict[str, Any]]
    clips: RunClips[Any]
    plan: BatchPlan
    config: RunConfig
    steps: int
    processes: Processes
    callbacks: tuple[Callback, ...] = ()
    validator: Validator | None = None
    step_flops: float | None = None
    compiled: bool = False
    auto: AutoMicroBatch | None = None
    _is_prepared: bool = False

    def run(self) -> RunState:
        """Train from the newest checkpoint, or from the start, to the last step; then gather the weights.

        Returns:
            The state at the end.

        Raises:
            Stopped: after SIGTERM, SIGINT or SIGUSR1 to any process and a checkpoint.
            DataError: more videos than allowed could not be read.
            CheckpointError: no checkpoint could be read or written.
            Diverged: the loss diverged, and no rollback is left.
            Stuck: the processes could not connect, or a storage was down for data.outage_s.
        """
        watchdog = Watchdog(self.config.timeouts, rank=self.processes.rank)
        with watchdog:
            # Before the first phase: `timeouts.start_s` bounds it too, with a better message.
            init_process_group(self.processes, self.config.timeouts)
            self.prepare()
            watchdog.start_phase("building the engine and loading a checkpoint", limit="start_s")
            return _Run(self, watchdog).run()

    def prepare(self) -> None:
        """Collective. Set the loader workers, threads and micro-batch of this process, once."""
        if self._is_prepared:
            return
        data, batch = self.config.data, self.config.batch
        threads = self.config.engine.cpu_threads
        workers = share_cores(self.processes, workers=data.num_workers, cpu_threads=threads)
        if self.auto is not None:
            self.plan = self.auto.confirm(self.plan, self.module)
            batch = replace(batch, clips_per_device=self.plan.micro_clips)
        self.config = replace(self.config, data=replace(data, num_workers=workers), batch=batch)
        self._is_prepared = True


class _Run:
    """A run from the newest checkpoint to the last step, with rollbacks."""

    def __init__(self, trainer: Trainer, watchdog: Watchdog):
        self.trainer = trainer
        self.config = config = trainer.config
        self.processes = processes = trainer.processes
        self.watchdog = watchdog
        self.engine = Engine(
            trainer.module,
            trainer.groups,
            optim=config.optim,
            engine=config.engine,
            plan=trainer.plan,
            processes=processes,
        )
        # The step before the cool-down, from which the run can be prolonged; also saved and kept.
        self.branch_step = (
            decay_start(trainer.steps, config.optim) if config.optim.schedule == "constant" else trainer.steps
        )
        run_dir = Path(config.run_dir)
        self.checkpoints = Checkpoints(
            run_dir,
            processes,
            save_to=config.save_to,
            keep=config.keep_checkpoints,
            keep_every_steps=config.keep_every_steps,
            keep_step=self.branch_step,
            background=config.save_in_background,
        )
        self.incidents = IncidentLog(run_dir, trainer.clips, trainer.plan)
        self.flags = RankFlags(processes.new_store(), world=processes.world, on_phase=watchdog.rename_phase)
        hosts = processes.all_gather_object(platform.node())
        ratio = config.timeouts.straggler_ratio
        self.stragglers = Stragglers(hosts, ratio=ratio, logs=processes.is_first)
        self.signals = StopSignals()
        self.validator = trainer.validator
        self.saved_step = 0  # the step of the newest checkpoint
        self.tars_done: set[int] = set()  # of a stream, by this process since the state of `_run_steps`
        self.may_take_long = True  # the next step may compile, or wait for callbacks

    def run(self) -> RunState:
        """See `Trainer.run`."""
        state = self._load()
        with self.signals:
            self._open_validation(state)
            self._stop_if_due(state, self._must_pause(state))
            while not self._is_done(state):
                state, incident = self._run_steps(state)
                if incident is not None:
                    state = self._roll_back(state, incident)
                    self._open_validation(state)
        self.engine.gather_weights()
        return state

    def _is_done(self, state: RunState) -> bool:
        if is_owed(self.validator, state):
            return False
        return state.step >= self.trainer.steps or self._has_ended_early(state)

    def _has_ended_early(self, state: RunState) -> bool:
        return self.validator is not None and self.validator.has_ended(state.validations)

    def _open_validation(self, state: RunState) -> None:
        """Bring the files of earlier validations to a loaded state."""
        if self.validator is None:
            return
        with self.watchdog.phase("preparing the validation", limit="save_s"):
            self.validator.open(state.validations)
            if self.processes.is_first:
                write_history(Path(self.config.run_dir), state.validations)

    def _load(self) -> RunState:
        state = self.checkpoints.load_newest(self.engine)
        state = run_on_first(self.processes, "reading incidents", partial(self.incidents.restore, state))
        self.saved_step = state.step
        if state.step:
            log.info("continuing at step %d of %d", state.step, self.trainer.steps)
        elif self.config.loss_guard.is_on:
            self._save(state)  # the target of a rollback before the first checkpoint
            self._commit()
        return state

    def _run_steps(self, state: RunState) -> tuple[RunState, Incident | None]:
        """Run steps up to the last one, or up to an incident."""
        step_runner = TrainStep(
            self.engine,
            clips=self.trainer.clips,
            plan=self.trainer.plan,
            config=self.config,
            steps=self.trainer.steps,
            processes=self.processes,
            watchdog=self.watchdog,
            state=state,
            on_outage=StorageWait(self.watchdog, self.signals),
            compiled=self.trainer.compiled,
        )
        self.tars_done = step_runner.tars_done
        reporter = Reporter(self.trainer, state, incidents=self.incidents, stragglers=self.stragglers)
        try:
            if is_owed(self.validator, state):
                self._validate_loaded(reporter)
            for step in range(state.step, self.trainer.steps):
                if self._has_ended_early(reporter.state):
                    break
                try:
                    step_runner.run(step, may_take_long=self.may_take_long)
                except (StorageUnavailable, Stopped):
                    self._save_alone(step, step_runner, reporter)
                    raise
                incident = self._end_step(step + 1, step_runner, reporter)
                if incident is not None:
                    return reporter.state, incident
            self._commit()
            return reporter.state, None
        finally:
            step_runner.close()
            reporter.close()

    def _end_step(self, done: int, step_runner: TrainStep, reporter: "Reporter") -> Incident | None:
        """Commit, report, save and stop where due; at the same steps on all processes."""
        config, steps = self.config, self.trainer.steps
        self.may_take_long = False
        flags = self.flags.read()
        if self.checkpoints.is_saving and not flags.is_writing:
            self._commit()
        is_saved = done % config.save_every_steps == 0 or done in (self.branch_step, steps)
        is_validated = self.validator is not None and self.validator.is_due(done)
        stop = flags.stop
        if is_saved or is_validated or stop or done % config.log.every_steps == 0:
            incident = self._report(step_runner, reporter)
            if incident is not None:
                return incident
            if is_validated and not stop:
                stop = self._validate(reporter)
            if is_saved or stop or self._has_ended_early(reporter.state):
                self._save(reporter.state)
            self._stop_if_due(reporter.state, stop)
        if not self._is_done(reporter.state):
            self.signals.log_received()
            self.flags.post(stop=self.signals.is_requested, is_writing=not self.checkpoints.is_written())
        return None

    def _report(self, step_runner: TrainStep, reporter: "Reporter") -> Incident | None:
        self.watchdog.rename_phase("reporting, or waiting for another process")
        report = step_runner.metrics.fetch()
        incident = reporter.add(report)
        if incident is None:
            self._call_back(report.lines[0]["step"], report.lines[-1]["step"], reporter.writer)
        reporter.write(report.lines)
        return incident

    def _validate_loaded(self, reporter: "Reporter") -> None:
        """Validate a loaded state whose validation was interrupted, and save the result."""
        known = len(reporter.state.validations)
        stop = self._validate(reporter)
        if len(reporter.state.validations) > known:
            self._save(reporter.state)
        self._stop_if_due(reporter.state, stop)

    def _validate(self, reporter: "Reporter") -> bool:
        """Validate and add the result to the state.

        Returns:
            Whether the run stops: on a request that came meanwhile, or for a pause.
        """
        assert self.validator is not None
        state, history = reporter.state, reporter.state.validations
        progress = ValidationProgress(self.watchdog, self.signals, self.processes)
        self.watchdog.start_phase("validating", limit="validate_s", step=state.step - 1)
        self.may_take_long = True
        self.engine.gather_weights(everywhere=True)
        try:
            line = self.validator.validate(state.step, history, progress)
        except Stopped:
            self.signals.log_received()
            return True
        except StorageUnavailable:
            if self.processes.world == 1 and state.step != self.saved_step:
                self._save(state)
                self._commit()
            raise
        finally:
            self.engine.release_weights()
        reporter.add_validation(line)
        return self._must_pause(reporter.state)

    def _must_pause(self, state: RunState) -> bool:
        """Check whether a pause is due after a validation."""
        must_pause = self.validator is not None and self.validator.must_pause(state.validations)
        return must_pause and not self._is_done(state)

    def _call_back(self, first_step: int, last_step: int, writer: MetricsWriter | None) -> None:
        """Run the callbacks that are due; before the metrics are written, since they may add some."""
        due = [callback for callback in self.trainer.callbacks if callback.is_due(first_step, last_step)]
        if not due:
            return
        self.watchdog.start_phase("running callbacks", limit="first_step_s", step=last_step)
        self.may_take_long = True
        self.engine.gather_weights()
        if writer is None:
            return
        with evaluation_weights(self.trainer.module):
            for callback in due:
                try:
                    callback.after_step(last_step, writer)
                except OSError as error:
                    log.warning("%s failed: %s; training continues", type(callback).__name__, error)

    def _save(self, state: RunState) -> None:
        """Begin to write a checkpoint."""
        world, stage = self.processes.world, self.config.engine.zero_stage
        with self.watchdog.phase("saving a checkpoint", limit="save_s"):
            tars = self._tars(state)
            self.checkpoints.save(self.engine, replace(state, world=world, zero_stage=stage, tars=tars))
        self.saved_step = state.step

    def _tars(self, state: RunState) -> dict[str, Any]:
        """Collective for a stream. The tars that all processes have done, for a checkpoint."""
        clips = self.trainer.clips
        if not isinstance(clips, StreamedClips):
            return {}
        done = self.processes.all_gather_object(sorted(self.tars_done))
        return merged_state(clips, state.tars, chain(*done))

    def _save_alone(self, done: int, step_runner: TrainStep, reporter: "Reporter") -> None:
        """Save the steps before a storage outage; a single process only, since a save is collective."""
        if self.processes.world > 1:
            return
        is_saved = done == self.saved_step  # perhaps in the background, and not committed
        if not is_saved and (reporter.state.step == done or self._report(step_runner, reporter) is None):
            self._save(reporter.state)
        self._commit()

    def _commit(self) -> None:
        with self.watchdog.phase("committing a checkpoint", limit="save_s"):
            self.checkpoints.commit()

    def _stop_if_due(self, state: RunState, stop: bool) -> None:
        """Stop after a signal or too many unreadable clips, on all processes, with a complete checkpoint."""
        allowed = max(_FEW_BAD_CLIPS, self.config.data.max_bad_fraction * state.clips)
        if stop and not self._is_done(state):
            self._commit()
            what = f"stopped at step {state.step} with a checkpoint; repeat the command to continue"
            raise Stopped(self._message(what))
        if state.skipped_clips > allowed:
            self._commit()
            what = (
                f"{state.skipped_clips} of {state.clips} clips could not be read, more than "
                f"data.max_bad_fraction={self.config.data.max_bad_fraction} allows; the log above names them"
            )
            raise DataError(self._message(what))

    def _roll_back(self, state: RunState, incident: Incident) -> RunState:
        """Load the newest checkpoint before an incident; the returned state holds the omitted steps.

        Raises:
            Diverged: the guard is off, or no rollback is left.
        """
        guard, first = self.config.loss_guard, incident.steps[0]
        what = f"step {first}: {incident.reason}"
        if not guard.is_on or state.rollbacks >= guard.max_rollbacks:
            self._commit()
            self._log_incident(incident, range(0))
            raise Diverged(self._message(f"{what}; {_fixes(guard, state.rollbacks)}"))
        with self.watchdog.phase("rolling back to a checkpoint", limit="save_s"):
            self.checkpoints.commit()
            loaded = self.checkpoints.load_newest(self.engine, before=first)
        omitted = incident.omitted(loaded.step)
        self._log_incident(incident, omitted)
        self.may_take_long = True
        log.warning(
            "%s: back to the checkpoint of step %d; continuing without the updates of steps %d to %d",
            what, loaded.step, omitted[0], omitted[-1],
        )  # fmt: skip
        everything = sorted({*state.omitted, *omitted})
        return replace(loaded, omitted=everything, rollbacks=state.rollbacks + 1)

    def _log_incident(self, incident: Incident, omitted: range) -> None:
        if self.processes.is_first:
            self.incidents.write(incident.steps, incident.reason, omitted=omitted)

    def _message(self, what: str) -> str:
        """The message of an error that is raised on all processes; only the first one states the reason."""
        return (
            what if self.processes.is_first else "ended like all processes: the log of rank 0 has the reason"
        )


def _fixes(guard: LossGuardConfig, rollbacks: int) -> str:
    if guard.is_on:
        return (
            f"the run rolled back {rollbacks} times, loss_guard.max_rollbacks={guard.max_rollbacks}; fix: "
            "see RUN/incidents for the clips, lower optim.lr, or raise loss_guard.max_rollbacks"
        )
    return (
        "fix: lower optim.lr or set optim.clip_norm, and continue from an older checkpoint; or set "
        "loss_guard.spike_sigmas for automatic rollbacks"
    )


class Reporter:
    """Count, check and write the metrics of the steps from a state on.

    Attributes:
        state: the run state at the last report.
        writer: of the first process.
    """

    def __init__(self, trainer: Trainer, state: RunState, *, incidents: IncidentLog, stragglers: Stragglers):
        self.state = state
        self._trainer = trainer
        self._incidents = incidents
        self._stragglers = stragglers
        self._guard = LossGuard(trainer.config.loss_guard, state.recent, state.skipped_in_row)
        self._run_dir = Path(trainer.config.run_dir)
        self.writer: MetricsWriter | None = None
        if trainer.processes.is_first:
            self.writer = MetricsWriter(self._run_dir, first_step=state.step, steps=trainer.steps)

    def add(self, report: Report) -> Incident | None:
        """Count and check the lines of a report. The lines of an incident are counted too."""
        lines = report.lines
        lines[-1] |= self._stragglers.update(report.local_s) | self._utilization(report)
        done = lines[-1]["step"] + 1
        skipped = [line["step"] for line in lines if is_skipped(line)]
        if self.writer is not None:  # on the first process only, since all have the same information
            for step in skipped:
                log.warning("step %d was skipped on all processes: its gradient is not finite", step)
                self._incidents.write([step], "its gradient is not finite: the update was left out")
        incident = self._guard.check(lines)
        self.state = replace(
            self.state,
            step=done,
            clips=done * self._trainer.plan.global_clips,
            skipped_clips=self.state.skipped_clips + sum(line["skipped_clips"] for line in lines),
            skipped_steps=self.state.skipped_steps + len(skipped),
            skipped_in_row=list(self._guard.skipped_in_row),
            recent=list(self._guard.recent),
        )
        return incident

    def _utilization(self, report: Report) -> dict[str, float]:
        trainer = self._trainer
        if self.writer is None or trainer.step_flops is None:
            return {}
        trained = sum(not line.get("omitted", False) for line in report.lines)
        flops = trained * trainer.step_flops
        return utilization(flops, report.elapsed_s, trainer.processes, trainer.config.engine)

    def add_validation(self, line: dict[str, Any]) -> None:
        """Add the result of a validation to the state, and write it on the first process."""
        self.state = replace(self.state, validations=[*self.state.validations, line])
        if self.writer is not None:
            write_history(self._run_dir, self.state.validations)
            self.writer.write_scalars(line, prefix="validation")

    def write(self, lines: Sequence[dict[str, Any]]) -> None:
        """Write the lines, on the first process."""
        if self.writer is not None:
            self.writer.write(lines)

    def close(self) -> None:
        if self.writer is not None:
            self.writer.close()
