"""Data sets of shards on disk: opening an index and reading its rows.

    FOLDER/
      shard-000000.tar ...   WebDataset tars; a sample is KEY.json (its row of the index) and KEY.mp4
      index.arrow            one row per sample (`COLUMNS`), an uncompressed, memory-mapped Arrow file
      shards.arrow           one row per shard: name, samples, bytes, sha256
      dataset.json           names the files, see `data_set_files.py`; classes, fingerprint, origin
      rejected.jsonl         rejected videos with reasons

The index holds shard, offset and length of the video bytes inside the tar, so a sample is read by one `pread`
or one range request. The name of a shard may be a URL or an absolute path; the shards of an indexed
WebDataset stay where they are. `index_writer.py` writes and changes indexes.
"""

import json
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from kinemae.data_tools.command import DataError
from kinemae.data_tools.data_set_files import DATASET_NAME, FORMAT, INDEX_NAME, DataFile, files_of
from kinemae.data_tools.folder_checks import check_shards_exist, list_data_sets, not_a_data_set
from kinemae.data_tools.index_schema import (
    COLUMNS,
    DESCRIPTION_FORMAT,
    DESCRIPTION_KEY,
    EXTRA_TYPES,
    NO_LABEL,
    REJECTED_NAME,
    SHARD_COLUMNS,
    Sample,
    Shard,
    ShardTable,
    VideoInfo,
    shard_table,
    with_frame_step,
)
from kinemae.data_tools.index_view import IndexView, check_windows
from kinemae.data_tools.index_writer import (
    REMOVED_COLUMNS,
    IndexWriter,
    origin,
    write_index,
    write_removed,
)
from kinemae.data_tools.manifest.videos import SPLITS
from kinemae.data_tools.row_set import RowSet
from kinemae.data_tools.storage.cache import Cache, LocalIndex, fetch_index, named_files
from kinemae.data_tools.storage.location import Location, StorageError, location
from kinemae.data_tools.storage.retries import retry_during_outage

__all__ = [
    "COLUMNS", "DATASET_NAME", "DESCRIPTION_FORMAT", "DESCRIPTION_KEY", "EXTRA_TYPES", "FORMAT", "INDEX_NAME",
    "NO_LABEL", "REJECTED_NAME", "IndexFiles", "IndexWriter", "Sample", "Shard", "ShardIndex", "ShardTable",
    "VideoInfo", "index_of_table", "load_index", "open_data_sets", "open_index", "origin",
    "write_index", "write_removed",
]  # fmt: skip

_OLD_FORMAT = 2  # the shards are in dataset.json
_ROWS_AT_ONCE = 1 << 20


@dataclass(frozen=True, kw_only=True)
class IndexFiles:
    """The opened files of an index.

    Attributes:
        table: one row per sample, with the columns of `COLUMNS` and additional ones.
        shards: the shards; the column `shard` is a position in them.
        description: the content of dataset.json.
        present: the rows that are not removed; None for all.
    """

    folder: Location
    table: pa.Table
    shards: ShardTable
    description: Mapping[str, Any]
    local_index: LocalIndex
    present: RowSet | None = None


