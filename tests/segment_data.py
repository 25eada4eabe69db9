"""Data sets with a column of segments, for tests."""

import json

from kinemae.data_tools.index import Sample, Shard, open_index, write_index


def write_segments(folder, cells, *, frames=80, duration_s=10.0, column="events"):
    """Write an index over an empty tar, for tests that read no video. A cell is JSON, text, or None."""
    folder.mkdir(exist_ok=True)
    (folder / "shard-000000.tar").touch()
    samples = [
        Sample(
            key=f"key-{number}",
            shard=0,
            offset=0,
            length=1,
            crc32=0,
            frames=frames,
            duration_s=duration_s,
            width=16,
            height=16,
            codec="h264",
            label=-1,
            name=f"{number}.mp4",
        )
        for number in range(len(cells))
    ]
    shard = Shard(name="shard-000000.tar", samples=len(samples), bytes=0, sha256="0" * 64)
    texts = [cell if cell is None or isinstance(cell, str) else json.dumps(cell) for cell in cells]
    write_index(folder, samples, [shard], [], {}, {column: texts, "number": list(range(len(cells)))})
    return open_index(folder)
