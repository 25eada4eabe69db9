"""`kinemae data verify SHARDS`: compare shards with their index.

Each shard is read once from end to end: size, sha256, headers, checksums, json members. With `--full` every
video is also decoded to its end, as in training. If SHARDS holds several splits, the command also looks for
leaks between them.
"""

import argparse
import hashlib
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any

import numpy as np

from kinemae.data_tools.command import DataError, log
from kinemae.data_tools.config import load_config, require
from kinemae.data_tools.data_set_files import fingerprint
from kinemae.data_tools.index import (
    DATASET_NAME,
    NO_LABEL,
    ShardIndex,
    open_data_sets,
)
from kinemae.data_tools.leaks import dictionary_encode_column, find_leaks
from kinemae.data_tools.pool import TIMEOUT_S, Engine, check_engine, imap
from kinemae.data_tools.progress import progress
from kinemae.data_tools.storage.location import location
from kinemae.data_tools.unread import unread_rows
from kinemae.data_tools.verify.compare import (
    Fault,
    IndexHandle,
    SampleJob,
    ShardJob,
    check_sample,
    check_shard,
    failed_sample,
)

_MAY_SHARE = {"train", "unlabelled"}
_MAX_LINES = 20  # in the log; --json has all
_MAX_EXAMPLES = 3  # of each kind that may occur in every sample


@dataclass(frozen=True, kw_only=True)
class VerifyConfig:
    """Settings of `kinemae data verify`.

    Attributes:
        workers: processes that read; 0 means one per core.
        timeout_s: limit for a shard or a video without progress.
        engine: "ray" reads on a Ray cluster.
    """

    workers: int = 0
    timeout_s: float = TIMEOUT_S
    engine: Engine = "local"

    def __post_init__(self) -> None:
        require(self.workers >= 0, "workers", "be 0 or more", self.workers)
        require(self.timeout_s > 0, "timeout_s", "be above 0", self.timeout_s)
        check_engine(self.engine)


def run_verify(arguments: argparse.Namespace) -> None:
    """Run the command.

    Raises:
        DataError: there are faults.
    """
    settings = load_config(VerifyConfig, None, arguments.overrides)
    sets = open_data_sets(location(arguments.shards), check_shards=False)
    faults = []
    for fault in verify(sets, full=arguments.full, **asdict(settings)):
        faults.append(fault)
        if len(faults) <= _MAX_LINES:
            log.error("%s", fault)
    samples, shards = sum(map(len, sets.values())), sum(len(index.shards) for index in sets.values())
    if arguments.json:
        result = {"samples": samples, "shards": shards, "full": arguments.full}
        result["faults"] = [asdict(fault) for fault in faults]
        sys.stdout.write(json.dumps(result, ensure_ascii=False) + "\n")
    if faults:
        more = (
            f"; {len(faults) - _MAX_LINES} are not shown, --json has all" if len(faults) > _MAX_LINES else ""
        )
        raise DataError(
            f"{len(faults)} faults in {arguments.shards}{more}; fix: shard or copy the damaged shards again"
        )
    if unread := sum(int(unread_rows(index).sum()) for index in sets.values()):
        log.warning("%d samples have no checksum in the index: their bytes were not compared", unread)
    read = "read and decoded" if arguments.full else "read"
    log.info("%d samples in %d shards were %s: no faults", samples, shards, read)


def verify(
    sets: dict[str, ShardIndex],
    *,
    full: bool,
    workers: int,
    timeout_s: float = TIMEOUT_S,
    engine: Engine = "local",
) -> Iterator[Fault]:
    """Yield all faults of data sets, and leaks between them.

    Raises:
        StorageUnavailable: a shard cannot be read now; it may be intact.
        Stuck: the reading of a shard, or of many videos in a row, timed out.
    """
    limits: Any = {"workers": workers, "timeout_s": timeout_s, "engine": engine}
    yield from _check_leaks(sets)
    for index in sets.values():
        yield from _check_index(index)
        jobs = _shard_jobs(index.with_removed())
        checked = imap(check_shard, jobs, **limits)
        for faults in progress(checked, total=len(jobs), what=f"shards of {index.folder}", unit="shard"):
            yield from faults
    for index in sets.values() if full else ():
        handle = IndexHandle.of(index)
        samples = [SampleJob(handle=handle, position=position) for position in range(len(index))]
        decoded = imap(check_sample, samples, on_failure=failed_sample, **limits)
        for faults in progress(decoded, total=len(samples), what=f"videos of {index.folder}"):
            yield from faults


