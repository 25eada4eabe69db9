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
from collections.abc import Iterator
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
from kinemae.data_tools.files import atomic_write_text, to_jsonl
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
    removed: dict[str, list[str]] = {name: [] for name in sets}
    for group in groups:
        for entry in group["remove"]:
            removed[entry["split"]].append(entry["key"])
    with writing_to(out):
        out.mkdir(parents=True, exist_ok=True)
        for name, keys in removed.items():
            if keys:
                atomic_write_text(out / f"{name or 'keys'}.txt", "".join(f"{key}\n" for key in keys))
        atomic_write_text(out / "duplicates.jsonl", to_jsonl(groups))
    total = sum(map(len, sets.values()))
    log.info("%s: %d groups of near duplicates among %d samples", out, len(groups), total)
    for name, keys in removed.items():
        if keys:
            paths = sets[name].folder, out / f"{name or 'keys'}.txt"
            folder, file = (shlex.quote(str(path)) for path in paths)
            log.info("to remove %d samples: kinemae data remove %s %s", len(keys), folder, file)
    if arguments.json:
        counts = {name: len(keys) for name, keys in removed.items()}
        sys.stdout.write(json.dumps({"samples": total, "groups": len(groups), "remove": counts}) + "\n")


def find_duplicates(sets: dict[str, ShardIndex], config: DuplicatesConfig) -> list[dict[str, Any]]:
    """The groups of near duplicates, largest first.

    Raises:
        DataError: a data set has no hashes.
    """
    names = list(sets)
    hashes = gather_hashes(sets, max_blank_share=config.max_blank_share)
    groups = []
    for component in near_duplicate_groups(hashes.words_NX, config.bits):
        for kept, others in _kept(component, hashes, config.bits):
            bits = distances(hashes.words_NX[kept], hashes.words_NX[others]).tolist()
            entries = [_entry(sets, names, hashes, row) for row in (kept, *others.tolist())]
            remove = [{**entry, "bits": count} for entry, count in zip(entries[1:], bits, strict=True)]
            groups.append({"keep": entries[0], "remove": remove})
    return sorted(groups, key=lambda group: -len(group["remove"]))


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


def _entry(sets: dict[str, ShardIndex], names: list[str], hashes: Hashes, row: int) -> dict[str, Any]:
    split = names[hashes.set_N[row]]
    sample = sets[split].sample(int(hashes.position_N[row]))
    return {"key": sample.key, "split": split, "name": sample.name}
