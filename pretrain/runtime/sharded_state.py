"""Sharded state: the weights and AdamW moments that one process holds at each ZeRO stage.

    stage  trainable parameters                frozen parameters    buffers
    0      all of them, in the module          all of them          all of them
    1, 2   a part of each group, flattened     all of them          all of them
    3      a part of each, flattened           a part of each       all of them

DeepSpeed decides the borders and the padding of the parts. Only this file reads DeepSpeed's private fields.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn

from kinemae.pretrain.runtime.processes import Processes
from kinemae.pretrain.runtime.tensor_shards import KINDS, MOMENTS, TensorShard, whole_weight


class ShardedState(ABC):
    """A process's part of a module under DeepSpeed, as live views.

    Args:
        module: the module that DeepSpeed trains.
        optimizer: DeepSpeed's wrapper of AdamW.
    """

    def __init__(self, module: nn.Module, optimizer: Any, processes: Processes):
        self.module = module
        self.optimizer = optimizer
        self.processes = processes
        self.names = {id(parameter): name for name, parameter in module.named_parameters()}

    @abstractmethod
    def local_shards(self) -> list[TensorShard]:
        """Values that no other process holds."""

    @abstractmethod
    def replicated_shards(self) -> list[TensorShard]:
        """Values that every process holds completely."""

    @abstractmethod
    def step_counters(self) -> dict[str, Tensor]:
        """AdamW's number of updates of each trainable parameter; parameters may share one."""

    @abstractmethod
    def sync_to_model(self) -> None:
        """Collective. Update the module's compute weights after shards were overwritten."""

    @contextmanager
    def expose_shards(self) -> Iterator[None]:
        """While entered, `parameter.data` is this process's shard of each parameter and can be changed."""
        yield

    def _untrained(self) -> Iterator[tuple[str, Tensor]]:
        """Frozen parameters, and the buffers of the state dict."""
        for name, parameter in self.module.named_parameters():
            if not parameter.requires_grad:
                yield name, parameter
        yield from self._buffers()

    def _buffers(self) -> Iterator[tuple[str, Tensor]]:
        kept = self.module.state_dict(keep_vars=True)
        for name, buffer in self.module.named_buffers():
            if name in kept:
                assert buffer.dtype == torch.float32, f"checkpoints hold float32; {name} is {buffer.dtype}"
                yield name, buffer


class ReplicatedState(ShardedState):
    """ZeRO 0: every process has everything."""

    def __init__(self, module: nn.Module, optimizer: Any, processes: Processes):
        super().__init__(module, optimizer, processes)
        self._trained = [p for group in optimizer.param_groups for p in group["params"]]
        for parameter in self._trained:
            _init_moments(optimizer, parameter)

    def local_shards(self) -> list[TensorShard]:
        return []

    def replicated_shards(self) -> list[TensorShard]:
        trained = [
            shard
            for parameter in self._trained
            for shard in _with_moments(self.optimizer, parameter, self.names[id(parameter)])
        ]
        return [*trained, *(whole_weight(name, tensor) for name, tensor in self._untrained())]

    def step_counters(self) -> dict[str, Tensor]:
        return {self.names[id(p)]: self.optimizer.state[p]["step"] for p in self._trained}

    def sync_to_model(self) -> None:
        """Nothing to do: the shards are the module's own weights."""


class PartitionedState(ShardedState):
    """ZeRO 1 and 2: groups of parameters are concatenated and cut into one part for each process."""

    def __init__(self, module: nn.Module, optimizer: Any, processes: Processes):
        super().__init__(module, optimizer, processes)
        for part_V in optimizer.single_partition_of_fp32_groups:
            _init_moments(optimizer.optimizer, part_V)

    def local_shards(self) -> list[TensorShard]:
        found = []
        for parameter, part_V in self._parts():
            place = parameter._hp_mapping  # type: ignore[attr-defined]
            if place is not None:
                in_part, in_parameter = place.hp_fragment_address, place.lp_fragment_address
                found += _with_moments(
                    self.optimizer.optimizer,
                    part_V,
                    self.names[id(parameter)],
                    start=in_parameter.start,
                    run=slice(in_part.start, in_part.start + in_part.numel),
                )
        return found

    def replicated_shards(self) -> list[TensorShard]:
        return [whole_weight(name, tensor) for name, tensor in self._untrained()]

    def step_counters(self) -> dict[str, Tensor]:
        adam = self.optimizer.optimizer
        return {self.names[id(parameter)]: adam.state[part_V]["step"] for parameter, part_V in self._parts()}

    def sync_to_model(self) -> None:
        self.optimizer.update_lp_params()

    def _parts(self) -> Iterator[tuple[nn.Parameter, Tensor]]:
        """Each trainable parameter, with this process's part of its group."""
        groups = zip(self.optimizer.bit16_groups, self.optimizer.single_partition_of_fp32_groups, strict=True)
        return ((parameter, part_V) for parameters, part_V in groups for parameter in parameters)


