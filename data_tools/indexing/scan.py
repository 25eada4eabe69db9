"""Every video of foreign shards read from end to end, once: checksums, digests, and what a decode finds."""

import hashlib
import json
import os
import tempfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from math import ceil
from pathlib import Path
from typing import IO, Any

from kinemae.data_tools.files import atomic_write_text, read_jsonl
from kinemae.data_tools.index import VideoInfo
from kinemae.data_tools.indexing.field_rules import Described, Rules, Shelf, read_shelf
from kinemae.data_tools.indexing.own_json import Told
from kinemae.data_tools.indexing.shard_list import ForeignShard, open_shard
from kinemae.data_tools.indexing.tar_members import read_member
from kinemae.data_tools.pool import TIMEOUT_S, imap
from kinemae.data_tools.progress import progress
from kinemae.data_tools.storage.location import location
from kinemae.data_tools.storage.retries import outage_errors
from kinemae.data_tools.stream.container import BadVideo
from kinemae.data_tools.stream.decode import probe

_OTHER_BYTES = "its bytes are not those that shard wrote: the checksum in its .json differs"


@dataclass(frozen=True, kw_only=True)
class FoundVideo:
    """A sample: the location of its video, its metadata and the result of a decode.

    Attributes:
        reason: the reason why it cannot be read.
        note: an anomaly of a readable video.
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
    extra: dict[str, Any]
    info: VideoInfo | None = None
    reason: str = ""
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Found:
    """A shard as it is: its samples in order, its size and the sha256 of it; `unread` as in `Shelf`."""

    shard: ForeignShard
    rows: tuple[FoundVideo, ...]
    bytes: int
    sha256: str
    unread: Mapping[str, int]


@dataclass(frozen=True, kw_only=True)
class _Job:
    """Every `parts`-th sample of a shard, from `part` on; the first part digests the whole shard as well."""

    shard: ForeignShard
    rules: Rules
    is_full: bool
    part: int
    parts: int


def examine_shards(
    shards: Sequence[ForeignShard],
    rules: Rules,
    journal: Path,
    *,
    is_full: bool,
    workers: int,
    timeout_s: float = TIMEOUT_S,
) -> list[Found]:
    """Read all shards, on several processes.

    A remote shard is downloaded to this machine's temporary folder for as long as it is read.

    Args:
        journal: a file of what is known already, so that a stopped run is continued.
        timeout_s: see `imap_unordered`.

    Raises:
        StorageUnavailable: a shard cannot be read now.
        DataError: a shard is damaged, or a label is missing or wrong.
    """
    jobs = [job for shard in shards for job in _jobs(shard, rules, is_full, len(shards), workers)]
    stamps = [_stamp(job) for job in jobs]
    known = _read_journal(journal, dict(zip(stamps, jobs, strict=True)))
    atomic_write_text(journal, "".join(_line(*entry) for entry in known.items()))
    todo = [position for position, stamp in enumerate(stamps) if stamp not in known]
    unknown = [jobs[position] for position in todo]
    results = imap(_examine, unknown, workers=workers, on_failure=_failed, timeout_s=timeout_s)
    with journal.open("a", encoding="utf-8") as file:
        shown = progress(results, total=len(todo), what="index, parts of shards", unit="part")
        for position, result in zip(todo, shown, strict=True):
            if isinstance(result, str):  # not written to the journal: another run may succeed
                known[stamps[position]] = _one_by_one(jobs[position], workers, timeout_s)
                continue
            known[stamps[position]] = result
            file.write(_line(stamps[position], result))
            file.flush()
    parts: dict[str, list[Found]] = {shard.name: [] for shard in shards}
    for job, stamp in zip(jobs, stamps, strict=True):
        parts[job.shard.name].append(known[stamp])
    return [_joined(shard, parts[shard.name]) for shard in shards]


def _jobs(shard: ForeignShard, rules: Rules, is_full: bool, shards: int, workers: int) -> list[_Job]:
    """Where there are fewer shards than processes, several share one; but none is downloaded twice."""
    processes = workers or len(os.sched_getaffinity(0))
    parts = max(ceil(processes / shards), 1) if shard.place.path else 1
    return [_Job(shard=shard, rules=rules, is_full=is_full, part=part, parts=parts) for part in range(parts)]


def _joined(shard: ForeignShard, parts: list[Found]) -> Found:
    """The parts of a shard, which took turns, in order again."""
    rows = [row for part in parts for row in part.rows]
    return replace(parts[0], shard=shard, rows=tuple(sorted(rows, key=lambda row: (row.offset, row.key))))


def _examine(job: _Job) -> Found:
    with (
        outage_errors(f"cannot read {job.shard.place}"),
        _local(job.shard) as shard,
        open_shard(shard.place) as file,
    ):
        shelf = read_shelf(replace(shard, place=job.shard.place), job.rules, file)
        rows = [_found(file, job, sample) for sample in shelf.described[job.part :: job.parts]]
        rows += _left_out(shelf) if job.part == 0 else []
        sha256, size = _digest(file) if job.part == 0 else ("", 0)
    unread = dict(shelf.unread)
    return Found(shard=job.shard, rows=tuple(rows), bytes=size, sha256=sha256, unread=unread)


def _found(file: IO[bytes], job: _Job, sample: Described) -> FoundVideo:
    video = read_member(file, sample.video, f"{job.shard.place}, {sample.key}")
    row = FoundVideo(
        key=sample.key,
        name=sample.video.name,
        offset=sample.video.offset,
        length=sample.video.length,
        crc32=zlib.crc32(video),
        content=hashlib.sha256(video).hexdigest()[:32],
        label=sample.label,
        group=sample.group,
        extra=dict(sample.extra),
    )
    if sample.told is not None:
        row = _as_told(row, sample.told)
    if row.reason:
        return row
    notes: list[str] = []
    try:
        info = probe(video, full=job.is_full, notes=notes)
    except BadVideo as error:
        return replace(row, reason=" ".join(str(error).split()))
    is_known = sample.told is not None and (not job.is_full or sample.told.info.frames == info.frames)
    info = sample.told.info if sample.told is not None and is_known else info
    return replace(row, info=info, note="; ".join(notes))


def _as_told(row: FoundVideo, told: Told) -> FoundVideo:
    """The index row that `shard` wrote, if the video is unchanged."""
    if row.crc32 != told.crc32:
        return replace(row, reason=_OTHER_BYTES)
    return replace(
        row,
        name=told.name,
        content=told.content,
        label_index=told.label_index if told.label is not None else None,
        start_s=told.start_s,
        reference_stride=told.reference_stride,
        reference_phase=told.reference_phase,
    )


def _digest(file: IO[bytes]) -> tuple[str, int]:
    file.seek(0)
    sha256 = hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]
    return sha256, file.tell()


@contextmanager
def _local(shard: ForeignShard) -> Iterator[ForeignShard]:
    if shard.place.path is not None:
        yield shard
        return
    with tempfile.TemporaryDirectory(prefix="kinemae-index-") as folder:
        copy = Path(folder) / "shard.tar"
        shard.place.download(copy)
        yield replace(shard, place=location(copy))


def _failed(job: _Job, reason: str) -> Found | str:
    """One of its videos crashed or blocked the process; `_one_by_one` finds it."""
    return reason


def _one_by_one(job: _Job, workers: int, timeout_s: float) -> Found:
    """Repeat a job that crashed or blocked, with each sample in a separate process."""
    with _local(job.shard) as shard, open_shard(shard.place) as file:
        shelf = read_shelf(shard, job.rules, file)
        total = len(shelf.described)
        singles = [replace(job, shard=shard, part=i, parts=total) for i in range(job.part, total, job.parts)]
        rows = _left_out(shelf) if job.part == 0 else []
        done = imap(_examine, singles, workers=workers, on_failure=_failed, timeout_s=timeout_s)
        for single, found in zip(singles, done, strict=True):
            sample = shelf.described[single.part]
            if isinstance(found, str):
                rows.append(FoundVideo(key=sample.key, name=sample.video.name, extra={}, reason=found))
            else:
                rows += [row for row in found.rows if row.key not in shelf.left_out]
        sha256, size = _digest(file) if job.part == 0 else ("", 0)
    unread = dict(shelf.unread)
    return Found(shard=job.shard, rows=tuple(rows), bytes=size, sha256=sha256, unread=unread)


def _left_out(shelf: Shelf) -> list[FoundVideo]:
    return [FoundVideo(key=key, name=key, extra={}, reason=why) for key, why in shelf.left_out.items()]


def _stamp(job: _Job) -> str:
    """Names a job as long as its shard and the rules stay the same."""
    path = job.shard.place.path
    changed = path.stat().st_mtime_ns if path else 0
    size = job.shard.place.size()
    place = [str(job.shard.place), job.shard.split, size, changed]
    return json.dumps([*place, asdict(job.rules), job.is_full, job.part, job.parts])


def _line(stamp: str, found: Found) -> str:
    rows = [asdict(row) for row in found.rows]
    entry = {
        "shard": stamp,
        "rows": rows,
        "bytes": found.bytes,
        "sha256": found.sha256,
        "unread": found.unread,
    }
    return json.dumps(entry) + "\n"


def _read_journal(journal: Path, jobs: dict[str, _Job]) -> dict[str, Found]:
    """What an earlier run has found of these jobs, less the line in which it was killed."""
    known = {}
    for entry in read_jsonl(journal):
        if entry["shard"] in jobs:
            known[entry["shard"]] = Found(
                shard=jobs[entry["shard"]].shard,
                rows=tuple(_row(row) for row in entry["rows"]),
                bytes=entry["bytes"],
                sha256=entry["sha256"],
                unread=entry["unread"],
            )
    return known


def _row(row: dict[str, Any]) -> FoundVideo:
    info = VideoInfo(**row["info"]) if row["info"] else None
    return FoundVideo(**{**row, "info": info})
