"""Training steps: fetch a batch, forward, backward, update, with gradient accumulation.

Also the buffer of their metrics and the log of their samples.
"""

import re
import resource
import sys
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from kinemae.data_tools.command import log
from kinemae.data_tools.randomness import ClipRandom
from kinemae.data_tools.stream.batch import ClipBatch
from kinemae.data_tools.stream.loader import samples_in_progress, training_loader
from kinemae.data_tools.stream.order import BatchPlan
from kinemae.data_tools.stream.streamed_clips import resumed
from kinemae.data_tools.stream.training_clips import RunClips
from kinemae.data_tools.stream.yuv_to_rgb import compiled_to_rgb, to_rgb
from kinemae.pretrain.runtime.checkpoint import RunState
from kinemae.pretrain.runtime.engine import Engine
from kinemae.pretrain.runtime.jsonl_log import JsonlWriter, drop_lines_from
from kinemae.pretrain.runtime.optimizer import Rates, rates_at
from kinemae.pretrain.runtime.processes import Processes
from kinemae.pretrain.runtime.profiling import StepProfiler
from kinemae.pretrain.runtime.settings import RunConfig
from kinemae.pretrain.runtime.stragglers import LocalTime
from kinemae.pretrain.runtime.watchdog import Watchdog


class TrainStep:
    """Run the steps of a run one at a time, starting from a state.

    Args:
        steps: number of steps of the whole run.
        compiled: compile the conversion of clips to RGB.

    Attributes:
        metrics: metrics of the steps since the last report.
        tars_done: tars of a stream that are done with the steps so far; for this process, since the start.
    """

    def __init__(  # noqa: PLR0913 - all by name
        self,
        engine: Engine,
        *,
        clips: RunClips[Any],
        plan: BatchPlan,
        config: RunConfig,
        steps: int,
        processes: Processes,
        watchdog: Watchdog,
        state: RunState,
        on_outage: Callable[[str], None],
        compiled: bool,
    ):
        self.metrics = MetricBuffer(processes)
        self.tars_done: set[int] = set()
        self._engine = engine
        self._plan = plan
        self._config = config
        self._steps = steps
        self._device = processes.device
        self._to_rgb = compiled_to_rgb() if compiled else to_rgb
        self._watchdog = watchdog
        self._step_tars: set[int] = set()
        self._omitted = frozenset(state.omitted)
        self._sample_log = SampleLog(config, processes, state.step)
        self._profiler = StepProfiler(config.profile, config.run_dir, processes)
        self._batches = training_loader(
            resumed(clips, state.tars),
            plan,
            rank=processes.rank,
            first_step=state.step,
            last_step=steps,
            workers=config.data.num_workers,
            pin=processes.device.type == "cuda",
            timeout_s=config.data.timeout_s,
            on_outage=on_outage,
            read_ahead=config.data.read_ahead,
        )
        watchdog.reading = lambda: samples_in_progress(self._batches)

    def run(self, step: int, *, may_take_long: bool) -> None:
        """Run one step.

        Args:
            may_take_long: the step may compile, or wait for callbacks.

        Raises:
            StorageUnavailable: a storage was down for data.outage_s.
            Stopped: a stop was requested while a storage was down.
        """
        limit = "first_step_s" if may_take_long else "step_s"
        self._watchdog.start_phase("waiting for data", limit=limit, step=step)
        rates = rates_at(step, self._steps, self._config.optim)
        head: dict[str, Any] = {"step": step, "lr": rates.lr}
        if rates.weight_decay is not None:
            head["weight_decay"] = rates.weight_decay
        norm: float | Tensor
        with self._profiler.step(step):
            if step in self._omitted:
                head["omitted"] = True
                norm = self._forward_only(step)
            else:
                norm = self._update(step, rates)
                self._engine.after_update((step + 1) / self._steps)
        self.metrics.end_step(head, norm, clips=self._plan.global_clips)
        self.tars_done |= self._step_tars
        self._step_tars.clear()

    def close(self) -> None:
        """Stop the loader and its workers, and close the files."""
        self._watchdog.reading = lambda: ()
        self._batches = iter(())
        self._sample_log.close()
        self._profiler.close()

    def _update(self, step: int, rates: Rates) -> float | Tensor:
        norm: float | Tensor = 0.0
        for _ in range(self._plan.accumulation):
            batch, values = self._forward(step)
            # Divided by the configured batch, not by the readable clips: all processes agree on it.
            self._engine.backward((values["loss"] * batch.weight_B).sum() / self._plan.micro_clips)
            norm = self._engine.step(rates)
            self.metrics.add(batch, values)
        return norm

    def _forward_only(self, step: int) -> float:
        """Run a step without its update, to measure its loss."""
        for _ in range(self._plan.accumulation):
            with torch.no_grad():
                self.metrics.add(*self._forward(step))
        return float("nan")

    def _forward(self, step: int) -> tuple[ClipBatch, dict[str, Tensor]]:
        self._watchdog.rename_phase("waiting for data")
        begun_s = time.monotonic()
        batch = next(self._batches)
        self.metrics.add_wait(time.monotonic() - begun_s)
        self._sample_log.add(step, batch)
        self._step_tars.update(batch.tars_done)
        self._watchdog.rename_phase("computing, or waiting for another process")
        batch = batch.to(self._device, convert=self._to_rgb)
        with self.metrics.local_time.forward():
            return batch, self._engine(batch, ClipRandom(self._config.seed, batch.clip_index_B))


class Report(NamedTuple):
    """Metrics since the last report, bitwise equal on all processes, so that decisions may depend on them.

    Attributes:
        lines: one for each step.
        local_s: local time of each process in these steps, by rank; see `stragglers.py`.
        elapsed_s: time since the last report; of this process.
    """

    lines: list[dict[str, Any]]
    local_s: list[float]
    elapsed_s: float


