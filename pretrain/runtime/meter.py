"""The metrics of each step, kept on the device and fetched together, so that a step waits for nothing."""

import re
import resource
import sys
import time
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from kinemae.data_tools.stream.batch import ClipBatch
from kinemae.pretrain.runtime.processes import Processes
from kinemae.pretrain.runtime.stragglers import OwnTime


class Report(NamedTuple):
    """What all processes know after a fetch, to the last bit alike, so that they may decide by it.

    Attributes:
        lines: one for each step since the last fetch.
        own_s: own time of each process in these steps, by rank; see `stragglers.py`.
    """

    lines: list[dict[str, Any]]
    own_s: list[float]


class Meter:
    """Sums per step over clips, micro-batches and processes.

    `samples` is the sum of the checksums of the step's sample keys: a fingerprint of which samples a step saw
    that does not depend on the number of processes. Sums of 32-bit numbers stay exact in float64.

    What the host knows (keys, skipped clips) stays on the host until the metrics are fetched, and what the
    device computes stays there: copying either at each step would make one wait for the other.

    Attributes:
        own_time: of this process's own work.
    """

    def __init__(self, processes: Processes):
        self._processes = processes
        self.own_time = OwnTime(processes.device)
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
        """Count a micro-batch: the weighted sums of its per-clip values."""
        self._names = tuple(values)
        self._host_row[0] += len(batch.skipped)
        self._host_row[1] += sum(zlib.crc32(key.encode()) for key in batch.keys)
        weight_B = batch.weight_B.double()
        sums = [(value_B.detach().double() * weight_B).sum() for value_B in values.values()]
        row = torch.stack([weight_B.sum(), *sums])
        self._row = row if self._row is None else self._row + row

    def waited(self, seconds: float) -> None:
        """Count time spent waiting for a batch."""
        self._waited_s += seconds
        self.own_time.add(seconds)

    def end_step(self, head: dict[str, Any], norm: float | Tensor, *, clips: int) -> None:
        """Close a step's row.

        Args:
            head: what the line begins with: "step", "lr" and whatever else every process knows.
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
        """The lines of all steps since the last fetch. Every process must call this after the same step."""
        table, own_s = self._sums()
        lines = [self._line(head, row) for head, row in zip(self._steps, table, strict=True)]
        elapsed_s = max(time.monotonic() - self._since_s, 1e-9)
        lines[-1]["clips_per_s"] = round(self._clips / elapsed_s, 2)
        lines[-1]["data_wait_fraction"] = round(self._waited_s / elapsed_s, 4)
        lines[-1]["memory_gb"] = round(peak_memory_bytes(self._processes.device) / 1e9, 3)
        self._rows, self._host_rows, self._steps, self._norms = [], [], [], []
        self._waited_s, self._clips, self._since_s = 0.0, 0, time.monotonic()
        return Report(lines, own_s)

    def _sums(self) -> tuple[list[list[float]], list[float]]:
        """Rows summed over processes, and each process's own time; all in one message."""
        device_rows = torch.stack(self._rows)
        host_rows = device_rows.new_tensor(self._host_rows)
        # The first process's norms for all, so that nobody decides by another last bit.
        norms = torch.stack([torch.as_tensor(norm).to(device_rows) for norm in self._norms])
        norms = norms if self._processes.is_first else torch.zeros_like(norms)
        rows = torch.cat([host_rows, norms[:, None], device_rows], dim=1)
        own_s = device_rows.new_zeros(self._processes.world)
        own_s[self._processes.rank] = self.own_time.take()
        summed = self._processes.sum(torch.cat([rows.flatten(), own_s]))
        return summed[: rows.numel()].view_as(rows).tolist(), summed[rows.numel() :].tolist()

    def _line(self, head: dict[str, Any], row: list[float]) -> dict[str, Any]:
        skipped, samples, norm, weight, *totals = row
        means = {
            name: total / weight if weight else float("nan")
            for name, total in zip(self._names, totals, strict=True)
        }
        counts = {"samples": int(samples), "skipped_clips": int(skipped)}
        return {"step": head["step"], **means, "lr": head["lr"], "grad_norm": norm, **counts, **head}


def peak_memory_bytes(device: torch.device) -> int:
    """The most memory held so far: the allocator's on CUDA, the process's on the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    if status.exists():  # on Linux ru_maxrss begins with what the parent held when it started this process
        [kibibytes] = re.findall(r"^VmHWM:\s+(\d+) kB", status.read_text(), re.M)
        return int(kibibytes) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
