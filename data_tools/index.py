"""Data sets of shards on disk: schema, reading and writing of the index.

    FOLDER/
      shard-000000.tar ...   WebDataset tars; a sample is KEY.json (its row of the index) and KEY.mp4
      index.arrow            one row per sample (`COLUMNS`), an uncompressed, memory-mapped Arrow file
      dataset.json           format, classes, shards (name, samples, bytes, sha256), fingerprint, origin
      rejected.jsonl         rejected videos with reasons

The index holds shard, offset and length of the video bytes inside the tar, so a sample is read by one `pread`
or one range request. The name of a shard may be a URL or an absolute path; the shards of an indexed
WebDataset stay where they are.
"""

import hashlib
import json
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from kinemae.data_tools.command import DataError
from kinemae.data_tools.files import atomic_write_text
from kinemae.data_tools.folder_checks import check_shards_exist, list_data_sets, not_a_data_set
from kinemae.data_tools.index_view import IndexView, check_windows
from kinemae.data_tools.manifest.videos import SPLITS
from kinemae.data_tools.storage.cache import Cache, LocalIndex, fetch_index
from kinemae.data_tools.storage.location import Location, StorageError, location
from kinemae.data_tools.storage.retries import retry_during_outage

FORMAT = 2
NO_LABEL = -1
_ROWS_PER_CHUNK = 65_536  # the text of one chunk must stay below 2 GiB
INDEX_NAME = "index.arrow"
DATASET_NAME = "dataset.json"
REJECTED_NAME = "rejected.jsonl"
# Marks a KEY.json that holds the sample's index row without the columns that the tar itself gives.
DESCRIPTION_KEY = "kinemae_format"
DESCRIPTION_FORMAT = 1

COLUMNS = pa.schema(
    [
        ("key", pa.string()),
        ("shard", pa.int32()),  # position in dataset.json's "shards"
        ("offset", pa.int64()),  # first byte of the video inside the shard
        ("length", pa.int64()),  # bytes of the video
        ("crc32", pa.uint32()),  # of those bytes
        ("frames", pa.int32()),  # counted by decoding, not taken from the container
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
    ]
)
# Additional columns of a source, such as a caption or a second label, follow these.
EXTRA_TYPES = (pa.string(), pa.int64(), pa.float64())


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

    `window_s`, of a view only, is the time window from which frames are taken: begin and end in seconds from
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
    window_s: tuple[float, float] | None = None


@dataclass(frozen=True, kw_only=True)
class Shard:
    """One tar: file name, number of samples, size in bytes, sha256 in hex ("" if unknown)."""

    name: str
    samples: int
    bytes: int
    sha256: str