class ShardIndex:
    """An opened data set, or a view of one. Opening reads only the json file; the rows are memory-mapped.

    Positions count the present rows: those that are not removed and that `filter` kept. Unpickling
    maps the same files again, so all processes share their memory.

    Args:
        kept: the rows that `filter` kept; None for all present rows.
        rows: the rows of a view.

    Attributes:
        files: the files of the index by role.
        state: the bytes of dataset.json, for a change that is based on this state.
    """

    def __init__(self, files: IndexFiles, kept: RowSet | None = None, rows: IndexView | None = None):
        self.folder = files.folder
        self.cache = files.local_index.cache
        self.state = files.local_index.state
        classes = None if rows is None else rows.classes
        self.classes: tuple[str, ...] = tuple(files.description["classes"]) if classes is None else classes
        self.shards = files.shards
        self.files = files_of(files.description)
        self.fingerprint: str = files.description["fingerprint"]
        self.made_by: dict[str, Any] = files.description.get("made_by", {})
        self.local_index = files.local_index
        self._files = files
        self._table = files.table
        self._kept = kept
        self._present = files.present if kept is None else kept
        self._rows = rows
        self._batches = self._table.select(COLUMNS.names).to_batches()
        self._starts = np.cumsum([0, *(len(batch) for batch in self._batches[:-1])]).tolist()

    @property
    def extra(self) -> tuple[str, ...]:
        """Names of the columns that the source, or a view, adds to the schema's."""
        names = [*self._table.schema.names, *(() if self._rows is None else self._rows.columns)]
        return tuple(dict.fromkeys(names))[len(COLUMNS) :]

    @property
    def extra_types(self) -> dict[str, pa.DataType]:
        """Types of the columns that the source adds."""
        return {field.name: field.type for field in list(self._table.schema)[len(COLUMNS) :]}

    @property
    def identity(self) -> str:
        """Digest of shards and rows, including labels, keys and order; independent of the location."""
        digests = [part.digest for part in (self._kept, self._rows) if part is not None]
        return "-".join([self.fingerprint, self.files["index"].sha256[:16], *digests])

    def __len__(self) -> int:
        if self._rows is not None:
            return len(self._rows)
        return self._table.num_rows if self._present is None else len(self._present)

    def row(self, position: int) -> int:
        """The row of the index file at a position.

        Raises:
            IndexError: the position is outside the data set.
        """
        if not 0 <= position < len(self):
            raise IndexError(f"{self.folder} holds {len(self)} samples, got position {position}")
        if self._rows is not None:
            position = int(self._rows.position_R[position])
        return position if self._present is None else self._present.row(position)

    def rows(self, position_R: np.ndarray) -> np.ndarray:
        """The rows of the index file at positions."""
        position_R = position_R if self._rows is None else self._rows.position_R[position_R]
        return position_R if self._present is None else self._present.rows(position_R)

    def sample(self, position: int) -> Sample:
        """The sample at a position of the index; training uses another order."""
        row = self.row(position)
        batch = bisect_right(self._starts, row) - 1
        [values] = self._batches[batch].slice(row - self._starts[batch], 1).to_pylist()
        if self._rows is not None:
            own = {name: column[position] for name, column in self._rows.columns.items() if name in values}
            values |= {**own, "window_s": self._rows.window_s(position)}
        return Sample(**values)

    def value(self, name: str, position: int) -> Any:
        """The value of a column at a position, None for null."""
        if self._rows is not None and name in self._rows.columns:
            return self._rows.columns[name][position]
        return self._table.column(name)[self.row(position)].as_py()

    def column(self, name: str) -> np.ndarray:
        """A column as a numpy array, without a copy if the type allows it and all rows are present."""
        return _to_numpy(self.arrow_column(name))

    def arrow_column(self, name: str) -> pa.ChunkedArray:
        """A column as an Arrow array."""
        if self._rows is not None and name in self._rows.columns:
            known = self._table.schema.field(name).type if name in COLUMNS.names else None
            return pa.chunked_array([pa.array(self._rows.columns[name], type=known)])
        column = self._table.column(name)
        if self._rows is not None:
            return column.take(pa.array(self.rows(np.arange(len(self)))))
        return column if self._present is None else column.filter(_arrow_mask(self._present))

    def column_range(self, name: str, begin: int, end: int) -> np.ndarray:
        """A column of numbers at consecutive positions, null as NaN, without reading the others."""
        if self._rows is not None and name in self._rows.columns:
            return np.array(self._rows.columns[name][begin:end], dtype=np.float64)
        if begin == end:
            return np.empty(0)
        column = self._table.column(name)
        if self._rows is not None:
            row_R = self.rows(np.arange(begin, end))
            first, last = int(row_R.min()), int(row_R.max())
            near = column.slice(first, last - first + 1)  # `take` copies a column of several chunks
            return near.take(pa.array(row_R - first)).to_numpy().astype(np.float64)
        if self._present is None:
            return column.slice(begin, end - begin).to_numpy().astype(np.float64)
        first, last = self._present.row(begin), self._present.row(end - 1)
        values = column.slice(first, last - first + 1).to_numpy()
        return values[self._present.mask(first, last + 1)].astype(np.float64)

    @cached_property
    def largest_frame_step(self) -> int:
        """The largest `frame_step` of a sample; 1 without samples."""
        total = len(self)
        parts = (  # to bound the memory
            self.column_range("frame_step", begin, min(begin + _ROWS_AT_ONCE, total))
            for begin in range(0, total, _ROWS_AT_ONCE)
        )
        return max((int(part.max()) for part in parts), default=1)

    def batches(self, columns: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
        """The present rows, some tens of thousands at a time; of a data set, not of a view."""
        assert self._rows is None
        begin = 0
        for batch in (self._table if columns is None else self._table.select(columns)).to_batches():
            if self._present is not None:
                batch_mask = pa.array(self._present.mask(begin, begin + len(batch)))
                yield batch.filter(batch_mask)
            else:
                yield batch
            begin += len(batch)

    @property
    def removed_R(self) -> np.ndarray:
        """Numbers of the removed rows of the index file, ascending."""
        return np.empty(0, np.int64) if self._files.present is None else self._files.present.removed()

    def with_removed(self) -> "ShardIndex":
        """The data set with its removed rows, to check or rewrite its files."""
        return ShardIndex(replace(self._files, present=None))

    def filter(self, is_kept_R: np.ndarray) -> "ShardIndex":
        """The rows whose value is True as another data set; one value per position.

        This takes one bit per row of the index. A repeat or another order needs a `view`.
        """
        if len(is_kept_R) != len(self):
            raise ValueError(f"expected a value for each of {len(self)} rows, got {len(is_kept_R)}")
        if self._rows is not None:
            return self.view(np.flatnonzero(is_kept_R))
        present = self._present
        kept = RowSet.from_mask(is_kept_R) if present is None else present.subset(is_kept_R)
        return ShardIndex(self._files, kept)

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
            window_s: for each row, start and end of the time window from which frames are taken, in seconds
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
        names = tuple(classes) if classes is not None else None
        if self._rows is None:
            rows = IndexView(position_R=position_R, window_R2=window_R2, columns=values, classes=names)
        else:
            rows = self._rows.rows(position_R, window_R2, values, names)
        view = ShardIndex(self._files, self._kept, rows)
        if window_R2 is not None:
            check_windows(window_R2, view.column("duration_s"), view.column("frames"))
        return view

    def shard_location(self, sample: Sample) -> Location:
        """The location of a sample's shard."""
        return self.folder / self.shards[sample.shard].name

    def __reduce__(self) -> tuple[Any, ...]:
        return load_index, (self.folder, self.local_index.for_other_process(), self._kept, self._rows)


def _to_numpy(column: pa.ChunkedArray) -> np.ndarray:
    """Convert a column; Arrow's own conversion imports pandas, 26 MB and a second for each process."""
    if column.null_count or not pa.types.is_primitive(column.type) or not column.num_chunks:
        return column.to_numpy()
    chunks = [np.from_dlpack(chunk) for chunk in column.chunks]
    return chunks[0] if len(chunks) == 1 else np.concatenate(chunks)


def _arrow_mask(rows: RowSet) -> pa.BooleanArray:
    """Whether each row of the index is in a set, without a copy."""
    return pa.BooleanArray.from_buffers(pa.bool_(), rows.total, [None, pa.py_buffer(rows.bits)])


def index_of_table(folder: Location, table: pa.Table, classes: Sequence[str], fingerprint: str) -> ShardIndex:
    """An index in memory, without videos, so that others read its columns as from shards."""
    description = {
        "format": _OLD_FORMAT,
        "samples": len(table),
        "classes": classes,
        "fingerprint": fingerprint,
    }
    local_index = LocalIndex(folder=Path(folder.url), state=b"")
    files = IndexFiles(
        folder=folder, table=table, shards=shard_table(()), description=description, local_index=local_index
    )
    return ShardIndex(files)


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
            lambda: fetch_index(folder, cache), outage_s=folder.retry_policy.outage_s
        )
    except StorageError as error:
        is_file = folder.path is not None and folder.path.is_file()
        if not (error.is_missing or is_file or folder.name.endswith(".tar")):
            raise
        raise not_a_data_set(folder, (DATASET_NAME, *_names(folder))) from error
    index = load_index(folder, local_index)
    if len(index) == 0:
        raise DataError(
            f"{folder} holds no samples; fix: check the source and the reasons in {folder}/rejected.jsonl"
        )
    if check_shards:
        check_shards_exist([(folder, index.shards.sizes)])
    return index


