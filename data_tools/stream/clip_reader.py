"""Batches of clips as dictionaries, for training loops outside KineMAE."""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch import distributed as dist

from kinemae.data_tools.command import DataError, log
from kinemae.data_tools.randomness import derived_seed
from kinemae.data_tools.stream.batch import SkippedClip
from kinemae.data_tools.stream.training_clips import RunClips, TrainingClips

MAX_WORKERS = 1024
"""Workers of a DataLoader."""

_FEW_BAD_CLIPS = 10

Batch = dict[str, Any]
Transform = Callable[[Tensor], Any]
Clips = TypeVar("Clips", bound=RunClips[Any])


class ReadBatch(NamedTuple):
    """A batch, the clips that could not be read, and the tars of a stream that are done with it."""

    batch: Batch
    skipped: tuple[SkippedClip, ...]
    tars_done: tuple[int, ...]


@dataclass(frozen=True)
class ClipReader(Generic[Clips]):
    """Read clips at positions of the run, as dictionaries."""

    clips: Clips
    batch_size: int | None
    transform: Transform | None
    columns: tuple[str, ...]

    def read(
        self,
        positions: range,
        *,
        quarantined: Mapping[str, str] | None = None,
        on_sample: Callable[[str], None] = lambda key: None,
    ) -> ReadBatch:
        """Read a batch, or a single clip."""
        found = self.clips.batch(positions, quarantined=quarantined, on_sample=on_sample)
        pixels: Any = found.clip_BCTHW
        if self.transform is not None:
            changed = [self._transformed(*each) for each in zip(pixels, positions, strict=True)]
            pixels = torch.stack(changed) if isinstance(changed[0], Tensor) else changed
        batch = {
            **(found.columns or self._column_values(positions)),
            "clip": pixels,
            "label": found.label_B,
            "weight": found.weight_B,
            "key": list(found.keys),
            "time_s": found.time_BT,
            "is_flipped": found.flipped_B,
            "position": found.clip_index_B,
        }
        if self.batch_size is None:
            batch = {name: values[0] for name, values in batch.items()}
        return ReadBatch(batch, found.skipped, found.tars_done)

    def _transformed(self, clip_CTHW: Tensor, position: int) -> Any:
        assert self.transform is not None
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derived_seed(self.clips.seed, purpose="transform", sample=position))
            return self.transform(clip_CTHW)

    def _column_values(self, positions: range) -> Batch:
        """The values of `columns` in the index."""
        if not isinstance(self.clips, TrainingClips):
            return {}
        values: Batch = {name: [] for name in self.columns}
        for position in positions:
            found = self.clips.locate(position // self.clips.views)
            for name, column in values.items():
                column.append(found.index.value(name, found.position))
        return values


def check_read_here(begun: Tensor) -> None:
    """Reject a state of clips that other processes read.

    Args:
        begun: iterations that each worker of a DataLoader has begun.

    Raises:
        ValueError: a worker has begun one; workers are ahead of the loop.
    """
    if bool(begun.any()):
        raise ValueError(
            "state_dict: expected clips that this process reads, got a DataLoader with workers, which "
            "read ahead; fix: kinemae.clips(..., workers=N) with num_workers=0"
        )


def rank_and_world(place: tuple[int | None, int | None]) -> tuple[int, int]:
    """Number of this process and number of all processes; None: those of torch or of the launcher.

    Raises:
        ValueError: there are several processes, and the number of this one is not known.
    """
    rank, world = place
    if world is None and dist.is_available() and dist.is_initialized():
        rank, world = dist.get_rank(), dist.get_world_size()
    world = int(os.environ.get("WORLD_SIZE", 1)) if world is None else world
    if rank is None and (world == 1 or "RANK" in os.environ):
        rank = int(os.environ.get("RANK", 0)) if world > 1 else 0
    if rank is None or not 0 <= rank < world:
        raise ValueError(
            f"rank: expected a number from 0 to {world - 1}, since there are {world} processes, got "
            f"{rank}; fix: give rank= and world=, or iterate after the start of the process group"
        )
    return rank, world


def checked_batches(
    items: Iterable[ReadBatch], per_process: int, max_bad_fraction: float
) -> Iterator[ReadBatch]:
    """Name the clips that cannot be read, and stop if they are too many."""
    done = bad = 0
    for item in items:
        done, bad = done + per_process, bad + len(item.skipped)
        for each in item.skipped:
            log.warning("%s cannot be read: %s; its clip is black and has weight 0", each.key, each.reason)
        if bad > max(_FEW_BAD_CLIPS, max_bad_fraction * done):
            raise DataError(
                f"{bad} of {done} clips could not be read, more than max_bad_fraction="
                f"{max_bad_fraction} allows; the log above names them; fix: repair or remove them"
            )
        yield item
