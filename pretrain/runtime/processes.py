"""The processes of a run: who am I, how many are we, and what we agree on.

Started plainly, a run is one process. Under torchrun, the deepspeed launcher or a scheduler that sets the
usual variables (RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT) it is one of many.
"""

import os
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.rendezvous import rendezvous

from kinemae.data_tools.command import Stuck
from kinemae.data_tools.config import require
from kinemae.pretrain.runtime.watchdog import TimeoutsConfig

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

    def gather_to_first(self, value: Value) -> list[Value]:
        """The values of all processes by rank, on the first process; an empty list on the others."""
        if self.world == 1:
            return [value]
        gathered: list[Value | None] | None = [None] * self.world if self.is_first else None
        dist.gather_object(value, gathered, dst=0)
        return gathered or []  # type: ignore[return-value]

    def all_gather(self, own_V: Tensor) -> Tensor:
        """Tensors of one length from all processes, as the rows of one."""
        rows_WV = own_V.new_empty(self.world, len(own_V))
        dist.all_gather_into_tensor(rows_WV.view(-1), own_V)
        return rows_WV

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


class LargestOf:
    """The largest of what all processes say, number by number, without waiting for it.

    Goes over the CPU, also where the training's own messages go from GPU to GPU. Every process must make
    one, and then call `start` and `result` in turn.
    """

    def __init__(self, processes: Processes):
        self._group: Any = dist.new_group(backend="gloo") if processes.world > 1 else None
        self._values = torch.zeros(0, dtype=torch.int64)
        self._work: Any = None

    def start(self, numbers: list[int]) -> None:
        """Say one's own numbers."""
        self._values = torch.tensor(numbers, dtype=torch.int64)
        if self._group is not None:
            self._work = dist.all_reduce(self._values, dist.ReduceOp.MAX, group=self._group, async_op=True)

    def result(self) -> list[int]:
        """The largest ones; waits for whoever has not said theirs."""
        if self._work is not None:
            self._work.wait()
        return self._values.tolist()


def join_group(processes: Processes, timeouts: TimeoutsConfig | None = None) -> None:
    """Let the processes talk to each other; does nothing where they already do.

    A single process meets itself in memory, without a port that another run could hold.

    Args:
        timeouts: how long to wait for the others, and for any message later; that is left to the watchdog,
            which says more than a message's own time-out.

    Raises:
        Stuck: the others did not come in time, or the first of them cannot be reached.
    """
    os.environ.setdefault("LOCAL_RANK", "0")  # DeepSpeed reads it, launcher or not
    if processes.device.type == "cuda":
        torch.cuda.set_device(processes.device)
    if dist.is_initialized():
        return
    timeouts = timeouts or TimeoutsConfig()
    backend = "nccl" if processes.device.type == "cuda" else "gloo"
    store = dist.HashStore() if processes.world == 1 else _meet(processes, timeouts.start_s)
    dist.init_process_group(
        backend,
        store=store,
        rank=processes.rank,
        world_size=processes.world,
        timeout=timedelta(seconds=2 * timeouts.longest_s),
    )


def _meet(processes: Processes, timeout_s: float) -> Any:
    """The store at MASTER_ADDR:MASTER_PORT, once all processes have come to it."""
    try:
        store, _, _ = next(rendezvous("env://", timeout=timedelta(seconds=timeout_s)))
    except (dist.DistError, OSError) as error:
        place = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        reason = str(error).splitlines()[0]
        raise Stuck(
            f"rank {processes.rank} could not meet the other {processes.world - 1} processes at MASTER_ADDR:"
            f"MASTER_PORT={place} within timeouts.start_s={timeout_s:g} seconds ({reason}): see whether "
            "all of them were started, whether that is the host of rank 0 as all others know it, and whether "
            "the port is free there and no firewall stands between"
        ) from error
    return store


def lost_peer(error: BaseException) -> str | None:
    """What an error says of a connection to another process that broke; None for any other error."""
    text = str(error)
    # As in "[/PLACE/gloo/transport/tcp/pair.cc:545] Read error ... by peer. This is typically ADVICE".
    if "gloo/transport" in text:
        return text.partition("] ")[2].partition(". This is")[0]
    return "ncclRemoteError" if "ncclRemoteError" in text else None


def leave_group() -> None:
    """Say goodbye to the others. A single process on the CPU stays: DeepSpeed cannot begin again after it."""
    if not dist.is_initialized() or (dist.get_world_size() == 1 and dist.get_backend() == "gloo"):
        return
    dist.destroy_process_group()
