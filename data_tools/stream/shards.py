"""The bytes of one video by one read, here or remote, checked against the index."""

import hashlib
import os
import zlib
from functools import lru_cache

from data_tools.files import Descriptor
from data_tools.index import Sample, Shard, ShardIndex
from data_tools.storage.location import Location, StorageError
from data_tools.stream.container import BadVideo

_OPEN_SHARDS = 64


def read_video(index: ShardIndex, sample: Sample) -> bytes:
    """A sample's video, exactly as it was sharded.

    Decoders do not notice a flipped bit in a video, they show wrong pixels; the checksum does.

    Raises:
        BadVideo: the bytes are missing, cut short, changed, or could not be had in time; the message names
            the sample and the shard.
    """
    shard = index.shards[sample.shard]
    try:
        opened = _open_shard(index.folder, shard.name)
        if isinstance(opened, Location):
            return _read_remote(index, sample, shard, opened)
        # pread has no file position, so processes that inherit the descriptor do not disturb each other.
        video = os.pread(opened.number, sample.length, sample.offset)
    except OSError as error:
        raise BadVideo(
            f"sample {sample.key} cannot be read from {shard.name}: {error.strerror or error}"
        ) from error
    _check(video, sample, shard)
    return video


def _read_remote(index: ShardIndex, sample: Sample, shard: Shard, place: Location) -> bytes:
    """The same over a network, by way of the cache where there is one."""
    cache, digest = index.cache, shard.sha256 or hashlib.sha256(place.url.encode()).hexdigest()
    if cache is not None:
        video = cache.read(digest, sample.offset, sample.length)
        if len(video) == sample.length and zlib.crc32(video) == sample.crc32:
            return video
    try:
        video = place.read(sample.offset, sample.length)
    except StorageError as error:
        whole = "; no sample of that shard can be read" if error.status in (401, 403, 404) else ""
        raise BadVideo(f"sample {sample.key}: {error}{whole}") from error
    _check(video, sample, shard)
    if cache is not None:
        cache.keep(digest, sample.offset, video)
    return video


def _check(video: bytes, sample: Sample, shard: Shard) -> None:
    if len(video) != sample.length:
        raise BadVideo(
            f"sample {sample.key} is cut short: {len(video)} of {sample.length} bytes left in {shard.name}"
        )
    if zlib.crc32(video) != sample.crc32:
        raise BadVideo(
            f"sample {sample.key} was changed after it was written to {shard.name}: its checksum differs"
        )


@lru_cache(maxsize=_OPEN_SHARDS)
def _open_shard(folder: Location, name: str) -> Descriptor | Location:
    place = folder / name
    return place if place.path is None else Descriptor(place.url, os.O_RDONLY)
