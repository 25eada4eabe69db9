"""The bytes of one video by one read, checked against the index."""

import os
import zlib
from functools import lru_cache

from data_tools.index import Sample, ShardIndex
from data_tools.stream.decode import BadVideo

_OPEN_SHARDS = 64


def read_video(index: ShardIndex, sample: Sample) -> bytes:
    """A sample's video, exactly as it was sharded.

    Decoders do not notice a flipped bit in a video, they show wrong pixels; the checksum does.

    Raises:
        BadVideo: the bytes are missing, cut short or changed; the message names the sample and the shard.
    """
    shard = index.shards[sample.shard].name
    try:
        opened = _open_shard(str(index.folder), shard)
        # pread has no file position, so processes that inherit the descriptor do not disturb each other.
        video = os.pread(opened.number, sample.length, sample.offset)
    except OSError as error:
        raise BadVideo(
            f"sample {sample.key} cannot be read from {shard}: {error.strerror or error}"
        ) from error
    if len(video) != sample.length:
        raise BadVideo(
            f"sample {sample.key} is cut short: {len(video)} of {sample.length} bytes left in {shard}"
        )
    if zlib.crc32(video) != sample.crc32:
        raise BadVideo(
            f"sample {sample.key} was changed after it was written to {shard}: its checksum differs"
        )
    return video


class _Descriptor:
    """A file descriptor that is closed when the last who uses it lets go."""

    def __init__(self, path: str):
        self.number = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def __del__(self) -> None:
        if hasattr(self, "number"):
            os.close(self.number)


@lru_cache(maxsize=_OPEN_SHARDS)
def _open_shard(folder: str, name: str) -> _Descriptor:
    return _Descriptor(os.path.join(folder, name))
