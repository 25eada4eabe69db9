"""Tables and charts from the index and its lists: totals, histograms, columns, rejected files."""

import json
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from kinemae.data_tools.curation.frame_stats import COLUMNS
from kinemae.data_tools.index import NO_LABEL
from kinemae.data_tools.report.collection import Collection
from kinemae.data_tools.report.figures import Histogram, Ranking, histogram, ranking, short
from kinemae.data_tools.report.sampled_videos import SampledVideos
from kinemae.data_tools.sharding.rejects import count_reasons
from kinemae.data_tools.storage.location import Location

_VALUES_SHOWN = 10
_EXAMPLES = 5
_CURATION = {
    "motion": ("Motion", "grey levels"),
    "static_share": ("Static share", ""),
    "sharpness": ("Sharpness", ""),
    "text_overlay": ("Text overlay", ""),
    "scene_cuts": ("Scene cuts", ""),
}


def split_row(collection: Collection, number: int) -> dict[str, Any]:
    """The totals of one data set."""
    index = collection.indexes[number]
    duration_s = index.column("duration_s")
    byte_count = index.shards.bytes
    return {
        "name": collection.splits[number] or collection.name,
        "videos": len(index),
        "seconds": float(duration_s.sum()),
        "median_s": float(np.median(duration_s)),
        "frames": int(index.column("frames").sum(dtype=np.int64)),
        "bytes": byte_count,
        "shards": len(index.shards),
        "labelled": int((index.column("label") != NO_LABEL).sum()),
        "fingerprint": index.fingerprint,
    }


def histograms(sampled: SampledVideos) -> list[Histogram]:
    """Histograms of lengths, sizes and rates of every video, and of curation columns.

    Without these columns, the motion of the decoded videos is shown.
    """
    collection = sampled.collection
    duration_s, frames = collection.columns("duration_s"), collection.columns("frames")
    rates = [count / np.maximum(time_s, 1e-9) for count, time_s in zip(frames, duration_s, strict=True)]
    short_side = [np.minimum(*pair) for pair in _frame_sizes(collection)]
    shape = [width / height for width, height in _frame_sizes(collection)]
    charts = [
        histogram("Length", "s", duration_s),
        histogram("Frame rate", "fps", rates),
        histogram("Short side", "px", short_side),
        histogram("Aspect ratio", "", shape),
        histogram("File size", "kB", [length / 1000 for length in collection.columns("length")]),
    ]
    stored = _curation_charts(collection)
    readable = sampled.readable
    if readable and not stored:
        motion = np.array([sampled.stats[row].motion for row in readable])
        split = collection.split_numbers(readable)
        by_split = [motion[split == number] for number in range(len(collection.splits))]
        charts.append(histogram("Motion", "grey levels", by_split))
    return charts + stored


def _curation_charts(collection: Collection) -> list[Histogram]:
    """Histograms of the curation columns of every video, if all data sets have them."""
    if not all(name in index.extra for index in collection.indexes for name in COLUMNS):
        return []
    charts = []
    for name, (title, unit) in _CURATION.items():
        columns = [column.astype(np.float64) for column in collection.columns(name)]
        charts.append(histogram(title, unit, [column[~np.isnan(column)] for column in columns]))
    return charts


def rankings(collection: Collection) -> list[Ranking]:
    """Codecs and frame sizes by frequency."""
    codecs, codes = collection.encoded("codec")
    counts_SX = np.stack([np.bincount(of_split, minlength=len(codecs)) for of_split in codes])
    found = [ranking("Codecs", codecs.to_pylist(), counts_SX, shown=_VALUES_SHOWN)]
    sizes = [width.astype(np.int64) << 32 | height for width, height in _frame_sizes(collection)]
    values = np.unique(np.concatenate([np.unique(of_split) for of_split in sizes]))
    counts_SX = np.stack(
        [np.bincount(np.searchsorted(values, of_split), minlength=len(values)) for of_split in sizes]
    )
    names = [f"{value >> 32} x {value & 0xFFFFFFFF}" for value in values.tolist()]
    found.append(ranking("Frame sizes", names, counts_SX, shown=_VALUES_SHOWN))
    return found


