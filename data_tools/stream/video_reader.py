"""Read a sample: its bytes from a local or remote shard, checked against the index, then its frames."""

import hashlib
import os
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import lru_cache, partial
from pathlib import Path
from threading import BoundedSemaphore

import numpy as np

from kinemae.data_tools import heartbeat
from kinemae.data_tools.command import Stopped
from kinemae.data_tools.files import Descriptor, read_at
from kinemae.data_tools.index import Sample, Shard, ShardIndex
from kinemae.data_tools.orders.base import Block
from kinemae.data_tools.storage.cache import CacheEntry
from kinemae.data_tools.storage.location import Location, StorageError, StorageUnavailable
from kinemae.data_tools.storage.retries import raise_if_outage, retry_during_outage
from kinemae.data_tools.stream.container import BadVideo
from kinemae.data_tools.stream.decode import probe
from kinemae.data_tools.stream.frame_sampling import last_frame_s
from kinemae.data_tools.stream.read_ahead import Request, take
from kinemae.data_tools.stream.yuv_planes import YuvFrame, yuv_frames_at

_MAX_OPEN_SHARDS = 64
_MAX_IN_MEMORY = 256 << 20  # bytes of a file
_MAX_GAP = 1 << 20  # bytes between two samples of a block; more are not downloaded
_block_downloads = BoundedSemaphore(2)  # of a process, which holds whole blocks in memory


def read_video(index: ShardIndex, sample: Sample, block: Block | None = None) -> bytes:
    """Read the bytes of a sample's video and compare their checksum: decoders do not notice a flipped bit.

    Args:
        block: neighbours of the sample, which are read into the cache with it.

    Raises:
        BadVideo: the bytes are missing, cut short or changed; the message names the sample and the shard.
        StorageUnavailable: the storage was down for the whole `outage_s` of the index.
    """
    outage_s = index.folder.retry_policy.outage_s
    with heartbeat.at_storage(outage_s):
        video = take(_key(index, sample))
        if video is not None:
            return video
        return retry_during_outage(lambda: _read(index, sample, block), outage_s=outage_s)


def read_requests(samples: Iterable[tuple[ShardIndex, Sample, Block | None]]) -> list[Request]:
    """The reads of samples, for a read-ahead; without those that need not be read into memory."""
    return [
        Request(key=_key(index, sample), length=sample.length, read=partial(_read, index, sample, block))
        for index, sample, block in samples
        if sample.length <= _MAX_IN_MEMORY
    ]


def decode_sample(
    index: ShardIndex, sample: Sample, timestamps_s: Sequence[float], block: Block | None = None
) -> Iterator[tuple[YuvFrame, list[int]]]:
    """Decode the frames of a sample at the given timestamps; see `yuv_frames_at` and `read_video`.

    Raises:
        BadVideo: the bytes or the frames do not match the index.
    """
    file = whole_file(index, sample) if sample.length > _MAX_IN_MEMORY else None
    return decode_video(read_video(index, sample, block) if file is None else file, sample, timestamps_s)


def decode_video(
    video: bytes | Path, sample: Sample, timestamps_s: Sequence[float]
) -> Iterator[tuple[YuvFrame, list[int]]]:
    """Decode the frames of a video that was read; see `decode_sample`."""
    return yuv_frames_at(video, timestamps_s, last_frame_s=last_frame_s(sample.frames, sample.duration_s))


def described(sample: Sample, video: bytes, *, is_counted: bool) -> Sample:
    """A sample with the properties of its video, for one that was not read by `index`.

    Args:
        is_counted: count the frames by decoding; otherwise trust the container.

    Raises:
        BadVideo: the video cannot be read.
    """
    with error_context(sample):
        return replace(sample, **asdict(probe(video, full=is_counted)))


def is_whole_file(index: ShardIndex, sample: Sample) -> bool:
    """Check whether a sample is a whole local file and not a part of a tar."""
    is_local = index.shard_location(sample).path is not None
    return is_local and sample.length == index.shards[sample.shard].bytes


def whole_file(index: ShardIndex, sample: Sample) -> Path | None:
    """The file of a sample that is a whole local file, which need not be read into memory; else None.

    Raises:
        BadVideo: the file is missing or has another size.
    """
    path = index.shard_location(sample).path
    if path is None or not is_whole_file(index, sample):
        return None
    try:
        size = path.stat().st_size
    except OSError as error:
        raise_if_outage(error, f"sample {sample.key} cannot be read", path)
        raise BadVideo(f"sample {sample.key} cannot be read: {error.strerror}") from error
    if size != sample.length:
        raise BadVideo(f"sample {sample.key} was changed: {size} instead of {sample.length} bytes")
    return path


def skip_quarantined(key: str, quarantined: Mapping[str, str], on_sample: Callable[[str], None]) -> None:
    """Report the key of the next sample to `on_sample` unless the sample is quarantined.

    Raises:
        BadVideo: the sample is quarantined; the message is the reason.
    """
    if key in quarantined:
        raise BadVideo(quarantined[key])
    on_sample(key)


