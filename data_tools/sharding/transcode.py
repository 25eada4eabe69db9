"""Every video decoded once from end to end, and in that pass checked and stored as its layout says.

Processes do this side by side. What a video became is a line in a journal, written when its files are on the
disk, so that a run that was killed goes on where it was.
"""

import json
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path

from kinemae.data_tools.encoding.source_decoder import content_digest, fetch
from kinemae.data_tools.files import atomic_write_text, read_blocks, read_jsonl
from kinemae.data_tools.index import VideoInfo
from kinemae.data_tools.layouts.base import EncodedSample, Job, Layout
from kinemae.data_tools.manifest.videos import SourceVideo
from kinemae.data_tools.pool import TIMEOUT_S, imap_unordered
from kinemae.data_tools.progress import progress
from kinemae.data_tools.sharding.source_state import source_states
from kinemae.data_tools.storage.retries import OUTAGE_S, retry_during_outage
from kinemae.data_tools.stream.container import BadVideo

JOURNAL_NAME = "checked.jsonl"
SPOOL_NAME = "spool"


@dataclass(frozen=True, kw_only=True)
class Stored:
    """A sample whose bytes are on the disk: in the spool, or in the original itself.

    Attributes:
        length, crc32: of its bytes.
        The others are those of `EncodedSample`.
    """

    key: str
    is_spooled: bool
    ending: str
    length: int
    crc32: int
    info: VideoInfo
    start_s: float
    reference_stride: int
    reference_phase: int


@dataclass(frozen=True, kw_only=True)
class TranscodeResult:
    """What became of one video.

    Attributes:
        samples: none where the video cannot be used; `reason` says why.
        content: names the original's bytes.
        note: what is odd about it, though it can be used.
        is_final: whether another run would give the same result; if not, it tries the video again.
    """

    samples: tuple[Stored, ...] = ()
    content: str = ""
    reason: str = ""
    note: str = ""
    is_final: bool = True


@dataclass(frozen=True, kw_only=True)
class _LayoutJob:
    """One video's work, as it is sent to a process."""

    layout: Layout
    job: Job


def transcode(
    jobs: Sequence[Job],
    layout: Layout,
    work: Path,
    *,
    workers: int,
    is_sharded: Callable[[str], bool],
    timeout_s: float = TIMEOUT_S,
) -> list[TranscodeResult]:
    """Store all videos, and say in their order what became of each.

    Args:
        work: the folder of the journal and the spool; an entry of the journal holds as long as the
            original's size and time are the same and its files lie in the spool.
        is_sharded: whether a finished shard holds the sample of a key, which need not be in the spool then.
        timeout_s: see `imap_unordered`.

    Raises:
        StorageUnavailable: an original cannot be read now; the video is not rejected.
        Stuck: many videos in a row timed out.
    """
    spool = work / SPOOL_NAME
    spool.mkdir(parents=True, exist_ok=True)
    for leftover in spool.glob("*.partial"):
        leftover.unlink()
    journal = work / JOURNAL_NAME
    known = _still_known(journal, spool, is_sharded)
    states = source_states([job.video for job in jobs])
    stamps = [state.stamp for state in states]
    unknown = [position for position, stamp in enumerate(stamps) if stamp not in known]
    # The longest first, so that no process is left alone with one at the end.
    unknown.sort(key=lambda position: -states[position].size)
    layout_jobs = [
        _LayoutJob(layout=layout, job=replace(jobs[position], folder=spool)) for position in unknown
    ]
    atomic_write_text(journal, "".join(_line(*entry) for entry in known.items()))  # drops a partial last line
    with journal.open("a", encoding="utf-8") as file:
        done = imap_unordered(_lay_out, layout_jobs, workers=workers, on_failure=_failed, timeout_s=timeout_s)
        for place, result in progress(done, total=len(layout_jobs), what="store"):
            stamp = stamps[unknown[place]]
            known[stamp] = result
            file.write(_line(stamp, result))
            file.flush()
    return [known[stamp] for stamp in stamps]


