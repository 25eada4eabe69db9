"""Labelled segments of videos: a text column of the index with JSON.

A cell is a list of segments, with times in seconds from the start of the sample. These forms are equal:

    [[1.5, 3.0, "jump"]]                               start, end, label
    [[[1.5, 3.0], "jump"]]                             segment, label
    [{"start": 1.5, "end": 3.0, "label": "jump"}]
    [{"segment": [1.5, 3.0], "label": "jump"}]         as in ActivityNet's annotations

An empty list is a video without events. A missing cell is a video without annotation.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from kinemae.data_tools.command import DataError
from kinemae.data_tools.config import require
from kinemae.data_tools.index import ShardIndex
from kinemae.data_tools.stream.frame_sampling import ClipConfig

SEGMENT_COLUMN = "segment"  # of `segments_as_samples`
_FORM = '[[start_s, end_s, "label"], ...]'


@dataclass(frozen=True, kw_only=True)
class Segments:
    """The E segments of one video, in their order in the cell.

    Attributes:
        time_E2: float64, start and end in seconds from the start of the sample.
        labels: one per segment.
    """

    time_E2: np.ndarray
    labels: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.labels)

    def as_json(self) -> str:
        """Return the segments as the text of a cell."""
        rows = zip(self.time_E2.tolist(), self.labels, strict=True)
        return json.dumps([[*time_2, label] for time_2, label in rows], ensure_ascii=False)


def read_segments(index: ShardIndex, column: str, *, key: str) -> list[Segments | None]:
    """Read and check the segments of all samples; None for a missing cell.

    A segment may end one frame after the video, because annotations and containers round times; it is
    shortened to the video.

    Args:
        key: config key and folder of the data, for messages.

    Raises:
        DataError: no such column, a cell of another form, times outside the video or in the wrong order, or
            no segment at all. The message names the first wrong sample.
    """
    if column not in index.extra:
        known = ", ".join(index.extra) or "none"
        raise DataError(
            f"{key}: expected a column {column} of segments, got none; fix: choose one of the extra columns: "
            f"{known}"
        )
    durations_s, frames = index.column("duration_s"), index.column("frames")
    found: list[Segments | None] = []
    for position, cell in enumerate(index.arrow_column(column).to_pylist()):
        try:
            segments = None if cell is None else parse_segments(cell)
            if segments is not None:
                duration_s = float(durations_s[position])
                segments = _within(segments, duration_s, tolerance_s=duration_s / int(frames[position]))
        except ValueError as error:
            sample = index.sample(position)
            raise DataError(
                f"{key}: expected segments {_FORM} in the column {column}, got {error} in {sample.key} "
                f"({sample.name}); fix: correct this cell, and shard or index again"
            ) from error
        found.append(segments)
    if not any(found):
        raise DataError(
            f"{key}: expected segments in the column {column}, got none in {len(index)} videos; "
            "fix: choose another column"
        )
    return found


def parse_segments(cell: Any) -> Segments:
    """Parse one cell.

    Raises:
        ValueError: it has another form; the message is for the place of "got ...".
    """
    if not isinstance(cell, str):
        raise ValueError(f"{cell!r}, not text")
    try:
        content = json.loads(cell)
    except json.JSONDecodeError as error:
        raise ValueError(f"text that is not JSON ({error})") from error
    if not isinstance(content, list):
        raise ValueError(f"{_short(content)}, not a list")
    rows = [_parse_one(each) for each in content]
    time_E2 = np.array([row[:2] for row in rows], dtype=np.float64).reshape(-1, 2)
    return Segments(time_E2=time_E2, labels=tuple(label for _, _, label in rows))


class Event(NamedTuple):
    """One segment, with the position of its sample in the index."""

    position: int
    start_s: float
    end_s: float
    label: str


def iterate_events(segments: Sequence[Segments | None]) -> Iterator[Event]:
    """Iterate over the segments of all samples, in order."""
    for position, each in enumerate(segments):
        if each is not None:
            for (start_s, end_s), label in zip(each.time_E2.tolist(), each.labels, strict=True):
                yield Event(position, start_s, end_s, label)


def class_names(segments: Sequence[Segments | None]) -> tuple[str, ...]:
    """The sorted distinct labels."""
    return tuple(sorted({label for each in segments if each is not None for label in each.labels}))


def class_numbers_of(
    segments: Sequence[Segments | None], classes: Sequence[str], index: ShardIndex, column: str, *, key: str
) -> list[np.ndarray]:
    """The class of every segment as its number in `classes`, int64; one array per sample.

    Raises:
        DataError: a label that is not a class of the training data.
    """
    number_of = {name: number for number, name in enumerate(classes)}
    numbers = []
    for position, each in enumerate(segments):
        labels = each.labels if each is not None else ()
        unknown = [label for label in labels if label not in number_of]
        if unknown:
            sample = index.sample(position)
            raise DataError(
                f"{key}: expected segments of the {len(classes)} classes of the training data in the column "
                f"{column}, got {unknown[0]!r} in {sample.key} ({sample.name}); "
                "fix: add training videos of this class, or remove its segments"
            )
        numbers.append(np.array([number_of[label] for label in labels], dtype=np.int64))
    return numbers


def segments_as_samples(index: ShardIndex, column: str, *, key: str) -> ShardIndex:
    """Return a view with one sample per segment: its time window, and its label in the column "segment".

    Raises:
        DataError: see `read_segments`.
    """
    events = list(iterate_events(read_segments(index, column, key=key)))
    return index.view(
        [event.position for event in events],
        window_s=[(event.start_s, event.end_s) for event in events],
        columns={SEGMENT_COLUMN: [event.label for event in events]},
    )


def check_holds(clip: ClipConfig) -> None:
    """Reject clips that repeat a short video, whose times are not in order.

    Raises:
        ValueError: clip.short_video is "loop".
    """
    require(clip.short_video == "hold", "clip.short_video", "be hold for labels over time", clip.short_video)


def _parse_one(content: Any) -> tuple[float, float, str]:
    if isinstance(content, dict):
        content = [content.get("segment", [content.get("start"), content.get("end")]), content.get("label")]
    parts = content if isinstance(content, list) else []
    if len(parts) == 2 and isinstance(parts[0], list):
        parts = [*parts[0], parts[1]]
    if len(parts) != 3 or not all(_is_number(each) for each in parts[:2]) or not _is_label(parts[2]):
        raise ValueError(_short(content))
    return float(parts[0]), float(parts[1]), str(parts[2])


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_label(value: Any) -> bool:
    return isinstance(value, str | int) and not isinstance(value, bool) and value != ""


def _within(segments: Segments, duration_s: float, *, tolerance_s: float) -> Segments:
    for (start_s, end_s), label in zip(segments.time_E2.tolist(), segments.labels, strict=True):
        if not 0 <= start_s < end_s:  # true for NaN
            raise ValueError(f"{label!r} from {start_s:g} to {end_s:g} s, which is not 0 <= start < end")
        if not end_s <= duration_s + tolerance_s or start_s >= duration_s:
            raise ValueError(
                f"{label!r} from {start_s:g} to {end_s:g} s, beyond the video's end at {duration_s:g} s"
            )
    return Segments(time_E2=segments.time_E2.clip(max=duration_s), labels=segments.labels)


def _short(content: Any) -> str:
    text = json.dumps(content, ensure_ascii=False)
    return text if len(text) <= 80 else f"{text[:80]}..."
