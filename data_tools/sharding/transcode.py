"""Decode and encode every video once, on several processes; results are logged, so that a run resumes."""

import hashlib
import json
import math
import os
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from itertools import islice
from pathlib import Path
from typing import Any

from kinemae.data_tools.encoding.source_decoder import content_digest, fetch
from kinemae.data_tools.files import read_blocks
from kinemae.data_tools.index import VideoInfo
from kinemae.data_tools.layouts.base import EncodedSample, Job, Layout
from kinemae.data_tools.manifest.videos import SourceVideo
from kinemae.data_tools.pool import TIMEOUT_S, imap_unordered
from kinemae.data_tools.resumable import collect_results, load_results, save_results
from kinemae.data_tools.storage.location import StorageError
from kinemae.data_tools.storage.retries import OUTAGE_S, retry_during_outage
from kinemae.data_tools.stream.container import BadVideo

LOG_NAME = "transcoded.jsonl"
SPOOL_NAME = "spool"
_MAX_REQUESTS = 32  # at a time
_MAX_BATCH = 4096  # videos
_PART_BYTES_PER_S = 250_000.0  # of a part of a long video, when it is stored


@dataclass(frozen=True, kw_only=True)
class StoredSample:
    """A sample whose bytes are on the disk: in the spool folder, or in the source file.

    Attributes:
        length, crc32: of its bytes.
        The other attributes are those of `EncodedSample`.
    """

    key: str
    is_spooled: bool
    extension: str
    length: int
    crc32: int
    info: VideoInfo
    start_s: float
    reference_stride: int
    reference_phase: int
    frame_step: int
    columns: Mapping[str, int | float | str]


@dataclass(frozen=True, kw_only=True)
class TranscodeResult:
    """The result for one video.

    Attributes:
        samples: empty for a rejected video; `reason` states why.
        content: digest of the source's bytes.
        note: anomalies of an accepted video.
        is_final: False if the cause is temporary; the next run tries the video again.
        stamp: state of the source, see `SourceState`.
    """

    samples: tuple[StoredSample, ...] = ()
    content: str = ""
    reason: str = ""
    note: str = ""
    is_final: bool = True
    stamp: str = ""


Done = tuple[int, TranscodeResult]


@dataclass(frozen=True, kw_only=True)
class SourceState:
    """State of the files of a video.

    Attributes:
        stamp: identifies the video and the state of its files.
        size: bytes to read; 0 if there are no files or the server does not report it.
    """

    stamp: str
    size: int


def transcode(  # noqa: PLR0913 - keyword-only, except for the inputs
    jobs: Iterable[Job],
    layout: Layout,
    work: Path,
    *,
    workers: int,
    timeout_s: float = TIMEOUT_S,
    batch_bytes: float = math.inf,
    show: Callable[[Iterable[Done], int], Iterable[Done]] = lambda done, known: done,
) -> Iterator[tuple[Job, TranscodeResult]]:
    """Store all videos; yield the results in order.

    The videos are stored batch by batch. The caller takes the results of a batch out of the spool folder
    before the next one.

    Args:
        work: the folder of the log and the spool. A logged result is valid while the source has the same
            size and modification time and its files are in the spool.
        batch_bytes: approximate size of the sources of a batch.
        show: shows progress: wraps the new results of a batch; gets the number of those already known.
        timeout_s: see `imap_unordered`.

    Raises:
        StorageUnavailable: a source cannot be read now; the video is not rejected.
        Stuck: many videos in a row timed out.
    """
    spool = work / SPOOL_NAME
    spool.mkdir(parents=True, exist_ok=True)
    for leftover in spool.glob("*.partial"):
        leftover.unlink()
    run = partial(imap_unordered, workers=workers, on_failure=_failed, timeout_s=timeout_s)
    for batch in _batches(jobs, batch_bytes, at_least=4 * (workers or len(os.sched_getaffinity(0)))):
        known = {
            stamp: result
            for stamp, result in load_results(work / LOG_NAME, _parse).items()
            if result.is_final and all(is_stored(sample, spool) for sample in result.samples)
        }
        new = [(state, replace(job, folder=spool)) for job, state in batch if state.stamp not in known]
        # The longest videos first, so that the processes end at about the same time.
        new.sort(key=lambda pair: -pair[0].size)
        done = show(run(partial(_transcode, layout), [job for _, job in new]), len(batch) - len(new))
        results = collect_results(work / LOG_NAME, known, [state.stamp for state, _ in new], done)
        for job, state in batch:
            yield job, replace(results[state.stamp], stamp=state.stamp)


def _batches(
    jobs: Iterable[Job], batch_bytes: float, *, at_least: int
) -> Iterator[list[tuple[Job, SourceState]]]:
    """Divide jobs into batches of about this size of the sources, of `at_least` to `_MAX_BATCH` jobs."""
    rest = iter(jobs)
    batch: list[tuple[Job, SourceState]] = []
    size = 0.0
    while chunk := list(islice(rest, _MAX_BATCH)):
        for job, state in zip(chunk, source_states([job.video for job in chunk]), strict=True):
            batch.append((job, state))
            size += _expected_size(job.video, state)
            if len(batch) == _MAX_BATCH or (len(batch) >= at_least and size >= batch_bytes):
                yield batch
                batch, size = [], 0.0
    if batch:
        yield batch


