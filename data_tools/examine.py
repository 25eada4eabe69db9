"""Every video decoded once from end to end before it may enter a shard."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from data_tools.files import write_whole
from data_tools.index import VideoInfo
from data_tools.pool import map_in_order, progress
from data_tools.sources.base import SourceVideo
from data_tools.stream.decode import BadVideo, probe


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What became of one video: what it is, or the reason why it cannot be used."""

    info: VideoInfo | None = None
    reason: str = ""


def examine(videos: Sequence[SourceVideo], journal: Path, *, workers: int) -> list[Finding]:
    """Probe all videos, in order.

    Args:
        journal: a file of what is known already, so that a stopped run is continued, not repeated. An
            entry holds as long as the file's size and time are the same.
    """
    known = _read_journal(journal)
    stamps = [_stamp(video) for video in videos]
    unknown = [position for position, stamp in enumerate(stamps) if stamp not in known]
    paths = [videos[position].path for position in unknown]
    _rewrite_journal(journal, known)
    with journal.open("a", encoding="utf-8") as file:
        found = map_in_order(_probe_file, paths, workers=workers, on_crash=_crashed)
        shown = progress(found, total=len(paths), what="check")
        for position, finding in zip(unknown, shown, strict=True):
            known[stamps[position]] = finding
            file.write(_line(stamps[position], finding))
            file.flush()
    return [known[stamp] for stamp in stamps]


def _probe_file(path: Path) -> Finding:
    try:
        return Finding(info=probe(path))
    except BadVideo as error:
        return Finding(reason=" ".join(str(error).split()))


def _crashed(path: Path) -> Finding:
    return Finding(reason="the decoder crashed on it")


def _stamp(video: SourceVideo) -> str:
    try:
        status = video.path.stat()
    except OSError:
        return f"{video.name} missing"
    return f"{video.name} {status.st_size} {status.st_mtime_ns}"


def _line(stamp: str, finding: Finding) -> str:
    return json.dumps({"video": stamp, **asdict(finding)}) + "\n"


def _rewrite_journal(journal: Path, known: dict[str, Finding]) -> None:
    """Drop a half line that a killed run left at the end."""
    write_whole(journal, "".join(_line(*entry) for entry in known.items()))


def _read_journal(journal: Path) -> dict[str, Finding]:
    known = {}
    for line in journal.read_text(encoding="utf-8").splitlines() if journal.exists() else ():
        try:
            entry = json.loads(line)
        except json.JSONDecodeError:
            break  # the line that was being written when the run was killed
        info = VideoInfo(**entry["info"]) if entry["info"] else None
        known[entry["video"]] = Finding(info=info, reason=entry["reason"])
    return known
