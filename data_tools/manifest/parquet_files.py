"""Parquet files: reading tables of videos, and `kinemae data export SHARDS OUT.parquet`."""

import argparse
import datetime
import json
import math
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from kinemae.data_tools.command import DataError, log, writing_to
from kinemae.data_tools.files import replaced_file
from kinemae.data_tools.index import COLUMNS, ShardIndex, open_data_sets
from kinemae.data_tools.storage.location import local_out, location
from kinemae.data_tools.unread import with_nulls

_ROWS_AT_ONCE = 65_536


def run_export(arguments: argparse.Namespace) -> None:
    """Write the rows of a data set, or of all its splits, to one parquet file."""
    out = local_out(arguments.out)
    if out.suffix != ".parquet" or out.exists():
        raise ValueError(f"OUT {out}: expected a new file NAME.parquet; fix: choose another OUT")
    sets = open_data_sets(location(arguments.shards), check_shards=False)
    schema = _exported_schema(list(sets.values()))
    with (
        writing_to(out.parent),
        replaced_file(out) as partial,
        pq.ParquetWriter(partial, schema, compression="zstd") as writer,
    ):
        for split, index in sets.items():
            for batch in map(with_nulls, index.batches()):
                writer.write_table(_exported(batch, split, index, schema))
    rows = sum(map(len, sets.values()))
    log.info("%s: %d samples, %d columns", out, rows, len(schema))
    if arguments.json:
        sys.stdout.write(json.dumps({"samples": rows, "columns": schema.names}) + "\n")


def _exported_schema(indexes: Sequence[ShardIndex]) -> pa.Schema:
    """The columns of all data sets; label and shard are names."""
    types = {"split": pa.string()} | {column.name: column.type for column in COLUMNS}
    types |= {"label": pa.string(), "shard": pa.string()}
    for index in indexes:
        for name in index.extra:
            kind = index.arrow_column(name).type
            known = types.setdefault(name, kind)
            if kind != known:  # integers in one and floats in another data set
                types[name] = pa.string() if pa.string() in (kind, known) else pa.float64()
    return pa.schema(types.items())


def _exported(batch: pa.RecordBatch, split: str, index: ShardIndex, schema: pa.Schema) -> pa.Table:
    arrays: dict[str, Any] = {"split": pa.array([split] * len(batch), pa.string())}
    arrays |= dict(zip(batch.schema.names, batch.columns, strict=True))
    classes = index.classes
    labels = (classes[number] if number >= 0 else None for number in batch.column("label").to_pylist())
    arrays["label"] = pa.array(labels, pa.string())
    used = batch.column("shard").dictionary_encode()
    names = {number: index.shards[number].name for number in used.dictionary.to_pylist()}
    arrays["shard"] = pa.array([names[number] for number in batch.column("shard").to_pylist()], pa.string())
    missing = {name: pa.nulls(len(batch)) for name in schema.names if name not in arrays}
    return pa.table(
        [(arrays | missing)[name].cast(schema.field(name).type) for name in schema.names], schema=schema
    )


def column_types(file: Path) -> dict[str, str]:
    """The columns of a parquet file with their types: text, number, time, or the name of another type.

    Raises:
        DataError: the file cannot be read.
    """
    with _reading(file):
        return {column.name: _kind(column.type) for column in pq.read_schema(file)}


def read_rows(file: Path, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Rows of a parquet file without empty cells; true and false are 1 and 0, times are texts.

    Raises:
        DataError: the file cannot be read.
    """
    with _reading(file), pq.ParquetFile(file) as opened:
        for batch in opened.iter_batches(batch_size=_ROWS_AT_ONCE, columns=list(columns)):
            for row in batch.to_pylist():
                yield {name: _plain(value) for name, value in row.items() if not _is_empty(value)}


@contextmanager
def _reading(file: Path) -> Iterator[None]:
    """Turn an error of a damaged or missing file into a `DataError`."""
    try:
        yield
    except (OSError, pa.ArrowException) as error:
        reason = " ".join(str(error).split())
        raise DataError(
            f"{file}: expected a parquet file, got an error ({reason}); fix: write it again"
        ) from error


def _kind(kind: pa.DataType) -> str:
    if pa.types.is_dictionary(kind):
        return _kind(kind.value_type)
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_null(kind):
        return "text"
    if pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind):
        return "number"
    return "time" if pa.types.is_temporal(kind) else str(kind)


def _is_empty(value: Any) -> bool:
    return value is None or value == "" or (isinstance(value, float) and math.isnan(value))


def _plain(value: Any) -> Any:
    if isinstance(value, bool):
        return int(value)
    if isinstance(value, datetime.datetime | datetime.date | datetime.time):
        return value.isoformat()
    return str(value) if isinstance(value, datetime.timedelta) else value
