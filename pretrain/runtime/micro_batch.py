"""The micro-batch of `batch.clips_per_device=auto`: the largest one that fits the memory of every device.

`memory.py` estimates it from the config, the number of processes and the available memory. On CUDA a forward
and backward pass then tries it before the engine starts. The choice changes the rounding of sums only.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import nn

from kinemae.data_tools.command import log
from kinemae.data_tools.control_groups import available_memory
from kinemae.data_tools.overrides import ConfigError
from kinemae.data_tools.randomness import ClipRandom
from kinemae.data_tools.stream.batch import ClipBatch
from kinemae.data_tools.stream.order import BatchPlan
from kinemae.pretrain.runtime.memory import Machine, largest_micro_batch, needed, shortage
from kinemae.pretrain.runtime.processes import Processes, local_processes

KEY = "batch.clips_per_device=auto"
_CPU_SHARE = 0.7  # of the available memory: the rest is for loader workers and other programs
_NOT_RESERVED = {"weights", "frozen", "activations", "process", "all"}  # a trial has these, or not at all


@dataclass(frozen=True, kw_only=True)
class AutoMicroBatch:
    """Chooses the micro-batch of a run.

    Attributes:
        measure: returns "run", "parameters", "plain" and "recomputed" of `pretrain cost` for this device.
        divide: divides the global batch into micro-batches of at most this number of clips.
        smallest: the smallest micro-batch that `divide` supports.
        clips: makes a micro-batch of this number of clips on the CPU, for the trial.
    """

    measure: Callable[[], dict[str, Any]]
    divide: Callable[[int], BatchPlan]
    smallest: int
    clips: Callable[[int], ClipBatch]
    processes: Processes

    @cached_property
    def _cost(self) -> dict[str, Any]:
        return self.measure()

    def estimate(self, *, must_fit: bool = True) -> tuple[BatchPlan, str]:
        """Choose the largest micro-batch by the memory of this process's device; also return why, as text.

        Args:
            must_fit: false to choose the smallest micro-batch, with a warning, if none fits: a dry run may
                run on another machine than the training.

        Raises:
            ConfigError: not even the smallest micro-batch fits.
        """
        machine, run = available(self.processes), self._cost["run"]
        settings = {"stage": run["zero_stage"], "recomputes": run["recomputes"]}
        most = largest_micro_batch(self._cost, machine, **settings)
        if most < self.smallest:
            problem = f"{KEY}: {shortage(self._cost, self.smallest, machine, smallest=self.smallest)}"
            if must_fit:
                raise ConfigError(problem)
            log.warning("%s", problem)
            return self.divide(self.smallest), problem
        plan = self.divide(most)
        size = needed(self._cost, plan.micro_clips, machine, **settings)["all"]
        return plan, (
            f"{KEY}: {plan.micro_clips} clips need {size / 1e9:.3g} GB (estimate) of "
            f"{machine.usable_bytes / 1e9:.3g} GB that can be used on {self.processes.device.type}"
        )

    def confirm(self, plan: BatchPlan, module: nn.Module) -> BatchPlan:
        """Collective. The micro-batch of the smallest device, after a trial on CUDA.

        At ZeRO 3 there is no trial, since a device cannot hold all weights.

        Args:
            plan: the estimate of this process.
            module: `forward(batch, draws)` returns per-clip values, "loss" among them.

        Raises:
            ConfigError: the trial of the smallest micro-batch failed.
        """
        plan = self.divide(-self.processes.maximum(-plan.micro_clips))
        while self._has_trial and self.processes.maximum(int(not self._fits(plan.micro_clips, module))):
            if plan.micro_clips <= self.smallest:
                raise ConfigError(
                    f"{KEY}: expected a forward and backward pass of {plan.micro_clips} clips to fit the "
                    "device, got out of memory; fix: set engine.activation_checkpointing=true, raise "
                    "engine.zero_stage, or use a smaller model or clip"
                )
            smaller = self.divide(plan.micro_clips - 1)
            log.warning("%s: %d clips do not fit; trying %d", KEY, plan.micro_clips, smaller.micro_clips)
            plan = smaller
        if self.processes.is_first:
            log.info("%s: %d clips, %d times in each step", KEY, plan.micro_clips, plan.accumulation)
        return plan

    @property
    def _has_trial(self) -> bool:
        return self.processes.device.type == "cuda" and self._cost["run"]["zero_stage"] < 3

    def _fits(self, clips: int, module: nn.Module) -> bool:
        run = self._cost["run"]
        machine = Machine(processes=self.processes.world, memory_gb=0, is_cpu=False)
        parts = needed(self._cost, clips, machine, stage=run["zero_stage"], recomputes=run["recomputes"])
        reserved = sum(size for name, size in parts.items() if name not in _NOT_RESERVED)
        return fits(
            module,
            self.clips(clips),
            self.processes.device,
            reserved=int(reserved),
            is_bf16=run["precision"] == "bf16",
        )


def available(processes: Processes) -> Machine:
    """The memory that this process may still allocate on its device."""
    if processes.device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(processes.device)
        return Machine(processes=processes.world, memory_gb=free / 1e9, is_cpu=False)
    free_gb = _CPU_SHARE * available_memory() / local_processes(processes) / 1e9
    # The process itself is not part of the available memory.
    return Machine(processes=processes.world, memory_gb=free_gb, is_cpu=True, process_gb=0)


def fits(module: nn.Module, batch: ClipBatch, device: torch.device, *, reserved: int, is_bf16: bool) -> bool:
    """Whether forward and backward of a batch fit a device beside `reserved` bytes.

    The module is moved to the device. Its weights, gradients and random numbers stay as they were. Gradients
    are not kept: `reserved` contains them.
    """
    trained = [weight for weight in module.parameters() if weight.requires_grad]
    hooks = [weight.register_post_accumulate_grad_hook(_drop_gradient) for weight in trained]
    was_training = module.training
    try:
        _try(module.train(), batch, device, reserved=reserved, is_bf16=is_bf16)
        return True
    except torch.OutOfMemoryError:
        return False
    finally:
        module.train(was_training)
        for hook in hooks:
            hook.remove()
        for weight in trained:
            weight.grad = None
        if device.type == "cuda":
            torch.cuda.empty_cache()


def _try(module: nn.Module, batch: ClipBatch, device: torch.device, *, reserved: int, is_bf16: bool) -> None:
    """The pass of `fits`; its tensors are freed when it returns."""
    module.to(device)
    rest = torch.empty(reserved, dtype=torch.uint8, device=device)
    batch = batch.to(device)
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=is_bf16):
            loss = module(batch, ClipRandom(0, batch.clip_index_B))["loss"].mean()
        loss.backward()
    del rest


def _drop_gradient(weight: torch.Tensor) -> None:
    weight.grad = None