def _still_known(journal: Path, spool: Path, is_sharded: Callable[[str], bool]) -> dict[str, TranscodeResult]:
    return {
        stamp: result
        for stamp, result in _read_journal(journal).items()
        if all(_is_there(sample, spool, is_sharded) for sample in result.samples)
    }


def forget_rejected(work: Path) -> None:
    """Let the next `transcode` try all videos again that were rejected."""
    journal = work / JOURNAL_NAME
    known = _read_journal(journal).items()
    atomic_write_text(journal, "".join(_line(*entry) for entry in known if not entry[1].reason))


def _lay_out(layout_job: _LayoutJob) -> TranscodeResult:
    return retry_during_outage(lambda: _lay_out_now(layout_job), outage_s=OUTAGE_S)


def _lay_out_now(layout_job: _LayoutJob) -> TranscodeResult:
    job = replace(layout_job.job, notes=[])
    made: list[Stored] = []
    try:
        with _at_hand(job) as video:
            content = _digest(video)
            for sample in layout_job.layout.encode(replace(job, video=video)):
                if sample.file is None and job.video.url:
                    sample = replace(
                        sample, file=video.path.rename(job.folder / f"{sample.key}.{sample.ending}")
                    )
                made.append(_stored(sample, video))
    except BadVideo as error:
        for sample in made:
            stored_file(sample, job.folder).unlink(missing_ok=True)
        return TranscodeResult(reason=" ".join(str(error).split()))
    return TranscodeResult(samples=tuple(made), content=content, note="; ".join(job.notes))


@contextmanager
def _at_hand(job: Job) -> Iterator[SourceVideo]:
    """The video, fetched once if it is remote."""
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


def stored_file(sample: Stored, spool: Path) -> Path:
    """Where a sample lies in the spool."""
    return spool / f"{sample.key}.{sample.ending}"


def _stored(sample: EncodedSample, video: SourceVideo) -> Stored:
    offset, length = (video.member if sample.file is None else None) or (0, None)
    crc32 = taken = 0
    for block in read_blocks(sample.file or video.path, offset, length):
        crc32, taken = zlib.crc32(block, crc32), taken + len(block)
    return Stored(
        key=sample.key,
        is_spooled=sample.file is not None,
        ending=sample.ending,
        length=taken,
        crc32=crc32,
        info=sample.info,
        start_s=sample.start_s,
        reference_stride=sample.reference_stride,
        reference_phase=sample.reference_phase,
    )


def _failed(layout_job: _LayoutJob, reason: str) -> TranscodeResult:
    """The result for a crash or time-out, whose cause may be outside of the video."""
    return TranscodeResult(reason=reason, is_final=False)


def _digest(video: SourceVideo) -> str:
    """Parts of one long video ask for the same digest again and again."""
    if video.frames or video.member is not None:
        return content_digest(video)
    [state] = source_states([replace(video, name="", start_s=None, end_s=None)])
    return _file_digest(video.path, state.stamp)


@lru_cache(maxsize=256)
def _file_digest(path: Path, stamp: str) -> str:
    return content_digest(SourceVideo(path=path, name=path.name))


def _is_there(sample: Stored, spool: Path, is_sharded: Callable[[str], bool]) -> bool:
    if not sample.is_spooled or is_sharded(sample.key):
        return True
    file = stored_file(sample, spool)
    return file.is_file() and file.stat().st_size == sample.length


def _line(stamp: str, result: TranscodeResult) -> str:
    return json.dumps({"video": stamp, **asdict(result)}) + "\n"


def _read_journal(journal: Path) -> dict[str, TranscodeResult]:
    known = {}
    for entry in read_jsonl(journal):
        stamp = entry.pop("video")
        samples = [
            Stored(**{**sample, "info": VideoInfo(**sample["info"])}) for sample in entry.pop("samples")
        ]
        result = TranscodeResult(samples=tuple(samples), **entry)
        if result.is_final:
            known[stamp] = result
    return known