class ShardIndex:
    """An opened data set, or a view of one. Opening reads only the json file; the rows are memory-mapped.

    Unpickling opens the same files again, so all processes share their memory.
    """

    def __init__(
        self,
        folder: Location,
        table: pa.Table,
        description: dict[str, Any],
        local_index: LocalIndex,
        rows: IndexView | None = None,
    ):
        self.folder = folder
        self.cache = local_index.cache
        classes = None if rows is None else rows.classes
        self.classes: tuple[str, ...] = tuple(description["classes"]) if classes is None else classes
        self.shards: tuple[Shard, ...] = tuple(Shard(**shard) for shard in description["shards"])
        self.fingerprint: str = description["fingerprint"]
        self.sha256: str = description.get("index_sha256", "")
        self.made_by: dict[str, Any] = description.get("made_by", {})
        self.local_index = local_index
        self._table = table
        self._description = description
        self._rows = rows
        self._batches = table.select(COLUMNS.names).to_batches()
        self._starts = np.cumsum([0, *(len(batch) for batch in self._batches[:-1])]).tolist()

    @property
    def extra(self) -> tuple[str, ...]:
        """Names of the columns that the source, or a view, adds to the schema's."""
        names = [*self._table.schema.names, *(() if self._rows is None else self._rows.columns)]
        return tuple(dict.fromkeys(names))[len(COLUMNS) :]

    @property
    def identity(self) -> str:
        """Fingerprint of shards and index, including labels, keys and order; independent of the location."""
        identity = f"{self.fingerprint}-{self.sha256[:16]}"
        return identity if self._rows is None else f"{identity}-{self._rows.digest}"

    def __len__(self) -> int:
        return self._table.num_rows if self._rows is None else len(self._rows)

    def sample(self, position: int) -> Sample:
        """The sample at a position of the index; training uses another order."""
        if not 0 <= position < len(self):
            raise IndexError(f"{self.folder} holds {len(self)} samples, got position {position}")
        row = position if self._rows is None else int(self._rows.position_R[position])
        batch = bisect_right(self._starts, row) - 1
        [values] = self._batches[batch].slice(row - self._starts[batch], 1).to_pylist()
        if self._rows is not None:
            own = {name: column[position] for name, column in self._rows.columns.items() if name in values}
            values |= {**own, "window_s": self._rows.window_s(position)}
        return Sample(**values)

    def column(self, name: str) -> np.ndarray:
        """A column as a numpy array, without a copy if the type allows it."""
        return self.arrow_column(name).to_numpy()

    def arrow_column(self, name: str) -> pa.ChunkedArray:
        """A column as an Arrow array."""
        if self._rows is None:
            return self._table.column(name)
        if name not in self._rows.columns:
            return self._table.column(name).take(pa.array(self._rows.position_R))
        known = self._table.schema.field(name).type if name in COLUMNS.names else None
        return pa.chunked_array([pa.array(self._rows.columns[name], type=known)])

    def view(
        self,
        positions: Sequence[int] | np.ndarray,
        *,
        window_s: Sequence[tuple[float, float]] | np.ndarray | None = None,
        columns: Mapping[str, Sequence[Any]] | None = None,
        classes: Sequence[str] | None = None,
    ) -> "ShardIndex":
        """Rows of this data set as another data set, without a copy.

        Args:
            positions: the rows; repeats are allowed.
            window_s: for each row, begin and end of the time window from which frames are taken, in seconds
                from the start of the sample. A frame belongs to a window if its middle lies inside.
            columns: values of replaced or added columns, one per row, None for null.
            classes: names of the classes of a replaced `label`.

        Raises:
            IndexError: a position outside the data set.
            ValueError: wrong number of values, or a time window outside the video.
        """
        position_R = np.asarray(positions, dtype=np.int64).reshape(-1)
        outside_O = position_R[(position_R < 0) | (position_R >= len(self))]
        if len(outside_O):
            raise IndexError(f"{self.folder} holds {len(self)} samples, got position {outside_O[0]}")
        window_R2 = None if window_s is None else np.asarray(window_s, dtype=np.float64).reshape(-1, 2)
        values = {
            name: [value.item() if isinstance(value, np.generic) else value for value in column]
            for name, column in (columns or {}).items()
        }
        for name, given in {"window_s": window_R2, **values}.items():
            if given is not None and len(given) != len(position_R):
                raise ValueError(
                    f"{name}: expected a value for each of {len(position_R)} rows, got {len(given)}"
                )
        base = IndexView(position_R=np.arange(len(self))) if self._rows is None else self._rows
        rows = base.rows(position_R, window_R2, values, tuple(classes) if classes is not None else None)
        view = ShardIndex(self.folder, self._table, self._description, self.local_index, rows)
        if window_R2 is not None:
            check_windows(window_R2, view.column("duration_s"), view.column("frames"))
        return view

    def shard_location(self, sample: Sample) -> Location:
        """The location of a sample's shard."""
        return self.folder / self.shards[sample.shard].name

    def __reduce__(self) -> tuple[Any, ...]:
        return load_index, (self.folder, self.local_index.for_other_process(), self._rows)


