"""The engine: DeepSpeed, on one core as on many nodes. Only the files `engine*.py` know it."""

import copy
import os
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from kinemae.data_tools.command import CheckpointError
from kinemae.data_tools.stream.order import BatchPlan
from kinemae.pretrain.runtime.optimiser import build_optimiser, set_learning_rate
from kinemae.pretrain.runtime.processes import Processes, join_group
from kinemae.pretrain.runtime.settings import EngineConfig, OptimConfig, precision_on
from kinemae.pretrain.runtime.sharded_state import HOLDINGS, ShardedHolding
from kinemae.pretrain.runtime.shared_pieces import load_shared, share_of
from kinemae.pretrain.runtime.state_shards import Piece, ReadPiece

# At ZeRO 3 parameters of at most so many values stay gathered: vectors, whose gathering costs more than they
# weigh. DeepSpeed's default.
KEPT_GATHERED = 100_000


@runtime_checkable
class Follower(Protocol):
    """A module with weights that are not trained and follow those that are, such as a moving average."""

    def after_update(self, progress: float) -> None:
        """Called on every process after each update of the weights.

        At ZeRO 3 each parameter is then the flat shard that the process holds of it, so this may do no more
        than change values one by one, from values at the same place of parameters of the same shape.

        Args:
            progress: the share of the run that is done.
        """


class Engine:
    """A module under DeepSpeed: forward, backward, step; and its state in pieces that know no topology.

    Gradients are averaged over micro-batches and processes by DeepSpeed. A step whose gradient is not
    finite anywhere is skipped everywhere, at every ZeRO stage.

    At ZeRO 3 a copy of the module is trained, since DeepSpeed takes what it trains to pieces; the module that
    was handed in is brought up to date by `make_readable`.
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
        precision = precision_on(engine, processes.device)
        _set_precision(precision, processes.device)
        module.train()
        self._clip_norm = optim.clip_norm
        self._stage = engine.zero_stage
        self._processes = processes
        self._readable = module
        trained = module
        if self._stage == 3:
            trained, groups = _copied(module, groups)
        self._engine, self._optimiser, _, _ = deepspeed.initialize(
            model=trained.to(processes.device),
            optimizer=build_optimiser(groups, optim),
            config=_deepspeed_config(optim, engine, plan, precision=precision),
        )
        self._bucket_values = _bucket_values(engine)
        if self._stage == 0:
            # After its backward pass DeepSpeed would exchange all gradients at once, whatever the bucket.
            self._engine.enable_backward_allreduce = False
        self._holding = HOLDINGS[self._stage](trained, self._optimiser, processes)
        self._follower = trained if isinstance(trained, Follower) else None
        self._has_frozen = any(not parameter.requires_grad for parameter in trained.parameters())

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
        self._engine.allreduce_gradients(bucket_size=self._bucket_values)
        parameters = [parameter for group in self._optimiser.param_groups for parameter in group["params"]]
        norm = torch.nn.utils.clip_grad_norm_(parameters, self._clip_norm or float("inf"), foreach=True)
        self._optimiser.found_inf = (~torch.isfinite(norm)).float()
        self._engine.step()
        return norm

    def after_update(self, progress: float) -> None:
        """Let what follows the weights follow them; see `Follower`. Nothing where nothing follows."""
        if self._follower is None:
            return
        if not self._has_frozen:
            self._follower.after_update(progress)
            return
        with self._holding.shown():
            self._follower.after_update(progress)

    def make_readable(self) -> None:
        """Collective. Afterwards the module that was handed in holds the present weights.

        At ZeRO 0 to 2 it always does. At ZeRO 3 they are gathered into it on every process, where it lies: on
        the CPU, but on the first process's device.
        """
        if not isinstance(self._holding, ShardedHolding):
            return
        if self._processes.is_first:
            self._readable.to(self._processes.device)
        self._holding.fill(self._readable)

    def pieces(self) -> list[Piece]:
        """What this process is to save: over all processes each value of each kind exactly once.

        Views of live memory: the next update of the weights changes them.
        """
        rank, world = self._processes.rank, self._processes.world
        return [*self._holding.own(), *share_of(self._holding.shared(), rank, world)]

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every parameter and buffer that the pieces are of, the same on every process."""
        module = self._readable  # whole at every stage
        kept = module.state_dict(keep_vars=True)
        named = [*module.named_parameters(), *module.named_buffers()]
        return {name: tuple(tensor.shape) for name, tensor in named if name in kept}

    def updates(self) -> dict[str, int]:
        """How many updates AdamW has applied to each trainable parameter; its bias correction needs it."""
        counters = self._holding.counters()
        counts = torch.stack(list(counters.values())).tolist()  # one wait for the device, not one each
        return {name: int(count) for name, count in zip(counters, counts, strict=True)}

    def load_pieces(self, read: ReadPiece, updates: dict[str, int]) -> None:
        """Collective. Take over a state that `pieces` and `updates` described, at any stage and world.

        Args:
            read: gives the values of any run of any parameter. Each process asks for those that it alone
                holds, and for its share of those that all hold.
            updates: as `updates` gave them.

        Raises:
            CheckpointError: `updates` lacks a parameter.
        """
        for piece in self._holding.own():
            piece.values_V.copy_(read(piece.name, piece.kind, piece.start, piece.stop))
        load_shared(self._holding.shared(), read, self._processes)
        counters = self._holding.counters()
        lacking = sorted(counters.keys() - updates.keys())
        if lacking:
            raise CheckpointError(f"the checkpoint has no state of the parameter {lacking[0]}")
        for counter in counters.values():
            counter.zero_()
        for name, counter in counters.items():
            # Where parameters share a counter, one that had no gradient counts as if it had had zeros.
            counter.clamp_(min=updates[name])
        self._holding.publish()


