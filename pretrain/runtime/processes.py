"""The processes of a run: rank, world size and device, and their communication.

A command started without a launcher is one process. torchrun, the deepspeed launcher and schedulers set RANK,
WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT for each of several processes.
"""

import os
import resource
import secrets
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from itertools import islice
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.rendezvous import rendezvous

from kinemae.data_tools.command import DataError, Stuck, log
from kinemae.data_tools.config import require
from kinemae.data_tools.stream.worker_setup import core_limits, cores_per_process, resolve_num_workers
from kinemae.pretrain.runtime.settings import TimeoutsConfig

Value = TypeVar("Value")


@dataclass(frozen=True, kw_only=True)
class Processes:
    """Rank, world size and device of this process. The methods are collective, as in torch.distributed."""

    rank: int
    world: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def all_reduce(self, values: Tensor) -> Tensor:
        """Sum a tensor over all processes, in place."""
        if self.world > 1:
            dist.all_reduce(values)
        return values

    def begin_sum(self, values: Tensor) -> Callable[[], object]:
        """Begin to replace a tensor with its sum over processes.

        Returns:
            Waits for the sum; on CUDA only the stream waits.
        """
        wait: Callable[[], object] = dist.all_reduce(values, async_op=True).wait
        return wait

    def maximum(self, value: int) -> int:
        """The largest value of all processes."""
        if self.world == 1:
            return value
        values = torch.tensor([value], device=self.device)
        dist.all_reduce(values, dist.ReduceOp.MAX)
        return int(values.item())

    def total(self, values: Tensor) -> Tensor:
        """Sum a tensor over all processes; its gradient is the sum of the gradients of all of them.

        The engine averages gradients over processes. So a loss that is the mean over the global batch gets
        the gradient that a single process would compute.
        """
        return _Total.apply(values) if self.world > 1 else values

    def barrier(self) -> None:
        if self.world > 1:
            dist.barrier()

    def all_gather_object(self, value: Value) -> list[Value]:
        """The values of all processes by rank, on every process."""
        if self.world == 1:
            return [value]
        gathered: list[Value | None] = [None] * self.world
        dist.all_gather_object(gathered, value)
        return gathered  # type: ignore[return-value]

    def gather_object(self, value: Value) -> list[Value]:
        """The values of all processes by rank, on the first process; an empty list on the others."""
        if self.world == 1:
            return [value]
        gathered: list[Value | None] | None = [None] * self.world if self.is_first else None
        dist.gather_object(value, gathered, dst=0)
        return gathered or []  # type: ignore[return-value]

    def all_gather(self, own_V: Tensor) -> Tensor:
        """Tensors of equal length from all processes, as rows_WV."""
        rows_WV = own_V.new_empty(self.world, len(own_V))
        dist.all_gather_into_tensor(rows_WV.view(-1), own_V)
        return rows_WV

    def all_to_all(self, own_V: Tensor, *, sent: Sequence[int], received: Sequence[int]) -> Tensor:
        """Send a part of a tensor to each process; return the parts that they send here, by rank.

        Args:
            sent: lengths of the parts, by receiver; the tensor is their concatenation.
            received: lengths of the parts to receive, by sender.
        """
        if self.world == 1:
            return own_V
        values_V = own_V.new_empty(sum(received))
        dist.all_to_all_single(values_V, own_V, list(received), list(sent))
        return values_V

    def all_to_all_rows(
        self, rows: Sequence[Sequence[tuple[int, ...]]], *, width: int
    ) -> list[list[tuple[int, ...]]]:
        """Send rows of `width` integers to each process; return the rows that they send here, by rank."""
        sent = torch.tensor([len(part) for part in rows])
        ones = [1] * self.world
        received = self.all_to_all(sent.to(self.device), sent=ones, received=ones).tolist()
        own_V = torch.tensor([number for part in rows for row in part for number in row], dtype=torch.int64)
        values_V = self.all_to_all(
            own_V.to(self.device),
            sent=[width * len(part) for part in rows],
            received=[width * count for count in received],
        )
        found = iter(map(tuple, values_V.view(-1, width).tolist()))
        return [list(islice(found, count)) for count in received]

    def broadcast_object(self, value: Value) -> Value:
        """The first process's value, on every process."""
        box = [value]
        if self.world > 1:
            dist.broadcast_object_list(box, src=0)
        return box[0]

    def new_store(self) -> dist.Store:
        """A key-value store of all processes, without the keys of earlier ones. No process needs a new port.

        Rank 0 holds the values. So a request costs the same at any number of processes.
        """
        prefix = self.broadcast_object(secrets.token_hex(8))
        store = dist.HashStore() if self.world == 1 else dist.distributed_c10d._get_default_store()
        return dist.PrefixStore(prefix, store)

    def on_first(self, function: Callable[[], Value]) -> Value:
        """Call a function on the first process; all return its result or raise its error."""
        value: Value | None = None
        error: Exception | None = None
        if self.is_first:
            try:
                value = function()
            except (ValueError, DataError) as raised:
                error = raised
        value, error = self.broadcast_object((value, error))
        if error is not None:
            raise error
        return value  # type: ignore[return-value]


class _Total(torch.autograd.Function):
    """The sum over processes, whose backward pass is the same sum."""

    @staticmethod
    def forward(context: Any, values: Tensor) -> Tensor:
        values = values.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(values)
        return values

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:
        return _Total.forward(context, gradient)


