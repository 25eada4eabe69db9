"""Compact table of the values in the files of a checkpoint, and the check that each value is held once.

Files list their runs by parameter and kind: at ZeRO 3 thousands of runs in each file. Two forms keep that
small between processes:

- `PackedSpans`: a run that is the file's equal share of its parameter costs one bit, any other its numbers.
- `tiles`: one number for each parameter and kind; the sums over all processes tell whether the runs tile it.
"""

import math
from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

MOMENTS = ("exp_avg", "exp_avg_sq")

# (kind, name) -> number of values; the same on every process, in the same order.
Counts = dict[tuple[str, str], int]


class Span(NamedTuple):
    """A run of one flattened parameter's values in a file: `start` to before `stop`."""

    file: str
    kind: str
    name: str
    start: int
    stop: int

    @property
    def tensor(self) -> str:
        """Its name in the file."""
        return f"{self.kind}/{self.name}@{self.start}"


class PackedSpans(NamedTuple):
    """The runs of one file.

    Attributes:
        number: of the file, from 0.
        files: how many files the checkpoint has.
        ruled: a bit for each entry of the counts: the file holds `equal_share(count, number, files)` of it.
        others: (kind, name, start, stop) of every other run.
    """

    file: str
    number: int
    files: int
    ruled: bytes
    others: list[tuple[str, str, int, int]]


def counts_of(shapes: Mapping[str, tuple[int, ...]], updates: Mapping[str, int]) -> Counts:
    """Possible contents of a checkpoint: each weight, and two moments of each trainable parameter."""
    wanted = {("weight", name): math.prod(shape) for name, shape in shapes.items()}
    wanted |= {(kind, name): math.prod(shapes[name]) for name in updates for kind in MOMENTS}
    return dict(sorted(wanted.items()))


