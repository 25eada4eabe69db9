"""The metrics of each step, kept on the device and fetched together, so that a step waits for nothing."""

import resource
import sys
import time
import zlib
from typing import Any

import torch
from torch import Tensor

from data_tools.stream.batch import ClipBatch
from pretrain.runtime.processes import Processes


class Meter:
    """Sums per step over clips, micro-batches and processes.

    `samples` is the sum of the checksums of the step's sample keys: a fingerprint of which samples a step saw
    that does not depend on the number of processes. Sums of 32-bit numbers stay exact in float64.

    What the host knows (keys, skipped clips) stays on the host until the metrics are fetched, and what the
    device computes stays there: copying either at each step would make one wait for the other.
    """

    def __init__(self, processes: Processes):
        self._processes = processes
        self._names: tuple[str, ...] = ()
        self._rows: list[Tensor] = []
        self._host_rows: list[list[float]] = []
        self._steps: list[dict[str, Any]] = []
        self._norms: list[float | Tensor] = []
        self._row: Tensor | None = None
        self._host_row = [0.0, 0.0]
        self.stop_requested = 0
        self._waited_s = 0.0
        self._clips = 0
        self._since_s = time.monotonic()

    def add(self, batch: ClipBatch, values: dict[str, Tensor]) -> None:
        """Count a micro-batch: the weighted sums of its per-clip values."""
        self._names = tuple(values)
        self._host_row[0] += len(batch.skipped)
        self._host_row[1] += sum(zlib.crc32(key.encode()) for key in batch.keys)
        weight_B = batch.weight_B.double()
        sums = [(value_B.detach().double() * weight_B).sum() for value_B in values.values()]
        row = torch.stack([weight_B.sum(), *sums])
        self._row = row if self._row is None else self._row + row

    def end_step(self, step: int, rate: float, norm: float | Tensor, *, waited_s: float, clips: int) -> None:
        assert self._row is not None
        self._rows.append(self._row)
        self._host_rows.append(self._host_row)
        self._row, self._host_row = None, [0.0, 0.0]
        self._steps.append({"step": step, "lr": rate})
        self._norms.append(norm)
        self._waited_s += waited_s
        self._clips += clips

    def fetch(self) -> tuple[list[dict[str, Any]], bool]:
        """The lines of all steps since the last fetch, and whether any process was asked to stop.

        Every process must call this after the same step.
        """
        device_rows = torch.stack(self._rows)
        host_rows = torch.tensor(self._host_rows, dtype=torch.float64, device=device_rows.device)
        rows = torch.cat([host_rows, device_rows], dim=1)
        stop = torch.full_like(rows[:1], float(self.stop_requested))
        table = self._processes.sum(torch.cat([rows, stop])).tolist()
        lines = [
            self._line(head, row, float(norm))
            for head, row, norm in zip(self._steps, table, self._norms, strict=False)
        ]
        elapsed_s = max(time.monotonic() - self._since_s, 1e-9)
        lines[-1]["clips_per_s"] = round(self._clips / elapsed_s, 2)
        lines[-1]["data_wait_share"] = round(self._waited_s / elapsed_s, 4)
        lines[-1]["memory_gb"] = round(peak_memory_bytes(self._processes.device) / 1e9, 3)
        self._rows, self._host_rows, self._steps, self._norms = [], [], [], []
        self._waited_s, self._clips, self._since_s = 0.0, 0, time.monotonic()
        return lines, table[-1][0] > 0

    def _line(self, head: dict[str, Any], row: list[float], norm: float) -> dict[str, Any]:
        skipped, samples, weight, *totals = row
        means = {
            name: total / weight if weight else float("nan")
            for name, total in zip(self._names, totals, strict=True)
        }
        line = {"step": head["step"], **means, "lr": head["lr"], "gradient_norm": norm}
        return {**line, "samples": int(samples), "skipped_clips": int(skipped)}


def peak_memory_bytes(device: torch.device) -> int:
    """The most memory held so far: the allocator's on CUDA, the process's on the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
