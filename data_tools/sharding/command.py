"""`kinemae data shard SOURCE OUT`: convert a collection of videos to shards with an index.

    OUT/train/ validation/ ...   one data set each, see `kinemae.data_tools.index`
    OUT/classes.json             the classes in order, for classes=OUT of another run
    OUT/rejected.jsonl           rejected videos with reasons; also one per split
    OUT/notes.jsonl              accepted videos with anomalies
    OUT/shard.json               source and config; written first, so that a stopped run can be resumed
    OUT/work/                    until the command is complete: see `kinemae.data_tools.sharding.output`

Equal sources and configs give equal bytes, for any number of processes and of interruptions.
"""

import argparse
import json
import math
import os
import shlex
import sys
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from functools import partial
from operator import itemgetter
from typing import Any

from kinemae.data_tools.command import DataError, log, writing_to
from kinemae.data_tools.config import load_config
from kinemae.data_tools.data_set_files import files_of
from kinemae.data_tools.files import to_json_text, to_jsonl
from kinemae.data_tools.index import DATASET_NAME, REJECTED_NAME, open_index
from kinemae.data_tools.layouts.base import Job
from kinemae.data_tools.manifest.class_map import CLASSES_NAME, sorted_classes
from kinemae.data_tools.manifest.videos import SPLITS
from kinemae.data_tools.progress import progress
from kinemae.data_tools.sharding.output import Output
from kinemae.data_tools.sharding.parts import PARTS_NAME, STATE_NAME, Part
from kinemae.data_tools.sharding.plan import Plan, ShardConfig, make_plan
from kinemae.data_tools.sharding.ray_parts import shard_on_ray
from kinemae.data_tools.sharding.rejects import (
    NOTES_NAME,
    check_rejects,
    count_reasons,
    read_entries,
    warn_of_notes,
    warn_of_temporary,
)
from kinemae.data_tools.sharding.split_index import MADE_BY, check_contents, write_split_index
from kinemae.data_tools.sharding.splits import shuffled
from kinemae.data_tools.sharding.transcode import Done, TranscodeResult, forget_rejected, transcode
from kinemae.data_tools.sharding.windows import SplitWriter, WindowLog, restore_rest
from kinemae.data_tools.storage.location import Location, location

_MERGED = {CLASSES_NAME, REJECTED_NAME, NOTES_NAME, STATE_NAME}  # that `merge` of parts writes into OUT


def run_shard(arguments: argparse.Namespace) -> None:
    """List the videos and write the shards of each split."""
    settings = load_config(ShardConfig, None, arguments.overrides)
    if settings.engine == "ray" and not arguments.dry_run and not _is_complete(location(arguments.out)):
        shard_on_ray(arguments, settings)
        return
    root, out = location(arguments.source), location(arguments.out)
    plan = make_plan(root, settings)
    output = Output(out, settings.work_dir, plan.part)
    _check_root(out, plan.part)
    done = _check_out(output.out, plan.state)
    if plan.part is not None and (not done or settings.retry_rejected):
        _check_not_merged(out, plan.part)
    summary = _summary(plan)
    log.info(
        "%s: %d videos, %d classes, splits: %s, %d other files",
        *(root, summary["videos"], len(summary["classes"])),
        *(", ".join(summary["given_splits"]) or "none", plan.manifest.ignored),
    )
    was_complete = done
    if done and settings.retry_rejected and not arguments.dry_run:
        _check_unchanged(output.out)
        done = not _is_any_readable_now(plan, output)
    if done:
        log.info("%s is complete already", output.out)
        _renew_limits(plan, output)
        warn_of_temporary(_entries(output.out, REJECTED_NAME))
        output.remove_work()
    elif not arguments.dry_run:
        with writing_to(output.out.path or output.work):
            state = {**plan.state, **_limits_of_part(plan)}
            output.write_text(STATE_NAME, to_json_text({**state, "complete": False}))
            if was_complete:  # readers of OUT must not find new shards with an old index
                for split in SPLITS:
                    (output.out / split / DATASET_NAME).remove()
            with output.opened():
                _shard(plan, output)
                output.write_text(STATE_NAME, to_json_text({**state, "complete": True}))
                output.remove_work()
    if arguments.json:
        counts = written(output.out) if done or not arguments.dry_run else {}
        sys.stdout.write(json.dumps({**summary, **counts}) + "\n")


def _check_unchanged(out: Location) -> None:
    """Check that no other command changed the data sets of OUT: writing them again would undo its changes.

    Raises:
        DataError: samples were removed or added.
    """
    for split in SPLITS:
        if (out / split / DATASET_NAME).exists():
            described = json.loads((out / split / DATASET_NAME).read())
            command = described["made_by"].get("command")
            if command != MADE_BY or "removed" in files_of(described):
                raise DataError(
                    f"{out / split}: expected a data set that was not changed after `shard`, got one with "
                    "removed or added samples; fix: shard the videos to a new folder, then `kinemae data add`"
                )


