"""`kinemae data shard SOURCE OUT engine=ray`: the parts of a collection as Ray tasks, then their merge."""

import argparse
import json
import multiprocessing
import sys
from math import inf
from typing import NamedTuple

from kinemae.data_tools.editing.merge import MergeConfig
from kinemae.data_tools.editing.parts import find_parts, merge_parts
from kinemae.data_tools.pool import imap_unordered
from kinemae.data_tools.progress import progress
from kinemae.data_tools.sharding.parts import PARTS_NAME
from kinemae.data_tools.sharding.plan import ShardConfig
from kinemae.data_tools.storage.location import Location, location

_CORES = 2  # of a task: one process per core, so that a crash of a decoder costs one video
_OF_ENGINE = ("engine", "parts", "workers")  # keys that the tasks do not get


class _Job(NamedTuple):
    source: str
    out: str
    overrides: tuple[str, ...]


def shard_on_ray(arguments: argparse.Namespace, settings: ShardConfig) -> None:
    """Store each part with a Ray task, then merge the parts; finished parts are not repeated.

    Raises:
        ValueError: OUT has another number of parts, or there is no Ray cluster.
        Stuck: the cluster was lost.
    """
    out = location(arguments.out)
    _check_parts(out, settings.parts)
    cores = settings.workers or _CORES
    kept = [text for text in arguments.overrides if text.partition("=")[0] not in _OF_ENGINE]
    jobs = [
        _Job(
            arguments.source,
            arguments.out,
            (*kept, f"workers={cores}", f"part={number}/{settings.parts}"),
        )
        for number in range(settings.parts)
    ]
    # The timeout of a video holds inside of the part.
    done = imap_unordered(_shard_part, jobs, workers=0, timeout_s=inf, engine="ray", cores=cores)
    for _ in progress(done, total=len(jobs), what="parts", unit="part"):
        pass
    merge_parts(find_parts(out / PARTS_NAME), out, MergeConfig())
    if arguments.json:
        from kinemae.data_tools.sharding.command import written

        sys.stdout.write(json.dumps(written(out)) + "\n")


def _check_parts(out: Location, count: int) -> None:
    found = sorted({part.count for part in find_parts(out / PARTS_NAME)} - {count})
    if found:
        raise ValueError(
            f"parts: expected {found[0]}, the number of parts in {out / PARTS_NAME}, got {count}; fix: set "
            f"parts={found[0]}, or choose a new OUT"
        )


def _shard_part(job: _Job) -> None:
    """Store one part, in a process of a Ray task."""
    from kinemae.data_tools.sharding.command import run_shard

    # Processes of a pool are daemons, which may have no children; those of this one end with it.
    multiprocessing.current_process()._config["daemon"] = False  # type: ignore[attr-defined]
    run_shard(
        argparse.Namespace(
            source=job.source, out=job.out, overrides=list(job.overrides), dry_run=False, json=False
        )
    )