class FullyShardedState(ShardedState):
    """ZeRO 3: each parameter is flattened and cut into one shard for each process; the last is padded."""

    def __init__(self, module: nn.Module, optimizer: Any, processes: Processes):
        super().__init__(module, optimizer, processes)
        for row_V in optimizer.fp32_partitioned_groups_flat:
            _init_moments(optimizer.optimizer, row_V)

    def local_shards(self) -> list[TensorShard]:
        found = []
        for parameter, row_V, offset in self._places():
            start, count = self._shard(parameter)
            found += _with_moments(
                self.optimizer.optimizer,
                row_V,
                self.names[id(parameter)],
                start=start,
                run=slice(offset, offset + count),
            )
        for name, parameter in self.module.named_parameters():
            if not parameter.requires_grad:
                start, count = self._shard(parameter)
                values_V = parameter.ds_tensor.detach()[:count]  # type: ignore[attr-defined]
                found.append(TensorShard(name=name, kind="weight", start=start, values_V=values_V))
        return [shard for shard in found if shard.values_V.numel()]

    def replicated_shards(self) -> list[TensorShard]:
        return [whole_weight(name, tensor) for name, tensor in self._buffers()]

    def step_counters(self) -> dict[str, Tensor]:
        adam = self.optimizer.optimizer
        return {
            self.names[id(parameter)]: adam.state[row_V]["step"] for parameter, row_V, _ in self._places()
        }

    def sync_to_model(self) -> None:
        self._drop_gathered()
        for row in range(len(self.optimizer.fp32_partitioned_groups_flat)):
            self.optimizer._reassign_or_swap_out_partitioned_parameters(row)

    def gather_into(self, module: nn.Module) -> None:
        """Collective. Gather the weights into another module of the same names, parameter by parameter."""
        # Not by DeepSpeed's own gathering, which may round to the compute dtype.
        from deepspeed import comm

        parameters = dict(self.module.named_parameters())
        with torch.no_grad():
            for name, target in module.named_parameters():
                shard_V = parameters[name].ds_tensor  # type: ignore[attr-defined]
                whole_V = shard_V.new_empty(shard_V.numel() * self.processes.world)
                comm.all_gather_into_tensor(whole_V, shard_V)
                target.copy_(whole_V[: target.numel()].view_as(target))
            buffers = dict(self._buffers())
            for name, buffer in module.named_buffers():
                if name in buffers:
                    buffer.copy_(buffers[name])

    @contextmanager
    def expose_shards(self) -> Iterator[None]:
        # Shards of parameters of one shape have equal borders and padding.
        self._drop_gathered()
        saved = [(parameter, parameter.data) for parameter in self.module.parameters()]
        for parameter, _ in saved:
            parameter.data = parameter.ds_tensor  # type: ignore[attr-defined]
        try:
            yield
        finally:
            for parameter, empty in saved:
                parameter.data = empty

    def _drop_gathered(self) -> None:
        # DeepSpeed keeps copies of small parameters gathered between steps; they would be stale.
        self.optimizer._partition_all_parameters()

    def _places(self) -> Iterator[tuple[nn.Parameter, Tensor, int]]:
        """Each trainable parameter, the row that holds its shard, and the offset of the shard in the row."""
        rows = zip(self.optimizer.fp16_groups, self.optimizer.fp32_partitioned_groups_flat, strict=True)
        for parameters, row_V in rows:
            offsets = accumulate((p.partition_numel() for p in parameters), initial=0)
            for parameter, offset in zip(parameters, offsets, strict=False):
                yield parameter, row_V, offset

    def _shard(self, parameter: Any) -> tuple[int, int]:
        """Start of this process's shard in the flattened parameter, and its length without padding."""
        size = parameter.partition_numel()
        start = min(self.processes.rank * size, parameter.ds_numel)
        return start, min(size, parameter.ds_numel - start)


STATE_OF_STAGE: tuple[type[ShardedState], ...] = (
    ReplicatedState,
    PartitionedState,
    PartitionedState,
    FullyShardedState,
)
"""By ZeRO stage."""


def _init_moments(adam: torch.optim.AdamW, values: Tensor) -> None:
    """Create AdamW's state as AdamW itself creates it at the first update."""
    adam.state[values] = {
        "step": torch.zeros((), dtype=torch.float32, device=values.device),
        "exp_avg": torch.zeros_like(values, memory_format=torch.preserve_format),
        "exp_avg_sq": torch.zeros_like(values, memory_format=torch.preserve_format),
    }


def _with_moments(
    adam: torch.optim.AdamW, values: Tensor, name: str, *, start: int = 0, run: slice = slice(None)
) -> list[TensorShard]:
    """Weight and moments of a run of a tensor that AdamW updates."""
    tensors = (values, *(adam.state[values][kind] for kind in MOMENTS))
    return [
        TensorShard(name=name, kind=kind, start=start, values_V=tensor.detach().view(-1)[run])
        for kind, tensor in zip(KINDS, tensors, strict=True)
    ]
