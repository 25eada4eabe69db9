"""The shard schema: what a data set on disk is, in one place.

    FOLDER/
      shard-000000.tar ...   WebDataset tars; a sample is KEY.json (its row of the index), KEY.mp4
      index.arrow            one row a sample (`COLUMNS`), an uncompressed Arrow file that is memory-mapped
      dataset.json           format, classes, shards (name, samples, bytes, sha256), fingerprint, origin
      rejected.jsonl         videos that were left out, and why

The index is what makes a read one `pread`, or one ranged request: shard, offset and length of the video bytes
inside the tar. A shard's name may be a URL or an absolute path: so is a data set indexed that lies elsewhere.
"""

import hashlib
import json
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from kinemae.data_tools.command import DataError
from kinemae.data_tools.files import atomic_write_text
from kinemae.data_tools.folder_checks import check_shards_exist, not_a_data_set
from kinemae.data_tools.storage.cache import Cache, LocalIndex, fetch_index
from kinemae.data_tools.storage.location import Location, StorageError, location
from kinemae.data_tools.storage.retries import retry_during_outage

FORMAT = 2
NO_LABEL = -1
_ROWS_IN_A_CHUNK = 65_536  # the text of one chunk must stay below 2 GiB
INDEX_NAME = "index.arrow"
DATASET_NAME = "dataset.json"
REJECTED_NAME = "rejected.jsonl"  # videos that were left out, and why
# Marks a KEY.json with every column of the sample's index row except those that the tar itself gives.
DESCRIPTION_KEY = "kinemae_format"
DESCRIPTION_FORMAT = 1

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
# Additional columns of a source, such as a caption or a second label, follow these.
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
    """One tar: file name, number of samples, size in bytes, sha256 of the whole in hex, "" if unknown."""

    name: str
    samples: int
    bytes: int
    sha256: str


class ShardIndex:
    """An opened data set. Opening costs no more than the small json, however many samples there are.

    A pickled one is opened anew where it arrives, from the same file, whose memory all processes share.
    """

    def __init__(
        self, folder: Location, table: pa.Table, description: dict[str, Any], local_index: LocalIndex
    ):
        self.folder = folder
        self.cache = local_index.cache
        self.classes: tuple[str, ...] = tuple(description["classes"])
        self.shards: tuple[Shard, ...] = tuple(Shard(**shard) for shard in description["shards"])
        self.fingerprint: str = description["fingerprint"]
        self.sha256: str = description.get("index_sha256", "")
        self.made_by: dict[str, Any] = description.get("made_by", {})
        self.local_index = local_index
        self._table = table
        self._batches = table.select(COLUMNS.names).to_batches()
        self._starts = np.cumsum([0, *(len(batch) for batch in self._batches[:-1])]).tolist()

    @property
    def extra(self) -> tuple[str, ...]:
        """Names of the columns that the source adds to the schema's."""
        return tuple(self._table.schema.names[len(COLUMNS) :])

    @property
    def identity(self) -> str:
        """Fingerprint of shards and index, including labels, keys and order; independent of the location."""
        return f"{self.fingerprint}-{self.sha256[:16]}"

    def __len__(self) -> int:
        return self._table.num_rows

    def sample(self, position: int) -> Sample:
        """The sample at a position of the index, which is not the order of training."""
        if not 0 <= position < len(self):
            raise IndexError(f"{self.folder} holds {len(self)} samples, asked for number {position}")
        batch = bisect_right(self._starts, position) - 1
        [row] = self._batches[batch].slice(position - self._starts[batch], 1).to_pylist()
        return Sample(**row)

    def column(self, name: str) -> np.ndarray:
        """A whole column as a numpy array, without a copy where the type allows it."""
        return self._table.column(name).to_numpy()

    def arrow_column(self, name: str) -> pa.ChunkedArray:
        """A whole column as it lies in the file."""
        return self._table.column(name)

    def shard_location(self, sample: Sample) -> Location:
        """Where a sample's shard lies."""
        return self.folder / self.shards[sample.shard].name

    def shard_path(self, sample: Sample) -> Path:
        """The same for a data set on this machine."""
        path = self.shard_location(sample).path
        assert path is not None, "remote shards have no path"
        return path

    def __reduce__(self) -> tuple[Any, ...]:
        return load_index, (self.folder, self.local_index.for_other_process())


