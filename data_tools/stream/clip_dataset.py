"""Training clips as a torch `IterableDataset`, for training loops outside KineMAE."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist
from torch.utils.data import IterableDataset, get_worker_info

from kinemae.data_tools.command import DataError, log
from kinemae.data_tools.conditions import check_columns
from kinemae.data_tools.config import load_config, require
from kinemae.data_tools.index import ShardIndex
from kinemae.data_tools.overrides import as_overrides
from kinemae.data_tools.randomness import derived_seed
from kinemae.data_tools.stream.augment import AugmentConfig
from kinemae.data_tools.stream.batch import SkippedClip
from kinemae.data_tools.stream.frame_sampling import ClipConfig, clip_with
from kinemae.data_tools.stream.loader import TIMEOUT_S, read_items
from kinemae.data_tools.stream.mixture import SeveralSets, Sources, locate_sample, open_source
from kinemae.data_tools.stream.training_clips import TrainingClips

NO_AUGMENTATION = AugmentConfig(min_scale=1, min_aspect=1, max_aspect=1, flip=False)
"""The largest square in the centre."""

_FEW_BAD_CLIPS = 10
_MAX_WORKERS = 1024  # of a DataLoader

Batch = dict[str, Any]
Transform = Callable[[Tensor], Any]


def clips(  # noqa: PLR0913 - all but the first two by name
    shards: Sources,
    clip: ClipConfig | None = None,
    *,
    batch_size: int | None = None,
    augment: AugmentConfig | Mapping[str, Any] | bool = True,
    transform: Transform | None = None,
    columns: Sequence[str] = (),
    where: str | None = None,
    weight: str | None = None,
    seed: int = 0,
    views: int = 1,
    workers: int = 0,
    rank: int | None = None,
    world: int | None = None,
    max_bad_fraction: float = 0.01,
    timeout_s: float = TIMEOUT_S,
    **settings: Any,
) -> "ClipDataset":
    """Open shards as a dataset of training clips in a shuffled order that depends only on the seed.

    Args:
        shards: folder or URL of a data set; a list of them, read as one; or several with their weights.
        clip: frames, stride or frame rate, and size, such as `model.clip`.
        batch_size: clips of a step of one process; None: single clips.
        augment: an `AugmentConfig`, its keys, or True for its defaults; False: the largest centred square.
        transform: called with each clip_CTHW; random numbers of torch depend on the seed and the clip.
        columns: columns of the index to add, for example captions.
        where, weight: as `data.where` and `data.weight`: a condition over columns, and a column.
        views: neighbouring clips of a batch that are cut from one decoded video.
        workers: loader processes. They read ahead, and `state_dict` counts the clips that were used.
        rank, world: of this process; None: those of torch.distributed or of the launcher.
        max_bad_fraction: a larger fraction of unreadable clips is an error.
        timeout_s: limit without progress; a loader process is replaced then and its video skipped.
        settings: fields of `ClipConfig` that replace those of `clip`: frames, stride, fps, size, ...

    Raises:
        ValueError, DataError: wrong settings; the shards cannot be used.
    """
    _check_numbers(batch_size, views, workers, max_bad_fraction, timeout_s)
    source, config = _open(shards, where, weight, columns), clip_with(clip, **settings)
    augmentation = _augmentation(augment)
    read = TrainingClips(source, clip=config, augment=augmentation, seed=seed, views=views)
    reader = ClipReader(read, batch_size, transform, tuple(columns))
    return ClipDataset(reader, workers, (rank, world), max_bad_fraction, timeout_s)


@dataclass(frozen=True)
class ClipReader:
    """Read clips at positions of the run, as dictionaries."""

    clips: TrainingClips
    batch_size: int | None
    transform: Transform | None
    columns: tuple[str, ...]

    def read(
        self,
        positions: range,
        *,
        quarantined: Mapping[str, str] | None = None,
        on_sample: Callable[[str], None] = lambda key: None,
    ) -> tuple[Batch, tuple[SkippedClip, ...]]:
        """Read a batch, or a single clip; also return the clips that could not be read."""
        found = self.clips.batch(positions, quarantined=quarantined, on_sample=on_sample)
        pixels: Any = found.clip_BCTHW
        if self.transform is not None:
            changed = [self._transformed(*each) for each in zip(pixels, positions, strict=True)]
            pixels = torch.stack(changed) if isinstance(changed[0], Tensor) else changed
        batch = {
            **self._column_values(positions),
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
        return batch, found.skipped

    def _transformed(self, clip_CTHW: Tensor, position: int) -> Any:
        assert self.transform is not None
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derived_seed(self.clips.seed, purpose="transform", sample=position))
            return self.transform(clip_CTHW)

    def _column_values(self, positions: range) -> Batch:
        values: Batch = {name: [] for name in self.columns}
        for position in positions:
            found = locate_sample(
                self.clips.index, seed=self.clips.seed, position=position // self.clips.views
            )
            for name, column in values.items():
                column.append(found.index.value(name, found.position))
        return values


class ClipDataset(IterableDataset[Batch]):
    """Clips of a run in the order of the run; made by `clips`.

    An iteration is one pass over the data: as many whole steps as fit. The next one continues behind it.

    Each item is a dictionary: "clip" of shape (C, T, H, W), or (B, C, T, H, W) with `batch_size`, uint8 RGB
    unless there is a transform; "label", -1 for none; "weight", 0 for a clip that could not be read and is
    black; "key"; "time_s" of the frames; "is_flipped"; "position" in the run; and the chosen columns.

    Processes share the clips of each step. So do the workers of a DataLoader, step by step.
    """

    def __init__(
        self,
        reader: ClipReader,
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
        self._clips = 0  # of all processes, used so far
        # Iterations that each worker of a DataLoader has begun; workers do not see changes of `_clips`.
        self._begun = torch.zeros(_MAX_WORKERS, dtype=torch.int64).share_memory_()

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the labels; empty for several data sets."""
        index = self.reader.clips.index
        return index.classes if isinstance(index, ShardIndex) else ()

    @property
    def clip(self) -> ClipConfig:
        """Frames, stride or frame rate, and size of the clips."""
        return self.reader.clips.clip

    def __len__(self) -> int:
        """Number of steps of a whole pass, for this process."""
        clips, index = self.reader.clips, self.reader.clips.index
        _, world = self._rank_and_world()
        steps = len(index) * clips.views // (self._per_process * world)
        if steps == 0:
            raise DataError(
                f"batch_size={self._per_process}: expected at most the {len(index) * clips.views} clips of a "
                f"pass in a step of {world} processes, got {self._per_process * world}; fix: lower batch_size"
            )
        return steps

    def state_dict(self) -> dict[str, Any]:
        """Return the position in the run, equal on all processes.

        Raises:
            ValueError: a DataLoader with workers reads the clips, whose workers are ahead of the loop.
        """
        if bool(self._begun.any()):
            raise ValueError(
                "state_dict: expected clips that this process reads, got a DataLoader with workers, which "
                "read ahead; fix: kinemae.clips(..., workers=N) with num_workers=0"
            )
        return {"clips": self._clips, **self._identity()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue at the position of a `state_dict`, on any number of processes.

        Raises:
            ValueError: a state of other data or of another seed.
        """
        for name, value in self._identity().items():
            if state.get(name) != value:
                raise ValueError(
                    f"{name}: expected the state of a run with {value!r}, got {state.get(name)!r}; fix: open "
                    "the same data with the same arguments"
                )
        self._clips = int(state["clips"])
        self._begun.zero_()

    def __iter__(self) -> Iterator[Batch]:
        rank, world = self._rank_and_world()
        step_clips = self._per_process * world
        pass_clips = len(self) * step_clips
        worker, first = get_worker_info(), self._clips
        if worker is not None:
            begun = int(self._begun[worker.id])
            self._begun[worker.id] += 1
            first = first if begun == 0 else (first // pass_clips + begun) * pass_clips
        starts = range(first, (first // pass_clips + 1) * pass_clips, step_clips)
        if worker is not None:
            starts = starts[worker.id :: worker.num_workers]
        steps = _Steps(self.reader, starts, rank * self._per_process, self._per_process)
        workers = self.workers if worker is None else 0
        preload = [__name__]
        checked = self._checked(read_items(steps, workers, self.timeout_s, preload=preload))
        for start, batch in zip(starts, checked, strict=True):
            if worker is None:
                self._clips = start + step_clips
            yield batch

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_place": self._rank_and_world()}  # started processes are in no group

    @property
    def _per_process(self) -> int:
        return self.reader.batch_size or 1

    def _identity(self) -> dict[str, Any]:
        clips = self.reader.clips
        source = clips.index
        assert isinstance(source, ShardIndex | SeveralSets)
        weight = source.weight if isinstance(source, SeveralSets) else None
        return {"seed": clips.seed, "views": clips.views, "data": source.identity, "weight": weight}

    def _rank_and_world(self) -> tuple[int, int]:
        rank, world = self._place
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

    def _checked(self, items: Iterator[tuple[Batch, tuple[SkippedClip, ...]]]) -> Iterator[Batch]:
        """Name the clips that cannot be read, and stop if they are too many."""
        done = bad = 0
        for batch, skipped in items:
            done, bad = done + self._per_process, bad + len(skipped)
            for each in skipped:
                log.warning(
                    "%s cannot be read: %s; its clip is black and has weight 0", each.key, each.reason
                )
            if bad > max(_FEW_BAD_CLIPS, self.max_bad_fraction * done):
                raise DataError(
                    f"{bad} of {done} clips could not be read, more than max_bad_fraction="
                    f"{self.max_bad_fraction} allows; the log above names them; fix: repair or remove them"
                )
            yield batch


@dataclass(frozen=True)
class _Steps:
    """The items of an iteration, see `worker.ItemReader`."""

    reader: ClipReader
    starts: range
    offset: int
    count: int

    def __len__(self) -> int:
        return len(self.starts)

    def read(
        self, number: int, *, quarantined: Mapping[str, str], on_sample: Callable[[str], None]
    ) -> tuple[Batch, tuple[SkippedClip, ...]]:
        begin = self.starts[number] + self.offset
        return self.reader.read(
            range(begin, begin + self.count), quarantined=quarantined, on_sample=on_sample
        )


def _check_numbers(
    batch_size: int | None, views: int, workers: int, max_bad_fraction: float, timeout_s: float
) -> None:
    require(batch_size is None or batch_size >= 1, "batch_size", "be at least 1, or None", batch_size)
    is_whole = views >= 1 and (batch_size or 1) % views == 0
    require(is_whole, "views", f"divide batch_size={batch_size or 1}", views)
    require(workers >= 0, "workers", "be at least 0", workers)
    require(0 <= max_bad_fraction <= 1, "max_bad_fraction", "lie in [0, 1]", max_bad_fraction)
    require(timeout_s > 0, "timeout_s", "be above 0", timeout_s)


def _open(
    shards: Sources, where: str | None, weight: str | None, columns: Sequence[str]
) -> ShardIndex | SeveralSets:
    if isinstance(shards, Mapping):
        is_weighted = len(shards) > 0 and all(weight > 0 for weight in shards.values())
        require(is_weighted, "shards", "be a folder, or folders with weights above 0", dict(shards))
    elif not isinstance(shards, str | Path):
        require(len(shards) > 0, "shards", "name at least one folder", list(shards))
    source = open_source(shards, where=where, weight=weight)
    for index in source.sets.values() if isinstance(source, SeveralSets) else (source,):
        check_columns(index, columns, key="columns")
    return source


def _augmentation(given: AugmentConfig | Mapping[str, Any] | bool) -> AugmentConfig:
    if isinstance(given, Mapping):
        return load_config(AugmentConfig, None, as_overrides(given))
    if isinstance(given, AugmentConfig):
        return given
    return AugmentConfig() if given else NO_AUGMENTATION
