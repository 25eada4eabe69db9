"""Combine samples of several shards: unique keys, one type per column, one spelling per label."""

import dataclasses
from collections import Counter
from collections.abc import Sequence
from typing import Any

from kinemae.data_tools.command import DataError, log
from kinemae.data_tools.indexing.field_rules import Shelf
from kinemae.data_tools.indexing.scan import Found, FoundVideo
from kinemae.data_tools.manifest.class_map import CLASSES_NAME, read_classes, sorted_classes
from kinemae.data_tools.manifest.labels import one_spelling
from kinemae.data_tools.manifest.table import Row, one_type
from kinemae.data_tools.storage.location import Location


def with_unique_keys(found: Sequence[Found]) -> list[Found]:
    """Make keys unique over the shards of a data set: a repeated key gets its shard as prefix, `1.tar/KEY`.

    Raises:
        DataError: two keys are still equal.
    """
    shards = Counter(key for one in found for key in dict.fromkeys(row.key for row in one.rows))
    repeated = [key for key, count in shards.items() if count > 1]
    if repeated:
        log.info(
            "%d keys are in several shards, first %s: they get the name of the shard as prefix",
            *(len(repeated), repeated[0]),
        )
    unique = [
        _with_rows(
            one,
            [
                dataclasses.replace(row, key=f"{one.shard.name}/{row.key}") if shards[row.key] > 1 else row
                for row in one.rows
            ],
        )
        for one in found
    ]
    keys = Counter(row.key for one in unique for row in one.rows)
    key, count = max(keys.items(), key=lambda pair: pair[1], default=("", 0))
    if count > 1:
        raise DataError(f"key {key}: expected unique keys, got it twice; fix: rename one of the shards")
    return unique


def typed(found: Sequence[Found]) -> list[Found]:
    """Each column with one type in all splits."""
    cells = [Row(where=f"{one.shard.name}, {row.key}", cells=row.extra) for one in found for row in one.rows]
    for column in sorted({name for row in cells for name in row.cells}):
        cells = one_type(cells, column)
    rest = iter(cells)
    return [
        _with_rows(one, [dataclasses.replace(row, extra=dict(next(rest).cells)) for row in one.rows])
        for one in found
    ]


def one_spelling_each(found: Sequence[Found]) -> list[Found]:
    """Labels that spell each whole number in one way."""
    spelled = one_spelling(row.label for one in found for row in one.rows if row.label is not None)
    return [
        _with_rows(
            one, [dataclasses.replace(row, label=spelled.get(row.label or "", row.label)) for row in one.rows]
        )
        for one in found
    ]


def lists_of_classes(places: Sequence[Location]) -> list[list[str]]:
    """The class lists of shards made by `shard`: in their folder, or in its parent OUT."""
    folders = dict.fromkeys(place.path.parent for place in places if place.path is not None)
    files = dict.fromkeys(folder / CLASSES_NAME for inner in folders for folder in (inner, inner.parent))
    return [read_classes(str(file)) for file in files if file.is_file()]


def counted(shelves: Sequence[Shelf]) -> dict[str, Any]:
    """The report of a dry run."""
    labels = [one.label for shelf in shelves for one in shelf.described if one.label is not None]
    spelled = one_spelling(labels)
    return {
        "shards": len(shelves),
        "videos": sum(len(shelf.described) for shelf in shelves),
        "without_video": sum(len(shelf.left_out) for shelf in shelves),
        "classes": sorted_classes([spelled.get(label, label) for label in labels]),
    }


def _with_rows(one: Found, rows: Sequence[FoundVideo]) -> Found:
    return dataclasses.replace(one, rows=tuple(rows))