def _shard_jobs(index: ShardIndex) -> list[ShardJob]:
    shard_R = index.column("shard")
    order = np.argsort(shard_R, kind="stable")
    ends = np.searchsorted(shard_R[order], np.arange(1, len(index.shards)))
    handle = IndexHandle.of(index, with_removed=True)
    return [
        ShardJob(handle=handle, number=number, positions=tuple(positions.tolist()))
        for number, positions in enumerate(np.split(order, ends))
    ]


def _check_index(present: ShardIndex) -> Iterator[Fault]:
    """Faults that the index alone shows; removed rows are checked too."""
    index = present.with_removed()
    place, files = str(index.folder), index.files
    for each in files.values():
        with (index.local_index.folder / each.name).open("rb") as file:
            if each.sha256 not in ("", hashlib.file_digest(file, "sha256").hexdigest()):
                yield Fault(place=place, problem=f"{each.name} and {DATASET_NAME} come from different runs")
    if "shards" in files and fingerprint(index.shards.column("sha256"), files) != index.fingerprint:
        yield Fault(place=place, problem=f"the fingerprint in {DATASET_NAME} does not match its files")
    counts = np.bincount(np.clip(index.column("shard"), 0, None), minlength=len(index.shards))
    for shard, count in zip(index.shards, counts.tolist(), strict=False):
        if count != shard.samples:
            problem = f"expected {shard.samples} samples as listed, got {count} rows in the index"
            yield Fault(place=str(index.folder / shard.name), problem=problem)
    names = {*index.shards.column("name"), *json.loads(index.state).get("previous", ())}
    for name in index.folder.list(".tar") if index.folder.path is not None else ():
        if name not in names:
            yield Fault(place=str(index.folder / name), problem="the shard is not in the index")
    yield from _check_rows(index, present)


def _check_rows(index: ShardIndex, present: ShardIndex) -> Iterator[Fault]:
    label_R, shard_R = index.column("label"), index.column("shard")
    frames_R, duration_R = index.column("frames"), index.column("duration_s")
    is_read_R = ~unread_rows(index) | (duration_R != 0) | (index.column("crc32") != 0)
    wrong = {
        "its label is not a class": (label_R < NO_LABEL) | (label_R >= len(index.classes)),
        "its shard does not exist": (shard_R < 0) | (shard_R >= len(index.shards)),
        "it has no frames": is_read_R & (frames_R < 1),
        "its duration is not positive": is_read_R & ~(duration_R > 0),
    }
    keys, [code_R] = dictionary_encode_column([present], "key")
    if len(keys) < len(present):
        is_repeated_R = np.zeros(len(index), dtype=bool)
        is_repeated_R[present.rows(np.flatnonzero(np.bincount(code_R)[code_R] > 1))] = True
        wrong["another sample has the same key"] = is_repeated_R
    for problem, is_wrong_R in wrong.items():
        bad = np.flatnonzero(is_wrong_R).tolist()
        for position in bad[:_MAX_EXAMPLES]:
            yield Fault(place=str(index.folder), key=index.sample(position).key, problem=problem)
        if len(bad) > _MAX_EXAMPLES:
            more = f"{problem}: {len(bad) - _MAX_EXAMPLES} more samples"
            yield Fault(place=str(index.folder), problem=more)


def _check_leaks(sets: dict[str, ShardIndex]) -> Iterator[Fault]:
    """Files or groups that two data sets share, except train and unlabelled."""
    indexes = list(sets.values())
    pairs = [pair for pair in combinations(enumerate(sets), 2) if {name for _, name in pair} != _MAY_SHARE]
    for column, what in (("content", "the same file"), ("group", "the same group")) if pairs else ():
        leaks = find_leaks(*dictionary_encode_column(indexes, column))
        for pair in pairs:
            place = " and ".join(name for _, name in pair)
            shared = [leak.first for leak in leaks if all(number in leak.first for number, _ in pair)]
            for first in shared[:_MAX_EXAMPLES]:
                keys = [indexes[number].sample(first[number]).key for number, _ in pair]
                yield Fault(place=place, problem=f"{what} in both: {' and '.join(keys)}")
            if len(shared) > _MAX_EXAMPLES:
                more = f"{what} in both: {len(shared) - _MAX_EXAMPLES} more times"
                yield Fault(place=place, problem=more)
