"""Lists of rejected and noted videos: rejected.jsonl, notes.jsonl, and the limit of rejects."""

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from kinemae.data_tools.command import DataError, log

NOTES_NAME = "notes.jsonl"
_MAX_REASONS = 5  # in the log

# A line of rejected.jsonl: path and reason; for `index` the shard; is_final=False for a temporary cause.
# A line of notes.jsonl: path and note; for `index` the shard.
Entry = Mapping[str, Any]


def check_rejects(rejected: Sequence[Entry], total: int, max_bad_fraction: float, log_file: object) -> None:
    """Log the rejected videos, and stop if there are too many.

    Args:
        total: number of all videos.
        log_file: the file with all results, for the messages.

    Raises:
        DataError: no video is readable, or the rejected fraction is above the limit.
    """
    if not rejected:
        return
    first = f"first {_name(rejected[0])}: {rejected[0]['reason']}"
    examples = {_pattern(entry["reason"]): entry["reason"] for entry in reversed(rejected)}
    for pattern, count in list(count_reasons(entry["reason"] for entry in rejected).items())[:_MAX_REASONS]:
        more = ", the first of them" if count > 1 and examples[pattern] != pattern else ""
        log.info("rejected %d%s: %s", count, more, examples[pattern])
    warn_of_temporary(rejected)
    if len(rejected) == total:
        raise DataError(
            f"{log_file}: expected readable videos, got none of {total}, {first}; fix: see the reasons there"
        )
    if len(rejected) > max_bad_fraction * total:
        raise DataError(
            f"max_bad_fraction={max_bad_fraction}: expected at most this fraction of unreadable videos, got "
            f"{len(rejected)} of {total}, {first}; fix: repair or remove those in {log_file}, or raise it"
        )
    log.warning("%d of %d videos are rejected, %s; see %s", len(rejected), total, first, log_file)


def warn_of_notes(notes: Sequence[Entry], file: object) -> None:
    """Log the number of videos with an anomaly and the first one."""
    if notes:
        first = f"{_name(notes[0])}: {notes[0]['note']}"
        log.warning("%d videos have anomalies, first %s; see %s", len(notes), first, file)


def warn_of_temporary(rejected: Sequence[Entry]) -> None:
    """Log how many videos were rejected for a temporary cause."""
    temporary = [entry for entry in rejected if not entry.get("is_final", True)]
    if temporary:
        log.warning(
            "%d videos were rejected for a temporary cause, first %s: %s; retry_rejected=true tries them "
            "again",
            *(len(temporary), _name(temporary[0]), temporary[0]["reason"]),
        )


def count_reasons(reasons: Iterable[str]) -> dict[str, int]:
    """Count reasons, with numbers replaced by N, the most frequent first."""
    return dict(Counter(map(_pattern, reasons)).most_common())


def read_entries(text: str) -> list[dict[str, Any]]:
    """Parse the text of a rejected.jsonl or notes.jsonl."""
    return [json.loads(line) for line in text.split("\n") if line]


def _name(entry: Entry) -> str:
    return f"{entry['path']} in {entry['shard']}" if "shard" in entry else str(entry["path"])


def _pattern(reason: str) -> str:
    return re.sub(r"[0-9]+([.][0-9]+)?", "N", reason)