def _expected_size(video: SourceVideo, state: SourceState) -> float:
    """The size of a source; of a part of a video by its duration."""
    if video.end_s is None:
        return state.size
    return min(state.size, (video.end_s - (video.start_s or 0.0)) * _PART_BYTES_PER_S)


def forget(work: Path, stamps: Iterable[str]) -> None:
    """Remove results from the log."""
    known = load_results(work / LOG_NAME, _parse)
    for stamp in stamps:
        known.pop(stamp, None)
    save_results(work / LOG_NAME, known)


def forget_rejected(work: Path) -> None:
    """Remove rejected videos from the log, so that the next `transcode` tries them again."""
    known = load_results(work / LOG_NAME, _parse)
    save_results(work / LOG_NAME, {key: result for key, result in known.items() if not result.reason})


def stored_file(sample: StoredSample, spool: Path) -> Path:
    """The path of a sample in the spool folder."""
    return spool / f"{sample.key}.{sample.extension}"


def source_states(videos: Sequence[SourceVideo]) -> list[SourceState]:
    """Look up the state of each video, with one request per URL.

    Raises:
        StorageError: a remote file cannot be looked up after all retries; a missing file is no error here.
    """
    by_url = {video.url: video for video in videos if video.url}
    with ThreadPoolExecutor(_MAX_REQUESTS) as threads:
        versions = dict(zip(by_url, threads.map(_remote_version, by_url.values()), strict=True))
    return [_state(video, versions) for video in videos]


def _remote_version(video: SourceVideo) -> tuple[int, str]:
    try:
        size, tag = video.place.version()
    except StorageError as error:
        if not error.is_missing:
            raise
        return 0, ""
    return size or 0, tag


def _state(video: SourceVideo, versions: Mapping[str, tuple[int, str]]) -> SourceState:
    if video.url:
        size, tag = versions[video.url]
        times: list[int | str] = [f"{size} {tag}"]
    else:
        files = [video.path / name for name in video.frames] or [video.path]
        found = [file.stat() if file.is_file() else None for file in files]
        size = sum(each.st_size for each in found if each is not None)
        times = [0 if each is None else each.st_mtime_ns for each in found]
    size = video.member[1] if video.member is not None else size
    text = json.dumps([video.name, video.start_s, video.end_s, video.member, video.fps, size, times])
    stamp = text if len(times) == 1 else f"{video.name} {hashlib.sha256(text.encode()).hexdigest()}"
    return SourceState(stamp=stamp, size=size)


def _transcode(layout: Layout, job: Job) -> TranscodeResult:
    return retry_during_outage(lambda: _transcode_now(layout, job), outage_s=OUTAGE_S)


def _transcode_now(layout: Layout, job: Job) -> TranscodeResult:
    job = replace(job, notes=[])
    stored: list[StoredSample] = []
    try:
        with _local(job) as video:
            content = _digest(video)
            for sample in layout.encode(replace(job, video=video)):
                if sample.file is None and job.video.url:
                    file = job.folder / f"{sample.key}.{sample.extension}"
                    sample = replace(sample, file=video.path.rename(file))
                stored.append(_stored(sample, video))
    except BadVideo as error:
        for incomplete in stored:
            stored_file(incomplete, job.folder).unlink(missing_ok=True)
        return TranscodeResult(reason=" ".join(str(error).split()))
    return TranscodeResult(samples=tuple(stored), content=content, note="; ".join(job.notes))


@contextmanager
def _local(job: Job) -> Iterator[SourceVideo]:
    """The video on this machine, downloaded once if it is remote."""
    video = job.video
    if not video.url:
        yield video
        return
    file = job.folder / f"{job.key}.partial"
    try:
        fetch(video, file)
        yield replace(video, path=file, url="", member=None)
    finally:
        file.unlink(missing_ok=True)


def _stored(sample: EncodedSample, video: SourceVideo) -> StoredSample:
    offset, length = (video.member if sample.file is None else None) or (0, None)
    crc32 = taken = 0
    for block in read_blocks(sample.file or video.path, offset, length):
        crc32, taken = zlib.crc32(block, crc32), taken + len(block)
    same = {name: value for name, value in vars(sample).items() if name != "file"}
    return StoredSample(**same, is_spooled=sample.file is not None, length=taken, crc32=crc32)


def _failed(job: Job, reason: str) -> TranscodeResult:
    """The result for a crash or time-out, whose cause may be outside of the video."""
    return TranscodeResult(reason=reason, is_final=False)


def _digest(video: SourceVideo) -> str:
    if video.frames or video.member is not None:
        return content_digest(video)
    [state] = source_states([replace(video, name="", start_s=None, end_s=None)])
    return _file_digest(video.path, state.stamp)


@lru_cache(maxsize=256)  # the parts of one long video need the same digest
def _file_digest(path: Path, stamp: str) -> str:
    return content_digest(SourceVideo(path=path, name=path.name))


def is_stored(sample: StoredSample, spool: Path) -> bool:
    """Check whether the file of a sample is in the spool folder, if it belongs there."""
    if not sample.is_spooled:
        return True
    file = stored_file(sample, spool)
    return file.is_file() and file.stat().st_size == sample.length


def _parse(entry: dict[str, Any]) -> TranscodeResult:
    samples = tuple(parse_sample(sample) for sample in entry.pop("samples"))
    return TranscodeResult(samples=samples, **entry)


def parse_sample(fields: Mapping[str, Any]) -> StoredSample:
    """A sample from its fields in JSON."""
    return StoredSample(**{**fields, "info": VideoInfo(**fields["info"])})
