"""The training loop, the same for pretraining and fine-tuning.

What happens at a step is a function of the step: which clips, their crops and masks, the noise, the
learning rate. The loop itself carries only counters (`RunState`).
"""

import json
import math
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from data_tools.command import DataError, Diverged, Stopped, log
from data_tools.randomness import ClipRandom
from data_tools.stream.batch import ClipBatch
from data_tools.stream.loader import TrainingClips, training_loader
from data_tools.stream.order import BatchPlan
from data_tools.stream.workers import available_cores
from pretrain.runtime.checkpoint import Checkpoints, RunState
from pretrain.runtime.engine import Engine
from pretrain.runtime.meter import Meter
from pretrain.runtime.metrics import MetricsWriter, drop_lines_from
from pretrain.runtime.optimiser import learning_rate
from pretrain.runtime.processes import Processes
from pretrain.runtime.settings import RunSettings
from pretrain.runtime.signals import StopSignals

_FEW_BAD_CLIPS = 10
_MOST_SKIPPED_STEPS_IN_A_ROW = 10


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

    def run(self) -> None:
        """Train from the newest checkpoint, or from the start, to the last step.

        Raises:
            Stopped: on SIGTERM or SIGINT, after a checkpoint.
            DataError: more videos than allowed could not be read.
            CheckpointError: no checkpoint could be read or written.
            Diverged: too many updates were skipped in a row.
        """
        set_cpu_threads(self.settings, self.processes)
        engine = Engine(
            self.module,
            self.groups,
            optim=self.settings.optim,
            engine=self.settings.engine,
            plan=self.plan,
            processes=self.processes,
        )
        run_dir = Path(self.settings.run_dir)
        checkpoints = Checkpoints(run_dir, self.processes, keep=self.settings.keep_checkpoints)
        state = checkpoints.load_newest(engine, zero_stage=self.settings.engine.zero_stage)
        if state.step:
            log.info("continuing at step %d of %d", state.step, self.settings.steps)
        if state.step < self.settings.steps:
            with StopSignals() as signals:
                _Loop(self, engine, checkpoints, state, signals).run()
        engine.make_readable()


