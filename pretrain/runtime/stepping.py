"""One step after the other: take the batch, compute, move the weights or leave them where they are."""

import time
from collections.abc import Callable
from typing import Any

import torch

from kinemae.data_tools.randomness import ClipRandom
from kinemae.data_tools.stream.batch import ClipBatch
from kinemae.data_tools.stream.loader import TrainingClips, samples_in_progress, training_loader
from kinemae.data_tools.stream.order import BatchPlan
from kinemae.pretrain.runtime.checkpoint import RunState
from kinemae.pretrain.runtime.engine import Engine
from kinemae.pretrain.runtime.meter import Meter
from kinemae.pretrain.runtime.optimiser import learning_rate
from kinemae.pretrain.runtime.processes import Processes
from kinemae.pretrain.runtime.sample_log import SampleLog
from kinemae.pretrain.runtime.settings import RunSettings
from kinemae.pretrain.runtime.watchdog import Watchdog


class Stepping:
    """The steps from a state on, one at a time.

    Attributes:
        meter: has counted all steps that were done.
    """

    def __init__(  # noqa: PLR0913 - a run's coordinates, all by name
        self,
        engine: Engine,
        *,
        clips: TrainingClips,
        plan: BatchPlan,
        settings: RunSettings,
        processes: Processes,
        watchdog: Watchdog,
        state: RunState,
        on_outage: Callable[[str], None],
    ):
        self.meter = Meter(processes)
        self._engine = engine
        self._plan = plan
        self._settings = settings
        self._device = processes.device
        self._watchdog = watchdog
        self._omitted = frozenset(state.omitted)
        self._sample_log = SampleLog(settings, processes, state.step)
        self._batches = training_loader(
            clips,
            plan,
            rank=processes.rank,
            first_step=state.step,
            last_step=settings.steps,
            workers=settings.num_workers,
            pin=processes.device.type == "cuda",
            timeout_s=settings.timeout_s,
            on_outage=on_outage,
        )
        watchdog.reading = lambda: samples_in_progress(self._batches)

    def do(self, step: int, *, may_take_long: bool) -> None:
        """Do a step.

        Args:
            may_take_long: it may compile, or wait for pictures and measures.

        Raises:
            StorageUnavailable: a storage was down for data.outage_s.
            Stopped: a stop was asked for while a storage was down.
        """
        limit = "first_step_s" if may_take_long else "step_s"
        self._watchdog.enter("waiting for data", limit=limit, step=step)
        head: dict[str, Any] = {
            "step": step,
            "lr": learning_rate(step, self._settings.steps, self._settings.optim),
        }
        if step in self._omitted:
            head["omitted"] = True
            norm = self._look_on(step)
        else:
            norm = self._learn(step, head["lr"])
            self._engine.after_update((step + 1) / self._settings.steps)
        self.meter.end_step(head, norm, clips=self._plan.global_clips)

    def close(self) -> None:
        """Let go of the loader, whose workers end, and of the files."""
        self._watchdog.reading = lambda: ()
        self._batches = iter(())
        self._sample_log.close()

    def _learn(self, step: int, rate: float) -> Any:
        norm: Any = 0.0
        for _ in range(self._plan.accumulation):
            batch = self._next(step)
            with self.meter.own_time.forward():
                values = self._engine(batch, ClipRandom(self._settings.seed, batch.clip_index_B))
            # Divided by the configured batch, not by the clips that could be read: all processes agree on it.
            self._engine.backward((values["loss"] * batch.weight_B).sum() / self._plan.micro_clips)
            norm = self._engine.step(rate)
            self.meter.add(batch, values)
        return norm

    def _look_on(self, step: int) -> float:
        """A step whose update is left out: its clips are seen, its loss is known, its gradient is not."""
        for _ in range(self._plan.accumulation):
            batch = self._next(step)
            with torch.no_grad(), self.meter.own_time.forward():
                values = self._engine(batch, ClipRandom(self._settings.seed, batch.clip_index_B))
            self.meter.add(batch, values)
        return float("nan")

    def _next(self, step: int) -> ClipBatch:
        self._watchdog.move("waiting for data")
        asked_s = time.monotonic()
        batch = next(self._batches)
        self.meter.waited(time.monotonic() - asked_s)
        self._sample_log.note(step, batch)
        self._watchdog.move("computing, or waiting for another process that should be")
        return batch.to(self._device)
