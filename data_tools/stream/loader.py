"""Data loaders: batches of clips for training, and views of videos for evaluation, in the order of the run.

    clips = TrainingClips(open_index(folder), clip=..., augment=..., seed=0)
    for batch in training_loader(clips, plan, rank=0, first_step=0, last_step=100, workers=4, pin=True): ...

They replace PyTorch's DataLoader and DistributedSampler. A batch is a function of the seed and the clip
indices. The number of workers and interruptions do not change it.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import torch

from kinemae.data_tools import heartbeat
from kinemae.data_tools.index import ShardIndex
from kinemae.data_tools.stream.augment import AugmentConfig
from kinemae.data_tools.stream.batch import ClipBatch
from kinemae.data_tools.stream.evaluation_clips import EvaluationItem, EvaluationVideos
from kinemae.data_tools.stream.frame_sampling import ClipConfig, SlidingClips
from kinemae.data_tools.stream.order import BatchPlan
from kinemae.data_tools.stream.read_ahead import ReadAhead, Request, reading_ahead
from kinemae.data_tools.stream.streamed_clips import StreamedClips
from kinemae.data_tools.stream.training_clips import Annotate, RunClips, TrainingClips
from kinemae.data_tools.stream.worker import ItemReader, SequentialReader
from kinemae.data_tools.stream.worker_pool import Prefetcher, WorkerPool
from kinemae.data_tools.stream.worker_setup import ensure_server, worker_context

__all__ = [
    "Annotate", "AugmentConfig", "ClipConfig", "EvaluationItem", "SlidingClips", "TrainingClips",
    "evaluation_loader", "prepare_training_loader", "read_items", "samples_in_progress", "training_loader",
]  # fmt: skip

TIMEOUT_S = 120.0
READ_AHEAD = 16

Item = TypeVar("Item")


def training_loader(  # noqa: PLR0913 - coordinates of the run, all by name
    clips: RunClips[Any],
    plan: BatchPlan,
    *,
    rank: int,
    first_step: int,
    last_step: int,
    workers: int,
    pin: bool,
    timeout_s: float = TIMEOUT_S,
    on_outage: Callable[[str], None] | None = None,
    read_ahead: int = READ_AHEAD,
) -> Iterator[ClipBatch]:
    """Iterate over the micro-batches of a process from `first_step` to `last_step` (exclusive).

    The order is: all accumulation indices of a step, then the next step.

    Args:
        workers: loader processes, see `resolve_num_workers`; 0 reads in this process.
        pin: put batches into page-locked memory, for asynchronous copies to a GPU.
        timeout_s: limit without progress; then the worker is replaced and its sample skipped.
        on_outage: see `WorkerPool`; no sample is skipped because of an outage.
        read_ahead: number of samples that are read ahead of the one that is decoded; the batches are equal.

    Raises:
        StorageUnavailable: a storage was down for longer than the index's `outage_s`.
    """
    kind = _MicroBatches
    if isinstance(clips, StreamedClips):  # whose tars are read ahead
        kind, read_ahead = _StreamedMicroBatches, 0
    micro_batches = kind(clips, plan, rank, first_step, last_step)
    batches = read_items(
        micro_batches,
        workers,
        timeout_s,
        preload=_modules(clips.annotate),
        on_outage=on_outage,
        read_ahead=read_ahead,
    )
    if not (pin and torch.cuda.is_available()):
        return batches
    if isinstance(batches, WorkerPool):
        return Prefetcher(batches, ClipBatch.pin_memory)
    return map(ClipBatch.pin_memory, batches)


def prepare_training_loader(annotate: Annotate | None, *, workers: int) -> None:
    """Let the server of a `training_loader`'s workers import its modules, while this process continues.

    Args:
        annotate: of the clips.
    """
    if workers:
        worker_context(_modules(annotate))
        ensure_server()


def _modules(annotate: Annotate | None) -> list[str]:
    """The modules that the workers need."""
    return [__name__, __name__ if annotate is None else annotate.__module__]


def samples_in_progress(items: Iterator[Item]) -> list[str]:
    """Keys of the samples that a loader's workers read now; empty without workers."""
    return items.samples_in_progress if isinstance(items, WorkerPool | Prefetcher) else []


