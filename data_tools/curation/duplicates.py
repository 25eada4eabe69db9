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
import tempfile
from array import array
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from kinemae.data_tools.command import log, writing_to
from kinemae.data_tools.config import load_config, require
from kinemae.data_tools.curation.frame_stats import HASH_BITS
from kinemae.data_tools.curation.near_duplicates import (
    MAX_BITS,
    Arrays,
    distances,
    near_duplicate_groups,
    read_hashes,
)
from kinemae.data_tools.files import to_jsonl
from kinemae.data_tools.index import ShardIndex, open_data_sets
from kinemae.data_tools.storage.location import local_out, location

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
    """The hashes of several data sets, one after the other.

    Attributes:
        words_NX: see `read_hashes`.
        set_N, position_N: number of the data set and position in it.
        split_N: place of the split in the order in which samples are kept.
        pixels_N, bytes_N: of a frame, and of the video.
    """

    words_NX: np.ndarray
    set_N: np.ndarray
    position_N: np.ndarray
    split_N: np.ndarray
    pixels_N: np.ndarray
    bytes_N: np.ndarray

    def ranked(self, row_K: np.ndarray) -> np.ndarray:
        """Ascending rows in the order in which they are kept."""
        keys = -self.bytes_N[row_K], -self.pixels_N[row_K], self.split_N[row_K]
        ranked_K: np.ndarray = row_K[np.lexsort(keys)]
        return ranked_K


def run_duplicates(arguments: argparse.Namespace) -> None:
    """Run the command."""
    config = load_config(DuplicatesConfig, None, arguments.overrides)
    out = local_out(arguments.out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"OUT {out}: expected a new folder, got an existing one; fix: choose another OUT")
    sets = open_data_sets(location(arguments.shards), check_shards=False)
    with writing_to(out), _scratch(out) as scratch:
        lists = scratch / "lists"
        count, removed = _write(lists, find_duplicates(sets, config, Arrays(scratch)), sets)
        lists.replace(out)  # OUT is complete or absent
    total = sum(map(len, sets.values()))
    log.info("%s: %d groups of near duplicates among %d samples", out, count, total)
    for name, keys in removed.items():
        if keys:
            paths = sets[name].folder, out / _keys_name(name)
            folder, file = (shlex.quote(str(path)) for path in paths)
            log.info("to remove %d samples: kinemae data remove %s %s", keys, folder, file)
    if arguments.json:
        sys.stdout.write(json.dumps({"samples": total, "groups": count, "remove": removed}) + "\n")


