"""`kinemae data duplicates SHARDS OUT`: near duplicates of a whole data set, and the samples to remove.

    OUT/duplicates.jsonl     the groups: the kept sample, and the removed ones with their distances
    OUT/train.txt ...        the keys to remove from each split, for `kinemae data remove`; keys.txt if
                             SHARDS is one data set

Every removed sample is within `bits` of the kept one of its group. The kept sample is the first one in the
order test, validation, train, unlabelled; of one split the one with the most pixels, then bytes.
"""

import argparse
import json
import shlex
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kinemae.data_tools.command import log, writing_to
from kinemae.data_tools.config import load_config, require
from kinemae.data_tools.curation.near_duplicates import (
    MAX_BITS,
    distances,
    near_duplicate_groups,
    read_hashes,
)
from kinemae.data_tools.files import to_jsonl
from kinemae.data_tools.index import ShardIndex, open_data_sets
from kinemae.data_tools.storage.location import location

MAX_BLANK_SHARE = 0.5
_ORDER = ("test", "validation", "train", "unlabelled")


@dataclass(frozen=True, kw_only=True)
class DuplicatesConfig:
    """Config of `kinemae data duplicates`.

    Attributes:
        bits: largest Hamming distance of the 256-bit hashes of near duplicates.
        max_blank_share: samples with a larger blank share are left out, because their hashes are alike.
    """

    bits: int = 16
    max_blank_share: float = MAX_BLANK_SHARE

    def __post_init__(self) -> None:
        require(0 <= self.bits <= MAX_BITS, "bits", f"lie in [0, {MAX_BITS}]", self.bits)
        is_share = 0 <= self.max_blank_share <= 1
        require(is_share, "max_blank_share", "lie in [0, 1]", self.max_blank_share)


@dataclass(frozen=True, kw_only=True)
class Hashes:
    """The hashes of several data sets.

    Attributes:
        set_N, position_N: number of the data set and position in it.
        rank_N: place in the order in which samples are kept.
    """

    words_NX: np.ndarray
    set_N: np.ndarray
    position_N: np.ndarray
    rank_N: np.ndarray


def run_duplicates(arguments: argparse.Namespace) -> None:
    """Run the command."""
    config = load_config(DuplicatesConfig, None, arguments.overrides)
    out = Path(arguments.out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"OUT {out}: expected a new folder, got an existing one; fix: choose another OUT")
    sets = open_data_sets(location(arguments.shards), check_shards=False)
    groups = find_duplicates(sets, config)
    with writing_to(out):
        out.mkdir(parents=True, exist_ok=True)
        count, removed = _write(out, groups, sets)
    total = sum(map(len, sets.values()))
    log.info("%s: %d groups of near duplicates among %d samples", out, count, total)
    for name, keys in removed.items():
        if keys:
            paths = sets[name].folder, out / _keys_name(name)
            folder, file = (shlex.quote(str(path)) for path in paths)
            log.info("to remove %d samples: kinemae data remove %s %s", keys, folder, file)
    if arguments.json:
        sys.stdout.write(json.dumps({"samples": total, "groups": count, "remove": removed}) + "\n")


def _write(
    out: Path, groups: Iterable[Mapping[str, Any]], splits: Iterable[str]
) -> tuple[int, dict[str, int]]:
    """Write the groups and the keys one by one; return the numbers of groups and of keys of each split."""
    count, removed = 0, dict.fromkeys(splits, 0)
    files = ["duplicates.jsonl", *map(_keys_name, removed)]
    with ExitStack() as stack:
        lines, *keys = (
            stack.enter_context((out / f"{name}.partial").open("w", encoding="utf-8")) for name in files
        )
        keys_of = dict(zip(removed, keys, strict=True))
        for count, group in enumerate(groups, start=1):  # noqa: B007 - used after the loop
            lines.write(to_jsonl([group]))
            for entry in group["remove"]:
                removed[entry["split"]] += 1
                keys_of[entry["split"]].write(f"{entry['key']}\n")
    for name, is_used in zip(files, (True, *removed.values()), strict=True):
        partial = out / f"{name}.partial"
        partial.replace(out / name) if is_used else partial.unlink()
    return count, removed


def _keys_name(split: str) -> str:
    return f"{split or 'keys'}.txt"


