"""The training engine: DeepSpeed on one core and on many nodes, at ZeRO stages 0 to 3.

Mixed precision, gradient accumulation, gradient clipping and updates.
"""

import copy
import importlib.util
import os
import shutil
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from kinemae.data_tools.command import CheckpointError, log
from kinemae.data_tools.packages import TRAINING, quick_imports, require_packages
from kinemae.data_tools.stream.order import BatchPlan
from kinemae.pretrain.runtime.gradient_exchange import GradientExchange
from kinemae.pretrain.runtime.optimizer import Rates, build_optimizer, set_rates
from kinemae.pretrain.runtime.processes import Processes, init_process_group
from kinemae.pretrain.runtime.settings import (
    EngineConfig,
    OptimConfig,
    grad_reduce_dtype_on,
    precision_on,
    residual_dtype_on,
)
from kinemae.pretrain.runtime.sharded_state import STATE_OF_STAGE, FullyShardedState
from kinemae.pretrain.runtime.tensor_shards import (
    FillShards,
    TensorShard,
    exchange_replicated,
    split_replicated,
)

# At ZeRO 3, parameters of at most this many values stay gathered: gathering vectors costs more than keeping
# them. DeepSpeed's default.
KEPT_GATHERED = 100_000

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
_CPU_COMPILERS = ("g++", "clang++", "c++")


@runtime_checkable
class PostStepHook(Protocol):
    """A module with weights that follow the trained ones, such as an exponential moving average."""

    def after_update(self, progress: float) -> None:
        """Called on every process after each update of the weights.

        At ZeRO 3 each parameter is then the flat shard of this process. The hook may only change values one
        by one, from values at the same position of parameters of the same shape.

        Args:
            progress: fraction of the run that is done.
        """


@runtime_checkable
class GlobalBatchModule(Protocol):
    """A module whose loss uses sums over the clips of all processes.

    Attributes:
        total: set by the engine to the sum over processes, with its gradient.
    """

    total: Callable[[Tensor], Tensor]


class BlockSettings(NamedTuple):
    """Settings of a model that its blocks must support to be compiled.

    Attributes:
        merges: whether the model merges tokens.
        packs: whether clips with different numbers of tokens are packed into one row.
        drops: whether adapters have dropout.
    """

    merges: bool
    packs: bool = False
    drops: bool = False


def check_engine(engine: EngineConfig, processes: Processes, blocks: BlockSettings) -> None:
    """Check before any process group starts that packages and compiler are installed.

    Raises:
        ValueError: names the missing package, the conflicting setting or the missing compiler.
    """
    require_packages(*TRAINING)
    residual_dtype_on(engine, processes.device)
    obstacle = _compile_obstacle(engine, processes.device, blocks)
    if engine.compile == "true" and obstacle is not None:
        reason, fix = obstacle
        raise ValueError(
            f"engine.compile: expected auto or false {reason}, got true; fix: set engine.compile=auto, "
            f"or {fix}"
        )


def compiles(engine: EngineConfig, processes: Processes, blocks: BlockSettings) -> bool:
    """Whether a checked run compiles; the log states why `auto` does not do so on CUDA."""
    if engine.compile == "false" or (engine.compile == "auto" and processes.device.type != "cuda"):
        return False
    obstacle = _compile_obstacle(engine, processes.device, blocks)
    if obstacle is not None and processes.is_first:
        log.info("engine.compile=auto: nothing is compiled %s; to compile, %s", *obstacle)
    return obstacle is None


def _compile_obstacle(
    engine: EngineConfig, device: torch.device, blocks: BlockSettings
) -> tuple[str, str] | None:
    """Return what prevents compilation on this machine, and its fix; None if nothing does."""
    lacking = _missing_compiler(device)
    return setting_obstacle(engine, blocks) or (lacking and (f"without {lacking}", "install it")) or None


def setting_obstacle(engine: EngineConfig, blocks: BlockSettings) -> tuple[str, str] | None:
    """Return the setting that prevents compilation, and its fix; None if there is none."""
    if blocks.merges:
        return "with token merging, which runs halves of blocks", "turn token merging off"
    if blocks.packs:
        reason = "with pruning.args.keep=null, which changes the number of tokens at each step"
        return reason, "set pruning.args.keep to a fraction"
    if blocks.drops:
        reason = "with adapt.dropout above 0, whose random numbers change at each step"
        return reason, "set adapt.dropout=0"
    if engine.zero_stage == 3:
        return "at engine.zero_stage=3, which gathers weights inside a block", "set engine.zero_stage=1"
    return None


def _missing_compiler(device: torch.device) -> str | None:
    """Name the missing compiler of torch.compile for this device; None if there is one."""
    if device.type == "cuda":
        return None if importlib.util.find_spec("triton") else "the package triton on a GPU"
    given = os.environ.get("CXX")
    if not any(shutil.which(name) for name in ((given,) if given else _CPU_COMPILERS)):
        return f"a C++ compiler on the CPU ({given or ', '.join(_CPU_COMPILERS)})"
    return None


