"""The engine: DeepSpeed, on one core as on many nodes. This is the only file that knows it."""

import os
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from data_tools.command import CheckpointError
from data_tools.stream.order import BatchPlan
from pretrain.runtime.optimiser import build_optimiser, set_learning_rate
from pretrain.runtime.processes import Processes, join_group
from pretrain.runtime.settings import EngineConfig, OptimConfig

_TAG = "deepspeed"


@runtime_checkable
class Follower(Protocol):
    """A module with weights that follow those that are trained."""

    def after_update(self, progress: float) -> None: ...


class Engine:
    """A module under DeepSpeed: forward, backward, step, save, load.

    Gradients are averaged over micro-batches and processes by DeepSpeed. A step whose gradient is not
    finite anywhere is skipped everywhere, at every ZeRO stage.
    """

    def __init__(
        self,
        module: nn.Module,
        groups: list[dict[str, Any]],
        *,
        optim: OptimConfig,
        engine: EngineConfig,
        plan: BatchPlan,
        processes: Processes,
    ):
        deepspeed = _import_deepspeed(processes)
        join_group(processes)
        self._clip_norm = optim.clip_norm
        self._stage = engine.zero_stage
        module.to(processes.device)
        self._engine, self._optimiser, _, _ = deepspeed.initialize(
            model=module,
            optimizer=build_optimiser(groups, optim),
            config=_deepspeed_config(optim, engine, plan),
        )

    def __call__(self, *inputs: Any) -> dict[str, Tensor]:
        return self._engine(*inputs)

    def backward(self, loss: Tensor) -> None:
        """Accumulate gradients; the loss is the mean over this process's micro-batch."""
        self._engine.backward(loss)

    def step(self, rate: float) -> float | Tensor:
        """Count a micro-batch; after the last one of the accumulation, update the weights.

        Returns:
            The norm of the gradient before clipping, over all processes; NaN or infinity says that the
            update was skipped. 0 where no update was due.
        """
        if not self._engine.is_gradient_accumulation_boundary():
            self._engine.step()
            return 0.0
        set_learning_rate(self._optimiser, rate)
        if self._stage > 0:
            self._engine.step()
            return self._engine.get_global_grad_norm()
        return self._step_without_zero()

    def _step_without_zero(self) -> Tensor:
        # DeepSpeed neither reports the norm at stage 0 nor keeps NaN out of the weights: both are done here.
        # Fused AdamW reads `found_inf` on the device and leaves weights and moments alone: no host sync.
        parameters = [parameter for group in self._optimiser.param_groups for parameter in group["params"]]
        norm = torch.nn.utils.clip_grad_norm_(parameters, self._clip_norm or float("inf"), foreach=True)
        self._optimiser.found_inf = (~torch.isfinite(norm)).float()
        self._engine.step()
        return norm

    def train(self) -> None:
        """Put what is trained into training mode."""
        self._engine.module.train()

    def after_update(self, progress: float) -> None:
        """Let what follows the weights follow them."""
        if isinstance(self._engine.module, Follower):
            self._engine.module.after_update(progress)

    def make_readable(self) -> None:
        """The module holds the present weights at these stages anyway."""

    def save(self, folder: Path) -> None:
        """Write this process's part of the state below `folder`. Every process must call it."""
        self._engine.save_checkpoint(str(folder), tag=_TAG, save_latest=False)

    def load(self, folder: Path) -> None:
        """Read the state back.

        Raises:
            CheckpointError: DeepSpeed found nothing it could load.
        """
        loaded, _ = self._engine.load_checkpoint(str(folder), tag=_TAG)
        if loaded is None:
            raise CheckpointError(f"DeepSpeed could not load {folder / _TAG}: see its messages above")


def _import_deepspeed(processes: Processes) -> Any:
    # Asking for an accelerator before the import keeps a CPU run on a GPU machine on the CPU.
    os.environ.setdefault("DS_ACCELERATOR", "cuda" if processes.device.type == "cuda" else "cpu")
    import deepspeed

    deepspeed.utils.logger.setLevel("WARNING")
    # On the CPU DeepSpeed compiles a shared-memory all-reduce at first use: up to 100 s, a compiler
    # needed, and a killed build leaves a lock that hangs every later run. Gloo does the same work.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed


def _deepspeed_config(optim: OptimConfig, engine: EngineConfig, plan: BatchPlan) -> dict[str, Any]:
    bucket = engine.bucket_mb * 1_000_000 // 4
    return {
        "train_batch_size": plan.global_clips,
        "train_micro_batch_size_per_gpu": plan.micro_clips,
        "gradient_accumulation_steps": plan.accumulation,
        "gradient_clipping": optim.clip_norm if engine.zero_stage > 0 else 0.0,
        "steps_per_print": None,
        "zero_allow_untested_optimizer": True,
        "zero_optimization": {
            "stage": engine.zero_stage,
            "reduce_bucket_size": bucket,
            "allgather_bucket_size": bucket,
        },
        "torch_autocast": {"enabled": engine.precision == "bf16", "dtype": "bfloat16"},
    }