def find_processes(device: str = "auto") -> Processes:
    """Read the launcher's variables; no process group is started.

    Raises:
        ValueError: CUDA is requested and absent, or the variables are incomplete.
    """
    has_cuda = torch.cuda.is_available()
    require(
        device != "cuda" or has_cuda, "engine.device", "be cpu or auto if there is no CUDA device", device
    )
    rank, world = _number("RANK", 0), _number("WORLD_SIZE", 1)
    if "RANK" in os.environ or world > 1:
        needed = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
        lacking = [name for name in needed if name not in os.environ]
        if lacking:
            given = "RANK" if "RANK" in os.environ else "WORLD_SIZE"
            raise ValueError(
                f"{given}: expected {', '.join(lacking)} to be set too, got no value; fix: start with "
                f"torchrun, or unset {given}"
            )
    require(0 <= rank < world, "RANK", f"lie between 0 and WORLD_SIZE - 1 = {world - 1}", rank)
    local_rank = _number("LOCAL_RANK", 0)
    on_cuda = has_cuda and device != "cpu"
    device_here = torch.device("cuda", local_rank) if on_cuda else torch.device("cpu")
    return Processes(rank=rank, world=world, device=device_here)


def local_processes(processes: Processes) -> int:
    """Number of processes of the run on this machine; without LOCAL_WORLD_SIZE all of them."""
    return max(1, min(processes.world, _number("LOCAL_WORLD_SIZE", processes.world)))


def _number(name: str, default: int) -> int:
    """A whole number from the environment."""
    value = os.environ.get(name, str(default))
    if not value.isdigit():
        raise ValueError(f"the environment variable {name} must be a whole number, got {value!r}")
    return int(value)


def init_process_group(processes: Processes, timeouts: TimeoutsConfig | None = None) -> None:
    """Start the process group, unless it is started.

    A single process uses a store in memory, without a port that another run could hold.

    Args:
        timeouts: `start_s` bounds the rendezvous. Later collectives get a longer timeout than the watchdog,
            since the watchdog reports more.

    Raises:
        Stuck: other processes did not start in time, or the first one cannot be reached.
    """
    os.environ.setdefault("LOCAL_RANK", "0")  # DeepSpeed reads it also without a launcher
    _raise_file_limit()
    if processes.device.type == "cuda":
        torch.cuda.set_device(processes.device)
    if dist.is_initialized():
        return
    timeouts = timeouts or TimeoutsConfig()
    backend = "nccl" if processes.device.type == "cuda" else "gloo"
    store = dist.HashStore() if processes.world == 1 else _rendezvous(processes, timeouts.start_s)
    dist.init_process_group(
        backend,
        store=store,
        rank=processes.rank,
        world_size=processes.world,
        timeout=timedelta(seconds=2 * timeouts.longest_s),
    )


def _raise_file_limit() -> None:
    """Allow as many open files as the system lets a process have: connections to other processes need them.

    The usual limit of 1,024 is too low for several hundred processes with gloo.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):  # macOS refuses the unlimited value that it reports
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _rendezvous(processes: Processes, timeout_s: float) -> Any:
    """Wait for all processes at MASTER_ADDR:MASTER_PORT; return their store."""
    try:
        store, _, _ = next(rendezvous("env://", timeout=timedelta(seconds=timeout_s)))
    except (dist.DistError, OSError) as error:
        place = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        reason = str(error).splitlines()[0]
        raise Stuck(
            f"rank {processes.rank}: expected to connect to the other {processes.world - 1} processes at "
            f"MASTER_ADDR:MASTER_PORT={place} within timeouts.start_s={timeout_s:g} seconds, got {reason}; "
            "fix: check that all processes were started, that all hosts reach the host of rank 0 under that "
            "name, and that no firewall blocks the port"
        ) from error
    return store


_NCCL_LOST_PEER = (
    "ncclRemoteError",
    "Connection closed by remote peer",
    "NCCL communicator was aborted",  # by the watchdog, in a later collective
)


def lost_peer(error: BaseException) -> str | None:
    """The part of an error that reports a broken connection to another process; None for other errors."""
    text = str(error)
    if isinstance(error, dist.DistNetworkError):  # the store of rank 0 is gone
        return text.partition("\n")[0]
    # As in "[/PLACE/gloo/transport/tcp/pair.cc:545] Read error ... by peer. This is typically ADVICE".
    if "gloo/transport" in text:
        return text.partition("] ")[2].partition(". This is")[0]
    return next((sign for sign in _NCCL_LOST_PEER if sign in text), None)


def destroy_process_group() -> None:
    """Leave the process group. A single CPU process keeps it, since DeepSpeed cannot start a second one."""
    if not dist.is_initialized() or (dist.get_world_size() == 1 and dist.get_backend() == "gloo"):
        return
    dist.destroy_process_group()


def share_cores(processes: Processes, *, workers: int, cpu_threads: int) -> int:
    """Collective. Divide the cores of a machine among its processes and set this process's threads.

    On CUDA the threads are unchanged. On the CPU neither threads nor loader workers wait for a core.

    Args:
        workers: data.num_workers.
        cpu_threads: engine.cpu_threads.

    Returns:
        The number of loader workers of this process.
    """
    own = core_limits()
    cores = cores_per_process(own, processes.all_gather_object(own))
    count = resolve_num_workers(workers, cores)
    if cpu_threads:
        torch.set_num_threads(cpu_threads)
    elif processes.device.type == "cpu" and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, cores - count))
    rows = processes.gather_object((cores, count, torch.get_num_threads()))
    if rows:
        all_cores, all_counts, all_threads = (_range(column) for column in zip(*rows, strict=True))
        log.info(
            "each process: %s of its machine's cores, %s threads, %s loader workers (data.num_workers=%d)",
            all_cores, all_threads, all_counts, workers,
        )  # fmt: skip
    return count


def _range(numbers: Sequence[int]) -> str:
    low, high = min(numbers), max(numbers)
    return str(low) if low == high else f"{low} to {high}"