@contextmanager
def error_context(sample: Sample) -> Iterator[None]:
    """Add the sample to errors that its video does not cause; such an error ends the run.

    Raises:
        BadVideo, StorageError, Stopped: unchanged.
        RuntimeError: any other error, with the key and the name of the sample.
    """
    try:
        yield
    except (BadVideo, StorageError, Stopped):
        raise
    except Exception as error:
        raise RuntimeError(f"sample {sample.key} ({sample.name}) cannot be read: {error!r}") from error


def _key(index: ShardIndex, sample: Sample) -> tuple[int, int, int]:
    return id(index), sample.shard, sample.offset


def _read(index: ShardIndex, sample: Sample, block: Block | None) -> bytes:
    shard = index.shards[sample.shard]
    try:
        opened = _open_shard(index.folder, shard.name)
        if isinstance(opened, Location):
            return _read_remote(index, sample, opened, block)
        # pread has no file position, so processes that inherit the descriptor do not disturb each other.
        video = read_at(opened.number, sample.offset, sample.length)
    except OSError as error:
        _open_shard.cache_clear()  # the descriptor of a file on a network disk may stay stale forever
        what = f"sample {sample.key} cannot be read from {shard.name}"
        raise_if_outage(error, what, (index.folder / shard.name).path)
        raise BadVideo(f"{what}: {error.strerror or error}") from error
    _check(video, sample, shard)
    return video


def _read_remote(index: ShardIndex, sample: Sample, remote: Location, block: Block | None) -> bytes:
    shard = index.shards[sample.shard]
    entry = None
    if index.cache is not None and sample.is_read:
        digest = shard.sha256 or hashlib.sha256(remote.url.encode()).hexdigest()
        entry = index.cache.entry(index.folder.url, digest)
        video = entry.read(sample.offset, sample.length)
        if not _is_intact(video, sample) and block is not None:
            video = _read_with_block(index, sample, remote, block, entry)
        if _is_intact(video, sample):
            return video
    video = _download(sample, remote, sample.offset, sample.length)
    _check(video, sample, shard)
    if entry is not None:
        entry.write(sample.offset, video)
    return video


def _read_with_block(
    index: ShardIndex, sample: Sample, remote: Location, block: Block, entry: CacheEntry
) -> bytes:
    """Read a sample from the block in the cache; download the block if it is not there.

    Returns:
        The bytes of the sample, or others if the sample is damaged or the block is too large for the cache.
    """
    begin, end = _range_of(index, sample, block)
    video = entry.read_block(begin, sample.offset, sample.length)
    if _is_intact(video, sample) or not entry.has_space_for(end - begin):
        return video
    with entry.downloading(begin):
        for read in (entry.read, partial(entry.read_block, begin)):
            video = read(sample.offset, sample.length)
            if _is_intact(video, sample):  # another process has downloaded the block
                return video
        with _block_downloads:
            content = _download(sample, remote, begin, end - begin)
            entry.write_block(begin, content, window_bytes=block.window_bytes)
    return content[sample.offset - begin :][: sample.length]


def _range_of(index: ShardIndex, sample: Sample, block: Block) -> tuple[int, int]:
    """First and last byte of the samples of a block that lie together with a sample in its shard."""
    rows = block.positions.start, block.positions.stop
    # By column, since this runs for each sample: `index.sample` of all of them takes tens of milliseconds.
    shard_N, offset_N, length_N = (index.column_range(name, *rows) for name in ("shard", "offset", "length"))
    ends_N2 = np.stack([offset_N, offset_N + length_N], axis=1)[shard_N == sample.shard]
    ranges = sorted(ends_N2.astype(np.int64).tolist())
    begin = end = sample.offset
    for first, last in ranges:
        if first <= end + _MAX_GAP:
            end = max(end, last)
    for first, last in reversed(ranges):
        if last >= begin - _MAX_GAP:
            begin = min(begin, first)
    return begin, end


def _download(sample: Sample, remote: Location, offset: int, length: int) -> bytes:
    try:
        return remote.read(offset, length)
    except StorageUnavailable as error:
        raise StorageUnavailable(f"sample {sample.key}: {error}", error.status) from error
    except StorageError as error:
        if error.status not in (401, 403, 404, 410):
            raise
        raise BadVideo(f"sample {sample.key}: {error}; no sample of that shard can be read") from error


def _is_intact(video: bytes, sample: Sample) -> bool:
    return len(video) == sample.length and (not sample.is_read or zlib.crc32(video) == sample.crc32)


def _check(video: bytes, sample: Sample, shard: Shard) -> None:
    if len(video) != sample.length:
        raise BadVideo(
            f"sample {sample.key} is cut short: {len(video)} of {sample.length} bytes left in {shard.name}"
        )
    if not _is_intact(video, sample):
        raise BadVideo(
            f"sample {sample.key} was changed after it was written to {shard.name}: its checksum differs"
        )


@lru_cache(maxsize=_MAX_OPEN_SHARDS)
def _open_shard(folder: Location, name: str) -> Descriptor | Location:
    shard = folder / name
    return shard if shard.path is None else Descriptor(shard.url, os.O_RDONLY)
