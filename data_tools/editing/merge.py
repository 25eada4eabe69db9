"""`kinemae data merge SOURCE ... OUT` and `kinemae data add SHARDS NEW ...`: join the indexes of data sets.

The tars stay where they are, and the new index names them; `videos=copy` copies them.
"""

import argparse
import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from kinemae.data_tools.command import DataError, log
from kinemae.data_tools.config import load_config, require
from kinemae.data_tools.data_set_files import ABSENT
from kinemae.data_tools.editing.arguments import folders_and_overrides
from kinemae.data_tools.editing.output import is_complete
from kinemae.data_tools.editing.rows import replaced
from kinemae.data_tools.editing.sets import (
    Splits,
    check_leaks,
    joined_classes,
    joined_columns,
    open_sources,
    repeated_rows,
    with_siblings,
)
from kinemae.data_tools.editing.shard_names import copy_shard, reference_to
from kinemae.data_tools.index import IndexWriter, ShardIndex, ShardTable, origin
from kinemae.data_tools.storage.location import Location

_COPIES_AT_ONCE = 8


@dataclass(frozen=True, kw_only=True)
class MergeConfig:
    """Config of `merge` and `add`.

    Attributes:
        videos: "reference" leaves the tars where they are; "copy" copies them to OUT.
        classes: "same" rejects data sets with different classes; "union" appends new ones.
        duplicates: "error" rejects equal keys; "skip" keeps the sample of the first data set.
        leaks: "error" rejects splits that share groups or files; "warn" logs them.
    """

    videos: Literal["reference", "copy"] = "reference"
    classes: Literal["same", "union"] = "same"
    duplicates: Literal["error", "skip"] = "error"
    leaks: Literal["error", "warn"] = "error"

    def __post_init__(self) -> None:
        require(self.videos in ("reference", "copy"), "videos", "be reference or copy", self.videos)
        require(self.classes in ("same", "union"), "classes", "be same or union", self.classes)
        require(self.duplicates in ("error", "skip"), "duplicates", "be error or skip", self.duplicates)
        require(self.leaks in ("error", "warn"), "leaks", "be error or warn", self.leaks)


def run_add(arguments: argparse.Namespace) -> None:
    """Add the samples of data sets to an existing one, split by split."""
    folders, overrides = folders_and_overrides(arguments.sources, at_least=2, what="SHARDS NEW ...")
    config = load_config(MergeConfig, None, overrides)
    target, *sources = folders
    base, new = open_sources([target]), open_sources(sources)
    if ("" in base) != ("" in new):
        raise DataError(
            f"{target} and {sources[0]}: expected data sets, or folders with splits, got one of each; "
            "fix: give data sets, such as OUT/train, or folders with splits, such as OUT"
        )
    together = {split: [*base.get(split, []), *new.get(split, [])] for split in {**base, **new}}
    check_leaks(with_siblings(together, target), config.leaks)
    for split, indexes in new.items():
        if split not in base:
            merge({split: indexes}, target, config, dry_run=arguments.dry_run)
            continue
        [index] = base[split]
        known = index.made_by.get("added", [])
        fresh = [each for each in indexes if each.identity not in known]
        if fresh:
            _merge_split(fresh, index.folder, config, "add", base=index, dry_run=arguments.dry_run)
        else:
            log.info("%s: the samples were added before", index.folder)


def merge(splits: Splits, out: Location, config: MergeConfig, *, dry_run: bool = False) -> None:
    """Write a data set for each split into a new folder.

    Args:
        dry_run: check and count only.

    Raises:
        DataError: the data sets do not fit together, or `out` holds another data set.
    """
    check_leaks(with_siblings(splits, out), config.leaks)
    folders = {split: out / split if split else out for split in splits}
    made_by = {split: _made_by("merge", indexes, config) for split, indexes in splits.items()}
    missing = [split for split in splits if not is_complete(folders[split], made_by[split])]
    for split in missing:
        _merge_split(splits[split], folders[split], config, "merge", dry_run=dry_run)


def _made_by(command: str, indexes: Sequence[ShardIndex], config: MergeConfig) -> dict[str, Any]:
    added = [index.identity for index in indexes]
    return {"command": f"data_tools {command}", "merge": asdict(config), "added": added}


