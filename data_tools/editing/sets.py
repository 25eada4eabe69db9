"""Data sets that a command reads: folders, their splits, and checks of several together."""

import os
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from pathlib import Path

import numpy as np
import pyarrow as pa

from kinemae.data_tools.command import DataError, log
from kinemae.data_tools.editing.output import beside
from kinemae.data_tools.index import DATASET_NAME, ShardIndex, open_data_sets, open_index
from kinemae.data_tools.manifest.videos import SPLITS
from kinemae.data_tools.storage.location import Location

_MAY_SHARE = {"train", "unlabelled"}
_SHOWN = 5

Splits = dict[str, list[ShardIndex]]


def open_sources(folders: Sequence[Location]) -> Splits:
    """Open the data sets of several folders by split; "" for folders that are data sets themselves.

    Raises:
        DataError: a folder holds no data set, or only some are data sets themselves.
    """
    splits: Splits = {}
    for folder in folders:
        for split, index in open_data_sets(folder).items():
            splits.setdefault(split, []).append(index)
    if "" in splits and len(splits) > 1:
        plain = splits[""][0].folder
        other = next(indexes[0].folder for split, indexes in splits.items() if split)
        raise DataError(
            f"{plain}: expected folders with the same splits, got a data set, and {other} of a folder with "
            "splits; fix: give data sets, such as OUT/train, or folders with splits, such as OUT"
        )
    return splits


def joined_classes(indexes: Sequence[ShardIndex], policy: str) -> tuple[str, ...]:
    """The classes of several data sets. Data sets without classes can be merged with any.

    Args:
        policy: "same" rejects data sets with different classes; "union" appends new classes.

    Raises:
        DataError: the classes differ.
    """
    labelled = [index for index in indexes if index.classes]
    for index in labelled[1:] if policy == "same" else ():
        first = labelled[0]
        if set(index.classes) != set(first.classes):
            other = sorted(set(index.classes) ^ set(first.classes))
            raise DataError(
                f"{index.folder}: expected the {len(first.classes)} classes of {first.folder}, got "
                f"{len(index.classes)} classes; only one has {', '.join(map(repr, other[:_SHOWN]))}; "
                f"fix: shard it with classes={first.folder}, or classes=union"
            )
    return tuple(dict.fromkeys(name for index in labelled for name in index.classes))


def joined_columns(indexes: Sequence[ShardIndex]) -> dict[str, pa.DataType]:
    """The additional columns of several data sets; integers and floats become floats.

    Raises:
        DataError: a column is text in one data set and a number in another.
    """
    types: dict[str, tuple[pa.DataType, ShardIndex]] = {}
    for index in indexes:
        for name, kind in index.extra_types.items():
            known, first = types.setdefault(name, (kind, index))
            if kind != known and pa.string() in (kind, known):
                raise DataError(
                    f"{index.folder}: expected {name!r} to be {known}, as in {first.folder}, got {kind}; "
                    "fix: make one of them again with equal types"
                )
            types[name] = (known if kind == known else pa.float64(), first)
    return {name: kind for name, (kind, _) in types.items()}


def repeated_rows(indexes: Sequence[ShardIndex]) -> list[np.ndarray]:
    """Find rows whose key occurs in an earlier row of any of the data sets; for each data set, its rows.

    Removed rows do not count.
    """
    hashes = [_hashes(index, "key") for index in indexes]
    shared = _repeated(np.concatenate(hashes))
    seen: set[str] = set()
    found = []
    for index, hash_R in zip(indexes, hashes, strict=True):
        rows = []
        candidates = np.flatnonzero(np.isin(hash_R, shared)) if len(shared) else ()
        for position in map(int, candidates):  # few: keys with equal hashes
            key = index.value("key", position)
            if key in seen:
                rows.append(index.row(position))
            seen.add(key)
        found.append(np.array(rows, dtype=np.int64))
    return found


def check_leaks(splits: Mapping[str, Sequence[ShardIndex]], policy: str) -> None:
    """Reject splits that share a group or the content of a file; `unlabelled` may share with `train`.

    Args:
        policy: "error", or "warn" to log them.

    Raises:
        DataError: see above.
    """
    for column, what in (("content", "files"), ("group", "groups")) if len(splits) > 1 else ():
        hashes = {
            split: np.unique(np.concatenate([_hashes(index, column) for index in indexes]))
            for split, indexes in splits.items()
        }
        for one, other in combinations(splits, 2):
            common = np.intersect1d(hashes[one], hashes[other], assume_unique=True)
            values = _values(splits[one], column, common) & _values(splits[other], column, common)
            if {one, other} == _MAY_SHARE or not values:
                continue
            found = f"got {len(values)} in both, first {min(values)!r}"
            text = f"{one} and {other}: expected different {what}, {found}"
            if policy == "error":
                raise DataError(f"{text}; fix: remove the samples from one split, or leaks=warn")
            log.warning("%s", text)


def with_siblings(splits: Splits, folder: Location) -> Splits:
    """The splits, with the other ones next to `folder` if it is one split, such as OUT/train.

    Args:
        splits: data sets that are to be in `folder`; "" for one data set.
    """
    path = folder.path and Path(os.path.abspath(folder.path))
    own = path.name if path else folder.name
    if "" not in splits or own not in SPLITS:
        return splits
    together: Splits = {}
    for split in SPLITS:
        place = beside(folder, split)
        if split == own:
            together[split] = splits[""]
        elif (place / DATASET_NAME).exists():
            together[split] = [open_index(place, check_shards=False)]
    return together


def _hashes(index: ShardIndex, column: str) -> np.ndarray:
    """Hashes of a column of texts, of 8 bytes per sample; those of this process only."""
    batches = (batch.column(0).to_pylist() for batch in index.batches([column]))
    parts = [np.fromiter(map(hash, values), np.int64, len(values)) for values in batches]
    return np.concatenate(parts) if parts else np.empty(0, np.int64)


def _repeated(hash_R: np.ndarray) -> np.ndarray:
    hash_R = np.sort(hash_R)
    return np.unique(hash_R[1:][hash_R[1:] == hash_R[:-1]])


def _values(indexes: Iterable[ShardIndex], column: str, hashes: np.ndarray) -> set[str]:
    """The texts with these hashes, except the empty one."""
    if not len(hashes[hashes != hash("")]):
        return set()
    known = set(hashes.tolist())
    return {
        value
        for index in indexes
        for batch in index.batches([column])
        for value in batch.column(0).to_pylist()
        if value and hash(value) in known
    }
