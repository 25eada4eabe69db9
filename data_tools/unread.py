"""Rows of an index whose videos were not read, as `kinemae data index probe=none` writes them.

Such a row has 0 frames; its checksum, duration, size and codec are unknown. Training takes them from the
container when it reads the video.
"""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from kinemae.data_tools.command import DataError
from kinemae.data_tools.index import ShardIndex

UNREAD_COLUMNS = frozenset(("crc32", "frames", "duration_s", "width", "height", "codec"))


def unread_rows(index: ShardIndex) -> np.ndarray:
    """Whether each video of a data set was not read."""
    is_unread_R: np.ndarray = index.column("frames") == 0
    return is_unread_R


def check_is_read(index: ShardIndex, needed_by: str) -> None:
    """Check that all videos of a data set were read.

    Args:
        needed_by: what needs frames or checksums, for the error.

    Raises:
        DataError: some were not.
    """
    count = int(unread_rows(index).sum())
    if count:
        raise DataError(
            f"{index.folder}: {needed_by} expected numbers of frames and checksums, got {count} of "
            f"{len(index)} samples without, from `kinemae data index probe=none`; fix: index the tars again "
            "with probe=header or probe=full"
        )


def with_nulls(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Rows of an index, with null for each value that is unknown because the video was not read.

    Args:
        batch: with the column `frames` if it has another one of `UNREAD_COLUMNS`.
    """
    if "frames" not in batch.schema.names:
        return batch
    is_read = pc.not_equal(batch.column("frames"), 0)
    if pc.all(is_read).as_py() is not False:
        return batch
    columns = [
        pc.if_else(is_read, column, None) if name in UNREAD_COLUMNS else column
        for name, column in zip(batch.schema.names, batch.columns, strict=True)
    ]
    return pa.RecordBatch.from_arrays(columns, names=batch.schema.names)
