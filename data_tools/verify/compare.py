"""Compare one shard or one sample with its rows in the index."""

import hashlib
import json
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import IO, Any

from kinemae.data_tools.command import DataError
from kinemae.data_tools.index import COLUMNS, NO_LABEL, Sample, ShardIndex, load_index
from kinemae.data_tools.indexing.tar_members import TarMember, read_members, split_key, warn_of_pickles
from kinemae.data_tools.storage.cache import LocalIndex, fetch_index
from kinemae.data_tools.storage.location import Location, StorageError, StorageUnavailable
from kinemae.data_tools.storage.retries import raise_if_outage
from kinemae.data_tools.stream.container import BadVideo
from kinemae.data_tools.stream.decode import probe
from kinemae.data_tools.stream.video_reader import decode_sample, read_video

_OWN_COMMAND = "data_tools shard"  # its tars hold only KEY.json and KEY.ENDING
_TOLERANCE_S = 1e-6


@dataclass(frozen=True, kw_only=True)
class Fault:
    """A difference between a data set and its index: the location, the problem and the key of the sample."""

    place: str
    problem: str
    key: str = ""

    def __str__(self) -> str:
        return f"{self.place}: {f'sample {self.key}: ' if self.key else ''}{self.problem}"


@dataclass(frozen=True, kw_only=True)
class IndexHandle:
    """Reference to an index for a worker process, which opens the index once for all its jobs."""

    folder: Location
    local_index: LocalIndex
    with_removed: bool

    @staticmethod
    def of(index: ShardIndex, *, with_removed: bool = False) -> "IndexHandle":
        """Make the handle of an index."""
        local_index = index.local_index.for_other_process()
        return IndexHandle(folder=index.folder, local_index=local_index, with_removed=with_removed)

    def open(self) -> ShardIndex:
        """Open the index."""
        return _load_once(self)


@lru_cache(maxsize=2)
def _load_once(handle: IndexHandle) -> ShardIndex:
    local_index = handle.local_index
    if handle.folder.path is None and not local_index.folder.is_dir():  # on another node of a cluster
        local_index = fetch_index(handle.folder, None)
        if local_index.state != handle.local_index.state:
            raise DataError(f"{handle.folder}: the data set has changed; fix: run the same command again")
    index = load_index(handle.folder, local_index)
    return index.with_removed() if handle.with_removed else index


@dataclass(frozen=True, kw_only=True)
class ShardJob:
    """A shard of an index and the positions of its samples."""

    handle: IndexHandle
    number: int
    positions: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class SampleJob:
    """A sample of an index."""

    handle: IndexHandle
    position: int


def check_shard(job: ShardJob) -> list[Fault]:
    """Check size, sha256, all headers, and every sample's offset, checksum and json member."""
    index = job.handle.open()
    shard = index.shards[job.number]
    place = index.folder / shard.name
    samples = [index.sample(position) for position in job.positions]
    try:
        with _local_copy(place) as path, path.open("rb") as file:
            return [
                *_check_file(file, place, shard.bytes, shard.sha256),
                *_check_members(file, place, samples, index),
                *_check_checksums(file, place, samples),
            ]
    except StorageUnavailable:
        raise
    except (StorageError, OSError) as error:
        if isinstance(error, OSError):
            raise_if_outage(error, f"cannot read {place}", place.path)
        return [
            Fault(place=str(place), problem=f"cannot read the shard and its {len(samples)} samples: {error}")
        ]


def check_sample(job: SampleJob) -> list[Fault]:
    """Decode a video to its end, once with `probe` and once as in training."""
    index = job.handle.open()
    sample = index.sample(job.position)
    timestamps_s = [(frame + 0.5) * sample.duration_s / sample.frames for frame in range(sample.frames)]
    try:
        decoded = asdict(probe(read_video(index, sample)))
        for _ in decode_sample(index, sample, timestamps_s) if timestamps_s else ():
            pass
    except BadVideo as error:
        return [_sample_fault(index, sample, str(error))]
    return [
        _sample_fault(index, sample, f"{name} is {value} when decoded, {getattr(sample, name)} in the index")
        for name, value in decoded.items()
        if sample.is_read and not _is_same(value, getattr(sample, name))
    ]


def failed_sample(job: SampleJob, reason: str) -> list[Fault]:
    """The fault of a sample that crashed or blocked its process."""
    index = job.handle.open()
    return [_sample_fault(index, index.sample(job.position), reason)]


