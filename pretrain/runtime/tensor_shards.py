"""Tensor shards: runs of flattened parameters and moments, and the check that all runs cover a model.

A checkpoint is a set of shards, independent of ZeRO stages and ranks. Each stage lists the shards that a
process holds, and requests the runs that it needs. At ZeRO 3 each file has thousands of runs. Two compact
forms are exchanged between processes:

- `PackedRanges`: a run that is the file's equal part of its parameter costs one bit.
- `coverage_sums`: one number for each parameter and kind. Their sums over all processes show whether the
  runs cover every value once.
"""

import math
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from kinemae.pretrain.runtime.processes import Processes

MOMENTS = ("exp_avg", "exp_avg_sq")
KINDS = ("weight", *MOMENTS)

# Values in one exchange of a load, over all processes: 64 MiB of float32.
EXCHANGED_VALUES = 1 << 24

# Collective. Fills the shards of this process with the values of a checkpoint.
FillShards = Callable[[Sequence["TensorShard"]], None]

# (kind, name) -> number of values; the same on every process, in the same order.
ValueCounts = dict[tuple[str, str], int]


@dataclass(frozen=True, kw_only=True)
class TensorShard:
    """A run of one flattened parameter's values on this process.

    Attributes:
        name: as in the module's `named_parameters()` or `named_buffers()`.
        kind: "weight", or one of AdamW's moments: "exp_avg", "exp_avg_sq".
        start: offset of the first value in the flattened parameter.
        values_V: float32, contiguous: a view of live memory, not a copy.
    """

    name: str
    kind: str
    start: int
    values_V: Tensor

    @property
    def stop(self) -> int:
        """Offset after the last value in the flattened parameter."""
        return self.start + self.values_V.numel()


def whole_weight(name: str, tensor: Tensor) -> TensorShard:
    """A weight or buffer as one shard."""
    return TensorShard(name=name, kind="weight", start=0, values_V=tensor.detach().view(-1))


class ShardRange(NamedTuple):
    """The position of a shard: values `start` to before `stop` of one parameter, in one file."""

    file: str
    kind: str
    name: str
    start: int
    stop: int

    @property
    def tensor(self) -> str:
        """The tensor's name in the file."""
        return f"{self.kind}/{self.name}@{self.start}"


class PackedRanges(NamedTuple):
    """The ranges of one file.

    Attributes:
        number: of the file, from 0.
        files: number of files in the checkpoint.
        equal: a bit for each entry of the counts: the file holds `equal_range(count, number, files)` of it.
        others: (kind, name, start, stop) of every other range.
    """

    file: str
    number: int
    files: int
    equal: bytes
    others: list[tuple[str, str, int, int]]


def value_counts(shapes: Mapping[str, tuple[int, ...]], updates: Mapping[str, int]) -> ValueCounts:
    """Possible contents of a checkpoint: each weight, and two moments of each trainable parameter."""
    counts = {("weight", name): math.prod(shape) for name, shape in shapes.items()}
    counts |= {(kind, name): math.prod(shapes[name]) for name in updates for kind in MOMENTS}
    return dict(sorted(counts.items()))


