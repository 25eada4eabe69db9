"""The processes of a run: who am I, how many are we, and what we agree on.

Started plainly, a run is one process. Under torchrun, the deepspeed launcher or a scheduler that sets the
usual variables (RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT) it is one of many.
"""

import os
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from data_tools.config import require

Value = TypeVar("Value")


@dataclass(frozen=True, kw_only=True)
class Processes:
    """This process among all: its rank, the same on its own machine, and its device."""

    rank: int
    world: int
    local_rank: int
    local_world: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """Sum a tensor over all processes, in place."""
        if self.world > 1:
            dist.all_reduce(values)
        return values

    def wait_for_all(self) -> None:
        if self.world > 1:
            dist.barrier()

    def gather(self, value: Value) -> list[Value]:
        """Everybody's value, by rank, on every process."""
        if self.world == 1:
            return [value]
        gathered: list[Value | None] = [None] * self.world
        dist.all_gather_object(gathered, value)
        return gathered  # type: ignore[return-value]

    def from_first(self, value: Value) -> Value:
        """The first process's value on every process."""
        box = [value]
        if self.world > 1:
            dist.broadcast_object_list(box, src=0)
        return box[0]


def find_processes(device: str = "auto") -> Processes:
    """Read the launcher's variables. Starts nothing: no process group yet.

    Raises:
        ValueError: CUDA was asked for and there is none, or the variables are incomplete.
    """
    has_cuda = torch.cuda.is_available()
    require(
        device != "cuda" or has_cuda, "engine.device", "be cpu or auto where there is no CUDA device", device
    )
    rank, world = _number("RANK", 0), _number("WORLD_SIZE", 1)
    if "RANK" in os.environ or world > 1:
        needed = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
        lacking = [name for name in needed if name not in os.environ]
        if lacking:
            given = "RANK" if "RANK" in os.environ else "WORLD_SIZE"
            raise ValueError(
                f"{given} is set but {', '.join(lacking)} is not: start with torchrun, or unset it"
            )
    require(0 <= rank < world, "RANK", f"lie between 0 and WORLD_SIZE - 1 = {world - 1}", rank)
    local_rank = _number("LOCAL_RANK", 0)
    on_cuda = has_cuda and device != "cpu"
    return Processes(
        rank=rank,
        world=world,
        local_rank=local_rank,
        local_world=_number("LOCAL_WORLD_SIZE", _number("LOCAL_SIZE", 1)),  # the deepspeed launcher's name
        device=torch.device("cuda", local_rank) if on_cuda else torch.device("cpu"),
    )


def _number(name: str, default: int) -> int:
    """A whole number from the environment."""
    value = os.environ.get(name, str(default))
    if not value.isdigit():
        raise ValueError(f"the environment variable {name} must be a whole number, got {value!r}")
    return int(value)


def join_group(processes: Processes) -> None:
    """Let the processes talk to each other; does nothing where they already do.

    A single process meets itself in memory, without a port that another run could hold.
    """
    os.environ.setdefault("LOCAL_RANK", "0")  # DeepSpeed reads it, launcher or not
    if processes.device.type == "cuda":
        torch.cuda.set_device(processes.device)
    if dist.is_initialized():
        return
    backend = "nccl" if processes.device.type == "cuda" else "gloo"
    if processes.world == 1:
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    else:
        dist.init_process_group(backend)


def leave_group() -> None:
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()
