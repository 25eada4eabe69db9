"""Features of other software: files with one row per sample, as npz or parquet."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from kinemae.data_tools.command import DataError
from kinemae.data_tools.index import COLUMNS, EXTRA_TYPES, NO_LABEL, ShardIndex
from kinemae.data_tools.storage.cache import LocalIndex
from kinemae.data_tools.storage.location import location
from kinemae.finetune.probe.store import Features

_FIX = "fix: write arrays `features` (samples x values) and `key`, optionally `label` and `group`"


def open_external(train: str, validation: str) -> list[tuple[Features, ShardIndex]]:
    """Read features, keys, labels, groups and other columns of training and validation.

    Labels are texts or integers; the classes are those of the training file.

    Raises:
        DataError: a file is missing or damaged, lacks a column, or has wrong values.
    """
    tables = [_read(key, Path(path)) for key, path in (("train", train), ("validation", validation))]
    labels = {label for label in tables[0].get("label", ()) if label is not None}
    names = [str(label) for label in sorted(labels)]
    first, second = (
        (_features(table), _index(path, table, names, key=f"data.{key}={path}"))
        for key, path, table in zip(("train", "validation"), (train, validation), tables, strict=True)
    )
    widths = [found[0].layers[0].shape[-1] for found in (first, second)]
    if widths[0] != widths[1]:
        raise DataError(
            f"data.validation={validation}: expected features of {widths[0]} values as in data.train, got "
            f"{widths[1]}; fix: write both with one encoder"
        )
    return [first, second]


def _read(key: str, path: Path) -> dict[str, Any]:
    """The columns of a file; `features` is a float32 array of rows."""
    named = f"data.{key}={path}"
    try:
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as arrays:
                columns: dict[str, Any] = {name: arrays[name] for name in arrays.files}
        else:
            table = pq.read_table(path)
            columns = {name: table.column(name).to_pylist() for name in table.column_names}
    except FileNotFoundError as error:
        raise DataError(f"{named}: expected a file of features, got no file; {_FIX}") from error
    except (OSError, ValueError, EOFError, pa.ArrowInvalid) as error:
        raise DataError(f"{named}: expected an npz or parquet file, got an error: {error}; {_FIX}") from error
    missing = [name for name in ("features", "key") if name not in columns]
    if missing:
        raise DataError(f"{named}: expected the column {missing[0]}, got {', '.join(columns)}; {_FIX}")
    try:
        features_RX = np.asarray(columns.pop("features"), dtype=np.float32)
    except (ValueError, TypeError) as error:
        raise DataError(f"{named}: expected numbers in `features`, got an error: {error}; {_FIX}") from error
    if features_RX.ndim != 2 or not features_RX.size:
        raise DataError(
            f"{named}: expected `features` of shape (samples, values), got {features_RX.shape}; {_FIX}"
        )
    values = {name: _listed(column) for name, column in columns.items()}
    for name, column in values.items():
        if len(column) != len(features_RX):
            raise DataError(
                f"{named}: expected {len(features_RX)} values in `{name}`, one per row of `features`, got "
                f"{len(column)}; {_FIX}"
            )
    return {**values, "features": features_RX}


def _listed(column: Any) -> list[Any]:
    values = column.tolist() if isinstance(column, np.ndarray) else list(column)
    return values if isinstance(values, list) else [values]


def _features(table: dict[str, Any]) -> Features:
    features_RX = table["features"]
    rows = len(features_RX)
    return Features(
        layers={0: features_RX[:, None]},
        kind="vectors",
        dtype="float32",
        time_SVT=np.full((rows, 1, 1), np.nan),
        readable=np.arange(rows),
    )


def _index(path: str, table: dict[str, Any], classes: Sequence[str], *, key: str) -> ShardIndex:
    """An index without videos, so that tasks read their columns as from shards."""
    rows = len(table["features"])
    keys = [str(value) for value in table["key"]]
    labels = table.get("label", [None] * rows)
    number_of = {name: number for number, name in enumerate(classes)}
    unknown = next((label for label in labels if label is not None and str(label) not in number_of), None)
    if unknown is not None:
        raise DataError(
            f"{key}: expected the {len(classes)} labels of data.train, got {unknown!r} too; fix: remove "
            "these samples, or add some of them to data.train"
        )
    groups = table.get("group", [""] * rows)
    fixed = {
        "key": keys,
        "name": keys,
        "group": ["" if group is None else str(group) for group in groups],
        "label": [NO_LABEL if label is None else number_of[str(label)] for label in labels],
        "codec": [""] * rows,
        "content": keys,  # the key alone tells whether two rows are of the same video, see `check_leaks`
    }
    columns = [pa.array(fixed.get(entry.name, [0] * rows), entry.type) for entry in COLUMNS]
    found = pa.table(columns, schema=COLUMNS)
    for name, values in table.items():
        if name not in ("features", *COLUMNS.names):
            column = pa.array(values)
            if column.type in EXTRA_TYPES:
                found = found.append_column(name, column)
    digest = hashlib.sha256(table["features"].tobytes() + "\n".join(keys).encode()).hexdigest()[:16]
    description = {"classes": list(classes), "shards": [], "fingerprint": digest}
    folder = location(str(Path(path).parent))
    return ShardIndex(folder, found.combine_chunks(), description, LocalIndex(folder=Path(path).parent))
