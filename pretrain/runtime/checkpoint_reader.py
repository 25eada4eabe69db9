"""Read a checkpoint: every file once over all processes, checked while its values are loaded."""

import platform
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from kinemae.data_tools.command import CheckpointError, Stuck
from kinemae.pretrain.runtime import checkpoint_files as files
from kinemae.pretrain.runtime.checkpoint_files import CheckpointMetadata, Place, ShardStream
from kinemae.pretrain.runtime.checkpoint_storage import CheckpointStorage
from kinemae.pretrain.runtime.file_retries import attempts, retry
from kinemae.pretrain.runtime.processes import Processes
from kinemae.pretrain.runtime.resharding import Source, reshard
from kinemae.pretrain.runtime.tensor_shards import (
    PackedRanges,
    ShardTable,
    TensorShard,
    pack_ranges,
    value_counts,
)

# Files that stay open between the check of the headers and the reading of the values.
_MOST_OPEN = 16


class CheckpointDamage(CheckpointError):
    """A wrong size, checksum or format, or a file that no process finds; the same on every process."""


class _Result(NamedTuple):
    """One process's result for its part of the files of a checkpoint."""

    host: str
    packed: Sequence[PackedRanges] = ()
    damage: str | None = None
    unread: str | None = None
    absent: str | None = None

    def of(self, error: Exception) -> "_Result":
        """The result after an error."""
        if isinstance(error, FileNotFoundError):
            return self._replace(absent=Path(error.filename).name)
        if isinstance(error, OSError):
            return self._replace(unread=str(error))
        return self._replace(damage=str(error))


class CheckpointReader:
    """Collective. A checkpoint whose metadata and headers are read and checked.

    The first process reads the JSON files. File k is read by process k modulo the number of processes. If one
    process cannot read a file, or only some processes find it, the checkpoint may be intact: the start ends
    and can be repeated.

    Attributes:
        metadata: content of the JSON files.

    Raises:
        CheckpointDamage: the checkpoint is damaged.
        CheckpointError: it has another format.
        Stuck: a process cannot read a file. The message states the file and the host.
    """

    def __init__(self, storage: CheckpointStorage, folder: Place, processes: Processes):
        self._storage, self._folder, self._processes = storage, folder, processes
        self._result = _Result(platform.node())
        self._streams: list[ShardStream] = []
        self.metadata = self._read_metadata()
        counts = value_counts(self.metadata.shapes, self.metadata.updates)
        try:
            self._open_streams(counts)
        except (OSError, ValueError) as error:
            self._result = self._result.of(error)
        packed = [file for result in self._exchange_results() for file in result.packed]
        self._table = ShardTable(packed=packed, counts=counts)
        if fault := self._table.find_fault(self.metadata.shapes, self.metadata.updates):
            raise CheckpointDamage(fault)

    def fill(self, shards: Sequence[TensorShard]) -> None:
        """Collective, once. Read all files and fill shards, of which each process may have others.

        The processes exchange values: no process reads the file of another one. Shards hold arbitrary values
        after an error.

        Raises:
            CheckpointDamage: a file has changed since it was written.
            Stuck: a process cannot read a file.
        """
        own = [one for stream in self._streams for one in stream.ranges]
        values = _Values(self._streams)
        source = Source(table=self._table, own=own, reader_of=self._reader_of, read_next=values.read_next)
        reshard(shards, source, self._processes)
        if values.error is not None:
            self._result = self._result.of(values.error)
        self._exchange_results()

    def _reader_of(self, file: str) -> int:
        return files.parse_shard_file(file)[0] % self._processes.world

    def _read_metadata(self) -> CheckpointMetadata:
        metadata, refused = None, None
        if self._processes.is_first:
            try:
                metadata = retry(
                    partial(self._storage.read_metadata, self._folder), f"reading {self._folder}"
                )
            except CheckpointError as error:
                refused = error
            except (OSError, ValueError) as error:
                self._result = self._result.of(error)
        metadata, refused = self._processes.broadcast_object((metadata, refused))
        if refused is not None:
            raise refused
        if metadata is None:
            self._exchange_results()
        assert metadata is not None, "or the first process has a reason"
        return metadata

    def _open_streams(self, counts: dict[tuple[str, str], int]) -> None:
        listed = self.metadata.files
        own = [name for name in sorted(listed) if files.is_shard_file(name)]
        own = [name for name in own if self._reader_of(name) == self._processes.rank]
        packed = []
        for name in own:
            stream = self._storage.open_shards(self._folder / name, listed[name])
            if len(own) > _MOST_OPEN:
                stream.close()
            number, count = files.parse_shard_file(name)
            packed.append(pack_ranges(stream.ranges, counts, file=name, number=number, files=count))
            self._streams.append(stream)
        self._result = self._result._replace(packed=packed)

    def _exchange_results(self) -> list[_Result]:
        """The results of all processes, if none has an error.

        Raises:
            CheckpointDamage: see `CheckpointReader`.
            Stuck: see `CheckpointReader`.
        """
        results = self._processes.all_gather_object(self._result)
        for rank, result in enumerate(results):
            if result.unread is not None:
                raise Stuck(_unread(self._folder, rank, result.host, result.unread))
        absent = sorted({result.absent for result in results if result.absent})
        if absent:
            self._refuse_partly_absent(absent[0])
            raise CheckpointDamage(f"{absent[0]} is missing")
        if damage := next((result.damage for result in results if result.damage), None):
            raise CheckpointDamage(damage)
        return results

    def _refuse_partly_absent(self, name: str) -> None:
        """End the start if some processes find a file and others do not."""
        seen = self._processes.all_gather_object(
            (platform.node(), self._storage.is_listed(self._folder, name))
        )
        if any(is_there for _, is_there in seen):
            rank, host = next(
                ((rank, host) for rank, (host, is_there) in enumerate(seen) if not is_there), (0, "its host")
            )
            raise Stuck(_unread(self._folder, rank, host, f"no {name}, which other processes find"))


class _Values:
    """The values of several files, one after the other; zeros after an error.

    Attributes:
        error: the first error of a file; the other processes learn of it at the end.
    """

    def __init__(self, streams: Sequence[ShardStream]):
        self._left = [(stream, sum(one.stop - one.start for one in stream.ranges)) for stream in streams]
        self.error: OSError | ValueError | None = None
        self._pass_ends()

    def read_next(self, count: int) -> Tensor:
        """The next `count` values, float32."""
        values_V = torch.zeros(count)
        place = 0
        while place < count and self.error is None:
            stream, left = self._left[0]
            run = min(left, count - place)
            try:
                stream.read_into(values_V[place : place + run])
            except (OSError, ValueError) as error:
                self.error = error
            self._left[0] = (stream, left - run)
            place += run
            self._pass_ends()
        return values_V

    def _pass_ends(self) -> None:
        """Check and close the files that are read completely."""
        while self._left and not self._left[0][1] and self.error is None:
            stream, _ = self._left.pop(0)
            try:
                stream.check_end()
            except ValueError as error:
                self.error = error
            stream.close()


def _unread(folder: Place, rank: int, host: str, reason: str) -> str:
    """The message for a checkpoint that one process cannot read."""
    return (
        f"checkpoint {folder}: expected rank {rank} on {host} to read it, got {reason} ({attempts()}); "
        "nothing was changed; fix: check the storage and its mount on that host, then repeat the command"
    )