def equal_range(count: int, number: int, files: int) -> tuple[int, int]:
    """Start and stop of one of `files` runs of equal length; the last ones are shorter, or empty."""
    size = -(-count // files)
    return min(number * size, count), min((number + 1) * size, count)


def pack_ranges(
    ranges: Sequence[ShardRange], counts: ValueCounts, *, file: str, number: int, files: int
) -> PackedRanges:
    """Pack the ranges of one file."""
    equal, others = np.zeros(len(counts), dtype=bool), []
    places = {key: place for place, key in enumerate(counts)}
    for one in ranges:
        place = places.get((one.kind, one.name))
        count = counts.get((one.kind, one.name), 0)
        is_new = place is not None and not equal[place]
        if is_new and (one.start, one.stop) == equal_range(count, number, files):
            equal[place] = True
        else:
            others.append((one.kind, one.name, one.start, one.stop))
    return PackedRanges(file, number, files, np.packbits(equal).tobytes(), others)


class ShardTable:
    """The ranges of all files of a checkpoint, by parameter and kind.

    Args:
        ranges: single ranges.
        packed: ranges of whole files, from `pack_ranges` with the same `counts`.
    """

    def __init__(
        self,
        ranges: Iterable[ShardRange] = (),
        *,
        packed: Sequence[PackedRanges] = (),
        counts: ValueCounts | None = None,
    ):
        self._counts = counts or {}
        self._packed = packed = sorted(packed, key=lambda file: file.number)
        self._places = {key: place for place, key in enumerate(self._counts)}
        self._numbers = np.array([file.number for file in packed], dtype=np.int32)
        bits = np.array([np.frombuffer(file.equal, dtype=np.uint8) for file in packed], dtype=np.uint8)
        equal = np.unpackbits(bits.reshape(len(packed), -1), axis=1) if packed else np.zeros((0, 0))
        # For each entry of the counts, the numbers of the files that hold their equal range of it.
        self._equal = [np.flatnonzero(column).astype(np.int32) for column in equal.T[: len(self._counts)]]
        self._listed: dict[tuple[str, str], list[ShardRange]] = defaultdict(list)
        others = (ShardRange(file.file, *run) for file in packed for run in file.others)
        for one in (*ranges, *others):
            self._listed[one.kind, one.name].append(one)

    def runs(self, kind: str, name: str, start: int = 0, stop: int | None = None) -> list[ShardRange]:
        """Ranges of one parameter that overlap `start` to `stop`, ordered by their first value."""
        found = list(self._listed.get((kind, name), ()))
        place = self._places.get((kind, name))
        if place is not None and self._equal:
            count, files, rows = self._counts[kind, name], self._packed[0].files, self._equal[place]
            size = max(1, -(-count // files))
            last = count if stop is None else stop
            first, end = np.searchsorted(rows, start // size), np.searchsorted(rows, last // size, "right")
            for row in rows[first:end].tolist():
                file = self._packed[row]
                found.append(ShardRange(file.file, kind, name, *equal_range(count, file.number, files)))
        return sorted(found, key=lambda one: one.start)

    def place(self, kind: str, name: str) -> int:
        """Number of the entry of a parameter and kind in the counts."""
        return self._places[kind, name]

    def _is_equally_sharded(self, kind: str, name: str) -> bool:
        """Check whether every file holds its equal range, so that single ranges need no check."""
        place = self._places.get((kind, name))
        if place is None or not self._equal or (kind, name) in self._listed:
            return False
        rows, files = self._equal[place], self._packed[0].files
        holders = -(-self._counts[kind, name] // max(1, -(-self._counts[kind, name] // files)))
        are_first = np.array_equal(rows[:holders], np.arange(holders))
        return are_first and np.array_equal(self._numbers[rows], rows)

    def find_fault(self, shapes: Mapping[str, tuple[int, ...]], updates: Mapping[str, int]) -> str | None:
        """Describe why the files do not hold each value exactly once; None if they do.

        Args:
            shapes: of every parameter and buffer.
            updates: number of updates of each trainable parameter; without updates, moments may be absent.
        """
        required = {("weight", name) for name in shapes}
        required |= {(kind, name) for name, done in updates.items() for kind in MOMENTS if done}
        allowed = required | {(kind, name) for name in updates for kind in MOMENTS}
        present = set(self._listed)
        present |= {key for key, rows in zip(self._counts, self._equal, strict=False) if len(rows)}
        for kind, name in sorted(present - allowed):
            return f"expected only the parameters of parameters.json, got {kind} of {name} too"
        for kind, name in sorted(required | present):
            if self._is_equally_sharded(kind, name):
                continue
            reached = 0
            for one in self.runs(kind, name):
                if one.start != reached:
                    what = "are missing" if one.start > reached else "are held twice"
                    first, last = sorted((reached, one.start))
                    return f"values {first} to {last} of {kind} of {name} {what}"
                reached = one.stop
            if reached != math.prod(shapes[name]):
                return f"expected {math.prod(shapes[name])} values of {kind} of {name}, got {reached}"
        return None


def coverage_sums(ranges: Sequence[ShardRange], counts: ValueCounts) -> Tensor:
    """Sums of this process for the check that all ranges cover every parameter once; int64.

    A range from `start` to `stop` adds `hash(stop) - hash(start)` to its parameter's number. Adjacent ranges
    cancel at their border, so ranges that cover `count` values once add up to `hash(count) - hash(0)`. With
    a gap, an overlap or a repetition they do not, except with probability 2**-40. One more number counts the
    ranges of unknown parameters.
    """
    places = {key: place for place, key in enumerate(counts)}
    sums = np.zeros(len(counts) + 1, dtype=np.int64)
    index = [places.get((one.kind, one.name), len(counts)) for one in ranges]
    ends = np.array([(one.start, one.stop) for one in ranges], dtype=np.uint64).reshape(-1, 2)
    values = _hash(ends)
    np.add.at(sums, index, values[:, 1] - values[:, 0])
    sums[-1] = index.count(len(counts))
    return torch.from_numpy(sums)


def is_covered(sums: Tensor, counts: ValueCounts, updates: Mapping[str, int]) -> bool:
    """Check whether the `coverage_sums`, summed over all processes, show that each value is held once.

    Args:
        updates: number of updates of each trainable parameter; without updates, moments may be absent.
    """
    found = sums.cpu().numpy()
    full = _hash(np.array(list(counts.values()), dtype=np.uint64)) - _hash(np.zeros(1, dtype=np.uint64))
    may_lack = np.array([kind in MOMENTS and not updates.get(name) for kind, name in counts], dtype=bool)
    is_right = (found[:-1] == full) | (may_lack & (found[:-1] == 0))
    return bool(is_right.all()) and found[-1] == 0


def _hash(places: np.ndarray) -> np.ndarray:
    """40 bits for each place (the mixing steps of splitmix64), as int64: sums over all processes fit."""
    mixed = places + np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return ((mixed ^ (mixed >> np.uint64(31))) >> np.uint64(24)).astype(np.int64)


def split_replicated(shards: Sequence[TensorShard], rank: int, world: int) -> list[TensorShard]:
    """This process's part of shards that every process holds: runs of equal length, for any shard sizes."""
    line = _Concatenated(shards)
    return list(line.runs(*line.part(rank, world)))


def exchange_replicated(
    shards: Sequence[TensorShard], processes: Processes, *, exchanged_values: int = EXCHANGED_VALUES
) -> None:
    """Collective. Complete shards that every process holds: each process has filled its part of them.

    The part is that of `split_replicated`.
    """
    rank, world = processes.rank, processes.world
    line = _Concatenated(shards)
    if world == 1 or not line.total:
        return
    parts = [line.part(other, world) for other in range(world)]
    longest = max(stop - start for start, stop in parts)
    block = min(longest, max(1, exchanged_values // world))
    own_V = torch.zeros(block, device=shards[0].values_V.device)
    for offset in range(0, longest, block):
        runs = [(min(start + offset, stop), min(start + offset + block, stop)) for start, stop in parts]
        for run_V, block_V in line.pairs(own_V, *runs[rank]):
            block_V.copy_(run_V)
        for other, row_V in enumerate(processes.all_gather(own_V)):
            if other != rank:
                for run_V, block_V in line.pairs(row_V, *runs[other]):
                    run_V.copy_(block_V)


class _Concatenated:
    """Concatenated shards, addressed by offset."""

    def __init__(self, shards: Sequence[TensorShard]):
        self._shards = shards
        self._starts = [0, *accumulate(shard.values_V.numel() for shard in shards)]
        self.total = self._starts[-1]

    def part(self, rank: int, world: int) -> tuple[int, int]:
        return self.total * rank // world, self.total * (rank + 1) // world

    def runs(self, first: int, last: int) -> Iterator[TensorShard]:
        """The parts of shards between two offsets."""
        number = max(bisect_right(self._starts, first) - 1, 0)
        while first < last:
            shard, begin = self._shards[number], first - self._starts[number]
            end = min(last - self._starts[number], shard.values_V.numel())
            if begin < end:
                values_V = shard.values_V[begin:end]
                start = shard.start + begin
                yield TensorShard(name=shard.name, kind=shard.kind, start=start, values_V=values_V)
            first = self._starts[number] + max(end, begin)
            number += 1

    def pairs(self, block_V: Tensor, first: int, last: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The values between two offsets, run by run, each with its place in a block."""
        place = 0
        for run in self.runs(first, last):
            yield run.values_V, block_V[place : place + len(run.values_V)]
            place += len(run.values_V)
