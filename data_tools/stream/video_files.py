"""Plain video files as a data set: each file is a shard that holds one sample, the whole file.

So the readers of shards read files, folders and URLs without a copy:

    FOLDER/transcoded.jsonl             properties of each file, which is decoded once; see `transcode`
    FOLDER/dataset.json, index.arrow    the index
    FOLDER/downloads/                   copies of remote files
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path, PurePosixPath

from kinemae.data_tools.command import DataError, log
from kinemae.data_tools.folder_checks import list_data_sets
from kinemae.data_tools.index import (
    DATASET_NAME,
    NO_LABEL,
    Sample,
    Shard,
    ShardIndex,
    open_index,
    write_index,
)
from kinemae.data_tools.layouts.base import Job
from kinemae.data_tools.layouts.copy import Copy
from kinemae.data_tools.manifest.videos import SourceVideo, is_video, printable, walk
from kinemae.data_tools.pool import TIMEOUT_S
from kinemae.data_tools.progress import progress
from kinemae.data_tools.sharding.splits import safe_keys
from kinemae.data_tools.sharding.transcode import TranscodeResult, transcode
from kinemae.data_tools.storage.location import Location, RetryPolicy, location
from kinemae.data_tools.storage.retries import OUTAGE_S, retry_during_outage

_NOT_UTF8 = "expected a path in UTF-8, got other bytes; fix: rename it"


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
    out: Path | None = None,
    workers: int = 0,
    timeout_s: float = TIMEOUT_S,
    outage_s: float = OUTAGE_S,
) -> VideoFiles:
    """Index a video file, all videos in a folder and its subfolders, or the same behind a URL.

    Each file is decoded once, to count its frames; a repeated call examines only new and changed files.

    Args:
        folder: where the index and the copies of remote files are written.
        out: folder of results; videos in it are not part of the source.
        workers: processes that decode; 0 means one per core, 1 decodes in this process.
        outage_s: longest wait for a storage that is down.

    Raises:
        DataError: there is no readable video.
        StorageError: a remote file cannot be read.
        ValueError: `out` is the source.
    """
    place = location(source)
    policy = replace(place.retry_policy, outage_s=outage_s)
    folder.mkdir(parents=True, exist_ok=True)
    listed = _outside(list_video_files(place), place, out)
    unnamed = {video.name: _NOT_UTF8 for video in listed if not _is_utf8(video)}
    videos = [_on_this_machine(one, folder / "downloads", policy) for one in listed if _is_utf8(one)]
    keys = safe_keys([video.name for video in videos])
    jobs = [Job(video=video, key=key, folder=folder) for video, key in zip(videos, keys, strict=True)]
    done = transcode(jobs, Copy(), folder, workers=workers, timeout_s=timeout_s)
    results = [result for _, result in progress(done, total=len(jobs), what="examine")]
    reasons = [(video.name, one.reason) for video, one in zip(videos, results, strict=True)]
    failed = unnamed | {name: reason for name, reason in reasons if reason}
    for name, reason in failed.items():
        log.warning("%s cannot be read: %s", name, reason)
    if len(failed) == len(listed):
        name, reason = next(iter(failed.items()))
        raise DataError(f"{source}: expected readable videos, got none; first error: {name}: {reason}")
    readable = [(video, one) for video, one in zip(videos, results, strict=True) if not one.reason]
    samples, shards = zip(*(_row(number, *pair) for number, pair in enumerate(readable)), strict=True)
    write_index(folder, samples, shards, [], {"tool": "video_files"})
    return VideoFiles(index=open_index(folder), failed=failed)


def _outside(videos: Sequence[SourceVideo], source: Location, out: Path | None) -> Sequence[SourceVideo]:
    """The videos of a source that are not results of an earlier command in `out`."""
    if out is None or source.path is None or not source.path.is_dir():
        return videos
    own = out.resolve()
    if source.path.resolve() == own:
        raise ValueError(f"OUT {out}: expected a folder for results, got SOURCE; fix: choose another OUT")
    return [video for video in videos if not video.path.resolve().is_relative_to(own)]


def _is_utf8(video: SourceVideo) -> bool:
    """Check whether the index can store the path."""
    return printable(str(video.path.absolute())) == str(video.path.absolute())


def _row(number: int, video: SourceVideo, result: TranscodeResult) -> tuple[Sample, Shard]:
    """Describe a file as a shard that holds one sample."""
    [stored] = result.samples
    sample = Sample(
        key=video.name,
        shard=number,
        offset=0,
        length=stored.length,
        crc32=stored.crc32,
        **asdict(stored.info),
        label=NO_LABEL,
        name=video.name,
        content=result.content,
    )
    path = str(video.path.absolute())
    return sample, Shard(name=path, samples=1, bytes=stored.length, sha256=result.content)


def data_set_in(source: str | Path | Location) -> Location | None:
    """The source if it is a folder of shards; None for videos.

    Raises:
        DataError: it holds several data sets.
    """
    place = location(source)
    if (place / DATASET_NAME).exists():
        return place
    names = list_data_sets(place, DATASET_NAME)
    if names:
        raise DataError(
            f"{place}: expected one data set, got {', '.join(names)}; fix: give {place / names[0]}"
        )
    return None


def check_keys(index: ShardIndex) -> None:
    """Reject a key that cannot name a file in a folder of results.

    Raises:
        DataError: a key leads out of the folder.
    """
    for key in index.column("key").tolist():
        path = PurePosixPath(key)
        if path.is_absolute() or ".." in path.parts or "\0" in key:
            raise DataError(
                f"{index.folder}: expected keys that are names of files, got {key!r}; fix: shard the videos "
                "again"
            )


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
