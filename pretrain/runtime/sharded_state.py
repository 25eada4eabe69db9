"""What one process holds of the weights and of AdamW's moments, at each ZeRO stage.

    stage  trainable parameters                frozen parameters    buffers
    0      all of them, in the module          all of them          all of them
    1, 2   a part of each group, flattened     all of them          all of them
    3      a part of each, flattened           a part of each       all of them

Where the parts begin and what they are padded with is DeepSpeed's; it is read here and nowhere else.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn

from kinemae.pretrain.runtime.processes import Processes
from kinemae.pretrain.runtime.state_shards import KINDS, Piece


class Holding(ABC):
    """A process's part of a module under DeepSpeed, as live views.

    Args:
        module: what DeepSpeed trains.
        optimiser: what DeepSpeed made of AdamW.
    """

    def __init__(self, module: nn.Module, optimiser: Any, processes: Processes):
        self.module = module
        self.optimiser = optimiser
        self.processes = processes
        self.names = {id(parameter): name for name, parameter in module.named_parameters()}

    @abstractmethod
    def own(self) -> list[Piece]:
        """What no other process holds."""

    @abstractmethod
    def shared(self) -> list[Piece]:
        """What every process holds whole."""

    @abstractmethod
    def counters(self) -> dict[str, Tensor]:
        """AdamW's count of updates for each trainable parameter; parameters may share one."""

    @abstractmethod
    def publish(self) -> None:
        """Collective. Pieces were overwritten: let the module compute with what stands in them."""

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Meanwhile each parameter shows what this process holds of it, so that each can be changed."""
        yield

    def _untrained(self) -> Iterator[tuple[str, Tensor]]:
        """Frozen parameters, and the buffers that are part of a module's state."""
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


class WholeHolding(Holding):
    """ZeRO 0: every process has everything."""

    def __init__(self, module: nn.Module, optimiser: Any, processes: Processes):
        super().__init__(module, optimiser, processes)
        self._trained = [p for group in optimiser.param_groups for p in group["params"]]
        for parameter in self._trained:
            _make_moments(optimiser, parameter)

    def own(self) -> list[Piece]:
        """See `Holding.own`."""
        return []

    def shared(self) -> list[Piece]:
        """See `Holding.shared`."""
        trained = [
            piece
            for parameter in self._trained
            for piece in _pieces(self.optimiser, parameter, self.names[id(parameter)])
        ]
        return [*trained, *(_whole(name, tensor) for name, tensor in self._untrained())]

    def counters(self) -> dict[str, Tensor]:
        """See `Holding.counters`."""
        return {self.names[id(p)]: self.optimiser.state[p]["step"] for p in self._trained}

    def publish(self) -> None:
        """See `Holding.publish`: the module itself was overwritten."""


class PartitionedHolding(Holding):
    """ZeRO 1 and 2: groups of parameters are laid in a row and cut into as many parts as processes."""

    def __init__(self, module: nn.Module, optimiser: Any, processes: Processes):
        super().__init__(module, optimiser, processes)
        for part_V in optimiser.single_partition_of_fp32_groups:
            _make_moments(optimiser.optimizer, part_V)

    def own(self) -> list[Piece]:
        """See `Holding.own`."""
        found = []
        for parameter, part_V in self._parts():
            place = parameter._hp_mapping  # type: ignore[attr-defined]
            if place is not None:
                in_part, in_parameter = place.hp_fragment_address, place.lp_fragment_address
                found += _pieces(
                    self.optimiser.optimizer,
                    part_V,
                    self.names[id(parameter)],
                    start=in_parameter.start,
                    run=slice(in_part.start, in_part.start + in_part.numel),
                )
        return found

    def shared(self) -> list[Piece]:
        """See `Holding.shared`."""
        return [_whole(name, tensor) for name, tensor in self._untrained()]

    def counters(self) -> dict[str, Tensor]:
        """See `Holding.counters`."""
        adam = self.optimiser.optimizer
        return {self.names[id(parameter)]: adam.state[part_V]["step"] for parameter, part_V in self._parts()}

    def publish(self) -> None:
        """See `Holding.publish`."""
        self.optimiser.update_lp_params()

    def _parts(self) -> Iterator[tuple[nn.Parameter, Tensor]]:
        """Each trainable parameter and this process's part of the row that it lies in."""
        groups = zip(self.optimiser.bit16_groups, self.optimiser.single_partition_of_fp32_groups, strict=True)
        return ((parameter, part_V) for parameters, part_V in groups for parameter in parameters)


