"""`kinemae data subset` and `reshard`: write a new data set from some or all samples of another one."""

import argparse
import hashlib
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from kinemae.data_tools.command import DataError, log
from kinemae.data_tools.config import load_config, require
from kinemae.data_tools.data_set_files import ABSENT
from kinemae.data_tools.editing.output import is_complete, remove_refused
from kinemae.data_tools.editing.rows import replaced
from kinemae.data_tools.editing.selection import SelectionConfig, choose
from kinemae.data_tools.editing.shard_names import reference_to
from kinemae.data_tools.editing.tar_files import TarFile, TarWriter, open_tar
from kinemae.data_tools.index import (
    IndexWriter,
    Shard,
    ShardIndex,
    ShardTable,
    open_data_sets,
    origin,
)
from kinemae.data_tools.storage.location import Location, location

_NAME = "shard-{number:06d}~{{digest}}.tar"  # equal names have equal bytes


@dataclass(frozen=True, kw_only=True)
class ReshardConfig:
    """Config of `reshard`.

    Attributes:
        samples_per_shard: a shard is full with so many samples.
        megabytes_per_shard: a shard is full at this size; a larger sample gets its own.
    """

    samples_per_shard: int = 100_000
    megabytes_per_shard: int = 1000

    def __post_init__(self) -> None:
        for name in ("samples_per_shard", "megabytes_per_shard"):
            require(getattr(self, name) >= 1, name, "be 1 or more", getattr(self, name))


@dataclass(frozen=True, kw_only=True)
class SubsetConfig(ReshardConfig, SelectionConfig):
    """Config of `subset`.

    Attributes:
        videos: "reference" leaves the tars where they are; "copy" writes new ones to OUT.
    """

    videos: Literal["reference", "copy"] = "reference"

    def __post_init__(self) -> None:
        SelectionConfig.__post_init__(self)
        ReshardConfig.__post_init__(self)
        require(self.videos in ("reference", "copy"), "videos", "be reference or copy", self.videos)


def run_subset(arguments: argparse.Namespace) -> None:
    """Write a data set of some samples of another one, split by split."""
    config = load_config(SubsetConfig, None, arguments.overrides)
    if not config.is_set:
        raise ValueError("where: expected a condition, or keys=FILE, got none; fix: give where='CONDITION'")
    sets = open_data_sets(location(arguments.shards))
    tasks = []
    for name, chosen_R in choose(sets, config).items():
        whole = sets[name].with_removed()
        removed = int(chosen_R[sets[name].removed_R].sum())
        if removed:
            log.warning("%s: %d of the chosen samples were removed and are left out", whole.folder, removed)
        chosen_R[sets[name].removed_R] = False
        folder = _folder(arguments, name)
        if not chosen_R.any():
            log.warning("%s: no sample is chosen, so %s is not written", whole.folder, folder)
            continue
        choice = hashlib.sha256(chosen_R.tobytes()).hexdigest()[:16]
        made_by = _made_by("subset", config, f"{sets[name].identity}-{choice}")
        if not is_complete(folder, made_by):
            tasks.append((whole.filter(chosen_R), folder, made_by))
    for index, folder, made_by in tasks:
        if arguments.dry_run:
            _log_dry_run(index, folder, config.videos)
        elif config.videos == "copy":
            write_shards(index, folder, config, made_by)
        else:
            _write_references(index, folder, made_by)


def run_reshard(arguments: argparse.Namespace) -> None:
    """Write a data set with shards of another size, split by split; removed samples are left out."""
    config = load_config(ReshardConfig, None, arguments.overrides)
    tasks = []
    for name, index in open_data_sets(location(arguments.shards)).items():
        folder, made_by = _folder(arguments, name), _made_by("reshard", config, index.identity)
        if not is_complete(folder, made_by):
            tasks.append((index, folder, made_by))
    for index, folder, made_by in tasks:
        if arguments.dry_run:
            _log_dry_run(index, folder, "copy")
        else:
            write_shards(index, folder, config, made_by)


def _log_dry_run(index: ShardIndex, folder: Location, videos: str) -> None:
    shards, size = len(np.unique(index.column("shard"))), int(index.column("length").sum())
    log.info(
        "%s: dry run: %d samples with %.1f MB of video in %d shards would be %s",
        *(folder, len(index), size / 1e6, shards, "copied" if videos == "copy" else "referred to"),
    )


def _folder(arguments: argparse.Namespace, split: str) -> Location:
    out = location(arguments.out)
    return out / split if split else out


