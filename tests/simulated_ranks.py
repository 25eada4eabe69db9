"""Many ranks in one process: a thread for each, and collectives in memory.

The ranks take turns: one runs until its next collective, so that results and CPU times are exact.
"""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor

from kinemae.pretrain.runtime.processes import Processes

Value = TypeVar("Value")
_PATIENCE_S = 600.0


class World:
    """The collectives of one world.

    Attributes:
        bytes_received: by rank, of the values that other ranks sent in `all_to_all`.
    """

    def __init__(self, size: int, patience_s: float):
        self.size = size
        self.bytes_received = [0] * size
        self.turn = threading.Lock()
        self.error: BaseException | None = None
        self._barrier = threading.Barrier(size, timeout=patience_s)
        self._values: list[Any] = [None] * size

    def exchange(self, rank: int, value: Any) -> list[Any]:
        """Return the values of all ranks."""
        self._values[rank] = value
        self._wait()
        values = list(self._values)
        self._wait()
        return values

    def _wait(self) -> None:
        self.turn.release()
        try:
            self._barrier.wait()
        finally:
            self.turn.acquire()

    def abort(self, error: BaseException) -> None:
        """Let all ranks fail at their next collective, because of this error of the first one."""
        self.error = self.error or error
        self._barrier.abort()


@dataclass(frozen=True, kw_only=True)
class SimulatedProcesses(Processes):
    """`Processes` whose other ranks are threads."""

    shared: World = field(repr=False)

    def all_reduce(self, values: Tensor) -> Tensor:
        return values.copy_(torch.stack(self.shared.exchange(self.rank, values.clone())).sum(0))

    def barrier(self) -> None:
        self.shared.exchange(self.rank, None)

    def maximum(self, value: int) -> int:
        return max(self.shared.exchange(self.rank, value))

    def all_gather_object(self, value: Value) -> list[Value]:
        return self.shared.exchange(self.rank, value)

    def gather_object(self, value: Value) -> list[Value]:
        values = self.shared.exchange(self.rank, value)
        return values if self.is_first else []

    def broadcast_object(self, value: Value) -> Value:
        return self.shared.exchange(self.rank, value)[0]

    def all_gather(self, own_V: Tensor) -> Tensor:
        return torch.stack(self.shared.exchange(self.rank, own_V.clone()))

    def all_to_all(self, own_V: Tensor, *, sent: Sequence[int], received: Sequence[int]) -> Tensor:
        parts = own_V.split(list(sent))
        found = [row[self.rank] for row in self.shared.exchange(self.rank, parts)]
        assert [len(part) for part in found] == list(received)
        others = [part for rank, part in enumerate(found) if rank != self.rank and part.is_floating_point()]
        self.shared.bytes_received[self.rank] += sum(part.nbytes for part in others)
        return torch.cat(found)


def run_simulated(
    size: int, work: Callable[[Processes], Value], *, patience_s: float = _PATIENCE_S
) -> tuple[list[Value], World]:
    """Run `work` on every rank of a world; return the results by rank.

    Args:
        patience_s: limit for all ranks together between two collectives.
    """
    world = World(size, patience_s)

    def run(rank: int) -> Value:
        processes = SimulatedProcesses(rank=rank, world=size, device=torch.device("cpu"), shared=world)
        with world.turn:
            try:
                return work(processes)
            except BaseException as error:
                world.abort(error)
                raise

    with ThreadPoolExecutor(size) as pool:
        ran = [pool.submit(run, rank) for rank in range(size)]
    if world.error is not None:
        raise world.error
    return [one.result() for one in ran], world