def _copied(module: nn.Module, groups: list[dict[str, Any]]) -> tuple[nn.Module, list[dict[str, Any]]]:
    """A copy of the module, and the optimiser's groups with the copy's parameters."""
    trained = copy.deepcopy(module)
    of = {id(old): new for old, new in zip(module.parameters(), trained.parameters(), strict=True)}
    return trained, [{**group, "params": [of[id(old)] for old in group["params"]]} for group in groups]


def _import_deepspeed(processes: Processes) -> Any:
    # Asking for an accelerator before the import keeps a CPU run on a GPU machine on the CPU.
    os.environ.setdefault("DS_ACCELERATOR", "cuda" if processes.device.type == "cuda" else "cpu")
    import deepspeed

    deepspeed.utils.logger.setLevel("WARNING")
    # On the CPU DeepSpeed compiles a shared-memory all-reduce at first use: up to 100 s, a compiler
    # needed, and a killed build leaves a lock that hangs every later run. Gloo does the same work.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed


def _bucket_values(engine: EngineConfig) -> int:
    """Gradients in a bucket; `engine.bucket_mb` counts them in float32."""
    return engine.bucket_mb * 1_000_000 // 4


def _set_precision(precision: str, device: torch.device) -> None:
    """Set the precision of float32 matrix products on CUDA: exact in an fp32 run, TF32 in a bf16 run."""
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high" if precision == "bf16" else "highest")


def _deepspeed_config(
    optim: OptimConfig, engine: EngineConfig, plan: BatchPlan, *, precision: str
) -> dict[str, Any]:
    bucket = _bucket_values(engine)
    autocast: dict[str, Any] = {"enabled": precision == "bf16", "dtype": "bfloat16"}
    if engine.grad_reduce_dtype == "fp32":
        # Else DeepSpeed exchanges the gradients of linear layers in what autocast computes in.
        autocast["lower_precision_safe_modules"] = []
    return {
        "train_batch_size": plan.global_clips,
        "train_micro_batch_size_per_gpu": plan.micro_clips,
        "gradient_accumulation_steps": plan.accumulation,
        "gradient_clipping": optim.clip_norm if engine.zero_stage > 0 else 0.0,
        "steps_per_print": None,
        "zero_allow_untested_optimizer": True,
        "communication_data_type": engine.grad_reduce_dtype,
        "zero_optimization": {
            "stage": engine.zero_stage,
            "reduce_bucket_size": bucket,
            "allgather_bucket_size": bucket,
            "stage3_param_persistence_threshold": KEPT_GATHERED,
        },
        "torch_autocast": autocast,
        # The timer is on by default and synchronizes the device twice in each micro-batch.
        "timers": {"throughput": {"enabled": False}},
    }