def _is_any_readable_now(plan: Plan, output: Output) -> bool:
    """Try the rejected videos of a complete OUT again; if one is readable, OUT has to be written again."""
    rejected = {entry["path"] for entry in _entries(output.out, REJECTED_NAME)}
    jobs = [job for split in SPLITS for job in _jobs(plan, output, split) if job.video.name in rejected]
    if not jobs:
        return False
    with writing_to(output.out.path or output.work), output.opened():
        readable = sum(bool(result.samples) for _, result in _transcode(plan, output, jobs))
    log.info("%d of %d rejected videos are readable now", readable, len(jobs))
    return readable > 0


def _jobs(plan: Plan, output: Output, split: str) -> list[Job]:
    """The videos of a split in their order in the shards: by name, then shuffled by the seed."""
    settings = plan.settings
    videos = zip(plan.manifest.videos, plan.keys, plan.splits, strict=True)
    own = sorted((video.name, number) for number, (video, _, where) in enumerate(videos) if where == split)
    return [
        Job(
            video=plan.manifest.videos[number],
            key=plan.keys[number],
            folder=output.spool,
            segment_rules=settings.segment_rules(plan.manifest.videos[number], plan.layout),
            curate=settings.curate,
        )
        for _, number in shuffled(own, seed=settings.seed, purpose=f"shard/order/{split}")
    ]


def _transcode(
    plan: Plan, output: Output, jobs: Sequence[Job], first: int = 0
) -> Iterator[tuple[Job, TranscodeResult]]:
    """Store videos. `first` is the number of videos before them, for the progress."""
    settings = plan.settings
    workers = settings.workers or len(os.sched_getaffinity(0))

    def show(done: Iterable[Done], known: int) -> Iterator[Done]:
        nonlocal first
        first += known
        for result in progress(done, total=len(plan.manifest.videos), what="store", first=first):
            first += 1
            yield result

    return transcode(
        jobs,
        plan.layout,
        output.work,
        workers=settings.workers,
        timeout_s=settings.timeout_s,
        batch_bytes=workers * settings.megabytes_per_shard * 1_000_000,
        show=show,
    )


def _shard(plan: Plan, output: Output) -> None:
    if plan.settings.retry_rejected:
        forget_rejected(output.work)
    videos = {video.name: video for video in plan.manifest.videos}
    windows = WindowLog(output, videos.__getitem__)
    retried = {name for name, entry in windows.rejected.items() if _is_retried(plan, entry)}
    output.write_text(CLASSES_NAME, to_json_text(plan.classes))
    before = 0
    for split in SPLITS:
        jobs = _jobs(plan, output, split)
        rest = restore_rest(split, output, windows, partial(_store, plan, output, jobs))
        writer = SplitWriter(split, output, windows, rest=rest, classes=plan.classes, record=plan.record)
        for job, result in _transcode(plan, output, jobs[writer.videos :], before + writer.videos):
            writer.add(job.video, result)
            if len(windows.rejected) - len(retried) > _max_rejected(plan):
                _write_rejects(plan, output, windows)
        for job, result in _store(plan, output, jobs, retried):
            writer.add(job.video, result, is_retry=True)
        writer.close()
        before += len(jobs)
    _write_rejects(plan, output, windows)
    check_contents(plan, windows)
    for split, state in windows.splits.items():
        if state.samples:
            write_split_index(split, plan, output, windows)


def _store(
    plan: Plan, output: Output, jobs: Sequence[Job], names: Container[str]
) -> Iterator[tuple[Job, TranscodeResult]]:
    """Store the videos of some names."""
    return _transcode(plan, output, [job for job in jobs if job.video.name in names])


def _limits_of_part(plan: Plan) -> dict[str, Any]:
    """The checks that `merge` makes with all parts."""
    settings = plan.settings
    limits = {"max_bad_fraction": settings.max_bad_fraction, "leaks": settings.leaks}
    return {"limits": limits} if plan.part else {}


def _renew_limits(plan: Plan, output: Output) -> None:
    """Write the limits of this run into a complete part, which is not repeated for them."""
    limits = _limits_of_part(plan)
    state = json.loads((output.out / STATE_NAME).read())
    if limits and state.get("limits") != limits["limits"]:
        output.write_text(STATE_NAME, to_json_text({**state, **limits}))


def _max_rejected(plan: Plan) -> float:
    """Limit of rejected videos. A part has none, because `merge` checks all parts together."""
    return math.inf if plan.part else plan.settings.max_bad_fraction * len(plan.manifest.videos)