class ShardedHolding(Holding):
    """ZeRO 3: each parameter is flattened and cut into as many shards as processes; the last is padded."""

    def __init__(self, module: nn.Module, optimiser: Any, processes: Processes):
        super().__init__(module, optimiser, processes)
        for row_V in optimiser.fp32_partitioned_groups_flat:
            _make_moments(optimiser.optimizer, row_V)

    def own(self) -> list[Piece]:
        """See `Holding.own`."""
        found = []
        for parameter, row_V, offset in self._places():
            start, count = self._shard(parameter)
            found += _pieces(
                self.optimiser.optimizer,
                row_V,
                self.names[id(parameter)],
                start=start,
                run=slice(offset, offset + count),
            )
        for name, parameter in self.module.named_parameters():
            if not parameter.requires_grad:
                start, count = self._shard(parameter)
                values_V = parameter.ds_tensor.detach()[:count]  # type: ignore[attr-defined]
                found.append(Piece(name=name, kind="weight", start=start, values_V=values_V))
        return [piece for piece in found if piece.values_V.numel()]

    def shared(self) -> list[Piece]:
        """See `Holding.shared`."""
        return [_whole(name, tensor) for name, tensor in self._buffers()]

    def counters(self) -> dict[str, Tensor]:
        """See `Holding.counters`."""
        adam = self.optimiser.optimizer
        return {
            self.names[id(parameter)]: adam.state[row_V]["step"] for parameter, row_V, _ in self._places()
        }

    def publish(self) -> None:
        """See `Holding.publish`."""
        self._drop_gathered()
        for row in range(len(self.optimiser.fp32_partitioned_groups_flat)):
            self.optimiser._reassign_or_swap_out_partitioned_parameters(row)

    def fill(self, module: nn.Module) -> None:
        """Collective. Copy the weights to another module of the same names, one by one."""
        # Not with DeepSpeed's own gathering, which may round to what is computed in.
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
    def shown(self) -> Iterator[None]:
        """See `Holding.shown`; shards of parameters of one shape lie alike, padding included."""
        self._drop_gathered()
        hidden = [(parameter, parameter.data) for parameter in self.module.parameters()]
        for parameter, _ in hidden:
            parameter.data = parameter.ds_tensor  # type: ignore[attr-defined]
        try:
            yield
        finally:
            for parameter, empty in hidden:
                parameter.data = empty

    def _drop_gathered(self) -> None:
        # DeepSpeed keeps small parameters gathered from one step to the next, as copies that would be stale.
        self.optimiser._partition_all_parameters()

    def _places(self) -> Iterator[tuple[nn.Parameter, Tensor, int]]:
        """Each trainable parameter, the row that holds its shard, and where the shard begins there."""
        rows = zip(self.optimiser.fp16_groups, self.optimiser.fp32_partitioned_groups_flat, strict=True)
        for parameters, row_V in rows:
            offsets = accumulate((p.partition_numel() for p in parameters), initial=0)
            for parameter, offset in zip(parameters, offsets, strict=False):
                yield parameter, row_V, offset

    def _shard(self, parameter: Any) -> tuple[int, int]:
        """Where this process's shard begins in the flattened parameter, and its values without padding."""
        size = parameter.partition_numel()
        start = min(self.processes.rank * size, parameter.ds_numel)
        return start, min(size, parameter.ds_numel - start)


HOLDINGS: tuple[type[Holding], ...] = (WholeHolding, PartitionedHolding, PartitionedHolding, ShardedHolding)
"""By ZeRO stage."""


def _make_moments(adam: torch.optim.AdamW, values: Tensor) -> None:
    """AdamW's state before the first update, as AdamW itself would make it then."""
    adam.state[values] = {
        "step": torch.zeros((), dtype=torch.float32, device=values.device),
        "exp_avg": torch.zeros_like(values, memory_format=torch.preserve_format),
        "exp_avg_sq": torch.zeros_like(values, memory_format=torch.preserve_format),
    }


def _pieces(
    adam: torch.optim.AdamW, values: Tensor, name: str, *, start: int = 0, run: slice = slice(None)
) -> list[Piece]:
    """Weight and moments of a run of what AdamW updates as one."""
    tensors = (values, *(adam.state[values][kind] for kind in KINDS[1:]))
    return [
        Piece(name=name, kind=kind, start=start, values_V=tensor.detach().view(-1)[run])
        for kind, tensor in zip(KINDS, tensors, strict=True)
    ]


def _whole(name: str, tensor: Tensor) -> Piece:
    return Piece(name=name, kind="weight", start=0, values_V=tensor.detach().view(-1))