def evaluation_loader(  # noqa: PLR0913 - coordinates of the run, all by name
    index: ShardIndex,
    *,
    clip: ClipConfig,
    temporal_clips: int | SlidingClips,
    spatial_crops: int,
    rank: int,
    world: int,
    workers: int,
    samples: Sequence[int] | None = None,
    timeout_s: float = TIMEOUT_S,
    read_ahead: int = READ_AHEAD,
) -> Iterator[EvaluationItem]:
    """Iterate over the videos of a process with their fixed views; unreadable videos are included.

    The number of items can be larger than that of videos if clips slide: see `EvaluationItem.parts`.

    Args:
        temporal_clips: evenly spaced clips per video, or sliding clips, see `SlidingClips`.
        samples: positions in the index; all by default.
    """
    if (isinstance(temporal_clips, int) and temporal_clips < 1) or spatial_crops not in (1, 3):
        raise ValueError(
            f"evaluation takes 1 or more temporal clips and 1 or 3 spatial crops, "
            f"got {temporal_clips} and {spatial_crops}"
        )
    positions = range(len(index)) if samples is None else samples
    videos = EvaluationVideos(
        index, positions[rank::world], clip=clip, temporal_clips=temporal_clips, spatial_crops=spatial_crops
    )
    return read_items(videos, workers, timeout_s, preload=[__name__], read_ahead=read_ahead)


@dataclass(frozen=True)
class _MicroBatches:
    clips: RunClips[Any]
    plan: BatchPlan
    rank: int
    first_step: int
    last_step: int

    def __len__(self) -> int:
        return max(self.last_step - self.first_step, 0) * self.plan.accumulation

    def read(
        self, number: int, *, quarantined: Mapping[str, str], on_sample: Callable[[str], None]
    ) -> ClipBatch:
        return self.clips.batch(self._clips(number), quarantined=quarantined, on_sample=on_sample)

    def upcoming(self, number: int) -> list[Request]:
        return self.clips.upcoming(self._clips(number))

    def _clips(self, number: int) -> range:
        steps, accumulation_index = divmod(number, self.plan.accumulation)
        return self.plan.clip_range(self.first_step + steps, accumulation_index, self.rank)


@dataclass(frozen=True)
class _StreamedMicroBatches(_MicroBatches, SequentialReader[ClipBatch]):
    """Micro-batches of a stream, whose position is the set of the tars that are done."""

    _done: set[int] = field(default_factory=set)  # tars, since the start

    def for_worker(self, worker: int, workers: int) -> _MicroBatches:
        """See `SequentialReader`."""
        assert isinstance(self.clips, StreamedClips)
        own = replace(
            self.clips.own,
            rank=self.rank,
            world=self.plan.world,
            worker=worker,
            workers=workers,
            skipped=frozenset(self._done),
        )
        steps = (self.plan, self.rank, self.first_step, self.last_step)
        return _MicroBatches(self.clips.of_slice(own), *steps)

    def received(self, item: ClipBatch) -> None:
        """See `SequentialReader`."""
        self._done.update(item.tars_done)


def read_items(
    reader: ItemReader[Item] | SequentialReader[Item],
    workers: int,
    timeout_s: float,
    *,
    preload: Sequence[str] = (),
    on_outage: Callable[[str], None] | None = None,
    read_ahead: int = 0,
) -> Iterator[Item]:
    """Read the items of a reader in order; workers start at once and read while the model is built.

    Args:
        workers: loader processes; 0 reads in this process.
        preload: modules that the workers import first.
        read_ahead: number of samples that are read ahead; above 0 only if the reader has `upcoming`.
    """
    if workers and len(reader):
        return WorkerPool(
            reader,
            workers=workers,
            timeout_s=timeout_s,
            preload=preload,
            on_outage=on_outage,
            read_ahead=read_ahead,
        )
    if isinstance(reader, SequentialReader):
        reader = reader.for_worker(0, 1)
    return _read_in_process(reader, on_outage, ReadAhead(read_ahead))


def _read_in_process(
    reader: ItemReader[Item], on_outage: Callable[[str], None] | None, ahead: ReadAhead
) -> Iterator[Item]:
    listener, planned = heartbeat.Listener(on_outage), 0
    try:
        for number in range(len(reader)):
            with heartbeat.listening(listener), reading_ahead(ahead):
                while planned < len(reader) and (planned <= number or ahead.wants_more) and ahead.depth:
                    ahead.plan(reader.upcoming(planned))
                    planned += 1
                item = reader.read(number, quarantined={}, on_sample=lambda key: None)
            yield item
    finally:
        ahead.close()
