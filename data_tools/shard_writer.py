"""Samples to WebDataset tars. The only file that knows webdataset, which reads the shards back on its own."""

import hashlib
import os
import tarfile
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import webdataset

from data_tools.command import DataError, writing_to
from data_tools.index import Shard


@dataclass(frozen=True, kw_only=True)
class ShardSample:
    """What goes into a tar: KEY.json, then KEY.ENDING."""

    key: str
    description: bytes
    ending: str
    video: bytes


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where the video of a key lies."""

    key: str
    shard: int
    offset: int
    length: int
    crc32: int


def write_shards(
    folder: Path, samples: Iterable[ShardSample], *, samples_per_shard: int, bytes_per_shard: int
) -> tuple[list[Shard], list[Place]]:
    """Write samples in their order to shard-000000.tar and on; equal samples give equal bytes.

    A shard has its name only when it is complete and on the disk. A video larger than a shard gets one of
    its own.

    Raises:
        DataError: the disk is full or cannot be written; the unfinished shard is removed.
    """
    shards: list[Shard] = []
    places: list[Place] = []
    for group in _groups(samples, samples_per_shard, bytes_per_shard):
        name = f"shard-{len(shards):06d}.tar"
        partial = folder / f"{name}.partial"
        try:
            with writing_to(folder):
                _write_tar(partial, group)
                places += _places(partial, len(shards), group)
                shards.append(_describe(partial, name, len(group)))
                partial.replace(folder / name)
        except DataError:
            partial.unlink(missing_ok=True)
            raise
    return shards, places


def _groups(
    samples: Iterable[ShardSample], samples_per_shard: int, bytes_per_shard: int
) -> Iterator[list[ShardSample]]:
    group: list[ShardSample] = []
    held = 0
    for sample in samples:
        size = len(sample.video) + len(sample.description)
        if group and (len(group) == samples_per_shard or held + size > bytes_per_shard):
            yield group
            group, held = [], 0
        group.append(sample)
        held += size
    if group:
        yield group


def _write_tar(path: Path, group: list[ShardSample]) -> None:
    with path.open("wb") as file:
        # No clock and no user in the tar: equal content must give equal bytes.
        with webdataset.TarWriter(file, user="", group="", mtime=0, encoder=False) as writer:
            for sample in group:
                writer.write({"__key__": sample.key, "json": sample.description})
                writer.write({"__key__": sample.key, sample.ending: sample.video})
        file.flush()
        os.fsync(file.fileno())


def _places(path: Path, shard: int, group: list[ShardSample]) -> list[Place]:
    """Read the finished tar back: the index must say where the bytes are, not where they should be."""
    with tarfile.open(path, "r:") as tar:
        members = {member.name: member for member in tar}
    found = []
    for sample in group:
        member = members[f"{sample.key}.{sample.ending}"]
        assert member.size == len(sample.video)
        crc32 = zlib.crc32(sample.video)
        found.append(
            Place(key=sample.key, shard=shard, offset=member.offset_data, length=member.size, crc32=crc32)
        )
    return found


def _describe(path: Path, name: str, samples: int) -> Shard:
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    return Shard(name=name, samples=samples, bytes=path.stat().st_size, sha256=sha256)
