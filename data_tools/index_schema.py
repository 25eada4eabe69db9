"""Rows of an index and of its list of shards."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np
import pyarrow as pa

NO_LABEL = -1
REJECTED_NAME = "rejected.jsonl"
# Marks a KEY.json that holds the sample's index row without the columns that the tar itself gives.
DESCRIPTION_KEY = "kinemae_format"
DESCRIPTION_FORMAT = 1

COLUMNS = pa.schema(
    [
        ("key", pa.string()),
        ("shard", pa.int32()),  # position in the list of shards
        ("offset", pa.int64()),  # first byte of the video inside the shard
        ("length", pa.int64()),  # bytes of the video
        ("crc32", pa.uint32()),  # of those bytes
        # Counted by decoding. 0: the video was not read; crc32, duration, size and codec are unknown too.
        ("frames", pa.int32()),
        ("duration_s", pa.float64()),
        ("width", pa.int32()),  # as shown, after rotation
        ("height", pa.int32()),
        ("codec", pa.string()),
        ("label", pa.int32()),  # position in dataset.json's "classes", or NO_LABEL
        ("name", pa.string()),  # the original path, relative to the source
        ("group", pa.string()),  # samples of one group stay in one split; "" for none
        ("start_s", pa.float64()),  # start of the sample in the original video
        ("content", pa.string()),  # digest of the original file; "" if unknown
        # Every reference_stride-th frame from reference_phase on decodes without the frames between. A stride
        # of 1 means an ordinary encoding.
        ("reference_stride", pa.int32()),
        ("reference_phase", pa.int32()),
        ("frame_step", pa.int32()),  # every frame_step-th frame of the original video is stored
    ]
)
# Additional columns of a source, such as a caption or a second label, follow these.
EXTRA_TYPES = (pa.string(), pa.int64(), pa.float64())
SHARD_COLUMNS = pa.schema(
    [("name", pa.string()), ("samples", pa.int64()), ("bytes", pa.int64()), ("sha256", pa.string())]
)


@dataclass(frozen=True, kw_only=True)
class VideoInfo:
    """Result of a full decode: frames, seconds, display size in pixels, name of the codec."""

    frames: int
    duration_s: float
    width: int
    height: int
    codec: str


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One row of the index; see `COLUMNS` for the fields.

    `window_s`, of a view only, is the time window from which frames are taken: start and end in seconds from
    the start of the sample.
    """

    key: str
    shard: int
    offset: int
    length: int
    crc32: int
    frames: int
    duration_s: float
    width: int
    height: int
    codec: str
    label: int
    name: str
    group: str = ""
    start_s: float = 0.0
    content: str = ""
    reference_stride: int = 1
    reference_phase: int = 0
    frame_step: int = 1
    window_s: tuple[float, float] | None = None

    @property
    def is_read(self) -> bool:
        """False if checksum, frames, duration, size and codec are unknown, see `data_tools/unread.py`."""
        return self.frames != 0

    @property
    def source_fps(self) -> float:
        """Frames per second of the original video, whose frames `clip.stride` counts."""
        return self.frames * self.frame_step / max(self.duration_s, 1e-6)


@dataclass(frozen=True, kw_only=True)
class Shard:
    """One tar: file name, number of samples, size in bytes, sha256 in hex ("" if unknown)."""

    name: str
    samples: int
    bytes: int
    sha256: str


class ShardTable(Sequence[Shard]):
    """The shards of a data set, read from a memory-mapped table when they are used.

    Attributes:
        table: one row per shard, with `SHARD_COLUMNS`.
    """

    def __init__(self, table: pa.Table):
        self.table = table

    def __len__(self) -> int:
        return self.table.num_rows

    @overload
    def __getitem__(self, number: int) -> Shard: ...

    @overload
    def __getitem__(self, number: slice) -> tuple[Shard, ...]: ...

    def __getitem__(self, number: int | slice) -> Shard | tuple[Shard, ...]:
        if isinstance(number, slice):
            return tuple(self[each] for each in range(len(self))[number])
        at = range(len(self))[number]  # also rejects a number outside
        return Shard(**{name: self.table.column(name)[at].as_py() for name in SHARD_COLUMNS.names})

    def __iter__(self) -> Iterator[Shard]:
        for batch in self.table.to_batches(max_chunksize=4096):
            yield from (Shard(**row) for row in batch.to_pylist())

    def column(self, name: str) -> np.ndarray:
        """A column of `SHARD_COLUMNS` as a numpy array."""
        return self.table.column(name).to_numpy()

    @property
    def digests(self) -> list[tuple[str, str]]:
        """Name and sha256 of each shard."""
        names, digests = (self.table.column(name).to_pylist() for name in ("name", "sha256"))
        return [*zip(names, digests, strict=True)]

    @property
    def sizes(self) -> dict[str, int]:
        """Size of each shard in bytes by name."""
        names, sizes = (self.table.column(name).to_pylist() for name in ("name", "bytes"))
        return dict(zip(names, sizes, strict=True))

    @property
    def bytes(self) -> int:
        """Size of all shards."""
        return int(self.column("bytes").sum())


def shard_table(shards: Sequence[Shard]) -> ShardTable:
    """A table of shards in memory."""
    rows = [vars(shard) for shard in shards]
    return ShardTable(pa.Table.from_pylist(rows, schema=SHARD_COLUMNS))


def with_frame_step(table: pa.Table) -> pa.Table:
    """Rows of an index, with the column `frame_step` of 1 if they were written without it."""
    at = COLUMNS.get_field_index("frame_step")
    if "frame_step" in table.schema.names[: at + 1]:
        return table
    return table.add_column(at, COLUMNS.field(at), pa.repeat(pa.scalar(1, pa.int32()), len(table)))