def class_counts(collection: Collection) -> tuple[list[str], np.ndarray]:
    """Classes of all splits, and their numbers of videos, one row per split."""
    names = list(dict.fromkeys(name for index in collection.indexes for name in index.classes))
    place = {name: number for number, name in enumerate(names)}
    counts_SX = np.zeros((len(collection.indexes), len(names)), dtype=np.int64)
    for row, index in zip(counts_SX, collection.indexes, strict=True):
        labels = index.column("label")
        of_class = np.bincount(labels[labels != NO_LABEL], minlength=len(index.classes))
        np.add.at(row, [place[name] for name in index.classes], of_class)
    return names, counts_SX


def listed_files(folder: Location, collection: Collection, name: str, key: str) -> list[tuple[str, str]]:
    """Files of a list that sharding wrote, with reasons or notes.

    Args:
        name: of the JSON lines file, in the folder or else in the folders of the data sets.
        key: of the reason or note.
    """
    places = [folder / name]
    if not places[0].exists():
        places = [index.folder / name for index in collection.indexes]
    entries = []
    for place in places:
        if place.exists():
            text = place.read().decode("utf-8", "replace")
            entries += [_entry(line, key) for line in text.split("\n") if line]
    return entries


def reasons(entries: Sequence[tuple[str, str]]) -> list[tuple[str, int]]:
    """Reasons and their counts, most frequent first. Numbers inside a reason are ignored."""
    return list(count_reasons(reason for _, reason in entries).items())


def flattened(value: Any, prefix: str = "") -> list[tuple[str, str]]:
    """Flatten a nested mapping to dotted names and texts."""
    if isinstance(value, dict) and value:
        pairs = (
            flattened(child, f"{prefix}.{name}" if prefix else str(name)) for name, child in value.items()
        )
        return [pair for group in pairs for pair in group]
    return [(prefix, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))]


def extra_columns(collection: Collection) -> list[dict[str, str]]:
    """The extra columns of the source: split, type, number of values, range or most frequent values."""
    rows = []
    for split, index in zip(collection.splits, collection.indexes, strict=True):
        for name in index.extra:
            column = index.arrow_column(name)
            filled = len(column) - column.null_count
            kind = {"string": "text", "int64": "integer", "double": "number"}[str(column.type)]
            described = _values(index.column(name), kind) if filled else "none"
            rows.append(
                {
                    "name": name,
                    "split": split,
                    "kind": kind,
                    "filled": f"{filled:,} of {len(column):,}",
                    "values": described,
                }
            )
    return rows


def origin(collection: Collection) -> list[tuple[str, list[tuple[str, str]]]]:
    """The configs of the data sets as names and values; equal configs are listed once."""
    configs: dict[str, list[str]] = {}
    for split, index in zip(collection.splits, collection.indexes, strict=True):
        made_by = {name: value for name, value in index.made_by.items() if name != "split"}
        configs.setdefault(json.dumps(made_by, sort_keys=True), []).append(split or collection.name)
    return [(", ".join(splits), flattened(json.loads(text))) for text, splits in configs.items()]


def reference_frames(collection: Collection) -> list[tuple[int, int]]:
    """(stride, number of videos whose every stride-th frame decodes without the frames between)."""
    strides = np.concatenate(collection.columns("reference_stride"))
    return [
        (int(stride), int(count))
        for stride, count in zip(*np.unique(strides, return_counts=True), strict=True)
    ]


def _frame_sizes(collection: Collection) -> list[tuple[np.ndarray, np.ndarray]]:
    return list(zip(collection.columns("width"), collection.columns("height"), strict=True))


def _values(values: np.ndarray, kind: str) -> str:
    if kind != "text":
        numbers = values[~np.isnan(values.astype(np.float64))]
        return f"{short(float(numbers.min()))} to {short(float(numbers.max()))}"
    counts = Counter(value for value in values.tolist() if value is not None)
    common = ", ".join(f"{value} ({count:,})" for value, count in counts.most_common(_EXAMPLES))
    return common + (f", and {len(counts) - _EXAMPLES:,} more" if len(counts) > _EXAMPLES else "")


def _entry(line: str, key: str) -> tuple[str, str]:
    try:
        entry = json.loads(line)
        return str(entry["path"]), str(entry[key])
    except (json.JSONDecodeError, KeyError, TypeError):
        return line, "this line is damaged"