def open_index(
    folder: str | Path | Location,
    *,
    cache: Cache | None = None,
    check_shards: bool = True,
    outage_s: float | None = None,
) -> ShardIndex:
    """Open the data set in a local or remote folder of shards.

    Args:
        cache: stores samples of remote shards.
        check_shards: reject a folder with missing or truncated shards.
        outage_s: how long to wait for a storage that is down, now and at each sample; None keeps the
            value of the location, 0 by default.

    Raises:
        StorageUnavailable: the storage was down for that long.
        DataError: the folder is missing or empty, lacks shards, holds no index or one of another format.
        ValueError: a URL with an unsupported scheme.
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
            f"{folder} holds no samples; fix: check the source and the reasons in {folder}/rejected.jsonl"
        )
    if check_shards:
        check_shards_exist(folder, {shard.name: shard.bytes for shard in index.shards})
    return index


def load_index(folder: Location, local_index: LocalIndex, rows: IndexView | None = None) -> ShardIndex:
    """Open the local files of an index.

    Args:
        rows: the rows of a view; all by default.
    """
    try:
        description = json.loads((local_index.folder / DATASET_NAME).read_text(encoding="utf-8"))
        table = pa.ipc.open_file(pa.memory_map(str(local_index.folder / INDEX_NAME))).read_all()
    except OSError as error:
        raise DataError(f"the index in {folder} cannot be read: {error.strerror or error}") from error
    except (json.JSONDecodeError, UnicodeDecodeError, pa.ArrowInvalid) as error:
        raise DataError(f"the index in {folder} is damaged ({error}); fix: shard the source again") from error
    _check_format(folder, description.get("format"))
    fixed, extra = list(table.schema)[: len(COLUMNS)], list(table.schema)[len(COLUMNS) :]
    if fixed != list(COLUMNS) or any(column.type not in EXTRA_TYPES for column in extra):
        raise DataError(
            f"{folder / INDEX_NAME} does not have the columns of format {FORMAT}; fix: shard the source again"
        )
    if len(table) != description["samples"]:
        raise DataError(
            f"{folder}: expected {description['samples']} samples as in {DATASET_NAME}, got {len(table)} in "
            f"{INDEX_NAME}: the two files come from different runs; fix: shard the source again"
        )
    return ShardIndex(folder, table, description, local_index, rows)


def _check_format(folder: Location, given: Any) -> None:
    if given != FORMAT:
        is_newer = isinstance(given, int) and given > FORMAT
        fix = "install the version that wrote it, or a newer one" if is_newer else "shard the source again"
        raise DataError(f"{folder}: expected an index of format {FORMAT}, got {given!r}; fix: {fix}")


def open_data_sets(folder: Location, *, check_shards: bool = True) -> dict[str, ShardIndex]:
    """Open the data set in a folder, named "", or the data sets of its subfolders by their names.

    Raises:
        DataError: there is none, or its index cannot be used.
    """
    names = [] if (folder / DATASET_NAME).exists() else list_data_sets(folder, DATASET_NAME)
    names.sort(key=lambda name: SPLITS.index(name) if name in SPLITS else len(SPLITS))
    folders = {name: folder / name for name in names} or {"": folder}
    return {name: open_index(folder, check_shards=check_shards) for name, folder in folders.items()}


def dictionary_encode_column(indexes: Sequence[ShardIndex], name: str) -> tuple[Any, list[np.ndarray]]:
    """Encode a text column of several data sets as numbers.

    Returns:
        The distinct values as an Arrow array, and per data set the code of every sample's value, -1 for null.
    """
    chunks = [chunk for index in indexes for chunk in index.arrow_column(name).chunks]
    together = pa.chunked_array(chunks).dictionary_encode()  # one dictionary for all chunks
    codes = np.concatenate([chunk.indices.fill_null(-1).to_numpy() for chunk in together.chunks])
    ends = np.cumsum([len(index) for index in indexes])[:-1]
    return together.chunk(0).dictionary, np.split(codes, ends)


class Leak(NamedTuple):
    """A value that samples of several data sets have.

    Attributes:
        first: by the number of each data set, the position of its first sample with this value.
        samples: number of samples with this value in all data sets.
    """

    value: str
    first: dict[int, int]
    samples: int


def find_leaks(values: Any, codes: Sequence[np.ndarray]) -> list[Leak]:
    """Find the non-empty values of `dictionary_encode_column` that occur in more than one data set."""
    uniques = [np.unique(of_set, return_index=True, return_counts=True) for of_set in codes]
    set_count = np.zeros(len(values), dtype=np.int32)
    for present, _, _ in uniques:
        set_count[present[present >= 0]] += 1
    found = []
    for code in np.flatnonzero(set_count > 1).tolist():
        if not (value := values[code].as_py()):
            continue
        first, samples = {}, 0
        for number, (present, position, count) in enumerate(uniques):
            at = int(np.searchsorted(present, code))
            if at < len(present) and present[at] == code:
                first[number] = int(position[at])
                samples += int(count[at])
        found.append(Leak(value=value, first=first, samples=samples))
    return found


def write_index(
    folder: Path,
    samples: Sequence[Sample],
    shards: Sequence[Shard],
    classes: Sequence[str],
    made_by: dict[str, Any],
    extra: Mapping[str, Sequence[Any]] | None = None,
) -> None:
    """Write `index.arrow`, then `dataset.json`; its presence marks a complete data set.

    Args:
        extra: more columns of text, integers or floats: one value or None per sample.
    """
    rows = [asdict(sample) for sample in samples]
    table = pa.Table.from_pylist(rows, schema=COLUMNS)
    for name, values in (extra or {}).items():
        table = table.append_column(name, pa.array(values))
    partial_index = folder / f"{INDEX_NAME}.partial"
    with pa.OSFile(str(partial_index), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=_ROWS_PER_CHUNK)
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
    """Digest of the shards' content: equal for equal shards in equal order, independent of the location."""
    return hashlib.sha256("".join(shard.sha256 for shard in shards).encode()).hexdigest()[:16]
