"""Samples to WebDataset tars. The only file that knows webdataset, which reads the shards back on its own."""

import hashlib
import os
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import webdataset

from kinemae.data_tools.command import DataError, writing_to
from kinemae.data_tools.index import Shard


@dataclass(frozen=True, kw_only=True)
class ShardSample:
    """What goes into a tar: KEY.json, then KEY.ENDING.

    Attributes:
        file, offset: where the video's bytes begin.
        length, crc32: of the video's bytes, as they were when the video was checked.
    """

    key: str
    description: bytes
    ending: str
    file: Path
    length: int
    crc32: int
    offset: int = 0


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where the video of a key lies."""

    key: str
    shard: int
    offset: int
    length: int
    crc32: int


def shard_name(number: int) -> str:
    """shard-000000.tar and on."""
    return f"shard-{number:06d}.tar"


def into_shards(
    samples: Sequence[ShardSample], *, samples_per_shard: int, bytes_per_shard: int
) -> Iterator[list[ShardSample]]:
    """Samples in their order, a list for each shard; a video larger than a shard gets one of its own."""
    group: list[ShardSample] = []
    held = 0
    for sample in samples:
        size = sample.length + len(sample.description)
        if group and (len(group) == samples_per_shard or held + size > bytes_per_shard):
            yield group
            group, held = [], 0
        group.append(sample)
        held += size
    if group:
        yield group


def write_shard(folder: Path, number: int, group: Sequence[ShardSample]) -> tuple[Shard, list[Place]]:
    """Write one tar; equal samples give equal bytes. It has its name only when it is whole and on the disk.

    Raises:
        DataError: the disk is full or cannot be written, or a video is not what it was when it was checked;
            the unfinished shard is removed.
    """
    name = shard_name(number)
    partial = folder / f"{name}.partial"
    try:
        with writing_to(folder):
            _write_tar(partial, group)
            places = _places(partial, number, group)
            shard = _describe(partial, name, len(group))
            partial.replace(folder / name)
    finally:
        partial.unlink(missing_ok=True)
    return shard, places


def _write_tar(path: Path, group: Sequence[ShardSample]) -> None:
    with path.open("wb") as file:
        # No clock and no user in the tar: equal content must give equal bytes.
        with webdataset.TarWriter(file, user="", group="", mtime=0, encoder=False) as writer:
            for sample in group:
                writer.write({"__key__": sample.key, "json": sample.description})
                _add_video(writer, sample)
        file.flush()
        os.fsync(file.fileno())


def _add_video(writer: webdataset.TarWriter, sample: ShardSample) -> None:
    """What `writer.write` does, without the whole video in memory."""
    member = tarfile.TarInfo(f"{sample.key}.{sample.ending}")
    member.size, member.mode = sample.length, writer.mode
    try:
        with sample.file.open("rb") as file:
            file.seek(sample.offset)
            video = _Summed(file)
            writer.tarstream.addfile(member, video)
        is_same = video.crc32 == sample.crc32
    except (_Short, FileNotFoundError):
        is_same = False
    if not is_same:
        raise DataError(f"{sample.file} has changed since it was checked: run the same command again")


class _Short(Exception):
    """A file ended too early."""


class _Summed:
    """A file as `tarfile` reads it, its checksum taken on the way."""

    def __init__(self, file: IO[bytes]):
        self.crc32 = 0
        self._file = file

    def read(self, length: int) -> bytes:
        """That many bytes."""
        block = self._file.read(length)
        if len(block) < length:
            raise _Short
        self.crc32 = zlib.crc32(block, self.crc32)
        return block


def _places(path: Path, shard: int, group: Sequence[ShardSample]) -> list[Place]:
    """Read the finished tar back: the index must say where the bytes are, not where they should be."""
    with tarfile.open(path, "r:") as tar:
        members = {member.name: member for member in tar}
    found = []
    for sample in group:
        member = members[f"{sample.key}.{sample.ending}"]
        assert member.size == sample.length
        found.append(
            Place(
                key=sample.key,
                shard=shard,
                offset=member.offset_data,
                length=member.size,
                crc32=sample.crc32,
            )
        )
    return found


def _describe(path: Path, name: str, samples: int) -> Shard:
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    return Shard(name=name, samples=samples, bytes=path.stat().st_size, sha256=sha256)
