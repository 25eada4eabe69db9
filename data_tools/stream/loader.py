"""Batches of clips for training and views of videos for evaluation, in the order of the run.

    clips = TrainingClips(open_index(folder), clip=..., augment=..., seed=0, views=2, annotate=None)
    for batch in training_loader(clips, plan, rank=0, first_step=0, last_step=100, workers=4, pin=True): ...

A batch is a function of (seed, clip indices) alone. Who reads it, in which process, after which
interruption, changes nothing.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypeVar

import torch

from kinemae.data_tools import heartbeat
from kinemae.data_tools.index import ShardIndex
from kinemae.data_tools.stream.augment import AugmentConfig
from kinemae.data_tools.stream.batch import ClipBatch
from kinemae.data_tools.stream.evaluation_clips import EvaluationItem, EvaluationVideos
from kinemae.data_tools.stream.frame_sampling import ClipConfig
from kinemae.data_tools.stream.order import BatchPlan
from kinemae.data_tools.stream.prefetch import Prefetcher
from kinemae.data_tools.stream.training_clips import Annotate, TrainingClips
from kinemae.data_tools.stream.worker import ItemReader
from kinemae.data_tools.stream.worker_pool import WorkerPool

__all__ = [
    "Annotate",
    "AugmentConfig",
    "ClipConfig",
    "EvaluationItem",
    "TrainingClips",
    "evaluation_loader",
    "samples_in_progress",
    "training_loader",
]

TIMEOUT_S = 120.0

Item = TypeVar("Item")


def training_loader(  # noqa: PLR0913 - a run's coordinates, all by name
    clips: TrainingClips,
    plan: BatchPlan,
    *,
    rank: int,
    first_step: int,
    last_step: int,
    workers: int,
    pin: bool,
    timeout_s: float = TIMEOUT_S,
    on_outage: Callable[[str], None] | None = None,
) -> Iterator[ClipBatch]:
    """Micro-batches of a process from `first_step` up to, not including, `last_step`.

    They come in order: all accumulation indices of a step, then the next step.

    Args:
        workers: loader processes, see `resolve_num_workers`; 0 reads in this process.
        pin: page-locked memory, for copies to a GPU that nobody waits for.
        timeout_s: limit without progress; then the worker is replaced and its sample skipped.
        on_outage: see `WorkerPool`; no sample is skipped because of an outage.

    Raises:
        StorageUnavailable: a storage was down for longer than the index's `outage_s`.
    """
    micro_batches = _MicroBatches(clips, plan, rank=rank, first_step=first_step, last_step=last_step)
    annotate_module = __name__ if clips.annotate is None else clips.annotate.__module__
    batches = _items(
        micro_batches,
        workers=workers,
        timeout_s=timeout_s,
        preload=[__name__, annotate_module],
        on_outage=on_outage,
    )
    if not (pin and torch.cuda.is_available()):
        return batches
    return (
        Prefetcher(batches, ClipBatch.pin_memory)
        if isinstance(batches, WorkerPool)
        else map(ClipBatch.pin_memory, batches)
    )


def samples_in_progress(items: Iterator[Item]) -> list[str]:
    """Keys of the samples that a loader's workers are reading right now; none where it has no workers."""
    return items.samples_in_progress if isinstance(items, WorkerPool | Prefetcher) else []


def evaluation_loader(  # noqa: PLR0913 - a run's coordinates, all by name
    index: ShardIndex,
    *,
    clip: ClipConfig,
    temporal_clips: int,
    spatial_crops: int,
    rank: int,
    world: int,
    workers: int,
    samples: Sequence[int] | None = None,
    timeout_s: float = TIMEOUT_S,
    decoder: str = "pyav",
) -> Iterator[EvaluationItem]:
    """Every video once over all processes, whether it can be read or not, with its fixed views.

    Args:
        samples: positions in the index to go through, all of them by default.
        decoder: `data.decoder`.
    """
    if temporal_clips < 1 or spatial_crops not in (1, 3):
        raise ValueError(
            f"evaluation takes 1 or more temporal clips and 1 or 3 spatial crops, "
            f"got {temporal_clips} and {spatial_crops}"
        )
    positions = range(len(index)) if samples is None else samples
    videos = EvaluationVideos(
        index,
        positions[rank::world],
        clip=clip,
        temporal_clips=temporal_clips,
        spatial_crops=spatial_crops,
        decoder=decoder,
    )
    return _items(videos, workers=workers, timeout_s=timeout_s, preload=[__name__])


class _MicroBatches:
    def __init__(self, clips: TrainingClips, plan: BatchPlan, *, rank: int, first_step: int, last_step: int):
        self.clips = clips
        self.plan = plan
        self.rank = rank
        self.first_step = first_step
        self.last_step = last_step

    def __len__(self) -> int:
        return max(self.last_step - self.first_step, 0) * self.plan.accumulation

    def read(
        self, number: int, *, quarantined: Mapping[str, str], reading: Callable[[str], None]
    ) -> ClipBatch:
        steps, accumulation_index = divmod(number, self.plan.accumulation)
        clips = self.plan.clip_range(self.first_step + steps, accumulation_index, self.rank)
        return self.clips.batch(clips, quarantined=quarantined, reading=reading)


def _items(
    readable: ItemReader[Item],
    *,
    workers: int,
    timeout_s: float,
    preload: Sequence[str],
    on_outage: Callable[[str], None] | None = None,
) -> Iterator[Item]:
    """The items in order; workers start at once, so that they read while the model is built."""
    if workers and len(readable):
        return WorkerPool(
            readable, workers=workers, timeout_s=timeout_s, preload=preload, on_outage=on_outage
        )
    return _read_here(readable, on_outage)


def _read_here(readable: ItemReader[Item], on_outage: Callable[[str], None] | None) -> Iterator[Item]:
    listener = heartbeat.Listener(on_outage)
    for number in range(len(readable)):
        with heartbeat.listening(listener):
            item = readable.read(number, quarantined={}, reading=lambda key: None)
        yield item
