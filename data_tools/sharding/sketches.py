"""Sketches of video files: equal for equal bytes, from their sizes, first bytes and last bytes.

A split is drawn before any video is read. Sketches keep copies of a video in one split: only files with the
size of another one are read, a few kilobytes each.
"""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from kinemae.data_tools.manifest.videos import SourceVideo
from kinemae.data_tools.pool import imap
from kinemae.data_tools.sharding.transcode import source_states
from kinemae.data_tools.storage.location import Location, StorageError, StorageUnavailable, location

_BYTES = 16_384


class _File(NamedTuple):
    """A range of a file, or the first and the last file of a folder of images."""

    first: Location
    last: Location
    begin: int
    end: int
    size: int


def sketches(videos: Sequence[SourceVideo], *, workers: int, timeout_s: float) -> Mapping[str, str]:
    """The sketch of each video by its name; none for a video whose size no other video has.

    Args:
        workers, timeout_s: see `imap`.

    Raises:
        StorageUnavailable: the storage is down.
    """
    users = Counter(_place(video) for video in videos)  # parts of one file
    first = {_place(video): video for video in videos}
    states = source_states(list(first.values()))
    sizes = {place: state.size for place, state in zip(first, states, strict=True)}
    counts = Counter(sizes.values())
    alike = {
        place: _file(video, sizes[place])
        for place, video in first.items()
        if sizes[place] and (users[place] > 1 or counts[sizes[place]] > 1)
    }
    read = imap(_sketch, list(alike.values()), workers=workers, timeout_s=timeout_s, on_failure=_unreadable)
    found = dict(zip(alike, read, strict=True))
    return {video.name: sketch for video in videos if (sketch := found.get(_place(video), ""))}


def _place(video: SourceVideo) -> tuple[str, tuple[int, int] | None]:
    return video.url or str(video.path), video.member


def _file(video: SourceVideo, size: int) -> _File:
    if video.frames:
        first, last = (location(video.path / name) for name in (video.frames[0], video.frames[-1]))
        return _File(first, last, 0, _BYTES, size)
    begin, length = video.member or (0, size)
    return _File(video.place, video.place, begin, begin + length, size)


def _sketch(file: _File) -> str:
    """Digest of size, first and last bytes; empty for a file that cannot be read: it is rejected later."""
    length = min(_BYTES, file.end - file.begin)
    try:
        head, tail = file.first.read(file.begin, length), file.last.read(file.end - length, length)
    except StorageUnavailable:
        raise
    except StorageError:
        return ""
    return hashlib.sha256(f"{file.size} ".encode() + head + tail).hexdigest()[:32]


def _unreadable(file: _File, reason: str) -> str:
    return ""