def _is_retried(plan: Plan, entry: Mapping[str, Any]) -> bool:
    return plan.settings.retry_rejected or not entry.get("is_final", True)


def _write_rejects(plan: Plan, output: Output, windows: WindowLog) -> None:
    """Write the lists of rejected and noted videos.

    Raises:
        DataError: too many videos are rejected.
    """
    rejected, notes = (
        sorted(entries.values(), key=itemgetter("path")) for entries in (windows.rejected, windows.notes)
    )
    output.write_text(REJECTED_NAME, to_jsonl(rejected))
    output.write_text(NOTES_NAME, to_jsonl(notes))
    given = {video.name: video.split or "train" for video in plan.manifest.videos}
    for split in SPLITS:
        own = [entry for entry in rejected if given[entry["path"]] == split]
        if own or split in windows.splits:
            output.write_text(f"{split}/{REJECTED_NAME}", to_jsonl(own))
    warn_of_notes(notes, NOTES_NAME)
    if plan.part is None:
        fraction, total = plan.settings.max_bad_fraction, len(plan.manifest.videos)
        check_rejects(rejected, total, fraction, output.out / REJECTED_NAME)
    elif rejected:
        log.warning("%d videos of this part are rejected; see %s", len(rejected), output.out / REJECTED_NAME)


def _is_complete(out: Location) -> bool:
    return STATE_NAME in out.list() and bool(json.loads((out / STATE_NAME).read()).get("complete"))


def _check_root(out: Location, part: Part | None) -> None:
    """Check that OUT holds parts and files of their merge only, if a part is written; no parts otherwise.

    Raises:
        ValueError: it holds something else.
    """
    names = set(out.list())
    if part is None and PARTS_NAME in names and STATE_NAME not in names:
        parts, target = (shlex.quote(str(place)) for place in (out / PARTS_NAME, out))
        raise ValueError(
            f"OUT {out}: expected no parts without the key part, got {PARTS_NAME}; "
            f"fix: run `kinemae data merge {parts} {target}`, or choose a new folder"
        )
    others = sorted(names - {PARTS_NAME, *SPLITS, *(_MERGED if PARTS_NAME in names else ())})
    if part is not None and others:
        raise ValueError(
            f"part={part.number}/{part.count}: expected an empty OUT or one with parts only, got "
            f"{others[0]} in {out}; fix: choose a new folder"
        )


def _check_not_merged(out: Location, part: Part) -> None:
    """Check that `merge` has not yet written data sets from the parts of OUT.

    Raises:
        ValueError: it has; their shards would change.
    """
    files = [out / STATE_NAME, *(out / split / DATASET_NAME for split in SPLITS)]
    found = [shlex.quote(str(file)) for file in files if file.exists()]
    if found:
        raise ValueError(
            f"part={part.number}/{part.count}: expected parts that are not merged yet, got {found[0]}; fix: "
            f"to repair this part, remove {' '.join(found)}, run it again, then repeat `kinemae data merge`"
        )


def _check_out(out: Location, state: dict[str, Any]) -> bool:
    """Check whether OUT holds this data set completely.

    Raises:
        ValueError: OUT holds something else.
    """
    names = out.list()
    if not names:
        return False
    if STATE_NAME not in names:
        raise ValueError(
            f"OUT {out}: expected an empty folder or an earlier output, got files but no {STATE_NAME}; "
            "fix: choose a new folder"
        )
    found = json.loads((out / STATE_NAME).read())
    different = sorted(name for name in state if state[name] != found.get(name))
    if different:
        raise ValueError(
            f"OUT {out}: expected the same data set, got one made of {found.get('source')} with another "
            f"{', '.join(different)}; fix: choose a new folder, or remove this one"
        )
    return bool(found.get("complete"))


def _summary(plan: Plan) -> dict[str, Any]:
    videos = plan.manifest.videos
    return {
        "videos": len(videos),
        "ignored": plan.manifest.ignored,
        "classes": sorted_classes(video.label for video in videos if video.label is not None),
        "given_splits": sorted({video.split for video in videos if video.split is not None}),
    }


def written(out: Location) -> dict[str, Any]:
    """The counts of a complete OUT, for `--json`."""
    splits = {split: open_index(out / split) for split in SPLITS if (out / split / DATASET_NAME).exists()}
    rejected = _entries(out, REJECTED_NAME)
    return {
        "splits": {
            split: {
                "samples": len(index),
                "shards": len(index.shards),
                "bytes": index.shards.bytes,
                "fingerprint": index.fingerprint,
            }
            for split, index in splits.items()
        },
        "rejected": len(rejected),
        "reasons": count_reasons(entry["reason"] for entry in rejected),
        "notes": len(_entries(out, NOTES_NAME)),
    }


def _entries(out: Location, name: str) -> list[dict[str, Any]]:
    return read_entries((out / name).read().decode())
