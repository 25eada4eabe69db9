"""One shard, or one sample, compared with what the index says of it."""

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

from kinemae.data_tools.command import DataError, log
from kinemae.data_tools.index import NO_LABEL, Sample, ShardIndex, load_index
from kinemae.data_tools.indexing.tar_members import PICKLES, Member, members_of, split_member
from kinemae.data_tools.storage.cache import LocalIndex
from kinemae.data_tools.storage.location import Location, StorageError, StorageUnavailable
from kinemae.data_tools.storage.retries import raise_if_outage
from kinemae.data_tools.stream.container import BadVideo
from kinemae.data_tools.stream.decode import probe
from kinemae.data_tools.stream.video_reader import decode_sample, read_video

_OWN_COMMAND = "data_tools shard"  # whose tars hold KEY.json and KEY.ENDING and nothing else
_SAME_S = 1e-6


@dataclass(frozen=True, kw_only=True)
class Fault:
    """Something that is not as the index says: in which data set, shard and sample, and what."""

    place: str
    what: str
    key: str = ""

    def __str__(self) -> str:
        return f"{self.place}: {f'sample {self.key}: ' if self.key else ''}{self.what}"


@dataclass(frozen=True, kw_only=True)
class IndexHandle:
    """An index as a job for another process, which opens it once for all its jobs."""

    folder: Location
    local_index: LocalIndex

    @staticmethod
    def of(index: ShardIndex) -> "IndexHandle":
        """The job's handle of an index."""
        return IndexHandle(folder=index.folder, local_index=index.local_index.for_other_process())

    def index(self) -> ShardIndex:
        """The index itself."""
        return _shared(self)


@dataclass(frozen=True, kw_only=True)
class ShardJob:
    """A shard of an index and the positions of its samples."""

    opened: IndexHandle
    number: int
    positions: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class SampleJob:
    """A sample of an index."""

    opened: IndexHandle
    position: int


def check_shard(job: ShardJob) -> list[Fault]:
    """Size, sha256, every header, and every sample's place, checksum and description. Decodes nothing."""
    index = job.opened.index()
    shard = index.shards[job.number]
    place = index.folder / shard.name
    samples = [index.sample(position) for position in job.positions]
    try:
        with _on_this_machine(place) as path, path.open("rb") as file:
            return [
                *_check_whole(file, place, shard.bytes, shard.sha256),
                *_check_members(file, place, samples, index),
                *_check_checksums(file, place, samples),
            ]
    except StorageUnavailable:
        raise
    except (StorageError, OSError) as error:
        if isinstance(error, OSError):
            raise_if_outage(error, f"cannot read {place}", place.path)
        return [Fault(place=str(place), what=f"cannot be read, nor can its {len(samples)} samples: {error}")]


def check_sample(job: SampleJob) -> list[Fault]:
    """Read a video and decode it to its end, once by itself and once as training does."""
    index = job.opened.index()
    sample = index.sample(job.position)
    timestamps_s = [(frame + 0.5) * sample.duration_s / sample.frames for frame in range(sample.frames)]
    try:
        found = asdict(probe(read_video(index, sample)))
        for _ in decode_sample(index, sample, timestamps_s) if timestamps_s else ():
            pass
    except BadVideo as error:
        return [fault(index, sample, str(error))]
    return [
        fault(index, sample, f"{name} is {value} when decoded, {getattr(sample, name)} in the index")
        for name, value in found.items()
        if not _same(value, getattr(sample, name))
    ]


def failed_on_sample(job: SampleJob, reason: str) -> list[Fault]:
    """The fault of a sample that crashed or blocked its process."""
    index = job.opened.index()
    return [fault(index, index.sample(job.position), reason)]


def fault(index: ShardIndex, sample: Sample, what: str) -> Fault:
    """A fault of a sample."""
    return Fault(place=str(index.shard_location(sample)), key=sample.key, what=what)


@lru_cache(maxsize=2)
def _shared(opened: IndexHandle) -> ShardIndex:
    return load_index(opened.folder, opened.local_index)