@contextmanager
def _scratch(out: Path) -> Iterator[Path]:
    """A folder for large arrays, next to OUT: the temporary folder of the system may be in memory."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as folder:
        yield Path(folder)


def _write(
    out: Path, groups: Iterable[Mapping[str, Any]], splits: Iterable[str]
) -> tuple[int, dict[str, int]]:
    """Write the groups and the keys one by one; return the numbers of groups and of keys of each split."""
    count, removed = 0, dict.fromkeys(splits, 0)
    out.mkdir()
    with ExitStack() as stack:
        lines, *keys = (
            stack.enter_context((out / name).open("w", encoding="utf-8"))
            for name in ("duplicates.jsonl", *map(_keys_name, removed))
        )
        keys_of = dict(zip(removed, keys, strict=True))
        for count, group in enumerate(groups, start=1):  # noqa: B007 - used after the loop
            lines.write(to_jsonl([group]))
            for entry in group["remove"]:
                removed[entry["split"]] += 1
                keys_of[entry["split"]].write(f"{entry['key']}\n")
    for name, keys_removed in removed.items():
        if not keys_removed:
            (out / _keys_name(name)).unlink()
    return count, removed


def _keys_name(split: str) -> str:
    return f"{split or 'keys'}.txt"


def find_duplicates(
    sets: dict[str, ShardIndex], config: DuplicatesConfig, arrays: Arrays | None = None
) -> Iterator[dict[str, Any]]:
    """The groups of near duplicates, largest first.

    Args:
        arrays: makes the large arrays; None keeps them in memory.

    Raises:
        DataError: a data set has no hashes.
    """
    hashes = gather_hashes(sets, max_blank_share=config.max_blank_share, arrays=arrays)
    kept_G, others_R, ends_G = array("q"), array("q"), array("q", [0])  # objects would take more memory
    for component in near_duplicate_groups(hashes.words_NX, config.bits, arrays=arrays):
        for kept, others in _kept(component, hashes, config.bits):
            kept_G.append(kept)
            others_R.extend(others.tolist())
            ends_G.append(len(others_R))
    entries = _Entries(sets, hashes, np.unique(np.concatenate([np.array(kept_G), np.array(others_R)])))
    for group in np.argsort(-np.diff(ends_G), kind="stable").tolist():
        kept, others = kept_G[group], np.array(others_R[ends_G[group] : ends_G[group + 1]])
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
            column: _joined_texts(
                texts
                for number, index in enumerate(sets.values())
                for texts in _texts_at(index, column, position_K[self._set_K == number])
            )
            for column in ("key", "name")
        }

    def of(self, row: int) -> dict[str, Any]:
        """The entry of a row."""
        at = int(np.searchsorted(self._row_K, row))
        key, name = (self._texts[column][at].as_py() for column in ("key", "name"))
        return {"key": key, "split": self._names[self._set_K[at]], "name": name}


def _texts_at(index: ShardIndex, column: str, position_K: np.ndarray) -> Iterator[pa.Array]:
    """Texts of a column at ascending positions."""
    begin = 0
    for batch in index.batches([column]):
        first, last = np.searchsorted(position_K, (begin, begin + len(batch)))
        if last > first:
            yield batch.column(0).take(pa.array(position_K[first:last] - begin))
        begin += len(batch)


def _joined_texts(parts: Iterable[pa.Array]) -> pa.Array:
    return pa.concat_arrays(
        [pa.array([], pa.large_string()), *(part.cast(pa.large_string()) for part in parts)]
    )


def gather_hashes(
    sets: dict[str, ShardIndex], *, max_blank_share: float = MAX_BLANK_SHARE, arrays: Arrays | None = None
) -> Hashes:
    """The hashes of the samples of all data sets that are not blank.

    Raises:
        DataError: a data set has no hashes.
    """
    arrays, samples = arrays or Arrays(), sum(map(len, sets.values()))
    words_NX = arrays.empty((samples, HASH_BITS // 64), np.uint64)
    set_N, split_N = (arrays.empty((samples,), np.int16) for _ in range(2))
    position_N, pixels_N, bytes_N = (arrays.empty((samples,), np.int64) for _ in range(3))
    count = 0
    for number, (name, index) in enumerate(sets.items()):
        for words_RX, position_R in read_hashes(index):
            if "blank_share" in index.extra and len(position_R):
                blank_R = _values_at(index, "blank_share", position_R)
                is_shown_R = ~(blank_R > max_blank_share)
                words_RX, position_R = words_RX[is_shown_R], position_R[is_shown_R]
            rows = slice(count, count + len(position_R))
            words_NX[rows], position_N[rows], set_N[rows] = words_RX, position_R, number
            split_N[rows] = _ORDER.index(name) if name in _ORDER else len(_ORDER)
            if len(position_R):
                sides = (_values_at(index, side, position_R) for side in ("width", "height"))
                pixels_N[rows] = np.multiply(*sides)
                bytes_N[rows] = _values_at(index, "length", position_R)
            count = rows.stop
    return Hashes(
        words_NX=words_NX[:count],
        set_N=set_N[:count],
        position_N=position_N[:count],
        split_N=split_N[:count],
        pixels_N=pixels_N[:count],
        bytes_N=bytes_N[:count],
    )


def _values_at(index: ShardIndex, column: str, position_R: np.ndarray) -> np.ndarray:
    """Numbers of a column at ascending positions that are near each other."""
    first, last = int(position_R[0]), int(position_R[-1])
    return index.column_range(column, first, last + 1)[position_R - first]


def _kept(component: np.ndarray, hashes: Hashes, bits: int) -> Iterator[tuple[int, np.ndarray]]:
    """Kept samples of a component, each with the samples near it that are removed."""
    rest = hashes.ranked(component)
    while len(rest) > 1:
        kept, rest = int(rest[0]), rest[1:]
        is_near = distances(hashes.words_NX[kept], hashes.words_NX[rest]) <= bits
        if is_near.any():
            yield kept, rest[is_near]
        rest = rest[~is_near]
