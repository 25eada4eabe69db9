"""Write samples to WebDataset tars, by webdataset's TarWriter."""

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
from kinemae.data_tools.files import replaced_file
from kinemae.data_tools.index import Shard


@dataclass(frozen=True, kw_only=True)
class ShardSample:
    """The content of a sample in a tar: KEY.json, then KEY.EXTENSION.

    Attributes:
        file, offset: the position of the video's bytes.
        length, crc32: of the video's bytes when the video was checked.
    """

    key: str
    description: bytes
    extension: str
    file: Path
    length: int
    crc32: int
    offset: int = 0


@dataclass(frozen=True, kw_only=True)
class Place:
    """The position of a video in its shard."""

    key: str
    shard: int
    offset: int
    length: int
    crc32: int


def shard_name(number: int, prefix: str = "shard") -> str:
    """The file name of a shard: shard-000000.tar and so on."""
    return f"{prefix}-{number:06d}.tar"


def into_shards(
    samples: Sequence[ShardSample], *, samples_per_shard: int, bytes_per_shard: int
) -> Iterator[list[ShardSample]]:
    """Group samples into shards, in order; a video larger than a shard gets its own."""
    group: list[ShardSample] = []
    total = 0
    for sample in samples:
        size = sample.length + len(sample.description)
        if group and (len(group) == samples_per_shard or total + size > bytes_per_shard):
            yield group
            group, total = [], 0
        group.append(sample)
        total += size
    if group:
        yield group


def write_shard(
    folder: Path, number: int, group: Sequence[ShardSample], *, prefix: str = "shard"
) -> tuple[Shard, list[Place]]:
    """Write one tar; equal samples give equal bytes. The file has its final name only when it is complete.

    Raises:
        DataError: the disk is full or not writable, or a video has changed since it was checked; the
            incomplete shard is removed.
    """
    name = shard_name(number, prefix)
    with writing_to(folder), replaced_file(folder / name) as partial:
        _write_tar(partial, group)
        places = _places(partial, number, group)
        with partial.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        shard = Shard(name=name, samples=len(group), bytes=partial.stat().st_size, sha256=sha256)
    return shard, places


def _write_tar(path: Path, group: Sequence[ShardSample]) -> None:
    with path.open("wb") as file:
        # Without times and users, so that equal content gives equal bytes.
        with webdataset.TarWriter(file, user="", group="", mtime=0, encoder=False) as writer:
            for sample in group:
                writer.write({"__key__": sample.key, "json": sample.description})
                _add_video(writer, sample)
        file.flush()
        os.fsync(file.fileno())


def _add_video(writer: webdataset.TarWriter, sample: ShardSample) -> None:
    """Do the same as `writer.write`, without the whole video in memory."""
    member = tarfile.TarInfo(f"{sample.key}.{sample.extension}")
    member.size, member.mode = sample.length, writer.mode
    try:
        with sample.file.open("rb") as file:
            file.seek(sample.offset)
            video = _ChecksumReader(file)
            writer.tarstream.addfile(member, video)
        is_same = video.crc32 == sample.crc32
    except (_TooShort, FileNotFoundError):
        is_same = False
    if not is_same:
        raise DataError(
            f"{sample.file}: expected the bytes that were checked, got others; fix: run the command again"
        )


class _TooShort(Exception):
    """A file ended too early."""


class _ChecksumReader:
    """A file for `tarfile` that computes the checksum while it is read."""

    def __init__(self, file: IO[bytes]):
        self.crc32 = 0
        self._file = file

    def read(self, length: int) -> bytes:
        """Read exactly this number of bytes."""
        block = self._file.read(length)
        if len(block) < length:
            raise _TooShort
        self.crc32 = zlib.crc32(block, self.crc32)
        return block


def _places(path: Path, shard: int, group: Sequence[ShardSample]) -> list[Place]:
    """The positions of the videos, read from the finished tar."""
    with tarfile.open(path, "r:") as tar:
        members = {member.name: member for member in tar}
    found = []
    for sample in group:
        member = members[f"{sample.key}.{sample.extension}"]
        assert member.size == sample.length
        found.append(
            Place(
                key=sample.key, shard=shard, offset=member.offset_data, length=member.size, crc32=sample.crc32
            )
        )
    return found
