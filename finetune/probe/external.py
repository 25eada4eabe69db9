"""Features in npz or parquet files, with one row per sample."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from kinemae.data_tools.command import DataError
from kinemae.data_tools.index import COLUMNS, EXTRA_TYPES, NO_LABEL, ShardIndex, index_of_table
from kinemae.data_tools.storage.location import location
from kinemae.finetune.features.files import FeatureTable, read_features
from kinemae.finetune.probe.store import Features


def open_external(train: str, validation: str) -> list[tuple[Features, ShardIndex]]:
    """Read features, keys, labels, groups and other columns of training and validation.

    Labels are texts or integers; the classes are those of the training file.

    Raises:
        DataError: a file is missing or damaged, lacks a column, or has wrong values.
    """
    tables = [
        read_features(Path(path), named=f"data.{key}={path}")
        for key, path in (("train", train), ("validation", validation))
    ]
    labels = {label for label in tables[0].columns.get("label", ()) if label is not None}
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


def _features(table: FeatureTable) -> Features:
    rows = len(table)
    return Features(
        layers={0: np.asarray(table.features, dtype=np.float32)[:, None]},
        kind="vectors" if table.features.ndim == 2 else "tokens",
        dtype="float32",
        time_SVT=np.full((rows, 1, 1), np.nan),
        readable=np.arange(rows),
    )


def _index(path: str, table: FeatureTable, classes: Sequence[str], *, key: str) -> ShardIndex:
    """An index without videos, so that tasks read their columns as from shards."""
    rows, keys = len(table), table.keys
    labels = table.columns.get("label", [None] * rows)
    number_of = {name: number for number, name in enumerate(classes)}
    unknown = next((label for label in labels if label is not None and str(label) not in number_of), None)
    if unknown is not None:
        raise DataError(
            f"{key}: expected the {len(classes)} labels of data.train, got {unknown!r} too; fix: remove "
            "these samples, or add some of them to data.train"
        )
    groups = table.columns.get("group", [""] * rows)
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
    for name, values in table.columns.items():
        if name not in COLUMNS.names:
            column = pa.array(values)
            if column.type in EXTRA_TYPES:
                found = found.append_column(name, column)
    digest = hashlib.sha256(table.features.tobytes() + "\n".join(keys).encode()).hexdigest()[:16]
    return index_of_table(location(str(Path(path).parent)), found.combine_chunks(), classes, digest)