def open_index(
    folder: str | Path | Location,
    *,
    cache: Cache | None = None,
    check_shards: bool = True,
    outage_s: float | None = None,
) -> ShardIndex:
    """Open the data set in a folder of shards, here or at a URL.

    Args:
        cache: keeps what is read from remote shards.
        check_shards: refuse a folder that lacks shards or has shorter ones.
        outage_s: how long to wait for a storage that is down, now and at each sample; None keeps the
            value of the location, 0 by default.

    Raises:
        StorageUnavailable: the storage was down for that long.
        DataError: the folder is missing or empty, lacks shards, holds no index or one of another version.
        ValueError: a URL of a kind that is not read.
    """
    folder = location(folder)
    if outage_s is not None:
        folder = replace(folder, retry_policy=replace(folder.retry_policy, outage_s=outage_s))
    try:
        local_index = retry_during_outage(
            lambda: fetch_index(folder, (DATASET_NAME, INDEX_NAME), cache),
            outage_s=folder.retry_policy.outage_s,
        )
    except StorageError as error:
        is_file = folder.path is not None and folder.path.is_file()
        if not (error.is_missing or is_file or folder.name.endswith(".tar")):
            raise
        raise not_a_data_set(folder, (DATASET_NAME, INDEX_NAME)) from error
    index = load_index(folder, local_index)
    if len(index) == 0:
        raise DataError(
            f"{folder} holds no samples: check the source and the rejected files in {folder}/rejected.jsonl"
        )
    if check_shards:
        check_shards_exist(folder, {shard.name: shard.bytes for shard in index.shards})
    return index


def load_index(folder: Location, local_index: LocalIndex) -> ShardIndex:
    """Open the files of an index as they lie on this machine."""
    try:
        description = json.loads((local_index.folder / DATASET_NAME).read_text(encoding="utf-8"))
        table = pa.ipc.open_file(pa.memory_map(str(local_index.folder / INDEX_NAME))).read_all()
    except OSError as error:
        raise DataError(
            f"the index in {folder} cannot be read: {error.strerror or error}; mend that"
        ) from error
    except (json.JSONDecodeError, UnicodeDecodeError, pa.ArrowInvalid) as error:
        raise DataError(f"the index in {folder} is damaged ({error}): shard the source again") from error
    _check_format(folder, description.get("format"))
    fixed, extra = list(table.schema)[: len(COLUMNS)], list(table.schema)[len(COLUMNS) :]
    if fixed != list(COLUMNS) or any(column.type not in EXTRA_TYPES for column in extra):
        raise DataError(
            f"{folder / INDEX_NAME} does not have the columns of format {FORMAT}: shard the source again"
        )
    if len(table) != description["samples"]:
        raise DataError(
            f"{folder} has {len(table)} samples in {INDEX_NAME} and {description['samples']} in "
            f"{DATASET_NAME}: one of the two is of another time; shard the source again"
        )
    return ShardIndex(folder, table, description, local_index)


def _check_format(folder: Location, given: Any) -> None:
    if given != FORMAT:
        is_newer = isinstance(given, int) and given > FORMAT
        fix = "install the version that wrote it, or a newer one" if is_newer else "shard the source again"
        raise DataError(f"{folder}: expected an index of format {FORMAT}, got {given!r}; fix: {fix}")


def dictionary_encode_column(indexes: Sequence[ShardIndex], name: str) -> tuple[Any, list[np.ndarray]]:
    """A text column of several data sets as numbers.

    Returns:
        The distinct values as an Arrow array, and for each data set the place of every sample's value in it,
        -1 where it has none.
    """
    chunks = [chunk for index in indexes for chunk in index.arrow_column(name).chunks]
    together = pa.chunked_array(chunks).dictionary_encode()  # one dictionary for all chunks
    codes = np.concatenate([chunk.indices.fill_null(-1).to_numpy() for chunk in together.chunks])
    ends = np.cumsum([len(index) for index in indexes])[:-1]
    return together.chunk(0).dictionary, np.split(codes, ends)


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
    with partial_index.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    partial_index.replace(folder / INDEX_NAME)
    description = {
        "format": FORMAT,
        "classes": list(classes),
        "samples": len(rows),
        "index_sha256": sha256,
        "shards": [asdict(shard) for shard in shards],
        "fingerprint": fingerprint(shards),
        "made_by": made_by,
    }
    atomic_write_text(folder / DATASET_NAME, json.dumps(description, indent=1, ensure_ascii=False))


def fingerprint(shards: Sequence[Shard]) -> str:
    """Names the content: equal for equal shards in equal order, wherever they lie."""
    return hashlib.sha256("".join(shard.sha256 for shard in shards).encode()).hexdigest()[:16]
