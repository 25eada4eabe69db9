"""Data sets with labels and without videos, for tests of tasks."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kinemae.data_tools.index import Sample, Shard, ShardIndex, open_index, write_index

CLASSES = ("left", "right", "still")
SAMPLES = 24
TAGS = ("red", "red;round", "", "round", "blue;round", "blue")


def label_index(
    folder: Path,
    *,
    labels: Sequence[int],
    classes: Sequence[str] = CLASSES,
    groups: Sequence[str] | None = None,
    extra: Mapping[str, Sequence[Any]] | None = None,
) -> ShardIndex:
    """Write and open an index whose videos do not exist; each lasts 4 seconds."""
    samples = [
        Sample(
            key=f"{number:06d}",
            shard=0,
            offset=0,
            length=1,
            crc32=0,
            frames=40,
            duration_s=4.0,
            width=32,
            height=32,
            codec="h264",
            label=label,
            name=f"video-{number}.mp4",
            group=groups[number] if groups else "",
        )
        for number, label in enumerate(labels)
    ]
    shard = Shard(name="shard-000000.tar", samples=len(samples), bytes=1, sha256="0")
    folder.mkdir(parents=True, exist_ok=True)
    write_index(folder, samples, [shard], classes, {}, extra)
    return open_index(folder, check_shards=False)


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