def _made_by(command: str, config: ReshardConfig, samples: str) -> dict[str, Any]:
    """The fields of `made_by` that identify the result."""
    return {"command": f"data_tools {command}", command: asdict(config), "of": samples}


def _write_references(index: ShardIndex, folder: Location, made_by: dict[str, Any]) -> None:
    """Write an index over the present samples; the tars stay in place."""
    counts = np.zeros(len(index.shards), dtype=np.int64)
    for batch in index.batches(["shard"]):
        counts += np.bincount(batch.column(0).to_numpy(), minlength=len(counts))
    used = np.flatnonzero(counts)
    new_number = np.full(len(counts), -1, dtype=np.int32)
    new_number[used] = np.arange(len(used))
    with _writer(index, folder, made_by) as writer:
        for batch in index.batches():
            writer.add_batch(replaced(batch, shard=new_number[batch.column("shard").to_numpy()]))
        table = index.shards.table.take(pa.array(used))
        names = [reference_to(index.folder / name, folder) for name in table.column("name").to_pylist()]
        for at, (name, values) in enumerate((("name", names), ("samples", counts[used]))):
            table = table.set_column(at, name, pa.array(values))
        writer.add_shards(ShardTable(table))
    log.info("%s: %d samples in %d shards, which stay in place", folder, len(index), len(used))


def _writer(index: ShardIndex, folder: Location, made_by: dict[str, Any]) -> IndexWriter:
    return IndexWriter(
        folder,
        classes=index.classes,
        made_by=origin(index.made_by) | made_by,
        extra=index.extra_types,
        base=ABSENT,
    )


def write_shards(index: ShardIndex, folder: Location, limits: ReshardConfig, made_by: dict[str, Any]) -> None:
    """Copy the present samples, with all their members, to new tars in a new folder."""
    target = _Shards(folder, limits)
    try:
        _copy_samples(index, target, _writer(index, folder, made_by))
    except DataError:
        remove_refused(folder, [shard.name for shard in target.shards])
        raise
    log.info("%s: %d samples in %d shards", folder, len(index), len(target.shards))


def _copy_samples(index: ShardIndex, target: "_Shards", writer: IndexWriter) -> None:
    source = _Source(index)
    with writer, source:
        try:
            for batch in index.batches():
                columns = (batch.column(name).to_pylist() for name in ("shard", "offset", "key", "label"))
                rows = zip(*columns, strict=True)
                places = [target.add(source.tar(shard), *row) for shard, *row in rows]
                shard_R, offset_R = np.array(places, dtype=np.int64).reshape(-1, 2).T
                writer.add_batch(replaced(batch, shard=shard_R, offset=offset_R))
            target.finish()
        finally:
            target.discard()
        writer.add_shards(target.shards)


class _Source:
    """The shards of an index; the last one stays open."""

    def __init__(self, index: ShardIndex):
        self._index = index
        self._number = -1
        self._stack = ExitStack()

    def __enter__(self) -> "_Source":
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    def tar(self, number: int) -> TarFile:
        """A shard by its number."""
        if number != self._number:
            self._stack.close()
            place = self._index.folder / self._index.shards[number].name
            self._tar = self._stack.enter_context(open_tar(place))
            self._number = number
        return self._tar


class _Shards:
    """New tars of limited size."""

    def __init__(self, folder: Location, limits: ReshardConfig):
        self.shards: list[Shard] = []
        self._folder, self._limits = folder, limits
        self._writer: TarWriter | None = None
        self._samples = self._bytes = 0

    def add(self, tar: TarFile, offset: int, key: str, label: int) -> tuple[int, int]:
        """Copy a sample; return the number of its shard and the offset of its video."""
        members = tar.sample(offset, key)
        size = sum(member.length for member in members)
        limit = self._limits.megabytes_per_shard * 1_000_000
        if self._samples == self._limits.samples_per_shard or (self._samples and self._bytes + size > limit):
            self.finish()
        if self._writer is None:
            self._writer = TarWriter(self._folder)
        self._samples += 1
        self._bytes += size
        return len(self.shards), self._writer.add(tar, members, tar.relabelled(members, label))[offset]

    def finish(self) -> None:
        """Close the current tar."""
        if self._writer is not None:
            name = _NAME.format(number=len(self.shards))
            self.shards.append(self._writer.finish(name, self._samples))
            log.info("%s: %s is written", self._folder, self.shards[-1].name)
            self._writer, self._samples, self._bytes = None, 0, 0

    def discard(self) -> None:
        """Remove an unfinished tar."""
        if self._writer is not None:
            self._writer.discard()