class MetricBuffer:
    """Metrics of each step, kept on the device and fetched together, so that no step waits for the device.

    Values are summed over clips, micro-batches and processes. "samples" is the sum of the checksums of the
    step's sample keys: a fingerprint that does not depend on the number of processes. Sums of 32-bit numbers
    are exact in float64. Values from the host (keys, skipped clips) stay on the host until a fetch.

    Attributes:
        local_time: time of this process's own work.
    """

    def __init__(self, processes: Processes):
        self._processes = processes
        self.local_time = LocalTime(processes.device)
        self._names: tuple[str, ...] = ()
        self._rows: list[Tensor] = []
        self._host_rows: list[list[float]] = []
        self._steps: list[dict[str, Any]] = []
        self._norms: list[float | Tensor] = []
        self._row: Tensor | None = None
        self._host_row = [0.0, 0.0]
        self._waited_s = 0.0
        self._clips = 0
        self._since_s = time.monotonic()

    def add(self, batch: ClipBatch, values: dict[str, Tensor]) -> None:
        """Add the weighted sums of a micro-batch's per-clip values."""
        self._names = tuple(values)
        self._host_row[0] += len(batch.skipped)
        self._host_row[1] += sum(zlib.crc32(key.encode()) for key in batch.keys)
        weight_B = batch.weight_B.double()
        sums = [(value_B.detach().double() * weight_B).sum() for value_B in values.values()]
        row = torch.stack([weight_B.sum(), *sums])
        self._row = row if self._row is None else self._row + row

    def add_wait(self, seconds: float) -> None:
        """Add time spent waiting for a batch."""
        self._waited_s += seconds
        self.local_time.add(seconds)

    def end_step(self, head: dict[str, Any], norm: float | Tensor, *, clips: int) -> None:
        """Close a step's row.

        Args:
            head: values that are the same on every process: "step", "lr" and others.
            norm: of the gradient before clipping.
        """
        assert self._row is not None
        self._rows.append(self._row)
        self._host_rows.append(self._host_row)
        self._row, self._host_row = None, [0.0, 0.0]
        self._steps.append(head)
        self._norms.append(norm)
        self._clips += clips

    def fetch(self) -> Report:
        """Collective. The lines of all steps since the last fetch."""
        table, local_s = self._sums()
        lines = [self._line(head, row) for head, row in zip(self._steps, table, strict=True)]
        elapsed_s = max(time.monotonic() - self._since_s, 1e-9)
        lines[-1]["clips_per_s"] = round(self._clips / elapsed_s, 2)
        lines[-1]["data_wait_fraction"] = round(self._waited_s / elapsed_s, 4)
        lines[-1]["memory_gb"] = round(peak_memory_bytes(self._processes.device) / 1e9, 3)
        self._rows, self._host_rows, self._steps, self._norms = [], [], [], []
        self._waited_s, self._clips, self._since_s = 0.0, 0, time.monotonic()
        return Report(lines, local_s, elapsed_s)

    def _sums(self) -> tuple[list[list[float]], list[float]]:
        """Rows summed over processes, and each process's local time, in one message."""
        device_rows = torch.stack(self._rows)
        host_rows = device_rows.new_tensor(self._host_rows)
        # All processes take the first one's norms, so that no decision depends on a rounding difference.
        norms = torch.stack([torch.as_tensor(norm).to(device_rows) for norm in self._norms])
        norms = norms if self._processes.is_first else torch.zeros_like(norms)
        rows = torch.cat([host_rows, norms[:, None], device_rows], dim=1)
        local_s = device_rows.new_zeros(self._processes.world)
        local_s[self._processes.rank] = self.local_time.take()
        summed = self._processes.all_reduce(torch.cat([rows.flatten(), local_s]))
        return summed[: rows.numel()].view_as(rows).tolist(), summed[rows.numel() :].tolist()

    def _line(self, head: dict[str, Any], row: list[float]) -> dict[str, Any]:
        skipped, samples, norm, weight, *totals = row
        means = {
            name: total / weight if weight else float("nan")
            for name, total in zip(self._names, totals, strict=True)
        }
        counts = {"samples": int(samples), "skipped_clips": int(skipped)}
        return {"step": head["step"], **means, "lr": head["lr"], "grad_norm": norm, **counts, **head}


class SampleLog:
    """Log every skipped clip; with `log.samples`, write every clip's key to a file of each process."""

    def __init__(self, config: RunConfig, processes: Processes, first_step: int):
        self._writer: JsonlWriter | None = None
        if not config.log.samples:
            return
        folder = Path(config.run_dir) / "samples"
        path = folder / f"rank-{processes.rank:05d}.jsonl"
        self._writer = JsonlWriter(path, first_step=first_step, title="keys of samples")
        if processes.is_first:  # an earlier start may have had more processes
            for path in folder.glob("rank-*.jsonl"):
                if int(path.stem.removeprefix("rank-")) >= processes.world:
                    drop_lines_from(path, first_step)

    def add(self, step: int, batch: ClipBatch) -> None:
        """Add a micro-batch."""
        for clip in batch.skipped:
            log.warning("step %d: clip of %s skipped: %s", step, clip.key, clip.reason)
        if self._writer is not None:
            self._writer.write([{"step": step, "keys": batch.keys}])

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


def peak_memory_bytes(device: torch.device) -> int:
    """Peak memory: that of the allocator on CUDA, that of the process on the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    if status.exists():  # on Linux ru_maxrss starts at the parent's value when the process was started
        [kibibytes] = re.findall(r"^VmHWM:\s+(\d+) kB", status.read_text(), re.M)
        return int(kibibytes) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
