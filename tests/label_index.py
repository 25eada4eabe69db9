"""Data sets with labels or segments and without videos, for tests that read no video."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kinemae.data_tools.index import Sample, Shard, ShardIndex, open_index, write_index

CLASSES = ("left", "right", "still")
SAMPLES = 24
TAGS = ("red", "red;round", "", "round", "blue;round", "blue")


def label_index(  # noqa: PLR0913 - keyword-only, except for the folder
    folder: Path,
    *,
    labels: Sequence[int],
    classes: Sequence[str] = CLASSES,
    groups: Sequence[str] | None = None,
    contents: Sequence[str] | None = None,
    frames: int = 40,
    duration_s: float = 4.0,
    extra: Mapping[str, Sequence[Any]] | None = None,
) -> ShardIndex:
    """Write and open an index over an empty tar."""
    samples = [
        Sample(
            key=f"key-{number}",
            shard=0,
            offset=0,
            length=1,
            crc32=0,
            frames=frames,
            duration_s=duration_s,
            width=32,
            height=32,
            codec="h264",
            label=label,
            name=f"{number}.mp4",
            group=groups[number] if groups else "",
            content=contents[number] if contents else "",
        )
        for number, label in enumerate(labels)
    ]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "shard-000000.tar").touch()
    shard = Shard(name="shard-000000.tar", samples=len(samples), bytes=0, sha256="0" * 64)
    write_index(folder, samples, [shard], classes, {}, extra)
    return open_index(folder)


def segment_index(
    folder: Path, cells: Sequence[Any], *, frames: int = 80, duration_s: float = 10.0, column: str = "events"
) -> ShardIndex:
    """Write an index with a column of segments; a cell is a list for JSON, a text, or None."""
    texts = [cell if cell is None or isinstance(cell, str) else json.dumps(cell) for cell in cells]
    extra = {column: texts, "number": list(range(len(cells)))}
    labels = [-1] * len(cells)
    return label_index(folder, labels=labels, classes=(), frames=frames, duration_s=duration_s, extra=extra)


def rich_index(folder: Path, *, samples: int = SAMPLES) -> ShardIndex:
    """Write an index with a column for every task; all columns but `note` are complete."""
    numbers = range(samples)
    return label_index(
        folder,
        labels=[number % 3 for number in numbers],
        groups=[f"group-{number // 2}" for number in numbers],
        extra={
            "verb": [("open", "close")[number // 3 % 2] for number in numbers],
            "grade": [number * 7 % 4 for number in numbers],
            "size": [("low", "mid", "high")[number * 5 % 3] for number in numbers],
            "speed": [0.5 * number - 3 for number in numbers],
            "dx": [float((number * 5) % 7 - 3) for number in numbers],
            "note": [None if number % 3 == 0 else float(number % 5) for number in numbers],
            "second": [None if number % 4 == 0 else "ab"[number % 2] for number in numbers],
            "tags": [TAGS[number % len(TAGS)] for number in numbers],
            "is_red": [number % 2 for number in numbers],
            "is_big": [number // 2 % 2 for number in numbers],
            "segments": [
                json.dumps([[0.5 + number % 3 * 0.5, 2.0 + number % 3 * 0.5, "ab"[number % 2]]])
                for number in numbers
            ],
        },
    )
