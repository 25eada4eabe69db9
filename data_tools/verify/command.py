"""`kinemae data verify SHARDS`: whether shards are what their index says.

Each shard is read once from end to end: size, sha256, headers, checksums, descriptions. With `--full` every
video is also read and decoded to its end as training would. Given the folder above the splits, it looks for
what two of them share as well.
"""

import argparse
import hashlib
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import combinations

import numpy as np

from kinemae.data_tools.command import DataError, log
from kinemae.data_tools.config import load_config, require
from kinemae.data_tools.folder_checks import list_data_sets
from kinemae.data_tools.index import (
    DATASET_NAME,
    INDEX_NAME,
    NO_LABEL,
    ShardIndex,
    dictionary_encode_column,
    fingerprint,
    open_index,
)
from kinemae.data_tools.pool import TIMEOUT_S, imap
from kinemae.data_tools.progress import progress
from kinemae.data_tools.storage.location import Location, location
from kinemae.data_tools.verify.compare import (
    Fault,
    IndexHandle,
    SampleJob,
    ShardJob,
    check_sample,
    check_shard,
    failed_on_sample,
)

_MAY_SHARE = {"train", "unlabelled"}
_LINES = 20  # in the log; --json has all
_NAMED = 3  # of each kind that would otherwise be as many as there are samples


@dataclass(frozen=True, kw_only=True)
class VerifyConfig:
    """How to verify.

    Attributes:
        workers: processes that read; 0 means one for each core.
        timeout_s: limit for a shard or a video without progress.
    """

    workers: int = 0
    timeout_s: float = TIMEOUT_S

    def __post_init__(self) -> None:
        require(self.workers >= 0, "workers", "be 0 or more", self.workers)
        require(self.timeout_s > 0, "timeout_s", "be above 0", self.timeout_s)


def run_verify(arguments: argparse.Namespace) -> None:
    """The command.

    Raises:
        DataError: there are faults.
    """
    settings = load_config(VerifyConfig, None, arguments.overrides)
    sets = open_sets(location(arguments.shards))
    faults = []
    faults_found = verify(sets, full=arguments.full, workers=settings.workers, timeout_s=settings.timeout_s)
    for found in faults_found:
        faults.append(found)
        if len(faults) <= _LINES:
            log.error("%s", found)
    samples, shards = sum(map(len, sets.values())), sum(len(index.shards) for index in sets.values())
    if arguments.json:
        result = {"samples": samples, "shards": shards, "full": arguments.full}
        result["faults"] = [asdict(found) for found in faults]
        sys.stdout.write(json.dumps(result, ensure_ascii=False) + "\n")
    if faults:
        more = f"; {len(faults) - _LINES} are not shown, --json has all" if len(faults) > _LINES else ""
        raise DataError(
            f"{len(faults)} faults in {arguments.shards}{more}; shard anew or copy what is damaged"
        )
    read = "read and decoded" if arguments.full else "read"
    log.info("%d samples in %d shards were %s: all as the index says", samples, shards, read)


def open_sets(folder: Location) -> dict[str, ShardIndex]:
    """The data set in a folder, or those directly inside it, by their names.

    Raises:
        DataError: there is none, or its index cannot be used.
    """
    splits = [] if (folder / DATASET_NAME).exists() else list_data_sets(folder, DATASET_NAME)
    places = {split: folder / split for split in splits} or {folder.name: folder}
    return {name: open_index(place, check_shards=False) for name, place in places.items()}


def verify(
    sets: dict[str, ShardIndex], *, full: bool, workers: int, timeout_s: float = TIMEOUT_S
) -> Iterator[Fault]:
    """All faults of data sets, and of their combination.

    Raises:
        StorageUnavailable: a shard cannot be read now; it may be intact.
        Stuck: the reading of a shard, or of many videos in a row, timed out.
    """
    yield from _leaks(sets)
    for index in sets.values():
        yield from _check_index(index)
        jobs = _shard_jobs(index)
        checked = imap(check_shard, jobs, workers=workers, timeout_s=timeout_s)
        for faults in progress(checked, total=len(jobs), what=f"shards of {index.folder}", unit="shard"):
            yield from faults
    for index in sets.values() if full else ():
        opened = IndexHandle.of(index)
        samples = [SampleJob(opened=opened, position=position) for position in range(len(index))]
        decoded = imap(
            check_sample, samples, workers=workers, on_failure=failed_on_sample, timeout_s=timeout_s
        )
        for faults in progress(decoded, total=len(samples), what=f"videos of {index.folder}"):
            yield from faults


