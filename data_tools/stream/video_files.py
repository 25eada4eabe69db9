"""Plain video files as a data set: each file is a shard that holds one sample, the whole file.

So the readers of shards read files, folders and URLs without a copy:

    FOLDER/transcoded.jsonl             properties of each file, which is decoded once; see `transcode`
    FOLDER/dataset.json, index.arrow    the index
    FOLDER/downloads/                   copies of remote files
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from kinemae.data_tools.command import DataError, log
from kinemae.data_tools.index import NO_LABEL, Sample, Shard, ShardIndex, open_index, write_index
from kinemae.data_tools.layouts.base import Job
from kinemae.data_tools.layouts.copy import Copy
from kinemae.data_tools.manifest.videos import SourceVideo, is_video, printable, walk
from kinemae.data_tools.pool import TIMEOUT_S
from kinemae.data_tools.sharding.splits import safe_keys
from kinemae.data_tools.sharding.transcode import transcode
from kinemae.data_tools.storage.location import Location, RetryPolicy, location
from kinemae.data_tools.storage.retries import OUTAGE_S, retry_during_outage


@dataclass(frozen=True, kw_only=True)
class VideoFiles:
    """The videos of a source.

    Attributes:
        index: the readable ones. The key of a sample is the path of its file relative to the source.
        failed: the reason for each unreadable one.
    """

    index: ShardIndex
    failed: dict[str, str]


def open_video_files(
    source: str | Path | Location,
    folder: Path,
    *,
    workers: int = 0,
    timeout_s: float = TIMEOUT_S,
    outage_s: float = OUTAGE_S,
) -> VideoFiles:
    """Index a video file, all videos in a folder and its subfolders, or the same behind a URL.

    Each file is decoded once, to count its frames; a repeated call examines only new and changed files.

    Args:
        folder: where the index and the copies of remote files are written.
        workers: processes that decode; 0 means one per core, 1 decodes in this process.
        outage_s: longest wait for a storage that is down.

    Raises:
        DataError: there is no video, or no readable one.
        StorageError: a remote file cannot be read.
    """
    place = location(source)
    policy = replace(place.retry_policy, outage_s=outage_s)
    folder.mkdir(parents=True, exist_ok=True)
    videos = [_on_this_machine(video, folder / "downloads", policy) for video in list_video_files(place)]
    keys = safe_keys([video.name for video in videos])
    jobs = [Job(video=video, key=key, folder=folder) for video, key in zip(videos, keys, strict=True)]
    results = transcode(
        jobs,
        Copy(),
        folder,
        workers=workers,
        is_sharded=lambda key: True,
        timeout_s=timeout_s,
        what="examine",
    )
    failed, samples, shards = {}, [], []
    for video, result in zip(videos, results, strict=True):
        if result.reason:
            failed[video.name] = result.reason
            log.warning("%s cannot be read: %s", video.name, result.reason)
            continue
        [stored] = result.samples
        size = {"length": stored.length, "crc32": stored.crc32, **asdict(stored.info)}
        row = Sample(
            key=video.name, shard=len(shards), offset=0, **size, label=NO_LABEL, name=video.name,
            content=result.content,
        )  # fmt: skip
        samples.append(row)
        path = str(video.path.absolute())
        shards.append(Shard(name=path, samples=1, bytes=stored.length, sha256=result.content))
    if not samples:
        name, reason = next(iter(failed.items()))
        raise DataError(f"{source}: expected readable videos, got none; first error: {name}: {reason}")
    write_index(folder, samples, shards, [], {"tool": "video_files"})
    return VideoFiles(index=open_index(folder), failed=failed)


def list_video_files(source: Location) -> Sequence[SourceVideo]:
    """List a video, or the videos in a folder, in a fixed order; their names are relative to the folder.

    Raises:
        DataError: there is no video.
        StorageError: a remote folder cannot be listed.
    """
    root = source.path
    if root is None:
        is_file = is_video(source.name)
        places = [source] if is_file else [source / name for name in source.list() if is_video(name)]
        videos = [SourceVideo(path=Path(each.name), name=each.name, url=each.url) for each in places]
    elif root.is_dir():
        paths = [place / name for place, files in walk(root) for name in files if is_video(name)]
        videos = [SourceVideo(path=path, name=printable(str(path.relative_to(root)))) for path in paths]
    elif not root.exists():
        raise DataError(
            f"{source}: expected a video, a folder of videos or a URL, got no such file or folder"
        )
    else:
        videos = [SourceVideo(path=root, name=printable(root.name))]
    if not videos:
        raise DataError(
            f"{source}: expected videos, got a folder without any; fix: give a folder with files such as "
            "NAME.mp4 or NAME.mkv in it or its subfolders"
        )
    return videos


def _on_this_machine(video: SourceVideo, downloads: Path, policy: RetryPolicy) -> SourceVideo:
    """Return a video as a local file; a remote one is downloaded once."""
    if not video.url:
        return video
    file, place = downloads / video.name, location(video.url, retry_policy=policy)
    if not file.exists():
        log.info("downloading %s", place)
        downloads.mkdir(exist_ok=True)
        retry_during_outage(lambda: place.download(file), outage_s=policy.outage_s)
    return SourceVideo(path=file, name=video.name)
