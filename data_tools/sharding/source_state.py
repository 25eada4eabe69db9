"""State of source videos: a stamp that changes if a file changes, here or at a URL."""

import hashlib
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from kinemae.data_tools.manifest.videos import SourceVideo
from kinemae.data_tools.storage.location import StorageError

_REQUESTS = 16  # at a time


@dataclass(frozen=True, kw_only=True)
class SourceState:
    """State of a video's files.

    Attributes:
        stamp: names the video and the state of its files.
        size: bytes to read; 0 if they are not there or the server does not tell.
    """

    stamp: str
    size: int


def source_states(videos: Sequence[SourceVideo]) -> list[SourceState]:
    """Look up the state of each video, one request for each URL.

    Raises:
        StorageError: a remote file cannot be looked up, after all retries. A missing one is no error here.
    """
    urls = sorted({video.url for video in videos if video.url})
    places = {video.url: video for video in videos}
    with ThreadPoolExecutor(_REQUESTS) as threads:
        remote = dict(zip(urls, threads.map(lambda url: _remote_version(places[url]), urls), strict=True))
    return [_state(video, remote) for video in videos]


def _remote_version(video: SourceVideo) -> tuple[int, str]:
    try:
        size, tag = video.place.version()
    except StorageError as error:
        if not error.is_missing:
            raise
        return 0, ""
    return size or 0, tag


def _state(video: SourceVideo, remote: dict[str, tuple[int, str]]) -> SourceState:
    if video.url:
        size, tag = remote[video.url]
        times: list[int | str] = [f"{size} {tag}"]
    else:
        files = [video.path / name for name in video.frames] or [video.path]
        size = sum(path.stat().st_size for path in files if path.is_file())
        times = [_modified(path) for path in files]
    size = video.member[1] if video.member is not None else size
    about = [video.name, video.start_s, video.end_s, video.member, video.fps, size, times]
    text = json.dumps(about)
    stamp = text if len(times) == 1 else f"{video.name} {hashlib.sha256(text.encode()).hexdigest()}"
    return SourceState(stamp=stamp, size=size)


def _modified(path: Path) -> int:
    return path.stat().st_mtime_ns if path.is_file() else 0
