"""`kinemae data compact SHARDS`: delete the bytes of removed samples."""

import argparse
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa

from kinemae.data_tools.command import log
from kinemae.data_tools.config import load_config, require
from kinemae.data_tools.data_set_files import delete_previous
from kinemae.data_tools.editing.rows import replaced
from kinemae.data_tools.editing.tar_files import TarWriter, open_tar
from kinemae.data_tools.index import IndexWriter, Shard, ShardIndex, ShardTable, open_data_sets, origin
from kinemae.data_tools.storage.location import location


@dataclass(frozen=True, kw_only=True)
class CompactConfig:
    """Config of `compact`.

    Attributes:
        previous: the tars that are replaced: "keep" lets the next change of the data set delete them, so that
            running readers can finish; "delete" deletes them now, with the old index.
    """

    previous: Literal["keep", "delete"] = "keep"

    def __post_init__(self) -> None:
        require(self.previous in ("keep", "delete"), "previous", "be keep or delete", self.previous)


@dataclass(frozen=True, kw_only=True)
class _NewShard:
    """A shard without its removed samples.

    Attributes:
        old_O, new_O: offsets of the videos that stay, in the old and in the new tar, sorted by the old ones.
    """

    shard: Shard
    old_O: np.ndarray
    new_O: np.ndarray


def run_compact(arguments: argparse.Namespace) -> None:
    """Write the shards with removed samples again, without these; other shards stay as they are."""
    config = load_config(CompactConfig, None, arguments.overrides)
    for index in open_data_sets(location(arguments.shards)).values():
        if arguments.dry_run:
            _log_dry_run(index)
            continue
        compact(index, delete=config.previous == "delete")


def compact(index: ShardIndex, *, delete: bool = False) -> None:
    """Write the shards with removed samples again.

    Args:
        delete: delete the old tars and the old index at once.

    Raises:
        DataError: another process changes the data set.
    """
    if not len(index.removed_R):
        log.info("%s: no sample was removed", index.folder)
        if delete:
            delete_previous(index.folder)
        return
    made_by = {**origin(index.made_by), "command": "data_tools compact"}
    types = index.extra_types
    with IndexWriter(
        index.folder, classes=index.classes, made_by=made_by, extra=types, base=index.state
    ) as writer:
        new = _write_shards(index)
        _write_rows(writer, index, new)
        names = [index.shards[number].name for number in new]
        others = enumerate(index.shards.column("name"))
        used = {name for number, name in others if number not in new}  # two entries may name one tar
        inside = sorted({name for name in names if "/" not in name} - used)
        writer.replace_shards(inside)
    if delete:
        delete_previous(index.folder)
    _log_result(index, len(set(names) - set(inside)), len(inside), delete=delete)


def _log_dry_run(index: ShardIndex) -> None:
    whole, removed_R = index.with_removed(), index.removed_R
    numbers = np.unique(whole.column("shard")[removed_R])
    log.info(
        "%s: dry run: %d removed samples with %.1f MB would be deleted, and %d of %d shards with %.1f MB "
        "written again",
        *(index.folder, len(removed_R), whole.column("length")[removed_R].sum() / 1e6),
        *(len(numbers), len(index.shards), index.shards.column("bytes")[numbers].sum() / 1e6),
    )


def _write_shards(index: ShardIndex) -> dict[int, _NewShard | None]:
    """Write the shards with removed samples again; None for a shard in which no sample is left."""
    whole = index.with_removed()
    shard_R, offset_R = whole.column("shard"), whole.column("offset")
    is_removed_R = np.zeros(len(whole), dtype=bool)
    is_removed_R[index.removed_R] = True
    affected = np.unique(shard_R[is_removed_R]).tolist()
    order = np.argsort(shard_R, kind="stable")
    begins, ends = (np.searchsorted(shard_R[order], affected, side=side) for side in ("left", "right"))
    new: dict[int, _NewShard | None] = {}
    for done, number in enumerate(affected):
        here = order[begins[done] : ends[done]]
        kept, gone = here[~is_removed_R[here]], here[is_removed_R[here]]
        new[number] = _without(whole, number, offset_R, kept, gone) if len(kept) else None
        log.info(
            "%s: %d of %d shards with removed samples are written", index.folder, done + 1, len(affected)
        )
    return new


def _without(
    whole: ShardIndex, number: int, offset_R: np.ndarray, kept: np.ndarray, gone: np.ndarray
) -> _NewShard:
    """Copy a shard without some samples; other members stay.

    Args:
        whole: the index with its removed rows.
        offset_R: offsets of all rows.
        kept, gone: rows of the samples of this shard.
    """
    old = whole.shards[number]
    shared = kept[np.isin(offset_R[kept], offset_R[gone])]  # hard links, or samples that were added again
    writer = TarWriter(whole.folder)
    try:
        with open_tar(whole.folder / old.name) as tar:
            unwanted, needed = (
                {
                    member
                    for row in rows.tolist()
                    for member in tar.sample(int(offset_R[row]), whole.value("key", row))
                }
                for rows in (gone, shared)
            )
            unwanted -= needed
            new_of = writer.add(tar, [member for member in tar.members if member not in unwanted])
        stem = old.name.rpartition("/")[2].removesuffix(".tar").partition("~")[0]
        shard = writer.finish(f"{_escaped(stem)}~{{digest}}.tar", len(kept))
    finally:
        writer.discard()
    old_O = np.unique(offset_R[kept])
    return _NewShard(shard=shard, old_O=old_O, new_O=np.array([new_of[offset] for offset in old_O.tolist()]))


def _write_rows(writer: IndexWriter, index: ShardIndex, new: dict[int, _NewShard | None]) -> None:
    """Write the rows that are left and the shards of the new state."""
    is_left = np.ones(len(index.shards), dtype=bool)
    is_left[[number for number, shard in new.items() if shard is None]] = False
    new_number = np.cumsum(is_left) - 1
    for batch in index.batches():
        shard_R, offset_R = batch.column("shard").to_numpy(), batch.column("offset").to_numpy().copy()
        for number in np.unique(shard_R).tolist():
            moved = new.get(number)
            if moved is not None:
                here_R = shard_R == number
                offset_R[here_R] = moved.new_O[np.searchsorted(moved.old_O, offset_R[here_R])]
        writer.add_batch(replaced(batch, shard=new_number[shard_R], offset=offset_R))
    present = index.shards.table.to_pylist()
    for number, moved in new.items():
        present[number] = vars(moved.shard) if moved is not None else present[number]
    left = [row for row, is_kept in zip(present, is_left.tolist(), strict=True) if is_kept]
    writer.add_shards(ShardTable(pa.Table.from_pylist(left, schema=index.shards.table.schema)))


def _log_result(index: ShardIndex, elsewhere: int, inside: int, *, delete: bool) -> None:
    log.info(
        "%s: %d removed samples are in no shard any more; %d old tars %s",
        index.folder,
        len(index.removed_R),
        inside,
        "are deleted" if delete else "stay until the next change (previous=delete deletes them now)",
    )
    if elsewhere:
        log.warning(
            "%s: %d tars of other folders, or in use, still hold removed samples; they stay as they are",
            *(index.folder, elsewhere),
        )


def _escaped(text: str) -> str:
    """A text for `str.format`."""
    return text.replace("{", "{{").replace("}", "}}")
