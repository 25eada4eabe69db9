"""Read every video of a WebDataset once, from end to end: checksums, digests, decoded frames."""

import hashlib
import json
import os
import tempfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from math import ceil
from pathlib import Path
from typing import IO, Any, Literal

from kinemae.data_tools.command import DataError
from kinemae.data_tools.curation.frame_stats import COLUMNS as CURATION_COLUMNS
from kinemae.data_tools.curation.frame_stats import FrameStats
from kinemae.data_tools.index import DESCRIPTION_KEY, VideoInfo
from kinemae.data_tools.indexing.field_rules import (
    FieldRules,
    SampleInfo,
    ShardContents,
    StoredRow,
    read_shard,
)
from kinemae.data_tools.indexing.shard_list import InputShard, open_shard
from kinemae.data_tools.indexing.tar_members import read_member
from kinemae.data_tools.pool import TIMEOUT_S, Engine, imap, imap_unordered
from kinemae.data_tools.progress import progress
from kinemae.data_tools.resumable import collect_results, load_results
from kinemae.data_tools.storage.location import location
from kinemae.data_tools.storage.retries import outage_errors
from kinemae.data_tools.stream.container import BadVideo
from kinemae.data_tools.stream.decode import probe

Probe = Literal["full", "header", "stored", "none"]
_UNREAD = VideoInfo(frames=0, duration_s=0.0, width=0, height=0, codec="")
_CHANGED = "its checksum differs from the one in its .json: the video has changed"


@dataclass(frozen=True, kw_only=True)
class SampleScan:
    """A sample: the position of its video in the tar, its metadata and the result of a decode.

    Attributes:
        info: None if the video is unreadable; `reason` states why.
        note: an anomaly of a readable video.
        shard: number of its shard.
    """

    key: str
    name: str
    offset: int = 0
    length: int = 0
    crc32: int = 0
    content: str = ""
    label: str | None = None
    label_index: int | None = None
    group: str | None = None
    start_s: float = 0.0
    reference_stride: int = 1
    reference_phase: int = 0
    frame_step: int = 1
    extra: Mapping[str, Any]
    info: VideoInfo | None = None
    reason: str = ""
    note: str = ""
    shard: int = 0


@dataclass(frozen=True, kw_only=True)
class ShardScan:
    """A shard, or a part of it: its samples in order, its size and digest.

    Attributes:
        unused: as in `ShardContents`.
        failure: reason why a process crashed or timed out on one of the videos.
    """

    samples: tuple[SampleScan, ...] = ()
    bytes: int = 0
    sha256: str = ""
    unused: Mapping[str, int]
    failure: str = ""


@dataclass(frozen=True, kw_only=True)
class _Job:
    """Every `parts`-th sample of a shard, from `part` on; the first part also digests the shard."""

    shard: InputShard
    rules: FieldRules
    probe: Probe
    curate: bool
    part: int = 0
    parts: int = 1


def scan_shards(  # noqa: PLR0913 - keyword-only, except for the inputs
    shards: Sequence[InputShard],
    rules: FieldRules,
    log_file: Path,
    *,
    probe: Probe,
    curate: bool = False,
    workers: int,
    timeout_s: float = TIMEOUT_S,
    engine: Engine = "local",
) -> list[ShardScan]:
    """Read all shards, on several processes.

    A remote shard is downloaded to a temporary folder while its videos are read.

    Args:
        probe, curate: see `IndexConfig`.
        log_file: keeps the results, so that a repeated command resumes.
        timeout_s, engine: see `imap_unordered`.

    Raises:
        StorageUnavailable: a shard cannot be read now.
        DataError: a shard is damaged, or a label is missing or invalid.
    """
    whole = [_Job(shard=shard, rules=rules, probe=probe, curate=curate) for shard in shards]
    jobs = {_key(part): part for job in whole for part in _parts(job, len(shards), workers)}
    logged = load_results(log_file, _parse)
    known = {key: scan for key, scan in logged.items() if key in jobs and not scan.failure}
    todo = [key for key in jobs if key not in known]
    new = [jobs[key] for key in todo]
    done = imap_unordered(_scan, new, workers=workers, on_failure=_failed, timeout_s=timeout_s, engine=engine)
    shown = progress(done, total=len(todo), what="index, parts of shards", unit="part")
    scans = collect_results(log_file, known, todo, shown)
    parts: dict[str, list[ShardScan]] = {shard.name: [] for shard in shards}
    for key, job in jobs.items():
        scan = scans[key]
        parts[job.shard.name].append(_scan_separately(job, workers, timeout_s) if scan.failure else scan)
    return [_joined(parts[shard.name], number) for number, shard in enumerate(shards)]


def _parts(job: _Job, shards: int, workers: int) -> list[_Job]:
    """Split a local shard in parts if there are fewer shards than processes and videos are decoded."""
    processes = workers or len(os.sched_getaffinity(0))
    parts = max(ceil(processes / shards), 1) if job.shard.place.path and _reads_videos(job.probe) else 1
    return [replace(job, part=part, parts=parts) for part in range(parts)]


def _joined(parts: list[ShardScan], number: int) -> ShardScan:
    samples = [replace(sample, shard=number) for part in parts for sample in part.samples]
    return replace(parts[0], samples=tuple(sorted(samples, key=lambda sample: (sample.offset, sample.key))))


def _scan(job: _Job) -> ShardScan:
    with (
        outage_errors(f"cannot read {job.shard.place}"),
        _local(job) as shard,
        open_shard(shard.place) as file,
    ):
        contents = read_shard(replace(shard, place=job.shard.place), job.rules, file)
        samples = [_scan_sample(file, job, sample) for sample in contents.samples[job.part :: job.parts]]
        return _shard_scan(job, file, contents, samples)