@contextmanager
def _on_this_machine(place: Location) -> Iterator[Path]:
    """The file itself, or a copy for a while: each of its bytes is needed several times."""
    if place.path is not None:
        yield place.path
        return
    with tempfile.TemporaryDirectory(prefix="kinemae-verify-") as folder:
        place.download(Path(folder) / "shard.tar")
        yield Path(folder) / "shard.tar"


def _check_whole(file: IO[bytes], place: Location, size: int, sha256: str) -> Iterator[Fault]:
    digest = hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]
    if file.tell() != size:
        yield Fault(place=str(place), what=f"has {file.tell()} bytes instead of {size}: cut short or changed")
    elif sha256 and digest != sha256:
        yield Fault(place=str(place), what="its sha256 is not that of the index: it was changed")


def _check_members(
    file: IO[bytes], place: Location, samples: list[Sample], index: ShardIndex
) -> Iterator[Fault]:
    try:
        members = members_of(file, str(place))
    except DataError as error:
        yield Fault(place=str(place), what=str(error).removeprefix(f"{place} "))
        return
    by_offset = {member.offset: member for member in members}
    is_own = index.made_by.get("command") == _OWN_COMMAND
    by_name = {member.name: member for member in members}
    if is_own and len(by_name) < len(members):
        yield Fault(place=str(place), what="two of its members have the same name")
    for sample in samples:
        member = by_offset.get(sample.offset)
        if member is None or member.length != sample.length:
            there = "no member" if member is None else f"{member.name} with {member.length} bytes"
            yield fault(index, sample, f"{there} at byte {sample.offset}, where {sample.length} are expected")
        elif is_own and split_member(member.name)[0] != sample.key:
            yield fault(index, sample, f"{member.name} stands in its place")
        elif is_own:
            yield from _check_description(file, by_name.get(f"{sample.key}.json"), sample, index)
    yield from _check_strangers(members, place, samples, is_own=is_own)


def _check_strangers(
    members: list[Member], place: Location, samples: list[Sample], *, is_own: bool
) -> Iterator[Fault]:
    pickles = [member.name for member in members if member.name.rpartition(".")[2].lower() in PICKLES]
    if pickles:
        log.warning(
            "%s holds %d pickled members, first %s: they can hold code and are never read; do not call "
            "webdataset's .decode() on them",
            *(place, len(pickles), pickles[0]),
        )
    known = {sample.offset for sample in samples}
    keys = {f"{sample.key}.json" for sample in samples}
    for member in members:
        if is_own and member.offset not in known and member.name not in keys | set(pickles):
            yield Fault(place=str(place), what=f"{member.name} is in no row of the index")


def _check_description(
    file: IO[bytes], member: Member | None, sample: Sample, index: ShardIndex
) -> Iterator[Fault]:
    """The json member, which other readers use in the place of the index."""
    if member is None:
        yield fault(index, sample, f"{sample.key}.json is missing")
        return
    file.seek(member.offset)
    try:
        told: dict[str, Any] = json.loads(file.read(member.length))
    except ValueError as error:
        yield fault(index, sample, f"{member.name} is damaged: {error}")
        return
    label = index.classes[sample.label] if NO_LABEL < sample.label < len(index.classes) else ""
    row = {**asdict(sample), "label": label, "label_index": sample.label}
    for name in sorted((row.keys() & told.keys()) - {"crc32"}):  # that one is compared with the bytes
        if not _same(told[name] if told[name] is not None else "", row[name]):
            what = f"{name} is {told[name]!r} in {member.name} and {row[name]!r} in the index"
            yield fault(index, sample, what)


def _check_checksums(file: IO[bytes], place: Location, samples: list[Sample]) -> Iterator[Fault]:
    for sample in samples:
        file.seek(sample.offset)
        video = file.read(sample.length)
        if len(video) < sample.length:
            what = f"cut short, {len(video)} of {sample.length} bytes left"
            yield Fault(place=str(place), key=sample.key, what=what)
        elif zlib.crc32(video) != sample.crc32:
            yield Fault(place=str(place), key=sample.key, what="its bytes were changed: the checksum differs")


def _same(one: object, other: object) -> bool:
    if isinstance(one, float) and isinstance(other, float):
        return abs(one - other) <= _SAME_S
    return one == other
