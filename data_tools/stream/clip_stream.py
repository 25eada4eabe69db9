"""Clips of tars without an index as a torch `IterableDataset`, for training loops outside KineMAE."""

import copy
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

import torch
from torch import distributed as dist
from torch.utils.data import IterableDataset, get_worker_info

from kinemae.data_tools.config import require
from kinemae.data_tools.stream.clip_reader import (
    MAX_WORKERS,
    Batch,
    ClipReader,
    ReadBatch,
    check_read_here,
    checked_batches,
    rank_and_world,
)
from kinemae.data_tools.stream.frame_sampling import ClipConfig
from kinemae.data_tools.stream.loader import read_items
from kinemae.data_tools.stream.read_ahead import Request
from kinemae.data_tools.stream.streamed_clips import StreamedClips
from kinemae.data_tools.stream.tar_list import TarsDone, TarSlice
from kinemae.data_tools.stream.tar_reader import RawSample
from kinemae.data_tools.stream.worker import SequentialReader


class ClipStream(IterableDataset[Batch]):
    """Clips of tars in the order of a stream; made by `kinemae.clips`. Batches are those of `ClipDataset`.

    An iteration does not end, or ends after the steps of `with_epoch`; the next one continues. Each process,
    each of its workers, or each worker of a DataLoader reads its own tars.
    """

    _items: Iterator[ReadBatch] | None  # of an iteration that has begun

    def __init__(
        self,
        reader: ClipReader[StreamedClips],
        workers: int,
        place: tuple[int | None, int | None],
        max_bad_fraction: float,
        timeout_s: float,
    ):
        super().__init__()
        self.reader = reader
        self.workers = workers
        self.max_bad_fraction = max_bad_fraction
        self.timeout_s = timeout_s
        self._place = place
        self._steps: int | None = None  # of an iteration
        self._reset(0, TarsDone())

    def map(self, function: Callable[[RawSample], RawSample | None]) -> "ClipStream":
        """Call a function for each sample before its video is decoded; None drops the sample.

        Args:
            function: gets and returns a dictionary as in webdataset: "__key__", "__url__", and the bytes of
                each member by its extension. With workers it must be a function of a module.
        """
        return self._with_hook("map", function)

    def select(self, predicate: Callable[[RawSample], bool]) -> "ClipStream":
        """Keep the samples for which a function is true; see `map`."""
        return self._with_hook("select", predicate)

    def _with_hook(self, kind: str, function: Callable[[RawSample], Any]) -> "ClipStream":
        require(callable(function), kind, "be a function", function)
        return self._changed(self.reader.clips.with_hook((kind, function)))

    def shuffle(self, buffer: int) -> "ClipStream":
        """Set the number of samples from which each worker draws; 1 keeps the order of the tar."""
        require(isinstance(buffer, int) and buffer >= 1, "shuffle", "be a whole number above 0", buffer)
        return self._changed(self.reader.clips.with_buffer(buffer))

    def with_epoch(self, steps: int) -> "ClipStream":
        """End each iteration after a number of steps, which all processes must share."""
        require(isinstance(steps, int) and steps >= 1, "with_epoch", "be a whole number above 0", steps)
        stream = self._changed(self.reader.clips)
        stream._steps = steps
        return stream

    @property
    def classes(self) -> tuple[str, ...]:
        """Nothing: tars have no list of classes."""
        return ()

    @property
    def clip(self) -> ClipConfig:
        """Frames, stride or frame rate, and size of the clips."""
        return self.reader.clips.clip

    def state_dict(self) -> dict[str, Any]:
        """Return the tars whose samples have all been used; collective with torch.distributed.

        Raises:
            ValueError: a DataLoader with workers reads the clips.
        """
        check_read_here(self._begun)
        rank, world = rank_and_world(self._place)
        done = self._start.plus(self._done)
        ranks = [rank]
        if world > 1 and dist.is_available() and dist.is_initialized() and dist.get_world_size() == world:
            of_all: list[Any] = [None] * world
            dist.all_gather_object(of_all, sorted(self._done))
            done, ranks = (
                self._start.plus(number for numbers in of_all for number in numbers),
                [*range(world)],
            )
        clips = self.reader.clips
        tars = done.as_json(clips.seed, len(clips.tars))
        return {"clips": self._clips, **self._identity(), "tars": tars, "ranks": ranks, "world": world}

    def load_state_dict(self, state: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> None:
        """Continue with the tars that are not done, on any number of processes and workers.

        Args:
            state: a `state_dict`; or those of all processes, if torch.distributed was not initialized.

        Raises:
            ValueError: a state of other data or of another seed, or states are missing.
        """
        states = [state] if isinstance(state, Mapping) else list(state)
        for each in states:
            for name, value in self._identity().items():
                if each.get(name) != value:
                    raise ValueError(
                        f"{name}: expected the state of a run with {value!r}, got {each.get(name)!r}; fix: "
                        "open the same tars with the same arguments"
                    )
        ranks = {rank for each in states for rank in each["ranks"]}
        if not states or ranks != set(range(states[0]["world"])):
            world = states[0]["world"] if states else 1
            raise ValueError(
                f"state: expected the states of all {world} processes, got those of {sorted(ranks)}; fix: "
                "give a list of them, or save after the start of torch.distributed"
            )
        parts = [TarsDone.of_json(each["tars"]) for each in states]
        before = max(part.before for part in parts)
        later = frozenset().union(*(part.later for part in parts))
        self._reset(max(each["clips"] for each in states), TarsDone(before).plus(later))

    def __iter__(self) -> Iterator[Batch]:
        rank, world = rank_and_world(self._place)
        worker = get_worker_info()
        steps = self._steps
        if worker is not None and steps is not None:
            steps = len(range(worker.id, steps, worker.num_workers))
        if self._items is None:
            self._items = self._read(rank, world)
        try:
            for item in islice(self._items, steps):
                self._clips += (self.reader.batch_size or 1) * world
                self._done.update(item.tars_done)
                yield item.batch
        except Exception:
            self._items = None  # the next iteration reads again
            raise

    def __getstate__(self) -> dict[str, Any]:
        # Started processes are in no group, and begin their own iteration.
        return {**self.__dict__, "_place": rank_and_world(self._place), "_items": None}

    def _read(self, rank: int, world: int) -> Iterator[ReadBatch]:
        """Start to read; a worker of a DataLoader begins another epoch of the tars with each iteration."""
        clips, worker, count = self.reader.clips, get_worker_info(), self.reader.batch_size or 1
        own = TarSlice(rank=rank, world=world, done=self._start.plus(self._done))
        step_clips, first = count * world, self._clips
        if worker is not None:
            begun = int(self._begun[worker.id])
            self._begun[worker.id] += 1
            own = replace(own, worker=worker.id, workers=worker.num_workers)
            if begun:
                own = replace(
                    own, done=TarsDone((own.done.before // len(clips.tars) + begun) * len(clips.tars))
                )
            first += worker.id * step_clips
            step_clips *= worker.num_workers
        items = _StreamedSteps(self.reader, own, first + rank * count, step_clips)
        workers = self.workers if worker is None else 0
        read = read_items(items, workers, self.timeout_s, preload=[__name__])
        return checked_batches(read, count, self.max_bad_fraction)

    def _changed(self, clips: StreamedClips) -> "ClipStream":
        stream = copy.copy(self)
        stream.reader = replace(self.reader, clips=clips)
        stream._reset(self._clips, self._start.plus(self._done))
        return stream

    def _reset(self, clips: int, start: TarsDone) -> None:
        self._clips = clips  # of all processes, used so far
        self._start = start
        self._done: set[int] = set()  # tars, by this process since the start
        self._items = None
        # Iterations that each worker of a DataLoader has begun.
        self._begun = torch.zeros(MAX_WORKERS, dtype=torch.int64).share_memory_()

    def _identity(self) -> dict[str, Any]:
        clips = self.reader.clips
        return {"seed": clips.seed, "views": clips.views, "data": clips.tars.identity}


@dataclass(frozen=True)
class _StreamedSteps(SequentialReader[ReadBatch]):
    """The steps of a process, or of a worker of a DataLoader, without an end.

    Attributes:
        first: position of its first clip.
        step_clips: from one step to its next one.
    """

    reader: ClipReader[StreamedClips]
    own: TarSlice
    first: int
    step_clips: int
    _done: set[int] = field(default_factory=set)

    def __len__(self) -> int:
        return sys.maxsize

    def for_worker(self, worker: int, workers: int) -> "_StepsOfWorker":
        """See `SequentialReader`."""
        own = replace(self.own, skipped=frozenset(self._done))
        if workers > 1:
            own = replace(own, worker=worker, workers=workers)
        reader = replace(self.reader, clips=self.reader.clips.of_slice(own))
        return _StepsOfWorker(reader, self.first, self.step_clips)

    def received(self, item: ReadBatch) -> None:
        """See `SequentialReader`."""
        self._done.update(item.tars_done)


@dataclass(frozen=True)
class _StepsOfWorker:
    reader: ClipReader[StreamedClips]
    first: int
    step_clips: int

    def __len__(self) -> int:
        return sys.maxsize

    def read(
        self, number: int, *, quarantined: Mapping[str, str], on_sample: Callable[[str], None]
    ) -> ReadBatch:
        begin = self.first + number * self.step_clips
        positions = range(begin, begin + (self.reader.batch_size or 1))
        return self.reader.read(positions, quarantined=quarantined, on_sample=on_sample)

    def upcoming(self, number: int) -> Sequence[Request]:
        """Nothing: the tars are read ahead."""
        return ()
