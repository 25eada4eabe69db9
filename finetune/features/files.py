"""Feature files: npz or parquet with one row per vector, and the files of temporal action detection.

    OUT.npz, OUT.parquet             columns `features`, `key` and others, and the provenance
    FOLDER/features/VIDEO.npy        (T, D), for ActionFormer and OpenTAD
    FOLDER/annotations.json          duration, fps, frame and annotations of each video
    FOLDER/category_idx.txt          names of the classes, for OpenTAD
    FOLDER/provenance.json

A file is written to a temporary name and renamed, so it is complete or absent.
"""

import json
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias
from zipfile import BadZipFile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from kinemae.data_tools.command import DataError
from kinemae.data_tools.index import ShardIndex

SUFFIXES = (".npz", ".parquet")
FEATURES, KEY, PROVENANCE, THUMBNAIL = "features", "key", "provenance", "thumbnail"
_META = b"kinemae"
_ROWS_AT_ONCE = 4096
FIX = "fix: write arrays `features` (samples x values) and `key`, optionally `label` and `group`"


Schema: TypeAlias = pa.Schema


class Rows(NamedTuple):
    """Some rows of a file: features_RX or tokens_RND, and columns of equal length."""

    features: np.ndarray
    columns: dict[str, list[Any]]


@dataclass(frozen=True, kw_only=True)
class FeatureTable:
    """Features in memory.

    Attributes:
        features: features_RD, or tokens_RND.
        columns: values by name, one per row; `key` is always there. None marks a missing value.
        provenance: how KineMAE made the features; empty for files of other software.
    """

    features: np.ndarray
    columns: dict[str, list[Any]]
    provenance: dict[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.features)

    @property
    def keys(self) -> list[str]:
        """Key of each row."""
        return [str(key) for key in self.columns[KEY]]

    @property
    def videos(self) -> list[str]:
        """Key of each row's video; the row's own key in files of other software."""
        return [str(video) for video in self.columns.get("video", self.columns[KEY])]

    @property
    def vectors_RD(self) -> np.ndarray:
        """One float32 vector per row: the features, or the mean of the tokens."""
        features = self.features if self.features.ndim == 2 else self.features.mean(axis=1, dtype=np.float32)
        return np.ascontiguousarray(features, dtype=np.float32)

    @property
    def thumbnails(self) -> list[bytes] | None:
        """A JPEG of each row."""
        return self.columns.get(THUMBNAIL)


def read_features(path: Path, *, named: str | None = None) -> FeatureTable:
    """Read an npz or parquet file of KineMAE or of other software.

    Args:
        named: config key and file, for messages.

    Raises:
        DataError: the file is missing or damaged, lacks a column, or its columns have different lengths.
    """
    named = named or str(path)
    try:
        columns, provenance = (_read_npz if path.suffix == ".npz" else _read_parquet)(path)
    except FileNotFoundError as error:
        raise DataError(f"{named}: expected a file of features, got no file; {FIX}") from error
    except (OSError, ValueError, EOFError, BadZipFile, pa.ArrowInvalid) as error:
        raise DataError(f"{named}: expected an npz or parquet file, got an error: {error}; {FIX}") from error
    missing = [name for name in (FEATURES, KEY) if name not in columns]
    if missing:
        raise DataError(f"{named}: expected the column {missing[0]}, got {', '.join(columns)}; {FIX}")
    try:
        features = np.asarray(columns.pop(FEATURES))
        if features.dtype.kind not in "fiu":
            features = features.astype(np.float32)
    except (ValueError, TypeError) as error:
        raise DataError(f"{named}: expected numbers in `features`, got an error: {error}; {FIX}") from error
    if features.ndim not in (2, 3) or not features.size:
        raise DataError(
            f"{named}: expected `features` of shape (samples, values), got {features.shape}; {FIX}"
        )
    for name, column in columns.items():
        if len(column) != len(features):
            raise DataError(
                f"{named}: expected {len(features)} values in `{name}`, one per row of `features`, got "
                f"{len(column)}; {FIX}"
            )
    return FeatureTable(features=features, columns=columns, provenance=provenance)


