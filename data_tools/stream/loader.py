"""Batches of clips for training and views of videos for evaluation, in the order of the run.

    clips = TrainingClips(open_index(folder), clip=..., augment=..., seed=0, views=2, annotate=None)
    for batch in training_loader(clips, plan, rank=0, first_step=0, last_step=100, workers=4, pin=True): ...

A batch is a function of (seed, clip indices) alone. Who reads it, in which process, after which
interruption, changes nothing.
"""

from collections.abc import Iterator, Sequence
from multiprocessing.process import BaseProcess
from typing import TypeVar

import torch
from torch.utils.data import DataLoader, Dataset

from data_tools.index import ShardIndex
from data_tools.stream.augment import AugmentConfig
from data_tools.stream.batch import ClipBatch
from data_tools.stream.clips import Annotate, TrainingClips
from data_tools.stream.evaluation import EvaluationItem, EvaluationVideos
from data_tools.stream.order import BatchPlan
from data_tools.stream.times import ClipConfig
from data_tools.stream.workers import (
    dismiss,
    leave_signals_to_main,
    signals_left_to_main,
    worker_context,
    workers_started_here,
)

__all__ = [
    "Annotate",
    "AugmentConfig",
    "ClipConfig",
    "EvaluationItem",
    "TrainingClips",
    "evaluation_loader",
    "training_loader",
]

_PREFETCH = 2  # micro-batches that a worker holds ready in shared memory, which containers are short of

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
) -> Iterator[ClipBatch]:
    """Micro-batches of a process from `first_step` up to, not including, `last_step`.

    They come in order: all accumulation indices of a step, then the next step.

    Args:
        workers: loader processes, see `worker_count`; 0 reads in this process.
        pin: page-locked memory, for copies to a GPU that nobody waits for.
    """
    micro_batches = _MicroBatches(clips, plan, rank=rank, first_step=first_step, last_step=last_step)
    annotate_module = __name__ if clips.annotate is None else clips.annotate.__module__
    return _iterate(micro_batches, workers=workers, pin=pin, preload=[__name__, annotate_module])


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
) -> Iterator[EvaluationItem]:
    """Every video once over all processes, whether it can be read or not, with its fixed views.

    Args:
        samples: positions in the index to go through, all of them by default.
    """
    if temporal_clips < 1 or spatial_crops not in (1, 3):
        raise ValueError(
            f"evaluation takes 1 or more temporal clips and 1 or 3 spatial crops, "
            f"got {temporal_clips} and {spatial_crops}"
        )
    positions = range(len(index)) if samples is None else samples
    videos = EvaluationVideos(
        index, positions[rank::world], clip=clip, temporal_clips=temporal_clips, spatial_crops=spatial_crops
    )
    return _iterate(videos, workers=workers, pin=False, preload=[__name__])


class _MicroBatches(Dataset[ClipBatch]):
    def __init__(self, clips: TrainingClips, plan: BatchPlan, *, rank: int, first_step: int, last_step: int):
        self.clips = clips
        self.plan = plan
        self.rank = rank
        self.first_step = first_step
        self.last_step = last_step

    def __len__(self) -> int:
        return max(self.last_step - self.first_step, 0) * self.plan.accumulation

    def __getitem__(self, number: int) -> ClipBatch:
        steps, accumulation_index = divmod(number, self.plan.accumulation)
        return self.clips.batch(self.plan.clip_range(self.first_step + steps, accumulation_index, self.rank))


def _iterate(dataset: Dataset[Item], *, workers: int, pin: bool, preload: Sequence[str]) -> Iterator[Item]:
    """Items of the dataset in order, workers started at once so that they read while the model is built."""
    loader: DataLoader[Item] = DataLoader(
        dataset,
        batch_size=None,
        num_workers=workers,
        collate_fn=_as_it_is,
        pin_memory=pin and torch.cuda.is_available(),
        prefetch_factor=_PREFETCH if workers else None,
        multiprocessing_context=worker_context(preload) if workers else None,
        worker_init_fn=leave_signals_to_main,
    )
    with signals_left_to_main(), workers_started_here() as started:
        iterator = iter(loader)
    return _until_done(iterator, started)


def _until_done(iterator: Iterator[Item], started: set[BaseProcess]) -> Iterator[Item]:
    try:
        yield from iterator
    finally:
        # After an error its traceback keeps torch's iterator alive, and collecting that takes 5 s a worker.
        dismiss(started)


def _as_it_is(item: Item) -> Item:
    return item
