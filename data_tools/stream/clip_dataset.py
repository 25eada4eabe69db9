"""Training clips as a torch `IterableDataset`, for training loops outside KineMAE."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import IterableDataset, get_worker_info

from kinemae.data_tools.command import DataError
from kinemae.data_tools.components import Component
from kinemae.data_tools.conditions import check_columns
from kinemae.data_tools.config import load_config, require
from kinemae.data_tools.index import ShardIndex
from kinemae.data_tools.orders.base import SourceOrder, build_order
from kinemae.data_tools.overrides import as_overrides
from kinemae.data_tools.stream.augment import NO_AUGMENTATION, AugmentConfig
from kinemae.data_tools.stream.clip_reader import (
    MAX_WORKERS,
    Batch,
    ClipReader,
    ReadBatch,
    Transform,
    check_read_here,
    checked_batches,
    rank_and_world,
)
from kinemae.data_tools.stream.clip_stream import ClipStream
from kinemae.data_tools.stream.frame_sampling import ClipConfig, clip_with
from kinemae.data_tools.stream.loader import READ_AHEAD, TIMEOUT_S, read_items
from kinemae.data_tools.stream.mixture import SeveralSets, Sources, open_source
from kinemae.data_tools.stream.read_ahead import Request
from kinemae.data_tools.stream.setting_names import ARGUMENTS
from kinemae.data_tools.stream.streamed_clips import StreamedClips
from kinemae.data_tools.stream.tar_list import is_tars, open_tars
from kinemae.data_tools.stream.training_clips import RunClips, TrainingClips, sample_order


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
    order: str | Mapping[str, Any] = "random",
    read_ahead: int = READ_AHEAD,
    **settings: Any,
) -> "ClipDataset | ClipStream":
    """Open shards as a dataset of training clips in a shuffled order that depends only on the seed.

    Args:
        shards: a data set; a list of them, read as one; several with weights; or tars, see `ClipStream`.
        clip: frames, stride or frame rate, and size, such as `model.clip`.
        batch_size: clips of a step of one process; None: single clips.
        augment: an `AugmentConfig`, its keys, or True for its defaults; False: the largest centred square.
        transform: called with each clip_CTHW; random numbers of torch depend on the seed and the clip.
        columns: columns of the index to add, for example captions; for tars, extensions of members.
        where, weight, order, read_ahead: the keys of `data`, see docs/reading.md.
        views: neighbouring clips of a batch that are cut from one decoded video.
        workers: loader processes. They read ahead, and `state_dict` counts the clips that were used.
        rank, world: of this process; None: those of torch.distributed or of the launcher.
        max_bad_fraction, timeout_s: limits of unreadable clips, and of the time without progress.
        settings: fields of `ClipConfig` that replace those of `clip`: frames, stride, fps, size, ...

    Raises:
        ValueError, DataError: wrong settings; the shards cannot be used.
    """
    _check_numbers(batch_size, views, workers, max_bad_fraction, timeout_s)
    kept = {"clip": clip_with(clip, **settings), "augment": _augmentation(augment), "views": views}
    training, names = _training_clips(shards, where, weight, columns, {**kept, "seed": seed})
    reader = ClipReader(training, batch_size, transform, names)
    return _dataset(reader, workers, (rank, world), (max_bad_fraction, timeout_s), order, read_ahead)


class ClipDataset(IterableDataset[Batch]):
    """Clips of a run in the order of the run; made by `clips`.

    An iteration is one pass over the data: as many whole steps as fit. The next one continues behind it.

    Each item is a dictionary: "clip" of shape (C, T, H, W), or (B, C, T, H, W) with `batch_size`, uint8 RGB
    unless there is a transform; "label", -1 for none; "weight", 0 for a clip that could not be read and is
    black; "key"; "time_s" of the frames; "is_flipped"; "position" in the run; and the chosen columns.

    Processes share the clips of each step. So do the workers of a DataLoader, step by step.
    """

    def __init__(  # noqa: PLR0913 - only `clips` calls it
        self,
        reader: ClipReader[TrainingClips],
        workers: int,
        place: tuple[int | None, int | None],
        max_bad_fraction: float,
        timeout_s: float,
        order: Component,
        read_ahead: int,
    ):
        super().__init__()
        self.reader = reader
        self.workers = workers
        self.max_bad_fraction = max_bad_fraction
        self.timeout_s = timeout_s
        self.order = order
        self.read_ahead = read_ahead
        self._place = place
        self._clips = 0  # of all processes, used so far
        # Iterations that each worker of a DataLoader has begun; workers do not see changes of `_clips`.
        self._begun = torch.zeros(MAX_WORKERS, dtype=torch.int64).share_memory_()

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
        _, world = rank_and_world(self._place)
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
        check_read_here(self._begun)
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
        rank, world = rank_and_world(self._place)
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
        self.reader.clips.order = self._sample_order(world)
        steps = _Steps(self.reader, starts, rank * self._per_process, self._per_process)
        workers = self.workers if worker is None else 0
        items = read_items(steps, workers, self.timeout_s, preload=[__name__], read_ahead=self.read_ahead)
        checked = checked_batches(items, self._per_process, self.max_bad_fraction)
        for start, item in zip(starts, checked, strict=True):
            if worker is None:
                self._clips = start + step_clips
            yield item.batch

    def check_order(self) -> None:
        """Check that the order can be used with this data; an iteration checks it for its processes.

        Raises:
            ValueError: it cannot.
        """
        self._sample_order(self._place[1] or 1)

    def _sample_order(self, world: int) -> SourceOrder:
        clips, order = self.reader.clips, build_order(self.order, key=ARGUMENTS.order)
        return sample_order(order, clips.index, self._per_process * world // clips.views, ARGUMENTS)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_place": rank_and_world(self._place)}  # started processes are in no group

    @property
    def _per_process(self) -> int:
        return self.reader.batch_size or 1

    def _identity(self) -> dict[str, Any]:
        clips = self.reader.clips
        source = clips.index
        assert isinstance(source, ShardIndex | SeveralSets)
        weight = source.weight if isinstance(source, SeveralSets) else None
        order = None
        if build_order(self.order).is_local:  # such an order depends on the size of a step
            clips_per_step = self._per_process * rank_and_world(self._place)[1]
            order = f"{self.order.name} {self.order.args} in steps of {clips_per_step} clips"
        identity = {"seed": clips.seed, "views": clips.views, "data": source.identity}
        return {**identity, "weight": weight, "order": order}


@dataclass(frozen=True)
class _Steps:
    """The items of an iteration, see `worker.ItemReader`."""

    reader: ClipReader[TrainingClips]
    starts: range
    offset: int
    count: int

    def __len__(self) -> int:
        return len(self.starts)

    def read(
        self, number: int, *, quarantined: Mapping[str, str], on_sample: Callable[[str], None]
    ) -> ReadBatch:
        begin = self.starts[number] + self.offset
        return self.reader.read(
            range(begin, begin + self.count), quarantined=quarantined, on_sample=on_sample
        )

    def upcoming(self, number: int) -> list[Request]:
        begin = self.starts[number] + self.offset
        return self.reader.clips.upcoming(range(begin, begin + self.count))


def _check_numbers(
    batch_size: int | None, views: int, workers: int, max_bad_fraction: float, timeout_s: float
) -> None:
    for name, value in (("batch_size", batch_size), ("views", views), ("workers", workers)):
        is_number = isinstance(value, Integral) or (value is None and name == "batch_size")
        require(is_number, name, "be a whole number", value)
    require(batch_size is None or batch_size >= 1, "batch_size", "be at least 1, or None", batch_size)
    is_whole = views >= 1 and (batch_size or 1) % views == 0
    require(is_whole, "views", f"divide batch_size={batch_size or 1}", views)
    require(workers >= 0, "workers", "be at least 0", workers)
    require(0 <= max_bad_fraction <= 1, "max_bad_fraction", "lie in [0, 1]", max_bad_fraction)
    require(timeout_s > 0, "timeout_s", "be above 0", timeout_s)


def _training_clips(
    shards: Sources, where: str | None, weight: str | None, columns: Sequence[str], settings: dict[str, Any]
) -> tuple[RunClips[Any], tuple[str, ...]]:
    """The clips, and the columns to look up in the index."""
    are_names = not isinstance(columns, str) and all(isinstance(name, str) for name in columns)
    require(are_names, "columns", "be a list of names", columns)
    if is_tars(shards):
        assert not isinstance(shards, Mapping)
        tars = open_tars(shards, needs_index={"where": where, "weight": weight})
        return StreamedClips(tars, columns=columns, **settings), ()
    return TrainingClips(_open(shards, where, weight, columns), **settings), tuple(columns)


def _open(
    shards: Sources, where: str | None, weight: str | None, columns: Sequence[str]
) -> ShardIndex | SeveralSets:
    if isinstance(shards, Mapping):
        is_weighted = len(shards) > 0 and all(weight > 0 for weight in shards.values())
        require(is_weighted, "shards", "be a folder, or folders with weights above 0", dict(shards))
    elif not isinstance(shards, str | Path):
        require(len(shards) > 0, "shards", "name at least one folder", list(shards))
    source = open_source(shards, where=where, weight=weight, names=ARGUMENTS)
    for index in source.sets.values() if isinstance(source, SeveralSets) else (source,):
        check_columns(index, columns, key="columns")
    return source


def _augmentation(given: AugmentConfig | Mapping[str, Any] | bool) -> AugmentConfig:
    if isinstance(given, Mapping):
        return load_config(AugmentConfig, None, as_overrides(given))
    if isinstance(given, AugmentConfig):
        return given
    require(
        isinstance(given, bool), "augment", "be True, False, a mapping of keys or an AugmentConfig", given
    )
    return AugmentConfig() if given else NO_AUGMENTATION


def _dataset(
    reader: ClipReader[Any],
    workers: int,
    place: tuple[int | None, int | None],
    limits: tuple[float, float],
    order: str | Mapping[str, Any],
    read_ahead: int,
) -> ClipDataset | ClipStream:
    require(0 <= read_ahead <= 256, "read_ahead", "lie between 0 and 256", read_ahead)
    given = {"name": order} if isinstance(order, str) else order
    is_component = isinstance(given, Mapping) and {"name"} <= given.keys() <= {"name", "args"}
    require(is_component, "order", "be a name, or a mapping with name and args", order)
    chosen = Component(**given)
    if isinstance(reader.clips, StreamedClips):
        is_random = chosen == Component(name="random")
        require(is_random, "order", "be random for tars without an index", chosen.name)
        return ClipStream(reader, workers, place, *limits)
    dataset = ClipDataset(reader, workers, place, *limits, order=chosen, read_ahead=read_ahead)
    dataset.check_order()
    return dataset