def _scan_separately(job: _Job, workers: int, timeout_s: float) -> ShardScan:
    """Repeat a job that crashed or timed out, with each sample in a separate process."""
    with _local(job) as shard, open_shard(shard.place) as file:
        contents = read_shard(shard, job.rules, file)
        total = len(contents.samples)
        singles = [replace(job, shard=shard, part=i, parts=total) for i in range(job.part, total, job.parts)]
        done = imap(_scan, singles, workers=workers, on_failure=_failed, timeout_s=timeout_s)
        samples = []
        for single, scan in zip(singles, done, strict=True):
            sample = contents.samples[single.part]
            if scan.failure:
                samples.append(_unreadable(sample.key, sample.video.name, scan.failure))
            else:
                samples += [row for row in scan.samples if row.key not in contents.skipped]
        return _shard_scan(job, file, contents, samples)


def _failed(job: _Job, reason: str) -> ShardScan:
    return ShardScan(failure=reason, unused={})


def _shard_scan(job: _Job, file: IO[bytes], contents: ShardContents, samples: list[SampleScan]) -> ShardScan:
    unused = dict(contents.unused)
    if job.part > 0:
        return ShardScan(samples=tuple(samples), unused=unused)
    samples = samples + [_unreadable(key, key, reason) for key, reason in contents.skipped.items()]
    if not _reads_videos(job.probe):
        return ShardScan(samples=tuple(samples), bytes=file.seek(0, os.SEEK_END), unused=unused)
    file.seek(0)
    sha256 = hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]
    return ShardScan(samples=tuple(samples), bytes=file.tell(), sha256=sha256, unused=unused)


def _reads_videos(probe: Probe) -> bool:
    return probe in ("full", "header")


def _unread_sample(job: _Job, sample: SampleInfo) -> SampleScan:
    """Take all columns from the .json of a sample, without its video; unknown ones stay empty."""
    row, stored = replace(_row(sample), info=_UNREAD), sample.stored
    if stored is not None:
        return _with_stored(replace(row, crc32=stored.crc32, info=stored.info), stored)
    if job.probe == "stored":
        raise DataError(
            f"{job.shard.place}, {sample.key}: expected {DESCRIPTION_KEY} in its .json, which `shard` "
            "writes, got none; fix: set probe=header, which reads the videos, or probe=none, which leaves "
            "frames and checksums unknown"
        )
    return row


def _row(sample: SampleInfo) -> SampleScan:
    return SampleScan(
        key=sample.key,
        name=sample.video.name,
        offset=sample.video.offset,
        length=sample.video.length,
        label=sample.label,
        group=sample.group,
        extra=dict(sample.extra),
    )


def _scan_sample(file: IO[bytes], job: _Job, sample: SampleInfo) -> SampleScan:
    if not _reads_videos(job.probe):
        return _unread_sample(job, sample)
    video = read_member(file, sample.video, f"{job.shard.place}, {sample.key}")
    content = hashlib.sha256(video).hexdigest()[:32]
    row, stored = replace(_row(sample), crc32=zlib.crc32(video), content=content), sample.stored
    if stored is not None:
        if stored.crc32 != row.crc32:
            return replace(row, reason=_CHANGED)
        row = _with_stored(row, stored)
    notes: list[str] = []
    stats = FrameStats(is_on=job.curate and not CURATION_COLUMNS.keys() <= row.extra.keys())
    try:
        info = probe(video, full=job.probe == "full", notes=notes, stats=stats)
    except BadVideo as error:
        return replace(row, reason=" ".join(str(error).split()))
    if stored is not None and (job.probe == "header" or stored.info.frames == info.frames):
        info = stored.info
    return replace(row, info=info, note="; ".join(notes), extra={**stats.columns(), **row.extra})


def _with_stored(row: SampleScan, stored: StoredRow) -> SampleScan:
    return replace(
        row,
        name=stored.name,
        content=stored.content,
        label_index=stored.label_index if stored.label is not None else None,
        start_s=stored.start_s,
        reference_stride=stored.reference_stride,
        reference_phase=stored.reference_phase,
        frame_step=stored.frame_step,
    )


def _unreadable(key: str, name: str, reason: str) -> SampleScan:
    return SampleScan(key=key, name=name, extra={}, reason=reason)


@contextmanager
def _local(job: _Job) -> Iterator[InputShard]:
    """The shard on this machine, downloaded if it is remote and its videos are read."""
    shard = job.shard
    if shard.place.path is not None or not _reads_videos(job.probe):
        yield shard
        return
    with tempfile.TemporaryDirectory(prefix="kinemae-index-") as folder:
        copy = Path(folder) / "shard.tar"
        shard.place.download(copy)
        yield replace(shard, place=location(copy))


def _key(job: _Job) -> str:
    """A key that changes if the shard or the rules change."""
    path = job.shard.place.path
    modified = path.stat().st_mtime_ns if path else 0
    place = [str(job.shard.place), job.shard.split, job.shard.place.size(), modified]
    rules = {each.name: getattr(job.rules, each.name) for each in fields(FieldRules)}
    return json.dumps([*place, rules, job.probe, job.curate, job.part, job.parts])


def _parse(entry: dict[str, Any]) -> ShardScan:
    samples = [
        SampleScan(**{**row, "info": VideoInfo(**row["info"]) if row["info"] else None})
        for row in entry.pop("samples")
    ]
    return ShardScan(samples=tuple(samples), **entry)