def _sample_fault(index: ShardIndex, sample: Sample, problem: str) -> Fault:
    return Fault(place=str(index.shard_location(sample)), key=sample.key, problem=problem)


@contextmanager
def _local_copy(place: Location) -> Iterator[Path]:
    """The file itself, or a temporary copy: each byte is read several times."""
    if place.path is not None:
        yield place.path
        return
    with tempfile.TemporaryDirectory(prefix="kinemae-verify-") as folder:
        place.download(Path(folder) / "shard.tar")
        yield Path(folder) / "shard.tar"


def _check_file(file: IO[bytes], place: Location, size: int, sha256: str) -> Iterator[Fault]:
    digest = hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]
    if file.tell() != size:
        problem = f"expected {size} bytes, got {file.tell()}: truncated or changed"
        yield Fault(place=str(place), problem=problem)
    elif sha256 and digest != sha256:
        yield Fault(place=str(place), problem="its sha256 differs from the index: it was changed")


def _check_members(
    file: IO[bytes], place: Location, samples: list[Sample], index: ShardIndex
) -> Iterator[Fault]:
    try:
        members = read_members(file, str(place))
    except DataError as error:
        yield Fault(place=str(place), problem=str(error).removeprefix(f"{place}: "))
        return
    pickles = warn_of_pickles(members, str(place))
    by_offset = {member.offset: member for member in members}
    by_name = {member.name: member for member in members}
    is_own = index.made_by.get("command") == _OWN_COMMAND
    if is_own and len(by_name) < len(members):
        yield Fault(place=str(place), problem="two of its members have the same name")
    for sample in samples:
        member = by_offset.get(sample.offset)
        if member is None or member.length != sample.length:
            found = "no member" if member is None else f"{member.name} with {member.length} bytes"
            problem = f"expected {sample.length} bytes at byte {sample.offset}, got {found}"
            yield _sample_fault(index, sample, problem)
        elif is_own and split_key(member.name)[0] != sample.key:
            yield _sample_fault(index, sample, f"its offset is that of {member.name}")
        elif is_own:
            yield from _check_json(file, by_name.get(f"{sample.key}.json"), sample, index)
    offsets = {sample.offset for sample in samples}
    names = {f"{sample.key}.json" for sample in samples} | pickles
    for member in members if is_own else ():
        if member.offset not in offsets and member.name not in names:
            yield Fault(place=str(place), problem=f"{member.name} is not in the index")


def _check_json(
    file: IO[bytes], member: TarMember | None, sample: Sample, index: ShardIndex
) -> Iterator[Fault]:
    """Check the json member, which other readers use instead of the index."""
    if member is None:
        yield _sample_fault(index, sample, f"{sample.key}.json is missing")
        return
    file.seek(member.offset)
    try:
        described: dict[str, Any] = json.loads(file.read(member.length))
    except ValueError as error:
        yield _sample_fault(index, sample, f"{member.name} is damaged: {error}")
        return
    label = index.classes[sample.label] if NO_LABEL < sample.label < len(index.classes) else ""
    row = {
        **{name: getattr(sample, name) for name in COLUMNS.names},
        "label": label,
        "label_index": sample.label,
    }
    for name in sorted((row.keys() & described.keys()) - {"crc32"}):  # crc32 is compared with the bytes
        if not _is_same(described[name] if described[name] is not None else "", row[name]):
            problem = f"{name} is {described[name]!r} in {member.name}, {row[name]!r} in the index"
            yield _sample_fault(index, sample, problem)


def _check_checksums(file: IO[bytes], place: Location, samples: list[Sample]) -> Iterator[Fault]:
    for sample in samples:
        file.seek(sample.offset)
        video = file.read(sample.length)
        if len(video) < sample.length:
            problem = f"truncated: {len(video)} of {sample.length} bytes left"
            yield Fault(place=str(place), key=sample.key, problem=problem)
        elif sample.is_read and zlib.crc32(video) != sample.crc32:
            yield Fault(
                place=str(place), key=sample.key, problem="its checksum differs: the bytes were changed"
            )


def _is_same(one: object, other: object) -> bool:
    if isinstance(one, float) and isinstance(other, float):
        return abs(one - other) <= _TOLERANCE_S
    return one == other