class Engine:
    """A module under DeepSpeed: forward, backward, step, and its state as shards.

    DeepSpeed averages gradients over micro-batches and processes. A step whose gradient is not finite on any
    process is skipped on all, at every ZeRO stage.

    At ZeRO 3 DeepSpeed partitions the module that it trains. A copy is trained, and `gather_weights` updates
    the module that was passed in.
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
        init_process_group(processes)
        precision = precision_on(engine, processes.device)
        if processes.device.type == "cuda":  # of float32 products: exact in an fp32 run, TF32 in a bf16 run
            torch.set_float32_matmul_precision("high" if precision == "bf16" else "highest")
        module.train()
        self._clip_norm = optim.clip_norm
        self._stage = engine.zero_stage
        self._processes = processes
        self._module = module
        trained = module
        if self._stage == 3:
            trained, groups = _copied(module, groups)
        self._engine, self._optimizer, _, _ = deepspeed.initialize(
            model=trained.to(processes.device),
            optimizer=build_optimizer(groups, optim),
            config=_deepspeed_config(optim, engine, plan, device=processes.device),
        )
        for child in trained.modules():  # a moving average contains the model
            if isinstance(child, GlobalBatchModule):
                child.total = processes.total
        if self._stage <= 1:
            # DeepSpeed would exchange gradients late at stage 0, and synchronize the device at stage 1.
            self._engine.enable_backward_allreduce = False
            self._trained = [parameter for parameter in trained.parameters() if parameter.requires_grad]
            self._exchange = GradientExchange(
                self._trained,
                processes,
                bucket_values=_bucket_values(engine),
                dtype=_DTYPES[grad_reduce_dtype_on(engine, processes.device)],
                overlaps=engine.overlap_comm,
            )
        self._state = STATE_OF_STAGE[self._stage](trained, self._optimizer, processes)
        self._hook = trained if isinstance(trained, PostStepHook) else None
        self._has_frozen = any(not parameter.requires_grad for parameter in trained.parameters())

    def __call__(self, *inputs: Any) -> dict[str, Tensor]:
        return self._engine(*inputs)

    def backward(self, loss: Tensor) -> None:
        """Accumulate gradients; the loss is the mean over this process's micro-batch."""
        if self._stage <= 1:
            self._exchange.before_backward(is_last=self._engine.is_gradient_accumulation_boundary())
        self._engine.backward(loss)

    def step(self, rates: Rates) -> float | Tensor:
        """Count a micro-batch; after the last one of the accumulation, update the weights.

        Returns:
            The norm of the gradient before clipping, over all processes; NaN or infinity if the update was
            skipped; 0 if no update was due.
        """
        if not self._engine.is_gradient_accumulation_boundary():
            self._engine.step()
            return 0.0
        set_rates(self._optimizer, rates)
        if self._stage <= 1:
            return self._step_without_waiting()
        self._engine.step()
        return self._engine.get_global_grad_norm()

    def _step_without_waiting(self) -> Tensor:
        """Clip the gradients and update the weights; the host reads no value."""
        self._exchange.finish()
        gradients = [parameter.grad for parameter in self._trained if parameter.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients, foreach=True)
        if self._clip_norm:
            torch.nn.utils.clip_grads_with_norm_(self._trained, self._clip_norm, norm, foreach=True)
        adam = self._optimizer
        if self._stage == 1:
            adam = adam.optimizer
            # Takes this process's part of the averaged gradients; nothing is left to reduce.
            self._optimizer.independent_gradient_partition_epilogue()
        # Fused AdamW reads this on the device. If it is not 0, weights and moments stay unchanged.
        adam.found_inf = (~torch.isfinite(norm)).float()
        self._engine.step()
        return norm

    def after_update(self, progress: float) -> None:
        """Call the module's `PostStepHook`, if it is one."""
        if self._hook is None:
            return
        if not self._has_frozen:
            self._hook.after_update(progress)
            return
        with self._state.expose_shards():
            self._hook.after_update(progress)

    def gather_weights(self, *, everywhere: bool = False) -> None:
        """Collective. Update the module that was passed in to the current weights.

        At ZeRO 0 to 2 it is always up to date. At ZeRO 3 the weights are gathered into it on every process:
        on the device on the first process, on the CPU on the others.

        Args:
            everywhere: on the device on every process.
        """
        if not isinstance(self._state, FullyShardedState):
            return
        if self._processes.is_first or everywhere:
            self._module.to(self._processes.device)
        self._state.gather_into(self._module)

    def release_weights(self) -> None:
        """Free the device memory of gathered weights."""
        if isinstance(self._state, FullyShardedState):
            self._module.to("cpu")

    def shards(self) -> list[TensorShard]:
        """The shards that this process saves: over all processes each value of each kind exactly once.

        Views of live memory: the next update of the weights changes them.
        """
        rank, world = self._processes.rank, self._processes.world
        replicated = split_replicated(self._state.replicated_shards(), rank, world)
        return [*self._state.local_shards(), *replicated]

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every saved parameter and buffer, the same on every process."""
        module = self._module  # whole at every stage
        kept = module.state_dict(keep_vars=True)
        named = [*module.named_parameters(), *module.named_buffers()]
        return {name: tuple(tensor.shape) for name, tensor in named if name in kept}

    def updates(self) -> dict[str, int]:
        """Number of AdamW updates of each trainable parameter; its bias correction needs it."""
        counters = self._state.step_counters()
        counts = torch.stack(list(counters.values())).tolist()  # one device synchronization for all
        return {name: int(count) for name, count in zip(counters, counts, strict=True)}

    def load_shards(self, fill: FillShards, updates: dict[str, int]) -> None:
        """Collective. Load a state that `shards` and `updates` described, at any stage and world size.

        Args:
            fill: fills the shards of all processes, which are those of `shards`.
            updates: as returned by `updates`.

        Raises:
            CheckpointError: `updates` lacks a parameter.
        """
        fill(self.shards())
        exchange_replicated(self._state.replicated_shards(), self._processes)
        counters = self._state.step_counters()
        lacking = sorted(counters.keys() - updates.keys())
        if lacking:
            raise CheckpointError(
                f"expected the state of every parameter in the checkpoint, got none of {lacking[0]}; fix: "
                "continue the run with the code that wrote it"
            )
        for counter in counters.values():
            counter.zero_()
        for name, counter in counters.items():
            # Parameters that share a counter take the largest number: no gradient counts as a zero gradient.
            counter.clamp_(min=updates[name])
        self._state.sync_to_model()


def _copied(module: nn.Module, groups: list[dict[str, Any]]) -> tuple[nn.Module, list[dict[str, Any]]]:
    """A copy of the module, and the optimizer's groups with the copy's parameters."""
    trained = copy.deepcopy(module)
    of = {id(old): new for old, new in zip(module.parameters(), trained.parameters(), strict=True)}
    return trained, [{**group, "params": [of[id(old)] for old in group["params"]]} for group in groups]


def _import_deepspeed(processes: Processes) -> Any:
    # DS_ACCELERATOR, set before the import, keeps a CPU run on a GPU machine on the CPU.
    os.environ.setdefault("DS_ACCELERATOR", "cuda" if processes.device.type == "cuda" else "cpu")
    with quick_imports():
        import deepspeed

    deepspeed.utils.logger.setLevel("WARNING")
    # On the CPU DeepSpeed compiles a shared-memory all-reduce at first use: up to 100 s, a compiler
    # needed, and a killed build leaves a lock that hangs every later run. Gloo does the same work.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed


def _bucket_values(engine: EngineConfig) -> int:
    """Number of gradients in a bucket; `engine.bucket_mb` counts them in float32."""
    return engine.bucket_mb * 1_000_000 // 4


def _deepspeed_config(
    optim: OptimConfig, engine: EngineConfig, plan: BatchPlan, *, device: torch.device
) -> dict[str, Any]:
    bucket, is_own_exchange = _bucket_values(engine), engine.zero_stage <= 1
    precision, grad_reduce_dtype = precision_on(engine, device), grad_reduce_dtype_on(engine, device)
    autocast: dict[str, Any] = {"enabled": precision == "bf16", "dtype": "bfloat16"}
    if grad_reduce_dtype == "fp32":
        # Otherwise DeepSpeed reduces the gradients of linear layers in the autocast dtype.
        autocast["lower_precision_safe_modules"] = []
    return {
        "train_batch_size": plan.global_clips,
        "train_micro_batch_size_per_gpu": plan.micro_clips,
        "gradient_accumulation_steps": plan.accumulation,
        "gradient_clipping": 0.0 if is_own_exchange else optim.clip_norm,
        "steps_per_print": None,
        "zero_allow_untested_optimizer": True,
        "communication_data_type": grad_reduce_dtype,
        "zero_optimization": {
            "stage": engine.zero_stage,
            "reduce_bucket_size": bucket,
            "allgather_bucket_size": bucket,
            "overlap_comm": engine.overlap_comm and not is_own_exchange,
            "contiguous_gradients": not is_own_exchange,
            "compute_grad_norm": engine.zero_stage != 1,
            "stage3_param_persistence_threshold": KEPT_GATHERED,
        },
        "torch_autocast": autocast,
        # The timer is on by default and synchronizes the device twice in each micro-batch.
        "timers": {"throughput": {"enabled": False}},
    }
