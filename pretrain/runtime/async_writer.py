"""One process's part of a save: a copy of its pieces in host memory, written by a thread."""

import os
import platform
import threading
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from kinemae.pretrain.runtime.file_retries import FileFailure, failure_of, retried
from kinemae.pretrain.runtime.shard_files import FileMark, spans_of, write_pieces
from kinemae.pretrain.runtime.span_table import Span
from kinemae.pretrain.runtime.state_shards import Piece

# 256 MiB: pinned memory is handed out in powers of two, so one great block could waste half.
_BLOCK_VALUES = 1 << 26
_NICENESS = 10
_MOST_NAMED = 3


class SavedPart(NamedTuple):
    """The result of one process's part of a save."""

    host: str
    mark: FileMark | None
    failure: FileFailure | None


class HostCopy:
    """Memory for one copy of this process's pieces, used again at every save; pinned for those on CUDA."""

    def __init__(self) -> None:
        self._blocks: list[Tensor] = []
        self._copied: torch.cuda.Event | None = None

    def take(self, pieces: Sequence[Piece]) -> None:
        """Copy the values as they are now.

        On CUDA the copies are queued on the present stream, before whatever changes the weights next: the
        device waits for them and the process does not.
        """
        on_cuda = any(piece.values_V.is_cuda for piece in pieces)
        self._make_room(sum(len(piece.values_V) for piece in pieces), pinned=on_cuda)
        place = 0
        for piece in pieces:
            for run_V in _cut(piece.values_V.detach(), place):
                block, offset = divmod(place, _BLOCK_VALUES)
                self._blocks[block][offset : offset + len(run_V)].copy_(run_V, non_blocking=True)
                place += len(run_V)
        if on_cuda:
            self._copied = torch.cuda.Event()
            self._copied.record()

    def values(self) -> list[Tensor]:
        """The copied values, one piece's after the other's, once they are there."""
        if self._copied is not None:
            self._copied.synchronize()
        return self._blocks

    def _make_room(self, count: int, *, pinned: bool) -> None:
        if sum(len(block) for block in self._blocks) != count:
            self._blocks = []  # given back first: two copies at once may be more than there is memory
            self._blocks = [
                torch.empty(min(_BLOCK_VALUES, count - start), pin_memory=pinned)
                for start in range(0, count, _BLOCK_VALUES)
            ]


class Saving(threading.Thread):
    """The writing of one process's file of pieces.

    Attributes:
        spans: what the file is to hold.
        mark: size and checksum of the file, once it is on the disk.
        failure: why it could not be written.
    """

    def __init__(self, path: Path, pieces: Sequence[Piece], copy: HostCopy | None):
        """Take what is to be written: a copy of the pieces into `copy`, or the pieces themselves."""
        # A process that ends at once must not wait for a slow disk: the rest is swept up by the next start.
        super().__init__(name="checkpoint", daemon=True)
        pieces = [piece for piece in pieces if len(piece.values_V)]
        self._path = path
        self._copy = copy
        self._pieces = pieces if copy is None else ()
        self.spans: list[Span] = spans_of(pieces, path.name)
        self.mark: FileMark | None = None
        self.failure: FileFailure | None = None
        if copy is not None:
            copy.take(pieces)

    def run(self) -> None:
        """Write. Called in the thread by `start`, or by who wants to wait."""
        if threading.current_thread() is self:
            with suppress(OSError):  # Linux: one thread's alone. Training comes first where cores are few
                os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)
        try:
            self.mark = retried(self._write, f"writing {self._path}")
        except OSError as error:
            self.failure = failure_of(error)

    def _write(self) -> FileMark:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        return write_pieces(self._path, self.spans, self._values())

    def part(self) -> SavedPart:
        """The result, for the other processes."""
        return SavedPart(platform.node(), self.mark, self.failure)

    def _values(self) -> Iterable[Tensor]:
        if self._copy is not None:
            return self._copy.values()
        return (piece.values_V.detach() for piece in self._pieces)


def failure_among(parts: Sequence[SavedPart]) -> FileFailure | None:
    """The reason of a failed save, by rank and host, or None; transient if every failure is transient."""
    gone = FileFailure("the writing thread ended early", may_pass=False)
    failures = [
        (f"rank {rank} on {part.host}", part.failure or gone)
        for rank, part in enumerate(parts)
        if part.mark is None
    ]
    if not failures:
        return None
    text = "; ".join(f"{who}: {failure.text}" for who, failure in failures[:_MOST_NAMED])
    return FileFailure(text, all(failure.may_pass for _, failure in failures))


def _cut(values_V: Tensor, place: int) -> Iterable[Tensor]:
    """Runs that do not go over the edges of blocks, where the first value is the `place`-th of all."""
    head = -place % _BLOCK_VALUES
    return [
        run_V
        for part_V in (values_V[:head], values_V[head:])
        for run_V in part_V.split(_BLOCK_VALUES)
        if len(run_V)
    ]
