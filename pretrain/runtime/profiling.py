"""A trace of a few steps, for https://ui.perfetto.dev: operations of the host and kernels of the device."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import profiler

from kinemae.data_tools.command import log
from kinemae.pretrain.runtime.processes import Processes
from kinemae.pretrain.runtime.settings import ProfileConfig


class StepProfiler:
    """Records the steps of `profile.steps` on the first process and writes RUN/profile/steps-A-B.json.gz."""

    def __init__(self, config: ProfileConfig, run_dir: str, processes: Processes):
        is_on = config.steps is not None and processes.is_first
        self._steps = range(*config.steps) if is_on and config.steps is not None else range(0)
        self._path = Path(run_dir) / "profile" / f"steps-{self._steps.start}-{self._steps.stop}.json.gz"
        self._has_cuda = processes.device.type == "cuda"
        self._profile: profiler.profile | None = None

    @contextmanager
    def step(self, step: int) -> Iterator[None]:
        """Record one step if it is to be recorded."""
        if step not in self._steps:
            yield
            return
        if self._profile is None:
            device = [profiler.ProfilerActivity.CUDA] if self._has_cuda else []
            self._profile = profiler.profile(activities=[profiler.ProfilerActivity.CPU, *device])
            self._profile.start()
        with profiler.record_function(f"step {step}"):
            yield
        if step + 1 == self._steps.stop:
            self.close()

    def close(self) -> None:
        """Write the trace of the recorded steps, if there are any."""
        profile, self._profile = self._profile, None
        if profile is None:
            return
        if self._has_cuda:
            torch.cuda.synchronize()  # the last kernels belong to the trace
        profile.stop()
        partial = self._path.with_name("partial.json.gz")
        try:
            self._path.parent.mkdir(exist_ok=True)
            profile.export_chrome_trace(str(partial))
            partial.replace(self._path)
        except (OSError, RuntimeError) as error:
            log.warning("could not write the trace %s: %s; training continues", self._path, error)
        else:
            log.info("wrote the trace %s", self._path)