def _names(folder: Location) -> list[str]:
    """Names of the files that an index should have."""
    try:
        return [file.name for file in named_files((folder / DATASET_NAME).read())]
    except StorageError:
        return [INDEX_NAME]


def load_index(
    folder: Location, local_index: LocalIndex, kept: RowSet | None = None, rows: IndexView | None = None
) -> ShardIndex:
    """Open the local files of an index.

    Args:
        kept: the rows that `ShardIndex.filter` kept.
        rows: the rows of a view.
    """
    try:
        description = json.loads(local_index.state)
        _check_format(folder, description.get("format"))
        files = files_of(description)
        tables = {role: _map_table(local_index.folder / file.name) for role, file in files.items()}
        if "shards" not in files:
            tables["shards"] = pa.Table.from_pylist(description.pop("shards"), schema=SHARD_COLUMNS)
    except OSError as error:
        raise DataError(f"the index in {folder} cannot be read: {error.strerror or error}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"the index in {folder} is damaged ({error}); fix: shard the source again") from error
    tables["index"] = with_frame_step(tables["index"])
    _check_tables(folder, files, tables)
    opened = IndexFiles(
        folder=folder,
        table=tables["index"],
        shards=ShardTable(tables["shards"]),
        description=description,
        local_index=local_index,
        present=_present_rows(folder, tables.get("removed"), len(tables["index"])),
    )
    return ShardIndex(opened, kept, rows)


def _present_rows(folder: Location, removed: pa.Table | None, total: int) -> RowSet | None:
    try:
        return None if removed is None else RowSet.without(_to_numpy(removed.column("row")), total)
    except ValueError as error:
        raise DataError(f"the list of removed rows in {folder} is damaged: {error}") from error


def _map_table(path: Path) -> pa.Table:
    return pa.ipc.open_file(pa.memory_map(str(path))).read_all()


def _check_tables(folder: Location, files: Mapping[str, DataFile], tables: Mapping[str, pa.Table]) -> None:
    expected = {"index": COLUMNS, "shards": SHARD_COLUMNS, "removed": REMOVED_COLUMNS}
    for role, table in tables.items():
        name = files[role].name if role in files else DATASET_NAME
        fixed, extra = list(table.schema)[: len(expected[role])], list(table.schema)[len(expected[role]) :]
        may_have_more = role == "index" and all(column.type in EXTRA_TYPES for column in extra)
        if fixed != list(expected[role]) or (extra and not may_have_more):
            raise DataError(
                f"{folder / name} does not have the columns of format {FORMAT}; fix: shard the source again"
            )
        if role in files and len(table) != files[role].rows:
            what = "samples" if role == "index" else "rows"
            raise DataError(
                f"{folder}: expected {files[role].rows} {what} as in {DATASET_NAME}, got {len(table)} in "
                f"{name}: the two files come from different runs; fix: shard the source again"
            )


def _check_format(folder: Location, given: Any) -> None:
    if given not in (_OLD_FORMAT, FORMAT):
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
