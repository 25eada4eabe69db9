"""The shard schema: what a data set on disk is, in one place.

    FOLDER/
      shard-000000.tar ...   WebDataset tars; a sample is KEY.json (name, label, ...), KEY.mp4
      index.arrow            one row a sample (`COLUMNS`), an uncompressed Arrow file that is memory-mapped
      dataset.json           format, classes, shards (name, samples, bytes, sha256), fingerprint, origin

The index is what makes a read one `pread`: shard, offset and length of the video bytes inside the tar.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from data_tools.command import DataError
from data_tools.files import write_whole

FORMAT = 2
NO_LABEL = -1
_ROWS_IN_A_CHUNK = 65_536  # the text of one chunk must stay below 2 GiB
INDEX_NAME = "index.arrow"
DATASET_NAME = "dataset.json"

COLUMNS = pa.schema(
    [
        ("key", pa.string()),
        ("shard", pa.int32()),  # position in dataset.json's "shards"
        ("offset", pa.int64()),  # first byte of the video inside the shard
        ("length", pa.int64()),  # bytes of the video
        ("crc32", pa.uint32()),  # of those bytes
        ("frames", pa.int32()),  # decoded frames, not what the container claims
        ("duration_s", pa.float64()),
        ("width", pa.int32()),  # as shown, after rotation
        ("height", pa.int32()),
        ("codec", pa.string()),
        ("label", pa.int32()),  # position in dataset.json's "classes", NO_LABEL for none
        ("name", pa.string()),  # the original path, relative to the source
        ("group", pa.string()),  # samples of one group stay in one split; "" for none
        ("start_s", pa.float64()),  # where in the original video the sample begins
        ("content", pa.string()),  # digest of the original file's bytes, equal for equal files; "" if unknown
        # Every reference_stride-th frame from reference_phase on can be decoded without the ones between;
        # a stride of 1 says nothing.
        ("reference_stride", pa.int32()),
        ("reference_phase", pa.int32()),
    ]
)
# Columns that a source brings besides, such as a second label or a value to regress, follow these.
EXTRA_TYPES = (pa.string(), pa.int64(), pa.float64())


@dataclass(frozen=True, kw_only=True)
class VideoInfo:
    """What a full decode of a video found: frames, seconds, the size as shown in pixels, the codec's name."""

    frames: int
    duration_s: float
    width: int
    height: int
    codec: str


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One row of the index; the meaning of each field stands at `COLUMNS`."""

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


@dataclass(frozen=True, kw_only=True)
class Shard:
    """One tar: file name, number of samples, size in bytes, sha256 of the whole file in hex."""

    name: str
    samples: int
    bytes: int
    sha256: str


class ShardIndex:
    """An opened data set. Opening costs no more than the small json, however many samples there are."""

    def __init__(self, folder: Path, table: pa.Table, description: dict[str, Any]):
        self.folder = folder
        self.classes: tuple[str, ...] = tuple(description["classes"])
        self.shards: tuple[Shard, ...] = tuple(Shard(**shard) for shard in description["shards"])
        self.fingerprint: str = description["fingerprint"]
        self._table = table
        self._fixed = table.select(COLUMNS.names)

    @property
    def extra(self) -> tuple[str, ...]:
        """Names of the columns that the source brought besides the schema's."""
        return tuple(self._table.schema.names[len(COLUMNS) :])

    def __len__(self) -> int:
        return self._table.num_rows

    def sample(self, position: int) -> Sample:
        """The sample at a position of the index, which is not the order of training."""
        return Sample(**self._fixed.slice(position, 1).to_pylist()[0])

    def column(self, name: str) -> np.ndarray:
        """A whole column as a numpy array, without a copy where the type allows it."""
        return self._table.column(name).to_numpy()

    def shard_path(self, sample: Sample) -> Path:
        return self.folder / self.shards[sample.shard].name


def open_index(folder: str | Path) -> ShardIndex:
    """Open the data set in a folder of shards.

    Raises:
        DataError: the folder is missing or empty, holds no index, or is of another format version.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(
            f"no folder of shards at {folder}: make one with `python -m data_tools shard SOURCE OUT`"
        )
    try:
        description = json.loads((folder / DATASET_NAME).read_text(encoding="utf-8"))
        table = pa.ipc.open_file(pa.memory_map(str(folder / INDEX_NAME))).read_all()
    except FileNotFoundError as error:
        splits = sorted(path.parent.name for path in folder.glob(f"*/{DATASET_NAME}"))
        hint = f"; did you mean {folder / splits[0]}?" if splits else ""
        raise DataError(
            f"{folder} holds no {Path(error.filename or INDEX_NAME).name}, so it is no data set{hint}"
        ) from error
    except (json.JSONDecodeError, pa.ArrowInvalid) as error:
        raise DataError(f"the index in {folder} is damaged ({error}): shard the source again") from error
    if description.get("format") != FORMAT:
        raise DataError(f"{folder} has index format {description.get('format')}, this version reads {FORMAT}")
    fixed, extra = list(table.schema)[: len(COLUMNS)], list(table.schema)[len(COLUMNS) :]
    if fixed != list(COLUMNS) or any(column.type not in EXTRA_TYPES for column in extra):
        raise DataError(
            f"{folder / INDEX_NAME} does not have the columns of format {FORMAT}: shard the source again"
        )
    index = ShardIndex(folder, table, description)
    if len(index) == 0:
        raise DataError(
            f"{folder} holds no samples: check the source and the rejected files in {folder}/rejected.jsonl"
        )
    missing = [shard.name for shard in index.shards if not (folder / shard.name).is_file()]
    if missing:
        raise DataError(f"{folder} lacks {len(missing)} of its shards, first {missing[0]}")
    return index


def write_index(
    folder: Path,
    samples: Sequence[Sample],
    shards: Sequence[Shard],
    classes: Sequence[str],
    made_by: dict[str, Any],
    extra: Mapping[str, Sequence[Any]] | None = None,
) -> None:
    """Write `index.arrow`, then `dataset.json`, whose presence says that the data set is complete.

    Args:
        extra: more columns of text, integers or floats, a value a sample; None where there is none.
    """
    rows = [asdict(sample) for sample in samples]
    table = pa.Table.from_pylist(rows, schema=COLUMNS)
    for name, values in (extra or {}).items():
        table = table.append_column(name, pa.array(values))
    partial_index = folder / f"{INDEX_NAME}.partial"
    with pa.OSFile(str(partial_index), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=_ROWS_IN_A_CHUNK)
    partial_index.replace(folder / INDEX_NAME)
    description = {
        "format": FORMAT,
        "classes": list(classes),
        "samples": len(rows),
        "shards": [asdict(shard) for shard in shards],
        "fingerprint": _fingerprint(shards),
        "made_by": made_by,
    }
    write_whole(folder / DATASET_NAME, json.dumps(description, indent=1, ensure_ascii=False))


def _fingerprint(shards: Sequence[Shard]) -> str:
    """Names the content: equal for equal shards in equal order, wherever they lie."""
    return hashlib.sha256("".join(shard.sha256 for shard in shards).encode()).hexdigest()[:16]
