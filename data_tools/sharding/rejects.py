"""What `data_tools shard` says of videos that it leaves out or wonders about."""

import json
import re
from collections import Counter
from collections.abc import Sequence

from kinemae.data_tools.command import DataError, log
from kinemae.data_tools.files import to_jsonl
from kinemae.data_tools.manifest.videos import SourceVideo
from kinemae.data_tools.sharding.transcode import TranscodeResult

NOTES_NAME = "notes.jsonl"
_MOST_REASONS = 5  # in the log

Found = Sequence[tuple[SourceVideo, TranscodeResult]]


def rejected_lines(found: Found) -> str:
    """rejected.jsonl: path and reason of every video that is left out, and whether the cause may pass."""
    return to_jsonl(
        {"path": video.name, "reason": result.reason, **({} if result.is_final else {"is_final": False})}
        for video, result in found
        if result.reason
    )


def hint_at_retry(lines: str) -> None:
    """Log how many videos of a rejected.jsonl were left out for a cause that may pass."""
    entries = [json.loads(line) for line in lines.splitlines()]
    passing = [entry for entry in entries if not entry.get("is_final", True)]
    if passing:
        log.warning(
            "%d videos were left out for a cause that may pass, first %s: %s; retry_rejected=true tries "
            "them again",
            *(len(passing), passing[0]["path"], passing[0]["reason"]),
        )


def note_lines(found: Found) -> str:
    """notes.jsonl: path and note of every video that is odd and nevertheless taken."""
    return to_jsonl({"path": video.name, "note": result.note} for video, result in found if result.note)


def count_reasons(lines: str) -> dict[str, int]:
    """How often each reason stands in a rejected.jsonl; their numbers left out, the most frequent first."""
    reasons = [json.loads(line)["reason"] for line in lines.splitlines()]
    return dict(Counter(map(_pattern, reasons)).most_common())


def _pattern(reason: str) -> str:
    """A reason without its numbers."""
    return re.sub(r"[0-9]+([.][0-9]+)?", "N", reason)


def check_rejects(found: Found, max_bad_fraction: float, where: str) -> None:
    """Log what is left out, and stop where that is too much.

    Raises:
        DataError: no video can be used, or fewer than the config allows.
    """
    bad = [(video, result) for video, result in found if result.reason]
    odd = [(video, result) for video, result in found if result.note]
    if odd:
        first = f"{odd[0][0].name}: {odd[0][1].note}"
        log.warning("%d videos are taken with a note, first %s; see %s", len(odd), first, NOTES_NAME)
    if not bad:
        return
    first = f"first {bad[0][0].name}: {bad[0][1].reason}"
    examples = {_pattern(result.reason): result.reason for _, result in reversed(bad)}
    for pattern, count in list(count_reasons(rejected_lines(bad)).items())[:_MOST_REASONS]:
        alike = ", the first of them" if count > 1 and examples[pattern] != pattern else ""
        log.info("left out %d%s: %s", count, alike, examples[pattern])
    hint_at_retry(rejected_lines(bad))
    if len(bad) == len(found):
        raise DataError(f"none of the {len(found)} videos can be read, {first}; all are listed in {where}")
    if len(bad) > max_bad_fraction * len(found):
        raise DataError(
            f"{len(bad)} of {len(found)} videos cannot be read, more than max_bad_fraction="
            f"{max_bad_fraction}, {first}; mend or remove those in {where}, or raise max_bad_fraction"
        )
    log.warning("%d of %d videos cannot be read, %s; see %s", len(bad), len(found), first, where)


def warn_of_gaps(splits: dict[str, list[SourceVideo]], classes: Sequence[str]) -> None:
    """Log the classes that a split lacks."""
    for split, videos in splits.items():
        present = {video.label for video in videos if video.label is not None}
        absent = [label for label in classes if label not in present]
        if present and absent:
            log.warning("%s has no video of %d classes, first %s", split, len(absent), absent[0])