def find_duplicates(sets: dict[str, ShardIndex], config: DuplicatesConfig) -> Iterator[dict[str, Any]]:
    """The groups of near duplicates, largest first.

    Raises:
        DataError: a data set has no hashes.
    """
    hashes = gather_hashes(sets, max_blank_share=config.max_blank_share)
    components = near_duplicate_groups(hashes.words_NX, config.bits)
    found = [group for component in components for group in _kept(component, hashes, config.bits)]
    found.sort(key=lambda group: -len(group[1]))
    rows = np.fromiter((row for group in found for row in (group[0], *group[1].tolist())), np.int64)
    entries = _Entries(sets, hashes, np.unique(rows))
    for kept, others in found:
        bits = distances(hashes.words_NX[kept], hashes.words_NX[others]).tolist()
        near = zip(others.tolist(), bits, strict=True)
        yield {
            "keep": entries.of(kept),
            "remove": [{**entries.of(row), "bits": count} for row, count in near],
        }


class _Entries:
    """Key, split and name of some rows of hashes, read in one pass over each data set.

    Args:
        row_K: the rows, ascending and unique.
    """

    def __init__(self, sets: dict[str, ShardIndex], hashes: Hashes, row_K: np.ndarray):
        self._row_K, self._names = row_K, list(sets)
        self._set_K = hashes.set_N[row_K]  # ascending, as the hashes are those of one set after the other
        position_K = hashes.position_N[row_K]
        self._texts = {
            column: [
                text
                for number, index in enumerate(sets.values())
                for text in _texts_at(index, column, position_K[self._set_K == number])
            ]
            for column in ("key", "name")
        }

    def of(self, row: int) -> dict[str, Any]:
        """The entry of a row."""
        at = int(np.searchsorted(self._row_K, row))
        key, name = (self._texts[column][at] for column in ("key", "name"))
        return {"key": key, "split": self._names[self._set_K[at]], "name": name}


def _texts_at(index: ShardIndex, column: str, position_K: np.ndarray) -> Iterator[str]:
    """Texts of a column at ascending positions."""
    begin = 0
    for batch in index.batches([column]):
        first, last = np.searchsorted(position_K, (begin, begin + len(batch)))
        yield from batch.column(0).take(position_K[first:last] - begin).to_pylist()
        begin += len(batch)


def gather_hashes(sets: dict[str, ShardIndex], *, max_blank_share: float = MAX_BLANK_SHARE) -> Hashes:
    """The hashes of the samples of all data sets that are not blank.

    Raises:
        DataError: a data set has no hashes.
    """
    words, numbers, positions, pixels, sizes, splits = [], [], [], [], [], []
    for number, (name, index) in enumerate(sets.items()):
        words_RX, position_R = read_hashes(index)
        if "blank_share" in index.extra:
            blank_R = index.column("blank_share")[position_R]
            is_shown_R = ~(blank_R > max_blank_share)
            words_RX, position_R = words_RX[is_shown_R], position_R[is_shown_R]
        words.append(words_RX)
        positions.append(position_R)
        numbers.append(np.full(len(position_R), number, np.int32))
        splits.append(np.full(len(position_R), _ORDER.index(name) if name in _ORDER else len(_ORDER)))
        shape = (index.column(side)[position_R].astype(np.int64) for side in ("width", "height"))
        pixels.append(np.multiply(*shape))
        sizes.append(index.column("length")[position_R])
    split_N, pixels_N, size_N = (np.concatenate(each) for each in (splits, pixels, sizes))
    rank_N = np.empty(len(split_N), np.int64)
    rank_N[np.lexsort((-size_N, -pixels_N, split_N))] = np.arange(len(split_N))
    return Hashes(
        words_NX=np.concatenate(words),
        set_N=np.concatenate(numbers),
        position_N=np.concatenate(positions),
        rank_N=rank_N,
    )


def _kept(component: np.ndarray, hashes: Hashes, bits: int) -> Iterator[tuple[int, np.ndarray]]:
    """Kept samples of a component, each with the samples near it that are removed."""
    rest = component[np.argsort(hashes.rank_N[component])]
    while len(rest) > 1:
        kept, rest = int(rest[0]), rest[1:]
        is_near = distances(hashes.words_NX[kept], hashes.words_NX[rest]) <= bits
        if is_near.any():
            yield kept, rest[is_near]
        rest = rest[~is_near]
