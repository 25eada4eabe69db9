"""`python -m data_tools show SHARDS`: what a data set holds, on one screen."""

import argparse
import json
import sys
from collections import Counter
from typing import Any

import numpy as np

from data_tools.index import NO_LABEL, ShardIndex, open_index

_MOST_LINES = 20  # of classes or picture sizes


def run_show(arguments: argparse.Namespace) -> None:
    """The command."""
    if arguments.overrides:
        raise ValueError(f"show takes no overrides, got {arguments.overrides[0]!r}")
    summary = summarise(open_index(arguments.shards))
    text = json.dumps(summary, ensure_ascii=False) if arguments.json else _as_text(summary)
    sys.stdout.write(text + "\n")


def summarise(index: ShardIndex) -> dict[str, Any]:
    """Counts and ranges of a data set, as plain values."""
    labels = Counter(index.column("label").tolist())
    widths, heights = index.column("width").tolist(), index.column("height").tolist()
    sizes = Counter(f"{width}x{height}" for width, height in zip(widths, heights, strict=True))
    duration_s = index.column("duration_s")
    return {
        "samples": len(index),
        "shards": len(index.shards),
        "bytes": sum(shard.bytes for shard in index.shards),
        "fingerprint": index.fingerprint,
        "classes": {name: labels[position] for position, name in enumerate(index.classes)},
        "without_label": labels[NO_LABEL],
        "hours": float(duration_s.sum()) / 3600,
        "duration_s": _range(duration_s),
        "frames": _range(index.column("frames")),
        "codecs": dict(Counter(index.column("codec").tolist()).most_common()),
        "sizes": dict(sizes.most_common()),
    }


def _range(values: np.ndarray) -> dict[str, float]:
    return {"least": values.min().item(), "median": float(np.median(values)), "most": values.max().item()}


def _as_text(summary: dict[str, Any]) -> str:
    duration_s, frames = summary["duration_s"], summary["frames"]
    lines = [
        f"samples      {summary['samples']} in {summary['shards']} shards, {summary['bytes'] / 1e6:.1f} MB",
        f"fingerprint  {summary['fingerprint']}",
        f"time         {summary['hours']:.2f} h; {duration_s['least']:.2f} to {duration_s['most']:.2f} s, "
        f"median {duration_s['median']:.2f} s",
        f"frames       {frames['least']} to {frames['most']}, median {frames['median']:g}",
        *_table("codecs", summary["codecs"]),
        *_table("sizes", summary["sizes"]),
        *_table("classes", summary["classes"]),
        f"no label     {summary['without_label']}",
    ]
    return "\n".join(lines)


def _table(title: str, counts: dict[str, int]) -> list[str]:
    lines = [f"  {count:8d}  {name}" for name, count in list(counts.items())[:_MOST_LINES]]
    more = [f"            ... and {len(counts) - _MOST_LINES} more"] if len(counts) > _MOST_LINES else []
    return [f"{title} ({len(counts)})", *lines, *more]
