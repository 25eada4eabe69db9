"""Asynchronous checkpoint writer: copy this process's shards to host memory, write them in a thread."""

import os
import platform
import threading
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import NamedTuple

import torch
from torch import Tensor

from kinemae.pretrain.runtime.checkpoint_files import FileChecksum, Place
from kinemae.pretrain.runtime.checkpoint_storage import CheckpointStorage
from kinemae.pretrain.runtime.file_retries import FileFailure, retry
from kinemae.pretrain.runtime.tensor_shards import ShardRange, TensorShard

# 256 MiB: pinned memory is allocated in powers of two, so one large block could waste half.
_BLOCK_VALUES = 1 << 26
_NICENESS = 10
_MOST_NAMED = 3


class WriteResult(NamedTuple):
    """The result of one process's part of a save."""

    host: str
    checksum: FileChecksum | None
    failure: FileFailure | None


class PinnedBuffer:
    """Host memory for one copy of this process's shards, reused at every save; pinned on CUDA."""

    def __init__(self) -> None:
        self._blocks: list[Tensor] = []
        self._copied: torch.cuda.Event | None = None

    def copy_from(self, shards: Sequence[TensorShard]) -> None:
        """Copy the current values.

        On CUDA the copies are queued on the current stream, before the next update of the weights: the
        device waits for them, the process does not.
        """
        on_cuda = any(shard.values_V.is_cuda for shard in shards)
        self._allocate(sum(len(shard.values_V) for shard in shards), pinned=on_cuda)
        place = 0
        for shard in shards:
            for run_V in _split_at_blocks(shard.values_V.detach(), place):
                block, offset = divmod(place, _BLOCK_VALUES)
                self._blocks[block][offset : offset + len(run_V)].copy_(run_V, non_blocking=True)
                place += len(run_V)
        if on_cuda:
            self._copied = torch.cuda.Event()
            self._copied.record()

    def values(self) -> list[Tensor]:
        """The copied values of all shards in order; waits for the copies."""
        if self._copied is not None:
            self._copied.synchronize()
        return self._blocks

    def _allocate(self, count: int, *, pinned: bool) -> None:
        if sum(len(block) for block in self._blocks) != count:
            self._blocks = []  # freed first: two copies may exceed the memory
            self._blocks = [
                torch.empty(min(_BLOCK_VALUES, count - start), pin_memory=pinned)
                for start in range(0, count, _BLOCK_VALUES)
            ]


class AsyncCheckpointWriter(threading.Thread):
    """Thread that writes one process's shard file.

    Args:
        file: the shard file.
        buffer: receives a copy of the shards; None to write the shards themselves.

    Attributes:
        ranges: the content of the file.
    """

    def __init__(
        self,
        storage: CheckpointStorage,
        file: Place,
        shards: Sequence[TensorShard],
        buffer: PinnedBuffer | None,
    ):
        # A daemon: a process that aborts does not wait for a slow disk. The next start removes the rest.
        super().__init__(name="checkpoint", daemon=True)
        shards = [shard for shard in shards if len(shard.values_V)]
        self._storage, self._file = storage, file
        self._buffer = buffer
        self._shards = shards if buffer is None else ()
        self.ranges = [ShardRange(file.name, one.kind, one.name, one.start, one.stop) for one in shards]
        self._checksum: FileChecksum | None = None
        self._failure: FileFailure | None = None
        if buffer is not None:
            buffer.copy_from(shards)

    def run(self) -> None:
        """Write the file: in the thread after `start`, or directly in the caller's thread."""
        if threading.current_thread() is self:
            with suppress(OSError):  # on Linux a thread has its own priority: training comes first
                os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)
        try:
            self._checksum = retry(self._write, f"writing {self._file}")
        except OSError as error:
            self._failure = FileFailure.of(error)

    def _write(self) -> FileChecksum:
        return self._storage.write(self._file, self.ranges, self._values())

    def _values(self) -> Iterable[Tensor]:
        if self._buffer is not None:
            return self._buffer.values()
        return (shard.values_V.detach() for shard in self._shards)

    def result(self) -> WriteResult:
        """The result, for the other processes."""
        return WriteResult(platform.node(), self._checksum, self._failure)


def combine_failures(results: Sequence[WriteResult]) -> FileFailure | None:
    """The reason of a failed save, with rank and host, or None. Transient if every failure is transient."""
    ended = FileFailure("the writing thread ended early", is_transient=False)
    failures = [
        (f"rank {rank} on {result.host}", result.failure or ended)
        for rank, result in enumerate(results)
        if result.checksum is None
    ]
    if not failures:
        return None
    text = "; ".join(f"{writer}: {failure.text}" for writer, failure in failures[:_MOST_NAMED])
    return FileFailure(text, all(failure.is_transient for _, failure in failures))


def _split_at_blocks(values_V: Tensor, place: int) -> Iterable[Tensor]:
    """Split values at block borders; `place` is the offset of the first value in the buffer."""
    head = -place % _BLOCK_VALUES
    return [
        run_V
        for part_V in (values_V[:head], values_V[head:])
        for run_V in part_V.split(_BLOCK_VALUES)
        if len(run_V)
    ]