def _merge_split(
    indexes: Sequence[ShardIndex],
    folder: Location,
    config: MergeConfig,
    command: str,
    base: ShardIndex | None = None,
    *,
    dry_run: bool,
) -> None:
    """Join data sets and log the result; `base` is the present state of `folder`."""
    together = [*([] if base is None else [base]), *indexes]
    classes = joined_classes(together, config.classes)
    joined_columns(together)  # its errors come first
    repeated = repeated_rows(together)
    count = sum(map(len, repeated))
    if count and config.duplicates == "error":
        number = next(number for number, rows in enumerate(repeated) if len(rows))
        key = together[number].with_removed().sample(int(repeated[number][0])).key
        raise DataError(
            f"{together[number].folder}: expected unique keys, got {count} that occur twice, first {key!r}; "
            "fix: remove them from one data set with `kinemae data remove`, or duplicates=skip"
        )
    if count:
        log.warning("%s: %d samples have the key of an earlier one and are left out", folder, count)
    if dry_run:
        _log_dry_run(indexes, folder, sum(map(len, together)) - count, copies=config.videos == "copy")
        return
    made_by = common_origin(together) | _made_by(command, indexes, config)
    if base is not None:
        made_by["added"] = [*base.made_by.get("added", []), *made_by["added"]]
    merge_indexes(
        together,
        folder,
        classes=classes,
        made_by=made_by,
        removed=repeated,
        copies=config.videos == "copy",
        base=base,
    )
    log.info("%s: %d samples of %d data sets", folder, sum(map(len, together)) - count, len(together))


def _log_dry_run(indexes: Sequence[ShardIndex], folder: Location, samples: int, *, copies: bool) -> None:
    log.info(
        "%s: dry run: it would have %d samples; %d shards with %.1f MB would be %s",
        *(folder, samples, sum(len(index.shards) for index in indexes)),
        *(sum(index.shards.bytes for index in indexes) / 1e6, "copied" if copies else "referred to"),
    )


def merge_indexes(  # noqa: PLR0913 - all but two by name
    indexes: Sequence[ShardIndex],
    folder: Location,
    *,
    classes: Sequence[str],
    made_by: dict[str, Any],
    removed: Sequence[np.ndarray] = (),
    copies: bool = False,
    base: ShardIndex | None = None,
) -> None:
    """Write one index over the samples of several, in their order. Removed samples stay removed.

    Args:
        removed: for each index, more rows to remove.
        copies: copy the shards to `folder` first; those of `base` are there.
        base: the present state of `folder`, the first of `indexes`; None for a new data set.
    """
    state = ABSENT if base is None else base.state
    writer = IndexWriter(folder, classes=classes, made_by=made_by, extra=joined_columns(indexes), base=state)
    with writer:
        begin, gone = 0, []
        for number, index in enumerate(indexes):
            whole = index.with_removed()
            label_Y = np.array([*map(classes.index, index.classes), -1], dtype=np.int32)
            for batch in whole.batches():
                shard_R = batch.column("shard").to_numpy() + writer.shard_count
                writer.add_batch(
                    replaced(batch, shard=shard_R, label=label_Y[batch.column("label").to_numpy()])
                )
            table = index.shards.table
            if index is not base:
                names = _place_shards(index, folder, copies=copies)
                table = table.set_column(0, "name", pa.array(names, pa.string()))
            writer.add_shards(ShardTable(table))
            gone += [begin + index.removed_R, *(begin + rows for rows in removed[number : number + 1])]
            begin += len(whole)
        writer.remove_rows(np.unique(np.concatenate(gone)))


def common_origin(indexes: Sequence[ShardIndex]) -> dict[str, Any]:
    """The fields of `made_by` that several data sets share, such as the config with the layout."""
    first = origin(indexes[0].made_by)
    return {key: first[key] for key in first if all(each.made_by.get(key) == first[key] for each in indexes)}


def _place_shards(index: ShardIndex, folder: Location, *, copies: bool) -> list[str]:
    """The names of an index's shards in another folder, which are copied there if asked."""
    places = [index.folder / name for name in index.shards.column("name")]
    if not copies:
        return [reference_to(place, folder) for place in places]
    digest = hashlib.sha256(index.identity.encode()).hexdigest()[:8]
    names = [f"shard-{digest}-{number:06d}.tar" for number in range(len(places))]
    with ThreadPoolExecutor(_COPIES_AT_ONCE) as pool:
        targets = [folder / name for name in names]
        sizes = index.shards.column("bytes").tolist()
        for number, _ in enumerate(pool.map(copy_shard, places, targets, sizes)):
            log.info("%s: %d of %d shards copied", folder, number + 1, len(places))
    return names
