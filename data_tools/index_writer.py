"""Write the index of a data set in bounded memory, and its list of removed rows."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from kinemae.data_tools.command import DataError, writing_to
from kinemae.data_tools.data_set_files import DataFile, DataSetChange
from kinemae.data_tools.index_schema import COLUMNS, SHARD_COLUMNS, Sample, Shard, ShardTable, shard_table
from kinemae.data_tools.storage.location import Location, location

# The text of one chunk must stay below 2 GiB.
_ROWS_PER_CHUNK = 65_536
_IDENTIFYING = ("added", "of")
REMOVED_COLUMNS = pa.schema([("row", pa.int64())])


class IndexWriter:
    """A new index, or a new state of one; `dataset.json` is written when the `with` block ends without error.

        with IndexWriter(folder, classes=classes, made_by=made_by) as writer:
            writer.add_samples(samples)
            writer.add_shards(shards)

    Args:
        folder: local or remote folder of the data set.
        classes: names of the classes of `label`, in order.
        made_by: command and config.
        extra: types of additional columns by name, see `EXTRA_TYPES`.
        base: `ShardIndex.state` of the state that is changed; `ABSENT` for a new data set that replaces none;
            None for one that replaces any.

    Raises:
        DataError: another process writes to the folder, or has changed the data set since it was opened.
    """

    def __init__(
        self,
        folder: str | Path | Location,
        *,
        classes: Sequence[str],
        made_by: Mapping[str, Any],
        extra: Mapping[str, pa.DataType] | None = None,
        base: bytes | None = None,
    ):
        self._change = DataSetChange(location(folder), base)
        self._content = {"classes": list(classes), "made_by": dict(made_by)}
        self._schema = pa.schema([*COLUMNS, *(extra or {}).items()])
        self._pending: list[pa.Table] = []
        self._pending_rows = 0
        self._rows = 0
        self._removed = np.empty(0, dtype=np.int64)
        self._shards: list[pa.Table] = [SHARD_COLUMNS.empty_table()]

    def __enter__(self) -> "IndexWriter":
        self._change.__enter__()
        self._folder = self._change.partial("index").parent
        self._file = pa.OSFile(str(self._change.partial("index")), "wb")
        self._writer = pa.ipc.new_file(self._file, self._schema)
        return self

    def __exit__(self, kind: type[BaseException] | None, *exception: object) -> None:
        try:
            if kind is None:
                self._write(self._pending)
            with writing_to(self._folder):
                self._writer.close()
                self._file.close()
            if kind is None:
                self._commit()
        finally:
            self._change.__exit__()

    @property
    def shard_count(self) -> int:
        """Number of shards so far: the `shard` of samples in the next one."""
        return sum(map(len, self._shards))

    def add_samples(
        self, samples: Sequence[Sample], extra: Mapping[str, Sequence[Any]] | None = None
    ) -> None:
        """Append samples, with a value or None for each in every additional column."""
        for begin in range(0, len(samples), _ROWS_PER_CHUNK):
            part = slice(begin, begin + _ROWS_PER_CHUNK)
            table = pa.Table.from_pylist([vars(sample) for sample in samples[part]], schema=COLUMNS)
            for name, values in (extra or {}).items():
                table = table.append_column(name, pa.array(values[part], self._schema.field(name).type))
            self.add_batch(table)

    def add_batch(self, batch: pa.RecordBatch | pa.Table) -> None:
        """Append rows in columns, with nulls in additional columns that are missing."""
        table = batch if isinstance(batch, pa.Table) else pa.Table.from_batches([batch])
        for part in table.to_batches(_ROWS_PER_CHUNK):
            columns = [self._column(part, field) for field in self._schema]
            self._pending.append(pa.table(columns, schema=self._schema))
            self._pending_rows += len(part)
            if self._pending_rows >= _ROWS_PER_CHUNK:
                whole = pa.concat_tables(self._pending).combine_chunks()
                self._write([whole.slice(0, _ROWS_PER_CHUNK)])
                self._pending = [whole.slice(_ROWS_PER_CHUNK)]
                self._pending_rows -= _ROWS_PER_CHUNK

    def _column(self, batch: pa.RecordBatch, field: pa.Field) -> pa.Array:
        if field.name not in batch.schema.names:
            return pa.nulls(len(batch), field.type)
        try:
            return batch.column(field.name).cast(field.type)
        except pa.ArrowInvalid as error:
            raise DataError(
                f"{self._change.folder}: expected values of the column {field.name!r} that are exact as "
                f"{field.type}, got others: {error}; fix: make the data sets again with equal types of this "
                "column"
            ) from error

    def add_shards(self, shards: Sequence[Shard] | ShardTable) -> None:
        """Append shards."""
        self._shards.append((shards if isinstance(shards, ShardTable) else shard_table(shards)).table)

    def remove_rows(self, rows: np.ndarray) -> None:
        """Mark rows of the new index as removed; ascending and unique numbers."""
        self._removed = rows

    def replace_shards(self, names: Iterable[str]) -> None:
        """Name shards that only the present state uses; the change after this one deletes them."""
        self._change.replace_shards(names)

    def _write(self, tables: Sequence[pa.Table]) -> None:
        if rows := sum(map(len, tables)):
            # `take` copies: Arrow would write some bytes beyond a slice, and equal rows give equal files.
            whole = pa.concat_tables(tables).combine_chunks().take(np.arange(rows))
            with writing_to(self._folder):
                self._writer.write_table(whole.combine_chunks())
            self._rows += rows

    def _commit(self) -> None:
        shards = ShardTable(pa.concat_tables(self._shards))
        self._change.add_file("index", self._rows)
        _add_table(self._change, "shards", shards.table)
        _add_removed(self._change, self._removed)
        self._change.commit(self._content, shards.digests)


def origin(made_by: Mapping[str, Any]) -> dict[str, Any]:
    """`made_by` without the fields that identify the samples, which a change of the samples makes untrue."""
    return {name: value for name, value in made_by.items() if name not in _IDENTIFYING}


def write_index(
    folder: Path | Location,
    samples: Sequence[Sample],
    shards: Sequence[Shard],
    classes: Sequence[str],
    made_by: Mapping[str, Any],
    extra: Mapping[str, Sequence[Any]] | None = None,
) -> None:
    """Write a small index at once; see `IndexWriter`.

    Args:
        extra: more columns of text, integers or floats: one value or None per sample.
    """
    arrays = {name: pa.array(values) for name, values in (extra or {}).items()}
    types = {name: pa.string() if pa.types.is_null(each.type) else each.type for name, each in arrays.items()}
    with IndexWriter(folder, classes=classes, made_by=made_by, extra=types) as writer:
        writer.add_samples(samples, extra)
        writer.add_shards(shards)


def write_removed(folder: Location, state: bytes, rows: np.ndarray, shards: ShardTable) -> None:
    """Replace the list of removed rows of a data set; its index stays as it is.

    Args:
        state: `ShardIndex.state` of the state that is changed.
        rows: numbers of all removed rows of the index, ascending and unique.
        shards: the shards of that state.
    """
    described = json.loads(state)
    with DataSetChange(folder, state) as change:
        if "shards" not in change.files:  # format 2
            _add_table(change, "shards", shards.table)
        _add_removed(change, rows)
        content = {"classes": described["classes"], "made_by": origin(described.get("made_by", {}))}
        change.commit(content, shards.digests)


def _add_removed(change: DataSetChange, rows: np.ndarray) -> None:
    if len(rows):
        _add_table(change, "removed", pa.table([pa.array(rows)], schema=REMOVED_COLUMNS))
    else:
        change.drop("removed")


def _add_table(change: DataSetChange, role: str, table: pa.Table) -> DataFile:
    path = change.partial(role)
    with (
        writing_to(path.parent),
        pa.OSFile(str(path), "wb") as file,
        pa.ipc.new_file(file, table.schema) as writer,
    ):
        writer.write_table(table.combine_chunks(), max_chunksize=_ROWS_PER_CHUNK)
    return change.add_file(role, len(table))