def equal_share(count: int, number: int, files: int) -> tuple[int, int]:
    """Start and stop of one of `files` runs of equal length; the last ones are shorter, or empty."""
    size = -(-count // files)
    return min(number * size, count), min((number + 1) * size, count)


def pack(spans: Sequence[Span], counts: Counts, *, file: str, number: int, files: int) -> PackedSpans:
    """The runs of one file, packed."""
    ruled, others = np.zeros(len(counts), dtype=bool), []
    places = {key: place for place, key in enumerate(counts)}
    for span in spans:
        place = places.get((span.kind, span.name))
        count = counts.get((span.kind, span.name), 0)
        is_ruled = place is not None and not ruled[place]
        if is_ruled and (span.start, span.stop) == equal_share(count, number, files):
            ruled[place] = True
        else:
            others.append((span.kind, span.name, span.start, span.stop))
    return PackedSpans(file, number, files, np.packbits(ruled).tobytes(), others)


class SpanTable:
    """The runs of all files of a checkpoint, by parameter and kind.

    Args:
        spans: runs one by one.
        packed: runs of whole files, as `pack` gave them with the same `counts`.
    """

    def __init__(
        self,
        spans: Iterable[Span] = (),
        *,
        packed: Sequence[PackedSpans] = (),
        counts: Counts | None = None,
    ):
        self._counts = counts or {}
        self._packed = packed = sorted(packed, key=lambda file: file.number)
        self._places = {key: place for place, key in enumerate(self._counts)}
        bits = np.array([np.frombuffer(file.ruled, dtype=np.uint8) for file in packed], dtype=np.uint8)
        ruled = np.unpackbits(bits.reshape(len(packed), -1), axis=1) if packed else np.zeros((0, 0))
        # For each entry of the counts, the numbers of the files that hold their equal share of it.
        self._ruled = [np.flatnonzero(column).tolist() for column in ruled.T[: len(self._counts)]]
        self._listed: dict[tuple[str, str], list[Span]] = defaultdict(list)
        others = (Span(file.file, *run) for file in packed for run in file.others)
        for span in (*spans, *others):
            self._listed[span.kind, span.name].append(span)

    def keys(self) -> set[tuple[str, str]]:
        """(kind, name) of everything that is held partly or completely."""
        ruled = {key for key, rows in zip(self._counts, self._ruled, strict=False) if rows}
        return set(self._listed) | ruled

    def runs(self, kind: str, name: str, start: int = 0, stop: int | None = None) -> list[Span]:
        """The runs of one parameter that reach into `start` to before `stop`, by their first value."""
        found = list(self._listed.get((kind, name), ()))
        place = self._places.get((kind, name))
        if place is not None and self._ruled:
            count, files, rows = self._counts[kind, name], self._packed[0].files, self._ruled[place]
            size = max(1, -(-count // files))
            last = count if stop is None else stop
            for row in rows[bisect_left(rows, start // size) : bisect_right(rows, last // size)]:
                file = self._packed[row]
                found.append(Span(file.file, kind, name, *equal_share(count, file.number, files)))
        return sorted(found, key=lambda span: span.start)

    def _is_ruled(self, kind: str, name: str) -> bool:
        """Whether every file holds its equal share, so that single runs need no check."""
        place = self._places.get((kind, name))
        if place is None or not self._ruled or (kind, name) in self._listed:
            return False
        rows, files = self._ruled[place], self._packed[0].files
        holders = -(-self._counts[kind, name] // max(1, -(-self._counts[kind, name] // files)))
        return rows[:holders] == list(range(holders)) and [self._packed[row].number for row in rows] == rows

    def find_fault(self, shapes: Mapping[str, tuple[int, ...]], updates: Mapping[str, int]) -> str | None:
        """The reason why the files do not hold each value exactly once, or None.

        Args:
            shapes: of every parameter and buffer.
            updates: how often each trainable parameter was updated; those never updated may have no moments.
        """
        wanted = {("weight", name) for name in shapes}
        wanted |= {(kind, name) for name, done in updates.items() for kind in MOMENTS if done}
        allowed = wanted | {(kind, name) for name in updates for kind in MOMENTS}
        present = self.keys()
        for kind, name in sorted(present - allowed):
            return f"it holds {kind} of {name}, which no parameter has"
        for kind, name in sorted(wanted | present):
            if self._is_ruled(kind, name):
                continue
            reached = 0
            for span in self.runs(kind, name):
                if span.start != reached:
                    what = "are missing" if span.start > reached else "are held twice"
                    first, last = sorted((reached, span.start))
                    return f"values {first} to {last} of {kind} of {name} {what}"
                reached = span.stop
            if reached != math.prod(shapes[name]):
                return f"{kind} of {name} has {reached} values, not {math.prod(shapes[name])}"
        return None


def tiles(spans: Sequence[Span], counts: Counts) -> Tensor:
    """This process's summands of the check that all runs together tile every parameter; int64.

    A run from `start` to `stop` adds `hash(stop) - hash(start)` to its parameter's number. Runs that follow
    one another cancel where they meet, so runs that tile `count` values add up to `hash(count) - hash(0)`.
    With a gap, an overlap or a repetition they do not, except with a chance of 2**-40. One more number counts
    runs of unknown parameters.
    """
    places = {key: place for place, key in enumerate(counts)}
    sums = np.zeros(len(counts) + 1, dtype=np.int64)
    index = [places.get((span.kind, span.name), len(counts)) for span in spans]
    ends = np.array([(span.start, span.stop) for span in spans], dtype=np.uint64).reshape(-1, 2)
    values = _hash(ends)
    np.add.at(sums, index, values[:, 1] - values[:, 0])
    sums[-1] = index.count(len(counts))
    return torch.from_numpy(sums)


def are_tiled(sums: Tensor, counts: Counts, updates: Mapping[str, int]) -> bool:
    """Whether the summands of all processes show that each value is held once.

    Args:
        updates: how often each trainable parameter was updated; those never updated may have no moments.
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
