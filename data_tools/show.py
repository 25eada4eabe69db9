"""`kinemae data show SHARDS`: print a summary of a data set.

    samples      240 in 1 shards, 21.2 MB
    fingerprint  f0e14cdbaaa81ebe
    layout       h264; every 2nd frame of the source in 201; every 2nd stored frame decodes alone in 240
    duration     0.14 h; 1.00 to 4.74 s, median 2.00 s
    frames       20 to 71, median 30
    frame rate   10.00 to 29.97 fps, median 14.99 fps
    codecs (1)   one line each, most frequent first, at most 20; then sizes and classes likewise
    groups       12
    columns      camera, speed
    no label     0
    removed      3 rows, whose videos are in the shards until `kinemae data compact`
    not read     240, whose frames, duration, size and codec are unknown

Lines of missing features (groups, columns, removed rows) are left out. Frames, duration, sizes and codecs are
those of the videos that `index` read.
"""

import argparse
import json
import sys
from collections import Counter
from typing import Any

import numpy as np

from kinemae.data_tools.index import NO_LABEL, ShardIndex, open_index
from kinemae.data_tools.leaks import dictionary_encode_column
from kinemae.data_tools.unread import unread_rows

_MAX_LINES = 20  # of classes or frame sizes
_COMPACT = "whose videos are in the shards until `kinemae data compact`"
_UNREAD = "whose frames, duration, size and codec are unknown"


def run_show(arguments: argparse.Namespace) -> None:
    """Run the command."""
    summary = summarize(open_index(arguments.shards))
    text = json.dumps(summary, ensure_ascii=False) if arguments.json else _as_text(summary)
    sys.stdout.write(text + "\n")


def summarize(index: ShardIndex) -> dict[str, Any]:
    """Counts and ranges of a data set, as JSON values."""
    labels = Counter(index.column("label").tolist())
    is_read_R = ~unread_rows(index)
    widths, heights, codecs, duration_s, frames = (
        index.column(name)[is_read_R] for name in ("width", "height", "codec", "duration_s", "frames")
    )
    sizes = Counter(f"{width}x{height}" for width, height in zip(widths, heights, strict=True))
    layout = index.made_by.get("config", {}).get("layout") or {}
    return {
        "samples": len(index),
        "shards": len(index.shards),
        "bytes": index.shards.bytes,
        "fingerprint": index.fingerprint,
        "classes": {name: labels[position] for position, name in enumerate(index.classes)},
        "without_label": labels[NO_LABEL],
        "hours": float(duration_s.sum()) / 3600,
        "duration_s": _min_median_max(duration_s),
        "frames": _min_median_max(frames),
        "fps": _min_median_max(frames / np.maximum(duration_s, 1e-9)),
        "codecs": dict(Counter(codecs.tolist()).most_common()),
        "sizes": dict(sizes.most_common()),
        "layout": layout.get("name", ""),
        **{name: _counts(index, name) for name in ("frame_step", "reference_stride")},
        "groups": _groups(index),
        "columns": list(index.extra),
        "removed": len(index.removed_R),
        "unread": len(index) - len(frames),
    }


def _counts(index: ShardIndex, name: str) -> dict[str, int]:
    values, counts = np.unique(index.column(name), return_counts=True)
    return {str(value): int(count) for value, count in zip(values, counts, strict=True)}


def _groups(index: ShardIndex) -> int:
    values, _ = dictionary_encode_column([index], "group")
    return sum(1 for value in values if value.as_py())


def _min_median_max(values: np.ndarray) -> dict[str, float] | None:
    if not len(values):
        return None
    return {"min": values.min().item(), "median": float(np.median(values)), "max": values.max().item()}


def _as_text(summary: dict[str, Any]) -> str:
    lines = [
        f"samples      {summary['samples']} in {summary['shards']} shards, {summary['bytes'] / 1e6:.1f} MB",
        f"fingerprint  {summary['fingerprint']}",
        *_layout(summary),
        *(_videos(summary) if summary["frames"] else []),
        *_table("classes", summary["classes"]),
        *([f"groups       {summary['groups']}"] if summary["groups"] else []),
        *([f"columns      {', '.join(summary['columns'])}"] if summary["columns"] else []),
        f"no label     {summary['without_label']}",
        *([f"removed      {summary['removed']} rows, {_COMPACT}"] if summary["removed"] else []),
        *([f"not read     {summary['unread']}, {_UNREAD}"] if summary["unread"] else []),
    ]
    return "\n".join(lines)


def _videos(summary: dict[str, Any]) -> list[str]:
    duration_s, frames, fps = summary["duration_s"], summary["frames"], summary["fps"]
    return [
        f"duration     {summary['hours']:.2f} h; {duration_s['min']:.2f} to {duration_s['max']:.2f} s, "
        f"median {duration_s['median']:.2f} s",
        f"frames       {frames['min']} to {frames['max']}, median {frames['median']:g}",
        f"frame rate   {fps['min']:.2f} to {fps['max']:.2f} fps, median {fps['median']:.2f} fps",
        *_table("codecs", summary["codecs"]),
        *_table("sizes", summary["sizes"]),
    ]


def _layout(summary: dict[str, Any]) -> list[str]:
    meanings = {"frame_step": "frame of the source in", "reference_stride": "stored frame decodes alone in"}
    parts = [
        f"every {each}{({'2': 'nd', '3': 'rd'}).get(each, 'th')} {meaning} {count}"
        for name, meaning in meanings.items()
        for each, count in summary[name].items()
        if each != "1"
    ]
    parts = [summary["layout"], *parts] if summary["layout"] else parts
    return [f"layout       {'; '.join(parts)}"] if parts else []


def _table(title: str, counts: dict[str, int]) -> list[str]:
    lines = [f"  {count:8d}  {name}" for name, count in list(counts.items())[:_MAX_LINES]]
    more = [f"            ... and {len(counts) - _MAX_LINES} more"] if len(counts) > _MAX_LINES else []
    return [f"{title} ({len(counts)})", *lines, *more]