def _shard_jobs(index: ShardIndex) -> list[ShardJob]:
    shard_R = index.column("shard")
    order = np.argsort(shard_R, kind="stable")
    ends = np.searchsorted(shard_R[order], np.arange(1, len(index.shards)))
    opened = IndexHandle.of(index)
    return [
        ShardJob(opened=opened, number=number, positions=tuple(positions.tolist()))
        for number, positions in enumerate(np.split(order, ends))
    ]


def _check_index(index: ShardIndex) -> Iterator[Fault]:
    """What the index alone shows."""
    place = str(index.folder)
    if index.sha256 and _digest(index) != index.sha256:
        yield Fault(place=place, what=f"{INDEX_NAME} is not the one that {DATASET_NAME} was written with")
    if fingerprint(index.shards) != index.fingerprint:
        yield Fault(place=place, what=f"the fingerprint in {DATASET_NAME} is not that of its shards")
    counts = np.bincount(np.clip(index.column("shard"), 0, None), minlength=len(index.shards))
    for shard, count in zip(index.shards, counts.tolist(), strict=False):
        if count != shard.samples:
            what = f"has {count} rows in the index, {shard.samples} samples according to {DATASET_NAME}"
            yield Fault(place=str(index.folder / shard.name), what=what)
    names = {shard.name for shard in index.shards}
    for name in index.folder.list(".tar") if index.folder.path is not None else ():
        if name not in names:
            yield Fault(place=str(index.folder / name), what="the index does not name this shard")
    yield from _check_rows(index)


def _check_rows(index: ShardIndex) -> Iterator[Fault]:
    label_R, shard_R = index.column("label"), index.column("shard")
    known = len(index.classes)
    wrong = {
        "its label is none of the classes": (label_R < NO_LABEL) | (label_R >= known),
        "its shard does not exist": (shard_R < 0) | (shard_R >= len(index.shards)),
        "it has no frames": index.column("frames") < 1,
        "it has no length in time": ~(index.column("duration_s") > 0),
    }
    keys, [code_R] = dictionary_encode_column([index], "key")
    if len(keys) < len(index):
        wrong["another sample has the same key"] = np.bincount(code_R)[code_R] > 1
    for what, is_wrong_R in wrong.items():
        bad = np.flatnonzero(is_wrong_R).tolist()
        for position in bad[:_NAMED]:
            sample = index.sample(position)
            yield Fault(place=str(index.folder), key=sample.key, what=what)
        if len(bad) > _NAMED:
            yield Fault(place=str(index.folder), what=f"{what}: so have {len(bad) - _NAMED} more samples")


def _leaks(sets: dict[str, ShardIndex]) -> Iterator[Fault]:
    """Files or groups that are in two data sets: what is learnt in one is then no news in the other."""
    for (one, one_index), (other, other_index) in combinations(sets.items(), 2):
        if {one, other} == _MAY_SHARE:
            continue
        for column, what in (("content", "the same file"), ("group", "the same group")):
            values, codes = dictionary_encode_column([one_index, other_index], column)
            unnamed = (-1, values.index("").as_py())
            shared = [code for code in np.intersect1d(codes[0], codes[1]).tolist() if code not in unnamed]
            for code in shared[:_NAMED]:
                pair = [
                    index.sample(int(np.flatnonzero(code_R == code)[0])).key
                    for index, code_R in zip((one_index, other_index), codes, strict=True)
                ]
                yield Fault(place=f"{one} and {other}", what=f"{what} in both: {pair[0]} and {pair[1]}")
            if len(shared) > _NAMED:
                more = f"{what} in both: {len(shared) - _NAMED} more times"
                yield Fault(place=f"{one} and {other}", what=more)


def _digest(index: ShardIndex) -> str:
    with (index.local_index.folder / INDEX_NAME).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