def _read_npz(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    with np.load(path, allow_pickle=False) as arrays:
        found = {name: arrays[name] for name in arrays.files}
    provenance = json.loads(str(found.pop(PROVENANCE))) if PROVENANCE in found else {}
    columns = {name: array if name == FEATURES else _listed(array) for name, array in found.items()}
    if provenance:
        columns["label"] = [label or None for label in columns["label"]]
    return columns, provenance


def _listed(array: np.ndarray) -> list[Any]:
    values = array.tolist()
    return values if isinstance(values, list) else [values]


def _read_parquet(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    table = pq.read_table(path)
    stored = (table.schema.metadata or {}).get(_META)
    columns = {
        name: _stacked(table.column(name)) if name == FEATURES else table.column(name).to_pylist()
        for name in table.column_names
    }
    return columns, json.loads(stored) if stored else {}


def _stacked(column: pa.ChunkedArray) -> np.ndarray:
    """Lists of equal length as one array, without Python objects."""
    parts = []
    for chunk in column.chunks:
        sizes = [len(chunk)]
        while pa.types.is_list(chunk.type) or pa.types.is_fixed_size_list(chunk.type):
            lengths = set(chunk.value_lengths().to_pylist()) if len(chunk) else {0}
            if len(lengths) != 1 or None in lengths:
                raise ValueError("rows of `features` have different lengths")
            sizes.append(lengths.pop())
            chunk = chunk.flatten()
        parts.append(chunk.to_numpy(zero_copy_only=False).reshape(sizes))
    if len({part.shape[1:] for part in parts if len(part)}) > 1:
        raise ValueError("rows of `features` have different lengths")
    return np.concatenate([part for part in parts if len(part)] or [np.empty((0, 0), np.float32)])


def schema(
    index: ShardIndex,
    shape: Sequence[int],
    dtype: str,
    *,
    has_thumbnails: bool,
    provenance: Mapping[str, Any],
) -> Schema:
    """The columns of the features of a data set.

    Args:
        shape: of one row of features.
    """
    features = pa.from_numpy_dtype(np.dtype(dtype))
    for size in reversed(shape):
        features = pa.list_(features, size)
    types = {
        KEY: pa.string(), FEATURES: features, "video": pa.string(), "label": pa.string(),
        "group": pa.string(), "window": pa.int32(), "start_s": pa.float64(), "end_s": pa.float64(),
    }  # fmt: skip
    extra = {name: index.arrow_column(name).type for name in index.extra if name not in types}
    thumbnail = {THUMBNAIL: pa.binary()} if has_thumbnails else {}
    described = {_META: json.dumps(provenance, ensure_ascii=False).encode()}
    return pa.schema({**types, **extra, **thumbnail}.items(), metadata=described)


def write_parquet(out: Path, parts: Iterable[Rows], columns: Schema) -> int:
    """Write parts one after the other, with one of them in memory; return the number of rows."""
    partial, rows = out.with_name(f"{out.name}.writing"), 0
    with pq.ParquetWriter(partial, columns, compression="zstd") as writer:
        for part in parts:
            arrays = {FEATURES: _lists(part.features), **part.columns}
            writer.write_table(pa.table({name: arrays[name] for name in columns.names}, schema=columns))
            rows += len(part.features)
    partial.replace(out)
    return rows


def _lists(array: np.ndarray) -> pa.Array:
    """An array of rows as nested lists of fixed size."""
    found = pa.array(np.ascontiguousarray(array).reshape(-1))
    for size in reversed(array.shape[1:]):
        found = pa.FixedSizeListArray.from_arrays(found, size)
    return found


def join_parquet(out: Path, parts: Sequence[Path], columns: Schema, skipped: Container[str]) -> None:
    """Concatenate files of the same columns without the rows of skipped videos."""
    partial = out.with_name(f"{out.name}.writing")
    with pq.ParquetWriter(partial, columns, compression="zstd") as writer:
        for batch in _batches(parts, skipped):
            writer.write_batch(batch.replace_schema_metadata(columns.metadata))
    partial.replace(out)


def join_npz(out: Path, parts: Sequence[Path], columns: Schema, skipped: Container[str]) -> None:
    """Convert files of the same columns to one npz file; the features are never in memory as a whole."""
    names = [name for name in columns.names if name != FEATURES]
    found: dict[str, list[Any]] = {name: [] for name in names}
    for batch in _batches(parts, skipped, names):
        for name in names:
            found[name] += batch.column(name).to_pylist()
    scratch, first = out.with_name(f"{out.name}.npy"), 0
    rows_X: np.ndarray | None = None
    for batch in _batches(parts, skipped):
        some = _stacked(pa.chunked_array([batch.column(FEATURES)]))
        if rows_X is None:
            shape = (len(found[KEY]), *some.shape[1:])
            rows_X = np.lib.format.open_memmap(scratch, mode="w+", dtype=some.dtype, shape=shape)
        rows_X[first : first + len(some)] = some
        first += len(some)
    assert rows_X is not None, "checked before: at least one row"
    arrays: dict[str, Any] = {
        name: _plain(values, columns.field(name).type) for name, values in found.items()
    }
    partial = out.with_name(f"{out.name}.writing")
    with partial.open("wb") as opened:  # numpy would add a suffix to a name
        np.savez(opened, features=rows_X, provenance=np.array(columns.metadata[_META].decode()), **arrays)
    scratch.unlink()
    partial.replace(out)


def _batches(
    parts: Sequence[Path], skipped: Container[str], names: list[str] | None = None
) -> Iterator[pa.RecordBatch]:
    """Rows of files in batches, without the rows of skipped videos."""
    for part in parts:
        for batch in pq.ParquetFile(part).iter_batches(batch_size=_ROWS_AT_ONCE, columns=names):
            is_kept = [video not in skipped for video in batch.column("video").to_pylist()]
            yield batch if all(is_kept) else batch.filter(pa.array(is_kept))


def read_video_features(parts: Sequence[Path], skipped: Container[str]) -> Iterator[tuple[str, np.ndarray]]:
    """The features of each video, in order."""
    waiting: list[np.ndarray] = []
    before = ""
    for batch in _batches(parts, skipped, ["video", FEATURES]):
        some = _stacked(pa.chunked_array([batch.column(FEATURES)]))
        videos = batch.column("video").to_pylist()
        for video, group in groupby(range(len(videos)), key=videos.__getitem__):
            if video != before and waiting:
                yield before, np.concatenate(waiting)
                waiting = []
            before = video
            waiting.append(some[list(group)])
    if waiting:
        yield before, np.concatenate(waiting)


def read_provenance(path: Path) -> dict[str, Any]:
    """The provenance of a file or folder of features.

    Raises:
        DataError: there is none.
    """
    try:
        if path.is_dir():
            found = json.loads((path / "provenance.json").read_text(encoding="utf-8"))
        elif path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as arrays:
                found = json.loads(str(arrays[PROVENANCE]))
        else:
            found = json.loads((pq.read_schema(path).metadata or {})[_META])
    except (OSError, ValueError, KeyError, EOFError, BadZipFile, pa.ArrowInvalid) as error:
        raise DataError(
            f"{path}: expected features of `kinemae finetune features`, got an error: {error!r}; fix: choose "
            "another OUT, or remove it"
        ) from error
    assert isinstance(found, dict)
    return found


def _plain(values: list[Any], kind: pa.DataType) -> np.ndarray:
    """A column without objects: a missing text is empty, a missing number is NaN."""
    if pa.types.is_string(kind):
        return np.array([value or "" for value in values])
    if pa.types.is_binary(kind):
        return np.array(values, dtype=bytes)  # JPEG ends in FF D9, so no byte is lost
    return np.array([np.nan if value is None else value for value in values])