class _Loop:
    def __init__(
        self,
        training: Training,
        engine: Engine,
        checkpoints: Checkpoints,
        state: RunState,
        signals: StopSignals,
    ):
        self.training = training
        self.settings = training.settings
        self.engine = engine
        self.checkpoints = checkpoints
        self.state = state
        self.signals = signals
        self.skipped_in_a_row = 0
        self.meter = Meter(training.processes)
        self.writer: MetricsWriter | None = None
        self.sample_log = _SampleLog(self.settings, training.processes, state.step)
        if training.processes.is_first:
            run_dir = Path(self.settings.run_dir)
            self.writer = MetricsWriter(run_dir, first_step=state.step, steps=self.settings.steps)

    def run(self) -> None:
        training, settings = self.training, self.settings
        batches = training_loader(
            training.clips,
            training.plan,
            rank=training.processes.rank,
            first_step=self.state.step,
            last_step=settings.steps,
            workers=settings.workers,
            pin=training.processes.device.type == "cuda",
            timeout_s=settings.timeout_s,
        )
        try:
            for step in range(self.state.step, settings.steps):
                self._step(step, batches)
                done = step + 1
                is_saved = done % settings.save_every_steps == 0 or done == settings.steps
                if is_saved or done % settings.log.every_steps == 0:
                    stop = self._report(done)
                    if is_saved or stop:
                        self.checkpoints.save(self.engine, self.state)
                    self._end_if_due(stop, done)
        finally:
            self.sample_log.close()
            if self.writer is not None:
                self.writer.close()

    def _step(self, step: int, batches: Iterator[ClipBatch]) -> None:
        settings, plan = self.settings, self.training.plan
        rate = learning_rate(step, settings.steps, settings.optim)
        waited_s = 0.0
        norm: Any = 0.0
        for _ in range(plan.accumulation):
            asked_s = time.monotonic()
            batch = next(batches)
            waited_s += time.monotonic() - asked_s
            self.sample_log.note(step, batch)
            batch = batch.to(self.training.processes.device)
            values = self.engine(batch, ClipRandom(settings.seed, batch.clip_index_B))
            # Divided by the configured batch, not by the clips that could be read: all processes agree on it.
            self.engine.backward((values["loss"] * batch.weight_B).sum() / plan.micro_clips)
            norm = self.engine.step(rate)
            self.meter.add(batch, values)
        self.engine.after_update((step + 1) / settings.steps)
        self.meter.end_step(step, rate, norm, waited_s=waited_s, clips=plan.global_clips)

    def _report(self, done: int) -> bool:
        """Fetch and write the metrics since the last report; say whether somebody wants to stop."""
        self.meter.stop_requested = self.signals.received
        lines, stop = self.meter.fetch()
        skipped_steps = self.state.skipped_steps
        for line in lines:
            is_applied = math.isfinite(line["gradient_norm"])
            self.skipped_in_a_row = 0 if is_applied else self.skipped_in_a_row + 1
            skipped_steps += not is_applied
            if not is_applied:
                log.warning("step %d was skipped on all processes: its gradient is not finite", line["step"])
        self.state = replace(
            self.state,
            step=done,
            clips=done * self.training.plan.global_clips,
            skipped_clips=self.state.skipped_clips + sum(line["skipped_clips"] for line in lines),
            skipped_steps=skipped_steps,
            world=self.training.processes.world,
            zero_stage=self.settings.engine.zero_stage,
        )
        due = [watcher for watcher in self.training.watchers if watcher.is_due(done - len(lines), done - 1)]
        if due:
            self.engine.make_readable()
        if self.writer is not None:
            for watcher in due:  # first, since they may have numbers to add
                watcher.after_step(done - 1, self.writer)
            self.writer.write(lines)
        return stop

    def _end_if_due(self, stop: bool, done: int) -> None:
        if stop and done < self.settings.steps:
            raise Stopped(
                self.signals.exit_code,
                f"stopped at step {done} with a checkpoint; repeat the command to go on",
            )
        allowed = max(_FEW_BAD_CLIPS, self.settings.max_bad_fraction * self.state.clips)
        if self.state.skipped_clips > allowed:
            raise DataError(
                f"{self.state.skipped_clips} of {self.state.clips} clips could not be read, more than "
                f"data.max_bad_fraction={self.settings.max_bad_fraction} allows; the log above names them"
            )
        if self.skipped_in_a_row >= _MOST_SKIPPED_STEPS_IN_A_ROW:
            raise Diverged(
                f"{self.skipped_in_a_row} steps in a row had a gradient that is not finite: lower optim.lr "
                "or set optim.clip_norm, and continue from an older checkpoint"
            )


class _SampleLog:
    """Names every skipped clip in the log and, where asked for, every clip's key in a file per process."""

    def __init__(self, settings: RunSettings, processes: Processes, first_step: int):
        self._file = None
        if settings.log.samples:
            folder = Path(settings.run_dir) / "samples"
            folder.mkdir(parents=True, exist_ok=True)
            own = folder / f"rank-{processes.rank:05d}.jsonl"
            drop_lines_from(own, first_step)
            if processes.is_first:  # what ranks wrote that there were before, and are not now
                for path in folder.glob("rank-*.jsonl"):
                    if int(path.stem.removeprefix("rank-")) >= processes.world:
                        drop_lines_from(path, first_step)
            self._file = own.open("a", encoding="utf-8")

    def note(self, step: int, batch: ClipBatch) -> None:
        for clip in batch.skipped:
            log.warning("step %d: clip of %s skipped: %s", step, clip.key, clip.reason)
        if self._file is not None:
            self._file.write(json.dumps({"step": step, "keys": batch.keys}) + "\n")
            self._file.flush()

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


def set_cpu_threads(settings: RunSettings, processes: Processes) -> None:
    """On the CPU, share the cores between processes and loader workers: neither is to wait."""
    if settings.engine.cpu_threads:
        torch.set_num_threads(settings.engine.cpu_threads)
    elif processes.device.type == "cpu" and "OMP_NUM_THREADS" not in os.environ:
        share = available_cores() // processes.local_world
        torch.set_num_threads(max(1, share - max(0, settings.workers)))
